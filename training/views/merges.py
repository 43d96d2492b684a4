"""Merges: the form, and a merge on its way."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.models import Project
from training.merges import check_in_words, start_merge
from training.ml.merge_recipe import ABOUT, MERGES, SETTINGS
from training.model_forms import MergeForm
from training.models import Merge


@login_required
@require_http_methods(["GET", "POST"])
def new(request: HttpRequest, slug: str) -> HttpResponse:
    """The form of a merge; htmx asks for the fields of another method."""
    project = project_for(request.user, slug, to="lead")
    asked = request.GET.getlist("model")[:8]
    initial: dict[str, Any] = {f"model_{n}": name for n, name in enumerate(asked, 1)}
    initial["method"] = request.GET.get("method", "fold" if len(asked) < 2 else "linear")
    form = MergeForm(request.POST or None, project=project, initial=initial)
    context = {"project": project, "active": "training", "form": form}
    if request.method == "POST" and request.htmx:
        # Shown with what was typed, and without complaints about what is not typed yet.
        shown = MergeForm(project=project, initial=request.POST.dict())
        return render(request, "training/merge_form.html#fields", context | {"form": shown})
    if request.method == "POST" and "show" not in request.POST and form.is_valid():
        try:
            merge = start_merge(
                project,
                name=form.cleaned_data["name"],
                created_by=request.user,
                **form.cleaned_data["merge"],
            )
        except ValueError as error:  # the models changed since the form was checked
            form.add_error(None, str(error))
        else:
            return redirect("training:merge", slug, merge.pk)
    return render(request, "training/merge_form.html", context)


@login_required
@require_safe
def merge(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far a merge is, its check, and the model that it left."""
    project = project_for(request.user, slug, to="view")
    found = _merge(project, pk)
    context = {
        "project": project,
        "active": "training",
        "merge": found,
        "parts": found.parts.select_related("model"),
        "method": _(MERGES[found.method]),
        "about": _(ABOUT[found.method]),
        "weighted": "weights" in SETTINGS[found.method],
        "model": getattr(found, "model_version", None),
        "check": check_in_words(found),
    }
    template = "training/merge.html#card" if request.htmx else "training/merge.html"
    return render(request, template, context)


def _merge(project: Project, pk: int) -> Merge:
    return get_object_or_404(
        project.merges.select_related("base", "created_by", "model_version"), pk=pk
    )


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a merge; nothing of it is kept."""
    project = project_for(request.user, slug, to="lead")
    _merge(project, pk).request_cancel()
    return redirect("training:merge", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Queue a stopped merge again; it begins anew."""
    project = project_for(request.user, slug, to="lead")
    found = _merge(project, pk)
    if not found.resume():
        messages.warning(
            request,
            _("%(merge)s is %(status)s: there is nothing to do again.")
            % {"merge": str(found).capitalize(), "status": found.get_status_display().lower()},
        )
    return redirect("training:merge", slug, pk)
