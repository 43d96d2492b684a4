"""What belongs to one request or one task carries one id, in every line of the log.

`LOG_FORMAT=json` writes a JSON object a line, for programs that collect logs.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponse

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of the request or task at work; empty outside of both."""
GIVEN = re.compile(r"[A-Za-z0-9._-]{8,64}")
"""An id that a proxy in front may give: never a line break, which would forge lines of the log."""
TOKENS = re.compile(r"((?:/|%2[fF])join(?:/|%2[fF]))[^/\s%?#&'\"]+")
"""What opens a door and stands in an address: behind /join/, also where another address names it
(`?next=`). A test holds it against all routes."""
requests = logging.getLogger("prefloop.requests")


def without_tokens(text: str) -> str:
    """An address, or a line that names some, with the tokens left out."""
    return TOKENS.sub(r"\1…", text)


def request_id(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: every request has an id, from X-Request-ID or new, and its answer names it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        name = given if GIVEN.fullmatch(given) else uuid.uuid4().hex
        token = trace_id.set(name)
        began = time.monotonic()
        try:
            response = get_response(request)
            response.headers["X-Request-ID"] = name
            match = request.resolver_match
            requests.info(
                "%s %s %s",
                request.method,
                without_tokens(request.path),
                response.status_code,
                extra={
                    "method": request.method,
                    "route": match.view_name if match else "",
                    "status": response.status_code,
                    "seconds": round(time.monotonic() - began, 4),
                    "user": getattr(getattr(request, "user", None), "pk", None),
                },
            )
            return response
        finally:
            trace_id.reset(token)

    return middleware


class Traced(logging.Filter):
    """Puts the id into every record, so that any format may name it; a request that was refused is
    one line, since anybody can be refused as often as they like."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.trace = trace_id.get() or "-"
        # Errors of ours keep their tracebacks. Django's security loggers tell of the sender's.
        is_refusal = record.name == "django.request" and record.levelno < logging.ERROR
        if is_refusal or record.name.startswith("django.security."):
            record.exc_info = record.exc_text = None
        return True


class WithoutTokens(logging.Filter):
    """Takes the tokens out of what Django and gunicorn say of a request: a warning, too, must not
    hand an invitation to everybody who reads the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if "join" in said:
            record.msg, record.args = without_tokens(said), ()
        return True


class JSONLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, id, and what `extra` held."""

    usual = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "trace"}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "id": getattr(record, "trace", "-"),
        }
        line |= {name: value for name, value in vars(record).items() if name not in self.usual}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Once more, for what `extra` held: Django's warnings bring the whole request.
        return without_tokens(json.dumps(line, ensure_ascii=False, default=str))

    converter = time.gmtime
