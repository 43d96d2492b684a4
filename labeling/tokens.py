"""Keys for programs: made, shown once, found again by their hash, revoked."""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling.changes import note_event
from labeling.models import ApiToken

PREFIX = "pf_"
USE_NOTED_EVERY = timedelta(minutes=1)


def make_token(user: Any, name: str, scopes: list[str], days: int) -> tuple[ApiToken, str]:
    """(the row, the token itself). Only its hash is stored: nobody can show it a second time."""
    secret = PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        user=user,
        name=name,
        prefix=secret[:10],
        token_hash=_hash(secret),
        scopes=scopes,
        expires_at=timezone.now() + timedelta(days=days),
    )
    note_event(user, gettext_noop("make token"), token.prefix, scopes=scopes, days=days)
    return token, secret


def valid_token(secret: str) -> ApiToken | None:
    """The token with its user, noted as used; None if it is unknown, expired, revoked, or its
    owner's account is closed."""
    now = timezone.now()
    token = (
        ApiToken.objects.select_related("user")
        .filter(token_hash=_hash(secret), revoked_at=None, expires_at__gt=now)
        .filter(user__is_active=True)
        .first()
    )
    if token is None:
        return None
    # A write on every request would cost more than most requests.
    if token.last_used_at is None or token.last_used_at < now - USE_NOTED_EVERY:
        noted_long_ago = Q(last_used_at=None) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
        ApiToken.objects.filter(noted_long_ago, pk=token.pk).update(last_used_at=now)
    return token


def open_tokens(user: Any) -> QuerySet[ApiToken]:
    """Those of somebody's tokens that open something now."""
    return ApiToken.objects.filter(user=user, revoked_at=None, expires_at__gt=timezone.now())


def revoke(token: ApiToken) -> None:
    """End a token now; the row stays, so that its owner sees what it was."""
    if ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
        note_event(token.user, gettext_noop("revoke token"), token.prefix)


def _hash(secret: str) -> str:
    # The token is random, not a password that somebody thought of: one round is enough.
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
