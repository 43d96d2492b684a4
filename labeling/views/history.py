"""The history: who changed what in a project, and what happened in the installation."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from labeling.access import project_for
from labeling.changes import comparisons_of, differences
from labeling.forms.history import AuditForm, HistoryForm
from labeling.models import Change

PAGE = 50
ABOUT = 5  # comparisons that are named of a change to many


@login_required
@require_safe
def history(request: HttpRequest, slug: str) -> HttpResponse:
    """The changes, newest first, a page at a time; `by` names a person."""
    project = project_for(request.user, slug, to="view")
    people: Any = get_user_model().objects.filter(
        pk__in=project.changes.order_by().values("actor").distinct()
    )
    form = HistoryForm(request.GET, people=people.order_by("username"))
    changes = project.changes.select_related("actor").order_by("-pk")
    if form.is_valid():
        if form.cleaned_data["by"]:
            changes = changes.filter(actor=form.cleaned_data["by"])
        if form.cleaned_data["before"]:
            changes = changes.filter(pk__lt=form.cleaned_data["before"])
        found = list(changes[: PAGE + 1])
    else:
        found = []
    _tell(found)
    context = {
        "project": project,
        "active": "settings",
        "form": form,
        "changes": found[:PAGE],
        "next": found[PAGE - 1].pk if len(found) > PAGE else None,
    }
    template = "labeling/history.html#rows" if request.htmx else "labeling/history.html"
    return render(request, template, context)


def _tell(changes: list[Change]) -> None:
    for change in changes:
        change.differences = differences(change)
        keys = comparisons_of(change)
        change.about, change.n_about = keys[:ABOUT], len(keys)


@login_required
@never_cache
@require_safe
def audit(request: HttpRequest) -> HttpResponse:
    """Sign-ins, tokens, downloads, roles and changes of all projects, for administrators."""
    if not request.user.is_superuser:
        raise PermissionDenied(_("Administrators alone see the history of the installation."))
    changes = Change.objects.select_related("actor", "project").order_by("-pk")
    form = AuditForm(request.GET, label_suffix="")
    found = []
    if form.is_valid():
        asked = form.cleaned_data
        if asked["what"]:
            changes = changes.filter(action__in=AuditForm.KINDS[asked["what"]][1])
        if asked["by"]:
            changes = changes.filter(actor__username=asked["by"])
        if asked["before"]:
            changes = changes.filter(pk__lt=asked["before"])
        found = list(changes[: PAGE + 1])
    _tell(found)
    context = {
        "form": form,
        "changes": found[:PAGE],
        "next": found[PAGE - 1].pk if len(found) > PAGE else None,
        "last": Change.objects.exclude(number=None).order_by("-number").first(),
    }
    template = "labeling/audit.html#rows" if request.htmx else "labeling/audit.html"
    return render(request, template, context)
