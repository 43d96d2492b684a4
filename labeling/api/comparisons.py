"""Comparisons and responses: read, made from rows, and set to another priority or purpose."""

from dataclasses import asdict
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Subquery
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.access import MEMBER
from labeling.api.idempotency import idempotent
from labeling.assignment import count_places, lock_people, set_purpose
from labeling.changes import note_change
from labeling.imports.records import store_records
from labeling.models import Assignment, Comparison, Decision, Flag
from labeling.models import Response as ModelResponse
from labeling.serializers import (
    ComparisonFilter,
    ComparisonSerializer,
    GivenComparisonSerializer,
    ResponseSerializer,
    RowsSerializer,
    StoredRowsSerializer,
)

CHANGEABLE = ("gold", "purpose", "labels_wanted", "priority")


@extend_schema(tags=["Comparisons"])
class Comparisons(ListAPIView):
    allowed = {"GET": MEMBER, "POST": "lead"}

    def get_serializer_class(self) -> Any:
        return _shown_to(self.request)

    def get_queryset(self) -> Any:
        given = ComparisonFilter(data=self.request.query_params)
        given.is_valid(raise_exception=True)
        visible = _visible(self.request)
        if "view" not in self.request.project.may:
            return visible  # a filter by purpose would say which ones are gold
        return _filtered(visible, given.validated_data)

    @extend_schema(parameters=[ComparisonFilter], responses=ComparisonSerializer(many=True))
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Comparisons, newest first.

        Raters see what they were given, as it was shown to them; filters are not for them.
        """
        return self.list(request, *args, **kwargs)

    @extend_schema(request=RowsSerializer, responses={200: StoredRowsSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Make comparisons of up to 1,000 rows of the interchange form.

        Each row is told what became of it; a row that is there already is not written twice.
        """
        given = RowsSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data.get("labels_per_comparison")
        records = given.validated_data["rows"]
        rows, stored = store_records(request.project, records, wanted, actor=request.user)
        body = {
            "created": stored.created,
            "duplicates": stored.duplicates,
            "rejected": sum(row.result == "rejected" for row in rows),
            "preferences": stored.preferences,
            "verdicts": stored.verdicts,
            "rows": [asdict(row) for row in rows],
        }
        return Response(body, status=status.HTTP_200_OK)


@extend_schema(tags=["Comparisons"])
class OneComparison(GenericAPIView):
    allowed = {"GET": MEMBER, "PATCH": "lead"}
    serializer_class = ComparisonSerializer

    def get(self, request: Request, slug: str, pk: int) -> Response:
        """One comparison."""
        comparison = get_object_or_404(_visible(request), pk=pk)
        return Response(_shown_to(request)(comparison).data)

    @transaction.atomic
    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Change `priority`, `labels_wanted`, `gold` or `purpose`.

        Whatever is no work (training, qualification, check) has a known answer and wants no labels.
        """
        lock_people(request.project)  # a set that grows is asked of everybody again
        locked = _visible(request).select_for_update(of=("self",), no_key=True)
        comparison = get_object_or_404(locked, pk=pk)
        given = ComparisonSerializer(comparison, data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        change = dict(given.validated_data)
        _check(comparison, change)
        before = {name: getattr(comparison, name) for name in CHANGEABLE}
        purpose = change.pop("purpose", comparison.purpose)
        if "gold" in change:  # first, because a set asks for it
            Comparison.objects.filter(pk=pk).update(gold=change.pop("gold"))
        if purpose != comparison.purpose:
            set_purpose(request.project, [pk], purpose, request.user)
        if change:
            Comparison.objects.filter(pk=pk).update(**change)
            count_places([pk])
        comparison = _visible(request).get(pk=pk)
        after = {name: getattr(comparison, name) for name in CHANGEABLE}
        note_change(
            request.project,
            request.user,
            "change comparison",
            f"comparison {pk}",
            before=before,
            after=after,
        )
        return Response(ComparisonSerializer(comparison).data)


@extend_schema(tags=["Comparisons"])
class Responses(ListAPIView):
    """Responses with the models they came from, newest first."""

    allowed = {"GET": "view"}
    serializer_class = ResponseSerializer

    def get_queryset(self) -> Any:
        return ModelResponse.objects.filter(prompt__project=self.request.project)


def _visible(request: Request) -> Any:
    comparisons = request.project.comparisons.select_related("prompt", "response_a", "response_b")
    if "view" in request.project.may:
        return comparisons
    given = Assignment.objects.filter(
        comparison=OuterRef("pk"), rater__user=request.user.pk, repeats=None
    )
    shown = Subquery(given.values("shown_first")[:1])
    return comparisons.filter(Exists(given)).annotate(shown_first=shown)


def _shown_to(request: Request) -> Any:
    project = getattr(request, "project", None)  # none while the schema is drawn
    sees_all = project is None or "view" in project.may
    return ComparisonSerializer if sees_all else GivenComparisonSerializer


def _filtered(comparisons: Any, given: dict[str, Any]) -> Any:
    for name in ("purpose", "external_id"):
        if name in given:
            comparisons = comparisons.filter(**{name: given[name]})
    if "state" in given:
        has_place = {"open_places__gt": 0} if given["state"] == "open" else {"open_places": 0}
        comparisons = comparisons.filter(**has_place)
    if given["flagged"] is not None:
        flagged = Exists(Flag.objects.filter(comparison=OuterRef("pk"), resolved_at=None))
        comparisons = comparisons.filter(flagged if given["flagged"] else ~flagged)
    if given["decided"] is not None:
        decided = Exists(Decision.objects.filter(comparison=OuterRef("pk"), superseded_at=None))
        comparisons = comparisons.filter(decided if given["decided"] else ~decided)
    return comparisons


def _check(comparison: Comparison, change: dict[str, Any]) -> None:
    """Raises: ValidationError if the comparison would be no valid member of its set."""
    purpose = change.get("purpose", comparison.purpose)
    if purpose == Comparison.Purpose.WORK:
        return
    problems = {}
    if not change.get("gold", comparison.gold):
        problems["gold"] = ["A comparison of a set needs a known answer."]
    if change.get("labels_wanted"):
        problems["labels_wanted"] = ["A comparison of a set wants no labels."]
    if comparison.response_set_id is not None:
        problems["purpose"] = ["Pairs of a ranking are judged as a whole."]
    if problems:
        raise exceptions.ValidationError(problems)
