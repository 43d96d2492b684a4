"""A POST that is sent again with the same Idempotency-Key is answered as it was the first time."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework import exceptions, status
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from labeling.models import IdempotentRequest, content_hash

HEADER = "Idempotency-Key"
ABANDONED_AFTER = timedelta(minutes=2)
"""A request whose process was killed has changed nothing; its key is free again after this."""


class InProgress(exceptions.APIException):
    status_code = status.HTTP_409_CONFLICT
    default_detail = "A request with this Idempotency-Key is being answered. Try again in a moment."


class OtherRequest(exceptions.APIException):
    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_detail = "This Idempotency-Key was used for another request. Use a new key."


def idempotent(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Decorator of a POST handler.

    What the handler changes and the answer that is remembered are one transaction, so a killed
    process leaves either both or neither. A refused request (4xx) changed nothing and is not
    remembered.
    """

    @wraps(handler)
    def post(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = key_of(request)
        if not key:
            return handler(view, request, *args, **kwargs)
        claimed = _claim(request, key)
        if isinstance(claimed, Response):
            return claimed
        row, since = claimed
        mine = IdempotentRequest.objects.filter(pk=row.pk, created_at=since, status=None)
        try:
            with transaction.atomic():
                response = handler(view, request, *args, **kwargs)
                body = json.loads(JSONRenderer().render(response.data) or b"null")
                # A secret that is shown once is not kept here either.
                body |= dict.fromkeys(getattr(view, "shown_once", ()), "")
                if not mine.update(status=response.status_code, body=body):
                    raise InProgress  # it took so long that the key went to a second try
        except Exception:  # whatever it was, nothing was kept: the key is free for another try
            mine.delete()
            raise
        return response

    return post


def key_of(request: Request) -> str:
    """The request's key, "" without one. Raises: ValidationError if it is no key."""
    key = request.headers.get(HEADER, "").strip()
    if len(key) > 200 or not key.isprintable():
        raise exceptions.ValidationError({HEADER: ["Up to 200 printable characters."]})
    return key


def answer_key(request: Request) -> str:
    """The key in the length in which the assignment keeps it; "" without one."""
    key = key_of(request)
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def _claim(request: Request, key: str) -> Response | tuple[IdempotentRequest, datetime]:
    """This request's row, or the answer of the first request with its key."""
    wanted = content_hash(request.method, request.path, _content(request.data))
    try:
        with transaction.atomic():
            row = IdempotentRequest.objects.create(
                user=request.user, key=key, request_hash=wanted, status=None, body=None
            )
        return row, row.created_at
    except IntegrityError:
        row = IdempotentRequest.objects.filter(user=request.user, key=key).first()
    if row is None:  # the first try was refused just now
        raise InProgress
    if row.request_hash != wanted:
        raise OtherRequest
    if row.status is not None:
        return Response(row.body, status=row.status, headers={"Idempotency-Replayed": "true"})
    now = timezone.now()
    abandoned = IdempotentRequest.objects.filter(
        pk=row.pk, status=None, created_at__lt=now - ABANDONED_AFTER
    )
    if not abandoned.update(created_at=now):
        raise InProgress
    return row, now


def _content(data: Any) -> Any:
    """The request's data as JSON values; a file counts by its bytes."""
    if not hasattr(data, "lists"):
        return data
    return sorted((name, [_value(value) for value in values]) for name, values in data.lists())


def _value(value: Any) -> Any:
    if not isinstance(value, UploadedFile):
        return value
    digest = hashlib.sha256()
    for chunk in value.chunks():
        digest.update(chunk)
    value.seek(0)
    return digest.hexdigest()
