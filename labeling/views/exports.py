"""The export page: choose a form, see what comes of it, download it as it is made."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from labeling.access import project_for
from labeling.changes import note_event
from labeling.export import (
    LEFT_OUT,
    ExportProblem,
    ExportReport,
    default_aggregate,
    export_rows,
    refuse_missing_library,
    suffix_of,
)
from labeling.forms.exports import ExportForm
from labeling.models import Comparison, Decision, Preference, Project, Rater

COUNTED_AT_ONCE = 5_000  # answers of a project whose export is counted while one waits
MOST_FOR_DAWID_SKENE = 50_000  # answers that are read and weighed in a web process
CONTENT_TYPES = {
    ".jsonl": "application/jsonl",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}


@login_required
@never_cache
@require_safe
def export(request: HttpRequest, slug: str) -> HttpResponse:
    """Choose what goes out; of a small project the page counts rows and reasons beforehand."""
    project = project_for(request.user, slug, to="view")
    form = ExportForm(request.GET if "format" in request.GET else ExportForm.START)
    answers = Preference.objects.current().filter(comparison__project=project)
    counts = answers.aggregate(
        people=Count("pk", filter=Q(rater__kind=Rater.Kind.PERSON)),
        judges=Count("pk", filter=Q(rater__kind=Rater.Kind.JUDGE)),
    )
    n_answers = counts["people"] + counts["judges"]
    context = {
        "project": project,
        "active": "export",
        "form": form,
        "counts": counts,
        "n_comparisons": project.comparisons.count(),
        "n_sets": project.comparisons.exclude(purpose=Comparison.Purpose.WORK).count(),
        "n_decisions": Decision.objects.filter(
            comparison__project=project, superseded_at=None
        ).count(),
    }
    if form.is_valid():
        chosen = form.cleaned_data
        context["command"] = command_for(project, **chosen)
        context["problem"] = _problem(n_answers, **chosen)
        if n_answers <= COUNTED_AT_ONCE and not context["problem"]:
            report = ExportReport()
            for _block in export_rows(
                project, chosen["format"], chosen["labels"], chosen["aggregate"], report
            ):
                pass
            context["report"] = report
            context["left_out"] = [(LEFT_OUT[why], n) for why, n in report.left_out.most_common()]
    template = "labeling/export.html#preview" if request.htmx else "labeling/export.html"
    return render(request, template, context)


@login_required
@never_cache
@require_safe
def download(request: HttpRequest, slug: str) -> HttpResponse | StreamingHttpResponse:
    """The file, written while it is read: it is never whole in memory."""
    project = project_for(request.user, slug, to="view")
    form = ExportForm(request.GET)
    if not form.is_valid():
        messages.error(request, _("Choose a form, the labels and the rule."))
        return redirect("labeling:export", slug)
    chosen = form.cleaned_data
    n_answers = 0
    if chosen["aggregate"] == "dawid-skene":
        n_answers = Preference.objects.current().filter(comparison__project=project).count()
    if problem := _problem(n_answers, **chosen):
        messages.error(request, problem)
        return redirect("labeling:export", slug)
    suffix = suffix_of(chosen["format"])
    rows = export_rows(project, chosen["format"], chosen["labels"], chosen["aggregate"])
    response = StreamingHttpResponse(rows, content_type=CONTENT_TYPES[suffix])
    rule = chosen["aggregate"] or default_aggregate(chosen["format"])
    name = f"{project.slug}.{chosen['format']}.{chosen['labels']}.{rule}{suffix}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    note_event(request.user, gettext_noop("download"), name, project=project)
    # A proxy (nginx) would gather the whole file before it passes the first byte on.
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _problem(n_answers: int, format: str, labels: str, aggregate: str) -> str:
    """Why the web process does not make this export, in words; empty if it does."""
    try:
        refuse_missing_library(format, aggregate)
    except ExportProblem as problem:
        return str(problem)
    if aggregate == "dawid-skene" and n_answers > MOST_FOR_DAWID_SKENE:
        return _("Weighing so many answers takes long: run the command below where the server is.")
    return ""


def command_for(project: Project, format: str, labels: str, aggregate: str) -> str:
    """The same export as a command."""
    rule = aggregate or default_aggregate(format)
    return (
        f"python manage.py export_preferences --project {project.slug} --format {format} "
        f"--labels {labels} --aggregate {rule} --out {project.slug}{suffix_of(format)}"
    )
