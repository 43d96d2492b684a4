"""python manage.py sample_project [--owner USERNAME]: a project to label at once."""

from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from labeling.imports.importing import import_file
from labeling.models import Membership, Project
from labeling.storage import storage_path

SAMPLE = Path(__file__).resolve().parents[2] / "sample"


class Command(BaseCommand):
    help = (
        "Make the project `sample`: sixty comparisons of everyday kinds, written for Prefloop. "
        "A second call adds nothing and changes nothing that people have changed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--owner", metavar="USERNAME", help="who becomes an owner of it")

    def handle(self, *args: Any, **options: Any) -> None:
        owner = None
        if options["owner"]:
            owner = get_user_model().objects.filter(username=options["owner"]).first()
            if owner is None:
                raise CommandError(f"There is no user {options['owner']!r}.", returncode=2)
        with transaction.atomic():
            project, _created = Project.objects.get_or_create(
                slug="sample",
                defaults={
                    "name": "Sample: sixty everyday comparisons",
                    "guidelines": (SAMPLE / "guidelines.md").read_text(encoding="utf-8"),
                },
            )
            if owner is not None:
                Membership.objects.update_or_create(
                    project=project, user=owner, defaults={"role": Membership.Role.OWNER}
                )
        report = import_file(
            project,
            SAMPLE / "comparisons.jsonl",
            # The sample's own folder belongs to the program and may be read-only.
            reject_path=storage_path("sample.rejected.jsonl"),
        )
        if report.problem or report.rejected:
            raise CommandError(report.problem or f"{report.rejected} lines, see the reject file")
        self.stdout.write(
            f"Project `sample`: {report.created} comparisons added, "
            f"{report.duplicates} were there already."
        )
