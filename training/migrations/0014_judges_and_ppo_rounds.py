import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("labeling", "0011_judge_requests"),
        ("training", "0013_rounds"),
    ]

    operations = [
        migrations.AddField(
            model_name="run",
            name="judge",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="scored_runs",
                to="labeling.rater",
            ),
        ),
        migrations.AddField(
            model_name="round",
            name="then",
            field=models.CharField(
                blank=True,
                choices=[
                    ("policy", "the policy, once the reward model is trained"),
                    ("arena", "the arena, once the policy is trained"),
                ],
                default="",
                max_length=10,
            ),
            preserve_default=False,
        ),
        migrations.AlterField(
            model_name="round",
            name="purpose",
            field=models.CharField(
                choices=[
                    ("reward", "A better reward model"),
                    ("dpo", "A better policy, by DPO"),
                    ("ppo", "A better policy, by PPO"),
                    ("evaluation", "Which model is better"),
                ],
                max_length=12,
            ),
        ),
    ]
