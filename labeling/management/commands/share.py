"""Files of this machine, brought to all machines of a fleet."""

from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling import shared


class Command(BaseCommand):
    help = (
        "Put files or folders of this machine's PREFLOOP_STORAGE into PREFLOOP_SHARED_STORAGE, for "
        "the workers of other machines: `share models/tiny texts/manual.txt`. What a worker makes "
        "is put there by itself. Exit status 1 if one of them is not here."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="+", help="Under PREFLOOP_STORAGE, as models/tiny.")

    def handle(self, *, names: list[str], **options: object) -> None:
        if not shared.is_shared():
            raise CommandError("PREFLOOP_SHARED_STORAGE is not set", returncode=2)
        for name in names:
            if Path(name).is_absolute():
                raise CommandError(f"{name}: give a name under PREFLOOP_STORAGE", returncode=2)
            if not (settings.PREFLOOP_STORAGE / name).exists():
                raise CommandError(f"{name} is not in {settings.PREFLOOP_STORAGE}")
            try:
                new = shared.put(name)
            except ValueError as error:
                raise CommandError(str(error), returncode=2) from error
            self.stdout.write(f"{name}: {new} new")
