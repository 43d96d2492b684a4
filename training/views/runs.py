"""Pages of runs and models: the launch form, a run with its curves, a model's lineage."""

from dataclasses import fields
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from training.datasets import COUNTED
from training.forms import LaunchForm
from training.ml.config import RECIPES
from training.ml.methods import other_settings
from training.models import Dataset, Run
from training.runs import cancel_run, resume_run, seconds_left, start_run
from training.views.fits import fit_context, with_suggestion

POINTS_SHOWN = 400
"""Points of one curve at most: more than a screen has room for."""
LINES_SHOWN = 200
MODELS_SHOWN = RUNS_SHOWN = DATASETS_SHOWN = 50
NEW = {
    "reward": _lazy("New reward model"),
    "dpo": _lazy("New DPO policy"),
    "sft": _lazy("New SFT policy"),
    "pretrain": _lazy("New continued pre-training"),
}
ABOUT = {
    "reward": _lazy(
        "Learns to give a response a number, so that the preferred one gets more (TRL "
        "RewardTrainer)."
    ),
    "dpo": _lazy(
        "Moves a policy towards preferred responses, held near the model it starts from; the "
        "reference is the same model with its adapter off (TRL DPOTrainer)."
    ),
    "sft": _lazy(
        "Imitates preferred responses, or better answers that raters wrote, word by word (TRL "
        "SFTTrainer). The usual start of a DPO policy."
    ),
    "pretrain": _lazy(
        "Reads raw text of a domain and learns every token of it, before supervised fine-tuning; "
        "needs no labels."
    ),
}
CURVES = {
    "loss": _lazy("Loss"),
    "accuracy": _lazy("Accuracy"),
    "margin": _lazy("Reward margin"),
}
"""What a run's points may hold; runs that learn tokens and not pairs have a loss alone."""


@login_required
@require_safe
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """Runs, models and datasets of the project; the runs refresh themselves while one is active."""
    project = project_for(request.user, slug, to="view")
    runs = list(project.runs.select_related("dataset", "model_version")[:RUNS_SHOWN])
    context = {
        "project": project,
        "active": "training",
        "runs": runs,
        "any_active": any(run.is_active for run in runs),
        "recipes": NEW.items(),
    }
    if request.htmx:
        return render(request, "training/overview.html#runs", context)
    context["models"] = project.models.select_related("run", "base")[:MODELS_SHOWN]
    context["datasets"] = project.datasets.order_by("-pk")[:DATASETS_SHOWN]
    return render(request, "training/overview.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def launch(request: HttpRequest, slug: str, kind: str) -> HttpResponse:
    """The launch form of a recipe. `check` shows what the dataset would hold and starts nothing."""
    project = project_for(request.user, slug, to="lead")
    if kind not in RECIPES:
        raise Http404("No such recipe.")
    data = with_suggestion(request.POST, kind)
    form = LaunchForm(
        data or None,
        project=project,
        kind=kind,
        user=request.user,
        initial={"dataset": request.GET.get("dataset", "")},
    )
    context = {"project": project, "active": "training", "form": form, "kind": Run.Kind(kind)}
    context |= {"title": NEW[kind], "about": ABOUT[kind]}
    if request.method == "POST" and request.htmx.trigger == "id_method":
        return render(request, "training/launch.html#method", context)
    if request.method == "POST" and request.htmx:
        return render(request, "training/launch.html#preview", context | _preview(form))
    if request.method == "POST" and "check" not in data and form.is_valid():
        try:
            run = start_run(
                project,
                kind=kind,
                base_model=form.cleaned_data["base_model"],
                recipe_settings=form.cleaned_data["recipe_settings"],
                dataset=form.cleaned_data.get("dataset"),
                labels=form.cleaned_data.get("labels", "mixed"),
                test_share=form.cleaned_data["test_share"],
                created_by=request.user,
            )
        except ValueError as error:  # the labels or the folder changed since the form was checked
            form.add_error(None, str(error))
        else:
            return redirect("training:run", slug, run.pk)
    if request.method == "POST":
        context |= fit_context(data, request.user, project, kind)
    return render(request, "training/launch.html", context | _preview(form))


def _preview(form: LaunchForm) -> dict[str, Any]:
    found = form.preview()
    rows = [(words, found["counts"].get(name, 0)) for name, words in COUNTED.items()]
    return {"preview": found, "preview_rows": [(words, n) for words, n in rows if n]}


@login_required
@require_safe
def run(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A run: progress, curves, log, results. htmx gets the live part alone, until the run ends."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(
        project.runs.select_related("dataset", "model_version", "created_by"), pk=pk
    )
    context = {
        "project": project,
        "active": "training",
        "run": found,
        "model": getattr(found, "model_version", None),
        "curves": curves(found),
        "log": list(found.events.order_by("-pk")[:LINES_SHOWN]),
        "seconds_left": seconds_left(found),
        "checkpoint": found.checkpoints.last(),
        "too_long": _too_long(found),
        "trained_percent": _trained_percent(found),
        "useful_percent": 100 * (found.metrics.get("useful_tokens") or 0),
    }
    if found.dataset:
        context["many_too_long"] = 10 * (_too_long(found) or 0) > found.dataset.counts["pairs"]
    drawn = context["curves"]["curves"]
    context["charts"] = [(name, CURVES[name]) for name in drawn]
    context["test_points"] = _test_points(drawn)
    if request.htmx:
        return render(request, "training/run.html#live", context)
    context["counts"] = counts_in_words(found.dataset)
    context["settings"] = _settings(found)
    return render(request, "training/run.html", context)


def curves(run: Run) -> dict[str, Any]:
    """Points for the charts: {"loss": {"train": [[step, value], …], "test": […]}, …}, with
    accuracy and margin where the run learns pairs.

    Where there are more training steps than a screen has room for, each point is the mean of
    several; `steps_per_point` says of how many.
    """
    learns_pairs = run.kind in (Run.Kind.REWARD, Run.Kind.DPO)
    names = list(CURVES) if learns_pairs else ["loss"]
    found: dict[str, Any] = {name: {"train": [], "test": []} for name in names}
    points: dict[str, list[tuple[int, dict[str, float]]]] = {
        "train": [], "test": [], "validation": []
    }  # fmt: skip
    for step, split, values in run.steps.order_by("step").values_list("step", "split", "values"):
        points[split].append((step, values))
    each = max(1, -(-len(points["train"]) // POINTS_SHOWN))
    for start in range(0, len(points["train"]), each):
        group = points["train"][start : start + each]
        for name in names:
            mean = sum(values[name] for _step, values in group) / len(group)
            found[name]["train"].append([group[-1][0], mean])
    # With validation pairs the test pairs are measured once, at the end.
    for step, values in points["validation"] or points["test"]:
        for name in names:
            found[name]["test"].append([step, values[name]])
    held_out = "validation" if points["validation"] else "test"
    return {"curves": found, "steps_per_point": each, "held_out": held_out}


def _test_points(found: dict[str, Any]) -> list[tuple[int, list[float]]]:
    """Rows of (step, a value of each curve), newest first, for readers without the pictures."""
    rows = zip(*(curve["test"] for curve in found.values()), strict=True)
    return [(points[0][0], [value for _step, value in points]) for points in reversed(list(rows))]


def _too_long(run: Run) -> int | None:
    return run.metrics["too_long_train"] + run.metrics["too_long_test"] if run.metrics else None


def _trained_percent(run: Run) -> float | None:
    if not run.metrics.get("parameters"):
        return None
    return 100 * run.metrics["trained_parameters"] / run.metrics["parameters"]


def counts_in_words(dataset: Dataset | None) -> list[tuple[str, int]]:
    """What became of the comparisons, as far as there is something to count."""
    if dataset is None:
        return []
    return [
        (words, dataset.counts[name]) for name, words in COUNTED.items() if dataset.counts.get(name)
    ]


def _settings(run: Run) -> list[tuple[str, Any, str]]:
    """(name, value, help) of every setting of the run's recipe that its method reads."""
    unused = other_settings(run.recipe.get("method", "lora"))
    return [
        (setting.name, run.recipe.get(setting.name), _(setting.metadata["help"]))
        for setting in fields(RECIPES[run.kind])
        if setting.metadata and setting.name not in unused
    ]


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Ask a run to stop; a running one stops at its next report."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.runs, pk=pk)
    cancel_run(found, by=request.user.get_username())
    return redirect("training:run", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped run again."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.runs, pk=pk)
    if not resume_run(found, by=request.user.get_username()):
        messages.warning(
            request,
            _("%(run)s is %(status)s: there is nothing to resume.")
            % {"run": found, "status": found.get_status_display().lower()},
        )
    return redirect("training:run", slug, pk)
