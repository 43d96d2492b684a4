from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("judges", "0003_run_workers")]

    operations = [
        migrations.AlterField(
            model_name="judgeserver",
            name="url",
            field=models.CharField(max_length=500),
        ),
        migrations.AddField(
            model_name="judgeserver",
            name="in_own_network",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="judgeserver",
            name="trial",
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name="judgeserver",
            name="tried_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
