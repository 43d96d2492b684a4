"""Write everything of this installation into one file."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from config.backups import back_up


class Command(BaseCommand):
    help = (
        "Write rows, files and the key of laptop mode into one checked archive, while people go on "
        "working. What .env says is not in it: keep that apart, SECRET_KEY above all."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="to write; it must not exist")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, file: Path, json: bool, **_: Any) -> None:
        say = (lambda _line: None) if json else self.stdout.write
        try:
            manifest = back_up(file, say)
        except OSError as error:
            raise CommandError(f"No backup was made: {error}") from error
        if json:
            self.stdout.write(told(file, manifest))
        else:
            self.stdout.write(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


def told(file: Path, manifest: dict[str, Any]) -> str:
    """What `backup --json` and `restore --json` print."""
    return json.dumps(
        {
            "file": str(file),
            "made_at": manifest["made_at"],
            "rows": sum(table["rows"] for table in manifest["tables"].values()),
            "tables": {name: table["rows"] for name, table in manifest["tables"].items()},
            "files": sum(name.startswith("files/") for name in manifest["members"]),
            "deleted_meanwhile": manifest["deleted_meanwhile"],
        }
    )
