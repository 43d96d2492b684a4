"""The history of a project: who changed what, and what it was before."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from labeling.access import project_for
from labeling.changes import comparisons_of, differences
from labeling.forms import HistoryForm

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
    for change in found:
        change.differences = differences(change)
        keys = comparisons_of(change)
        change.about, change.n_about = keys[:ABOUT], len(keys)
    context = {
        "project": project,
        "active": "settings",
        "form": form,
        "changes": found[:PAGE],
        "next": found[PAGE - 1].pk if len(found) > PAGE else None,
    }
    template = "labeling/history.html#rows" if request.htmx else "labeling/history.html"
    return render(request, template, context)
