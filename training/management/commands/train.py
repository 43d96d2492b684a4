"""Train a model on a project's preferences from the command line."""

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.models import Project
from training.dataset_settings import LABELS
from training.datasets import dataset_named
from training.ml.config import RECIPES, make_recipe
from training.ml.settings import METHODS, TRACKERS
from training.models import Run
from training.runs import Impossible, create_run, start_run

MEASURED = {
    "gain": "score gained",
    "holdout_gain": "by hold-out",
    "auc": "good over bad",
    "accuracy": "accuracy",
    "correlation": "correlation",
    "error": "error",
    "usual_error": "of the mean",
    "longer_wins": "longer wins",
    "loss": "nats a token",
    "base_loss": "of the base",
    "perplexity": "perplexity",
    "thought_loss": "with thoughts",
    "thought_benefit": "thoughts gain",
}


class Command(BaseCommand):
    help = "Train a reward model or a policy on a project's preferences, or on a file of text."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("recipe", choices=list(RECIPES))
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument(
            "--base", required=True, metavar="MODEL", help="hub id, folder, or model of the project"
        )
        parser.add_argument("--method", choices=list(METHODS), default="lora")
        parser.add_argument(
            "--dataset", default="", metavar="SHA", help="a frozen dataset; else the labels of now"
        )
        parser.add_argument(
            "--text",
            metavar="FILE",
            help="pretrain, quiet_star: a .txt or .jsonl file under texts/",
        )
        parser.add_argument("--labels", choices=list(LABELS), default="mixed")
        parser.add_argument("--test-share", type=float, default=0.1)
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting of the recipe, such as learning_rate=1e-4; may be repeated",
        )
        parser.add_argument(
            "--report-to", choices=list(TRACKERS), default="", help="its numbers go there as well"
        )
        parser.add_argument("--wait", action="store_true", help="train here, in this process")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        try:
            chosen = dict(pair.split("=", 1) for pair in options["set"])
        except ValueError:
            raise CommandError("--set wants KEY=VALUE.", returncode=2) from None
        if "base_model" in chosen:
            raise CommandError("The base model is named by --base.", returncode=2)
        chosen = {"method": options["method"]} | chosen
        if options["text"]:
            chosen["text"] = options["text"]
        try:
            make_recipe(options["recipe"], {"base_model": options["base"]} | chosen)
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        if not 0 < options["test_share"] < 1:
            raise CommandError("--test-share must lie between 0 and 1.", returncode=2)
        make = create_run if options["wait"] else start_run
        try:
            run = make(
                project,
                kind=options["recipe"],
                base_model=options["base"],
                recipe_settings=chosen,
                dataset=dataset_named(project, options["dataset"]),
                labels=options["labels"],
                test_share=options["test_share"],
                report_to=options["report_to"],
            )
        except Impossible as error:
            raise CommandError(str(error), returncode=2) from None
        except ValueError as error:
            raise CommandError(str(error)) from None
        if options["wait"]:
            from training.tasks import carry_out

            show = self.show_progress if sys.stderr.isatty() else None
            carry_out(run.pk, show, alone=True)
            run.refresh_from_db()
        self.print_result(run, as_json=options["json"])
        if options["wait"] and run.status != Run.Status.SUCCEEDED:
            raise CommandError(f"{run} {run.status}: {run.error}")

    def show_progress(self, report: Any) -> None:
        """One line that rewrites itself, on standard error."""
        if not report.values:
            return
        numbers = "  ".join(
            f"{name} {report.values[name]:.3f}"
            for name in ("loss", "accuracy", "score", "kl")
            if name in report.values
        )
        line = f"\r{report.split:>5} step {report.step}/{report.n_steps}  {numbers}  "
        self.stderr.write(line, ending="\n" if report.split == "test" else "")

    def print_result(self, run: Run, *, as_json: bool) -> None:
        model = getattr(run, "model_version", None)
        metrics = run.metrics
        filtered = metrics and metrics["too_long_train"] + metrics["too_long_test"]
        if as_json:
            result = {
                "run": run.pk,
                "status": run.status,
                "model": model and model.name,
                "metrics": metrics,
                "dataset": run.dataset
                and {
                    "hash": run.dataset.sha256,
                    "train": run.dataset.counts["train"],
                    "test": run.dataset.counts["test"],
                    "filtered": filtered if metrics else None,  # known once a worker has tokenised
                    "ties": run.dataset.counts.get("ties", 0),
                },
                "text_sha256": run.text_sha256,
                "error": run.error,
            }
            self.stdout.write(json.dumps(result))
            return
        if run.dataset:
            counts = run.dataset.counts
            rows = f"test pairs, {counts.get('ties', 0)} ties left out"
            if run.dataset.of_ratings:
                rows = "test responses"
            self.stdout.write(
                f"{run}: {run.status}. Dataset {run.dataset.sha256[:12]}: {counts['train']} "
                f"training and {counts['test']} {rows}."
            )
        elif run.labels:
            self.stdout.write(f"{run}: {run.status}. The worker freezes the labels.")
        else:
            self.stdout.write(f"{run}: {run.status}. Texts of {run.recipe['text']}.")
        if metrics:
            if run.dataset:
                what = "prompts" if run.kind == Run.Kind.PPO else "pairs"
                what = "responses" if run.dataset.of_ratings and what == "pairs" else what
                self.stdout.write(f"{filtered} {what} were too long and left out.")
            self.stdout.write(f"Model {model.name if model else '–'}")
            for name, words in MEASURED.items():
                m = metrics.get(name)
                if m and m["value"] is not None:
                    has_ends = m["low"] is not None
                    ends = f"[{m['low']:.3f}, {m['high']:.3f}]" if has_ends else "[too few]"
                    self.stdout.write(f"{words:>12}  {m['value']:.3f}  {ends}  n {m['n']}")
