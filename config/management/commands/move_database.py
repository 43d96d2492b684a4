"""Copy every row into another database: from SQLite to PostgreSQL, when a team grows."""

import json
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, transaction

from config.settings import env
from config.tables import TablesDiffer, copy, database_at, snapshot


class Command(BaseCommand):
    help = (
        "Copy every row into an empty database and hold each against its source. Afterwards set "
        "DATABASE_URL to the new address. Stop the web processes and workers first: what is "
        "written meanwhile stays behind."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--to", required=True, metavar="URL", help="postgres://user:…@host/name"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, to: str, json: bool, **_: Any) -> None:
        try:
            settings = env.db_url_config(to)
        except Exception as error:  # the library raises many kinds for an address it cannot read
            raise CommandError("--to is no address of a database") from error
        settings = {"OPTIONS": {}, "CONN_MAX_AGE": 0} | settings
        try:
            with database_at(settings, "target") as target:
                call_command("migrate", database=target, verbosity=0, interactive=False)
                with snapshot() as source, transaction.atomic(using=target):
                    found = {}
                    for name, n in copy(source, target):
                        found[name] = n
                        if n and not json:
                            self.stdout.write(f"{name:<40}{n:>12,}  the same")
        except (TablesDiffer, DatabaseError) as error:
            raise CommandError(f"Nothing was moved: {error}") from error
        total = sum(found.values())
        if json:
            self.stdout.write(as_json(found))
        else:
            self.stdout.write(f"{total:,} rows. Now set DATABASE_URL to the new address.")


def as_json(found: dict[str, int]) -> str:
    return json.dumps({"rows": sum(found.values()), "tables": found})
