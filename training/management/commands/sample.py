"""Let a model answer a project's prompts; its responses become comparisons to label."""

import importlib.util
import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from training.sampling import sample_comparisons


class Command(BaseCommand):
    help = "Responses of a trained model become comparisons."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--model", required=True, help="model of the project, folder or hub id")
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--n", type=int, default=2, help="responses to each prompt")
        parser.add_argument("--limit", type=int, metavar="PROMPTS")
        parser.add_argument("--max-new-tokens", type=int, default=128)
        parser.add_argument("--temperature", type=float, default=1.0)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        if not importlib.util.find_spec("torch"):
            raise CommandError(
                "Sampling runs a model, and torch is not installed here: pip install '.[train]'"
            )
        try:
            counts = sample_comparisons(
                project,
                options["model"],
                n=options["n"],
                limit=options["limit"],
                max_new_tokens=options["max_new_tokens"],
                temperature=options["temperature"],
                seed=options["seed"],
                show=self.show_progress if sys.stderr.isatty() else lambda done, total: None,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        if options["json"]:
            self.stdout.write(json.dumps(counts))
            return
        self.stdout.write(
            f"{counts['created']} new comparisons from {counts['responses']} responses to "
            f"{counts['prompts']} prompts. Left out: {counts['same']} pairs of equal responses, "
            f"{counts['empty']} empty responses, {counts['too_long']} prompts too long; "
            f"{counts['duplicates']} comparisons were there already."
        )

    def show_progress(self, done: int, total: int) -> None:
        self.stderr.write(f"\r{done} of {total} prompts ", ending="\n" if done == total else "")
