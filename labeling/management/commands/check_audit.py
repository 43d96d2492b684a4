"""Whether the history is as it was written: every seal of its chain is computed anew."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from labeling.sealing import check_chain, seal_changes

SHOWN = 20


class Command(BaseCommand):
    help = (
        "Check the history of changes and security events against its chain of seals. "
        "Exit status 1 when a row was changed, taken out or put in behind the application's back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--expect",
            default="",
            metavar="SEAL",
            help="a last seal that was noted elsewhere: fails where the chain no longer has it",
        )

    def handle(self, **options: Any) -> None:
        seal_changes()
        found = check_chain(options["expect"])
        self.stdout.write(f"{found.rows} sealed rows, {found.redacted} of them redacted")
        if found.unsealed:
            self.stdout.write(f"{found.unsealed} rows wait to be sealed")
        self.stdout.write(f"last seal {found.last_seal or '-'}")
        for problem in found.problems[:SHOWN]:
            self.stdout.write(f"BROKEN  {problem}")
        if len(found.problems) > SHOWN:
            self.stdout.write(f"… and {len(found.problems) - SHOWN} more")
        if found.problems:
            sys.exit(1)
