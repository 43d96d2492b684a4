from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("judges", "0007_worker_troubles"),
    ]

    operations = [
        migrations.AddField(
            model_name="probe",
            name="told",
            field=models.JSONField(default=list),
        ),
        migrations.AddField(
            model_name="driftcheck",
            name="told",
            field=models.JSONField(default=list),
        ),
    ]
