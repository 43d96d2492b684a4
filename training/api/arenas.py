"""Blind arenas for programs."""

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
from training.arenas import ArenaSettings, start_arena
from training.models import Arena
from training.serializers import ArenaSerializer, StartArenaSerializer


@extend_schema(tags=["Training"])
class Arenas(ListAPIView):
    """Blind arenas, newest first. Who wins stands in the leaderboard."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = ArenaSerializer

    def get_queryset(self) -> Any:
        return self.request.project.arenas.all()

    @extend_schema(request=StartArenaSerializer, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker make the comparisons of these models that are still missing."""
        given = StartArenaSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        try:
            settings = ArenaSettings(**{**asked, "models": tuple(asked["models"])})
            arena = start_arena(request.project, settings, request.user)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(ArenaSerializer(arena).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneArena(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ArenaSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far an arena is, and what it made."""
        return Response(ArenaSerializer(_arena(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelArena(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={200: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop an arena; what it has sampled is kept."""
        found = _arena(request, pk)
        found.request_cancel()
        return Response(ArenaSerializer(found).data)


@extend_schema(tags=["Training"])
class ResumeArena(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped arena again; it goes on with the next prompts."""
        found = _arena(request, pk)
        if not found.resume():
            raise Conflict(f"This arena is {found.status}: there is nothing to resume.")
        return Response(ArenaSerializer(found).data, status=status.HTTP_202_ACCEPTED)


def _arena(request: Request, pk: int) -> Arena:
    found: Arena = get_object_or_404(request.project.arenas.all(), pk=pk)
    return found
