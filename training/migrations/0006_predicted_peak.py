from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0005_sft")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="predicted_peak",
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="measured_peak",
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="device",
            field=models.CharField(blank=True, default="", max_length=10),
            preserve_default=False,
        ),
    ]
