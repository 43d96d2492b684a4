from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("judges", "0005_drift_check"),
    ]

    operations = [
        migrations.AddField(
            model_name="runworker",
            name="troubles",
            field=models.JSONField(default=dict),
        ),
    ]
