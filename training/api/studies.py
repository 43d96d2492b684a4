"""Studies of a finished run for programs."""

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from training.api.runs import runs_of
from training.models import Study
from training.serializers import StartStudySerializer, StudySerializer
from training.studies import start_study


@extend_schema(tags=["Training"])
class Studies(GenericAPIView):
    allowed = {"POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = StudySerializer

    @extend_schema(request=StartStudySerializer, responses={202: StudySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker train a study's reward models with the settings of a finished run."""
        given = StartStudySerializer(data=request.data)
        given.is_valid(raise_exception=True)
        run = get_object_or_404(runs_of(request), pk=pk)
        try:
            study = start_study(run, user=request.user, **given.validated_data)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(StudySerializer(study).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneStudy(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = StudySerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a study is, and what it found."""
        return Response(StudySerializer(_study(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelStudy(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = StudySerializer

    @extend_schema(request=None, responses={200: StudySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a study; the trainings that have ended are kept."""
        study = _study(request, pk)
        study.request_cancel()
        return Response(StudySerializer(study).data)


@extend_schema(tags=["Training"])
class ResumeStudy(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = StudySerializer

    @extend_schema(request=None, responses={202: StudySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped study again; the trainings that have ended are kept."""
        study = _study(request, pk)
        if not study.resume():
            raise Conflict(f"This study is {study.status}: there is nothing to resume.")
        return Response(StudySerializer(study).data, status=status.HTTP_202_ACCEPTED)


def _study(request: Request, pk: int) -> Study:
    found: Study = get_object_or_404(request.project.studies.all(), pk=pk)
    return found
