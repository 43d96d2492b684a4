"""The labeling page: the pair in hand, two more ahead, and the answer that brings the next."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.access import project_and_rater
from labeling.answering import answer, answer_and_go_on, skip_comparison, undo_last
from labeling.assignment import in_hand, why_empty, work_for
from labeling.differences import TooLong, word_difference
from labeling.forms.answers import AnswerForm, SkipForm
from labeling.models import (
    Assignment,
    Flag,
    Preference,
    Project,
    Rater,
    RepeatAnswer,
    Response,
    message_text,
)
from labeling.places import NotYours, release
from labeling.progress import ENTRANCE, done_today
from labeling.scales import (
    PLACES,
    Button,
    answer_value,
    buttons,
    by_place,
    has_both_bad,
    in_words,
)

AHEAD = 2
"""Pairs that a page with JavaScript reserves and loads while the rater reads."""


@dataclass(frozen=True)
class Side:
    name: str  # "left" or "right"
    response: Response


@dataclass(frozen=True)
class Card:
    """One pair as this rater sees it, with everything they may answer."""

    assignment: Assignment
    sides: list[Side]
    buttons: list[Button]
    both_bad: bool
    aspects: list[dict[str, Any]]
    tags: list[tuple[int, str, bool]]  # key, tag, whether it was chosen
    earlier: dict[str, Any] | None  # the answer that was taken back


@dataclass(frozen=True)
class Feedback:
    """What a rater in training is told after an answer."""

    right: bool
    known: str
    explanation: str


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def compare(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the pair in hand; a POST keeps an answer first. The page's script gets cards alone."""
    if request.method == "GET":
        project, rater = project_and_rater(request.user, slug)
        return _cards(request, project, rater) if request.htmx else _page(request, project, rater)
    held = None
    try:
        with transaction.atomic():
            project, rater = project_and_rater(request.user, slug, lock=True)
            form = AnswerForm(request.POST, project=project)
            if not form.is_valid():
                raise NotYours(_not_valid(form))
            given = form.cleaned_data
            hand = in_hand(rater, given["assignment"])
            assignment = next((a for a in hand if a.pk == given["assignment"]), None)
            if assignment is None:
                raise NotYours(_("This comparison is not yours to answer."))
            said = form.judgement(left=assignment.shown_first)
            choice = said.pop("choice")
            said |= {"better": given["better"], "answer_key": given["answer_key"]}
            said["seconds"] = given["seconds"]
            if given["seconds"] is None:  # without JavaScript: time since it was given out
                said["seconds"] = (timezone.now() - assignment.leased_at).total_seconds()
            # An answer whose first response was lost must not add one to the page's count.
            sent_again = assignment.state == Assignment.State.ANSWERED
            if request.htmx and not sent_again:
                have = _have(request)
                held = answer_and_go_on(assignment, hand, choice, n=1 + AHEAD, have=have, **said)
            else:
                answer(assignment, choice, **said)
    except NotYours as error:
        # A rater who was made with this request is gone with it.
        return refuse(request, *project_and_rater(request.user, slug), str(error))
    feedback = None
    if assignment.stream == Assignment.Stream.TRAINING and project.training_feedback:
        feedback = _feedback(assignment, choice)
    return go_on(request, project, rater, after=assignment, feedback=feedback, held=held)


@login_required
@require_POST
def skip(request: HttpRequest, slug: str) -> HttpResponse:
    """Pass a comparison on to somebody else, or flag it."""
    project, rater = project_and_rater(request.user, slug)
    form = SkipForm(request.POST)
    if not form.is_valid():
        return refuse(request, project, rater, _not_valid(form))
    named = form.cleaned_data
    assignment = rater.assignments.filter(pk=named["assignment"]).first()
    if assignment is None:
        return refuse(request, project, rater, _("There was nothing to skip."))
    try:
        skip_comparison(
            rater,
            assignment.comparison,
            named["reason"] or named["other_reason"],
            flag=named["flag"],
            note=named["note"] if named["flag"] else "",
            assignment_id=assignment.pk,
            answer_key=named["answer_key"],
        )
    except NotYours as error:
        return refuse(request, project, rater, str(error))
    return go_on(request, project, rater, after=assignment)


@login_required
@require_POST
def undo(request: HttpRequest, slug: str) -> HttpResponse:
    """Take the last answer or skip back and show its comparison again.

    `assignment`, if given, is the one to come back: a request sent twice takes back one answer.
    """
    project, rater = project_and_rater(request.user, slug)
    repeat = RepeatAnswer.objects.filter(assignment__rater=rater).order_by("-pk").first()
    try:
        back = _taken_back_before(rater, request.POST.get("assignment", "")) or undo_last(rater)
    except NotYours as error:
        return refuse(request, project, rater, str(error))
    if back is None:
        why = _("There is no answer of yours that can be taken back.")
        return refuse(request, project, rater, why)
    if not request.htmx:
        return redirect("labeling:compare", project.slug)
    earlier = _earlier_answers(rater, [back])
    if repeat is not None and repeat.assignment_id == back.pk:
        # Gone from the database, but a pair without its "you took back" would be known as a repeat.
        earlier = {back.pk: earlier_answer(repeat, back.shown_first)}
    return _cards(request, project, rater, back=back, earlier=earlier)


@login_required
@require_POST
def release_ahead(request: HttpRequest, slug: str) -> HttpResponse:
    """Give back pairs that were loaded ahead and not read, when their page is left.

    The browser sends this after a newer page may have been given the same pairs (a reload, a
    second tab): then they are that page's, and stay.
    """
    project, rater = project_and_rater(request.user, slug)
    if request.POST.get("page") == request.session.get(_page_key(project)):
        release(rater, _numbers(request.POST.get("assignments", "")))
    return HttpResponse(status=204)


@login_required
@never_cache
@require_GET
def difference(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Both responses of a pair with the words that only one of them has."""
    project, rater = project_and_rater(request.user, slug)
    texts = "comparison__response_a", "comparison__response_b"
    assignment = get_object_or_404(rater.assignments.select_related(*texts), pk=pk)
    context: dict[str, Any] = {"project": project, "active": "compare"}
    left, right = (message_text(side.response.messages) for side in sides(assignment))
    try:
        context["columns"] = word_difference(left, right)
    except TooLong as error:
        context["too_long"] = str(error)
    template = "labeling/difference.html"
    return render(request, f"{template}#columns" if request.htmx else template, context)


def go_on(
    request: HttpRequest,
    project: Project,
    rater: Rater,
    *,
    after: Assignment,
    feedback: Feedback | None = None,
    held: list[Assignment] | None = None,
) -> HttpResponse:
    """The response to what was kept: the cards that the page has not got yet."""
    if request.htmx:
        return _cards(request, project, rater, after=after, feedback=feedback, held=held)
    if feedback is not None:
        verdict = _("Right.") if feedback.right else _("Not right.")
        known = _("The known answer: %(answer)s.") % {"answer": feedback.known}
        messages.info(request, f"{verdict} {known} {feedback.explanation}".strip())
    return redirect("labeling:compare", project.slug)


def refuse(request: HttpRequest, project: Project, rater: Rater, why: str) -> HttpResponse:
    """The response to what was not kept, with the reason."""
    if request.htmx:
        return _cards(request, project, rater, refused=why, status=409)
    messages.error(request, _("%(why)s Nothing was kept.") % {"why": why})
    return redirect("labeling:compare", project.slug)


def sides(assignment: Assignment) -> list[Side]:
    """The responses from left to right."""
    comparison = assignment.comparison
    responses = [comparison.response_a, comparison.response_b]
    if assignment.shown_first == "b":
        responses.reverse()
    return [Side(name, response) for name, response in zip(PLACES, responses, strict=True)]


def make_card(
    project: Project, assignment: Assignment, earlier: dict[str, Any] | None = None
) -> Card:
    """The pair of an assignment; with `earlier`, what was answered before is filled in."""
    was = earlier or {"aspects": {}, "tags": []}
    picks = [("1", "left", _("left")), ("2", "tie", _("equal")), ("3", "right", _("right"))]
    return Card(
        assignment=assignment,
        sides=sides(assignment),
        buttons=buttons(project.scale),
        both_bad=has_both_bad(project.scale),
        aspects=[
            a | {"picks": picks, "picked": was["aspects"].get(a["name"])} for a in project.aspects
        ],
        tags=[(key, tag, tag in was["tags"]) for key, tag in enumerate(project.tags, start=1)],
        earlier=earlier,
    )


def _ways_out() -> dict[str, Any]:
    """What a rater may do with a pair besides answering it: (key, value, words)."""
    return {
        "skip_reasons": [
            (1, "cannot judge", _("I cannot judge this")),
            (2, "not my field", _("Not my field")),
            (3, "too long", _("Too long")),
        ],
        "flags": [
            (1, Flag.Kind.UNSAFE.value, _("Unsafe")),
            (2, Flag.Kind.PRIVATE.value, _("Private data")),
            (3, Flag.Kind.BROKEN.value, _("Broken text")),
            (4, Flag.Kind.LANGUAGE.value, _("Other language")),
        ],
    }


def _page(request: HttpRequest, project: Project, rater: Rater) -> HttpResponse:
    """The whole page with the pair in hand; its script asks for those ahead."""
    held = work_for(rater, 1)[:1]
    earlier = _earlier_answers(rater, held)
    page = request.session[_page_key(project)] = secrets.token_urlsafe(8)
    context = {
        "project": project,
        "active": "compare",
        "rater": rater,
        "page": page,
        "held": held,
        "cards": [make_card(project, a, earlier.get(a.pk)) for a in held],
        "n_today": done_today(rater),
        "empty": None if held else _empty(rater),
        **_ways_out(),
    }
    return render(request, "labeling/compare.html", context)


def _cards(
    request: HttpRequest,
    project: Project,
    rater: Rater,
    *,
    after: Assignment | None = None,
    back: Assignment | None = None,
    earlier: dict[int, dict[str, Any]] | None = None,
    feedback: Feedback | None = None,
    held: list[Assignment] | None = None,
    refused: str = "",
    status: int = 200,
) -> HttpResponse:
    """The cards that the page has not got, and what it is to say."""
    have = _have(request)
    # Of work the page adds one to the day's count by itself.
    is_one_more = held is not None and after is not None and after.stream not in ENTRANCE
    if held is None:
        held = work_for(rater, 1 + AHEAD, have)
    missing = [a for a in held if a.pk not in have]
    earlier = earlier or {}
    context = {
        "project": project,
        "held": held,
        "cards": [make_card(project, a, earlier.get(a.pk)) for a in missing],
        "is_one_more": is_one_more,
        "n_today": None if is_one_more else done_today(rater),
        "empty": None if held else _empty(rater),
        "back": back,
        "feedback": feedback,
        "graded": _graded(rater, after),
        "refused": refused,
        **_ways_out(),
    }
    return render(request, "labeling/compare.html#cards", context, status=status)


def _have(request: HttpRequest) -> set[int]:
    """The assignments that the page shows or keeps ready."""
    return set(_numbers(request.POST.get("have") or request.GET.get("have", "")))


def _earlier_answers(rater: Rater, assignments: list[Assignment]) -> dict[int, dict[str, Any]]:
    """Answers that were taken back, in the words of the page, so that they can be mended.

    Of repeats nothing: what was once answered to the pair itself would give them away.
    """
    of = {a.comparison_id: a for a in assignments if a.repeats_id is None}
    withdrawn = rater.preferences.filter(comparison__in=of).exclude(superseded_at=None)
    return {
        of[preference.comparison_id].pk: earlier_answer(
            preference, of[preference.comparison_id].shown_first
        )
        for preference in withdrawn.order_by("superseded_at")  # the last one stands
    }


def earlier_answer(kept: Preference | RepeatAnswer, left: str) -> dict[str, Any]:
    """A kept answer as the vote form shows it; `left` is the letter of the response there."""
    return {
        "value": answer_value(kept.choice, kept.strength, left),
        "words": in_words(kept.choice, kept.strength, left),
        "rationale": kept.rationale,
        "tags": kept.tags,
        "aspects": {name: by_place(choice, left) for name, choice in kept.aspects.items()},
    }


def _taken_back_before(rater: Rater, pk: str) -> Assignment | None:
    if not pk.isdecimal():
        return None
    return rater.assignments.filter(pk=int(pk), state=Assignment.State.LEASED).first()


def _feedback(assignment: Assignment, choice: str) -> Feedback:
    comparison = assignment.comparison
    return Feedback(
        right=choice == comparison.gold,
        known=in_words(comparison.gold, None, assignment.shown_first),
        explanation=str(comparison.metadata.get("explanation") or ""),
    )


def _graded(rater: Rater, after: Assignment | None) -> str:
    """ "passed" or "failed" once, with the response to the last pair of the qualification."""
    if after is None or after.stream != Assignment.Stream.QUALIFICATION:
        return ""
    rater.refresh_from_db(fields=["qualified_at", "disqualified_at"])
    if rater.disqualified_at is not None:
        return "failed"
    return "passed" if rater.qualified_at is not None else ""


def _empty(rater: Rater) -> dict[str, Any]:
    midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    return {"why": why_empty(rater), "tomorrow": midnight + timedelta(days=1)}


def _not_valid(form: Any) -> str:
    """The first thing that is wrong, in words."""
    if "answer" in form.errors or "assignment" in form.errors:
        return _("That was no answer that this project knows.")
    return next(str(error) for errors in form.errors.values() for error in errors)


def _numbers(text: str) -> Iterable[int]:
    return [int(part) for part in text.split(",")[:50] if part.isdecimal() and len(part) < 19]


def _page_key(project: Project) -> str:
    return f"compare-page-{project.pk}"
