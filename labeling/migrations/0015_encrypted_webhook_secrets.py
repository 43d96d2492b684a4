from django.db import migrations, models

from labeling import keys


LOCKS = "Webhooks alone, of which there are a few for each project."


def encrypt(apps, schema_editor):
    for webhook in apps.get_model("labeling", "Webhook").objects.all():
        webhook.encrypted_secret = keys.encrypted(webhook.encrypted_secret, keys.WEBHOOKS)
        webhook.save(update_fields=["encrypted_secret"])


def decrypt(apps, schema_editor):
    for webhook in apps.get_model("labeling", "Webhook").objects.all():
        webhook.encrypted_secret = keys.decrypted(webhook.encrypted_secret, keys.WEBHOOKS)
        webhook.save(update_fields=["encrypted_secret"])


class Migration(migrations.Migration):
    dependencies = [("labeling", "0014_unsealed_changes")]

    operations = [
        migrations.RenameField("webhook", "secret", "encrypted_secret"),
        migrations.AlterField("webhook", "encrypted_secret", models.TextField()),
        migrations.RunPython(encrypt, decrypt),
    ]
