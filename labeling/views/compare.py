"""The labeling page: one comparison at a time, and the answer that brings the next."""

from dataclasses import dataclass

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labeling.access import project_for, rater_of
from labeling.assignment import (
    NotYours,
    next_comparison,
    record_preference,
    skip_comparison,
    undo_last,
    why_empty,
)
from labeling.forms import STRENGTHS, AnswerForm, SkipForm
from labeling.models import Assignment, Project, Rater, Response
from labeling.progress import done_today, project_progress


@dataclass(frozen=True)
class AnswerButton:
    value: str
    key: str
    label: str
    degree: str
    arrow: str


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def compare(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the next comparison; a POST keeps an answer first. htmx gets the card alone."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    if request.method == "GET":
        return _card(request, project, rater)
    form = AnswerForm(request.POST, project=project)
    if not form.is_valid():
        return _refused(request, project, rater, "That was no valid answer; nothing was kept.")
    answer = form.cleaned_data
    held = rater.assignments.filter(comparison=answer["comparison"]).first()
    seconds = answer["seconds"]
    if seconds is None and held is not None:  # without JavaScript: time since it was given out
        seconds = (timezone.now() - held.leased_at).total_seconds()
    try:
        record_preference(
            rater,
            answer["comparison"],
            answer["choice"],
            strength=answer["strength"],
            rationale=answer["rationale"].strip(),
            seconds=seconds,
        )
    except NotYours as error:
        return _refused(request, project, rater, f"{error} Your answer was not kept.")
    return _next(request, project, rater, said="Kept.")


@login_required
@require_POST
def skip(request: HttpRequest, slug: str) -> HttpResponse:
    """Pass a comparison on to somebody else."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    form = SkipForm(request.POST, project=project)
    if not form.is_valid():
        why = "There was nothing to skip."
        if "rationale" in form.errors:
            why = f"{form.errors['rationale'][0]} It was not skipped."
        return _refused(request, project, rater, why)
    try:
        skip_comparison(
            rater, form.cleaned_data["comparison"], form.cleaned_data["rationale"].strip()
        )
    except NotYours as error:
        return _refused(request, project, rater, str(error))
    return _next(request, project, rater, said="Skipped.")


@login_required
@require_POST
def undo(request: HttpRequest, slug: str) -> HttpResponse:
    """Take the last answer or skip back and show its comparison again."""
    project = project_for(request.user, slug, to="label")
    rater = rater_of(request.user, project)
    try:
        if undo_last(rater) is None:
            return _refused(request, project, rater, "There is no answer of yours to take back.")
    except NotYours as error:
        return _refused(request, project, rater, str(error))
    return _next(request, project, rater, said="Taken back: answer again.")


def answer_buttons(left: str, right: str) -> list[AnswerButton]:
    """The seven steps from "left is much better" to "right is much better", keys 1 to 7.

    `left` and `right` are the letters of the responses shown there: the value names the response.
    """
    from_much = sorted(STRENGTHS.items(), reverse=True)
    return [
        *(
            AnswerButton(
                f"{left}-{n}", str(4 - n), f"Left response is {degree} better", degree, "←"
            )
            for n, degree in from_much
        ),
        AnswerButton("tie", "4", "Both are equally good", "equal", ""),
        *(
            AnswerButton(
                f"{right}-{n}", str(4 + n), f"Right response is {degree} better", degree, "→"
            )
            for n, degree in reversed(from_much)
        ),
    ]


def _next(request: HttpRequest, project: Project, rater: Rater, said: str) -> HttpResponse:
    if request.htmx:
        return _card(request, project, rater, said=said)
    return redirect("labeling:compare", project.slug)


def _refused(request: HttpRequest, project: Project, rater: Rater, why: str) -> HttpResponse:
    if request.htmx:
        return _card(request, project, rater, refused=why, status=409)
    messages.error(request, why)
    return redirect("labeling:compare", project.slug)


def _card(
    request: HttpRequest,
    project: Project,
    rater: Rater,
    *,
    said: str = "",
    refused: str = "",
    status: int = 200,
) -> HttpResponse:
    assignment = next_comparison(rater)
    context = {
        "project": project,
        "active": "compare",
        "assignment": assignment,
        "progress": project_progress(project),
        "n_today": done_today(rater),
        "said": said,
        "refused": refused,
    }
    if assignment is None:
        context["empty"] = why_empty(rater)
    else:
        left, right = _letters(assignment)
        context |= {
            "sides": [_response(assignment, left), _response(assignment, right)],
            "answers": answer_buttons(left, right),
            "earlier": _earlier_answer(assignment, left),
            "guidelines": project.guidelines,
        }
    template = "labeling/compare.html#card" if request.htmx else "labeling/compare.html"
    return render(request, template, context, status=status)


def _letters(assignment: Assignment) -> tuple[str, str]:
    return ("a", "b") if assignment.shown_first == "a" else ("b", "a")


def _response(assignment: Assignment, letter: str) -> Response:
    comparison = assignment.comparison
    return comparison.response_a if letter == "a" else comparison.response_b


def _earlier_answer(assignment: Assignment, left: str) -> dict[str, str] | None:
    """The answer that was just taken back, in the words of the page, so that it can be mended."""
    earlier = (
        assignment.rater.preferences.filter(comparison=assignment.comparison_id)
        .exclude(superseded_at=None)
        .order_by("-superseded_at")
        .first()
    )
    if earlier is None:
        return None
    value = f"{earlier.choice}-{earlier.strength}" if earlier.strength else earlier.choice
    side = {"tie": "equal", "both_bad": "both bad"}.get(
        earlier.choice, "left" if earlier.choice == left else "right"
    )
    strength = STRENGTHS.get(earlier.strength or 0, "")
    words = f"{side}, {strength} better" if strength else side
    return {"value": value, "words": words, "rationale": earlier.rationale}
