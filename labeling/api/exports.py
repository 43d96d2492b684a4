"""Labels out, as a file that is written while it is read."""

from typing import Any

from django.http import StreamingHttpResponse
from django.utils.translation import gettext_noop
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request

from labeling.api.access import JobsPerMinute, PerMinute
from labeling.changes import note_event
from labeling.export import ExportProblem, default_aggregate, export_rows, suffix_of
from labeling.models import Preference
from labeling.serializers.jobs import ExportSerializer
from labeling.views.exports import CONTENT_TYPES, MOST_FOR_DAWID_SKENE


@extend_schema(tags=["Jobs"])
class Export(GenericAPIView):
    allowed = {"GET": "view"}
    serializer_class = ExportSerializer
    throttle_classes = [PerMinute, JobsPerMinute]

    @extend_schema(
        parameters=[ExportSerializer],
        responses={
            (200, kind.partition(";")[0]): OpenApiTypes.BINARY for kind in CONTENT_TYPES.values()
        },
    )
    def get(self, request: Request, slug: str) -> StreamingHttpResponse:
        """The project's labels as a file, streamed: see docs/export.md for the forms."""
        given = ExportSerializer(data=request.query_params)
        given.is_valid(raise_exception=True)
        asked: dict[str, Any] = given.validated_data
        form, rule = asked["form"], asked["aggregate"] or default_aggregate(asked["form"])
        if rule == "dawid-skene":
            answers = Preference.objects.current().filter(comparison__project=request.project)
            if answers.count() > MOST_FOR_DAWID_SKENE:
                why = "Weighing so many answers takes long: use the command export_preferences."
                raise exceptions.ValidationError({"aggregate": [why]})
        try:
            rows = export_rows(request.project, form, asked["labels"], rule)
        except ExportProblem as problem:
            raise exceptions.ValidationError({"form": [str(problem)]}) from None
        suffix = suffix_of(form)
        response = StreamingHttpResponse(rows, content_type=CONTENT_TYPES[suffix])
        name = f"{slug}.{form}.{asked['labels']}.{rule}{suffix}"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        note_event(request.user, gettext_noop("download"), name, project=request.project)
        # A proxy (nginx) would gather the whole file before it passes the first byte on.
        response.headers["X-Accel-Buffering"] = "no"
        return response
