"""Looking into JSON columns, on SQLite and PostgreSQL alike."""

from typing import Any

from django.db.models import BooleanField, CharField, Func, IntegerField, TextField, Value
from django.db.models.functions import Cast


class Words(Func):
    """The text of a column of messages: without roles, and without the escapes of JSON.

    `icontains` on it ignores case; SQLite does so for the letters of ASCII alone.
    """

    output_field = TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        turns = "(SELECT group_concat(json_extract(value, '$.content'), char(10)) FROM json_each("
        return self.as_sql(compiler, connection, template=turns + "%(expressions)s))", **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        turns = "(SELECT string_agg(value->>'content', chr(10)) FROM jsonb_array_elements("
        return self.as_sql(compiler, connection, template=turns + "%(expressions)s))", **extra)


class Holds(Func):
    """Whether a column's list holds a value: `filter(Holds("tags", "clear"))`."""

    output_field = BooleanField()

    def __init__(self, column: Any, value: str | int | Func, **extra: Any) -> None:
        if not isinstance(value, Func):  # Django makes copies of expressions from their parts
            value = Cast(Value(value), IntegerField() if isinstance(value, int) else CharField())
        super().__init__(column, value, **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "EXISTS (SELECT 1 FROM json_each(%(expressions)s))"
        joiner = ") WHERE value = ("
        return self.as_sql(compiler, connection, template=template, arg_joiner=joiner, **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "(%(expressions)s))"
        joiner = " @> to_jsonb("
        return self.as_sql(compiler, connection, template=template, arg_joiner=joiner, **extra)
