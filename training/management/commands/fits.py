"""Will a run, or a model at work, fit into memory? The peak, what it consists of, what would."""

import json
import sys
from dataclasses import asdict, fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.storage import model_folder
from training.fitting import Fit, Machine, fit, fit_work, machine
from training.ml.config import RECIPES, make_recipe
from training.ml.memory import GIB, REFERENCES, USES, Work, make_work
from training.ml.settings import METHODS


class Command(BaseCommand):
    help = (
        "Predict the peak memory of a run, or of a model that writes, scores or is asked. Exit "
        "status 1 if it does not fit."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("recipe", choices=[*RECIPES, *USES])
        parser.add_argument("--base", required=True, metavar="MODEL", help="hub id or folder")
        parser.add_argument(
            "--method", choices=list(METHODS), default="lora", help="of a run; else a setting"
        )
        parser.add_argument(
            "--gpu-memory", default="", metavar="24GiB", help="else what this machine has free"
        )
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"of a recipe; of a model at work: {', '.join(f.name for f in fields(Work))}",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            chosen = dict(pair.split("=", 1) for pair in options["set"])
        except ValueError:
            raise CommandError("--set wants KEY=VALUE.", returncode=2) from None
        kind = options["recipe"]
        try:
            folder = model_folder(options["base"])
            where = machine(options["gpu_memory"])
            if kind in USES:
                asked: Any = make_work(chosen)
            else:
                chosen = {"method": options["method"]} | chosen
                asked = make_recipe(kind, chosen | {"base_model": folder})
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        try:
            found = _fit(kind, asked, folder, where)
        except ValueError as error:
            raise CommandError(str(error)) from None
        estimate = found.estimate
        if options["json"]:
            report = {
                "peak": estimate.peak,
                "moment": estimate.moment,
                "tokens": estimate.tokens,
                "part": estimate.part,
                "reference": estimate.reference,
                "trained": estimate.trained,
                "parameters": estimate.parameters,
                "terms": {term.name: term.bytes for term in estimate.terms},
                "device": where.device,
                "available": where.available,
                "fits": found.fits,
                "band": found.band,
                "suggestions": [asdict(suggestion) for suggestion in found.suggestions],
            }
            self.stdout.write(json.dumps(report))
        else:
            for term in estimate.terms:
                self.stdout.write(f"{term.bytes / GIB:9.3f} GiB  {term.words}")
            self.stdout.write(f"{estimate.peak / GIB:9.3f} GiB  peak, in {estimate.moment}")
            if estimate.part[0]:
                self.stdout.write("{:,} texts of {:,} tokens at once".format(*estimate.part))
            if estimate.reference:
                self.stdout.write(REFERENCES[estimate.reference])
            if estimate.trained:
                self.stdout.write(
                    f"{estimate.trained:,} of {estimate.parameters:,} numbers are trained "
                    f"({found.trained_percent:.3g} %)"
                )
            if where.available is not None:
                verdict = "fits" if found.fits else "does not fit"
                self.stdout.write(f"{where.available / GIB:9.3f} GiB  free: it {verdict}")
            for suggestion in found.suggestions:
                words = " ".join(f"--set {k}={v}" for k, v in suggestion.settings.items())
                self.stdout.write(f"{suggestion.peak / GIB:9.3f} GiB  with {words}")
            if found.fits is False and not found.suggestions:
                self.stdout.write("Nothing near these settings fits: take a smaller model.")
        if found.fits is False:
            sys.exit(1)


def _fit(kind: str, asked: Any, folder: str, where: Machine) -> Fit:
    return fit_work(kind, asked, folder, where) if kind in USES else fit(kind, asked, where)
