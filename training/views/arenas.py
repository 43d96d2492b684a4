"""Blind arenas: which models meet, and how far people are; who wins stands in the leaderboard."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from training.arenas import progress_of, start_arena
from training.models import Arena
from training.playground import writers
from training.round_forms import ArenaForm

SHOWN = 20


@login_required
@require_http_methods(["GET", "POST"])
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """The form and the arenas so far; a POST begins one."""
    project = project_for(request.user, slug, to="lead" if request.method == "POST" else "view")
    asked = request.GET.getlist("model")[:12] or writers(project)[:2]
    form = ArenaForm(request.POST or None, project=project, initial={"models": asked})
    if request.method == "POST" and form.is_valid():
        try:
            arena = start_arena(project, form.cleaned_data["settings"], request.user)
        except ValueError as error:
            form.add_error(None, str(error))
        else:
            return redirect("training:arena", slug, arena.pk)
    context = {
        "project": project,
        "active": "training",
        "form": form,
        "arenas": project.arenas.select_related("created_by", "round")[:SHOWN],
        "progress": progress_of(project),
    }
    return render(request, "training/arenas.html", context)


@login_required
@require_safe
def arena(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far an arena is, and what it gave to people."""
    project = project_for(request.user, slug, to="view")
    context = {"project": project, "active": "training", "arena": _arena(project, pk)}
    template = "training/arena.html#card" if request.htmx else "training/arena.html"
    return render(request, template, context)


def _arena(project: Project, pk: int) -> Arena:
    found: Arena = get_object_or_404(
        project.arenas.select_related("project", "created_by", "round"), pk=pk
    )
    return found


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop an arena; what it has sampled is kept."""
    project = project_for(request.user, slug, to="lead")
    _arena(project, pk).request_cancel()
    return redirect("training:arena", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped arena again; it goes on with the next prompts."""
    project = project_for(request.user, slug, to="lead")
    if not _arena(project, pk).resume():
        messages.warning(request, _("This arena is not stopped: there is nothing to resume."))
    return redirect("training:arena", slug, pk)
