"""Rows of the database as columns of numbers: a million in two seconds, and never as objects.

For the statistics; needs numpy, which callers load first.
"""

from itertools import chain
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import Case, Func, IntegerField, QuerySet, Value, When

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 20_000  # rows in one piece of memory, or Python objects at the same time
POSTGRESQL_BYTES = {
    "i8": "int8send({}::int8)",
    "i4": "int4send({}::int4)",
    "i2": "int2send({}::int2)",
    "f8": "float8send(COALESCE({}::float8, 'NaN'))",
    "?": "boolsend({})",
}
"""By numpy's names of what a column may be, its bytes, the greatest first."""


class Seconds(Func):
    """A moment as seconds since 1970."""

    template = "EXTRACT(EPOCH FROM %(expressions)s)"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "(julianday(%(expressions)s) - 2440587.5) * 86400.0"
        return self.as_sql(compiler, connection, template=template, **context)


def code_of(column: str, codes: dict[str, int]) -> Case:
    """A number for a column's text, −1 where it is none of these."""
    return Case(
        *(When(**{column: text}, then=Value(code)) for text, code in codes.items()),
        default=Value(-1),
        output_field=IntegerField(),
    )


def read_columns(rows: QuerySet, kinds: dict[str, str]) -> "np.ndarray":
    """A structured array of what `rows.values_list(…)` selects, in no order.

    Args:
        rows: numbers only, in the order of `kinds`; NULL where a float is asked for becomes NaN.
        kinds: {column: "i8", "i4", "i2", "f8" or "?"}.
    """
    connection = connections[rows.db]
    sql, params = rows.order_by().query.get_compiler(connection=connection).as_sql()
    return columns_of(connection, sql, params, kinds)


def columns_of(connection: Any, sql: str, params: Any, kinds: dict[str, str]) -> "np.ndarray":
    """The same of a statement; its columns in the order of `kinds`."""
    read = _packed if connection.vendor == "postgresql" else _fetched
    return read(connection, sql, params, kinds)


def places_of(keys: "np.ndarray", wanted: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """Where each of `wanted` stands among rising `keys`, and whether it is there at all."""
    import numpy as np

    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    known = keys[place] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
    return place, known


def _packed(connection: Any, sql: str, params: Any, kinds: dict[str, str]) -> "np.ndarray":
    """By blocks of bytes that the database packs: a row never becomes an object here, and the
    driver, which takes two seconds for a million rows of COPY, sees a hundred."""
    import numpy as np

    names = [f"c{place}" for place in range(len(kinds))]
    sent = " || ".join(
        POSTGRESQL_BYTES[kind].format(name)
        for name, kind in zip(names, kinds.values(), strict=True)
    )
    rows = (
        f"SELECT {sent} AS packed, (row_number() OVER () - 1) / {AT_ONCE} AS block "  # noqa: S608 - our own names alone
        f"FROM ({sql}) AS rows({', '.join(names)})"
    )
    blocks = f"SELECT string_agg(packed, ''::bytea) FROM ({rows}) AS packed GROUP BY block"  # noqa: S608 - our own names alone
    record = np.dtype([(name, f">{kind}") for name, kind in kinds.items()])
    parts = [np.empty(0, dtype=list(kinds.items()))]
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY ({blocks}) TO STDOUT (FORMAT BINARY)", params) as copy,
    ):
        copy.set_types(["bytea"])
        for (block,) in copy.rows():
            parts.append(np.frombuffer(block, dtype=record).astype(parts[0].dtype))
    return np.concatenate(parts)


def _fetched(connection: Any, sql: str, params: Any, kinds: dict[str, str]) -> "np.ndarray":
    """By rows of Python objects, a few at a time."""
    import numpy as np

    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        some = iter(lambda: cursor.fetchmany(AT_ONCE), [])
        return np.fromiter(chain.from_iterable(some), dtype=list(kinds.items()))  # None: NaN
