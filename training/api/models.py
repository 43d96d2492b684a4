"""Models for programs: the registry, their files, cards and reports."""

from typing import Any

from django.http import Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext_noop
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from labeling.changes import note_event
from labeling.reports import compute_anew
from training.cards import card_of
from training.model_files import folder_of, serving_command, zipped
from training.models import ModelVersion
from training.registry import describe
from training.reports import can_report
from training.serializers import (
    CardSerializer,
    DescribeSerializer,
    ModelReportSerializer,
    ModelSerializer,
    ServingSerializer,
)


@extend_schema(tags=["Training"])
class Models(ListAPIView):
    """Models of the project: bases, and what its runs made."""

    allowed = {"GET": "view"}
    serializer_class = ModelSerializer

    def get_queryset(self) -> Any:
        return self.request.project.models.select_related("base")


@extend_schema(tags=["Training"])
class OneModel(GenericAPIView):
    allowed = {"GET": "view", "PATCH": "lead"}
    serializer_class = ModelSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """A model: what made it, its tags and notes."""
        return Response(ModelSerializer(model_of(request, pk)).data)

    @extend_schema(request=DescribeSerializer, responses={200: ModelSerializer})
    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Give a model other tags or notes."""
        model = model_of(request, pk)
        given = DescribeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = {"tags": model.tags, "notes": model.notes} | given.validated_data
        describe(model, asked["tags"], asked["notes"], request.user)
        return Response(ModelSerializer(model).data)


@extend_schema(tags=["Training"])
class ModelFiles(GenericAPIView):
    allowed = {"GET": "lead"}
    serializer_class = ModelSerializer

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    def get(self, request: Request, slug: str, pk: int) -> StreamingHttpResponse:
        """A model's folder as a zip, made while it is sent."""
        model = model_of(request, pk)
        if folder_of(model) is None:
            raise Http404("The files of this model are not on this machine.")
        note_event(request.user, gettext_noop("download"), model.name, project=request.project)
        response = StreamingHttpResponse(zipped(model), content_type="application/zip")
        response.headers["Content-Disposition"] = f'attachment; filename="{model.name}.zip"'
        response.headers["Content-Encoding"] = "identity"  # weights do not get smaller
        return response


@extend_schema(tags=["Training"])
class Serving(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ServingSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """The command that serves a model with vLLM, a base with all its adapters."""
        found = serving_command(model_of(request, pk))
        left_out = [{"model": name, "reason": reason} for name, reason in found["left_out"]]
        return Response({"command": found["command"], "left_out": left_out})


@extend_schema(tags=["Training"])
class ModelReports(GenericAPIView):
    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = ModelReportSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """The newest report on a model, or how far it is on its way."""
        reports = model_of(request, pk).reports.select_related("model")
        newest = reports.order_by("-pk").first()
        if newest is None:
            raise exceptions.NotFound("There is no report on this model yet.")
        return Response(ModelReportSerializer(newest).data)

    @extend_schema(request=None, responses={202: ModelReportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker measure a model anew on what its dataset holds out."""
        model = model_of(request, pk)
        if not can_report(model):
            raise Conflict("This model learned no pairs: none is held out to measure it on.")
        report = compute_anew(request.project, model.reports, request.user)
        return Response(ModelReportSerializer(report).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class Card(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = CardSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """A model's card, written from its lineage; it names no person."""
        return Response({"card": card_of(model_of(request, pk))})


def model_of(request: Request, pk: int) -> ModelVersion:
    found: ModelVersion = get_object_or_404(
        request.project.models.select_related("base", "run__dataset", "project"), pk=pk
    )
    return found
