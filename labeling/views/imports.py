"""Upload a file, look at what it holds, import it, read the report."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.forms.imports import ImportForm, UploadForm
from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import RATED_FORMS, UNNAMED_LABELS
from labeling.imports.interchange import Row
from labeling.imports.preview import preview
from labeling.imports.rated import RatedRow
from labeling.imports.uploads import BadUpload, keep_upload, kept_upload, reject_path, too_large
from labeling.models import ImportJob, Project
from labeling.storage import storage_path

JOBS_SHOWN = 20


# The CSRF check reads the whole body to find its token. Who may not upload, or uploads too much,
# must be turned away before that; the check itself comes right after.
@csrf_exempt
@login_required
@require_http_methods(["GET", "POST"])
def upload(request: HttpRequest, slug: str) -> HttpResponse:
    """Choose a file; below, what was imported before."""
    project = project_for(request.user, slug, to="lead")
    # The form around the file needs some bytes too.
    if int(request.META.get("CONTENT_LENGTH") or 0) > settings.PREFLOOP_MAX_UPLOAD_BYTES + 65_536:
        form = UploadForm()
        return _upload_page(request, project, form, error=too_large(), status=413)
    return _upload(request, project)


@csrf_protect
def _upload(request: HttpRequest, project: Project) -> HttpResponse:
    form = UploadForm(request.POST or None, request.FILES or None)
    if request.method != "POST":
        return _upload_page(request, project, form)
    if not form.is_valid():
        return _upload_page(request, project, form, status=422)
    try:
        token = keep_upload(form.cleaned_data["file"], project)
    except BadUpload as problem:
        return _upload_page(request, project, form, error=str(problem), status=422)
    return redirect(f"{reverse('labeling:import_preview', args=[project.slug])}?upload={token}")


def _upload_page(
    request: HttpRequest, project: Project, form: UploadForm, error: str = "", status: int = 200
) -> HttpResponse:
    jobs = project.imports.select_related("created_by").order_by("-pk")[:JOBS_SHOWN]
    context = {
        "project": project,
        "active": "import",
        "form": form,
        "error": error,
        "jobs": jobs,
        "max_mib": settings.PREFLOOP_MAX_UPLOAD_BYTES // 2**20,
    }
    return render(request, "labeling/import.html", context, status=status)


@login_required
@require_http_methods(["GET", "POST"])
def preview_upload(request: HttpRequest, slug: str) -> HttpResponse:
    """The first rows of an upload as the import reads them; a POST starts the import."""
    project = project_for(request.user, slug, to="lead")
    try:
        path, name = kept_upload(request.GET.get("upload", ""), project)
    except BadUpload as problem:
        messages.error(request, str(problem))
        return redirect("labeling:import", slug)
    form = ImportForm(
        request.POST or request.GET.dict() | _missing(request.GET, project), project=project
    )
    is_valid = form.is_valid()
    if request.method == "POST" and is_valid:
        job = ImportJob.objects.create(
            project=project,
            created_by=request.user,
            filename=name[:255],
            path=path,
            format=form.cleaned_data["format"],
            options={
                "rater": form.given_labels.rater,
                "kind": form.given_labels.kind,
                "labels_per_comparison": form.cleaned_data["labels_per_comparison"],
                "known_answers": form.cleaned_data["known_answers"],
                "scale": form.given_labels.scale,
            },
        )
        job.enqueue()
        return redirect("labeling:import_job", slug, job.pk)
    chosen = form.cleaned_data.get("format", "auto")
    shown = preview(storage_path(path), chosen, form.given_labels if is_valid else Labels())
    context = {
        "project": project,
        "active": "import",
        "form": form,
        "filename": name,
        "upload": request.GET["upload"],
        "preview": shown,
        "rows": [_shown_row(line, row) for line, row in shown.rows],
        "names_nobody": shown.form in UNNAMED_LABELS,
        "has_ratings": shown.form in RATED_FORMS,
    }
    status = 422 if request.method == "POST" else 200
    return render(request, "labeling/import_preview.html", context, status=status)


def _missing(given: Any, project: Project) -> dict[str, Any]:
    """What the form starts with, for each field that the address does not name."""
    start = ImportForm.start(project)
    return {name: value for name, value in start.items() if name not in given}


def _shown_row(line: int, row: Row | RatedRow) -> dict[str, Any]:
    if isinstance(row, RatedRow):
        said = [(vote.rater, f"{vote.aspect} {vote.in_words}".strip(), None) for vote in row.votes]
        return {
            "line": line,
            "id": row.external_id,
            "prompt": row.prompt,
            "responses": [{"letter": "", "messages": row.response, "model": row.model}],
            "votes": said[:6],
            "n_more_votes": max(0, len(said) - 6),
            "gold": "",
        }
    sides = [("A", row.response_a, row.model_a), ("B", row.response_b, row.model_b)]
    votes = [(vote.rater, vote.choice, vote.prob_a) for vote in row.votes]
    identity = row.external_id
    if row.response_list is not None:
        responses = row.response_list.responses
        sides = [(str(n), turns, model) for n, (turns, model) in enumerate(responses, 1)]
        votes = [
            (vote.rater, _in_order(vote.ranking.order), None) for vote in row.votes if vote.ranking
        ]
        identity = identity.rpartition("#")[0]  # of the list, not of its first pair
    return {
        "line": line,
        "id": identity,
        "prompt": row.prompt,
        "responses": [
            {"letter": letter, "messages": turns, "model": model}
            for letter, turns, model in sides
            if turns
        ],
        "votes": votes[:6],
        "n_more_votes": max(0, len(votes) - 6),
        "gold": row.gold,
    }


def _in_order(order: list[list[int]]) -> str:
    """2 > 1 = 3: the numbers of the responses as the page shows them, best first."""
    return " > ".join(" = ".join(str(number + 1) for number in tied) for tied in order)


@login_required
@require_safe
def job_page(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far an import is, and its report; htmx asks for the card alone."""
    project = project_for(request.user, slug, to="lead")
    job = _job(project, pk)
    context = {
        "project": project,
        "active": "import",
        "job": job,
        "result": job.result,
        "reasons": sorted(job.result.get("reasons", {}).items(), key=lambda r: -r[1]),
        "has_rejects": bool(job.result.get("reject_file")) and reject_path(job).is_file(),
        "can_resume": job.can_resume and storage_path(job.path).is_file(),
    }
    template = "labeling/import_job.html#card" if request.htmx else "labeling/import_job.html"
    return render(request, template, context)


@login_required
@require_POST
def cancel(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Ask an import to stop; what it has written stays."""
    project = project_for(request.user, slug, to="lead")
    _job(project, pk).request_cancel()
    return redirect("labeling:import_job", slug, pk)


@login_required
@require_POST
def resume(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Run a stopped import again: it adds what is missing."""
    project = project_for(request.user, slug, to="lead")
    _job(project, pk).resume()
    return redirect("labeling:import_job", slug, pk)


@login_required
@require_safe
def rejects(request: HttpRequest, slug: str, pk: int) -> FileResponse:
    """The reject file of an import, to mend and send again."""
    project = project_for(request.user, slug, to="lead")
    job = _job(project, pk)
    path = reject_path(job)
    if not path.is_file():
        raise Http404("This import has no reject file.")
    return FileResponse(
        path.open("rb"),
        as_attachment=True,
        filename=f"{job.filename}.rejects.jsonl",
        content_type="application/octet-stream",
    )


def _job(project: Project, pk: int) -> ImportJob:
    job = project.imports.filter(pk=pk).first()
    if job is None:
        raise Http404("No such import in this project.")
    return job
