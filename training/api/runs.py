"""Runs for programs: start one, cancel it, resume it."""

from typing import Any

from django.core.exceptions import ValidationError as Refused
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from labeling.storage import check_model_name
from training.datasets import dataset_named
from training.runs import cancel_run, resume_run, start_run
from training.serializers import (
    ResumeRunSerializer,
    RunSerializer,
    StartSerializer,
)


@extend_schema(tags=["Training"])
class Runs(ListAPIView):
    """Training runs, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = RunSerializer

    def get_queryset(self) -> Any:
        return runs_of(self.request)

    @extend_schema(request=StartSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker train on a frozen dataset, or on the project's labels of now, which it then
        freezes: labels that do not suffice fail the run, and not this request."""
        given = StartSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        run = start_asked(request, given.validated_data, start_run)
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


def start_asked(request: Request, asked: dict[str, Any], start: Any, **more: Any) -> Any:
    """What `start_run` or `start_sweep` makes of a request, or its refusal as an answer."""
    try:
        check_model_name(request.project, asked["base_model"], request.user)
        return start(
            request.project,
            kind=asked["kind"],
            base_model=asked["base_model"],
            recipe_settings=asked["settings"],
            dataset=dataset_named(request.project, asked["dataset"]),
            labels=asked["labels"],
            test_share=asked["test_share"],
            report_to=asked["report_to"],
            created_by=request.user,
            **more,
        )
    except Refused as problem:
        raise exceptions.ValidationError({"base_model": problem.messages}) from None
    except (ValueError, OSError) as problem:  # OSError: no folder could bear that name
        raise exceptions.ValidationError({"detail": str(problem)}) from None


@extend_schema(tags=["Training"])
class OneRun(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = RunSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a run is, and what it measured."""
        return Response(RunSerializer(get_object_or_404(runs_of(request), pk=pk)).data)


@extend_schema(tags=["Training"])
class CancelRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=None, responses={200: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a run; a running one stops within seconds."""
        run = get_object_or_404(runs_of(request), pk=pk)
        cancel_run(run, by=request.user)
        return Response(RunSerializer(run).data)


@extend_schema(tags=["Training"])
class ResumeRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=ResumeRunSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped run again, from its last checkpoint on; with other limits of what its
        judge may spend, if they are given."""
        run = get_object_or_404(runs_of(request), pk=pk)
        given = ResumeRunSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            resumed = resume_run(run, by=request.user, limits=given.validated_data)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        if not resumed:
            raise Conflict(f"This run is {run.status}: there is nothing to resume.")
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


def runs_of(request: Request) -> Any:
    return request.project.runs.select_related("dataset", "model_version", "project")
