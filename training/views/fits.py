"""Will it fit? A fragment of the launch form, asked again at every change of a setting; and a page
for models at work."""

import json
from dataclasses import asdict, fields
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from labeling.storage import check_model_name
from training.fitting import Fit, fit, fit_work, machine
from training.forms.fits import WorkForm
from training.forms.launch import NAMES
from training.ml.config import RECIPES, make_recipe
from training.ml.memory import REFERENCES
from training.ml.settings import METHODS
from training.runs import named_model, rating_judge, with_folders


@login_required
@require_POST
def fits(request: HttpRequest, slug: str, kind: str) -> HttpResponse:
    """What the run of the form as it stands would take."""
    project = project_for(request.user, slug, to="lead")
    if kind not in RECIPES:
        raise Http404("No such recipe.")
    return render(
        request, "training/fits.html", fit_context(request.POST, request.user, project, kind)
    )


def fit_context(data: QueryDict, user: Any, project: Project, kind: str) -> dict[str, Any]:
    """The fit of the posted settings, or why it cannot be told."""
    base = data.get("base_model", "").strip()
    if not base:
        return {"fit": None, "missing": _("Choose a base model to see the memory that it needs.")}
    try:
        check_model_name(project, base, user)
        folder = named_model(project, base)
        recipe = make_recipe(kind, posted_settings(data, kind) | {"base_model": folder})
        found = fit(
            kind, with_folders(project, recipe), machine(), judge=rating_judge(project, recipe)
        )
    except (ValueError, ValidationError) as error:
        return {"fit": None, "problem": _by_its_label(str(getattr(error, "message", error)))}
    return _told(found)


def _by_its_label(text: str) -> str:
    """A complaint that begins with the name of a setting, with the name that the form shows."""
    name = text.replace(":", " ").split(" ", 1)[0]
    if name in NAMES:
        return f"{NAMES[name]}{text.removeprefix(name)}"
    return text[:1].upper() + text[1:]


def _told(found: Fit) -> dict[str, Any]:
    """What training/fits.html shows of a fit."""
    reference = REFERENCES.get(found.estimate.reference)
    return {
        "fit": found,
        "reference": _(reference) if reference else "",
        "terms": [(_(term.words), term.bytes) for term in found.estimate.terms],
        "suggestions": [
            (json.dumps(suggestion.settings), _in_words(suggestion.settings), suggestion)
            for suggestion in found.suggestions
        ],
    }


def _in_words(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Settings as the forms name them."""
    names = NAMES | {name: field.label for name, field in WorkForm.base_fields.items()}
    return [
        (names[name], METHODS[value].split(":")[0] if name == "method" else value)
        for name, value in settings.items()
    ]


@login_required
@require_safe
def working(request: HttpRequest, slug: str) -> HttpResponse:
    """What a model takes that writes, scores or is asked: no run, no weights, its config alone."""
    project = project_for(request.user, slug, to="lead")
    data = request.GET.copy()
    try:
        suggested = dict(json.loads(data.get("fit", "{}")))
    except (TypeError, ValueError):
        suggested = {}
    for name, value in suggested.items():
        if name in ("rows", "in_4_bits"):
            data[name] = "on" if value is True else str(value)
    form = WorkForm(data if "use" in data else None, project=project, user=request.user)
    context = {"project": project, "active": "training", "form": form}
    if form.is_valid():
        work = form.cleaned_data["work"]
        folder = named_model(project, form.cleaned_data["model"])
        try:
            context |= _told(fit_work(form.cleaned_data["use"], work, folder, machine()))
            context["work"] = asdict(work)
        except ValueError as error:
            text = str(error)
            context |= {"fit": None, "problem": text[:1].upper() + text[1:]}
    return render(request, "training/working.html", context)


def posted_settings(data: QueryDict, kind: str) -> dict[str, Any]:
    """The recipe's settings in a posted form; a switch that is off is not sent at all."""
    found: dict[str, Any] = {}
    for setting in fields(RECIPES[kind]):
        if setting.name == "base_model":
            continue
        if setting.type is bool:
            found[setting.name] = setting.name in data
        elif setting.name == "reward_models":  # a box for each
            found[setting.name] = ",".join(data.getlist(setting.name))
        elif data.get(setting.name, "") != "":
            found[setting.name] = data[setting.name]
    return found


def with_suggestion(data: QueryDict, kind: str) -> QueryDict:
    """The posted form with the settings of the suggestion whose button was pressed."""
    try:
        chosen = json.loads(data["fit"])
        items = list(chosen.items())
    except (KeyError, ValueError, AttributeError):
        return data
    changed = data.copy()
    known = {setting.name for setting in fields(RECIPES[kind])} - {"base_model"}
    for name, value in items:
        if name in known:
            changed[name] = "on" if value is True else str(value)
    changed["check"] = "1"  # shown, not launched
    return changed
