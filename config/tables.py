"""All rows of an installation as lines of JSON, the same from SQLite and PostgreSQL.

What `backup`, `restore` and `move_database` share. A row is written with its column names and raw
values; a table has a hash that does not depend on the database it lies in, so a copy can be checked
row by row.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.management.color import no_style
from django.db import connections, models, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import load_backend

DEFAULT = "default"
ROWS_AT_ONCE = 2000
AS_IT_IS = {str, int, bool, type(None)}
"""Most values of most rows: asked first, which makes a backup a fifth faster."""
LEFT_OUT = {"sessions.session"}
"""Sign-ins of browsers: people sign in again."""


class TablesDiffer(Exception):
    """A copy is not what it was copied from, or cannot be made; the message says why."""


def tables() -> list[type[models.Model]]:
    """Every model with a table of its own, those of many-to-many relations too, by name."""
    found = apps.get_models(include_auto_created=True)
    kept = [m for m in found if m._meta.managed and not m._meta.proxy and label(m) not in LEFT_OUT]
    return sorted(kept, key=label)


def label(model: type[models.Model]) -> str:
    return model._meta.label_lower


def columns(model: type[models.Model]) -> list[models.Field]:
    return [field for field in model._meta.concrete_fields if not field.generated]


def migrations_of(database: str) -> list[str]:
    """The migrations that a database has been through, without squashes, which replace some."""
    applied = MigrationRecorder(connections[database]).applied_migrations()
    return sorted(f"{app}.{name}" for app, name in applied if name != "0001_everything")


def rows(model: type[models.Model], database: str) -> Iterator[list[Any]]:
    """Values of the columns of every row, by primary key, as JSON knows them."""
    names = [field.attname for field in columns(model)]
    found = model._base_manager.using(database).order_by("pk").values_list(*names)
    for row in found.iterator(chunk_size=ROWS_AT_ONCE):
        yield [plain(value) for value in row]


def plain(value: Any) -> Any:
    """A column's value as JSON knows it; `field.to_python` reads it back."""
    if type(value) in AS_IT_IS:
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value


def canonical(value: Any) -> Any:
    """The same for JSON that PostgreSQL stored, which writes 1e3 and -0.0 as 1000 and 0."""
    if type(value) in AS_IT_IS:
        return value
    if isinstance(value, dict):
        return {name: canonical(part) for name, part in value.items()}
    if isinstance(value, list):
        return [canonical(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class Counted:
    """Counts rows and hashes them as they pass."""

    def __init__(self) -> None:
        self.n = 0
        self._digest = hashlib.sha256()

    def through(self, found: Iterable[list[Any]]) -> Iterator[list[Any]]:
        for row in found:
            self.n += 1
            line = json.dumps(canonical(row), sort_keys=True, ensure_ascii=False)
            self._digest.update(line.encode(errors="surrogatepass") + b"\n")
            yield row

    def told(self) -> dict[str, Any]:
        return {"rows": self.n, "sha256": self._digest.hexdigest()}


def fingerprint(model: type[models.Model], database: str) -> dict[str, Any]:
    """{"rows", "sha256"} of a table."""
    counted = Counted()
    for _row in counted.through(rows(model, database)):
        pass
    return counted.told()


def refuse_if_in_use(database: str) -> None:
    """Raises: TablesDiffer where somebody has worked already: nothing is ever overwritten."""
    from django.contrib.auth import get_user_model

    from labeling.models import Project

    for model in (Project, get_user_model()):
        if n := model._base_manager.using(database).count():
            raise TablesDiffer(
                f"The database to write to holds {n} rows of {label(model)}. "
                "Name an empty one: nothing is overwritten."
            )


def empty(database: str) -> None:
    """Delete what `migrate` wrote by itself, such as permissions. Inside a transaction."""
    for model in tables():
        connections[database].cursor().execute(
            f"DELETE FROM {connections[database].ops.quote_name(model._meta.db_table)}"  # noqa: S608 - our own names alone
        )


def fill(model: type[models.Model], found: Iterable[list[Any]], database: str) -> None:
    """Write rows as they were: keys and times too, nothing set anew. Inside a transaction, in which
    foreign keys are checked at the end alone, so the order of tables does not matter."""
    fields = columns(model)
    batch: list[models.Model] = []

    def write() -> None:
        # `bulk_create` would set the times of creation to now.
        model._base_manager.using(database)._insert(batch, fields=fields, using=database, raw=True)
        batch.clear()

    most = max(1, min(ROWS_AT_ONCE, 30_000 // len(fields)))  # SQLite takes 32,766 values at once
    for row in found:
        batch.append(model(**{f.attname: _read(f, v) for f, v in zip(fields, row, strict=True)}))
        if len(batch) == most:
            write()
    if batch:
        write()


def _read(field: models.Field, value: Any) -> Any:
    if isinstance(field, models.JSONField):  # JSON's null, where the column must not be empty
        return models.Value(None, models.JSONField()) if value is None and not field.null else value
    if value is None:
        return None
    if isinstance(field, models.BinaryField):
        return base64.b64decode(value)
    if isinstance(field, models.DurationField):
        return timedelta(seconds=value)
    if isinstance(field, models.ForeignKey):
        return field.target_field.to_python(value)
    return field.to_python(value)


def end_of_filling(database: str) -> None:
    """Let new rows be numbered behind those that were written."""
    connection = connections[database]
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), tables()):
            cursor.execute(statement)


def copy(source: str, target: str) -> Iterator[tuple[str, int]]:
    """Copy every table into an empty database and hold each against its source; (table, rows) as
    they are done. Inside a transaction of both.

    Raises: TablesDiffer if anything came out otherwise.
    """
    refuse_if_in_use(target)
    if migrations_of(source) != migrations_of(target):
        raise TablesDiffer("The two databases are of different versions: migrate both first.")
    empty(target)
    for model in tables():
        counted = Counted()
        fill(model, counted.through(rows(model, source)), target)
        if fingerprint(model, target) != counted.told():
            raise TablesDiffer(f"{label(model)} came out otherwise than it was read.")
        yield label(model), counted.n
    end_of_filling(target)


@contextmanager
def database_at(settings: dict[str, Any], alias: str) -> Iterator[str]:
    """Another database, or another connection to ours, for as long as the context lasts."""
    whole = connections.configure_settings({DEFAULT: settings})[DEFAULT]
    connections[alias] = load_backend(whole["ENGINE"]).DatabaseWrapper(whole, alias)
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]


@contextmanager
def snapshot() -> Iterator[str]:
    """Our database as it is at one moment, whatever others write meanwhile; nobody waits for it."""
    ours = connections[DEFAULT].settings_dict
    options = dict(ours["OPTIONS"])
    if connections[DEFAULT].vendor == "sqlite":
        options["transaction_mode"] = "DEFERRED"  # reads a moment of the WAL, and locks nobody out
    settings = {**ours, "OPTIONS": options, "CONN_MAX_AGE": 0}
    with database_at(settings, "snapshot") as alias, transaction.atomic(using=alias):
        if connections[alias].vendor == "postgresql":
            with connections[alias].cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield alias
