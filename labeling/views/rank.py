"""Ranking K responses at once: the card of a response set, and keeping the order."""

from dataclasses import dataclass

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import project_and_rater
from labeling.answering import record_ranking, skip_set
from labeling.assignment import ranking_places, response_name, responses_in_hand, set_assignments
from labeling.forms.answers import RankingForm, SkipForm
from labeling.models import Assignment, Ranking, Rater, Response
from labeling.places import NotYours
from labeling.views.compare import go_on, refuse

LETTERS = "ABCDEFGHI"


@dataclass(frozen=True)
class RankedResponse:
    letter: str  # what people call it on the page, given by its place there
    name: str  # what the form calls it
    response: Response
    place: int | None  # in the order that was taken back


@dataclass(frozen=True)
class RankCard:
    """The responses of a set as this rater sees them."""

    responses: list[RankedResponse]
    taken_back: Ranking | None

    @property
    def places(self) -> range:
        return range(1, len(self.responses) + 1)


@login_required
@require_POST
def rank(request: HttpRequest, slug: str) -> HttpResponse:
    """Keep a rater's order of the responses in hand; the response brings what comes next."""
    project, rater = project_and_rater(request.user, slug)
    assignment = _of_a_set(rater, request.POST.get("assignment", ""))
    if assignment is None:
        return refuse(request, project, rater, _("This ranking is not yours to give."))
    form = RankingForm(request.POST, responses=responses_in_hand(assignment))
    if not form.is_valid():
        return refuse(request, project, rater, _("Give each response a place."))
    answer = form.cleaned_data
    seconds = answer["seconds"]
    if seconds is None:  # without JavaScript: time since it was given out
        seconds = (timezone.now() - assignment.leased_at).total_seconds()
    try:
        record_ranking(
            rater,
            assignment.comparison.response_set,
            answer["order"],
            rationale=answer["rationale"],
            seconds=seconds,
            answer_key=answer["answer_key"],
        )
    except NotYours as error:
        return refuse(request, project, rater, str(error))
    return go_on(request, project, rater, after=assignment)


@login_required
@require_POST
def skip(request: HttpRequest, slug: str) -> HttpResponse:
    """Pass a whole response set on to somebody else, or flag it."""
    project, rater = project_and_rater(request.user, slug)
    form = SkipForm(request.POST)
    assignment = _of_a_set(rater, request.POST.get("assignment", ""))
    if assignment is None or not form.is_valid():
        return refuse(request, project, rater, _("There was nothing to skip."))
    named = form.cleaned_data
    try:
        skip_set(
            rater,
            assignment.comparison.response_set,
            named["reason"] or named["other_reason"],
            flag=named["flag"],
            note=named["note"] if named["flag"] else "",
            answer_key=named["answer_key"],
        )
    except NotYours as error:
        return refuse(request, project, rater, str(error))
    return go_on(request, project, rater, after=assignment)


def rank_card(assignment: Assignment) -> RankCard:
    """The set that an assignment in hand stands for; an order that was taken back is filled in."""
    responses = {}
    for held in set_assignments(assignment):
        for response in (held.comparison.response_a, held.comparison.response_b):
            responses[response.pk] = response
    rankings = Ranking.objects.filter(
        response_set=assignment.comparison.response_set_id, rater=assignment.rater_id
    )
    taken_back = rankings.exclude(superseded_at=None).order_by("-superseded_at").first()
    order = taken_back.order if taken_back else []
    return RankCard(ranked(assignment.rater_id, responses, order), taken_back)


def ranked(
    rater_id: int, responses: dict[int, Response], order: list[list[int]]
) -> list[RankedResponse]:
    """Responses, by their ids, where this rater sees them, with their places in an order."""
    place = {pk: number for number, tied in enumerate(order, start=1) for pk in tied}
    shown = ranking_places(rater_id, responses)
    return [
        RankedResponse(letter, response_name(rater_id, pk), responses[pk], place.get(pk))
        for letter, pk in zip(LETTERS, shown, strict=False)
    ]


def order_in_words(ranking: Ranking) -> str:
    """An order in the letters that its rater saw: "B, A = C"."""
    shown = ranking_places(ranking.rater_id, [pk for tied in ranking.order for pk in tied])
    letters = dict(zip(shown, LETTERS, strict=False))
    return ", ".join(" = ".join(sorted(letters[pk] for pk in tied)) for tied in ranking.order)


def _of_a_set(rater: Rater, pk: str) -> Assignment | None:
    if not pk.isdecimal() or len(pk) > 18:
        return None
    return (
        rater.assignments.select_related("comparison__response_set")
        .filter(pk=int(pk), repeats=None)
        .exclude(comparison__response_set=None)
        .first()
    )
