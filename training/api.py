"""Training for programs: runs, models and datasets; start a run, cancel it, resume it."""

from typing import Any

from django.core.exceptions import ValidationError as Refused
from django.db.models import Prefetch
from django.shortcuts import get_object_or_404
from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import JobsPerMinute, PerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from labeling.storage import check_model_name
from training.dataset_settings import DatasetSettings
from training.datasets import dataset_named
from training.models import DatasetDraft, Run
from training.runs import cancel_run, resume_run, start_run
from training.serializers import (
    BuildSerializer,
    DatasetSerializer,
    DraftSerializer,
    ModelSerializer,
    OneDatasetSerializer,
    OneSweepSerializer,
    RunSerializer,
    StartSerializer,
    StartSweepSerializer,
    SweepSerializer,
)
from training.sweeps import cancel_sweep, start_sweep


@extend_schema(tags=["Training"])
class Runs(ListAPIView):
    """Training runs, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = RunSerializer

    def get_queryset(self) -> Any:
        return _runs(self.request)

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    @extend_schema(request=StartSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker train on a frozen dataset, or on the project's labels of now, which it then
        freezes: labels that do not suffice fail the run, and not this request."""
        given = StartSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        run = _started(request, given.validated_data, start_run)
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


def _started(request: Request, asked: dict[str, Any], start: Any, **more: Any) -> Any:
    """What `start_run` or `start_sweep` makes of a request, or its refusal as an answer."""
    try:
        check_model_name(asked["base_model"], request.user)
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
        return Response(RunSerializer(get_object_or_404(_runs(request), pk=pk)).data)


@extend_schema(tags=["Training"])
class CancelRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=None, responses={200: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a run; a running one stops within seconds."""
        run = get_object_or_404(_runs(request), pk=pk)
        cancel_run(run, by=request.user)
        return Response(RunSerializer(run).data)


@extend_schema(tags=["Training"])
class ResumeRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=None, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped run again, from its last checkpoint on."""
        run = get_object_or_404(_runs(request), pk=pk)
        if not resume_run(run, by=request.user):
            raise Conflict(f"This run is {run.status}: there is nothing to resume.")
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class Sweeps(ListAPIView):
    """Sweeps over a grid of settings, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = SweepSerializer

    def get_queryset(self) -> Any:
        return _sweeps(self.request)

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    @extend_schema(request=StartSweepSerializer, responses={202: OneSweepSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Queue a run for every combination of the grid's values, all on one dataset; a worker
        carries them out one after another."""
        given = StartSweepSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        sweep = _started(request, asked, start_sweep, grid=asked["grid"])
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


@extend_schema(tags=["Training"])
class Models(ListAPIView):
    """Models of the project: bases, and what its runs made."""

    allowed = {"GET": "view"}
    serializer_class = ModelSerializer

    def get_queryset(self) -> Any:
        return self.request.project.models.select_related("base")


@extend_schema(tags=["Training"])
class Datasets(ListAPIView):
    """Frozen datasets of the project: what made them, and what they hold."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = DatasetSerializer

    def get_queryset(self) -> Any:
        return self.request.project.datasets.all()

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

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


def _sweeps(request: Request) -> Any:
    """Sweeps with their runs in the order in which they are carried out."""
    runs = Run.objects.order_by("pk").select_related("dataset", "model_version")
    return request.project.sweeps.prefetch_related(Prefetch("runs", queryset=runs))


def _runs(request: Request) -> Any:
    return request.project.runs.select_related("dataset", "model_version", "project")


PROJECT = "projects/<slug:slug>/"
app_name = "training-api"
urlpatterns = [
    path(f"{PROJECT}runs/", Runs.as_view(), name="runs"),
    path(f"{PROJECT}runs/<int:pk>/", OneRun.as_view(), name="run"),
    path(f"{PROJECT}runs/<int:pk>/cancel/", CancelRun.as_view(), name="cancel"),
    path(f"{PROJECT}runs/<int:pk>/resume/", ResumeRun.as_view(), name="resume"),
    path(f"{PROJECT}sweeps/", Sweeps.as_view(), name="sweeps"),
    path(f"{PROJECT}sweeps/<int:pk>/", OneSweep.as_view(), name="sweep"),
    path(f"{PROJECT}sweeps/<int:pk>/cancel/", CancelSweep.as_view(), name="cancel_sweep"),
    path(f"{PROJECT}models/", Models.as_view(), name="models"),
    path(f"{PROJECT}datasets/", Datasets.as_view(), name="datasets"),
    path(f"{PROJECT}datasets/<int:pk>/", OneDataset.as_view(), name="dataset"),
    path(f"{PROJECT}dataset-drafts/<int:pk>/", OneDraft.as_view(), name="draft"),
    path(f"{PROJECT}dataset-drafts/<int:pk>/cancel/", CancelDraft.as_view(), name="cancel_draft"),
]
