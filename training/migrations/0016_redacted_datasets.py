from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0015_run_queue")]

    operations = [
        migrations.AddField(
            model_name="dataset",
            name="body_sha256",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddField(
            model_name="dataset",
            name="redacted_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
