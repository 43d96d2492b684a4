"""Pages of runs and models: the launch form, a run with its curves, a model's lineage."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from labeling.storage import storage_path
from training import causes
from training.datasets import words_of
from training.forms.launch import LaunchForm
from training.ml.config import ON_TEXTS, RECIPES, settings_of
from training.ml.methods import other_settings
from training.ml.settings import TRACKERS
from training.models import Dataset, Run
from training.routing import waiting_words
from training.runs import LIMITS, cancel_run, pace, recipe_of, resume_run, seconds_left, start_run
from training.sweeps import start_sweep
from training.views import rewarded
from training.views.fits import fit_context, with_suggestion
from training.watching import last_words_of

POINTS_SHOWN = 400
"""Points of one curve at most: more than a screen has room for."""
LINES_SHOWN = 200
SWEEPS_SHOWN = 5
FREEZING = ("labels", "test_share")
"""Settings of a dataset that the launch form has too."""
MODELS_SHOWN = RUNS_SHOWN = DATASETS_SHOWN = 50
NEW = {
    "reward": _lazy("New reward model"),
    "dpo": _lazy("New DPO policy"),
    "ppo": _lazy("New PPO policy"),
    "sft": _lazy("New SFT policy"),
    "pretrain": _lazy("New continued pre-training"),
    "quiet_star": _lazy("New Quiet-STaR policy"),
}
ABOUT = {
    "reward": _lazy("Learns to give a response a number, so that the preferred one gets more."),
    "dpo": _lazy(
        "Moves a policy towards preferred responses, held near the model it starts from; the "
        "reference is the same model with its adapter off."
    ),
    "ppo": _lazy(
        "Lets a policy answer prompts, score its own answers by a reward model, and learn to score "
        "higher while it stays near its start: PPO, RLOO, GRPO or online DPO, on one base for all "
        "roles."
    ),
    "sft": _lazy(
        "Imitates preferred responses, or better answers that raters wrote, word by word (TRL "
        "SFTTrainer). The usual start of a DPO policy."
    ),
    "pretrain": _lazy(
        "Reads raw text of a domain and learns every token of it, before supervised fine-tuning; "
        "needs no labels."
    ),
    "quiet_star": _lazy(
        "Thinks after every token of raw text, and learns which thoughts make the text behind them "
        "likelier (Zelikman et al. 2024). For small models and short texts: a step costs a text "
        "for every token of a thought."
    ),
}
EXPERIMENTAL = ("quiet_star",)
CURVES = {
    "loss": _lazy("Loss"),
    "accuracy": _lazy("Accuracy"),
    "margin": _lazy("Reward margin"),
    "error": _lazy("Mean error of the ratings"),
    "score": _lazy("Score"),
    "holdout": _lazy("Hold-out score"),
    "careful": _lazy("Careful score"),
    "unknown": _lazy("Share in language that the start would hardly write"),
    "kl": _lazy("KL to the start, nats a response"),
    "length": _lazy("Tokens a response"),
    "entropy": _lazy("Entropy, nats a token"),
    "clip_fraction": _lazy("Share of tokens clipped"),
    "finished": _lazy("Share that comes to an end"),
    "win": _lazy("Share better than the start’s"),
    "repeated": _lazy("Share of repeated 4-grams"),
    "spread": _lazy("Spread of the reward models"),
    "lists": _lazy("Share with lists"),
    "bold": _lazy("Share with bold words"),
    "kl_coefficient": _lazy("Price of KL"),
    "explained_variance": _lazy("What the critic explains"),
    "server_gap": _lazy("Server’s log-probabilities against ours, nats a token"),
    "thought_loss": _lazy("Loss with thoughts"),
    "thought_benefit": _lazy("Benefit of thoughts, nats a token"),
    "mixing_weight": _lazy("Mixing weight of the thought"),
    "thought_reward": _lazy("Reward of REINFORCE, nats"),
    "learning_rate": _lazy("Learning rate"),
    "grad_norm": _lazy("Gradient norm"),
    "tokens_per_second": _lazy("Tokens a second"),
}
"""What a run's points may hold; runs that learn tokens and not pairs have a loss alone of the first
three. Learning rate, gradient norm and tokens a second are of training steps alone."""
TESTED = {"loss", "accuracy", "margin", "error", "score", "holdout", "kl", "length", "finished"}
TESTED |= {"careful", "unknown", "entropy", "win", "repeated", "spread", "lists", "bold"}
TESTED |= {"thought_loss", "thought_benefit", "mixing_weight"}
"""Curves that test points may stand on."""
HABITS = ("repeated", "lists", "bold")
"""Curves that are worth a place only where they leave 0."""


PAIRWISE = (Run.Kind.REWARD, Run.Kind.DPO)


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
        "sweeps": project.sweeps.annotate(n_runs=Count("runs"))[:SWEEPS_SHOWN],
    }
    if request.htmx:
        return render(request, "training/overview.html#runs", context)
    context["models"] = project.models.select_related("run", "base")[:MODELS_SHOWN]
    context["datasets"] = project.datasets.listed().order_by("-pk")[:DATASETS_SHOWN]
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
        initial=_first_values(request.GET, project, kind),
    )
    context = {"project": project, "active": "training", "form": form, "kind": Run.Kind(kind)}
    context |= {"title": NEW[kind], "about": ABOUT[kind], "experimental": kind in EXPERIMENTAL}
    context["reads_text"] = kind in ON_TEXTS
    if request.method == "POST" and request.htmx.trigger == "id_method":
        return render(request, "training/launch.html#method", context)
    if request.method == "POST" and request.htmx:
        return render(request, "training/launch.html#preview", context | _preview(form))
    if request.method == "POST" and "check" not in data and form.is_valid():
        asked = {
            "kind": kind,
            "base_model": form.cleaned_data["base_model"],
            "recipe_settings": form.cleaned_data["recipe_settings"],
            "dataset": form.cleaned_data.get("dataset"),
            "labels": form.cleaned_data.get("labels", "mixed"),
            "test_share": form.cleaned_data["test_share"],
            "report_to": form.cleaned_data["report_to"],
            "created_by": request.user,
        }
        try:
            if "sweep" in data:
                sweep = start_sweep(project, grid=form.cleaned_data["grid"], **asked)
                return redirect("training:sweep", slug, sweep.pk)
            run = start_run(project, **asked)
        except ValueError as error:  # the folder changed since the form was checked
            form.add_error(None, str(error))
        else:
            return redirect("training:run", slug, run.pk)
    if request.method == "POST":
        context |= fit_context(data, request.user, project, kind)
    return render(request, "training/launch.html", context | _preview(form))


def _first_values(asked: QueryDict, project: Project, kind: str) -> dict[str, Any]:
    """What the form holds before anybody wrote into it: a dataset, or all that an earlier run had,
    with the changes that the address names."""
    values: dict[str, Any] = {"dataset": asked.get("dataset", "")}
    source = asked.get("from", "")
    if source:
        if not source.isdecimal():
            raise Http404("No such run.")
        earlier = get_object_or_404(project.runs.select_related("dataset"), pk=source, kind=kind)
        values = {name: value for name, value in earlier.recipe.items() if name != "base_model"}
        values |= {"base_model": earlier.base_model, "report_to": earlier.report_to}
        values |= {name: earlier.labels[name] for name in FREEZING if name in earlier.labels}
        # Of a run that froze the labels itself, the same rows again.
        values["dataset"] = earlier.dataset.sha256 if earlier.dataset else ""
    known = {setting.name for setting in fields(RECIPES[kind]) if setting.metadata} | {"report_to"}
    for name in known & asked.keys():
        values[name] = asked[name] == "True" if asked[name] in ("True", "False") else asked[name]
    return values


def _preview(form: LaunchForm) -> dict[str, Any]:
    found = form.preview()
    counts = found["counts"]
    rows = [(words, counts.get(name, 0)) for name, words in words_of(counts).items()]
    return {"preview": found, "preview_rows": [(words, n) for words, n in rows if n]}


@login_required
@require_safe
def run(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A run: progress, curves, log, results. htmx gets the live part alone, until the run ends."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(
        project.runs.select_related("dataset", "model_version", "created_by", "sweep"), pk=pk
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
        "pace": pace(found),
        "trained_percent": _trained_percent(found),
        "useful_percent": 100 * (found.metrics.get("useful_tokens") or 0),
    }
    if found.dataset:
        context["many_too_long"] = 10 * (_too_long(found) or 0) > found.dataset.n_rows
    drawn = context["curves"]["curves"]
    context["charts"] = [(name, CURVES[name], name in TESTED) for name in drawn]
    if found.kind == Run.Kind.PPO:
        context |= rewarded.ppo_context(found)
    measured = {name: curve for name, curve in drawn.items() if curve["test"]}
    context["measured"] = [CURVES[name] for name in measured]
    context["test_points"] = _test_points(measured)
    if found.status == Run.Status.FAILED:
        context |= _failure(found)
    if found.status == Run.Status.QUEUED:
        context["waiting"] = waiting_words(found)
    if request.htmx:
        return render(request, "training/run.html#live", context)
    context["counts"] = counts_in_words(found.dataset)
    context["settings"] = _settings(found)
    if found.report_to:
        context |= _tracker(found)
    if "lead" in project.may and found.folder:
        context["output"] = last_words_of(found)
    return render(request, "training/run.html", context)


def _tracker(run: Run) -> dict[str, str]:
    """Where a run's numbers go as well, and the command that shows them on the worker's machine."""
    folder = storage_path("trackers") / run.report_to
    commands = {
        "tensorboard": f"tensorboard --logdir {folder}",
        "wandb": f"wandb sync {folder}/wandb/offline-run-*",
        "trackio": f"TRACKIO_DIR={folder} trackio show",
    }
    return {"tracker": TRACKERS[run.report_to], "tracker_command": commands[run.report_to]}


def _failure(run: Run) -> dict[str, Any]:
    """What a failed run died of, and what to try: (words, address of the launch form or "")."""
    try:
        found = causes.remedies(run, recipe_of(run))
    except ValueError:  # the recipe has changed its settings since
        found = []
    return {
        "cause": causes.IN_SHORT.get(run.cause, ""),
        "remedies": [
            (remedy.words, urlencode({"from": run.pk} | remedy.changes) if remedy.changes else "")
            for remedy in found
        ],
    }


def curves(run: Run) -> dict[str, Any]:
    """Points for the charts: {"loss": {"train": [[step, value], …], "test": […]}, …}, of what the
    run has reported.

    Where there are more training steps than a screen has room for, each point is the mean of
    several; `steps_per_point` says of how many.
    """
    found: dict[str, Any] = {name: {"train": [], "test": []} for name in CURVES}
    points: dict[str, list[tuple[int, dict[str, float]]]] = {
        "train": [], "test": [], "validation": []
    }  # fmt: skip
    rows = run.steps.order_by("step").values_list("step", "split", "values", "cost")
    for step, split, values, cost in rows:
        if cost.get("seconds"):
            values["tokens_per_second"] = cost["tokens"] / cost["seconds"]
        points[split].append((step, values))
    each = max(1, -(-len(points["train"]) // POINTS_SHOWN))
    for start in range(0, len(points["train"]), each):
        group = points["train"][start : start + each]
        for name in CURVES:
            told = [values[name] for _step, values in group if name in values]
            if told:
                found[name]["train"].append([group[-1][0], sum(told) / len(told)])
    # With validation pairs the test pairs are measured once, at the end.
    for step, values in points["validation"] or points["test"]:
        for name in CURVES.keys() & values.keys():
            found[name]["test"].append([step, values[name]])
    first = ("loss", "accuracy", "margin") if run.kind in PAIRWISE else ("loss",)
    if run.kind == Run.Kind.REWARD and run.dataset and run.dataset.of_ratings:
        first = ("loss", "error")
    shown: Sequence[str] = list(found)
    if run.kind == Run.Kind.PPO:
        first = ("score", "kl")
        shown = [name for name in rewarded.CURVES if name not in HABITS or _varies(found[name])]
    return {
        "curves": {
            name: found[name]
            for name in shown
            if name in first or found[name]["train"] or found[name]["test"]
        },
        "steps_per_point": each,
        "held_out": "validation" if points["validation"] else "test",
    }


def _varies(curve: dict[str, list[list[float]]]) -> bool:
    return any(value for points in curve.values() for _step, value in points)


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
    counts = dataset.counts
    return [(words, counts[name]) for name, words in words_of(counts).items() if counts.get(name)]


def _settings(run: Run) -> list[tuple[str, Any, str]]:
    """(name, value, help) of every setting of the run's recipe that its method reads."""
    unused = other_settings(run.recipe.get("method", "lora"))
    return [
        (setting.name, run.recipe.get(setting.name), _(setting.metadata["help"]))
        for setting in settings_of(run.kind)
        if setting.metadata and setting.name not in unused
    ]


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Ask a run to stop; a running one stops within seconds."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.runs, pk=pk)
    cancel_run(found, by=request.user)
    return redirect("training:run", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped run again."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.runs, pk=pk)
    limits = {name: request.POST[name] for name in LIMITS if request.POST.get(name)}
    try:
        resumed = resume_run(found, by=request.user, limits=limits)
    except ValueError as problem:
        messages.error(request, str(problem))
        return redirect("training:run", slug, pk)
    if not resumed:
        messages.warning(
            request,
            _("%(run)s is %(status)s: there is nothing to resume.")
            % {"run": found, "status": found.get_status_display().lower()},
        )
    return redirect("training:run", slug, pk)
