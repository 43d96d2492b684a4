"""What a job needs of other machines' files, and what it leaves for them (labeling/shared.py)."""

from collections.abc import Iterator

from labeling import shared
from labeling.jobs import Job
from training.ml.config import ON_TEXTS
from training.models import (
    Arena,
    Merge,
    ModelExport,
    ModelReport,
    Round,
    Run,
    SideBySide,
    Study,
)


def bring(job: Job) -> None:
    """Have on this machine what a job begins with. Its own folder, with the checkpoints or answers
    of whichever machine had it last, is made what it is for all; the rest never changes."""
    if not shared.is_shared():
        return
    for relative in sorted(set(_needs(job))):
        shared.fetch_missing(relative)
    match job:
        case Run():
            shared.fetch(job.folder)
        case Round() | Arena():
            shared.fetch(answers_folder(job))


def answers_folder(job: Round | Arena) -> str:
    """Where a round or an arena keeps what models have answered."""
    return f"{'rounds' if isinstance(job, Round) else 'arenas'}/{job.pk}"


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
                yield from shared.places_of_version(model)
        case ModelExport() | ModelReport():
            yield from shared.places_of_version(job.model)
            if job.model.run:
                yield from _needs_of_run(job.model.run)
        case SideBySide():
            for name in (job.model_a, job.model_b):
                yield from shared.places_of(job.project, name)
        case Round() | Arena():
            # Those who answer, and a round's reward model, which reads the answers.
            for name in filter(None, [*job.options["models"], job.options.get("scorer")]):
                yield from shared.places_of(job.project, name)


def _needs_of_run(run: Run) -> Iterator[str]:
    if run.dataset:
        yield run.dataset.path
    if run.kind in ON_TEXTS:
        yield f"texts/{run.recipe['text']}"
    yield from shared.places_of(run.project, run.base_model)
    for link in run.reward_models.select_related("model"):
        yield from shared.places_of_version(link.model)
    if judge := run.recipe.get("judge_model"):
        yield from shared.places_of(run.project, judge)
