"""Rounds of labels and training for programs."""

from dataclasses import replace
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from training.arenas import compare_policies
from training.models import Round
from training.round_chain import start_training
from training.rounds import defaults_for, measure_round, start_round
from training.serializers import (
    ArenaSerializer,
    OneRoundSerializer,
    RoundSerializer,
    RunSerializer,
    StartRoundSerializer,
    TrainRoundSerializer,
)


@extend_schema(tags=["Training"])
class Rounds(ListAPIView):
    """Rounds of labels and training, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = RoundSerializer

    def get_queryset(self) -> Any:
        return self.request.project.rounds.all()

    @extend_schema(request=StartRoundSerializer, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker sample responses and give people the pairs that are worth a label."""
        given = StartRoundSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        if "models" in asked:
            asked["models"] = tuple(asked["models"])
        try:
            settings = replace(defaults_for(request.project), **asked)
            made = start_round(request.project, settings, request.user)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(RoundSerializer(made).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneRound(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = OneRoundSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a round and its labels are, and what it brought."""
        return Response(OneRoundSerializer(_round(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={200: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a round; what it has sampled is kept."""
        found = _round(request, pk)
        found.request_cancel()
        return Response(RoundSerializer(found).data)


@extend_schema(tags=["Training"])
class ResumeRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped round again; it goes on with the next prompts."""
        found = _round(request, pk)
        if not found.resume():
            raise Conflict(f"This round is {found.status}: there is nothing to resume.")
        return Response(RoundSerializer(found).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class TrainRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=TrainRoundSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Start the round's run on the labels of now, as the project's last one of its kind. For
        PPO the reward model comes first, where the round has none yet; the policy and the arena
        follow by themselves."""
        given = TrainRoundSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            run = start_training(_round(request, pk), given.validated_data["kind"], request.user)
        except (ValueError, OSError) as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class CompareRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Give people pairs of the round's policy and the one before, blind."""
        try:
            arena = compare_policies(_round(request, pk), request.user)
        except ValueError as problem:
            raise Conflict(str(problem)) from None
        return Response(ArenaSerializer(arena).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class MeasureRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker compute the gain from the labels of now; ask for the round to see it."""
        found = _round(request, pk)
        measure_round(found, request.user)
        return Response(RoundSerializer(found).data, status=status.HTTP_202_ACCEPTED)


def _round(request: Request, pk: int) -> Round:
    found: Round = get_object_or_404(request.project.rounds.select_related("project"), pk=pk)
    return found
