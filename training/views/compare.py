"""The page of chosen runs beside each other: their settings, results and curves."""

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext_lazy as _lazy
from django.views.decorators.http import require_safe

from labeling.access import project_for
from training.comparing import MOST_COMPARED, best_of, differing_settings, overlay, rows_of
from training.models import Run

TITLES = {
    "loss": _lazy("Loss"),
    "accuracy": _lazy("Accuracy"),
    "margin": _lazy("Reward margin"),
    "score": _lazy("Score"),
    "holdout": _lazy("Hold-out score"),
    "kl": _lazy("KL to the start, nats a response"),
    "length": _lazy("Tokens a response"),
}
RUNS_OFFERED = 100
LONGEST_KEY = 18
FIGURES = {
    "accuracy": _lazy("accuracy"),
    "auc": _lazy("good above bad (AUC)"),
    "correlation": _lazy("correlation with ratings"),
    "error": _lazy("error of ratings"),
    "usual_error": _lazy("error of always saying the mean"),
    "longer_wins": _lazy("baseline “the longer wins”"),
    "loss": _lazy("loss, nats a token"),
    "base_loss": _lazy("loss of the base"),
    "gain": _lazy("gain of the score, in deviations of the start"),
    "holdout_gain": _lazy("gain by the hold-out"),
    "win": _lazy("responses better than the start’s"),
}
"""Results that have an interval, as far as a run has them."""
PLAIN = {
    "log_loss": _lazy("log-loss (chance 0.693)"),
    "margin": _lazy("mean reward margin"),
    "length_correlation": _lazy("correlation with length"),
    "chosen_logp_change": _lazy("log-probability of the chosen, change in nats"),
    "seconds": _lazy("seconds of work"),
}


@login_required
@require_safe
def compare(request: HttpRequest, slug: str) -> HttpResponse:
    """The runs that the address names (`run`, several times), at most MOST_COMPARED."""
    project = project_for(request.user, slug, to="view")
    # A longer number is no key of a row, and more than SQLite can be asked for.
    asked = [pk for pk in request.GET.getlist("run") if pk.isdecimal() and len(pk) <= LONGEST_KEY]
    chosen = list(
        project.runs.filter(pk__in=asked[: 2 * MOST_COMPARED])
        .select_related("dataset", "model_version")
        .order_by("pk")
    )
    runs = chosen[:MOST_COMPARED]
    context = {
        "project": project,
        "active": "training",
        "n_left_out": len(chosen) - len(runs),
        "most": MOST_COMPARED,
        **beside_each_other(runs),
    }
    context["offered"] = [
        (run, any(run.pk == other.pk for other in runs))
        for run in project.runs.order_by("-pk")[:RUNS_OFFERED]
    ]
    return render(request, "training/compare.html", context)


def beside_each_other(runs: Sequence[Run]) -> dict[str, Any]:
    """What the tables and curves of some runs need."""
    curves = overlay(runs)
    ended = [run for run in runs if run.metrics]
    measured_on = {rows_of(run) for run in ended}
    return {
        "runs": runs,
        "differing": differing_settings(runs) if len(runs) > 1 else [],
        "results": [
            (words, [run.metrics.get(name) for run in runs])
            for name, words in FIGURES.items()
            if any(isinstance(run.metrics.get(name), dict) for run in runs)
        ],
        "plain": [
            (words, [run.metrics.get(name) for run in runs])
            for name, words in PLAIN.items()
            if any(run.metrics.get(name) is not None for run in runs)
        ],
        "peaks": [run.measured_peak for run in runs]
        if any(run.measured_peak for run in runs)
        else [],
        "best": best_of(runs),
        "other_rows": len(measured_on) > 1,
        "overlay": curves,
        "charts": [(name, TITLES[name]) for name in curves],
    }
