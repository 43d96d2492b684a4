"""Erase one person: the account goes, answers stay under a pseudonym."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from labeling.personal_data import CannotErase, erase, find_person, held, traces


class Command(BaseCommand):
    help = (
        "Erase one person: account, sessions, tokens and memberships go, the name is replaced by a "
        "pseudonym wherever answers stand. Answers stay, so no figure changes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="user name, or the name of an imported rater")
        parser.add_argument("--project", help="of an imported rater: in this project alone")
        parser.add_argument(
            "--keep-reasons",
            action="store_true",
            help="keep reasons in free text, which may tell who wrote them",
        )
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *, name: str, project: str | None, **options: Any) -> None:
        found = Project.objects.filter(slug=project).first() if project else None
        if project and found is None:
            raise CommandError(f"There is no project {project}.")
        person = find_person(name, found)
        if not person:
            raise CommandError(f"Nobody here goes by the name {name}.")
        for table, n in held(person).items():
            self.stdout.write(f"{n:>8,}  {table}")
        if not options["yes"] and input(f"Erase {name}? Type the name: ") != name:
            raise CommandError("Nothing was erased.")
        try:
            pseudonym = erase(person, None, keep_reasons=options["keep_reasons"])
        except CannotErase as problem:
            raise CommandError(str(problem)) from None
        self.stdout.write(f"{name} is {pseudonym} from now on.")
        left = traces(name)
        for place, n in left.items():
            self.stdout.write(f"The name still stands in {place} ({n} rows).")
        self.stdout.write("Backups made before still hold it: erase again after a restore.")
