from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0004_paused_jobs")]

    operations = [
        migrations.AddField(
            model_name="rater",
            name="calibrated_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
