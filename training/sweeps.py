"""Runs over a small grid of settings, one after another; the best of them by what was held out."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import Project
from training.ml.config import RECIPES
from training.models import Dataset, Run, Sweep
from training.runs import checked_recipe, labels_of_now, write_run

MOST_RUNS = 12
NOT_SWEPT = {
    "base_model",
    "text",
    "test_share",
    "target_modules",
    "reward_models",
    "holdout_reward_model",
    "judge_model",
    "judge_guidelines",
    "judge",
    "judge_tokens",
    "judge_cost",
    "generation",
}


def can_be_swept(kind: str) -> list[str]:
    """The settings of a recipe that a grid may hold."""
    return [field.name for field in fields(RECIPES[kind]) if field.name not in NOT_SWEPT]


def read_grid(lines: Mapping[str, str]) -> dict[str, list[str]]:
    """{setting: values} from texts with commas, as "1e-4, 2e-4".

    Raises: ValueError naming the setting without a value.
    """
    grid = {}
    for name, text in lines.items():
        values = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not values:
            raise ValueError(f"{name}: give its values, with commas between them")
        grid[name] = values
    return grid


def combinations(kind: str, grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The settings of every run of a grid, the last named setting changing fastest.

    Raises: ValueError for an empty grid, one that is too large, or a setting that none may hold.
    """
    if not grid:
        raise ValueError("a sweep wants a grid: settings with some values each")
    allowed = can_be_swept(kind)
    for name, values in grid.items():
        if name not in allowed:
            raise ValueError(f"{name} cannot be swept over; there are {', '.join(allowed)}")
        if not values:
            raise ValueError(f"{name}: give its values")
    n = 1
    for values in grid.values():
        n *= len(values)
    if not 2 <= n <= MOST_RUNS:
        raise ValueError(f"a sweep has 2 to {MOST_RUNS} runs; this grid makes {n}")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def start_sweep(project: Project, **settings: Any) -> Sweep:
    """create_sweep, and wake a worker for its first run once all are committed."""
    with transaction.atomic():
        sweep = create_sweep(project, **settings)
        sweep.runs.order_by("pk")[0].enqueue()
    return sweep


def create_sweep(
    project: Project,
    *,
    kind: str,
    base_model: str,
    grid: Mapping[str, Sequence[Any]],
    recipe_settings: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
    labels: str = "mixed",
    test_share: float = 0.1,
    report_to: str = "",
    created_by: Any = None,
) -> Sweep:
    """Write a queued run for every combination, all on one dataset.

    Raises: ValueError in plain words, before anything is written: as `combinations`, and what
        `start_run` refuses, for the first combination that is impossible.
    """
    settings = recipe_settings or {}
    recipes = [
        checked_recipe(
            project,
            kind=kind,
            base_model=base_model,
            recipe_settings={**settings, **chosen},
            dataset=dataset,
            test_share=test_share,
        )
        for chosen in combinations(kind, grid)
    ]
    with transaction.atomic():
        sweep = Sweep.objects.create(
            project=project,
            kind=kind,
            grid={name: list(values) for name, values in grid.items()},
            created_by=created_by,
        )
        # One split for all: another seed of a run is not another held-out set.
        frozen = labels_of_now(recipes[0], dataset, labels, test_share)
        runs = [
            write_run(
                project,
                kind,
                base_model,
                recipe,
                dataset,
                labels=frozen,
                report_to=report_to,
                sweep=sweep,
                created_by=created_by,
            )
            for recipe in recipes
        ]
        note_change(
            project,
            created_by,
            gettext_noop("start sweep"),
            sweep,
            after={"base_model": base_model, "runs": len(runs), **sweep.grid},
        )
    return sweep


def may_start(run_id: int) -> bool:
    """Whether no run of the same sweep stands before this one; always, of a run without a sweep."""
    run = Run.objects.filter(pk=run_id).only("sweep_id").first()
    if run is None or run.sweep_id is None:
        return True
    others = Run.objects.filter(sweep=run.sweep_id).exclude(pk=run_id)
    earlier = Q(status=Run.Status.QUEUED, pk__lt=run_id)
    return not others.filter(Q(status=Run.Status.RUNNING) | earlier).exists()


def wake_next(run_id: int) -> None:
    """Send the next queued run of the sweep that this run belongs to. Were the message lost, that
    of every queued run would be sent again after a while."""
    run = Run.objects.filter(pk=run_id).only("sweep_id").first()
    if run is None or run.sweep_id is None:
        return
    waiting = Run.objects.filter(sweep=run.sweep_id, status=Run.Status.QUEUED).order_by("pk")
    if (following := waiting.first()) is not None:
        following.enqueue()


def cancel_sweep(sweep: Sweep, by: Any) -> int:
    """Stop every run that waits or runs; how many they were."""
    with transaction.atomic():
        active = list(sweep.runs.active().order_by("-pk"))
        for run in active:
            run.request_cancel()
            run.events.create(text=f"{by.get_username()} asked to cancel the sweep.")
        if active:
            note_change(
                sweep.project,
                by,
                gettext_noop("cancel sweep"),
                sweep,
                after={"runs": len(active)},
            )
    return len(active)
