"""How the API reads what it is sent and pages what it answers."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from rest_framework import exceptions, status
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.parsers import JSONParser
from rest_framework.request import Request

from labeling.queue import find_before

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


class AsFarAsTimeAllows(NewestFirst):
    """Pages of comparisons; with a filter (`view.matches`) the matches are sought for so long as
    the queue's page seeks them.

    A filter may match one comparison in a million. A page is then short or empty, and its `next`
    goes on where the time was up. There is no way back through such pages.
    """

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        self.matches = getattr(view, "matches", None)
        if self.matches is None:
            return super().paginate_queryset(queryset, request, view)
        self.request, self.base_url = request, request.build_absolute_uri()
        cursor = self.decode_cursor(request)
        start = int(cursor.position) if cursor and cursor.position else LARGEST_ID
        n = self.get_page_size(request)
        found = find_before(request.project, self.matches, n + 1, before=start)
        pks = found.pks[:n]
        self.goes_on_before = pks[-1] if len(found.pks) > n else found.looked_to
        return list(queryset.filter(pk__in=pks).order_by("-pk"))

    def get_next_link(self) -> str | None:
        if self.matches is None:
            return super().get_next_link()
        if self.goes_on_before is None:
            return None
        return self.encode_cursor(Cursor(0, False, str(self.goes_on_before)))

    def get_previous_link(self) -> str | None:
        return super().get_previous_link() if self.matches is None else None
