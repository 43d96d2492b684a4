"""Training for programs: runs, models and datasets; start a run, cancel it, resume it."""

from dataclasses import replace
from typing import Any

from django.core.exceptions import ValidationError as Refused
from django.db.models import Prefetch
from django.http import FileResponse, Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils.translation import gettext_noop
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import JobsPerMinute, PerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from labeling.changes import note_event
from labeling.reports import compute_anew
from labeling.storage import check_model_name, storage_path
from training.arenas import ArenaSettings, compare_policies, start_arena
from training.cards import card_of
from training.dataset_settings import DatasetSettings
from training.datasets import dataset_named
from training.merges import start_merge
from training.model_files import folder_of, serving_command, start_export, zipped
from training.models import (
    Arena,
    DatasetDraft,
    ModelExport,
    ModelVersion,
    Round,
    Run,
    SideBySide,
    Study,
)
from training.playground import QueueFull, send_to_people, start_pair
from training.registry import StillInUse, delete_model, delete_run, describe
from training.reports import can_report
from training.round_chain import start_training
from training.rounds import defaults_for, measure_round, start_round
from training.runs import cancel_run, resume_run, start_run
from training.serializers import (
    ArenaSerializer,
    AskSerializer,
    BuildSerializer,
    CardSerializer,
    DatasetSerializer,
    DeleteSerializer,
    DescribeSerializer,
    DraftSerializer,
    ExportSerializer,
    MergeSerializer,
    ModelReportSerializer,
    ModelSerializer,
    OneDatasetSerializer,
    OneRoundSerializer,
    OneSweepSerializer,
    ResumeRunSerializer,
    RoundSerializer,
    RunSerializer,
    ServingSerializer,
    SideBySideSerializer,
    StartArenaSerializer,
    StartExportSerializer,
    StartMergeSerializer,
    StartRoundSerializer,
    StartSerializer,
    StartStudySerializer,
    StartSweepSerializer,
    StudySerializer,
    SweepSerializer,
    TrainRoundSerializer,
)
from training.studies import start_study
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

    @extend_schema(request=ResumeRunSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped run again, from its last checkpoint on; with other limits of what its
        judge may spend, if they are given."""
        run = get_object_or_404(_runs(request), pk=pk)
        given = ResumeRunSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            resumed = resume_run(run, by=request.user, limits=given.validated_data)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        if not resumed:
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
class OneModel(GenericAPIView):
    allowed = {"GET": "view", "PATCH": "lead"}
    serializer_class = ModelSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """A model: what made it, its tags and notes."""
        return Response(ModelSerializer(_model(request, pk)).data)

    @extend_schema(request=DescribeSerializer, responses={200: ModelSerializer})
    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Give a model other tags or notes."""
        model = _model(request, pk)
        given = DescribeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = {"tags": model.tags, "notes": model.notes} | given.validated_data
        describe(model, asked["tags"], asked["notes"], request.user)
        return Response(ModelSerializer(model).data)


@extend_schema(tags=["Training"])
class DeleteModel(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeleteSerializer

    @extend_schema(request=DeleteSerializer, responses={200: DeleteSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Delete a model with all that was made from it; the call names each of them."""
        return _deleted(request, _model(request, pk), delete_model)


@extend_schema(tags=["Training"])
class DeleteRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeleteSerializer

    @extend_schema(request=DeleteSerializer, responses={200: DeleteSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Delete a run with its steps, checkpoints and studies, and its model with all that was
        made from it; the call names each model."""
        return _deleted(request, get_object_or_404(_runs(request), pk=pk), delete_run)


def _deleted(request: Request, subject: Any, delete: Any) -> Response:
    """What `delete_model` or `delete_run` did, or its refusal as an answer."""
    given = DeleteSerializer(data=request.data)
    given.is_valid(raise_exception=True)
    named = request.project.models.filter(name__in=given.validated_data["models"])
    judges = request.project.raters.filter(kind="judge", name__in=given.validated_data["judges"])
    try:
        gone = delete(
            subject,
            request.user,
            agreed=set(named.values_list("pk", flat=True)),
            agreed_judges=set(judges.values_list("pk", flat=True)),
        )
    except StillInUse as problem:
        raise Conflict(str(problem)) from None
    return Response(
        {
            "models": [version.name for version in gone.models],
            "judges": [r.name for r in gone.judges if r.project_id == request.project.pk],
            "checkpoints": len(gone.checkpoints),
        }
    )


@extend_schema(tags=["Training"])
class Merges(ListAPIView):
    """Merges of models, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = MergeSerializer

    def get_queryset(self) -> Any:
        return _merges(self.request)

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

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


@extend_schema(tags=["Training"])
class Playground(ListAPIView):
    """Prompts to which two models answered, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = SideBySideSerializer

    def get_queryset(self) -> Any:
        return self.request.project.sides_by_side.all()

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

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


@extend_schema(tags=["Training"])
class ModelFiles(GenericAPIView):
    allowed = {"GET": "lead"}
    serializer_class = ModelSerializer

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    def get(self, request: Request, slug: str, pk: int) -> StreamingHttpResponse:
        """A model's folder as a zip, made while it is sent."""
        model = _model(request, pk)
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
        found = serving_command(_model(request, pk))
        left_out = [{"model": name, "reason": reason} for name, reason in found["left_out"]]
        return Response({"command": found["command"], "left_out": left_out})


@extend_schema(tags=["Training"])
class Exports(ListAPIView):
    """GGUF files of a model, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = ExportSerializer

    def get_queryset(self) -> Any:
        return _model(self.request, self.kwargs["pk"]).exports.select_related("model")

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    @extend_schema(request=StartExportSerializer, responses={202: ExportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker write a model as GGUF; what cannot become one is refused at once."""
        given = StartExportSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        numbers = given.validated_data["numbers"]
        try:
            export = start_export(request.project, _model(request, pk), numbers, request.user)
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


@extend_schema(tags=["Training"])
class ModelReports(GenericAPIView):
    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = ModelReportSerializer

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """The newest report on a model, or how far it is on its way."""
        reports = _model(request, pk).reports.select_related("model")
        newest = reports.order_by("-pk").first()
        if newest is None:
            raise exceptions.NotFound("There is no report on this model yet.")
        return Response(ModelReportSerializer(newest).data)

    @extend_schema(request=None, responses={202: ModelReportSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker measure a model anew on what its dataset holds out."""
        model = _model(request, pk)
        if not can_report(model):
            raise Conflict("This model learned no pairs: none is held out to measure it on.")
        report = compute_anew(request.project, model.reports)
        return Response(ModelReportSerializer(report).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class Card(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = CardSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """A model's card, written from its lineage; it names no person."""
        return Response({"card": card_of(_model(request, pk))})


@extend_schema(tags=["Training"])
class Studies(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = StudySerializer

    def get_throttles(self) -> list[Any]:
        return [PerMinute(), JobsPerMinute()]

    @extend_schema(request=StartStudySerializer, responses={202: StudySerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker train a study's reward models with the settings of a finished run."""
        given = StartStudySerializer(data=request.data)
        given.is_valid(raise_exception=True)
        run = get_object_or_404(_runs(request), pk=pk)
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


@extend_schema(tags=["Training"])
class Rounds(ListAPIView):
    """Rounds of labels and training, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = RoundSerializer

    def get_queryset(self) -> Any:
        return self.request.project.rounds.all()

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    @extend_schema(request=StartRoundSerializer, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker sample responses and give people the pairs that are worth a label."""
        given = StartRoundSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        if "models" in asked:
            asked["models"] = tuple(asked["models"])
        try:
            settings = replace(defaults_for(request.project), **asked)
            made = start_round(request.project, settings, request.user)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(RoundSerializer(made).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneRound(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = OneRoundSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a round and its labels are, and what it brought."""
        return Response(OneRoundSerializer(_round(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={200: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a round; what it has sampled is kept."""
        found = _round(request, pk)
        found.request_cancel()
        return Response(RoundSerializer(found).data)


@extend_schema(tags=["Training"])
class ResumeRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped round again; it goes on with the next prompts."""
        found = _round(request, pk)
        if not found.resume():
            raise Conflict(f"This round is {found.status}: there is nothing to resume.")
        return Response(RoundSerializer(found).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class TrainRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RunSerializer

    @extend_schema(request=TrainRoundSerializer, responses={202: RunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Start the round's run on the labels of now, as the project's last one of its kind. For
        PPO the reward model comes first, where the round has none yet; the policy and the arena
        follow by themselves."""
        given = TrainRoundSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            run = start_training(_round(request, pk), given.validated_data["kind"], request.user)
        except (ValueError, OSError) as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class CompareRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Give people pairs of the round's policy and the one before, blind."""
        try:
            arena = compare_policies(_round(request, pk), request.user)
        except ValueError as problem:
            raise Conflict(str(problem)) from None
        return Response(ArenaSerializer(arena).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class MeasureRound(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = RoundSerializer

    @extend_schema(request=None, responses={202: RoundSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Have a worker compute the gain from the labels of now; ask for the round to see it."""
        found = _round(request, pk)
        measure_round(found)
        return Response(RoundSerializer(found).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class Arenas(ListAPIView):
    """Blind arenas, newest first. Who wins stands in the leaderboard."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = ArenaSerializer

    def get_queryset(self) -> Any:
        return self.request.project.arenas.all()

    def get_throttles(self) -> list[Any]:
        kinds = [PerMinute, JobsPerMinute] if self.request.method == "POST" else [PerMinute]
        return [kind() for kind in kinds]

    @extend_schema(request=StartArenaSerializer, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Have a worker make the comparisons of these models that are still missing."""
        given = StartArenaSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        try:
            settings = ArenaSettings(**{**asked, "models": tuple(asked["models"])})
            arena = start_arena(request.project, settings, request.user)
        except ValueError as problem:
            raise exceptions.ValidationError({"detail": str(problem)}) from None
        return Response(ArenaSerializer(arena).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Training"])
class OneArena(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ArenaSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far an arena is, and what it made."""
        return Response(ArenaSerializer(_arena(request, pk)).data)


@extend_schema(tags=["Training"])
class CancelArena(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={200: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop an arena; what it has sampled is kept."""
        found = _arena(request, pk)
        found.request_cancel()
        return Response(ArenaSerializer(found).data)


@extend_schema(tags=["Training"])
class ResumeArena(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ArenaSerializer

    @extend_schema(request=None, responses={202: ArenaSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped arena again; it goes on with the next prompts."""
        found = _arena(request, pk)
        if not found.resume():
            raise Conflict(f"This arena is {found.status}: there is nothing to resume.")
        return Response(ArenaSerializer(found).data, status=status.HTTP_202_ACCEPTED)


def _round(request: Request, pk: int) -> Round:
    found: Round = get_object_or_404(request.project.rounds.select_related("project"), pk=pk)
    return found


def _arena(request: Request, pk: int) -> Arena:
    found: Arena = get_object_or_404(request.project.arenas.all(), pk=pk)
    return found


def _model(request: Request, pk: int) -> ModelVersion:
    found: ModelVersion = get_object_or_404(
        request.project.models.select_related("base", "run__dataset", "project"), pk=pk
    )
    return found


def _pair(request: Request, pk: int) -> SideBySide:
    found: SideBySide = get_object_or_404(
        request.project.sides_by_side.select_related("project", "comparison"), pk=pk
    )
    return found


def _export(request: Request, pk: int) -> ModelExport:
    found: ModelExport = get_object_or_404(
        request.project.model_exports.select_related("model"), pk=pk
    )
    return found


def _study(request: Request, pk: int) -> Study:
    found: Study = get_object_or_404(request.project.studies.all(), pk=pk)
    return found


def _draft(request: Request, pk: int) -> DatasetDraft:
    found: DatasetDraft = get_object_or_404(
        request.project.dataset_drafts.select_related("dataset"), pk=pk
    )
    return found


def _merges(request: Request) -> Any:
    return request.project.merges.select_related("base", "model_version").prefetch_related(
        "parts__model"
    )


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
    path(f"{PROJECT}runs/<int:pk>/delete/", DeleteRun.as_view(), name="delete_run"),
    path(f"{PROJECT}runs/<int:pk>/studies/", Studies.as_view(), name="studies"),
    path(f"{PROJECT}studies/<int:pk>/", OneStudy.as_view(), name="study"),
    path(f"{PROJECT}studies/<int:pk>/cancel/", CancelStudy.as_view(), name="cancel_study"),
    path(f"{PROJECT}studies/<int:pk>/resume/", ResumeStudy.as_view(), name="resume_study"),
    path(f"{PROJECT}sweeps/", Sweeps.as_view(), name="sweeps"),
    path(f"{PROJECT}sweeps/<int:pk>/", OneSweep.as_view(), name="sweep"),
    path(f"{PROJECT}sweeps/<int:pk>/cancel/", CancelSweep.as_view(), name="cancel_sweep"),
    path(f"{PROJECT}models/", Models.as_view(), name="models"),
    path(f"{PROJECT}models/<int:pk>/", OneModel.as_view(), name="model"),
    path(f"{PROJECT}models/<int:pk>/delete/", DeleteModel.as_view(), name="delete_model"),
    path(f"{PROJECT}merges/", Merges.as_view(), name="merges"),
    path(f"{PROJECT}merges/<int:pk>/", OneMerge.as_view(), name="merge"),
    path(f"{PROJECT}merges/<int:pk>/cancel/", CancelMerge.as_view(), name="cancel_merge"),
    path(f"{PROJECT}merges/<int:pk>/resume/", ResumeMerge.as_view(), name="resume_merge"),
    path(f"{PROJECT}models/<int:pk>/report/", ModelReports.as_view(), name="report"),
    path(f"{PROJECT}models/<int:pk>/card/", Card.as_view(), name="card"),
    path(f"{PROJECT}models/<int:pk>/files/", ModelFiles.as_view(), name="files"),
    path(f"{PROJECT}models/<int:pk>/serving/", Serving.as_view(), name="serving"),
    path(f"{PROJECT}models/<int:pk>/exports/", Exports.as_view(), name="exports"),
    path(f"{PROJECT}exports/<int:pk>/", OneExport.as_view(), name="export"),
    path(f"{PROJECT}exports/<int:pk>/cancel/", CancelExport.as_view(), name="cancel_export"),
    path(f"{PROJECT}exports/<int:pk>/file/", ExportedFile.as_view(), name="exported_file"),
    path(f"{PROJECT}playground/", Playground.as_view(), name="playground"),
    path(f"{PROJECT}playground/<int:pk>/", OnePair.as_view(), name="pair"),
    path(f"{PROJECT}playground/<int:pk>/cancel/", CancelPair.as_view(), name="cancel_pair"),
    path(f"{PROJECT}playground/<int:pk>/send/", SendPair.as_view(), name="send_pair"),
    path(f"{PROJECT}datasets/", Datasets.as_view(), name="datasets"),
    path(f"{PROJECT}datasets/<int:pk>/", OneDataset.as_view(), name="dataset"),
    path(f"{PROJECT}dataset-drafts/<int:pk>/", OneDraft.as_view(), name="draft"),
    path(f"{PROJECT}dataset-drafts/<int:pk>/cancel/", CancelDraft.as_view(), name="cancel_draft"),
    path(f"{PROJECT}rounds/", Rounds.as_view(), name="rounds"),
    path(f"{PROJECT}rounds/<int:pk>/", OneRound.as_view(), name="round"),
    path(f"{PROJECT}rounds/<int:pk>/cancel/", CancelRound.as_view(), name="cancel_round"),
    path(f"{PROJECT}rounds/<int:pk>/resume/", ResumeRound.as_view(), name="resume_round"),
    path(f"{PROJECT}rounds/<int:pk>/train/", TrainRound.as_view(), name="train_round"),
    path(f"{PROJECT}rounds/<int:pk>/compare/", CompareRound.as_view(), name="compare_round"),
    path(f"{PROJECT}rounds/<int:pk>/measure/", MeasureRound.as_view(), name="measure_round"),
    path(f"{PROJECT}arenas/", Arenas.as_view(), name="arenas"),
    path(f"{PROJECT}arenas/<int:pk>/", OneArena.as_view(), name="arena"),
    path(f"{PROJECT}arenas/<int:pk>/cancel/", CancelArena.as_view(), name="cancel_arena"),
    path(f"{PROJECT}arenas/<int:pk>/resume/", ResumeArena.as_view(), name="resume_arena"),
]
