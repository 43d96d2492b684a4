import django.db.models.deletion
from django.db import migrations, models
from django.db.models import F, Q


LOCKS = "The history alone: leads who change something wait while its rows are copied."


def keys_of_before(apps, schema_editor):
    apps.get_model("labeling", "Change").objects.update(
        project_key=F("project_id"), actor_key=F("actor_id")
    )


class Migration(migrations.Migration):
    dependencies = [("labeling", "0012_ratings")]

    operations = [
        migrations.AlterField(
            "change",
            "project",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="changes",
                to="labeling.project",
            ),
        ),
        migrations.AddField(
            "change",
            "project_key",
            models.BigIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            "change",
            "actor_key",
            models.BigIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            "change",
            "number",
            models.PositiveBigIntegerField(editable=False, null=True, unique=True),
        ),
        migrations.AddField(
            "change",
            "salt",
            models.CharField(blank=True, default="", editable=False, max_length=32),
            preserve_default=False,
        ),
        migrations.AddField(
            "change",
            "digest",
            models.CharField(blank=True, default="", editable=False, max_length=64),
            preserve_default=False,
        ),
        migrations.AddField(
            "change",
            "seal",
            models.CharField(blank=True, default="", editable=False, max_length=64),
            preserve_default=False,
        ),
        migrations.AddField(
            "change",
            "redacted_at",
            models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.RunPython(keys_of_before, migrations.RunPython.noop),
        migrations.CreateModel(
            name="SignInFailure",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("account", models.CharField(max_length=32)),
                ("address", models.CharField(max_length=32)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["account", "created_at"], name="sign_in_failure_of_account"
                    ),
                    models.Index(
                        fields=["address", "created_at"], name="sign_in_failure_from_address"
                    ),
                ],
            },
        ),
    ]
