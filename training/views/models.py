"""The registry: models with their lineage, tags, files and end."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.db.models import Q
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    StreamingHttpResponse,
)
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_POST, require_safe

from labeling.access import project_for
from labeling.changes import note_event
from labeling.models import Project
from labeling.storage import storage_path
from training.lineage import lineage
from training.merges import check_in_words
from training.ml.gguf_shapes import why_no_gguf
from training.ml.merge_recipe import ABOUT, MERGES, form_of
from training.ml.settings import METHODS
from training.model_files import NUMBERS, bytes_of, folder_of, serving_command, start_export, zipped
from training.model_forms import DescribeForm
from training.models import ModelVersion
from training.registry import describe
from training.views.runs import counts_in_words

PAGE = 50
EXPORTS_SHOWN = 10
FORMS = {
    "whole": _lazy("whole model"),
    "lora": _lazy("LoRA adapter"),
    "adapter": _lazy("adapter"),
    "prompt": _lazy("learned prompt"),
}
MADE = {
    "base": _lazy("brought in"),
    "run": _lazy("trained here"),
    "merge": _lazy("merged here"),
}


@login_required
@require_safe
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """All models of the project, newest first; by words, kind, origin and tag."""
    project = project_for(request.user, slug, to="view")
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "kind", "made", "tag")}
    found = _asked_for(project, asked)
    page = Paginator(found.select_related("base", "run", "merge"), PAGE).get_page(
        request.GET.get("page")
    )
    tags = sorted({tag for row in project.models.values_list("tags", flat=True) for tag in row})
    context = {
        "project": project,
        "active": "training",
        "page": page,
        "rows": [(version, bytes_of(version), _form(version)) for version in page],
        "asked": asked,
        "kinds": ModelVersion.Kind.choices,
        "made": MADE.items(),
        "tags": tags,
        "any_model": project.models.exists(),
        "merges": project.merges.active().prefetch_related("parts__model"),
    }
    return render(request, "training/models.html", context)


def _asked_for(project: Project, asked: dict[str, str]) -> Any:
    found = project.models.order_by("-pk")
    if asked["q"]:
        words = asked["q"]
        found = found.filter(Q(name__icontains=words) | Q(notes__icontains=words))
    if asked["kind"]:
        found = found.filter(kind=asked["kind"])
    if asked["made"] == "run":
        found = found.exclude(run=None)
    elif asked["made"] == "merge":
        found = found.exclude(merge=None)
    elif asked["made"] == "base":
        found = found.filter(run=None, merge=None)
    if asked["tag"]:
        # SQLite cannot look into a list, so the few models of a project are looked through here.
        rows = project.models.values_list("pk", "tags")
        found = found.filter(pk__in=[pk for pk, tags in rows if asked["tag"] in tags])
    return found


def _form(version: ModelVersion) -> str:
    folder = folder_of(version)
    return str(FORMS[form_of(str(folder))]) if folder else _("not on this machine")


@login_required
@require_safe
def model(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """Why does this model exist? Its ancestors, what made it, its files and what one does next."""
    project = project_for(request.user, slug, to="view")
    found = _model(project, name)
    folder = folder_of(found)
    context = {
        "project": project,
        "active": "training",
        "model": found,
        "graph": lineage(found),
        "derived": found.derived.select_related("run"),
        "merged_into": [
            part.merge
            for part in found.merge_parts.select_related("merge__model_version")
            if hasattr(part.merge, "model_version")
        ],
        "form": FORMS[form_of(str(folder))] if folder else "",
        "is_adapter": bool(folder) and form_of(str(folder)) in ("lora", "adapter"),
        "bytes": bytes_of(found),
        "serving": serving_command(found),
        "exports": (exports := list(found.exports.all()[:EXPORTS_SHOWN])),
        "exporting": any(export.is_active for export in exports),
        "numbers": NUMBERS.items(),
        "no_gguf": why_no_gguf(str(folder)) if folder else "",
        "describe": DescribeForm(
            initial={"tags": ", ".join(found.tags), "notes": found.notes},
        ),
    }
    if request.htmx:  # exports on their way poll their own card
        return render(request, "training/model_files.html#exports", context)
    if found.run:
        context["method"] = _(METHODS[found.run.recipe.get("method", "lora")])
        context["counts"] = counts_in_words(found.run.dataset)
        used = found.run.reward_models.select_related("model")
        names = [one.model.name for one in used if not one.holds_out]
        names += [found.run.recipe["judge"]] if found.run.recipe.get("judge") else []
        context["reward_names"] = ", ".join(names)
        raters = found.run.dataset.raters if found.run.dataset else []
        context["people"] = [r for r in raters if r["kind"] == "person"]
        context["judges"] = [r for r in raters if r["kind"] == "judge"]
    if found.merge:
        context["merge_name"] = _(MERGES[found.merge.method])
        context["merge_about"] = _(ABOUT[found.merge.method])
        context["check"] = check_in_words(found.merge)
    return render(request, "training/model.html", context)


def _model(project: Project, name: str) -> ModelVersion:
    return get_object_or_404(
        ModelVersion.objects.select_related(
            "project", "base", "run__dataset", "run__created_by", "merge__created_by"
        ),
        project=project,
        name=name,
    )


@login_required
@require_POST
def change(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """Give a model other tags and notes."""
    project = project_for(request.user, slug, to="lead")
    found = _model(project, name)
    form = DescribeForm(request.POST)
    if form.is_valid():
        describe(found, form.cleaned_data["tags"], form.cleaned_data["notes"], request.user)
        messages.success(request, _("Saved."))
    else:
        for errors in form.errors.values():
            messages.error(request, " ".join(errors))
    return redirect("training:model", slug, name)


@login_required
@require_safe
def download(request: HttpRequest, slug: str, name: str) -> HttpResponseBase:
    """The model's folder as a zip, made while it is sent."""
    project = project_for(request.user, slug, to="lead")
    found = _model(project, name)
    if folder_of(found) is None:
        raise Http404("The files of this model are not on this machine.")
    note_event(request.user, gettext_noop("download"), found.name, project=project)
    response = StreamingHttpResponse(zipped(found), content_type="application/zip")
    response.headers["Content-Disposition"] = f'attachment; filename="{found.name}.zip"'
    # Weights do not get smaller: a proxy, or our own middleware, need not try.
    response.headers["Content-Encoding"] = "identity"
    return response


@login_required
@require_POST
def export(request: HttpRequest, slug: str, name: str) -> HttpResponse:
    """Have a worker write the model as GGUF."""
    project = project_for(request.user, slug, to="lead")
    found = _model(project, name)
    try:
        start_export(project, found, request.POST.get("numbers", ""), request.user)
    except ValueError as error:
        messages.error(request, str(error))
    return redirect("training:model", slug, name)


@login_required
@require_safe
def exported(request: HttpRequest, slug: str, pk: int) -> FileResponse:
    """A GGUF file as it was written."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.model_exports, pk=pk)
    path = storage_path(found.path)
    if not found.path or not path.is_file():
        raise Http404("The file is not there.")
    note_event(request.user, gettext_noop("download"), path.name, project=project)
    return FileResponse(path.open("rb"), as_attachment=True, filename=path.name)


@login_required
@require_POST
def cancel_export(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop writing a file; nothing of it is kept."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.model_exports.select_related("model"), pk=pk)
    found.request_cancel()
    return redirect("training:model", slug, found.model.name)
