"""Deleting a run or a model, for programs: the call names everything that goes with it."""

from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.api.idempotency import idempotent
from labeling.api.refusals import Conflict
from training.api.models import model_of
from training.api.runs import runs_of
from training.registry import StillInUse, delete_model, delete_run
from training.serializers import DeleteSerializer


@extend_schema(tags=["Training"])
class DeleteModel(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeleteSerializer

    @extend_schema(request=DeleteSerializer, responses={200: DeleteSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Delete a model with all that was made from it; the call names each of them."""
        return _deleted(request, model_of(request, pk), delete_model)


@extend_schema(tags=["Training"])
class DeleteRun(GenericAPIView):
    allowed = {"POST": "lead"}
    serializer_class = DeleteSerializer

    @extend_schema(request=DeleteSerializer, responses={200: DeleteSerializer})
    @idempotent
    def post(self, request: Request, slug: str, pk: int) -> Response:
        """Delete a run with its steps, checkpoints and studies, and its model with all that was
        made from it; the call names each model."""
        return _deleted(request, get_object_or_404(runs_of(request), pk=pk), delete_run)


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
