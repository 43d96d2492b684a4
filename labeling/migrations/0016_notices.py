import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ("labeling", "0015_encrypted_webhook_secrets"),
    ]

    operations = [
        migrations.AddField(
            model_name="project",
            name="changing_from",
            field=models.PositiveSmallIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=[("finished", "Finished"), ("failed", "Failed"), ("lost", "Lost its worker"), ("paused", "Paused"), ("completed", "All labels are given"), ("revoked", "Certificate revoked"), ("alarm", "Alarm")], max_length=10)),
                ("about", models.CharField(blank=True, max_length=200)),
                ("words", models.TextField(blank=True)),
                ("address", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("read_at", models.DateTimeField(blank=True, null=True)),
                ("mailed_at", models.DateTimeField(blank=True, null=True)),
                ("project", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="notices", to="labeling.project")),
                ("user", models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="notices", to=settings.AUTH_USER_MODEL)),
            ],
            options={
                "ordering": ["-pk"],
                "indexes": [
                    models.Index(fields=["user", "-id"], name="notices_of_person"),
                    models.Index(condition=models.Q(("read_at", None)), fields=["user"], name="notices_unread"),
                ],
            },
        ),
    ]
