from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0014_judges_and_ppo_rounds")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="queue",
            field=models.CharField(default="gpu", max_length=20),
        ),
    ]
