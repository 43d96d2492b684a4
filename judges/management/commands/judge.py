"""`manage.py judge`: put an AI judge to work on a project, in this process."""

import json
import logging
import sys
from argparse import ArgumentParser
from typing import Any, get_type_hints

from django.core.management.base import BaseCommand, CommandError

from judges.figures import figures_of, troubles_in_words, troubles_of
from judges.judging import judge_version
from judges.ml.config import MODES, JudgeRecipe, ModelUnusable, recipe_from
from judges.models import Judge, JudgeRun, JudgeVersion
from judges.runs import (
    BudgetUnknown,
    RunActive,
    add_worker,
    carry_out,
    new_run,
    notice_death,
    raise_budget,
    requeue,
)
from judges.selection import OFFERED, Which, selection_of, which_of
from judges.workers import RunPaused
from labeling.jobs import Job, JobCancelled, JobTaken
from labeling.models import Project

WRONG_CALL, NOTHING_DONE = 2, 1
TYPES = get_type_hints(JudgeRecipe)


class Command(BaseCommand):
    help = (
        "Let a judge compare the responses of a project. What it has judged is not asked again: "
        "called a second time, it goes on where it stopped. --model makes the judge, or with other "
        "settings than before a new version of it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--project", required=True, metavar="SLUG")
        parser.add_argument("--judge", required=True, metavar="NAME")
        parser.add_argument("--limit", type=int, metavar="N", help="judge at most N comparisons")
        parser.add_argument(
            "--select",
            choices=[which for which, _words in OFFERED],
            default=Which.ALL,
            help="which comparisons; default: everything, the audit set first",
        )
        parser.add_argument(
            "--most-tokens", type=int, metavar="N", help="pause before more tokens than this"
        )
        parser.add_argument(
            "--most-cost",
            type=float,
            metavar="X",
            help="pause before more of the server's currency",
        )
        parser.add_argument(
            "--join", action="store_true", help="share the run that is at work, as one more worker"
        )
        parser.add_argument(
            "--model", help="hub id, folder, or a name under PREFLOOP_STORAGE/models"
        )
        parser.add_argument("--mode", choices=MODES, help="see docs/judges.md")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="another setting of the judge, such as max_rationale_tokens=64",
        )
        parser.add_argument("--batch-tokens", type=int, default=0, help="0 chooses by the machine")
        parser.add_argument("--device", default="", help="cpu, cuda, …; default: the GPU if any")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"there is no project {options['project']}", returncode=WRONG_CALL)
        for name in ("limit", "most_tokens"):
            if options[name] is not None and options[name] < 1:
                argument = name.replace("_", "-")
                raise CommandError(f"--{argument} must be at least 1", returncode=WRONG_CALL)
        version = _version(project, options)
        if not project.comparisons.exists():
            raise CommandError(f"{project} has no comparisons", returncode=NOTHING_DONE)
        run = _joined_run(version) if options["join"] else _claimed_run(version, options)
        self.stderr.write(f"{version} ({version.model}): {run.n_total} comparisons")
        paused = ""
        try:
            carry_out(
                run,
                batch_tokens=options["batch_tokens"],
                device=options["device"],
                on_batch=self._show_progress,
            )
        except RunPaused as error:
            paused = str(error)
        except ModelUnusable as error:
            raise CommandError(str(error), returncode=NOTHING_DONE) from error
        except JobCancelled as error:
            raise CommandError(
                "cancelled; what is done is kept", returncode=NOTHING_DONE
            ) from error
        except JobTaken as error:
            raise CommandError(str(error), returncode=NOTHING_DONE) from error
        except KeyboardInterrupt:
            self.stderr.write(
                "\nstopped; what is done is kept, and the same call goes on from there"
            )
            sys.exit(130)
        run.refresh_from_db()
        figures = {
            "run": run.pk,
            "version": version.number,
            "status": run.status,
            **figures_of(run).as_json(),
        }
        if options["json"]:
            self.stdout.write(json.dumps(figures))
        else:
            self.stdout.write(_in_words(version, figures))
            for words in troubles_in_words(troubles_of(run)):
                self.stdout.write(words)
        if paused:
            raise CommandError(paused, returncode=NOTHING_DONE)

    def _show_progress(self, run: JudgeRun) -> None:
        end = "\n" if run.n_done == run.n_total else ""
        self.stderr.write(f"\r{run.n_done} of {run.n_total} judged", ending=end)
        self.stderr.flush()


def _version(project: Project, options: dict[str, Any]) -> JudgeVersion:
    """The judge's newest version, or the one with the settings that were given."""
    judge = Judge.objects.filter(project=project, name=options["judge"]).first()
    newest = judge.versions.first() if judge else None
    changes = dict(_setting(text) for text in options["set"])
    if options["mode"]:
        changes["mode"] = options["mode"]
    model = options["model"] or (newest.model if newest else None)
    if changes.get("mode") == "jury":
        model = ""  # its members have models
    if model is None:
        raise CommandError(
            f"{project} has no judge {options['judge']}; --model MODEL makes it",
            returncode=WRONG_CALL,
        )
    if newest is not None and not changes and model == newest.model:
        return newest
    try:
        recipe = recipe_from({**(newest.recipe if newest else {}), **changes})
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), returncode=WRONG_CALL) from error
    version, _created = judge_version(project, options["judge"], model, recipe)
    return version


def _setting(text: str) -> tuple[str, Any]:
    """key=value, the value as JSON where it is some, and as text otherwise."""
    key, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--set wants KEY=VALUE, not {text}", returncode=WRONG_CALL)
    if TYPES.get(key) is str:  # text as it stands, even where it looks like a number
        return key, value
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _claimed_run(version: JudgeVersion, options: dict[str, Any]) -> JudgeRun:
    """A run that this process carries out: the last one if it stopped half-way, or a new one."""
    limit, selection = options["limit"], selection_of(options["select"])
    budget = {"most_tokens": options["most_tokens"], "most_cost": options["most_cost"]}
    last = version.runs.order_by("-pk").first()
    same = last is not None and (last.limit, which_of(last.selection)) == (limit, options["select"])
    if last is not None:
        notice_death(last)
    try:
        if same and last.can_resume:
            raise_budget(last, **budget)
            requeue(last)
            run = last
        elif same and last.status == Job.Status.QUEUED:
            raise_budget(last, **budget)
            run = last
        else:
            run = new_run(version, limit, selection=selection, **budget)
    except RunActive as error:
        raise CommandError(
            f"{error} --join shares one at work.", returncode=NOTHING_DONE
        ) from error
    except BudgetUnknown as error:
        raise CommandError(str(error), returncode=WRONG_CALL) from error
    claimed = JudgeRun.objects.claim(run.pk)
    if claimed is None:
        raise CommandError(f"run {run.pk} went to another worker", returncode=NOTHING_DONE)
    return claimed


def _joined_run(version: JudgeVersion) -> JudgeRun:
    """The run of this version that is at work, with room for this process."""
    run = version.runs.filter(status=Job.Status.RUNNING).first()
    if run is None or not add_worker(run):
        raise CommandError(f"no run of {version} is at work", returncode=NOTHING_DONE)
    run.refresh_from_db()
    return run


def _in_words(version: JudgeVersion, figures: dict[str, Any]) -> str:
    lines = [
        f"{version}: {figures['questions']} comparisons in {figures['seconds']:.1f} s, "
        f"{figures['parsed']} parsed, {figures['unparsed']} unparsed"
    ]
    if figures["position_consistency"] is not None:
        lines.append(
            f"same response in both orders: {figures['position_consistency']:.3f} "
            f"[{figures['position_consistency_low']:.3f}, "
            f"{figures['position_consistency_high']:.3f}], n = {figures['parsed']}"
        )
    if figures["mean_answer_mass"] is not None:
        lines.append(f"mean answer mass: {figures['mean_answer_mass']:.3f}")
    if figures["prompts_cut"] or figures["did_not_fit"]:
        lines.append(
            f"prompts cut to fit the context: {figures['prompts_cut']}; "
            f"responses that did not fit: {figures['did_not_fit']} (unparsed)"
        )
    if figures["exemplars_left_out"]:
        lines.append(
            f"left out: {figures['exemplars_left_out']} shown as exemplars, with the answer"
        )
    return "\n".join(lines)
