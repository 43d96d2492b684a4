from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0010_datasets_of_studies")]

    operations = [
        migrations.AlterField(
            model_name="run",
            name="kind",
            field=models.CharField(
                choices=[
                    ("reward", "Reward model"),
                    ("dpo", "DPO policy"),
                    ("sft", "SFT policy"),
                    ("pretrain", "Continued pre-training"),
                    ("quiet_star", "Quiet-STaR"),
                ],
                max_length=20,
            ),
        ),
    ]
