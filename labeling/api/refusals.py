"""What our own exceptions are as answers, and what an unknown address is."""

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions, status
from rest_framework.response import Response
from rest_framework.views import exception_handler

from labeling.members import MayNot
from labeling.places import NotYours


class Conflict(exceptions.APIException):
    """The request was understood, and what it is about has changed meanwhile."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = "This is not possible now."


def refuse(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler, with the exceptions of our domain."""
    if isinstance(error, NotYours):
        error = Conflict(str(error))
    elif isinstance(error, MayNot):
        error = exceptions.PermissionDenied(str(error))
    return exception_handler(error, context)


@csrf_exempt
def unknown_address(request: HttpRequest, rest: str) -> JsonResponse:
    """JSON for programs, in place of the page for people."""
    return JsonResponse(
        {"detail": "There is no such address. They end with a slash: see /api/docs/."}, status=404
    )
