"""The registry of models: tags and notes, what depends on a model, and its end."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.jobs import Job
from labeling.models import Project
from labeling.storage import storage_path
from training.models import Merge, ModelExport, ModelReport, ModelVersion

logger = logging.getLogger(__name__)

OURS = ("runs", "merges", "exports")
"""Folders under PREFLOOP_STORAGE whose files belong to one row. Bases lie elsewhere, and other
projects may use them."""
MOST_TAGS = 20


class StillInUse(ValueError):
    """Jobs read what was to be deleted, or more depends on it than was agreed to."""


@dataclass
class Dependents:
    """What would go with a model; reports on it go as well."""

    models: list[ModelVersion] = field(default_factory=list)  # children before their parents
    merges: list[Merge] = field(default_factory=list)
    exports: list[ModelExport] = field(default_factory=list)
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
    """The model with everything that was made from it: models, merges, exported files."""
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
    names = [version.name for version in order]
    project = model.project
    found.active = [
        *project.runs.active()
        .filter(Q(base_model__in=names) | Q(reward_models__model__in=seen))
        .distinct(),
        *(merge for merge in found.merges if merge.is_active),
        *(export for export in found.exports if export.is_active),
        *ModelReport.objects.active().filter(model__in=seen),
        *project.sides_by_side.active().filter(Q(model_a__in=names) | Q(model_b__in=names)),
    ]
    found.n_bytes = sum(size_on_disk(path) for path in _paths(found))
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


def delete_model(model: ModelVersion, by: Any, *, agreed: set[int]) -> Dependents:
    """Delete a model and all that depends on it; its files go once the rows are gone for good.

    Files of bases are never touched: they were brought in, and other projects may use them.

    Args: agreed: keys of the models that whoever confirmed has seen on the list.
    Raises: StillInUse, with nothing deleted.
    """
    with transaction.atomic():
        # One at a time in a project: a merge that starts now would find its model gone.
        Project.objects.select_for_update(no_key=True).get(pk=model.project_id)
        found = what_depends(model)
        if found.active:
            raise StillInUse(
                f"{found.active[0]} still reads one of these models; cancel it or wait for its end"
            )
        if {version.pk for version in found.models} - agreed:
            raise StillInUse("more depends on it than the list showed: look at it again")
        paths = _paths(found)
        for export in found.exports:
            export.delete()
        made = {version.merge_id for version in found.models}
        for merge in found.merges:
            if merge.pk not in made:  # it never came to an end, and left no model
                merge.delete()
        for version in found.models:
            merge = version.merge
            version.delete()
            if merge:
                merge.delete()
        note_change(
            model.project,
            by,
            gettext_noop("delete model"),
            model.name,
            after={"models": [version.name for version in found.models], "bytes": found.n_bytes},
        )
        transaction.on_commit(lambda: remove(paths))
    return found


def _paths(found: Dependents) -> list[Path]:
    """Files and folders that belong to these rows alone."""
    relative = [version.path for version in found.models if version.run_id]
    relative += [f"exports/{export.pk}" for export in found.exports]
    relative += [f"merges/{merge.pk}" for merge in found.merges]
    return [path for path in map(own_path, relative) if path is not None]


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
