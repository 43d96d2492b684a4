"""Put a judge to work on comparisons, and hand its preferences to labeling."""

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from judges.engines import opened
from judges.ml.config import (
    ASKING_MODES,
    PAIR_MODES,
    JudgeRecipe,
    prompt_words,
    recipe_from,
    recipe_values,
)
from judges.ml.modes import Outcome
from judges.models import (
    Judge,
    JudgeRun,
    JudgeServer,
    JudgeTrial,
    JudgeVersion,
    PromptVersion,
    Verdict,
)
from judges.prompts import prompt_of, prompt_version
from judges.servers import budget_of
from judges.verdicts import as_trial, record_verdict, verdict_of
from labeling.jobs import Job, JobTaken, heartbeat, process_lives
from labeling.models import Comparison, Project, Rater, content_hash
from labeling.shares import clopper_pearson
from labeling.storage import storage_path

WINDOW = 256  # comparisons read from the database at once, and sorted by length into batches


class RunActive(Exception):
    """A run of this judge version waits or works already: a second would ask the same questions."""


@transaction.atomic
def judge_version(
    project: Project,
    name: str,
    model: str,
    recipe: JudgeRecipe,
    user: Any = None,
    *,
    prompt: str = "",
    server: JudgeServer | None = None,
) -> tuple[JudgeVersion, bool]:
    """The version of the judge `name` with this model and recipe, and whether it was made now.

    The same settings are the same version; a change makes a new version, hence a new rater.

    Args:
        prompt: what the words of the question are called if the project has none like them; empty:
            as the judge is.
        server: where the model runs; None is a worker of ours.
    """
    judge, _created = Judge.objects.get_or_create(project=project, name=name)
    judge = Judge.objects.select_for_update().get(pk=judge.pk)  # one new version at a time
    values = recipe_values(recipe)
    for version in judge.versions.filter(model=model, server=server):
        # What an older version did not name yet had the default's value.
        if recipe_values(recipe_from(version.recipe)) == values:
            return version, False
    newest = judge.versions.first()
    number = newest.number + 1 if newest else 1
    version = JudgeVersion.objects.create(
        judge=judge,
        number=number,
        model=model,
        server=server,
        recipe=values,
        prompt=_prompt(project, recipe, prompt, name, user),
        rater=_new_rater(project, f"{name} v{number}"),
        created_by=user if user is not None and user.is_authenticated else None,
    )
    return version, True


def _prompt(
    project: Project, recipe: JudgeRecipe, prompt: str, judge: str, user: Any
) -> PromptVersion | None:
    """The words of the recipe's question; None of a judge that is asked none."""
    if recipe.mode not in ASKING_MODES:
        return None
    if prompt:
        return prompt_version(project, prompt, prompt_words(recipe), user)[0]
    return prompt_of(project, recipe, judge, user)[0]


def _new_rater(project: Project, name: str) -> Rater:
    """A judge's rater; an imported judge may already bear the name, and two never share a rater."""
    judges = Rater.objects.filter(project=project, kind=Rater.Kind.JUDGE)
    free, n = name, 1
    while judges.filter(name=free).exists():
        n += 1
        free = f"{name} ({n})"
    return Rater.objects.create(project=project, kind=Rater.Kind.JUDGE, name=free)


def already_at_work(version: JudgeVersion, active: JudgeRun) -> str:
    words = {"version": version, "run": active.pk, "status": active.get_status_display().lower()}
    return _("%(version)s is at work already: run %(run)s is %(status)s.") % words


def waiting_for(version: JudgeVersion) -> QuerySet[Comparison]:
    """Comparisons of the project that this version has not judged, in random order.

    Its exemplars are left out: a judge that was shown the answer proves nothing by giving it.
    """
    judged = Verdict.objects.filter(version=version, comparison=OuterRef("pk"))
    waiting = Comparison.objects.filter(~Exists(judged), project=version.judge.project_id)
    shown = list(exemplars_of(version).values_list("pk", flat=True))
    return waiting.exclude(pk__in=shown).order_by("random_key", "pk")


def exemplars_of(version: JudgeVersion) -> QuerySet[Comparison]:
    """Comparisons of the project that this version is shown with their answer.

    A recipe keeps the words of its exemplars, so the same words make the same comparison: prompt
    and both responses, in whichever order.
    """
    shown = Q()
    recipe = recipe_from(version.recipe)
    for exemplar in recipe.exemplars if recipe.mode in PAIR_MODES else ():
        first, second = content_hash(exemplar.first), content_hash(exemplar.second)
        of_prompt = Q(prompt__content_hash=content_hash(exemplar.prompt))
        shown |= of_prompt & (
            Q(response_a__content_hash=first, response_b__content_hash=second)
            | Q(response_a__content_hash=second, response_b__content_hash=first)
        )
    if not shown:
        return Comparison.objects.none()
    return Comparison.objects.filter(shown, project=version.judge.project_id)


def n_left_out(version: JudgeVersion) -> int:
    """Comparisons that are never asked because they are this version's exemplars."""
    return exemplars_of(version).exclude(verdicts__version=version).count()


@transaction.atomic
def new_run(version: JudgeVersion, limit: int | None = None, user: Any = None) -> JudgeRun:
    """A queued run over what this version has not judged yet. The caller wakes a worker.

    Raises: RunActive when one waits or works already.
    """
    JudgeVersion.objects.select_for_update().get(pk=version.pk)  # one new run at a time
    active = version.runs.active().first()
    if active is not None:
        raise RunActive(already_at_work(version, active))
    n_waiting = waiting_for(version).count()
    return JudgeRun.objects.create(
        version=version,
        limit=limit,
        created_by=user if user is not None and user.is_authenticated else None,
        n_total=n_waiting if limit is None else min(limit, n_waiting),
    )


@transaction.atomic
def requeue(run: JudgeRun) -> bool:
    """Queue a stopped run again; what it has done is kept. False if it is not stopped.

    Raises: RunActive when another run of its version waits or works.
    """
    JudgeVersion.objects.select_for_update().get(pk=run.version_id)
    active = run.version.runs.active().first()
    if active is not None:
        raise RunActive(already_at_work(run.version, active))
    return run.requeue()


def notice_death(run: JudgeRun) -> None:
    """Mark a run as lost whose process ran on this machine and is gone.

    The sweep finds it too, half a minute later and from any machine.
    """
    host, _, rest = run.worker.partition(":")
    if run.status != Job.Status.RUNNING or host != socket.gethostname():
        return
    pid = rest.partition(":")[0]
    if not (pid.isdigit() and process_lives(int(pid))):
        JudgeRun.objects.filter(pk=run.pk, status=Job.Status.RUNNING, worker=run.worker).update(
            status=Job.Status.LOST, finished_at=timezone.now(), error="The process is gone."
        )
        run.refresh_from_db()


def carry_out(
    run: JudgeRun,
    *,
    batch_tokens: int = 0,
    device: str = "",
    on_batch: Callable[[JudgeRun], None] | None = None,
) -> None:
    """Judge what a claimed run has left, batch by batch, until its end.

    Every batch is kept in one transaction: a process that is killed loses the batch in its hands
    and nothing else, and what has a verdict is not asked again.

    Raises: JobCancelled, JobTaken; ModelUnusable when the model cannot be loaded.
    """
    version = JudgeVersion.objects.select_related("judge", "rater").get(pk=run.version_id)
    n_done = run.verdicts.count()
    left = list(waiting_for(version).values_list("pk", flat=True))
    if run.limit is not None:
        left = left[: max(0, run.limit - n_done)]
    run.report(n_done=n_done, n_total=n_done + len(left))
    if left:
        with heartbeat(run):  # loading a model and one batch of it may each take minutes
            ask = opened(version, device=device, batch_tokens=batch_tokens, budget=budget_of(run))
            for start in range(0, len(left), WINDOW):
                comparisons = list(
                    waiting_for(version)
                    .filter(pk__in=left[start : start + WINDOW])
                    .select_related("prompt", "response_a", "response_b")
                )
                for batch in ask(comparisons):
                    _keep(run, version, [(comparisons[i], outcome) for i, outcome in batch])
                    run.report(n_done=run.n_done + len(batch))
                    if on_batch is not None:
                        on_batch(run)
    run.finish(Job.Status.SUCCEEDED, result=figures_of(run).as_json())


@transaction.atomic
def _keep(
    run: JudgeRun, version: JudgeVersion, outcomes: Sequence[tuple[Comparison, Outcome]]
) -> None:
    """Verdicts and preferences of one batch: all of them, or none.

    Raises: JobTaken when the run is no longer this process's; then nothing is written.
    """
    mine = JudgeRun.objects.select_for_update().filter(
        pk=run.pk, status=Job.Status.RUNNING, worker=run.worker
    )
    if mine.first() is None:
        raise JobTaken(f"judge run {run.pk} went to another worker")
    for comparison, outcome in outcomes:
        verdict = verdict_of(run, version, comparison, outcome)
        verdict.save(force_insert=True)
        if run.counts:
            record_verdict(verdict)


def carry_out_trial(trial: JudgeTrial, *, device: str = "") -> None:
    """Ask a judge version about one comparison and keep everything it read and said.

    Nothing of it counts: no verdict, no preference. For the result see `verdicts.as_trial`.
    Raises: JobCancelled, JobTaken; ModelUnusable when the model cannot be loaded.
    """
    with heartbeat(trial):
        [[(_index, outcome)]] = opened(trial.version, device=device)([trial.comparison])
    trial.report()
    trial.finish(Job.Status.SUCCEEDED, result=as_trial(outcome))


@dataclass(frozen=True)
class Share:
    """k of n, with its exact 95 % interval (Clopper and Pearson 1934).

    It takes every comparison for itself: the database counts verdicts, not prompts. Where many
    comparisons share a prompt, the agreement report's interval of the same share is the honest one.
    """

    k: int
    n: int

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """None where nothing was counted."""
        return clopper_pearson(self.k, self.n) if self.n else None


@dataclass(frozen=True)
class Figures:
    """What a set of verdicts comes to."""

    n: int = 0
    n_parsed: int = 0
    n_refused: int = 0
    n_cut: int = 0
    n_consistent: int = 0
    n_first_twice: int = 0
    n_second_twice: int = 0
    mean_mass: float | None = None
    n_tokens: int = 0
    seconds: float = 0.0
    n_exemplars: int = 0
    """Comparisons that a run left out, being the judge's exemplars."""

    @property
    def unparsed(self) -> Share:
        return Share(self.n - self.n_parsed, self.n)

    @property
    def consistency(self) -> Share:
        """Of the parsed verdicts, those that name the same response in both orders."""
        return Share(self.n_consistent, self.n_parsed)

    @property
    def n_asked(self) -> int:
        """Those that fitted the model's context: the answer mass is over them."""
        return self.n - self.n_refused

    @property
    def per_minute(self) -> float | None:
        """Comparisons judged in a minute of computing, both orders; loading left out."""
        return 60 * self.n / self.seconds if self.seconds else None

    def as_json(self) -> dict[str, Any]:
        """What `judge --json` prints. A question is one comparison, asked in both orders."""
        low, high = self.consistency.interval or (None, None)
        return {
            "questions": self.n,
            "parsed": self.n_parsed,
            "unparsed": self.n - self.n_parsed,
            "seconds": round(self.seconds, 3),
            "position_consistency": self.consistency.value,
            "position_consistency_low": low,
            "position_consistency_high": high,
            "first_shown_twice": self.n_first_twice,
            "second_shown_twice": self.n_second_twice,
            "mean_answer_mass": self.mean_mass,
            "did_not_fit": self.n_refused,
            "prompts_cut": self.n_cut,
            "tokens": self.n_tokens,
            "exemplars_left_out": self.n_exemplars,
        }


def figures_by(verdicts: QuerySet[Verdict], field: str) -> dict[int, Figures]:
    """Figures for every value of `field` ("run" or "version") that has verdicts; one query."""
    return {row.pop(field): Figures(**row) for row in verdicts.counted_by(field)}


def figures_of(run: JudgeRun) -> Figures:
    """What the run has come to so far, over all its starts."""
    figures = figures_by(run.verdicts.all(), "run").get(run.pk, Figures())
    return replace(figures, n_exemplars=n_left_out(run.version))


def seconds_left(run: JudgeRun, figures: Figures) -> float | None:
    """Computing time to the end at the speed so far; None where nobody can say."""
    if run.status != Job.Status.RUNNING or run.n_total is None or not figures.n:
        return None
    return figures.seconds / figures.n * max(0, run.n_total - run.n_done)


def stored_models() -> list[str]:
    """Names of the language models under PREFLOOP_STORAGE/models, for a form to offer."""
    root = storage_path("models")
    names = []
    for file in [*root.glob("*/config.json"), *root.glob("*/*/config.json")]:
        try:
            kinds = json.loads(file.read_text()).get("architectures") or []
        except (OSError, ValueError, AttributeError):
            continue  # half written, or no model's: nothing to offer
        if any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
            names.append(str(file.parent.relative_to(root)))
    return sorted(names)
