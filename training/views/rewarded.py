"""What the page of a PPO run shows beside that of other runs: reward against KL, shares of time,
the reward models, what stopped it."""

import math
from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from training.ml.ppo_config import ALARMS
from training.models import Run

WORK = {
    "generation": _lazy("writing responses"),
    "scoring": _lazy("scoring and reading them"),
    "update": _lazy("learning from them"),
}
LINES = {
    "score": _lazy("score that is learned from"),
    "holdout": _lazy("hold-out score"),
    "careful": _lazy("careful score"),
}
WIDTH = 600
"""Of the bar of times, in its own units."""
MOST_MARKS = 6
CURVES = (
    "score", "holdout", "careful", "unknown", "kl", "length", "entropy", "clip_fraction",
    "finished", "win", "repeated", "spread", "lists", "bold", "kl_coefficient",
    "explained_variance", "grad_norm", "server_gap", "learning_rate",
    "tokens_per_second",
)  # fmt: skip
"""Names of the curves that the page draws, where the run has reported them."""


def ppo_context(run: Run) -> dict[str, Any]:
    used = list(run.reward_models.select_related("model"))
    return {
        "is_ppo": True,
        "frontier": frontier(run),
        "shares": shares_of_time(run),
        "rewarding": [one.model for one in used if not one.holds_out],
        "holding_out": [one.model for one in used if one.holds_out],
        "rating_judge": run.recipe.get("judge", ""),
        "alarm": (alarm := run.metrics.get("alarm")),
        "alarm_kinds": [_(ALARMS[kind]) for kind in alarm["kinds"]] if alarm else [],
    }


def frontier(run: Run) -> dict[str, Any] | None:
    """Scores on the test prompts against √KL, for the tag `line_plot`; None before two points.

    Over-optimisation is a score that goes on rising to the right while the hold-out turns down: Gao
    et al. 2023, arXiv:2210.10760, figure 1.
    """
    measured = [
        (step, values)
        for step, values in run.steps.filter(split="test")
        .order_by("step")
        .values_list("step", "values")
        if "kl" in values and "score" in values
    ]
    if len(measured) < 2:
        return None
    series = []
    for name, words in LINES.items():
        points = [_point(step, values, name) for step, values in measured if name in values]
        if points:
            series.append({"name": str(words), "points": points})
    furthest = max(_distance(values) for _step, values in measured)
    each = max(0.1, round(furthest / MOST_MARKS, 1))
    marks = [each * i for i in range(math.floor(furthest / each) + 1)]
    # The start stands at 0 however its few tokens fell.
    return {"series": series, "marks": [(x, f"{x:.1f}") for x in marks]}


def _distance(values: Mapping[str, float]) -> float:
    return math.sqrt(max(0.0, values["kl"]))


def _point(step: int, values: Mapping[str, float], name: str) -> dict[str, Any]:
    return {
        "x": _distance(values),
        "y": values[name],
        "low": values.get(f"{name}_low"),
        "high": values.get(f"{name}_high"),
        "words": _("step %(step)s: %(score)s at a KL of %(kl)s")
        % {"step": step, "score": f"{values[name]:.3f}", "kl": f"{values['kl']:.2f}"},
    }


def shares_of_time(run: Run) -> list[dict[str, Any]]:
    """For each kind of work its words, its seconds, its share in percent, and where its part of the
    bar begins and how wide it is. Empty before the first step."""
    seconds = dict.fromkeys(WORK, 0.0)
    for cost in run.steps.filter(split="train").values_list("cost", flat=True):
        for name in WORK:
            seconds[name] += cost.get(name, 0.0)
    total = sum(seconds.values())
    if not total:
        return []
    found, at = [], 0.0
    for place, (name, words) in enumerate(WORK.items(), 1):
        wide = WIDTH * seconds[name] / total
        found.append(
            {
                "words": words,
                "seconds": seconds[name],
                "percent": 100 * seconds[name] / total,
                "at": f"{at:.1f}",
                "wide": f"{wide:.1f}",
                "place": place,
            }
        )
        at += wide
    return found
