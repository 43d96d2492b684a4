from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("judges", "0012_routed_by_certificate"),
    ]

    operations = [
        migrations.AddField(
            model_name="chosenjudge",
            name="settled_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
