"""The end of a model or a run: what would go with it, and the confirmation."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from labeling.access import project_for
from labeling.models import Project
from training.registry import (
    Dependents,
    StillInUse,
    delete_model,
    delete_run,
    what_depends,
    what_depends_on_run,
)


@login_required
@require_http_methods(["GET", "POST"])
def model(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """What would go with a model; a POST that names all of it deletes it."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.models.select_related("project", "run", "merge"), name=name)
    if request.method == "POST":
        try:
            gone = delete_model(found, request.user, **_agreed(request))
        except StillInUse as error:
            messages.error(request, _sentence(error))
            return redirect("training:delete_model", slug, name)
        messages.success(
            request,
            _("Deleted: %(names)s.") % {"names": ", ".join(m.name for m in gone.models)},
        )
        return redirect("training:models", slug)
    back = reverse("training:model", args=[slug, name])
    return _asked(request, project, found.name, back, what_depends(found))


@login_required
@require_http_methods(["GET", "POST"])
def run(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """What would go with a run; a POST that names all of it deletes it."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.runs.select_related("project"), pk=pk)
    if request.method == "POST":
        name = str(found)
        try:
            delete_run(found, request.user, **_agreed(request))
        except StillInUse as error:
            messages.error(request, _sentence(error))
            return redirect("training:delete_run", slug, pk)
        messages.success(request, _("Deleted: %(names)s.") % {"names": name})
        return redirect("training:list", slug)
    back = reverse("training:run", args=[slug, pk])
    return _asked(request, project, str(found), back, what_depends_on_run(found))


def _asked(
    request: HttpRequest, project: Project, name: str, back: str, depends: Dependents
) -> HttpResponse:
    own_judges = [rater for rater in depends.judges if rater.project_id == project.pk]
    context = {
        "project": project,
        "active": "training",
        "name": name,
        "back": back,
        "depends": depends,
        "judges": own_judges,
        "n_other_judges": len(depends.judges) - len(own_judges),
    }
    return render(request, "training/delete_model.html", context)


def _agreed(request: HttpRequest) -> dict[str, set[int]]:
    """What the list showed to whoever confirmed, as delete_model and delete_run take it."""
    given = {"agreed": "agreed", "agreed_judges": "agreed_judge"}
    return {
        argument: {int(key) for key in request.POST.getlist(name) if key.isdecimal()}
        for argument, name in given.items()
    }


def _sentence(error: StillInUse) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
