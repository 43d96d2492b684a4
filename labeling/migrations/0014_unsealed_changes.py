from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("labeling", "0013_sealed_history")]

    operations = [
        migrations.AddIndex(
            "change",
            models.Index(fields=["id"], name="change_unsealed", condition=Q(number=None)),
        ),
    ]
