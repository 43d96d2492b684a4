import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("judges", "0008_told_by_servers"),
    ]

    operations = [
        migrations.AddField(
            model_name="verdict",
            name="asked_for",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="member_verdicts",
                to="judges.judgerun",
            ),
        ),
    ]
