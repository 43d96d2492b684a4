"""What a job needs of other machines' files, and what it leaves for them (labeling/shared.py)."""

from collections.abc import Iterator
from pathlib import Path

from labeling import shared
from labeling.jobs import Job
from labeling.models import Project
from labeling.storage import names_a_path, storage_path
from training.ml.config import ON_TEXTS
from training.models import Merge, ModelExport, ModelReport, ModelVersion, Run, SideBySide, Study


def bring(job: Job) -> None:
    """Have on this machine what a job begins with. A run's own folder, with the checkpoints of
    whichever machine had it last, is made what it is for all; the rest never changes."""
    if not shared.is_shared():
        return
    for relative in sorted(set(_needs(job))):
        shared.fetch_missing(relative)
    if isinstance(job, Run):
        shared.fetch(job.folder)


def leave(relative: str) -> None:
    """Bring what a job made to all machines: before its row says that it is there."""
    shared.put(relative)


def _needs(job: Job) -> Iterator[str]:
    match job:
        case Run():
            yield from _needs_of_run(job)
        case Study():
            yield from _needs_of_run(job.run)
        case Merge():
            models = [part.model for part in job.parts.select_related("model")]
            for model in [*models, *([job.base] if job.base else [])]:
                yield from _files_of(model)
        case ModelExport() | ModelReport():
            yield from _files_of(job.model)
            if job.model.run:
                yield from _needs_of_run(job.model.run)
        case SideBySide():
            for name in (job.model_a, job.model_b):
                yield from _named(job.project, name)


def _needs_of_run(run: Run) -> Iterator[str]:
    if run.dataset:
        yield run.dataset.path
    if run.kind in ON_TEXTS:
        yield f"texts/{run.recipe['text']}"
    yield from _named(run.project, run.base_model)
    for link in run.reward_models.select_related("model"):
        yield from _files_of(link.model)
    if judge := run.recipe.get("judge_model"):
        yield from _named(run.project, judge)


def _named(project: Project, name: str) -> Iterator[str]:
    """Files of a model of the project, or of one that lies under models/."""
    version = project.models.filter(name=name).first()
    if version:
        yield from _files_of(version)
    elif not names_a_path(name):
        yield f"models/{name}"


def _files_of(model: ModelVersion | None) -> Iterator[str]:
    """A model's folder, and those of what it stands on."""
    root = storage_path("")
    while model is not None:
        path = Path(model.path)
        if path.is_relative_to(root):
            yield str(path.relative_to(root))
        elif not names_a_path(model.path):
            yield model.path
        model = model.base
