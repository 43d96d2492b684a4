"""Who may call which route: a token or a session, its scope, and the role in the project."""

import time
from typing import Any

from django.conf import settings
from django.core.cache import cache
from rest_framework import authentication, exceptions, permissions, throttling
from rest_framework.request import Request

from labeling.access import project_for
from labeling.models import ApiToken
from labeling.tokens import valid_token

Scope = ApiToken.Scope

MEMBER = "member"
"""Any role in the project; see labeling.access.PERMISSIONS for the others."""
ANYONE = "anyone"
"""Whoever is signed in: routes without a project."""


class BearerToken(authentication.BaseAuthentication):
    """`Authorization: Bearer pf_…`"""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        kind, _, secret = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            return None
        token = valid_token(secret.strip())
        if token is None:
            raise exceptions.AuthenticationFailed("This token is unknown, expired or revoked.")
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class Allowed(permissions.BasePermission):
    """The default of every route: the token's scope, then the role in the project of the address.

    A view says in `allowed` what each of its methods needs: "view", "label" or "lead" in the
    project, MEMBER or ANYONE. A method that is missing there is refused, so that a new route
    cannot be left open. The project is then `request.project`.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not (request.user and request.user.is_authenticated):
            return False
        method = "GET" if request.method == "HEAD" else request.method
        needed = view.allowed.get(method)
        if needed is None:
            # Without a handler the answer is 405, which comes next.
            return not hasattr(view, str(method).lower())
        scope = scope_of(method, needed)
        if request.auth is not None and scope not in request.auth.scopes:
            raise exceptions.PermissionDenied(f"This token lacks the scope “{scope}”.")
        if "slug" in view.kwargs:
            role = None if needed in (MEMBER, ANYONE) else needed
            request.project = project_for(request.user, view.kwargs["slug"], to=role)
        return True


def scope_of(method: str, needed: str) -> str:
    """The scope that a token needs for a method of a route."""
    if method == "GET":
        return Scope.READ
    return Scope.LABEL if needed in ("label", MEMBER) else Scope.LEAD


class PerMinute(throttling.BaseThrottle):
    """So many requests a minute for each token (or signed-in person), counted apart by scope.

    The counts live in Django's cache. Its default is the memory of one process, so each server
    process counts alone, and two let up to twice as many through: a limit against runaway scripts
    need not be exact, and a row in the database for every request would cost more than most
    requests. With CACHE_URL=redis://… they share one count.
    """

    name, setting = "", "PREFLOOP_API_PER_MINUTE"

    def allow_request(self, request: Request, view: Any) -> bool:
        most = getattr(settings, self.setting)
        if not most:
            return True
        caller = f"token-{request.auth.pk}" if request.auth else f"user-{request.user.pk}"
        scope = self.name or scope_of(request.method, view.allowed.get(request.method, ""))
        self.ends_at = (time.time() // 60 + 1) * 60
        key = f"api:{caller}:{scope}:{self.ends_at:.0f}"
        cache.add(key, 0, timeout=61)
        try:
            return cache.incr(key) <= most
        except ValueError:  # evicted between the two: the cache is full of other things
            return True

    def wait(self) -> float:
        return max(1.0, self.ends_at - time.time())


class JobsPerMinute(PerMinute):
    """For what keeps a worker busy: imports, reports, judge runs, training."""

    name, setting = "jobs", "PREFLOOP_API_JOBS_PER_MINUTE"


class StartsPerMinute(JobsPerMinute):
    """The same where a POST starts a job and a GET lists them: looking is no job."""

    def allow_request(self, request: Request, view: Any) -> bool:
        return request.method != "POST" or super().allow_request(request, view)
