"""Merges of models for programs."""

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
from training.merges import start_merge
from training.serializers import MergeSerializer, StartMergeSerializer


@extend_schema(tags=["Training"])
class Merges(ListAPIView):
    """Merges of models, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = MergeSerializer

    def get_queryset(self) -> Any:
        return _merges(self.request)

    @extend_schema(request=StartMergeSerializer, responses={202: MergeSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker merge models; what does not fit is refused at once."""
        given = StartMergeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            merge = start_merge(request.project, created_by=request.user, **given.validated_data)
        except (ValueError, OSError) as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(MergeSerializer(merge).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneMerge(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = MergeSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a merge is, and what its check found."""
        return Response(MergeSerializer(get_object_or_404(_merges(request), pk=pk)).data)


@extend_schema(tags=["Training"])
class CancelMerge(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = MergeSerializer

    @extend_schema(request=None, responses={200: MergeSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a merge; nothing is kept of it."""
        merge = get_object_or_404(_merges(request), pk=pk)
        merge.request_cancel()
        return Response(MergeSerializer(merge).data)


@extend_schema(tags=["Training"])
class ResumeMerge(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = MergeSerializer

    @extend_schema(request=None, responses={202: MergeSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped merge again; it begins anew."""
        merge = get_object_or_404(_merges(request), pk=pk)
        if not merge.resume():
            raise Conflict(f"This merge is {merge.status}: there is nothing to do again.")
        return Response(MergeSerializer(merge).data, status=status.HTTP_202_ACCEPTED)


def _merges(request: Request) -> Any:
    return request.project.merges.select_related("base", "model_version").prefetch_related(
        "parts__model"
    )
