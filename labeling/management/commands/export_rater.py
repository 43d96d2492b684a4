"""Everything that is kept about one person, as a zip of JSON files."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from labeling.personal_data import export_person, find_person


class Command(BaseCommand):
    help = "Write everything that is kept about one person into a zip of JSON files."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="user name, or the name of an imported rater")
        parser.add_argument("--project", help="of an imported rater: in this project alone")
        parser.add_argument("--out", required=True, type=Path, metavar="FILE.zip")

    def handle(self, *, name: str, project: str | None, out: Path, **_options: Any) -> None:
        found = Project.objects.filter(slug=project).first() if project else None
        if project and found is None:
            raise CommandError(f"There is no project {project}.")
        person = find_person(name, found)
        if not person:
            raise CommandError(f"Nobody here goes by the name {name}.")
        if out.exists():
            raise CommandError(f"{out} exists: name another file.")
        out.touch(mode=0o600)
        out.write_bytes(export_person(person, None))
        self.stdout.write(f"{out}: {out.stat().st_size:,} bytes")
