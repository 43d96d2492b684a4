"""Rows of the database as columns of numbers: a million in two seconds, and never as objects.

For the statistics; needs numpy, which callers load first.
"""

from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import Case, Func, IntegerField, QuerySet, Value, When

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 20_000  # rows that are Python objects, or one piece of memory, at the same time
POSTGRESQL_TYPES = {"i8": "int8", "i4": "int4", "i2": "int2", "f8": "float8", "?": "bool"}
"""numpy's names of what a column may be, and the database's."""


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
    read = _copied if connection.vendor == "postgresql" else _fetched
    return read(connection, sql, params, kinds)


def places_of(keys: "np.ndarray", wanted: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """Where each of `wanted` stands among rising `keys`, and whether it is there at all."""
    import numpy as np

    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    known = keys[place] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
    return place, known


def _copied(connection: Any, sql: str, params: Any, kinds: dict[str, str]) -> "np.ndarray":
    """By COPY in the binary format: all columns are of fixed width and none is NULL, so every row
    is a record of the same bytes, and memory is all that is read.

    Source: "Binary Format" in PostgreSQL's documentation of COPY.
    """
    import numpy as np

    names = [f"c{place}" for place in range(len(kinds))]
    cast = [
        f"COALESCE({name}::float8, 'NaN')" if kind == "f8" else f"{name}::{POSTGRESQL_TYPES[kind]}"
        for name, kind in zip(names, kinds.values(), strict=True)
    ]
    asked = f"SELECT {', '.join(cast)} FROM ({sql}) AS rows({', '.join(names)})"  # noqa: S608
    statement = f"COPY ({asked}) TO STDOUT (FORMAT BINARY)"
    record = np.dtype(
        [("n_columns", ">i2")]
        + [
            field
            for name, kind in zip(names, kinds.values(), strict=True)
            for field in ((f"size_{name}", ">i4"), (name, f">{kind}"))
        ]
    )
    parts, buffer, begin = [], bytearray(), 19  # a signature, flags and an empty extension
    with connection.cursor() as cursor, cursor.copy(statement, params) as copy:
        for block in copy:
            buffer += block
            if len(buffer) >= begin + AT_ONCE * record.itemsize:
                parts.append(_native(buffer, begin, record, kinds))
                del buffer[: begin + len(parts[-1]) * record.itemsize]
                begin = 0
    parts.append(_native(buffer, begin, record, kinds))  # leaves two bytes, the end
    return np.concatenate(parts)


def _native(buffer: Any, begin: int, record: "np.dtype", kinds: dict[str, str]) -> "np.ndarray":
    """As many rows as lie whole in the buffer, in numbers of this machine."""
    import numpy as np

    n = (len(buffer) - begin) // record.itemsize
    sent = np.frombuffer(bytes(buffer), dtype=record, count=n, offset=begin)
    found = np.empty(n, dtype=list(kinds.items()))
    for place, name in enumerate(kinds):
        found[name] = sent[f"c{place}"]
    return found


def _fetched(connection: Any, sql: str, params: Any, kinds: dict[str, str]) -> "np.ndarray":
    """By rows of Python objects, a few at a time."""
    import numpy as np

    parts = [np.empty(0, dtype=list(kinds.items()))]
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        while rows := cursor.fetchmany(AT_ONCE):
            found = np.empty(len(rows), dtype=list(kinds.items()))
            for (name, kind), column in zip(kinds.items(), zip(*rows, strict=True), strict=True):
                found[name] = np.array(column, dtype=kind)  # None becomes NaN
            parts.append(found)
    return np.concatenate(parts)
