"""The next round: sample, choose the pairs that are worth a label, give them to people."""

import importlib.util
import json
import sys
from dataclasses import fields, replace
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labeling.jobs import Job
from labeling.models import Project
from training.models import Round
from training.round_chain import start_training
from training.rounds import (
    WAY_OF,
    RoundSettings,
    create_round,
    defaults_for,
    round_rows,
    start_round,
)
from training.tasks import carry_out_job

OFTEN = ("purpose", "models", "scorer", "n_labels", "seed")
"""Settings with an option of their own; the others go through --set."""


class Command(BaseCommand):
    help = "Begin the project's next round: as the last one, with the newest models."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--purpose", choices=list(WAY_OF))
        parser.add_argument(
            "--model",
            action="append",
            dest="models",
            help="who answers; may be repeated, the one that a new policy is held against first",
        )
        parser.add_argument("--scorer", metavar="MODEL", help="the reward model; '' for none")
        parser.add_argument("--labels", type=int, dest="n_labels", help="pairs for people")
        parser.add_argument("--seed", type=int)
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="another setting of docs/rounds.md; may be repeated",
        )
        parser.add_argument(
            "--train",
            choices=["reward", "dpo", "ppo"],
            help="begin nothing: train on the labels of the last round, by a worker; ppo trains "
            "the reward model first if need be, and the arena follows",
        )
        parser.add_argument("--queue", action="store_true", help="leave the work to a worker")
        parser.add_argument("--advice", action="store_true", help="begin nothing: say what to do")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}.", returncode=2)
        if options["advice"]:
            self.show_advice(project, options["json"])
            return
        if options["train"]:
            self.train(project, options["train"], options["json"])
            return
        if not options["queue"] and not importlib.util.find_spec("torch"):
            raise CommandError(
                "Sampling runs a model, and torch is not installed here: pip install '.[train]'"
            )
        try:
            settings = self.settings(project, options)
            begin = start_round if options["queue"] else create_round
            made = begin(project, settings)
        except ValueError as error:
            raise CommandError(str(error)) from None
        if not options["queue"]:
            carry_out_job(Round, made.pk)
            made = Round.objects.get(pk=made.pk)
        self.show(made, options["json"])
        if made.status not in (Job.Status.SUCCEEDED, Job.Status.QUEUED):
            sys.exit(1)

    def settings(self, project: Project, options: dict[str, Any]) -> RoundSettings:
        """The defaults with what was asked for. Raises: ValueError, CommandError."""
        asked: dict[str, Any] = {name: options[name] for name in OFTEN if options[name] is not None}
        if "models" in asked:
            asked["models"] = tuple(asked["models"])
        if "purpose" in asked:  # what suited the last round's need not suit this one's
            asked["way"] = ""
        kinds = {field.name: field.type for field in fields(RoundSettings)}
        for pair in options["set"]:
            name, sign, value = pair.partition("=")
            if not sign or name not in kinds or name == "models":
                raise CommandError(
                    f"--set wants KEY=VALUE with a key of {', '.join(sorted(kinds))}", returncode=2
                )
            read = {"int": int, "float": float}.get(str(getattr(kinds[name], "__name__", "")), str)
            asked[name] = read(value)
        return replace(defaults_for(project), **asked)

    def train(self, project: Project, kind: str, as_json: bool) -> None:
        last = project.rounds.order_by("-number").first()
        if last is None:
            raise CommandError("There is no round whose labels could be trained on.")
        try:
            run = start_training(last, kind, None)
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from None
        if as_json:
            report = {"round": last.number, "run": run.pk, "kind": run.kind, "then": last.then}
            self.stdout.write(json.dumps(report))
            return
        then = f" Then: {last.get_then_display()}." if last.then else ""
        self.stdout.write(f"{str(run).capitalize()} waits for a worker.{then}")

    def show(self, made: Round, as_json: bool) -> None:
        if as_json:
            report = {
                "round": made.number,
                "status": made.status,
                "settings": made.options,
                "error": made.error,
                **made.result,
            }
            self.stdout.write(json.dumps(report))
            return
        self.stdout.write(f"Round {made.number}: {made.status}. {made.error}".strip())
        if made.result:
            found = made.result
            self.stdout.write(
                f"{found['chosen']} of {found['candidates']} candidates wait for people, "
                f"{found['at_random']} of them drawn at random; from {found['responses']} "
                f"responses to {found['prompts']} prompts."
            )

    def show_advice(self, project: Project, as_json: bool) -> None:
        rows = round_rows(project)
        advice = rows[-1].advice if rows else None
        if as_json:
            said = {"round": rows[-1].round.number, "labels": rows[-1].n_labels} if rows else {}
            word, text = (advice.word, advice.text) if advice else ("", "")
            self.stdout.write(json.dumps({**said, "advice": word, "text": text}))
            return
        self.stdout.write(advice.text if advice else "There is no round to say anything about.")
