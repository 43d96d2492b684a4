"""The list of projects, a project's overview, its settings and its comparisons."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core.exceptions import PermissionDenied
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext
from django.views.decorators.http import require_http_methods, require_safe

from labeling.access import project_for, projects_of
from labeling.changes import note_change
from labeling.forms.projects import HELPFUL_HONEST_HARMLESS, ProjectForm
from labeling.models import Membership, Project
from labeling.progress import count_progress, kept_progress, own_progress
from labeling.projects import (
    change_by_worker,
    change_labels_wanted,
    keep_settings,
    make_project,
    settings_of,
)

CHANGED_AT_ONCE = 20_000  # comparisons that a person may wait for; more are a worker's


@login_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """The projects that the person can open."""
    projects = projects_of(request.user).annotate(n_comparisons=Count("comparisons"))
    return render(request, "labeling/home.html", {"projects": projects})


@login_required
@require_http_methods(["GET", "POST"])
def create(request: HttpRequest) -> HttpResponse:
    """Make a project, from a form or as a copy of one's settings, and own it; open to staff."""
    if not request.user.is_staff:
        raise PermissionDenied(_("Projects are made by staff; ask an administrator."))
    copied = None
    if slug := request.POST.get("copied_from") or request.GET.get("from"):
        copied = project_for(request.user, slug, to="lead")
    start = {"name": copied.name, **settings_of(copied)} if copied else settings_of(Project())
    form = _form(request, initial=start)
    if form.is_valid():
        members_of = copied if copied and "members" in request.POST else None
        project = make_project(form.save(commit=False), request.user, members_of)
        return redirect("labeling:import", project.slug)
    led = projects_of(request.user)
    if not request.user.is_superuser:
        # One filter: in two, the role could be another member's.
        roles = (Membership.Role.OWNER, Membership.Role.LEAD)
        led = Project.objects.filter(memberships__user=request.user, memberships__role__in=roles)
    context = {"form": form, "copied": copied, "sources": led.order_by("name")}
    return render(request, "labeling/project_form.html", context)


@login_required
@require_safe
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """Guidelines and progress; a rater sees their own numbers alone."""
    project = project_for(request.user, slug)
    context = {"project": project, "active": "overview"}
    if "label" in project.may:
        rater = project.raters.filter(user=request.user).first()
        context |= {"rater": rater, "own": own_progress(project, rater)}
    if "view" in project.may:
        context["counted"] = kept_progress(project)
    return render(request, "labeling/overview.html", context)


@login_required
@require_safe
def progress(request: HttpRequest, slug: str) -> HttpResponse:
    """Progress alone, counted if need be: what the overview of a large project fetches."""
    project = project_for(request.user, slug, to="view")
    context = {"project": project, "active": "overview", "counted": count_progress(project)}
    template = "labeling/overview.html#progress" if request.htmx else "labeling/overview.html"
    return render(request, template, context)


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Change a project's settings."""
    project = project_for(request.user, slug, to="lead")
    before = settings_of(project) | {"name": project.name}
    form = _form(request, instance=project)
    if form.is_valid():
        keep_settings(form.save(commit=False), before, request.user)
        messages.success(request, _("Kept."))
        if form.n_following and form.cleaned_data["existing"] == "change":
            _change_existing(request, project, form)
        return redirect("labeling:project", project.slug)
    # A form that does not hold has changed the row in memory: the page's head shows the real one.
    context = {"form": form, "project": project_for(request.user, slug, to="lead")}
    return render(request, "labeling/project_form.html", context | {"active": "settings"})


def _form(request: HttpRequest, **start: Any) -> ProjectForm:
    """The form as sent; or, where the button for the usual three questions was pressed, with them
    put in and everything else as it was typed: nothing is checked before it is to be kept."""
    if "preset" not in request.POST:
        return ProjectForm(request.POST or None, **start)
    typed = {name: request.POST.get(name, "") for name in ProjectForm.base_fields}
    return ProjectForm(**start | {"initial": typed | {"aspects": HELPFUL_HONEST_HARMLESS}})


def _change_existing(request: HttpRequest, project: Project, form: ProjectForm) -> None:
    old, new = form.labels_before, project.labels_per_comparison
    note_change(
        project,
        request.user,
        gettext_noop("change wanted labels"),
        f"{form.n_following} comparisons",
        before={"labels_wanted": old},
        after={"labels_wanted": new},
    )
    if form.n_following > CHANGED_AT_ONCE:
        change_by_worker(project, old, new)
        messages.info(
            request,
            _("A worker changes %(n)s comparisons now.") % {"n": intcomma(form.n_following)},
        )
        return
    n = change_labels_wanted(project, old, new)
    messages.success(
        request,
        ngettext("%(n)s comparison wants %(new)d now.", "%(n)s comparisons want %(new)d now.", n)
        % {"n": intcomma(n), "new": new},
    )
