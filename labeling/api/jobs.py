"""What a worker does for a lead: imports of files, agreement reports, leaderboards."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import FileResponse, Http404
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.reading import TooLarge
from labeling.api.refusals import Conflict
from labeling.imports.foreign.columns import Labels
from labeling.imports.uploads import BadUpload, keep_upload, kept_upload, reject_path, too_large
from labeling.models import ImportJob, Project, Rater
from labeling.reports import compute_anew
from labeling.serializers.jobs import (
    ImportSerializer,
    LeaderboardLineSerializer,
    LeaderboardSerializer,
    ReportLineSerializer,
    ReportSerializer,
    UploadSerializer,
)


class UploadedForm(MultiPartParser):
    """A form with a file, refused by its size before it is read."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        length = parser_context["request"].META.get("CONTENT_LENGTH")
        if int(length or 0) > settings.PREFLOOP_MAX_UPLOAD_BYTES + 65_536:
            raise TooLarge(too_large())
        return super().parse(stream, media_type, parser_context)


@extend_schema(tags=["Jobs"])
class Imports(ListAPIView):
    """Files that were imported, newest first."""

    allowed = {"GET": "lead", "POST": "lead"}
    serializer_class = ImportSerializer
    parser_classes = [UploadedForm]
    throttle_classes = [PerMinute, StartsPerMinute]

    def get_queryset(self) -> Any:
        return self.request.project.imports.all()

    @extend_schema(
        request={"multipart/form-data": UploadSerializer}, responses={202: ImportSerializer}
    )
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Upload a file and have a worker import it; ask for the job to see how far it is."""
        given = UploadSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        try:
            path, name = kept_upload(keep_upload(asked["file"], request.project), request.project)
        except BadUpload as problem:
            raise exceptions.ValidationError({"file": [str(problem)]}) from None
        job = ImportJob.objects.create(
            project=request.project,
            created_by=request.user,
            filename=name[:255],
            path=path,
            format=asked["format"],
            options={
                "rater": asked.get("rater") or Labels().rater,
                "kind": Rater.Kind.JUDGE if asked["labels"] == "ai" else Rater.Kind.PERSON,
                "labels_per_comparison": asked["labels_per_comparison"],
                "scale": asked["scale"],
            },
        )
        job.enqueue()
        return Response(ImportSerializer(job).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Jobs"])
class OneImport(GenericAPIView):
    allowed = {"GET": "lead"}
    serializer_class = ImportSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far an import is, and what became of the file's lines."""
        return Response(ImportSerializer(_import(request.project, pk)).data)


@extend_schema(tags=["Jobs"])
class CancelImport(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ImportSerializer

    @extend_schema(request=None, responses={200: ImportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop an import; what it has written stays."""
        job = _import(request.project, pk)
        job.request_cancel()
        return Response(ImportSerializer(job).data)


@extend_schema(tags=["Jobs"])
class ResumeImport(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ImportSerializer

    @extend_schema(request=None, responses={202: ImportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Run a stopped import again: it adds what is missing."""
        job = _import(request.project, pk)
        with transaction.atomic():
            if not job.resume():
                raise Conflict(f"This import is {job.status}: there is nothing to resume.")
        return Response(ImportSerializer(job).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Jobs"])
class Rejects(GenericAPIView):
    allowed = {"GET": "lead"}
    serializer_class = ImportSerializer

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    def get(self, request: Request, slug: str, pk: int) -> FileResponse:
        """The lines that could not become rows, with reasons, to mend and send again."""
        job = _import(request.project, pk)
        path = reject_path(job)
        if not path.is_file():
            raise Http404("This import has no reject file.")
        name = f"{job.filename}.rejects.jsonl"
        return FileResponse(
            path.open("rb"),
            as_attachment=True,
            filename=name,
            content_type="application/octet-stream",
        )


@extend_schema(tags=["Jobs"])
class Reports(ListAPIView):
    """Agreement reports, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = ReportLineSerializer

    def get_queryset(self) -> Any:
        return self.request.project.agreement_reports.defer("result")

    @extend_schema(request=None, responses={202: ReportLineSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker compute how far raters agree; one that waits or works already is told."""
        report = compute_anew(request.project, request.project.agreement_reports, request.user)
        return Response(ReportLineSerializer(report).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Jobs"])
class OneReport(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ReportSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One agreement report; `result` is what `agreement --json` prints."""
        report = get_object_or_404(request.project.agreement_reports, pk=pk)
        return Response(ReportSerializer(report).data)


@extend_schema(tags=["Jobs"])
class Leaderboards(ListAPIView):
    """Leaderboards, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = LeaderboardLineSerializer

    def get_queryset(self) -> Any:
        return self.request.project.leaderboards.defer("result")

    @extend_schema(request=None, responses={202: LeaderboardLineSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker rate the sources; one that waits or works already is told."""
        board = compute_anew(request.project, request.project.leaderboards, request.user)
        return Response(LeaderboardLineSerializer(board).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Jobs"])
class OneLeaderboard(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = LeaderboardSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One leaderboard; `result` is what `leaderboard --json` prints."""
        board = get_object_or_404(request.project.leaderboards, pk=pk)
        return Response(LeaderboardSerializer(board).data)


def _import(project: Project, pk: int) -> ImportJob:
    return get_object_or_404(project.imports, pk=pk)
