"""Sweeps for programs: a run for every combination of settings."""

from typing import Any

from django.db.models import Prefetch
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from training.api.runs import start_asked
from training.models import Run
from training.serializers import OneSweepSerializer, StartSweepSerializer, SweepSerializer
from training.sweeps import cancel_sweep, start_sweep


@extend_schema(tags=["Training"])
class Sweeps(ListAPIView):
    """Sweeps over a grid of settings, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = SweepSerializer

    def get_queryset(self) -> Any:
        return _sweeps(self.request)

    @extend_schema(request=StartSweepSerializer, responses={202: OneSweepSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Queue a run for every combination of the grid's values, all on one dataset; a worker
        carries them out one after another."""
        given = StartSweepSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        sweep = start_asked(request, asked, start_sweep, grid=asked["grid"])
        made = _sweeps(request).get(pk=sweep.pk)
        return Response(OneSweepSerializer(made).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneSweep(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = OneSweepSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """A sweep, how far its runs are, and the best of them by what was held out."""
        return Response(OneSweepSerializer(get_object_or_404(_sweeps(request), pk=pk)).data)


@extend_schema(tags=["Training"])
class CancelSweep(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = OneSweepSerializer

    @extend_schema(request=None, responses={200: OneSweepSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop every run of a sweep that waits or runs."""
        sweep = get_object_or_404(_sweeps(request), pk=pk)
        cancel_sweep(sweep, by=request.user)
        return Response(OneSweepSerializer(get_object_or_404(_sweeps(request), pk=pk)).data)


def _sweeps(request: Request) -> Any:
    """Sweeps with their runs in the order in which they are carried out."""
    runs = Run.objects.order_by("pk").select_related("dataset", "model_version")
    return request.project.sweeps.prefetch_related(Prefetch("runs", queryset=runs))
