"""Whether this process lives, and whether it may be sent people: for load balancers.

Answered before everything else, because a load balancer asks by address and not by our name.
"""

import tempfile
from collections.abc import Callable

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse

BROKER_SECONDS = 2.0


def answers_to_health(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: /healthz is 200 while the process answers at all; /readyz says in JSON what is
    wrong, with 503, while database, tables, queue or storage are not usable."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path == "/healthz":
            return HttpResponse("ok\n", content_type="text/plain")
        if request.path == "/readyz":
            found = readiness()
            ready = all(state == "ok" for state in found.values())
            return JsonResponse({"ready": ready, **found}, status=200 if ready else 503)
        return get_response(request)

    return middleware


def readiness() -> dict[str, str]:
    """{"database", "tables", "queue", "storage"}: "ok" or what is wrong, without addresses, since
    anybody may ask."""
    return {
        "database": _database(),
        "tables": _tables(),
        "queue": _queue(),
        "storage": _storage(),
    }


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        connection.close()
        return "does not answer"
    return "ok"


_up_to_date = False  # tables that were up to date stay so for as long as this process lives


def _tables() -> str:
    global _up_to_date
    if _up_to_date:
        return "ok"
    try:
        executor = MigrationExecutor(connection)
        missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except DatabaseError:
        return "unknown"
    _up_to_date = not missing
    return "ok" if _up_to_date else f"{missing} migrations are not applied"


def _queue() -> str:
    from config.celery import app

    try:
        with app.connection_for_write() as queue:
            queue.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)
            queue.default_channel.close()
    except Exception:  # every transport brings errors of its own
        return "does not answer"
    return "ok"


def _storage() -> str:
    try:
        with tempfile.TemporaryFile(dir=settings.PREFLOOP_STORAGE) as file:
            file.write(b"ready?")
            file.flush()
    except OSError as error:
        return error.strerror or "cannot be written"
    return "ok"
