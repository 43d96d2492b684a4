"""The project's raters: who they are, and whether they are given work."""

from collections.abc import Callable
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.idempotency import idempotent
from labeling.members import set_label_limit
from labeling.models import Project, Rater
from labeling.raters import let_in, pause_rater, requalify, resume_rater
from labeling.serializers.raters import RaterSerializer


@extend_schema(tags=["People"])
class Raters(ListAPIView):
    """People and judges of the project, newest first."""

    allowed = {"GET": "view"}
    serializer_class = RaterSerializer

    def get_queryset(self) -> Any:
        return self.request.project.raters.select_related("user")


@extend_schema(tags=["People"])
class OneRater(GenericAPIView):
    allowed = {"GET": "view", "PATCH": "lead"}
    serializer_class = RaterSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One rater."""
        return Response(RaterSerializer(_rater(request.project, pk)).data)

    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Set how many labels this rater may give; null: as the project says."""
        rater = _person(request.project, pk)
        given = RaterSerializer(rater, data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        if "label_limit" in given.validated_data:
            set_label_limit(rater, given.validated_data["label_limit"], request.user)
        return Response(RaterSerializer(rater).data)


class _Step(GenericAPIView):
    """One thing that a lead does to a rater, without a body."""

    allowed = {"POST": "lead"}
    serializer_class = RaterSerializer
    act: Callable[[Rater, Any], None]

    @extend_schema(tags=["People"], request=None, responses={200: RaterSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        rater = _person(request.project, pk)
        type(self).act(rater, request.user)
        return Response(RaterSerializer(rater).data)


class Pause(_Step):
    """Give this rater no more work; what they hold goes back to the queue."""

    act = pause_rater


class Resume(_Step):
    """Let a paused rater work again."""

    act = resume_rater


class Requalify(_Step):
    """Ask this rater the training and qualification sets again."""

    act = requalify


class LetIn(_Step):
    """Give this rater real work, whatever the qualification says."""

    act = let_in


def _rater(project: Project, pk: int) -> Rater:
    return get_object_or_404(project.raters.select_related("user", "project"), pk=pk)


def _person(project: Project, pk: int) -> Rater:
    rater = _rater(project, pk)
    if rater.kind != Rater.Kind.PERSON:
        raise exceptions.ValidationError({"detail": "This rater is a judge, not a person."})
    return rater
