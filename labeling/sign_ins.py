"""Wrong passwords and codes: counted per account and address, and locked out when there are many.

The rows are in the database, so that all server processes count together and a restart forgets
nothing. A lock opens by itself: nobody can be locked out of their account for longer than somebody
goes on guessing.
"""

import ipaddress
import secrets
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import signing
from django.db import transaction
from django.db.models import Max
from django.http import HttpRequest, HttpResponse
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
COOKIE = "prefloop_device"
DEVICE_KNOWN_FOR = timedelta(days=60)
ACCOUNTS_OF_DEVICE = 5
# How keys begin that are none of an existing account, or of a device in place of an address.
UNKNOWN, DEVICE = "?", "@"


def address_of(request: HttpRequest) -> str:
    """Where a request came from. Proxies of ours each add an address at the end of
    X-Forwarded-For; what stands further left may be made up by the sender."""
    n = settings.PREFLOOP_PROXIES
    if n:
        forwarded = request.headers.get("X-Forwarded-For", "").split(",")
        if len(forwarded) >= n and (address := forwarded[-n].strip()):
            return address
    return str(request.META.get("REMOTE_ADDR", ""))


def network_of(request: HttpRequest) -> str:
    """Where failures are counted. Whoever has an IPv6 address has the 2⁶⁴ beside it too: they are
    one."""
    address = address_of(request)
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


class Locked(Exception):
    """Nobody may try now; `until` when they may again."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until)
        self.until = until


def begin_try(request: HttpRequest, name: str) -> SignInFailure:
    """Count a password or code as wrong before anybody looks at it: of guesses that come at once,
    no more are tried than of those that come one after another. What is right is given back.

    A device on which the account has been signed in to is a place of its own: guesses from
    elsewhere, however many, do not keep its owner out.
    Raises: Locked.
    """
    account, place = _account_key(name), _place(request, name)
    if until := _locked_until(account, place, after=1):
        raise Locked(until)
    this = SignInFailure.objects.create(account=account, address=place)
    # Its row is committed before the rows are counted: whoever comes last sees all of them.
    if until := _locked_until(account, place, after=0):
        this.delete()
        raise Locked(until)
    return this


def was_right(this: SignInFailure) -> None:
    """Give a try back."""
    this.delete()


def was_wrong(this: SignInFailure, name: str, what: str) -> None:
    """Write a wrong password or code into the history. A locked door is not tried any more, so a
    flood of guesses is a handful of rows; guesses at accounts that do not exist are counted there
    once in a while, since what is in the history stays for ever."""
    user = _account(name)
    if user is None:
        return
    note_event(user, gettext_noop("fail to sign in"), user, with_a_wrong=what)
    if _locked_until(this.account, this.address, after=1):
        note_event(user, gettext_noop("lock sign-in"), user)


def _locked_until(account: str, place: str, *, after: int) -> datetime | None:
    """Until when there are too many failures, were there `after` more; None if there are not."""
    window = timedelta(minutes=settings.PREFLOOP_SIGN_IN_MINUTES)
    recent = SignInFailure.objects.filter(created_at__gt=timezone.now() - window)
    tries = settings.PREFLOOP_SIGN_IN_TRIES
    counts = [(recent.filter(account=account, address=place), tries)]
    if not place.startswith(DEVICE):
        counts += [
            (recent.filter(address=place), tries * FROM_ADDRESS_TIMES),
            (recent.filter(account=account), tries * OF_ACCOUNT_TIMES),
        ]
    for failures, most in counts:
        if failures.count() + after > most:
            return failures.aggregate(last=Max("created_at"))["last"] + window
    return None


def session_begins(request: HttpRequest, user: Any) -> None:
    """Right after a sign-in: the session ends at a fixed time, however much it is used, so that a
    stolen cookie is no key for ever; failures of this account from here are forgotten."""
    request.session.set_expiry(timezone.now() + settings.PREFLOOP_SESSION_AGE)
    name = user.get_username()
    places = {_place(request, name), _address_key(request)}
    SignInFailure.objects.filter(account=_account_key(name), address__in=places).delete()
    note_event(user, gettext_noop("sign in"), user)


def know_device(request: HttpRequest, response: HttpResponse, user: Any) -> None:
    """After a sign-in: leave a cookie by which this browser is known as one of the account's."""
    account = _account_key(user.get_username())
    device, accounts = _device(request)
    accounts = [account, *(known for known in accounts if known != account)][:ACCOUNTS_OF_DEVICE]
    value = {"device": device or secrets.token_urlsafe(16), "accounts": accounts}
    response.set_cookie(
        COOKIE,
        signing.dumps(value, salt=PURPOSE),
        max_age=DEVICE_KNOWN_FOR,
        path="/accounts/",
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


def forget_old_failures() -> None:
    """Delete failures that lock nobody out any more. Those at accounts that do not exist leave
    their number in the history, at most once in each window."""
    window = timedelta(minutes=settings.PREFLOOP_SIGN_IN_MINUTES)
    old = SignInFailure.objects.filter(created_at__lt=timezone.now() - window)
    old.exclude(account__startswith=UNKNOWN).delete()
    unknown = old.filter(account__startswith=UNKNOWN)
    if unknown.filter(created_at__lt=timezone.now() - 2 * window).exists():
        with transaction.atomic():
            n = unknown.delete()[0]
            note_event(None, gettext_noop("fail to sign in"), "?", times=n)


def forget_failures_of(name: str) -> None:
    """Let somebody try again at once."""
    key = _key("account", name.casefold())
    SignInFailure.objects.filter(account__in=[key, _unknown(key)]).delete()


def _account_key(name: str) -> str:
    # An account is not guessed at more often in other letters.
    key = _key("account", name.casefold())
    users = get_user_model()
    known = users.objects.filter(**{f"{users.USERNAME_FIELD}__iexact": name}).exists()
    return key if known else _unknown(key)


def _unknown(key: str) -> str:
    return f"{UNKNOWN}{key[1:]}"


def _place(request: HttpRequest, name: str) -> str:
    """The device, if it is one of the account's; else where the request comes from."""
    device, accounts = _device(request)
    if device and _account_key(name) in accounts:
        return f"{DEVICE}{_key('device', device)[1:]}"
    return _address_key(request)


def _device(request: HttpRequest) -> tuple[str, list[str]]:
    """What the cookie says: which device it is, and whose."""
    try:
        found = signing.loads(
            request.COOKIES.get(COOKIE, ""), salt=PURPOSE, max_age=DEVICE_KNOWN_FOR
        )
    except signing.BadSignature:
        return "", []
    return found["device"], found["accounts"]


def _address_key(request: HttpRequest) -> str:
    return _key("address", network_of(request))


def _key(kind: str, text: str) -> str:
    return keys.pseudonym(f"{kind} {text}", PURPOSE)


def _account(name: str) -> Any:
    users = get_user_model()
    return users.objects.filter(**{users.USERNAME_FIELD: name}).first()
