"""Judges for programs: what there is, and put one to work."""

from typing import Any

from django.db import transaction
from django.shortcuts import get_object_or_404
from django.urls import path
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from judges.certificates import (
    NotReady,
    RoutingActive,
    policy_of,
    revoke,
    set_policy,
    withdraw_if_due,
)
from judges.certificates import (
    new_run as new_routing_run,
)
from judges.choosing import NoSuchCalibration, choose
from judges.judging import judge_version
from judges.laboratory import NothingLabeled, compute_again, grid, new_experiment
from judges.models import Certificate, JudgeRun
from judges.outlook import outlook
from judges.runs import BudgetUnknown, RunActive, add_worker, new_run, raise_budget, requeue
from judges.selection import selection_of
from judges.serializers import (
    CertificateSerializer,
    ChosenJudgeSerializer,
    ExperimentResultSerializer,
    ExperimentSerializer,
    JudgeRunSerializer,
    JudgeSerializer,
    LaunchSerializer,
    NewExperimentSerializer,
    NewJudgeSerializer,
    OneJudgeRunSerializer,
    ResumeSerializer,
    RevokeSerializer,
    RoutingPolicySerializer,
    RoutingRequestSerializer,
    RoutingRunSerializer,
    RoutingSerializer,
    UseSerializer,
)
from judges.tasks import settle_judge
from labeling.api.access import PerMinute, StartsPerMinute
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict


@extend_schema(tags=["Judges"])
class Judges(ListAPIView):
    """The project's judges with their versions."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = JudgeSerializer

    def get_queryset(self) -> Any:
        return self.request.project.judges.prefetch_related("versions__server")

    @extend_schema(
        request=NewJudgeSerializer, responses={200: JudgeSerializer, 201: JudgeSerializer}
    )
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Make a judge, or a new version of one; 200 if there is a version with these settings."""
        context = {"project": request.project, "user": request.user}
        given = NewJudgeSerializer(data=request.data, context=context)
        given.is_valid(raise_exception=True)
        values = given.validated_data
        version, is_new = judge_version(
            request.project,
            values["name"],
            values["model"],
            values["recipe"],
            request.user,
            prompt=values["prompt"],
            server=values["server"],
        )
        judge = self.get_queryset().get(pk=version.judge_id)
        made = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
        return Response(JudgeSerializer(judge).data, status=made)


@extend_schema(tags=["Judges"])
class OneJudge(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = JudgeSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One judge."""
        judges = request.project.judges.prefetch_related("versions__server")
        return Response(JudgeSerializer(get_object_or_404(judges, pk=pk)).data)


@extend_schema(tags=["Judges"])
class JudgeRuns(ListAPIView):
    """Runs of the project's judges, newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = JudgeRunSerializer

    def get_queryset(self) -> Any:
        return _runs(self.request)

    @extend_schema(request=LaunchSerializer, responses={202: JudgeRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Put a judge to work on what it has not judged yet; 409 if it is at work or has nothing
        left."""
        given = LaunchSerializer(data=request.data, context={"project": request.project})
        given.is_valid(raise_exception=True)
        wanted = dict(given.validated_data)
        version, which = wanted.pop("version"), wanted.pop("select")
        wanted["selection"] = selection_of(which)
        try:
            with transaction.atomic():
                run = new_run(version, user=request.user, **wanted)
                if not run.n_total:
                    raise Conflict(f"{version} has nothing left to judge.")
                run.enqueue()
        except (RunActive, BudgetUnknown) as error:
            raise Conflict(str(error)) from None
        return Response(JudgeRunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Judges"])
class OneJudgeRun(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = OneJudgeRunSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far a run is; `result` is what `judge --json` prints at its end."""
        return Response(OneJudgeRunSerializer(get_object_or_404(_runs(request), pk=pk)).data)


@extend_schema(tags=["Judges"])
class CancelJudgeRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = JudgeRunSerializer

    @extend_schema(request=None, responses={200: JudgeRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop a run. What its workers hold is dropped within seconds; what is judged is kept."""
        run = get_object_or_404(_runs(request), pk=pk)
        run.request_cancel()
        return Response(JudgeRunSerializer(run).data)


@extend_schema(tags=["Judges"])
class PauseJudgeRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = JudgeRunSerializer

    @extend_schema(request=None, responses={200: JudgeRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Let a run keep its place: at once while it waits, after the batch in hand while it
        works."""
        run = get_object_or_404(_runs(request), pk=pk)
        run.request_pause()
        return Response(JudgeRunSerializer(run).data)


@extend_schema(tags=["Judges"])
class AnotherWorker(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = JudgeRunSerializer

    @extend_schema(request=None, responses={202: JudgeRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Let one more worker share a run; 409 if it has ended."""
        run = get_object_or_404(_runs(request), pk=pk)
        with transaction.atomic():
            if not add_worker(run):
                raise Conflict(f"This run is {run.status}: nobody is at work on it.")
            run.refresh_from_db()
            run.wake_worker()
        return Response(JudgeRunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Judges"])
class ResumeJudgeRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = JudgeRunSerializer

    @extend_schema(request=ResumeSerializer, responses={202: JudgeRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Queue a stopped run again, perhaps with other limits; what it has judged is kept."""
        run = get_object_or_404(_runs(request), pk=pk)
        given = ResumeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            with transaction.atomic():
                raise_budget(run, **given.validated_data)
                if not requeue(run):
                    raise Conflict(f"This run is {run.status}: there is nothing to resume.")
                run.enqueue()
        except (RunActive, BudgetUnknown) as error:
            raise Conflict(str(error)) from None
        return Response(JudgeRunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Laboratory"])
class Experiments(ListAPIView):
    """Experiments of the laboratory, newest first; their results stand with each of them."""

    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = ExperimentSerializer

    def get_queryset(self) -> Any:
        return _experiments(self.request)

    @extend_schema(request=NewExperimentSerializer, responses={202: ExperimentSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Hold judges against people; 409 if people have labeled nothing, or a combination of
        judge, prompt and mode cannot be."""
        given = NewExperimentSerializer(data=request.data, context={"project": request.project})
        given.is_valid(raise_exception=True)
        values = given.validated_data
        try:
            with transaction.atomic():
                versions = grid(
                    values["versions"], values["prompts"], values["modes"], user=request.user
                )
                experiment = new_experiment(
                    request.project,
                    values["name"],
                    versions,
                    most=values["most"],
                    epsilon=values["epsilon"],
                    user=request.user,
                )
                experiment.enqueue()
        except (NothingLabeled, ValueError) as error:
            raise Conflict(str(error)) from None
        return Response(ExperimentSerializer(experiment).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Laboratory"])
class OneExperiment(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ExperimentResultSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """How far an experiment is, and what its judges come to: see docs/laboratory.md."""
        experiment = get_object_or_404(_experiments(request), pk=pk)
        return Response(ExperimentResultSerializer(experiment).data)


@extend_schema(tags=["Laboratory"])
class CancelExperiment(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ExperimentSerializer

    @extend_schema(request=None, responses={200: ExperimentSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Stop an experiment; what it has judged is kept."""
        experiment = get_object_or_404(_experiments(request), pk=pk)
        experiment.request_cancel()
        return Response(ExperimentSerializer(experiment).data)


@extend_schema(tags=["Laboratory"])
class ResumeExperiment(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ExperimentSerializer

    @extend_schema(request=None, responses={202: ExperimentSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Go on with a stopped experiment, or compute a finished one's figures anew."""
        experiment = get_object_or_404(_experiments(request), pk=pk)
        with transaction.atomic():
            if not compute_again(experiment):
                raise Conflict(f"This experiment is {experiment.status}.")
            experiment.enqueue()
        return Response(ExperimentSerializer(experiment).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Laboratory"])
class UseJudge(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ChosenJudgeSerializer

    @extend_schema(request=UseSerializer, responses={200: ChosenJudgeSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Make a judge of the experiment the project's own, its calibration frozen; what it has
        judged becomes its labels. 409 if the experiment has not fitted such a calibration."""
        experiment = get_object_or_404(_experiments(request), pk=pk)
        given = UseSerializer(data=request.data, context={"experiment": experiment})
        given.is_valid(raise_exception=True)
        try:
            chosen = choose(
                given.validated_data["version"],
                user=request.user,
                experiment=experiment,
                method=given.validated_data["method"],
            )
            settle_judge.delay_on_commit(chosen.version_id)
        except NoSuchCalibration as error:
            raise Conflict(str(error)) from None
        return Response(ChosenJudgeSerializer(chosen).data)


@extend_schema(tags=["Routing"])
class Routing(GenericAPIView):
    allowed = {"GET": "view", "POST": "lead"}
    throttle_classes = [PerMinute, StartsPerMinute]
    serializer_class = RoutingSerializer

    @extend_schema(
        parameters=[
            OpenApiParameter("alpha", float, description="Look at other errors allowed."),
            OpenApiParameter("delta", float, description="Look at another risk."),
        ]
    )
    def get(self, request: Request, slug: str) -> Response:
        """What the AI may decide alone, on what was last counted; looking tests nothing."""
        policy = policy_of(request.project)
        asked = {name: request.GET[name] for name in ("alpha", "delta") if name in request.GET}
        context = {"project": request.project}
        given = RoutingPolicySerializer(policy, data=asked, partial=True, context=context)
        given.is_valid(raise_exception=True)
        for name, value in given.validated_data.items():
            setattr(policy, name, value)
        found = {"policy": policy, "outlook": outlook(request.project, policy)}
        return Response(RoutingSerializer(found).data)

    @extend_schema(request=RoutingRequestSerializer, responses={202: RoutingRunSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Count the audit stream anew, test for a certificate, or route again; 409 while that is
        going on, or without a judge. What is given of the policy is kept first."""
        context = {"project": request.project}
        given = RoutingRequestSerializer(data=request.data, partial=True, context=context)
        given.is_valid(raise_exception=True)
        values = dict(given.validated_data)
        kind = values.pop("kind", "count")
        try:
            with transaction.atomic():
                if values:
                    set_policy(request.project, request.user, **values)
                run = new_routing_run(request.project, kind, request.user)
                run.enqueue()
        except (RoutingActive, NotReady) as error:
            raise Conflict(str(error)) from None
        return Response(RoutingRunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


@extend_schema(tags=["Routing"])
class Certificates(ListAPIView):
    """The project's tests and what became of them, newest first."""

    allowed = {"GET": "view"}
    serializer_class = CertificateSerializer

    def get_queryset(self) -> Any:
        return self.request.project.certificates.prefetch_related("stages__version__judge")


@extend_schema(tags=["Routing"])
class RevokeCertificate(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = CertificateSerializer

    @extend_schema(request=RevokeSerializer, responses={200: CertificateSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """End a certificate; a worker takes back what it let stand. 409 if it is not in force."""
        certificate = get_object_or_404(request.project.certificates, pk=pk)
        given = RevokeSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        note = given.validated_data["note"]
        if not revoke(certificate, Certificate.Reason.LEAD, user=request.user, note=note):
            raise Conflict(f"This certificate is {certificate.status}.")
        withdraw_if_due(request.project)
        return Response(CertificateSerializer(certificate).data)


def _experiments(request: Request) -> Any:
    return request.project.experiments.prefetch_related("cells").order_by("-pk")


def _runs(request: Request) -> Any:
    runs = JudgeRun.objects.filter(version__judge__project=request.project)
    return runs.select_related("version__judge", "version__server")


PROJECT = "projects/<slug:slug>/"
app_name = "judges-api"
urlpatterns = [
    path(f"{PROJECT}judges/", Judges.as_view(), name="judges"),
    path(f"{PROJECT}judges/<int:pk>/", OneJudge.as_view(), name="judge"),
    path(f"{PROJECT}judge-runs/", JudgeRuns.as_view(), name="runs"),
    path(f"{PROJECT}judge-runs/<int:pk>/", OneJudgeRun.as_view(), name="run"),
    path(f"{PROJECT}judge-runs/<int:pk>/cancel/", CancelJudgeRun.as_view(), name="cancel"),
    path(f"{PROJECT}judge-runs/<int:pk>/pause/", PauseJudgeRun.as_view(), name="pause"),
    path(f"{PROJECT}judge-runs/<int:pk>/resume/", ResumeJudgeRun.as_view(), name="resume"),
    path(f"{PROJECT}judge-runs/<int:pk>/worker/", AnotherWorker.as_view(), name="worker"),
    path(f"{PROJECT}experiments/", Experiments.as_view(), name="experiments"),
    path(f"{PROJECT}experiments/<int:pk>/", OneExperiment.as_view(), name="experiment"),
    path(
        f"{PROJECT}experiments/<int:pk>/cancel/",
        CancelExperiment.as_view(),
        name="experiment-cancel",
    ),
    path(
        f"{PROJECT}experiments/<int:pk>/resume/",
        ResumeExperiment.as_view(),
        name="experiment-resume",
    ),
    path(f"{PROJECT}experiments/<int:pk>/use/", UseJudge.as_view(), name="use"),
    path(f"{PROJECT}routing/", Routing.as_view(), name="routing"),
    path(f"{PROJECT}certificates/", Certificates.as_view(), name="certificates"),
    path(f"{PROJECT}certificates/<int:pk>/revoke/", RevokeCertificate.as_view(), name="revoke"),
]
