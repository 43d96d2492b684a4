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
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from labeling import webhooks
from labeling.models import Webhook
from labeling.webhooks import secret_of
from tests.factories import ProjectFactory, UserFactory

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


@pytest.mark.django_db(transaction=True)
def test_a_secret_of_before_still_signs_and_goes_back_as_it_was():
    """Those who receive messages were told the secret once: an update must not change it."""
    project = ProjectFactory()
    there, back = (
        ("labeling", "0015_encrypted_webhook_secrets"),
        [("labeling", "0014_unsealed_changes")],
    )

    def migrated(targets: list[tuple[str, str]]):
        executor = MigrationExecutor(connection)
        executor.loader = MigrationLoader(connection, replace_migrations=False)
        return executor.migrate(targets).apps.get_model("labeling", "Webhook")

    newest = MigrationLoader(connection, replace_migrations=False).graph.leaf_nodes("labeling")
    try:
        old = migrated(back).objects.create(
            project_id=project.pk, url="https://a.example/hook", events=[], secret="told-once"
        )
        migrated([there])
        with connection.cursor() as cursor:
            cursor.execute("SELECT encrypted_secret FROM labeling_webhook")
            assert "told-once" not in cursor.fetchone()[0]
        webhook = Webhook.objects.get()
        assert secret_of(webhook) == "told-once"
        made = webhooks.make_webhook(project, "https://b.example/hook", [], UserFactory())
        secret = secret_of(made)

        kept = migrated(back).objects.in_bulk()
        assert (kept[old.pk].secret, kept[made.pk].secret) == ("told-once", secret)
    finally:
        migrated(newest)
    assert [secret_of(one) for one in Webhook.objects.order_by("pk")] == ["told-once", secret]
