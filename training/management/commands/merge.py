"""Merge models of a project from the command line."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.jobs import Job
from labeling.models import Project
from training.merges import check_in_words, create_merge, start_merge
from training.ml.merge_recipe import MERGES
from training.models import Merge
from training.tasks import carry_out_job


class Command(BaseCommand):
    help = "Merge an adapter into its base, or several models into one."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("method", choices=list(MERGES))
        parser.add_argument("models", nargs="+", help="of the project, or folders under models/")
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--name", required=True, help="of the new model")
        parser.add_argument("--base", default="", metavar="MODEL", help="what changes count from")
        parser.add_argument("--weights", default="", metavar="1,0.5", help="one for each model")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="t, density, sign, scale, seed, layers, dtype or mergekit_method; may be repeated",
        )
        parser.add_argument("--wait", action="store_true", help="merge here, in this process")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        try:
            chosen = dict(pair.split("=", 1) for pair in options["set"])
            weights = [float(part) for part in options["weights"].split(",") if part.strip()]
        except ValueError:
            raise CommandError(
                "--set wants KEY=VALUE, --weights numbers with commas between.", returncode=2
            ) from None
        make = create_merge if options["wait"] else start_merge
        try:
            merge = make(
                project,
                name=options["name"],
                method=options["method"],
                models=options["models"],
                base=options["base"],
                weights=weights,
                settings=chosen,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        if options["wait"]:
            carry_out_job(Merge, merge.pk)
            merge = Merge.objects.select_related("model_version").get(pk=merge.pk)
        self.show(merge, options["json"])
        if merge.status not in (Job.Status.SUCCEEDED, Job.Status.QUEUED):
            sys.exit(1)

    def show(self, merge: Merge, as_json: bool) -> None:
        model = getattr(merge, "model_version", None)
        if as_json:
            report = {
                "merge": merge.pk,
                "status": merge.status,
                "model": model.name if model else None,
                "result": merge.result,
                "error": merge.error,
            }
            self.stdout.write(json.dumps(report))
            return
        self.stdout.write(f"Merge {merge.pk}: {merge.status}. {merge.error}".strip())
        if model:
            self.stdout.write(check_in_words(merge))
            self.stdout.write(f"Model {model.name}, {merge.result['bytes']:,} bytes.")
