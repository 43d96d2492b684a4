from django.db import migrations, models


LOCKS = "Datasets alone, of which there are hundreds at most, for milliseconds."


def mark_what_studies_froze(apps, schema_editor):
    """Until now nothing told them apart: they have no run, no draft and no preview, in a project
    with a study of labels."""
    apps.get_model("training", "Dataset").objects.filter(
        runs=None, drafts=None, preview={}, project__studies__kind="labels"
    ).update(for_study=True)


class Migration(migrations.Migration):
    dependencies = [("training", "0009_child_runs")]

    operations = [
        migrations.AddField(
            model_name="dataset",
            name="for_study",
            field=models.BooleanField(default=False),
        ),
        migrations.RunPython(mark_what_studies_froze, migrations.RunPython.noop),
    ]
