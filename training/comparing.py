"""Runs beside each other: the settings that differ, what each found on held-out rows, the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.models import Run

MOST_COMPARED = 12
POINTS = 200
"""Points of one curve at most, where several curves share a picture."""
CURVES = ("loss", "accuracy", "margin", "score", "holdout", "kl", "length")
HIGHER_IS_BETTER = {
    "accuracy": True,
    "correlation": True,
    "holdout_gain": True,
    "gain": True,
    "loss": False,
}
JUDGED_BY = ("reward_models", "judge", "judge_model", "holdout_reward_model", "combine")
JUDGED_BY += ("reward_scaling",)
"""Settings of PPO that decide what its scores mean."""


@dataclass(frozen=True)
class Best:
    """The run with the best held-out figure, and how sure that is."""

    run: Run
    measure: str
    figure: dict[str, Any]
    n_compared: int
    n_overlapping: int
    """Other runs whose interval reaches into its own."""


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """(name, value in each run) of what is not the same in all; "–" where a run has no such."""
    every = {
        "recipe": [run.get_kind_display() for run in runs],
        "base_model": [run.base_model for run in runs],
        "dataset": [run.dataset.sha256[:12] if run.dataset else "–" for run in runs],
    }
    names = dict.fromkeys(name for run in runs for name in run.recipe if name != "base_model")
    for name in names:
        every[name] = [run.recipe.get(name, "–") for run in runs]
    every["code"] = [run.code_version for run in runs]
    return [(name, values) for name, values in every.items() if len({*map(str, values)}) > 1]


def held_out(run: Run) -> tuple[str, dict[str, Any]] | None:
    """(measure, figure) by which runs are ordered: accuracy on pairs, correlation with ratings,
    loss on tokens, of PPO the gain by its hold-out, else of the score; None before the end, or
    where nothing was held out."""
    for measure in HIGHER_IS_BETTER:
        figure = run.metrics.get(measure)
        if isinstance(figure, dict) and figure.get("value") is not None:
            return measure, figure
    return None


def best_of(runs: Sequence[Run]) -> Best | None:
    """The best run of those that were measured by the same figure on the same rows; None where
    fewer than two of them were."""
    found = [(run, *measured) for run in runs if (measured := held_out(run)) is not None]
    same = {
        (measure, *rows_of(run), *(run.recipe.get(name) for name in JUDGED_BY))
        for run, measure, _figure in found
    }
    if len(found) < 2 or len(same) > 1:
        return None
    measure = found[0][1]
    sign = 1 if HIGHER_IS_BETTER[measure] else -1
    run, _measure, figure = max(found, key=lambda row: sign * row[2]["value"])
    others = [other for owner, _measure, other in found if owner is not run]
    return Best(run, measure, figure, len(found), sum(_overlap(figure, other) for other in others))


def rows_of(run: Run) -> tuple[Any, ...]:
    """What tells on which held-out rows a run was measured: another max_length, or another
    tokenizer, leaves out other rows, or counts other tokens."""
    return run.dataset_id, run.text_sha256, run.metrics.get("n"), run.metrics.get("test_tokens")


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two intervals meet; those that nobody could tell may."""
    if None in (one.get("low"), one.get("high"), other.get("low"), other.get("high")):
        return True
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])


def overlay(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """{curve: [{"name", "train", "test"} of each run that has it]}, points as [step, value]."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CURVES}
    for run in runs:
        points: dict[str, dict[str, list[list[float]]]] = {
            name: {"train": [], "test": [], "validation": []} for name in CURVES
        }
        steps = run.steps.order_by("step").values_list("step", "split", "values")
        for step, split, values in steps:
            for name in CURVES:
                if name in values:
                    points[name][split].append([step, values[name]])
        for name, sides in points.items():
            # With validation pairs the test pairs are measured once, at the end.
            held_out_points = sides["validation"] or sides["test"]
            if sides["train"] or held_out_points:
                lines = {"train": thin(sides["train"]), "test": thin(held_out_points)}
                found[name].append({"name": f"{run.kind} {run.pk}", **lines})
    return {name: lines for name, lines in found.items() if lines}


def thin(line: list[list[float]]) -> list[list[float]]:
    """At most POINTS of a curve, each the mean of its neighbours at the last one's step."""
    each = max(1, -(-len(line) // POINTS))
    groups = (line[start : start + each] for start in range(0, len(line), each))
    return [[group[-1][0], sum(value for _s, value in group) / len(group)] for group in groups]
