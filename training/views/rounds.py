"""Rounds: what each cost and brought, the form of the next one, and a round on its way."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from labeling.templatetags.figures import percent
from training.arenas import compare_policies
from training.models import Round
from training.round_chain import start_training
from training.round_forms import RoundForm
from training.rounds import (
    WAYS,
    RoundRow,
    defaults_for,
    measure_round,
    new_and_previous,
    people_of,
    round_rows,
    settings_of,
    start_round,
)


@login_required
@require_http_methods(["GET", "POST"])
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """Every round as a row and a point, and the form of the next; a POST begins it."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    try:
        defaults = defaults_for(project).as_json()
    except ValueError:
        defaults = None
    form = None
    if defaults is not None and "lead" in project.may:
        given = request.POST if "purpose" in request.POST else None
        form = RoundForm(given, project=project, initial=defaults)
    if request.method == "POST":
        begun = _begin(request, project, form)
        if begun is not None:
            return redirect("training:round", slug, begun.pk)
    rows = round_rows(project)
    context = {
        "project": project,
        "active": "training",
        "rows": rows[::-1],
        "last": rows[-1] if rows else None,
        "next_number": len(rows) + 1,
        "defaults": defaults,
        "people": people_of(project, defaults["people"]) if defaults else 0,
        "form": form,
        "accuracy": _plot(rows, "accuracy"),
        "win_rate": _plot(rows, "win_rate"),
        "any_active": any(row.round.is_active for row in rows),
    }
    return render(request, "training/rounds.html", context)


def _begin(request: HttpRequest, project: Project, form: RoundForm | None) -> Round | None:
    """The round that a POST asks for: with the form's settings, or by one click with the defaults.
    None where it was refused; the form then says why."""
    if form is None:
        messages.error(request, _("There is no model that writes yet."))
        return None
    if form.is_bound and not form.is_valid():
        return None
    settings = form.cleaned_data["settings"] if form.is_bound else defaults_for(project)
    try:
        return start_round(project, settings, request.user)
    except ValueError as error:
        if form.is_bound:
            form.add_error(None, str(error))
        else:
            messages.error(request, str(error))
    return None


def _plot(rows: list[RoundRow], name: str) -> dict[str, Any] | None:
    """A figure of the rounds against all labels so far; None before there is one."""
    points, marks = [], []
    for row in rows:
        figure = getattr(row, name)
        if not figure or figure.get("value") is None:
            continue
        words = ngettext(
            "%(round)s, %(n)s label so far: %(value)s",
            "%(round)s, %(n)s labels so far: %(value)s",
            row.n_labels_so_far,
        ) % {
            "round": str(row.round),
            "n": row.n_labels_so_far,
            "value": percent(figure["value"], 1),
        }
        points.append(
            {
                "x": row.n_labels_so_far,
                "y": figure["value"],
                "low": figure.get("low"),
                "high": figure.get("high"),
                "words": words,
            }
        )
        marks.append((row.n_labels_so_far, str(row.n_labels_so_far)))
    if not points:
        return None
    return {"series": [{"name": "", "points": points}], "marks": marks, "as_percent": True}


@login_required
@require_safe
def one(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A round: how far it is, how its pairs were chosen, what came of it, what to do next."""
    project = project_for(request.user, slug, to="view")
    found = _round(project, pk)
    context = _context(project, found)
    template = "training/round.html#card" if request.htmx else "training/round.html"
    return render(request, template, context)


def _context(project: Project, found: Round) -> dict[str, Any]:
    settings = settings_of(found)
    arena, measured = found.arenas.first(), found.measures.first()
    jobs = (found, found.reward_run, found.policy_run, arena, measured)
    return {
        "project": project,
        "active": "training",
        "round": found,
        "row": next(row for row in round_rows(project) if row.round.pk == found.pk),
        "settings": settings,
        "people": people_of(project, settings.people),
        "way": WAYS[settings.way_of_choice],
        "pair": new_and_previous(found),
        "arena": arena,
        "measure": measured,
        "waits": any(job is not None and job.is_active for job in jobs),
    }


def _round(project: Project, pk: int) -> Round:
    rows = project.rounds.select_related(
        "project", "created_by", "reward_run__model_version", "policy_run__model_version"
    )
    found: Round = get_object_or_404(rows, pk=pk)
    return found


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a round; what it has sampled is kept."""
    project = project_for(request.user, slug, to="lead")
    _round(project, pk).request_cancel()
    return redirect("training:round", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped round again; it goes on with the next prompts."""
    project = project_for(request.user, slug, to="lead")
    if not _round(project, pk).resume():
        messages.warning(request, _("This round is not stopped: there is nothing to resume."))
    return redirect("training:round", slug, pk)


@login_required
@require_POST
def train(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Start the round's run on the labels of now."""
    project = project_for(request.user, slug, to="lead")
    try:
        run = start_training(_round(project, pk), request.POST.get("kind", ""), request.user)
    except (ValueError, OSError) as error:
        messages.error(request, str(error))
        return redirect("training:round", slug, pk)
    return redirect("training:run", slug, run.pk)


@login_required
@require_POST
def compare(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Give people pairs of the new policy and the one before, blind."""
    project = project_for(request.user, slug, to="lead")
    try:
        arena = compare_policies(_round(project, pk), request.user)
    except ValueError as error:
        messages.error(request, str(error))
        return redirect("training:round", slug, pk)
    return redirect("training:arena", slug, arena.pk)


@login_required
@require_POST
def measure(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Have a worker compute the gain from the labels of now."""
    project = project_for(request.user, slug, to="lead")
    measure_round(_round(project, pk), request.user)
    return redirect("training:round", slug, pk)
