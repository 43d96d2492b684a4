"""Rows by the hundred thousand into a database, for the benches; and a database to put them in."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import postgresql


@contextmanager
def fresh_database(kind: str) -> Iterator[Path]:
    """An empty database with all tables, "sqlite" or "postgresql", in a temporary folder; Django
    is set up on it. Once a process.

    PostgreSQL waits for the disk, as an installation does.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PREFLOOP_STORAGE"] = str(folder / "storage")
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        os.environ.pop("DATABASE_URL", None)
        (folder / "storage").mkdir()
        if kind == "sqlite":
            _set_up()
            yield folder
            return
        programs = postgresql.find_programs()
        if programs is None:
            sys.exit("PostgreSQL is not installed here: --database sqlite")
        folder.chmod(0o755)  # its programs run as another user than root
        (folder / "postgresql").mkdir()
        with postgresql.running(folder / "postgresql", programs, durable=True) as address:
            os.environ["DATABASE_URL"] = address
            _set_up()
            yield folder


def _set_up() -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0, stdout=sys.stderr)


def write_rows(model: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows (tuples in the order of the database's columns, keys included) in one transaction."""
    from django.db import connection

    table, names = model._meta.db_table, ", ".join(columns)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")
        else:
            marks = ", ".join("?" * len(columns))
            cursor.execute("BEGIN")
            cursor.connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)
            cursor.execute("COMMIT")


def gather_statistics() -> None:
    """What PostgreSQL's autovacuum would do a minute later; on SQLite nobody does it."""
    from django.db import connection

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
