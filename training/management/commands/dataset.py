"""Build a frozen dataset, or look at one before, from the command line."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from labeling.reports import StatisticsMissing
from training.dataset_settings import make_settings
from training.datasets import words_of
from training.previews import build


class Command(BaseCommand):
    help = "Freeze a project's labels into a dataset, with its preview."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting such as aggregate=soft or least_votes=2; may be repeated",
        )
        parser.add_argument("--preview", action="store_true", help="freeze nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        try:
            given = dict(pair.split("=", 1) for pair in options["set"])
        except ValueError:
            raise CommandError("--set wants KEY=VALUE.", returncode=2) from None
        try:
            settings = make_settings(given)
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        try:
            preview, dataset = build(
                project,
                settings,
                freezing=not options["preview"],
                on_progress=self.show_progress if sys.stderr.isatty() else lambda done, total: None,
            )
        except (ValueError, StatisticsMissing) as error:
            raise CommandError(str(error)) from None
        if options["json"]:
            result = {"dataset": dataset and dataset.sha256, "filters": settings.as_json()}
            self.stdout.write(json.dumps(result | preview))
            return
        self.stdout.write(f"Dataset {dataset.sha256}" if dataset else "Preview; nothing is frozen.")
        for name, words in words_of(preview["counts"]).items():
            if preview["counts"][name]:
                self.stdout.write(f"{preview['counts'][name]:>10}  {words}")
        for name, words in (
            ("percent_agreement", "agreement of two votes"),
            ("longer_chosen", "longer response chosen"),
            ("good_share", "good responses"),
        ):
            if name not in preview:
                continue  # of pairs, or of single judgements
            figure = preview[name]
            if figure["value"] is None:
                self.stdout.write(f"{words}: {figure['why']}")
            else:
                interval = "" if figure["low"] is None else " [{low:.3f}, {high:.3f}]"
                text = f"{words}: {figure['value']:.3f}{interval.format(**figure)} n {figure['n']}"
                self.stdout.write(text)
        alike, leaks = preview["duplicates"], preview["leaks"]
        self.stdout.write(
            f"{alike['n_alike']} prompts say nearly the same as another "
            f"(Jaccard {alike['threshold']:.2f}), "
            f"{alike['n_divided']} such groups are on both sides."
        )
        self.stdout.write(
            f"{leaks['n_exact']} training prompts occur exactly and {leaks['n_near']} nearly in "
            "what raters or models are measured on."
        )
        if preview["problem"]:
            self.stdout.write(f"Not to be trained on yet: {preview['problem']}.")

    def show_progress(self, done: int, total: int) -> None:
        """One line that rewrites itself, on standard error."""
        self.stderr.write(f"\r{100 * done // total} % ", ending="\n" if done == total else "")
