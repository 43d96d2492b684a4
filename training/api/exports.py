"""GGUF files of models for programs."""

from typing import Any

from django.http import FileResponse, Http404
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
from labeling.changes import note_event
from labeling.storage import storage_path
from training.api.models import model_of
from training.model_files import start_export
from training.models import ModelExport
from training.serializers import ExportSerializer, StartExportSerializer


@extend_schema(tags=["Training"])
class Exports(ListAPIView):
    """GGUF files of a model, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = ExportSerializer

    def get_queryset(self) -> Any:
        return model_of(self.request, self.kwargs["pk"]).exports.select_related("model")

    @extend_schema(request=StartExportSerializer, responses={202: ExportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker write a model as GGUF; what cannot become one is refused at once."""
        given = StartExportSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        numbers = given.validated_data["numbers"]
        try:
            export = start_export(request.project, model_of(request, pk), numbers, request.user)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(ExportSerializer(export).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneExport(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ExportSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a GGUF file is."""
        return Response(ExportSerializer(_export(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelExport(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ExportSerializer

    @extend_schema(request=None, responses={200: ExportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop writing a file; nothing of it is kept."""
        export = _export(request, pk)
        export.request_cancel()
        return Response(ExportSerializer(export).data)


@extend_schema(tags=["Training"])
class ExportedFile(GenericAPIView):
    allowed = {"GET": "lead"}
    serializer_class = ExportSerializer

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    def get(self, request: Request, slug: str, pk: int) -> FileResponse:
        """A GGUF file as it was written."""
        export = _export(request, pk)
        path = storage_path(export.path)
        if not export.path or not path.is_file():
            raise Http404("The file is not there.")
        note_event(request.user, gettext_noop("download"), path.name, project=request.project)
        return FileResponse(path.open("rb"), as_attachment=True, filename=path.name)


def _export(request: Request, pk: int) -> ModelExport:
    found: ModelExport = get_object_or_404(
        request.project.model_exports.select_related("model"), pk=pk
    )
    return found
