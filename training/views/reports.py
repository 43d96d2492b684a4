"""Pages on what models are worth: a report, a card, and studies of the labels."""

from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from labeling.reports import compute_anew, stop
from labeling.templatetags.figures import decimals, percent
from training.cards import FILE, card_of, latest_report
from training.forms.studies import StudyForm
from training.models import ModelVersion, Run, Study
from training.reports import can_report, wrong_pairs
from training.studies import ARM_WORDS, REFERENCES, can_be_studied, start_study

WRONG_SHOWN = 20
STUDIES_SHOWN = 10
SLIGHTLY = 0.1
"""A temperature nearer to 1 changes nothing to speak of."""
SLICES = {
    "strength": _lazy("By how much better the label says it is"),
    "agreement": _lazy("By how far the raters agreed"),
    "length": _lazy("By length"),
    "source": _lazy("By who labeled"),
    "topic": _lazy("By tag or topic"),
}
ROWS = {
    ("strength", "3"): _lazy("much better"),
    ("strength", "2"): _lazy("clearly better"),
    ("strength", "1"): _lazy("slightly better"),
    ("strength", "0"): _lazy("strength not given"),
    ("agreement", "all"): _lazy("all gave the same answer"),
    ("agreement", "most"): _lazy("two thirds or more did"),
    ("agreement", "divided"): _lazy("fewer did"),
    ("agreement", "one"): _lazy("a single answer"),
    ("agreement", "decided"): _lazy("decided by a lead"),
    ("length", "longer"): _lazy("the chosen response is longer"),
    ("length", "alike"): _lazy("within 30 characters"),
    ("length", "shorter"): _lazy("the chosen response is shorter"),
    ("source", "human"): _lazy("people"),
    ("source", "ai"): _lazy("AI judges"),
}

QUARTERS = (
    _lazy("the quarter they agree on most"),
    _lazy("the second"),
    _lazy("the third"),
    _lazy("the quarter they disagree on most"),
)
"""Of the pairs, by how far an ensemble's members are apart."""


@dataclass(frozen=True)
class Note:
    """What a figure means, and what to do."""

    level: str
    """ok, warn, or empty where nothing can be said yet."""
    text: str


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def report(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """The figures that a worker stored last; a POST has them computed anew, or stops that."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    model = _model(project, name)
    if request.method == "POST":
        if "cancel" in request.POST:
            stop(model.reports)
        elif can_report(model):
            compute_anew(project, model.reports, request.user)
        return redirect("training:report", slug, name)
    job = model.reports.order_by("-pk").first()
    if request.htmx:  # the status polls itself until the job has ended
        response = render(request, "labeling/figures_status.html", {"job": job, "project": project})
        if job is None or not job.is_active:
            response.headers["HX-Refresh"] = "true"
        return response
    stored = latest_report(model)
    context: dict[str, Any] = {
        "project": project,
        "active": "training",
        "model": model,
        "job": job,
        "stored": stored,
        "can_report": can_report(model),
    }
    if stored is not None:
        context["report"] = stored.result
        if stored.result.get("kind") != "singles":
            context |= _figures(project, model, stored.result)
    if model.run is not None and can_be_studied(model.run):
        context["studies"] = [
            (study, _summary(study)) for study in model.run.studies.all()[:STUDIES_SHOWN]
        ]
        context["form"] = StudyForm()
    return render(request, "training/report.html", context)


@login_required
@require_safe
def card(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """The model's card to read."""
    project = project_for(request.user, slug, to="view")
    model = _model(project, name)
    context = {"project": project, "active": "training", "model": model, "card": card_of(model)}
    return render(request, "training/card.html", context)


@login_required
@require_safe
def card_file(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """The model's card to keep beside its weights."""
    project = project_for(request.user, slug, to="view")
    response = HttpResponse(card_of(_model(project, name)), content_type="text/markdown")
    response.headers["Content-Disposition"] = f'attachment; filename="{FILE}"'
    return response


@login_required
@require_POST
def new_study(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Have a worker train a study's reward models, with the settings of this run."""
    project = project_for(request.user, slug, to="lead")
    run = get_object_or_404(project.runs, pk=pk)
    form = StudyForm(request.POST)
    if form.is_valid():
        try:
            study = start_study(run, user=request.user, **form.cleaned_data)
        except ValueError as error:
            text = str(error)
            messages.error(request, text[:1].upper() + text[1:] + ".")
        else:
            return redirect("training:study", slug, study.pk)
    else:
        messages.error(request, next(iter(form.errors.values()))[0])
    model = getattr(run, "model_version", None)
    if model is None:
        return redirect("training:run", slug, pk)
    return redirect("training:report", slug, model.name)


@login_required
@never_cache
@require_safe
def study(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far a study is, then what it found. htmx gets the status alone."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(project.studies.select_related("run__model_version"), pk=pk)
    context: dict[str, Any] = {"project": project, "active": "training", "study": found}
    if request.htmx:
        response = render(request, "training/study.html#status", context)
        if not found.is_active:
            response.headers["HX-Refresh"] = "true"
        return response
    context["model"] = getattr(found.run, "model_version", None)
    if found.kind == Study.Kind.LABELS:
        context["reference"] = REFERENCES[found.options["reference"]]
        for row in found.result.get("rows", []):
            row["words"] = ARM_WORDS[row["arm"]]
            if "against" in row:
                row["note"] = _note_of_arm(row["against"])
    elif found.result:
        context["answer"] = _answer(found.result)
        context["plot"] = _curve_plot(found.result["points"])
    return render(request, "training/study.html", context)


@login_required
@require_POST
def cancel_study(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a study; the trainings that have ended are kept."""
    project = project_for(request.user, slug, to="lead")
    get_object_or_404(project.studies, pk=pk).request_cancel()
    return redirect("training:study", slug, pk)


@login_required
@require_POST
def resume_study(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped study again."""
    project = project_for(request.user, slug, to="lead")
    get_object_or_404(project.studies, pk=pk).resume()
    return redirect("training:study", slug, pk)


def _model(project: Project, name: str) -> ModelVersion:
    found: ModelVersion = get_object_or_404(
        project.models.select_related("base", "run__dataset", "project"), name=name
    )
    return found


# A report in words --------------------------------------------------------------------------------


def _figures(project: Project, model: ModelVersion, found: dict[str, Any]) -> dict[str, Any]:
    if not found.get("n"):
        return {}
    context: dict[str, Any] = {
        "slices": [
            cut
            | {
                "title": SLICES[cut["by"]],
                "rows": [
                    row
                    | {
                        "words": ROWS.get((cut["by"], row["name"]), row["name"]),
                        "span": Span(**{k: row["accuracy"].get(k) for k in ENDS}),
                    }
                    for row in cut["rows"]
                ],
            }
            for cut in found["slices"]
        ]
    }
    if "spread" in found:
        context |= {
            "quarters": [
                row
                | {
                    "words": words,
                    "span": Span(**{k: row["accuracy"].get(k) for k in ENDS}),
                }
                for words, row in zip(QUARTERS, found["spread"]["quarters"], strict=False)
            ],
            "spread_note": _note_on_spread(found["spread"]),
            "disputed": wrong_pairs(project, found["disputed"][:WRONG_SHOWN]),
        }
    if found["kind"] == "reward":
        context |= {
            "against_length": _note_on_length_baseline(found["against_longer"]),
            "calibration": _note_on_calibration(found),
            "length": _note_on_length(found["length"]),
            "overfit": _note_on_training(found),
            "wrong": wrong_pairs(project, found["wrong"][:WRONG_SHOWN]),
            "wrong_in_training": wrong_pairs(
                project, found.get("training", {}).get("wrong", [])[:WRONG_SHOWN]
            ),
        }
    else:
        context |= {
            "displacement": _note_on_displacement(found["chosen_change"]),
            "written": _note_on_written(found["written"]["difference"]),
            "logps": _logp_plot(model.run),
        }
    return context


ENDS = ("value", "low", "high")


@dataclass(frozen=True)
class Span:
    """A share with its interval, for its picture."""

    value: float | None
    low: float | None
    high: float | None


def _note_on_length_baseline(figure: dict[str, Any]) -> Note:
    if figure["low"] is None:
        return Note("", _("Too few prompts are held out to tell it from the longer one."))
    if figure["low"] > 0:
        return Note("ok", _("It knows more of these preferences than length does."))
    if figure["high"] < 0:
        return Note(
            "warn",
            _("“The longer one” would be right more often: train on more pairs, or longer."),
        )
    return Note(
        "warn",
        _(
            "The interval holds 0: it may know no more than “the longer one”. Hold out more "
            "prompts, or train on more pairs."
        ),
    )


def _note_on_calibration(found: dict[str, Any]) -> Note:
    corrected = found["temperature"]
    fitted = corrected.get("temperature")
    if fitted is None:
        return Note("", _(corrected["why"]))
    said = {"temperature": decimals(fitted)}
    if corrected["log_loss"]["value"] >= found["probability"]["log_loss"]["value"]:
        text = _("Its margins can be taken at their word: no temperature makes them better.")
        return Note("ok", text)
    if fitted > 1:
        text = _("It is surer than it is right: divide its margins by %(temperature)s.")
    else:
        text = _("It is right more often than it says: divide its margins by %(temperature)s.")
    return Note("warn" if abs(fitted - 1) > SLIGHTLY else "ok", text % said)


def _note_on_length(length: dict[str, dict[str, Any]]) -> Note:
    score, label = length["score"], length["label"]
    if score["value"] is None or label["value"] is None:
        return Note("", _("Nothing can be said of length: it never differs."))
    if score["low"] is None or label["low"] is None:
        return Note("", _("Too few prompts are held out to say anything of length."))
    if score["low"] > label["high"]:
        return Note(
            "warn",
            _(
                "Its scores rise with length more than the labels do. A policy trained against it "
                "will write longer: turn on the correction for length, or label pairs of like "
                "length."
            ),
        )
    if score["high"] < label["low"]:
        return Note("warn", _("Its scores fall with length, compared with the labels."))
    return Note("ok", _("Its scores lean to length no more than the labels themselves."))


def _note_on_training(found: dict[str, Any]) -> Note | None:
    training, test = found.get("training", {}).get("accuracy"), found["accuracy"]
    if not training or training["low"] is None or test["high"] is None:
        return None
    if training["low"] > test["high"]:
        return Note(
            "warn",
            _(
                "It is right more often on what it was trained on: it over-fits. Fewer epochs, "
                "a smaller rank or more labels help."
            ),
        )
    return Note("ok", _("It does about as well on new prompts as on those it was trained on."))


def _note_on_spread(spread: dict[str, Any]) -> Note:
    """What the members' disagreement is good for."""
    gain, doubt = spread["gain"], spread["gain_of_doubt"]
    if gain.get("low") is None:
        text = _("What the disagreement tells is open: too few prompts, or no pair it gets wrong.")
        return Note("", text)
    if gain["low"] > 0:
        text = _(
            "Where the members agree it is right more often: send people the pairs they disagree "
            "on, and trust a reward judge less there."
        )
        if doubt["low"] is not None and doubt["low"] > 0:
            text += " " + _("Margins that the spread makes smaller are the better probabilities.")
        return Note("ok", text)
    if gain["high"] < 0:
        return Note(
            "warn", _("Where the members agree it is wrong more often: they share a mistake.")
        )
    return Note(
        "",
        _(
            "Whether the disagreement tells anything is open: the interval holds 0. More members, "
            "or members that differ more (a larger rank, more epochs), tell more."
        ),
    )


def _note_on_displacement(figure: dict[str, Any]) -> Note:
    if figure["value"] < 0 and (figure["high"] is None or figure["high"] < 0):
        return Note(
            "warn",
            _(
                "Likelihood displacement: the chosen responses became less likely too, only less "
                "so than the rejected ones. A larger beta, fewer steps, or SFT on the chosen "
                "responses first hold the policy nearer."
            ),
        )
    if figure["low"] is not None and figure["low"] > 0:
        return Note("ok", _("The chosen responses became likelier than under the base."))
    return Note(
        "", _("Whether the chosen responses became likelier is open: the interval holds 0.")
    )


def _note_on_written(figure: dict[str, Any]) -> Note:
    if figure["value"] is None or figure["low"] is None:
        return Note("", _("Too few prompts to say whether it writes longer than its base."))
    if figure["low"] > 0:
        return Note(
            "warn",
            _("It writes longer than its base. Ask raters whether it is better or only longer."),
        )
    if figure["high"] < 0:
        return Note("", _("It writes shorter than its base."))
    return Note("ok", _("It writes about as long as its base."))


# Studies in words ---------------------------------------------------------------------------------


def _summary(study: Study) -> str:
    """A finished study in a line."""
    if study.kind == Study.Kind.CURVE:
        return _answer(study.result).text if study.result else ""
    return "; ".join(
        _("%(way)s: %(gain)s points") % {"way": ARM_WORDS[row["arm"]], "gain": _points(row)}
        for row in study.result.get("rows", [])
        if "against" in row
    )


def _points(row: dict[str, Any]) -> str:
    """A way's accuracy less the majority's: "1.2 [0.3, 2.1]"."""
    value, low, high = (row["against"][name] for name in ENDS)
    interval = "" if low is None else f" [{decimals(100 * low, 1)}, {decimals(100 * high, 1)}]"
    return f"{decimals(100 * value, 1)}{interval}"


def _answer(result: dict[str, Any]) -> Note:
    last, before = result["points"][-1], result["points"][-2]
    gain = result["gain"]
    said = {
        "before": f"{before['n']:,}",
        "n": f"{last['n']:,}",
        "gain": decimals(100 * gain["value"], 1),
        "low": "–" if gain["low"] is None else decimals(100 * gain["low"], 1),
        "high": "–" if gain["high"] is None else decimals(100 * gain["high"], 1),
    }
    found = (
        _(
            "From %(before)s to %(n)s labels, accuracy changed by %(gain)s points "
            "[%(low)s, %(high)s]."
        )
        % said
    )
    means = {
        "helps": _(
            "Yes: more labels of this kind will probably help; the next doubling brings less than "
            "the last one did."
        ),
        "hardly": _(
            "Hardly: the last doubling brought less than a point. Better labels, other prompts or "
            "a larger base promise more."
        ),
        "open": _("It cannot be told: hold out more prompts, or train with more seeds."),
    }[result["answer"]]
    return Note({"helps": "ok", "hardly": "warn"}.get(result["answer"], ""), f"{means} {found}")


def _note_of_arm(figure: dict[str, Any]) -> Note:
    if figure["low"] is not None and figure["low"] > 0:
        return Note("ok", _("better"))
    if figure["high"] is not None and figure["high"] < 0:
        return Note("warn", _("worse"))
    return Note("", _("no difference to be seen"))


# Pictures -----------------------------------------------------------------------------------------


def _curve_plot(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy against the number of labels, each mark twice the one before."""
    rows = [
        {
            "x": place,
            "y": point["accuracy"]["value"],
            "low": point["accuracy"]["low"],
            "high": point["accuracy"]["high"],
            "words": ngettext("%(n)s label: %(value)s", "%(n)s labels: %(value)s", point["n"])
            % {"n": f"{point['n']:,}", "value": percent(point["accuracy"]["value"], 1)},
        }
        for place, point in enumerate(points)
    ]
    marks = [(place, f"{point['n']:,}") for place, point in enumerate(points)]
    return {"series": [{"points": rows}], "marks": marks, "as_percent": True}


def _logp_plot(run: Run | None) -> dict[str, Any] | None:
    """Log-probabilities against the base while the policy was trained; None if not recorded."""
    steps = run.steps.filter(split="test").order_by("step") if run is not None else []
    rows = [(step.step, step.values) for step in steps if "chosen_logp" in step.values]
    if len(rows) < 2:
        return None
    series = [
        {
            "name": words,
            "points": [
                {
                    "x": at,
                    "y": values[name],
                    "words": _("step %(step)s: %(value)s")
                    % {"step": at, "value": decimals(values[name])},
                }
                for at, values in rows
            ],
        }
        for name, words in (("chosen_logp", _("chosen")), ("rejected_logp", _("rejected")))
    ]
    return {
        "series": series,
        "marks": [(rows[0][0], str(rows[0][0])), (rows[-1][0], str(rows[-1][0]))],
    }
