"""Wrong passwords and codes: counted per account and address, and locked out when there are many.

The rows are in the database, so that all server processes count together and a restart forgets
nothing. A lock opens by itself: nobody can be locked out of their account for longer than somebody
goes on guessing.
"""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Max
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling import keys
from labeling.changes import note_event
from labeling.models import SignInFailure

PURPOSE = "prefloop sign-in failures"
FROM_ADDRESS_TIMES = 6
"""An address may fail so many times as often as one account from it: an office shares one."""
OF_ACCOUNT_TIMES = 10
"""An account may fail so many times as often from all addresses together: guesses from many."""


def address_of(request: HttpRequest) -> str:
    """Where a request came from. Proxies of ours each add an address at the end of
    X-Forwarded-For; what stands further left may be made up by the sender."""
    n = settings.PREFLOOP_PROXIES
    if n:
        forwarded = request.headers.get("X-Forwarded-For", "").split(",")
        if len(forwarded) >= n and (address := forwarded[-n].strip()):
            return address
    return str(request.META.get("REMOTE_ADDR", ""))


def locked_until(name: str, address: str) -> datetime | None:
    """Until when nobody may try this account from this address; None if they may."""
    window = timedelta(minutes=settings.PREFLOOP_SIGN_IN_MINUTES)
    account, place = _pseudonyms(name, address)
    recent = SignInFailure.objects.filter(created_at__gt=timezone.now() - window)
    tries = settings.PREFLOOP_SIGN_IN_TRIES
    for failures, most in (
        (recent.filter(account=account, address=place), tries),
        (recent.filter(address=place), tries * FROM_ADDRESS_TIMES),
        (recent.filter(account=account), tries * OF_ACCOUNT_TIMES),
    ):
        if failures.count() >= most:
            return failures.aggregate(last=Max("created_at"))["last"] + window
    return None


def note_failure(name: str, address: str, what: str) -> None:
    """Count a wrong password or code, and write it into the history. A locked door is not tried
    any more, so a flood of guesses is a handful of rows."""
    account, place = _pseudonyms(name, address)
    SignInFailure.objects.create(account=account, address=place)
    user = _account(name)
    # What was typed may be a password: only the name of an account that exists is kept.
    subject = user or "?"
    note_event(user, gettext_noop("fail to sign in"), subject, with_a_wrong=what)
    if locked_until(name, address):
        note_event(user, gettext_noop("lock sign-in"), subject)


def session_begins(request: HttpRequest, user: Any) -> None:
    """Right after a sign-in: the session ends at a fixed time, however much it is used, so that a
    stolen cookie is no key for ever; failures of this account from here are forgotten."""
    request.session.set_expiry(timezone.now() + settings.PREFLOOP_SESSION_AGE)
    account, place = _pseudonyms(user.get_username(), address_of(request))
    SignInFailure.objects.filter(account=account, address=place).delete()
    note_event(user, gettext_noop("sign in"), user)


def forget_old_failures() -> None:
    """Delete failures that lock nobody out any more."""
    window = timedelta(minutes=settings.PREFLOOP_SIGN_IN_MINUTES)
    SignInFailure.objects.filter(created_at__lt=timezone.now() - window).delete()


def forget_failures_of(name: str) -> None:
    """Let somebody try again at once."""
    SignInFailure.objects.filter(account=_pseudonyms(name, "")[0]).delete()


def _pseudonyms(name: str, address: str) -> tuple[str, str]:
    # As `_account` finds it: an account is not guessed at more often in other letters.
    return (
        keys.pseudonym(f"account {name.casefold()}", PURPOSE),
        keys.pseudonym(f"address {address}", PURPOSE),
    )


def _account(name: str) -> Any:
    users = get_user_model()
    return users.objects.filter(**{users.USERNAME_FIELD: name}).first()
