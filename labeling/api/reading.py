"""How the API reads what it is sent and pages what it answers."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from rest_framework import exceptions, status
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.parsers import JSONParser
from rest_framework.request import Request

LARGEST_ID = 2**63 - 1


class TooLarge(exceptions.APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is too large. Send less at once, or upload a file."


class BoundedJSON(JSONParser):
    """JSON up to PREFLOOP_API_MAX_BYTES, so that one request cannot take the server's memory."""

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        length = (parser_context or {})["request"].META.get("CONTENT_LENGTH")
        if int(length or 0) > settings.PREFLOOP_API_MAX_BYTES:
            raise TooLarge
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError:
            raise exceptions.ParseError("JSON parse error - nested too deep") from None


class NewestFirst(CursorPagination):
    """Pages by a cursor: the same cost at row ten and at row ten million, and no COUNT.

    `?limit=` says how many (100 unless told, 500 at most); follow `next` for more.
    """

    ordering = "-pk"
    page_size = 100
    max_page_size = 500
    page_size_query_param = "limit"

    def decode_cursor(self, request: Request) -> Cursor | None:
        cursor = super().decode_cursor(request)
        if cursor is None or cursor.position is None:
            return cursor
        if not (cursor.position.isdecimal() and int(cursor.position) <= LARGEST_ID):
            raise exceptions.NotFound(self.invalid_cursor_message)
        return cursor
