from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0007_certified_preferences")]

    operations = [
        migrations.AddField(
            model_name="rater",
            name="calibrated_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
