"""`manage.py route`: test what judges may decide alone, and route a project, in this process."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from judges.certificates import NotReady, RoutingActive, new_run, policy_of, set_policy
from judges.models import RoutingRun
from judges.outlook import outlook
from judges.routing import carry_out
from judges.runs import failure_line
from labeling.jobs import Job, JobCancelled, JobTaken
from labeling.models import Project

WRONG_CALL, NOTHING_DONE = 2, 1


class Command(BaseCommand):
    help = (
        "Test on people's labels of the audit stream what the project's judge may decide alone, "
        "and let that leave the human queue. Every test uses up a part of --delta; --look is none."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--alpha", type=float, help="share of errors allowed; default: as set")
        parser.add_argument("--delta", type=float, help="risk of a false certificate, in all")
        parser.add_argument(
            "--look", action="store_true", help="count and say what a test would come to"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']}", returncode=WRONG_CALL)
        policy = policy_of(project)
        for name in ("alpha", "delta"):
            if options[name] is not None:
                setattr(policy, name, options[name])
        limits = {"alpha": (0.001, 0.5), "delta": (0.0001, 0.4)}
        for name, (low, high) in limits.items():
            if not low <= getattr(policy, name) <= high:
                raise CommandError(
                    f"--{name} must lie between {low} and {high}", returncode=WRONG_CALL
                )
        if not options["look"]:
            set_policy(project, None, alpha=policy.alpha, delta=policy.delta)
        kind = RoutingRun.Kind.COUNT if options["look"] else RoutingRun.Kind.ISSUE
        try:
            run = RoutingRun.objects.claim(new_run(project, kind).pk)
        except (RoutingActive, NotReady) as error:
            raise CommandError(str(error), returncode=NOTHING_DONE) from error
        try:
            carry_out(run)
        except NotReady as error:
            run.finish(Job.Status.FAILED, error=str(error))
            self._say(policy, options, run, str(error))
            raise CommandError(str(error), returncode=NOTHING_DONE) from error
        except (JobCancelled, JobTaken) as error:
            raise CommandError(str(error), returncode=NOTHING_DONE) from error
        except Exception as error:
            run.finish(Job.Status.FAILED, error=failure_line(error))
            raise
        self._say(policy, options, run, "")
        if not options["look"] and not self._certificate(run).n_decided:
            raise CommandError("no certificate: people decide everything", returncode=NOTHING_DONE)

    def _certificate(self, run: RoutingRun) -> Any:
        return run.project.certificates.get(pk=run.result["certificate"])

    def _say(self, policy: Any, options: dict[str, Any], run: RoutingRun, problem: str) -> None:
        found = outlook(run.project, policy)
        figures: dict[str, Any] = {"alpha": policy.alpha, "delta": policy.delta, "why": problem}
        if found is not None:
            names = ("n_labels", "n_needed", "share_ai", "share_people", "n_decided", "n_leaving")
            figures |= {name: found[name] for name in names}
        if "certificate" in run.result:
            certificate = self._certificate(run)
            figures |= {
                "certificate": certificate.number,
                "status": certificate.status,
                "level": certificate.level,
                "n_decided": certificate.n_decided,
                "share_ai": certificate.n_decided / max(1, certificate.n_comparisons),
                "stages": [
                    {
                        "judge": str(stage.version),
                        "threshold": stage.threshold,
                        "n": stage.n,
                        "errors": stage.errors,
                        "bound": stage.bound,
                    }
                    for stage in certificate.stages.select_related("version__judge")
                ],
                **run.result.get("moved", {}),
            }
        if options["json"]:
            self.stdout.write(json.dumps(figures))
        else:
            for name, value in figures.items():
                self.stdout.write(f"{name}: {value}")
            for _level, words in found["said"] if found is not None else []:
                self.stdout.write(words)
