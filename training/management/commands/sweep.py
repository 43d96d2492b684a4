"""Train over a small grid of settings, one run after another, and name the best."""

import json
import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from training.comparing import best_of
from training.dataset_settings import LABELS
from training.datasets import dataset_named
from training.ml.config import RECIPES
from training.ml.settings import TRACKERS
from training.models import Run
from training.sweeps import create_sweep, read_grid, start_sweep
from training.tasks import carry_out


class Command(BaseCommand):
    help = "A run for every combination of some settings' values, all on one dataset."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("recipe", choices=list(RECIPES))
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--base", required=True, metavar="MODEL")
        parser.add_argument(
            "--grid",
            action="append",
            default=[],
            metavar="KEY=VALUE,VALUE",
            help="such as learning_rate=1e-4,2e-4; may be repeated, at most 12 combinations",
        )
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
        parser.add_argument("--dataset", default="", metavar="SHA")
        parser.add_argument("--labels", choices=list(LABELS), default="mixed")
        parser.add_argument("--test-share", type=float, default=0.1)
        parser.add_argument("--report-to", choices=list(TRACKERS), default="")
        parser.add_argument("--wait", action="store_true", help="train here, in this process")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        try:
            grid = read_grid(dict(pair.split("=", 1) for pair in options["grid"]))
            chosen = dict(pair.split("=", 1) for pair in options["set"])
        except ValueError:
            words = "--grid wants KEY=VALUE,VALUE and --set wants KEY=VALUE."
            raise CommandError(words, returncode=2) from None
        make = create_sweep if options["wait"] else start_sweep
        try:
            sweep = make(
                project,
                kind=options["recipe"],
                base_model=options["base"],
                grid=grid,
                recipe_settings=chosen,
                dataset=dataset_named(project, options["dataset"]),
                labels=options["labels"],
                test_share=options["test_share"],
                report_to=options["report_to"],
            )
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        if options["wait"]:
            for pk in sweep.runs.order_by("pk").values_list("pk", flat=True):
                if sys.stderr.isatty():
                    self.stderr.write(f"run {pk} …")
                carry_out(pk)
                while Run.objects.active().filter(pk=pk).exists():  # a worker was quicker
                    time.sleep(1)
        runs = list(sweep.runs.select_related("dataset").order_by("pk"))
        best = best_of(runs)
        if options["json"]:
            rows = [
                {
                    "run": run.pk,
                    "status": run.status,
                    "settings": {name: run.recipe[name] for name in grid},
                    "metrics": run.metrics,
                    "error": run.error,
                }
                for run in runs
            ]
            report = {"sweep": sweep.pk, "runs": rows, "best": best and best.run.pk}
            self.stdout.write(json.dumps(report))
        else:
            for run in runs:
                settings = ", ".join(f"{name} {run.recipe[name]}" for name in grid)
                mark = "  best" if best and best.run == run else ""
                self.stdout.write(f"{run}: {settings}: {run.status}{measured(run)}{mark}")
            if best and best.n_overlapping:
                self.stdout.write(
                    f"Intervals of {best.n_overlapping} others reach into that of the best: the "
                    "differences may be chance."
                )
        if options["wait"] and not any(run.status == Run.Status.SUCCEEDED for run in runs):
            raise CommandError(f"No run of {sweep} succeeded: {runs[0].error}")


def measured(run: Run) -> str:
    """The held-out figure of a run that has ended, as text."""
    for name in ("accuracy", "loss"):
        figure = run.metrics.get(name)
        if figure and figure["value"] is not None:
            ends = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
            return f", {name} {figure['value']:.3f}{ends} n {figure['n']}"
    return ""
