"""The registry of models: tags and notes, what depends on a model or a run, and their end."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import F, ProtectedError, Q, RestrictedError
from django.utils.translation import gettext_noop

from labeling import shared
from labeling.changes import note_change
from labeling.jobs import Job
from labeling.models import Project, Rater
from labeling.storage import OURS, names_a_path, storage_path
from training.models import Checkpoint, Merge, ModelExport, ModelReport, ModelVersion, Run, Study

logger = logging.getLogger(__name__)

MOST_TAGS = 20


class StillInUse(ValueError):
    """Jobs read what was to be deleted, or more depends on it than was agreed to."""


@dataclass
class Dependents:
    """What would go with a model or a run; reports on the models go as well."""

    models: list[ModelVersion] = field(default_factory=list)  # children before their parents
    merges: list[Merge] = field(default_factory=list)
    exports: list[ModelExport] = field(default_factory=list)
    # Of the runs that made the models: nothing goes on from them once the model is gone.
    checkpoints: list[Checkpoint] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    # Raters that ask one of the models: they stay with all they said, and cannot be asked again.
    judges: list[Rater] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)  # what has to end first
    n_bytes: int = 0


def clean_tags(text: str) -> list[str]:
    """Tags of a field with commas between, each once.

    Raises: ValueError for too many, or one too long.
    """
    tags = sorted({" ".join(part.split()).lower() for part in text.split(",") if part.strip()})
    if len(tags) > MOST_TAGS or any(len(tag) > 40 for tag in tags):
        raise ValueError(f"at most {MOST_TAGS} tags of 40 letters")
    return tags


@transaction.atomic
def describe(model: ModelVersion, tags: Sequence[str], notes: str, by: Any) -> None:
    """Give a model other tags and notes."""
    before = {"tags": model.tags, "notes": model.notes}
    model.tags, model.notes = list(tags), notes
    model.save(update_fields=["tags", "notes"])
    after = {"tags": model.tags, "notes": model.notes}
    note_change(
        model.project, by, gettext_noop("describe model"), model, before=before, after=after
    )


def what_depends(model: ModelVersion) -> Dependents:
    """The model with everything that was made from it: models, merges, exported files; and with
    the judges that ask one of them."""
    found = _made_from(model)
    found.n_bytes = sum(size_on_disk(path) for path in _paths(found))
    return found


def what_depends_on_run(run: Run) -> Dependents:
    """The run with its studies, its checkpoints, and its model as `what_depends` has it."""
    version = ModelVersion.objects.filter(run=run).select_related("run", "merge", "project").first()
    found = _made_from(version) if version else Dependents(checkpoints=list(run.checkpoints.all()))
    found.runs = [run]
    found.studies = list(run.studies.all())
    found.active += [job for job in (run, *found.studies) if job.is_active]
    found.n_bytes = sum(size_on_disk(path) for path in _paths(found))
    return found


def _made_from(model: ModelVersion) -> Dependents:
    order: list[ModelVersion] = []
    waiting, seen = [model], {model.pk}
    while waiting:
        version = waiting.pop(0)
        order.append(version)
        children = ModelVersion.objects.filter(
            Q(base=version)
            | Q(merge__parts__model=version)
            | Q(merge__base=version)
            | Q(run__reward_models__model=version)
        ).distinct()
        for child in children.select_related("run", "merge", "project"):
            if child.pk not in seen:
                seen.add(child.pk)
                waiting.append(child)
    found = Dependents(models=_children_first(order))
    found.merges = list(
        Merge.objects.filter(
            Q(parts__model__in=seen) | Q(base__in=seen) | Q(model_version__in=seen)
        ).distinct()
    )
    found.exports = list(ModelExport.objects.filter(model__in=seen))
    found.checkpoints = list(Checkpoint.objects.filter(run__model_version__in=seen))
    found.judges = judges_of(model.project, order)
    names = [version.name for version in order]
    project = model.project
    found.active = [
        *project.runs.active()
        .filter(Q(base_model__in=names) | Q(reward_models__model__in=seen))
        .distinct(),
        *project.runs.active().filter(judge__in=found.judges),
        *project.studies.active().filter(run__base_model__in=names),
        *(merge for merge in found.merges if merge.is_active),
        *(export for export in found.exports if export.is_active),
        *ModelReport.objects.active().filter(model__in=seen),
        *project.sides_by_side.active().filter(Q(model_a__in=names) | Q(model_b__in=names)),
        # The rows of judges belong to an app that is not known here; the rater knows its own.
        *(run for rater in found.judges for run in rater.judge_version.runs.unfinished()),
    ]
    return found


def judges_of(project: Project, models: Sequence[ModelVersion]) -> list[Rater]:
    """Judges that ask one of these models here: of the project by its name; of any project by the
    folder of its files, as administrators may name it."""
    judges = Rater.objects.filter(
        kind=Rater.Kind.JUDGE, judge_version__isnull=False, judge_version__server=None
    ).annotate(asks=F("judge_version__model"))
    found = list(judges.filter(project=project, asks__in=[version.name for version in models]))
    own = [path for path in (own_path(version.path) for version in models) if path]
    by_path = Q(asks__startswith="/") | Q(asks__startswith=".") | Q(asks__startswith="~")
    for rater in judges.filter(by_path | Q(asks__contains="..")):
        folder = Path(rater.asks).expanduser()
        # A hub id may hold two dots in a row.
        if names_a_path(rater.asks) and any(folder.resolve().is_relative_to(p) for p in own):
            found.append(rater)
    return found


def _children_first(models: list[ModelVersion]) -> list[ModelVersion]:
    """In an order in which each may be deleted: nothing that stays refers to it."""
    keys = {version.pk for version in models}
    parents: dict[int, set[int]] = {}
    for version in models:
        of_merge = (
            {part.model_id for part in version.merge.parts.all()} | {version.merge.base_id}
            if version.merge
            else set()
        )
        scored = version.run.reward_models.all() if version.run else []
        of_run = {used.model_id for used in scored}
        parents[version.pk] = ({version.base_id} | of_merge | of_run) & keys
    order: list[ModelVersion] = []
    left = {version.pk: version for version in models}
    while left:
        needed = {parent for pk in left for parent in parents[pk]}
        free = [pk for pk in left if pk not in needed]
        order += [left.pop(pk) for pk in free]
    return order


def delete_model(
    model: ModelVersion, by: Any, *, agreed: set[int], agreed_judges: set[int] = frozenset()
) -> Dependents:
    """Delete a model and all that depends on it; its files go once the rows are gone for good.

    Files of bases are never touched: they were brought in, and other projects may use them. The
    runs that made the models stay, without their checkpoints.

    Args: agreed, agreed_judges: keys of the models, and of the project's judges, that whoever
        confirmed has seen on the list.
    Raises: StillInUse, with nothing deleted.
    """
    with transaction.atomic():
        # One at a time in a project: a merge that starts now would find its model gone.
        Project.objects.select_for_update(no_key=True).get(pk=model.project_id)
        found = what_depends(model)
        _check_agreed(model.project, found, agreed, agreed_judges)
        _delete(found)
        note_change(
            model.project, by, gettext_noop("delete model"), model.name, after=_in_short(found)
        )
    return found


def delete_run(
    run: Run, by: Any, *, agreed: set[int], agreed_judges: set[int] = frozenset()
) -> Dependents:
    """Delete a run with its steps, log, checkpoints and studies, and its model as `delete_model`
    does. Labels and datasets stay.

    Raises: StillInUse, with nothing deleted.
    """
    with transaction.atomic():
        Project.objects.select_for_update(no_key=True).get(pk=run.project_id)
        found = what_depends_on_run(Run.objects.select_for_update().get(pk=run.pk))
        _check_agreed(run.project, found, agreed, agreed_judges)
        name = str(run)
        _delete(found)
        note_change(run.project, by, gettext_noop("delete run"), name, after=_in_short(found))
    return found


def _check_agreed(
    project: Project, found: Dependents, agreed: set[int], agreed_judges: set[int]
) -> None:
    if found.active:
        raise StillInUse(
            f"{found.active[0]} still reads what would go; cancel it or wait for its end"
        )
    own_judges = {rater.pk for rater in found.judges if rater.project_id == project.pk}
    if {version.pk for version in found.models} - agreed or own_judges - agreed_judges:
        raise StillInUse("more depends on it than the list showed: look at it again")


def _delete(found: Dependents) -> None:
    paths = _paths(found)
    made = {version.merge_id for version in found.models}
    try:
        for export in found.exports:
            export.delete()
        for merge in found.merges:
            if merge.pk not in made:  # it never came to an end, and left no model
                merge.delete()
        for version in found.models:
            merge = version.merge
            version.delete()
            if merge:
                merge.delete()
        Checkpoint.objects.filter(pk__in=[point.pk for point in found.checkpoints]).delete()
        for run in found.runs:
            run.delete()
    except (ProtectedError, RestrictedError) as error:
        raise StillInUse(f"something else refers to it: {error.args[0]}") from error
    elsewhere = _shared(found)
    transaction.on_commit(lambda: remove(paths))
    for relative in elsewhere:
        transaction.on_commit(partial(shared.forget, relative))


def _in_short(found: Dependents) -> dict[str, Any]:
    """What went, for the list of changes."""
    short = {
        "models": [version.name for version in found.models],
        "judges": [rater.name for rater in found.judges],
        "checkpoints": len(found.checkpoints),
        "bytes": found.n_bytes,
    }
    return {name: value for name, value in short.items() if value or name in ("models", "bytes")}


def _paths(found: Dependents) -> list[Path]:
    """Files and folders that belong to these rows alone, none inside another."""
    relative = [run.folder for run in found.runs]
    relative += [version.path for version in found.models if version.run_id]
    relative += [f"{run.folder}/checkpoints" for run in _makers(found) if run.folder]
    relative += [point.path for point in found.checkpoints]
    relative += [f"exports/{export.pk}" for export in found.exports]
    relative += [f"merges/{merge.pk}" for merge in found.merges]
    relative += [f"studies/{study.pk}" for study in found.studies]
    paths: list[Path] = []
    for path in map(own_path, relative):
        if path is not None and not any(path.is_relative_to(other) for other in paths):
            paths.append(path)
    return paths


def _shared(found: Dependents) -> list[str]:
    """What of it other machines may have left in the shared storage."""
    folders = [run.folder for run in [*found.runs, *_makers(found)] if run.folder]
    folders += [f"exports/{export.pk}" for export in found.exports]
    return sorted({*folders, *(f"merges/{merge.pk}" for merge in found.merges)})


def _makers(found: Dependents) -> list[Run]:
    """The runs that made the models."""
    return [version.run for version in found.models if version.run]


def own_path(relative: str) -> Path | None:
    """The place of a row's own files; None for anything that is not under one of our folders, or
    that a link leads to."""
    if not relative or Path(relative).is_absolute() or Path(relative).parts[0] not in OURS:
        return None
    root = storage_path("")
    try:
        resolved = storage_path(relative)
    except ValueError:  # it leads out of the storage folder
        return None
    plain = root / relative
    is_plain = resolved == plain and len(Path(relative).parts) > 1
    return plain if is_plain and plain.exists() else None


def remove(paths: Sequence[Path]) -> None:
    """Delete files and folders; what cannot be deleted is told in the log."""
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s stays on the disk: %s", path, error)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
