"""Frozen datasets for programs, and the drafts that they are made from."""

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from training.dataset_settings import DatasetSettings
from training.models import DatasetDraft
from training.serializers import (
    BuildSerializer,
    DatasetSerializer,
    DraftSerializer,
    OneDatasetSerializer,
)


@extend_schema(tags=["Training"])
class Datasets(ListAPIView):
    """Frozen datasets of the project: what made them, and what they hold."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = DatasetSerializer

    def get_queryset(self) -> Any:
        return self.request.project.datasets.all()

    @extend_schema(request=BuildSerializer, responses={202: DraftSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker freeze a dataset, or preview it; ask for the draft to see how far it is."""
        given = BuildSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        draft = DatasetDraft.objects.create(
            project=request.project,
            filters=DatasetSettings().as_json() | given.validated_data["settings"],
            freezing=not given.validated_data["preview"],
            created_by=request.user,
        )
        draft.enqueue()
        return Response(DraftSerializer(draft).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneDataset(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = OneDatasetSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One frozen dataset with the preview that was kept with it."""
        return Response(
            OneDatasetSerializer(get_object_or_404(request.project.datasets, pk=pk)).data
        )


@extend_schema(tags=["Training"])
class OneDraft(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = DraftSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a dataset is on its way, its preview, and the dataset that it became."""
        return Response(DraftSerializer(_draft(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelDraft(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DraftSerializer

    @extend_schema(request=None, responses={200: DraftSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a preview or a freezing; nothing is kept of it."""
        draft = _draft(request, pk)
        draft.request_cancel()
        return Response(DraftSerializer(draft).data)


def _draft(request: Request, pk: int) -> DatasetDraft:
    found: DatasetDraft = get_object_or_404(
        request.project.dataset_drafts.select_related("dataset"), pk=pk
    )
    return found
