"""How much a request may bring before anybody has looked at it."""

from collections.abc import Callable

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import resolve
from django.utils.translation import gettext as _

LARGEST_PAGE = 2**20
"""Bytes of a form without a file."""
FILES = {"labeling:import", "api:imports"}
"""Routes that take files: they bound their bodies themselves, once they know who asks."""


def bounded_bodies(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: a large body is refused before it is read, unless somebody who is signed in
    sends it to where files are taken. The check for forged requests reads forms whole, and files
    in them are written to the disk.

    After AuthenticationMiddleware, so that it knows who asks; before any view.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.headers.get("Transfer-Encoding"):
            return _refused(request, 411, _("Say how long the body is (Content-Length)."))
        length = request.META.get("CONTENT_LENGTH") or "0"
        if not length.isascii() or not length.isdecimal():
            return _refused(request, 400, _("Content-Length is no number."))
        if int(length) <= LARGEST_PAGE or _bounds_itself(request):
            return get_response(request)
        return _refused(request, 413, _("This is too large to be sent here."))

    return middleware


def _bounds_itself(request: HttpRequest) -> bool:
    is_api = request.path_info.startswith("/api/")
    # A token is looked at by the API, before it reads anything.
    has_token = is_api and request.headers.get("Authorization", "").startswith("Bearer ")
    if not has_token and not request.user.is_authenticated:
        return False
    if is_api and request.content_type == "application/json":
        return int(request.META["CONTENT_LENGTH"]) <= settings.PREFLOOP_API_MAX_BYTES
    try:
        return resolve(request.path_info).view_name in FILES
    except Http404:
        return False


def _refused(request: HttpRequest, status: int, words: str) -> HttpResponse:
    if request.path_info.startswith("/api/"):
        return JsonResponse({"detail": words}, status=status)
    return HttpResponse(words, status=status, content_type="text/plain; charset=utf-8")
