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
    ]
