"""The playground for programs: what two models answer to a prompt."""

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
from training.models import SideBySide
from training.playground import QueueFull, send_to_people, start_pair
from training.serializers import AskSerializer, SideBySideSerializer


@extend_schema(tags=["Training"])
class Playground(ListAPIView):
    """Prompts to which two models answered, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = SideBySideSerializer

    def get_queryset(self) -> Any:
        return self.request.project.sides_by_side.all()

    @extend_schema(request=AskSerializer, responses={202: SideBySideSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker let two models answer a prompt; refused while too many pairs wait."""
        given = AskSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        prompt = [{"role": "user", "content": asked.pop("text")}]
        try:
            pair = start_pair(request.project, prompt=prompt, created_by=request.user, **asked)
        except QueueFull as problem:
            raise Conflict(str(problem)) from None
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(SideBySideSerializer(pair).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OnePair(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = SideBySideSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """What two models have said so far."""
        return Response(SideBySideSerializer(_pair(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelPair(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = SideBySideSerializer

    @extend_schema(request=None, responses={200: SideBySideSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop two models; what they have said is kept."""
        pair = _pair(request, pk)
        pair.request_cancel()
        return Response(SideBySideSerializer(pair).data)


@extend_schema(tags=["Training"])
class SendPair(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = SideBySideSerializer

    @extend_schema(request=None, responses={200: SideBySideSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Make a pair a comparison of the project, once; the models are its sources."""
        pair = _pair(request, pk)
        try:
            send_to_people(pair, request.user)
        except ValueError as problem:
            raise Conflict(str(problem)) from None
        return Response(SideBySideSerializer(pair).data)


def _pair(request: Request, pk: int) -> SideBySide:
    found: SideBySide = get_object_or_404(
        request.project.sides_by_side.select_related("project", "comparison"), pk=pk
    )
    return found
