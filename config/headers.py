"""What Django does not do for our responses by itself: headers, and sign-in met by htmx."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.shortcuts import resolve_url
from django.utils.translation import gettext as _

# Everything comes from our own host: responses are untrusted text, and a page must work offline.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: no inline script, no inline style, no outside host."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return middleware


def sign_in_is_a_page(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: htmx is never led to the sign-in page, which would land inside a fragment.

    A reading fragment has its whole page loaded again, so that the person signs in and comes back.
    A writing one gets 403, so that what was typed stays in sight beside the message.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        location = response.headers.get("Location", "").partition("?")[0]
        if not request.htmx or location != resolve_url(settings.LOGIN_URL):
            return response
        refused = HttpResponseForbidden(_("You are signed out."), content_type="text/plain")
        if request.method == "GET":
            refused.headers["HX-Refresh"] = "true"
        return refused

    return middleware
