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
from labeling.api.reading import AsFarAsTimeAllows
from labeling.api.refusals import Conflict
from labeling.changes import note_change
from labeling.imports.records import store_records
from labeling.models import Assignment, Comparison, Flag, Project
from labeling.models import Response as ModelResponse
from labeling.places import count_places, lock_people
from labeling.queue import CHANGED_AT_ONCE, TooMany, change_many, filtered, selected
from labeling.serializers.comparisons import (
    ChangedSerializer,
    ChangeManySerializer,
    ComparisonFilter,
    ComparisonSerializer,
    GivenComparisonSerializer,
    ResponseSerializer,
    RowsSerializer,
    StoredRowsSerializer,
)
from labeling.sets import ask_entrance_again, move_locked

CHANGEABLE = ("gold", "purpose", "labels_wanted", "priority")


@extend_schema(tags=["Comparisons"])
class Comparisons(ListAPIView):
    allowed = {"GET": MEMBER, "POST": "lead"}

    def get_serializer_class(self) -> Any:
        return _shown_to(self.request)

    pagination_class = AsFarAsTimeAllows

    def get_queryset(self) -> Any:
        given = ComparisonFilter(data=self.request.query_params)
        given.is_valid(raise_exception=True)
        visible = _visible(self.request)
        if "view" not in self.request.project.may:
            return visible  # a filter by purpose would say which ones are gold
        asked = _asked(given.validated_data)
        self.matches = _filtered(self.request.project, asked) if asked else None
        return visible

    @extend_schema(parameters=[ComparisonFilter], responses=ComparisonSerializer(many=True))
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Comparisons, newest first.

        Raters see what they were given, as it was shown to them; filters are not for them. With a
        filter a page may be short or empty, where looking took long: follow `next` all the same.
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
class ChangeMany(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = ChangeManySerializer

    @extend_schema(request=ChangeManySerializer, responses={200: ChangedSerializer})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Change up to 10,000 comparisons at once: priority, wanted labels, purpose, known answer,
        or out of the queue and back.

        What is of another project is passed over. A filter that lets more through, or that takes
        too long, gets 409, and nothing is changed.
        """
        given = ChangeManySerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked, project = given.validated_data, request.project
        pks = asked.get("comparisons")
        if pks is None:
            try:
                pks = selected(project, _filtered(project, _asked(asked["filter"])))
            except TooMany:
                raise Conflict(
                    f"At most {CHANGED_AT_ONCE:,} comparisons are changed at once, and they must "
                    "be found in time. Narrow the filter."
                ) from None
        done = change_many(
            project, pks, asked["action"], asked["value"], request.user, asked["note"]
        )
        body = {"changed": done.n, "left": done.n_left, "why_left": done.why_left}
        return Response(body)


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
        lock_people(request.project)
        asked = request.data if isinstance(request.data, dict) else {}
        named = _visible(request).filter(pk=pk)
        ready = named if asked.get("gold") else named.exclude(gold="")
        ask_entrance_again(request.project, asked.get("purpose", ""), ready)
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
            move_locked(request.project, [pk], purpose, request.user)
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


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """The filters that are set."""
    return {name: value for name, value in given.items() if value not in (None, "")}


def _filtered(project: Project, asked: dict[str, Any]) -> Any:
    """The project's comparisons that pass the filters, as the queue's page filters them."""
    asked = dict(asked)
    own = {name: asked.pop(name, None) for name in ("external_id", "flagged", "decided", "leaks")}
    if own["decided"] is not None:
        asked["decision"] = "yes" if own["decided"] else "no"
    if own["leaks"] is not None:
        asked["leak"] = "yes" if own["leaks"] else "no"
    is_full = asked.get("state") == "full"
    if is_full:
        del asked["state"]
    if "rater" in asked:
        asked["rater"] = project.raters.filter(pk=asked["rater"]).first()
        if asked["rater"] is None:
            raise exceptions.ValidationError({"rater": ["No such rater in this project."]})
    rows = filtered(project, **asked)
    if is_full:
        rows = rows.filter(open_places=0)
    if own["external_id"] is not None:
        rows = rows.filter(external_id=own["external_id"])
    if own["flagged"] is not None:
        unresolved = Exists(Flag.objects.filter(comparison=OuterRef("pk"), resolved_at=None))
        rows = rows.filter(unresolved if own["flagged"] else ~unresolved)
    return rows


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
