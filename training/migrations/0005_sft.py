import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('training', '0004_restrict_deletion'),
    ]

    operations = [
        migrations.AddField(
            model_name='run',
            name='text_sha256',
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AlterField(
            model_name='run',
            name='dataset',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.RESTRICT, related_name='runs', to='training.dataset'),
        ),
        migrations.AlterField(
            model_name='run',
            name='kind',
            field=models.CharField(choices=[('reward', 'Reward model'), ('dpo', 'DPO policy'), ('sft', 'SFT policy'), ('pretrain', 'Continued pre-training')], max_length=20),
        ),
    ]
