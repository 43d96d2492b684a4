"""A rater's own answers: to look back on, and to change."""

from statistics import median
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Exists, OuterRef, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from labeling.access import project_for, rater_of
from labeling.answering import revise_preference, revise_ranking
from labeling.assignment import response_name
from labeling.forms.answers import AnswerForm, RankingForm
from labeling.models import (
    Assignment,
    Comparison,
    Preference,
    Project,
    Ranking,
    Rater,
    Response,
)
from labeling.places import NotYours
from labeling.progress import answered_by, done_today, n_answers
from labeling.scales import in_words
from labeling.views.compare import earlier_answer, make_card
from labeling.views.rank import RankCard, order_in_words, ranked

PER_PAGE = 50
N_SKIPPED = 50
N_TIMED = 200
"""The median time is taken over this many of the newest answers."""


@login_required
@never_cache
@require_GET
def answers(request: HttpRequest, slug: str) -> HttpResponse:
    """The rater's answers, newest first, and what they skipped."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    rows = _each_once(_own(rater).current()).select_related("comparison__prompt", "ranking")
    before = request.GET.get("before", "")
    last = _own(rater).filter(pk=before).first() if _is_number(before) else None
    if last is not None:
        # `created_at` alone first: it is what the index is ordered by.
        rows = rows.filter(created_at__lte=last.created_at).filter(
            Q(created_at__lt=last.created_at) | Q(pk__lt=last.pk)
        )
    page = list(rows.order_by("-created_at", "-pk")[: PER_PAGE + 1])
    context: dict[str, Any] = {
        "project": project,
        "active": "answers",
        "rows": [(row, _in_words(row)) for row in page[:PER_PAGE]],
        "next": page[PER_PAGE - 1].pk if len(page) > PER_PAGE else None,
        "is_first": last is None,
    }
    if last is None:
        context |= {
            "n_all": n_answers(answered_by(rater)),
            "n_today": done_today(rater),
            "median": _median_seconds(rater),
            "skipped": rater.assignments.filter(state=Assignment.State.SKIPPED)
            .select_related("comparison__prompt")
            .order_by("-closed_at")[:N_SKIPPED],
        }
    return render(request, "labeling/answers.html", context)


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def answer(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One answer with its pair; a POST changes it, and what it was is kept."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    preference = get_object_or_404(_own(rater), pk=pk)
    if preference.ranking_id is not None:
        return redirect("labeling:own_ranking", project.slug, preference.ranking_id)
    if request.method == "POST":
        return _revise(request, project, rater, preference)
    texts = "comparison__prompt", "comparison__response_a", "comparison__response_b"
    assignment = get_object_or_404(
        rater.assignments.select_related(*texts),
        comparison=preference.comparison_id,
        repeats=None,
    )
    versions = _own(rater).filter(comparison=preference.comparison_id).exclude(pk=pk)
    left = preference.shown_first
    context = {
        "project": project,
        "active": "answers",
        "preference": preference,
        "words": in_words(preference.choice, preference.strength, left),
        "card": make_card(project, assignment, earlier_answer(preference, left)),
        "why_fixed": _why_fixed(preference, assignment),
        "versions": [
            (version, in_words(version.choice, version.strength, left))
            for version in versions.order_by("-pk")
        ],
    }
    return render(request, "labeling/answer.html", context)


def _revise(
    request: HttpRequest, project: Project, rater: Rater, preference: Preference
) -> HttpResponse:
    form = AnswerForm(request.POST, project=project)
    if not form.is_valid():
        messages.error(request, _("That was no valid answer; nothing was changed."))
        return redirect("labeling:answer", project.slug, preference.pk)
    try:
        revise_preference(rater, preference, **form.judgement(left=preference.shown_first))
    except NotYours as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _("Changed. What you answered before is kept in its history."))
    return redirect("labeling:answers", project.slug)


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def ranking(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One order of several responses; a POST changes it, and what it was is kept."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    order = get_object_or_404(rater.rankings.select_related("response_set__prompt"), pk=pk)
    if request.method == "POST":
        return _revise_ranking(request, project, rater, order)
    responses = Response.objects.in_bulk([pk for tied in order.order for pk in tied])
    versions = rater.rankings.filter(response_set=order.response_set_id).exclude(pk=pk)
    context = {
        "project": project,
        "active": "answers",
        "ranking": order,
        "words": order_in_words(order),
        "rank": RankCard(ranked(rater.pk, responses, order.order), None),
        "versions": [(version, order_in_words(version)) for version in versions.order_by("-pk")],
    }
    return render(request, "labeling/own_ranking.html", context)


def _revise_ranking(
    request: HttpRequest, project: Project, rater: Rater, ranking: Ranking
) -> HttpResponse:
    ids = [pk for tied in ranking.order for pk in tied]
    form = RankingForm(request.POST, responses={response_name(rater.pk, pk): pk for pk in ids})
    if not form.is_valid():
        messages.error(request, _("Give each response a place; nothing was changed."))
        return redirect("labeling:own_ranking", project.slug, ranking.pk)
    said = form.cleaned_data
    try:
        revise_ranking(rater, ranking, said["order"], rationale=said["rationale"])
    except NotYours as error:
        messages.error(request, str(error))
        return redirect("labeling:own_ranking", project.slug, ranking.pk)
    messages.success(request, _("Changed. What you answered before is kept in its history."))
    return redirect("labeling:answers", project.slug)


def _in_words(preference: Preference) -> str:
    if preference.ranking is not None:
        return order_in_words(preference.ranking)
    return in_words(preference.choice, preference.strength, preference.shown_first)


def _each_once(answers: Any) -> Any:
    """Of the answers that follow from one order, the first alone."""
    of_same = answers.filter(ranking=OuterRef("ranking"), pk__lt=OuterRef("pk"))
    return answers.filter(Q(ranking=None) | ~Exists(of_same))


def _own(rater: Rater) -> Any:
    """Answers that the rater gave to what they were shown; implied ones have no sides."""
    return rater.preferences.exclude(shown_first="")


def _why_fixed(preference: Preference, assignment: Assignment) -> str:
    """Why this answer cannot be changed here, or nothing."""
    purposes = Comparison.Purpose.TRAINING, Comparison.Purpose.QUALIFICATION
    if preference.superseded_at is not None:
        return _("You have changed this answer since; it is kept as history.")
    if assignment.stream in purposes:
        return _("Answers of the training and the qualification stay as they are.")
    return ""


def _median_seconds(rater: Rater) -> float | None:
    newest = _own(rater).current().exclude(seconds=None).order_by("-created_at")
    seconds = list(newest.values_list("seconds", flat=True)[:N_TIMED])
    return median(seconds) if seconds else None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 19
