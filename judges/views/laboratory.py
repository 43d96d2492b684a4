"""The laboratory's pages: experiments, what judges come to in them, "use this one", drift."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from judges.choosing import NoSuchCalibration, choose, n_not_handed_over
from judges.drift import EXPECTED, MOVED, RATE, new_check, notice_of
from judges.forms import ExperimentForm, UseForm
from judges.laboratory import (
    NothingLabeled,
    compute_again,
    experiments_of,
    grid,
    new_experiment,
)
from judges.models import ChosenJudge, DriftCheck, Experiment, Probe
from judges.readings import best_method, readings_of
from judges.tasks import settle_judge
from labeling.access import project_for
from labeling.changes import note_change
from labeling.jobs import Job
from labeling.models import Project

SHOWN = 30


@login_required
@require_http_methods(["GET", "POST"])
def laboratory(request: HttpRequest, slug: str) -> HttpResponse:
    """The project's experiments, and the form for another; a POST starts it."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    form = ExperimentForm(request.POST or None, project=project)
    if request.method == "POST" and form.is_valid():
        given = form.cleaned_data
        try:
            with transaction.atomic():
                versions = grid(
                    given["versions"], given["prompts"], given["modes"], user=request.user
                )
                experiment = new_experiment(
                    project,
                    given["name"],
                    versions,
                    most=given["most"],
                    epsilon=given["epsilon"],
                    user=request.user,
                )
                experiment.enqueue()
        except (NothingLabeled, ValueError) as error:
            form.add_error(None, str(error))
        else:
            return redirect("judges:experiment", slug, experiment.pk)
    chosen = _chosen(project)
    context = {
        "project": project,
        "active": "judges",
        "form": form,
        "experiments": experiments_of(project)[:SHOWN],
        "has_judges": project.judges.exists(),
        "chosen": chosen,
        "checks": _checks(chosen)[:5],
        "n_waiting": n_not_handed_over(chosen.version) if chosen else 0,
        "notice": notice_of(project),
        "moved": MOVED,
        "expected": EXPECTED,
        "rate": RATE,
    }
    status = 422 if form.errors else 200
    return render(request, "judges/laboratory.html", context, status=status)


@login_required
@never_cache
@require_safe
def experiment_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """An experiment: how far it is, and what its judges come to."""
    project = project_for(request.user, slug, to="view")
    experiment = get_object_or_404(project.experiments, pk=pk)
    if request.htmx:  # the status polls itself until the job has ended
        response = render(
            request,
            "judges/experiment.html#status",
            {"project": project, "experiment": experiment, "waits_long": _waits_long(experiment)},
        )
        if not experiment.is_active or _n_cells(experiment) > _n_seen(request):
            response.headers["HX-Refresh"] = "true"
        return response
    result = experiment.result
    context = {
        "project": project,
        "active": "judges",
        "experiment": experiment,
        "waits_long": _waits_long(experiment),
        "result": result,
        "n_seen": _n_cells(experiment),
        "chosen": _chosen(project),
        "n_cells": experiment.cells.count(),
    }
    if result:
        cells = result["cells"]
        for cell in cells:
            cell["readings"] = readings_of(cell, result["ceiling"])
            cell["best"] = best_method(cell["calibration"])
            cell["after"] = cell["calibration"][cell["best"] or "temperature"]
        names = [cell["name"] for cell in cells]
        for row in result["differences"]:
            row["first_name"], row["second_name"] = names[row["first"]], names[row["second"]]
        context["cells"] = cells
    return render(request, "judges/experiment.html", context)


@login_required
@require_POST
def cancel_experiment(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop an experiment after the batch in hand; what it has judged is kept."""
    project = project_for(request.user, slug, to="lead")
    get_object_or_404(project.experiments, pk=pk).request_cancel()
    return redirect("judges:experiment", slug, pk)


@login_required
@require_POST
def resume_experiment(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Go on with a stopped experiment, or compute a finished one's figures anew."""
    project = project_for(request.user, slug, to="lead")
    experiment = get_object_or_404(project.experiments, pk=pk)
    with transaction.atomic():
        if compute_again(experiment):
            experiment.enqueue()
    return redirect("judges:experiment", slug, pk)


@login_required
@require_POST
def use(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Make a judge of an experiment the project's own."""
    project = project_for(request.user, slug, to="lead")
    experiment = get_object_or_404(project.experiments, pk=pk)
    form = UseForm(request.POST, experiment=experiment)
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, errors[0])
        return redirect("judges:experiment", slug, pk)
    version, method = form.cleaned_data["version"], form.cleaned_data["method"]
    try:
        choose(version, user=request.user, experiment=experiment, method=method)
        settle_judge.delay_on_commit(version.pk)
    except NoSuchCalibration as error:
        messages.error(request, str(error))
    else:
        words = _(
            "%(version)s is the project's judge now. What it has judged counts as its labels."
        )
        messages.success(request, words % {"version": version})
    return redirect("judges:experiment", slug, pk)


@login_required
@require_POST
def settle_again(request: HttpRequest, slug: str) -> HttpResponse:
    """Send a worker once more for verdicts of the project's judge that are no labels yet."""
    project = project_for(request.user, slug, to="lead")
    chosen = _chosen(project)
    if chosen is not None:
        settle_judge.delay_on_commit(chosen.version_id)
    return redirect("judges:laboratory", slug)


@login_required
@require_POST
def start_check(request: HttpRequest, slug: str) -> HttpResponse:
    """Ask the project's judge its probe again."""
    project = project_for(request.user, slug, to="lead")
    chosen = _chosen(project)
    probe = Probe.objects.filter(version=chosen.version).first() if chosen else None
    if probe is None:
        messages.error(request, _("No answers of the project's judge are kept yet."))
        return redirect("judges:laboratory", slug)
    with transaction.atomic():
        check = new_check(probe, user=request.user)
        check.enqueue()
    return redirect("judges:check", slug, check.pk)


@login_required
@never_cache
@require_safe
def check_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """A check of the project's judge; the card polls itself until it has ended."""
    project = project_for(request.user, slug, to="view")
    context = {
        "project": project,
        "active": "judges",
        "check": _check(project, pk),
        "moved": MOVED,
        "expected": EXPECTED,
        "rate": RATE,
    }
    template = "judges/drift_check.html#card" if request.htmx else "judges/drift_check.html"
    return render(request, template, context)


@login_required
@require_POST
def drift_is_known(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Take the notice down."""
    project = project_for(request.user, slug, to="lead")
    check = _check(project, pk)
    with transaction.atomic():
        if check.known_at is None:
            check.known_at = timezone.now()
            check.save(update_fields=["known_at"])
            note_change(project, request.user, "take note of drift", check.probe.version)
    return redirect("judges:laboratory", slug)


def _chosen(project: Project) -> ChosenJudge | None:
    return (
        ChosenJudge.objects.filter(project=project)
        .select_related("version__judge", "calibration__version__judge", "chosen_by")
        .first()
    )


def _checks(chosen: ChosenJudge | None) -> Any:
    version = chosen.version if chosen else None
    return DriftCheck.objects.filter(probe__version=version).order_by("-pk")


def _check(project: Project, pk: int) -> DriftCheck:
    checks = DriftCheck.objects.filter(probe__version__judge__project=project)
    return get_object_or_404(checks.select_related("probe__version__judge"), pk=pk)


def _n_cells(experiment: Experiment) -> int:
    return len(experiment.result.get("cells", []))


def _n_seen(request: HttpRequest) -> int:
    """How many cells the page shows already: it comes anew when there are more."""
    seen = request.GET.get("seen", "")
    return int(seen) if seen.isdecimal() else 0


def _waits_long(job: Job) -> bool:
    """No worker took it for a quarter of a minute: perhaps none is there."""
    waited = (timezone.now() - job.queued_at).total_seconds()
    return job.status == job.Status.QUEUED and waited > 15
