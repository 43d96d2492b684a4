"""Labeling by a program: lease work, answer it, rank, skip, flag, undo, give back."""

from typing import Any

from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.access import permissions, rater_of
from labeling.answering import (
    record_preference,
    record_ranking,
    revise_ranking,
    skip_comparison,
    skip_set,
    undo_last,
)
from labeling.api.idempotency import answer_key, idempotent
from labeling.api.refusals import Conflict
from labeling.assignment import (
    ranking_places,
    response_name,
    responses_in_hand,
    set_assignments,
    why_empty,
    work_for,
)
from labeling.models import Assignment, Flag, Ranking, Rater
from labeling.places import release
from labeling.scales import by_place
from labeling.serializers.work import (
    AnswerSerializer,
    AssignmentSerializer,
    KeptRankingSerializer,
    KeptSerializer,
    NewFlagSerializer,
    OrderSerializer,
    RankingSerializer,
    ReleasedSerializer,
    ReleaseSerializer,
    SkipSerializer,
    WantedWorkSerializer,
    WorkSerializer,
)


@extend_schema(tags=["Labeling"])
class Next(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = WantedWorkSerializer

    @extend_schema(request=WantedWorkSerializer, responses={200: WorkSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Hold up to `n` pieces of work until `expires_at`, or learn why there is none.

        What is held already comes first. A piece that is not answered in time returns to the queue
        by itself.
        """
        given = WantedWorkSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        rater = rater_of(request.user, request.project)
        return Response(work(rater, given.validated_data["n"]))


@extend_schema(tags=["Labeling"])
class Answers(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = AnswerSerializer

    @extend_schema(request=AnswerSerializer, responses={201: KeptSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Answer a pair. 201 means that the answer is on disk.

        Too late, a second time, or beyond the wanted number: 409, and nothing changes. `choice`
        names the better response by the place where `next/` put it: left or right.
        """
        given = AnswerSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        assignment = _given_to(request, given.validated_data["assignment"])
        left = assignment.shown_first
        answer = given.judgement(left)
        n_next = answer.pop("next")
        given.check_against(assignment.rater.project)
        if _is_ranking(assignment):
            raise Conflict("This is a set of responses to rank: see /api/rankings/.")
        kept = record_preference(
            assignment.rater,
            assignment.comparison,
            answer.pop("choice"),
            assignment_id=answer.pop("assignment"),
            answer_key=answer_key(request),
            **answer,
        )
        feedback = None
        in_training = assignment.stream == Assignment.Stream.TRAINING
        if in_training and assignment.rater.project.training_feedback:
            gold = assignment.comparison.gold
            feedback = {"gold": by_place(gold, left), "is_right": kept.choice == gold}
        then = work(assignment.rater, n_next) if n_next else {"work": [], "why": None}
        body = {
            "assignment": assignment.pk,
            "choice": by_place(kept.choice, left),
            "strength": kept.strength,
            "kept_at": timezone.now(),
            "feedback": feedback,
        }
        return Response(body | then, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Labeling"])
class Rankings(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = RankingSerializer

    @extend_schema(request=RankingSerializer, responses={201: KeptRankingSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Rank a set of responses, best first; it is kept with the preferences that it implies."""
        given = RankingSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        answer = given.validated_data
        assignment = _given_to(request, answer["assignment"])
        if not _is_ranking(assignment):
            raise Conflict("This is a pair to compare: see /api/preferences/.")
        in_hand = responses_in_hand(assignment)
        try:
            ranking = record_ranking(
                assignment.rater,
                assignment.comparison.response_set,
                _by_id(answer["order"], in_hand),
                rationale=answer["rationale"],
                seconds=answer["seconds"],
                answer_key=answer_key(request),
            )
        except ValueError as problem:
            raise exceptions.ValidationError({"order": [str(problem)]}) from None
        body = {"id": ranking.pk, "order": answer["order"], "kept_at": timezone.now()}
        return Response(body, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Labeling"])
class OneRanking(GenericAPIView):
    allowed = {"PATCH": "label"}
    serializer_class = OrderSerializer

    @extend_schema(request=OrderSerializer, responses={200: KeptRankingSerializer})
    def patch(self, request: Request, pk: int) -> Response:
        """Replace an earlier order of one's own; it and what it implied are kept."""
        mine = Ranking.objects.select_related("rater__project").filter(rater__user=request.user)
        ranking = get_object_or_404(mine, pk=pk)
        if "label" not in permissions(request.user, ranking.rater.project):
            self.permission_denied(
                request, "Your role in this project does not allow you to label."
            )
        given = OrderSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        answer, rater = given.validated_data, ranking.rater
        names = {response_name(rater.pk, pk): pk for tied in ranking.order for pk in tied}
        try:
            revised = revise_ranking(
                rater, ranking, _by_id(answer["order"], names), rationale=answer["rationale"]
            )
        except ValueError as problem:
            raise exceptions.ValidationError({"order": [str(problem)]}) from None
        return Response({"id": revised.pk, "order": answer["order"], "kept_at": revised.created_at})


@extend_schema(tags=["Labeling"])
class Skip(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = SkipSerializer

    @extend_schema(request=SkipSerializer, responses={200: AssignmentSerializer})
    @idempotent
    def post(self, request: Request, pk: int) -> Response:
        """Pass a piece of work on to somebody else, with a reason or a flag if there is one."""
        assignment = _given_to(request, pk)
        given = SkipSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        said = given.validated_data
        if _is_ranking(assignment):
            in_set = assignment.comparison.response_set
            skip_set(assignment.rater, in_set, said["reason"], flag=said["flag"])
        else:
            skip_comparison(
                assignment.rater,
                assignment.comparison,
                said["reason"],
                flag=said["flag"],
                note=said["note"],
                assignment_id=assignment.pk,
                answer_key=answer_key(request),
            )
        assignment.refresh_from_db(fields=["state"])
        return Response(AssignmentSerializer(assignment).data)


@extend_schema(tags=["Labeling"])
class FlagIt(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = NewFlagSerializer

    @extend_schema(request=NewFlagSerializer, responses={201: NewFlagSerializer})
    @idempotent
    def post(self, request: Request, pk: int) -> Response:
        """Say that something is wrong with a comparison, and keep it in hand."""
        assignment = _given_to(request, pk)
        given = NewFlagSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        flag, _created = Flag.objects.get_or_create(
            comparison=assignment.comparison,
            rater=assignment.rater,
            kind=given.validated_data["kind"],
            defaults={"note": given.validated_data["note"]},
        )
        return Response(NewFlagSerializer(flag).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Labeling"])
class Undo(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = WorkSerializer

    @extend_schema(request=None, responses={200: WorkSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Take the last answer or skip back; its comparison is the next piece of work again."""
        rater = rater_of(request.user, request.project)
        if undo_last(rater) is None:
            raise Conflict("There is nothing to take back.")
        return Response(work(rater, 1))


@extend_schema(tags=["Labeling"])
class Release(GenericAPIView):
    allowed = {"POST": "label"}
    serializer_class = ReleaseSerializer

    @extend_schema(request=ReleaseSerializer, responses={200: ReleasedSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Give unread work back. It may come again."""
        given = ReleaseSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        rater = rater_of(request.user, request.project)
        return Response({"released": release(rater, given.validated_data.get("assignments"))})


def work(rater: Rater, n: int) -> dict[str, Any]:
    """Up to `n` pieces of work as JSON values, or why there is none."""
    held = work_for(rater, n)
    if held:
        return {"work": [_piece(assignment) for assignment in held], "why": None}
    empty = why_empty(rater)
    why = {name: getattr(empty, name) for name in ("reason", "n_open", "n_held", "held_until")}
    return {"work": [], "why": why}


def _piece(assignment: Assignment) -> dict[str, Any]:
    comparison = assignment.comparison
    piece: dict[str, Any] = {
        "assignment": assignment.pk,
        "prompt": comparison.prompt.messages,
        "expires_at": assignment.expires_at,
    }
    if _is_ranking(assignment):
        found = {}
        for other in set_assignments(assignment):
            for response in (other.comparison.response_a, other.comparison.response_b):
                name = response_name(assignment.rater_id, response.pk)
                found[response.pk] = {"id": name, "messages": response.messages}
        # In the places that the page deals them.
        responses = [found[pk] for pk in ranking_places(assignment.rater_id, found)]
        return piece | {"kind": "ranking", "left": None, "right": None, "responses": responses}
    shown = {
        by_place(letter, assignment.shown_first): {"messages": response.messages}
        for letter, response in (("a", comparison.response_a), ("b", comparison.response_b))
    }
    return piece | {"kind": "pair", **shown, "responses": []}


def _by_id(order: list[list[str]], named: dict[str, int]) -> list[list[int]]:
    """An order of names as one of ids; 0 is no response, and refused with the order."""
    return [[named.get(name, 0) for name in tied] for tied in order]


def _is_ranking(assignment: Assignment) -> bool:
    return assignment.comparison.response_set_id is not None and assignment.repeats_id is None


def _given_to(request: Request, pk: int) -> Assignment:
    """The caller's own assignment. Raises: NotFound, also to those who may not label any more."""
    mine = Assignment.objects.filter(pk=pk, rater__user=request.user).select_related(
        "comparison", "rater__project"
    )
    assignment = mine.first()
    if assignment is None or "label" not in permissions(request.user, assignment.rater.project):
        raise exceptions.NotFound("No such assignment of yours.")
    return assignment
