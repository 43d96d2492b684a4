"""What was said of comparisons: preferences, flags, and decisions of leads."""

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.access import permissions
from labeling.adjudication import decide, withdraw_decision
from labeling.answering import revise_preference
from labeling.api.access import MEMBER
from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from labeling.flags import reopen_flag, resolve_flag
from labeling.models import Decision, Flag, Preference
from labeling.serializers.answers import (
    DecisionSerializer,
    FlagFilter,
    FlagSerializer,
    OwnPreferenceSerializer,
    PreferenceFilter,
    PreferenceSerializer,
    ResolveSerializer,
)
from labeling.serializers.work import JudgementSerializer


@extend_schema(tags=["Answers"])
class Preferences(ListAPIView):
    allowed = {"GET": MEMBER}

    def get_serializer_class(self) -> Any:
        project = getattr(self.request, "project", None)  # none while the schema is drawn
        sees_all = project is None or "view" in project.may
        return PreferenceSerializer if sees_all else OwnPreferenceSerializer

    def get_queryset(self) -> Any:
        given = PreferenceFilter(data=self.request.query_params)
        given.is_valid(raise_exception=True)
        return _filtered(self._visible(), given.validated_data)

    def _visible(self) -> Any:
        project = self.request.project
        preferences = Preference.objects.filter(rater__project=project).select_related("rater")
        if "view" in project.may:
            return preferences
        return _shown(preferences.filter(rater__user=self.request.user.pk))

    @extend_schema(parameters=[PreferenceFilter], responses=PreferenceSerializer(many=True))
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Answers of people and judges, newest first. Raters see their own."""
        return self.list(request, *args, **kwargs)


@extend_schema(tags=["Labeling"])
class OnePreference(GenericAPIView):
    allowed = {"PATCH": "label"}
    serializer_class = JudgementSerializer

    @extend_schema(request=JudgementSerializer, responses={200: OwnPreferenceSerializer})
    def patch(self, request: Request, pk: int) -> Response:
        """Replace an earlier answer of one's own; what it was is kept."""
        mine = Preference.objects.select_related("rater__project").filter(rater__user=request.user)
        preference = get_object_or_404(_shown(mine), pk=pk)
        project = preference.rater.project
        if "label" not in permissions(request.user, project):
            self.permission_denied(
                request, "Your role in this project does not allow you to label."
            )
        given = JudgementSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        given.check_against(project)
        said = given.judgement(preference.shown_first)
        revised = revise_preference(preference.rater, preference, **said)
        return Response(OwnPreferenceSerializer(revised).data)


@extend_schema(tags=["Answers"])
class Decisions(ListAPIView):
    """Decisions of leads, those that were replaced too; newest first."""

    allowed = {"GET": "view", "POST": "lead"}
    serializer_class = DecisionSerializer

    def get_queryset(self) -> Any:
        return _decisions(self.request)

    @extend_schema(request=DecisionSerializer, responses={201: DecisionSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Decide a comparison: for training in place of the votes, for agreement not at all."""
        given = DecisionSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        said = given.validated_data
        comparison = get_object_or_404(request.project.comparisons, pk=said["comparison_id"])
        decision = decide(
            comparison, request.user, said["choice"], strength=said["strength"], note=said["note"]
        )
        return Response(DecisionSerializer(decision).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["Answers"])
class OneDecision(GenericAPIView):
    allowed = {"DELETE": "lead"}
    serializer_class = DecisionSerializer

    @extend_schema(responses={204: OpenApiResponse(description="The votes count again.")})
    def delete(self, request: Request, slug: str, pk: int) -> Response:
        """Withdraw a decision, so that the votes count again."""
        decision = get_object_or_404(_decisions(request), pk=pk)
        if decision.superseded_at is not None:
            raise Conflict("This decision was replaced or withdrawn.")
        withdraw_decision(decision.comparison, request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["Answers"])
class Flags(ListAPIView):
    allowed = {"GET": "view"}
    serializer_class = FlagSerializer

    def get_queryset(self) -> Any:
        given = FlagFilter(data=self.request.query_params)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        flags = Flag.objects.filter(comparison__project=self.request.project)
        for name in ("comparison", "kind"):
            if name in asked:
                flags = flags.filter(**{name: asked[name]})
        if asked["resolved"] is not None:
            flags = flags.filter(resolved_at__isnull=not asked["resolved"])
        return flags.select_related("rater", "resolved_by")

    @extend_schema(parameters=[FlagFilter])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """What raters found wrong with comparisons, newest first."""
        return self.list(request, *args, **kwargs)


@extend_schema(tags=["Answers"])
class OneFlag(GenericAPIView):
    allowed = {"PATCH": "lead"}
    serializer_class = FlagSerializer

    @extend_schema(request=ResolveSerializer, responses={200: FlagSerializer})
    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Say that a flag is dealt with, or open it again."""
        flags = Flag.objects.filter(comparison__project=request.project)
        flag = get_object_or_404(flags.select_related("rater", "resolved_by"), pk=pk)
        given = ResolveSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        change = resolve_flag if given.validated_data["resolved"] else reopen_flag
        change(flag, request.user)
        flag.refresh_from_db()
        return Response(FlagSerializer(flag).data)


def _decisions(request: Request) -> Any:
    decisions = Decision.objects.filter(comparison__project=request.project)
    return decisions.select_related("decided_by", "comparison")


def _shown(preferences: Any) -> Any:
    """Answers to what the rater was shown; what a better answer implied has no places."""
    return preferences.exclude(shown_first="")


def _filtered(preferences: Any, given: dict[str, Any]) -> Any:
    for name in ("comparison", "rater", "choice"):
        if name in given:
            preferences = preferences.filter(**{name: given[name]})
    if "kind" in given:
        preferences = preferences.filter(rater__kind=given["kind"])
    if "created_after" in given:
        preferences = preferences.filter(created_at__gt=given["created_after"])
    return preferences if given["history"] else preferences.current()
