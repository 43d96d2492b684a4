"""A model out of the storage folder, as a zip or as GGUF; and the command that serves it."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from training.ml.gguf_shapes import NUMBERS
from training.model_files import folder_of, serving_command, zipped


class Command(BaseCommand):
    help = "Write a model as a zip or as GGUF, or print the vLLM command that serves it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", help="of the project, by name")
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--format", choices=["zip", "gguf", "vllm"], default="zip")
        parser.add_argument("--out", metavar="FILE", help="for zip and gguf")
        parser.add_argument("--numbers", choices=NUMBERS, default="float16", help="of a GGUF file")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        model = project.models.filter(name=options["model"]).first()
        if model is None:
            raise CommandError(f"There is no model {options['model']}.", returncode=2)
        folder = folder_of(model)
        if folder is None:
            raise CommandError(f"The files of {model.name} are not on this machine.")
        report: dict[str, Any]
        if options["format"] == "vllm":
            report = serving_command(model)
            if not report["command"]:
                reasons = "; ".join(reason for _name, reason in report["left_out"])
                raise CommandError(f"vLLM cannot serve {model.name}: {reasons or 'no text model'}.")
        elif not options["out"]:
            raise CommandError("--out names the file to write.", returncode=2)
        elif options["format"] == "zip":
            with Path(options["out"]).open("wb") as file:
                n_bytes = sum(file.write(block) for block in zipped(model))
            report = {"file": options["out"], "bytes": n_bytes}
        else:
            report = self.gguf(folder, Path(options["out"]), options["numbers"])
        if options["json"]:
            self.stdout.write(json.dumps(report))
        else:
            self.stdout.write("\n".join(f"{name}: {value}" for name, value in report.items()))

    def gguf(self, folder: Path, file: Path, numbers: str) -> dict[str, Any]:
        try:
            from training.ml.exporting import save_gguf

            return {"file": str(file)} | save_gguf(folder, file, numbers)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"The converter is not here: pip install {error.name} (part of the extra [dev])."
            ) from None
        except ValueError as error:
            raise CommandError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
