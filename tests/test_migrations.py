"""No migration keeps raters waiting unless it says so.

In PostgreSQL a column without NOT NULL, or with a default that the database knows, costs nothing,
however many rows there are. An index, a constraint, another type and a walk through the rows lock a
large table for as long as that takes: a migration that does so on one of LARGE has a `LOCKS` beside
its class, a sentence on what waits and for how long at a million rows, measured by
tests/bench/migrations.py. What the squashes `0001_everything` replace is older than this rule.
"""

from collections.abc import Iterator
from importlib import import_module

import pytest
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

LARGE = {
    "labeling": {"prompt", "response", "comparison", "preference", "assignment"},
    "judges": {"verdict"},
    "training": {"runstep"},
}
OURS = set(LARGE)


def dangers(app: str, operation: Operation, before: ProjectState) -> Iterator[str]:
    """What an operation does to large tables while people wait."""
    if isinstance(operation, migrations.SeparateDatabaseAndState):
        for inner in operation.database_operations:
            yield from dangers(app, inner, before)
    if isinstance(operation, migrations.RunPython | migrations.RunSQL):
        yield "walks through rows"
    table = getattr(operation, "model_name_lower", "")
    if table not in LARGE[app]:
        return
    match operation:
        case migrations.AddField(field=field):
            if field.remote_field or field.db_index or field.unique:
                yield f"builds an index on {table}"
            if not field.null and not field.has_db_default() and not field.many_to_many:
                yield f"{table}.{operation.name} refuses rows of code that does not know it"
        case migrations.AddIndex():
            yield f"builds an index on {table}"
        case migrations.AddConstraint():
            yield f"looks through {table}"
        case migrations.AlterField(field=field):
            old = before.models[app, table].fields[operation.name]
            if column(old) != column(field):
                yield f"rewrites or looks through {table}"


def column(field: models.Field) -> tuple:
    relation = field.remote_field and field.db_constraint
    kind = "key" if field.remote_field else field.db_type(connection)
    return kind, field.null, field.unique, field.db_index, field.max_length, relation


def unspoken(app: str, name: str, loader: MigrationLoader) -> list[str]:
    """Dangers of a migration that it does not tell of."""
    migration = loader.disk_migrations[app, name]
    if getattr(import_module(f"{app}.migrations.{name}"), "LOCKS", ""):
        return []
    state = loader.project_state((app, name), at_end=False)
    found = []
    for operation in migration.operations:
        found += dangers(app, operation, state)
        operation.state_forwards(app, state)
    return found


def younger_than_the_rule(loader: MigrationLoader) -> list[tuple[str, str]]:
    older = {
        key
        for migration in loader.disk_migrations.values()
        for key in [*migration.replaces, (migration.app_label, "0001_everything")]
    }
    return [key for key in loader.disk_migrations if key[0] in OURS and key not in older]


def test_no_migration_locks_a_large_table_without_saying_so():
    loader = MigrationLoader(None, replace_migrations=False)
    found = {key: unspoken(*key, loader) for key in younger_than_the_rule(loader)}
    assert ("labeling", "0010_workers") in found
    assert {key: words for key, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (
            migrations.AddField("Preference", "x", models.BooleanField(default=False)),
            ["preference.x refuses rows of code that does not know it"],
        ),
        (migrations.AddField("Preference", "x", models.BooleanField(db_default=False)), []),
        (migrations.AddField("Preference", "x", models.TextField(null=True)), []),
        (
            migrations.AddField("Comparison", "x", models.TextField(null=True, db_index=True)),
            ["builds an index on comparison"],
        ),
        (migrations.AddField("Webhook", "x", models.BooleanField(default=False)), []),
        (
            migrations.AlterField("Response", "source", models.CharField(max_length=999)),
            ["rewrites or looks through response"],
        ),
        (
            migrations.AddIndex("Preference", models.Index(fields=["choice"], name="by_choice")),
            ["builds an index on preference"],
        ),
        (migrations.RunPython(migrations.RunPython.noop), ["walks through rows"]),
    ],
)
def test_the_rule_knows_what_locks(operation, words):
    loader = MigrationLoader(None, replace_migrations=False)
    state = loader.project_state(("labeling", "0009_certificate_in_force"))
    assert list(dangers("labeling", operation, state)) == words
