"""The list of projects, a project's overview, its settings and its members."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for, projects_of, rater_of
from labeling.forms import MemberForm, ProjectForm
from labeling.models import Membership
from labeling.progress import done_today, project_progress, raters_at_work

RATERS_SHOWN = 50


@login_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """The projects that the person can open."""
    projects = projects_of(request.user).annotate(n_comparisons=Count("comparisons"))
    return render(request, "labeling/home.html", {"projects": projects})


@login_required
@require_http_methods(["GET", "POST"])
def create(request: HttpRequest) -> HttpResponse:
    """Make a project and become its owner; open to staff."""
    if not request.user.is_staff:
        raise PermissionDenied("Projects are made by staff; ask an administrator.")
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with transaction.atomic():
            project = form.save()
            project.memberships.create(user=request.user, role=Membership.Role.OWNER)
        return redirect("labeling:import", project.slug)
    return render(request, "labeling/project_form.html", {"form": form})


@login_required
@require_safe
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """Guidelines, progress, and (for those who may see it) who did what."""
    project = project_for(request.user, slug)
    context = {"project": project, "active": "overview", "progress": project_progress(project)}
    if "label" in project.may:
        context["n_today"] = done_today(rater_of(request.user, project))
    if "view" in project.may:
        raters = raters_at_work(project)
        context["raters"] = raters[:RATERS_SHOWN]
        context["n_raters_hidden"] = max(0, len(raters) - RATERS_SHOWN)
    if "lead" in project.may:
        context["member_form"] = MemberForm()
        context["members"] = project.memberships.select_related("user").order_by("user__username")
    return render(request, "labeling/overview.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Change a project's name, guidelines and wanted labels."""
    project = project_for(request.user, slug, to="lead")
    form = ProjectForm(request.POST or None, instance=project)
    # Addresses and scripts hold on to it; and the labels wanted were written on every comparison.
    del form.fields["slug"]
    form.fields["labels_per_comparison"].help_text += " Holds for comparisons imported from now on."
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, "Kept.")
        return redirect("labeling:project", project.slug)
    return render(request, "labeling/project_form.html", {"form": form, "project": project})


@login_required
@require_POST
def set_member(request: HttpRequest, slug: str) -> HttpResponse:
    """Give a person a role, or take it; their answers stay. Only an owner changes owners."""
    project = project_for(request.user, slug, to="lead")
    form = MemberForm(request.POST)
    if not form.is_valid():
        for error in form.errors.values():
            messages.error(request, error[0])
        return redirect("labeling:project", slug)
    user, role = form.cleaned_data["user"], form.cleaned_data["role"]
    owners = project.memberships.filter(role=Membership.Role.OWNER)
    was_owner = owners.filter(user=user).exists()
    is_owner = request.user.is_superuser or owners.filter(user=request.user).exists()
    if (was_owner or role == Membership.Role.OWNER) and not is_owner:
        raise PermissionDenied("Only an owner makes or changes owners.")
    is_last_owner = was_owner and not owners.exclude(user=user).exists()
    if is_last_owner and role != Membership.Role.OWNER:
        messages.error(request, "A project keeps at least one owner.")
        return redirect("labeling:project", slug)
    if role == MemberForm.NO_ROLE:
        project.memberships.filter(user=user).delete()
        messages.success(request, f"{user} is no longer a member. Their answers stay.")
        return (
            redirect("labeling:home")
            if user == request.user
            else redirect("labeling:project", slug)
        )
    project.memberships.update_or_create(user=user, defaults={"role": role})
    messages.success(request, f"{user} is now {role} of this project.")
    return redirect("labeling:project", slug)
