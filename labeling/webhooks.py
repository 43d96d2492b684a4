"""Tell other programs what happens: signed messages, tried again until they arrive or are given up.

A message is a row written with the change it speaks of, so it is sent if and only if the change
happened. A worker claims it by one conditional UPDATE and sends it at least once: a receiver knows
a repetition by its `X-Prefloop-Delivery`.
"""

import hashlib
import hmac
import http.client
import ipaddress
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling import keys
from labeling.addresses import AddressRefused, check_allowed, connect
from labeling.changes import note_change
from labeling.models import Delivery, Project, Webhook

TEST_EVENT = "test"
TIMEOUT_SECONDS = 10.0
DELAYS = [timedelta(seconds=s) for s in (10, 60, 300, 1_800, 7_200, 21_600, 50_400)]
"""From one try to the next: eight tries in the course of a day."""
CLAIMED_FOR = timedelta(seconds=60)
"""A worker that dies while sending leaves the message to the others after this."""
KEPT_FOR = timedelta(days=30)
PASS_SECONDS = 60.0
BATCH = 100


class NotSent(Exception):
    """The message did not arrive; the text says why, for the delivery log."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


@transaction.atomic
def make_webhook(project: Project, url: str, events: list[str], actor: Any) -> Webhook:
    """A new webhook, whose secret is random. The address has passed `check_address`."""
    webhook = Webhook.objects.create(
        project=project,
        url=url,
        events=events,
        encrypted_secret=keys.encrypted(secrets.token_hex(32), keys.WEBHOOKS),
        created_by=actor,
    )
    note_change(project, actor, "make webhook", url, after={"events": events})
    return webhook


def secret_of(webhook: Webhook) -> str:
    """What signs its messages. Raises: keys.WrongKey."""
    return keys.decrypted(webhook.encrypted_secret, keys.WEBHOOKS)


@transaction.atomic
def change_webhook(
    webhook: Webhook,
    actor: Any,
    *,
    url: str | None = None,
    events: list[str] | None = None,
    disabled: bool | None = None,
) -> None:
    """Change address or events, or switch it off or on. What waits for one that is off is not sent
    any more."""
    before = _settings(webhook)
    webhook.url = webhook.url if url is None else url
    webhook.events = webhook.events if events is None else events
    if disabled is not None:
        webhook.disabled_at = (webhook.disabled_at or timezone.now()) if disabled else None
    webhook.save(update_fields=["url", "events", "disabled_at"])
    if disabled:
        webhook.deliveries.exclude(next_try_at=None).update(next_try_at=None, error="Switched off.")
    after = _settings(webhook)
    note_change(webhook.project, actor, "change webhook", webhook.url, before=before, after=after)


def _settings(webhook: Webhook) -> dict[str, Any]:
    is_off = webhook.disabled_at is not None
    return {"url": webhook.url, "events": webhook.events, "disabled": is_off}


def tell(project_id: int, event: str, payload: dict[str, Any]) -> int:
    """Write the event down for every webhook that wants it, in the caller's transaction; how many.

    One query where there is none.
    """
    return write_for(Webhook.objects.filter(project=project_id, disabled_at=None), event, payload)


def write_for(webhooks: Iterable[Webhook], event: str, payload: dict[str, Any]) -> int:
    """`tell` for webhooks that have been read already."""
    wanted = [webhook for webhook in webhooks if event in webhook.events]
    if wanted:
        Delivery.objects.bulk_create(
            [Delivery(webhook=webhook, event=event, payload=payload) for webhook in wanted]
        )
        _wake()
    return len(wanted)


def send_test(webhook: Webhook) -> Delivery:
    """A message that says nothing, to see whether it arrives."""
    payload = {"message": "This is a test."}
    delivery = webhook.deliveries.create(event=TEST_EVENT, payload=payload)
    _wake()
    return delivery


def send_again(delivery: Delivery) -> None:
    """Try a message anew, as if it had never been tried."""
    Delivery.objects.filter(pk=delivery.pk).update(
        next_try_at=timezone.now(), n_tries=0, delivered_at=None
    )
    _wake()


def _wake() -> None:
    from labeling.tasks import deliver_webhooks

    deliver_webhooks.delay_on_commit()


def is_due() -> bool:
    return Delivery.objects.filter(next_try_at__lte=timezone.now()).exists()


def deliver_due() -> int:
    """Send what is due, the oldest first, for a minute at most; how many arrived."""
    n_delivered, ends_at = 0, time.monotonic() + PASS_SECONDS
    while time.monotonic() < ends_at:
        due = Delivery.objects.filter(next_try_at__lte=timezone.now()).order_by("next_try_at", "pk")
        pks = list(due.values_list("pk", flat=True)[:BATCH])
        if not pks:
            break
        for pk in pks:
            if time.monotonic() > ends_at:
                break
            n_delivered += deliver(pk)
    return n_delivered


def deliver(pk: int) -> bool:
    """Claim one message and try to send it; whether it arrived."""
    now = timezone.now()
    claimed = Delivery.objects.filter(pk=pk, next_try_at__lte=now).update(
        next_try_at=now + CLAIMED_FOR, n_tries=F("n_tries") + 1
    )
    if not claimed:  # another worker has it, or it waits again
        return False
    delivery = Delivery.objects.select_related("webhook__project").get(pk=pk)
    mine = Delivery.objects.filter(pk=pk, n_tries=delivery.n_tries)
    try:
        status = _send(delivery)
    except NotSent as problem:
        over = delivery.n_tries > len(DELAYS)
        wait = None if over else timezone.now() + DELAYS[delivery.n_tries - 1]
        mine.update(next_try_at=wait, status=problem.status, error=str(problem)[:500])
        # The others for this address wait too, so that one dead server does not hold up the rest.
        delivery.webhook.deliveries.filter(next_try_at__lte=timezone.now()).update(
            next_try_at=timezone.now() + DELAYS[0]
        )
        return False
    return bool(mine.update(next_try_at=None, status=status, error="", delivered_at=timezone.now()))


def forget_old() -> int:
    """Delete messages of more than a month ago; how many."""
    old = Delivery.objects.filter(
        webhook__in=Webhook.objects.all(), created_at__lt=timezone.now() - KEPT_FOR
    )
    return old.delete()[0]


def body_of(delivery: Delivery) -> bytes:
    """What is sent: the same bytes at every try."""
    message = {
        "id": delivery.pk,
        "event": delivery.event,
        "project": delivery.webhook.project.slug,
        "created_at": _iso(delivery.created_at),
        "data": delivery.payload,
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 of timestamp, a dot, and the body: so an old message cannot be sent anew."""
    signed = timestamp.encode() + b"." + body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _send(delivery: Delivery) -> int:
    """The receiver's status, if it is a good one. Raises: NotSent."""
    webhook, body = delivery.webhook, body_of(delivery)
    try:
        secret = secret_of(webhook)
    except keys.WrongKey:
        raise NotSent("Its secret was stored under another SECRET_KEY: make it anew.") from None
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Prefloop",
        "X-Prefloop-Event": delivery.event,
        "X-Prefloop-Delivery": str(delivery.pk),
        "X-Prefloop-Timestamp": timestamp,
        "X-Prefloop-Signature": signature(secret, timestamp, body),
    }
    if webhook.disabled_at is not None:
        raise NotSent("Switched off.")
    try:
        status = _post(webhook.url, body, headers)
    except ValidationError as problem:
        raise NotSent(" ".join(problem.messages)) from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        raise NotSent(f"{type(problem).__name__}: {problem}") from None
    if 300 <= status < 400:
        raise NotSent(f"Answered {status}: redirects are not followed.", status)
    if not 200 <= status < 300:
        raise NotSent(f"Answered {status}.", status)
    return status


# --- where a message may go ------------------------------------------------------------------


def check_address(url: str) -> None:
    """Whether this may be a webhook's address. Its name is resolved when a message is sent.

    Raises: ValidationError, with a line for the person who gave it.
    """
    parts = _parts(url)
    with suppress(ValueError):  # a name, not a number
        _check_public(str(ipaddress.ip_address(parts.hostname or "")))
    if (parts.hostname or "").rstrip(".").endswith("localhost"):
        _check_public("127.0.0.1")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValidationError(_("This is no address.")) from None
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise ValidationError(_("An address has neither spaces nor letters outside of ASCII."))
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValidationError(_("Give a whole address: https://example.org/hook"))
    if parts.username is not None or parts.password is not None:
        raise ValidationError(_("An address holds no password: messages are signed instead."))
    return parts


def _check_public(address: str) -> None:
    """Messages of one installation must not reach into its own network, nor into its machine."""
    try:
        check_allowed(address, own_network=settings.PREFLOOP_WEBHOOK_PRIVATE)
    except AddressRefused as problem:
        raise ValidationError(_REASONS[problem.reason]) from None


_REASONS = {
    "private": _lazy(
        "The address leads into a private network. An administrator allows that with "
        "PREFLOOP_WEBHOOK_PRIVATE=1."
    ),
    "never": _lazy(
        "The address leads into a private network: to a metadata service, or to no single machine. "
        "That is never allowed."
    ),
}


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """POST to an address that was checked; the status of the answer, whose body is left unread."""
    parts = _parts(url)
    is_https = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if is_https else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    ends_at = time.monotonic() + TIMEOUT_SECONDS
    raw = connect(host, port, TIMEOUT_SECONDS, _check_public)
    if is_https:  # wrapped before the timer starts: wrapping takes the socket's place
        context = ssl.create_default_context()
        raw = context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    # A socket's timeout begins anew with every byte; this one does not, and counts from before the
    # connection was made.
    timer = threading.Timer(max(0, ends_at - time.monotonic()), _hang_up, [raw])
    timer.start()
    try:
        if isinstance(raw, ssl.SSLSocket):
            raw.do_handshake()
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        connection.default_port = 443 if is_https else 80  # the Host header leaves it out
        connection.sock = raw
        connection.request("POST", path, body=body, headers=headers)
        return connection.getresponse().status
    finally:
        timer.cancel()
        raw.close()


def _hang_up(raw: socket.socket) -> None:
    with suppress(OSError):
        # Not the method of an SSLSocket, which would first forget its encryption: the thread that
        # reads would take what still arrives for plain text.
        socket.socket.shutdown(raw, socket.SHUT_RDWR)
