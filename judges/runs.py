"""The life of a judge run: made, claimed, carried out batch by batch, stopped, gone on with."""

import socket
from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from judges.figures import figures_of
from judges.judging import engines, exemplars_of, record_verdict, sample_of, verdict_of
from judges.ml.config import JudgeRecipe, recipe_from
from judges.models import JudgeRun, JudgeVersion, Verdict
from labeling.jobs import Job, JobTaken, heartbeat, process_lives
from labeling.models import Comparison
from labeling.storage import model_folder

WINDOW = 256  # comparisons read from the database at once, and sorted by length into batches


class RunActive(Exception):
    """A run of this judge version waits or works already: a second would ask the same questions."""


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
    engine_module = engines()
    version = JudgeVersion.objects.select_related("judge", "rater").get(pk=run.version_id)
    recipe = recipe_from(version.recipe)
    n_done = run.verdicts.count()
    left = list(waiting_for(version).values_list("pk", flat=True))
    if run.limit is not None:
        left = left[: max(0, run.limit - n_done)]
    run.report(n_done=n_done, n_total=n_done + len(left))
    if left:
        with heartbeat(run):  # loading a model and one batch of it may each take minutes
            engine = engine_module.load_engine(model_folder(version.model), recipe, device)
            for start in range(0, len(left), WINDOW):
                comparisons = list(
                    waiting_for(version)
                    .filter(pk__in=left[start : start + WINDOW])
                    .select_related("prompt", "response_a", "response_b")
                )
                samples = [sample_of(comparison) for comparison in comparisons]
                for batch in engine_module.judge_in_batches(engine, samples, batch_tokens):
                    _keep(run, version, recipe, [(comparisons[i], out) for i, out in batch])
                    run.report(n_done=run.n_done + len(batch))
                    if on_batch is not None:
                        on_batch(run)
    run.finish(Job.Status.SUCCEEDED, result=figures_of(run).as_json())


@transaction.atomic
def _keep(
    run: JudgeRun,
    version: JudgeVersion,
    recipe: JudgeRecipe,
    outcomes: Sequence[tuple[Comparison, Any]],
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
        verdict = verdict_of(run, version, recipe, comparison, outcome)
        verdict.save(force_insert=True)
        record_verdict(verdict, recipe)
