"""Put a backup into an empty installation, or only check it."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from config.backups import BadBackup, checked_manifest, fingerprint_of_key, restore
from config.management.commands.backup import told
from config.tables import TablesDiffer


class Command(BaseCommand):
    help = (
        "Check a backup whole, then put it into this installation, which must be empty; every "
        "table is held against the backup before anything counts."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--check", action="store_true", help="check it and write nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, file: Path, check: bool, json: bool, **_: Any) -> None:
        say = (lambda _line: None) if json else self.stdout.write
        try:
            if check:
                manifest = checked_manifest(file)
            else:
                call_command("migrate", verbosity=0, interactive=False)
                manifest = restore(file, say)
        except (BadBackup, TablesDiffer, DatabaseError, OSError) as error:
            raise CommandError(str(error)) from error
        brought = "files/secret_key" in manifest["members"]  # of a laptop, and read by one alone
        if manifest["key"] != fingerprint_of_key() and not (brought and settings.LAPTOP):
            self.stderr.write(
                "SECRET_KEY is another than when the backup was made: encrypted keys of judge "
                "servers and of webhooks cannot be read until SECRET_KEY_FALLBACKS names the old "
                "one" + (", which is the file secret_key in PREFLOOP_STORAGE." if brought else ".")
            )
        if json:
            self.stdout.write(told(file, manifest))
        elif check:
            self.stdout.write(f"{file} of {manifest['made_at']} is whole.")
