"""Pages of datasets: the builder with its preview, a draft on its way, a frozen dataset."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.access import project_for
from labeling.changes import note_event
from labeling.models import Comparison, Project
from labeling.storage import storage_path
from training.dataset_settings import CHOICES, OF_PAIRS, OF_RATINGS, stored_settings
from training.datasets import first_rows, words_of
from training.forms.datasets import DatasetForm
from training.models import DatasetDraft
from training.previews import LENGTHS

SHOWN = 50
ROWS_SHOWN = 5
RATERS_SHOWN = 100
HELD = ("pairs", "human", "ai", "decided", "ties_half", "train", "test", "test_ties", "ties_kept")
HELD += ("singles", "good", "bad", "neutral", "on_scale", "divided", "one_sided")
"""Counts of what the dataset holds; the other counts are of what was left out or moved."""
MOVED = ("moved_to_test", "near_duplicates")
OFF_AT_ZERO = ("least_agreement", "least_strength", "longest_response", "near_duplicates")
SETS = {
    "gold": _lazy("control questions with a known answer"),
    **dict(Comparison.Purpose.choices),
}


@login_required
@require_safe
def overview(request: HttpRequest, slug: str) -> HttpResponse:
    """Frozen datasets, newest first, and drafts that are on their way; those that studies alone
    made when asked for."""
    project = project_for(request.user, slug, to="view")
    of_studies = project.datasets.of_studies_alone()
    asks_studies = request.GET.get("of") == "studies"
    shown = of_studies if asks_studies else project.datasets.listed()
    context = {
        "project": project,
        "active": "training",
        "of_studies": asks_studies,
        "n_of_studies": of_studies.count(),
        "n_shown": shown.count(),
        "most_shown": SHOWN,
        "datasets": shown.order_by("-pk").defer("preview", "raters")[:SHOWN],
        "drafts": project.dataset_drafts.active().filter(freezing=True),
    }
    return render(request, "training/datasets.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def builder(request: HttpRequest, slug: str) -> HttpResponse:
    """The settings of a dataset; a POST has a worker preview or freeze it. htmx gets the preview
    beside the form, which polls itself; without JavaScript it is a page of its own."""
    project = project_for(request.user, slug, to="lead")
    like = project.datasets.filter(sha256=request.GET.get("like", "")).first()
    initial = stored_settings(like.filters).as_json() if like else {}
    initial = {n: ", ".join(v) if isinstance(v, list) else v for n, v in initial.items()}
    form = DatasetForm(request.POST or None, project=project, initial=initial)
    context: dict[str, Any] = {"project": project, "active": "training", "form": form}
    if request.method == "POST" and form.is_valid():
        freezing = "freeze" in request.POST
        made = _start(request, project, form.cleaned_data["settings"].as_json(), freezing)
        if request.htmx and not freezing:
            return render(request, "training/draft.html#card", context | _of_draft(made))
        if request.htmx:
            response = HttpResponse()
            response.headers["HX-Redirect"] = reverse("training:draft", args=[slug, made.pk])
            return response
        return redirect("training:draft", slug, made.pk)
    if request.method == "POST" and request.htmx:
        return render(request, "training/dataset_form.html#refused", context)
    return render(request, "training/dataset_form.html", context)


@login_required
@require_safe
def draft(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """How far a draft is, then its preview; one that became a dataset leads there."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(project.dataset_drafts, pk=pk)
    if found.dataset is not None:
        if not request.htmx:
            return redirect("training:dataset", slug, found.dataset.sha256)
        response = HttpResponse()
        response.headers["HX-Redirect"] = reverse(
            "training:dataset", args=[slug, found.dataset.sha256]
        )
        return response
    context = {"project": project, "active": "training", **_of_draft(found)}
    template = "training/draft.html#card" if request.htmx else "training/draft.html"
    return render(request, template, context)


@login_required
@require_POST
def cancel_draft(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Stop a preview or a freezing; nothing is kept of it."""
    project = project_for(request.user, slug, to="lead")
    get_object_or_404(project.dataset_drafts, pk=pk).request_cancel()
    return redirect("training:draft", slug, pk)


@login_required
@require_POST
def freeze_draft(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Freeze what a draft's settings give now, its preview computed anew on the frozen rows."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.dataset_drafts, pk=pk)
    made = _start(request, project, found.filters, freezing=True)
    return redirect("training:draft", slug, made.pk)


@login_required
@require_safe
def dataset(request: HttpRequest, slug: str, sha256: str) -> HttpResponse:
    """A frozen dataset: what made it, what it holds, its first rows, the runs that used it."""
    project = project_for(request.user, slug, to="view")
    found = get_object_or_404(project.datasets, sha256=sha256)
    path = storage_path(found.path)
    context = {
        "project": project,
        "active": "training",
        "dataset": found,
        "runs": found.runs.select_related("model_version")[:SHOWN],
        "rows": first_rows(found, ROWS_SHOWN),
        "size": path.stat().st_size if path.exists() else None,
        "settings": settings_in_words(found.filters),
        **figures({"counts": found.counts, "raters": found.raters} | found.preview),
    }
    return render(request, "training/dataset.html", context)


@login_required
@require_safe
def download(request: HttpRequest, slug: str, sha256: str) -> FileResponse:
    """The file as it was frozen."""
    project = project_for(request.user, slug, to="lead")
    found = get_object_or_404(project.datasets, sha256=sha256)
    path = storage_path(found.path)
    if not path.is_file():
        raise Http404("The dataset's file is gone from the storage folder.")
    name = f"{project.slug}-{sha256[:12]}.jsonl"
    note_event(request.user, gettext_noop("download"), name, project=project)
    return FileResponse(
        path.open("rb"),
        as_attachment=True,
        filename=name,
        content_type="application/x-ndjson",
    )


def _start(
    request: HttpRequest, project: Project, filters: dict[str, Any], freezing: bool
) -> DatasetDraft:
    """Queue a draft. A preview of the same person that still waits or works is stopped for it."""
    mine = project.dataset_drafts.active().filter(created_by=request.user, freezing=False)
    for earlier in mine:
        earlier.request_cancel()
    made = DatasetDraft.objects.create(
        project=project, filters=filters, freezing=freezing, created_by=request.user
    )
    made.enqueue()
    return made


def _of_draft(found: DatasetDraft) -> dict[str, Any]:
    context: dict[str, Any] = {"draft": found, "settings": settings_in_words(found.filters)}
    if found.result:
        context |= figures(found.result)
    return context


def settings_in_words(filters: dict[str, Any]) -> list[tuple[str, Any]]:
    """(label, value) of every setting of its kind of dataset, in the words of the form."""
    rows = []
    foreign = OF_PAIRS if filters.get("kind") == "ratings" else OF_RATINGS
    for name, value in stored_settings(filters).as_json().items():
        if name in foreign:
            continue
        words: Any = CHOICES[name][value] if name in CHOICES else value
        if isinstance(value, bool):
            words = _("yes") if value else _("no")
        elif isinstance(value, list):
            words = ", ".join(value)
        is_off = words == "" or (name in OFF_AT_ZERO and not value)
        rows.append((DatasetForm.base_fields[name].label, "–" if is_off else words))
    return rows


@dataclass(frozen=True)
class Bar:
    label: str
    n: int
    height: float


def figures(preview: dict[str, Any]) -> dict[str, Any]:
    """A preview for the page: counts in words, histograms as bars."""
    counts = preview["counts"]
    people = [rater for rater in preview["raters"] if rater["kind"] == "person"]
    known = words_of(counts)
    return {
        "preview": preview,
        "of_ratings": "singles" in counts,
        "kto_weights": kto_weights(counts),
        "held": [(words, counts[n]) for n, words in known.items() if n in HELD and counts.get(n)],
        "moved": [(known[name], counts[name]) for name in MOVED if counts.get(name)],
        "left_out": [
            (words, counts[name])
            for name, words in known.items()
            if name not in (*HELD, *MOVED) and counts.get(name)
        ],
        "raters": preview["raters"][:RATERS_SHOWN],
        "n_people": len(people),
        "n_judges": len(preview["raters"]) - len(people),
        "histograms": [
            (words, _bars(preview["lengths"], name))
            for name, words in (
                ("prompt", _("Prompts")),
                ("chosen", _("Chosen responses")),
                ("rejected", _("Rejected responses")),
                ("response", _("Responses")),
            )
            if name in preview["lengths"]
        ]
        if "lengths" in preview
        else [],
        "places": _places(preview.get("places", [])),
        "leaking_sets": [
            row | {"words": SETS.get(row["name"]) or _("test side of %(name)s") % row}
            for row in preview.get("leaks", {}).get("by_set", [])
        ],
    }


def _places(bins: list[int]) -> list[Bar]:
    """The histogram of ratings."""
    names = (_("worst"), "−", _("middle"), "+", _("best"))
    most = max(bins, default=0) or 1
    return [Bar(name, n, n / most) for name, n in zip(names, bins, strict=False)]


def kto_weights(counts: dict[str, int]) -> dict[str, Any]:
    """What KTO's paper advises for so many good and bad responses: w_D · n_D / (w_U · n_U) from
    1 to 4/3, here 1, by raising the weight of the rarer kind. Empty where there are not both.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2.
    """
    good, bad = counts.get("good", 0), counts.get("bad", 0)
    if not good or not bad:
        return {}
    rarer = "kto_undesirable" if bad < good else "kto_desirable"
    ratio = max(good, bad) / min(good, bad)
    return {"setting": rarer, "weight": round(ratio, 2), "good": good, "bad": bad}


def _bars(lengths: dict[str, list[int]], name: str) -> list[Bar]:
    """One of the histograms; all of them end where the longest does."""
    last = max((place for bins in lengths.values() for place, n in enumerate(bins) if n), default=0)
    most = max(lengths[name], default=0) or 1
    return [
        Bar(f"{start}+", n, n / most)
        for start, n in list(zip(LENGTHS, lengths[name], strict=True))[: last + 1]
    ]
