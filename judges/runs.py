"""The life of a judge run: made, carried out batch by batch by one worker or several, paused,
stopped, gone on with."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from judges.claims import budget_of, claim_window, give_back, price_of_a_token, servers_of
from judges.drift import check_if_told_anew
from judges.engines import Ask, opened
from judges.figures import figures_of
from judges.judging import exemplars_of
from judges.ml.asking import EngineStopped, Halted
from judges.ml.config import ModelUnusable
from judges.ml.modes import Outcome
from judges.models import Claim, JudgeRun, JudgeVersion, RunWorker, Verdict
from judges.selection import selected
from judges.verdicts import correction_of, record_verdict, verdict_of
from judges.workers import Attendance, RunEnded, RunPaused, StopNow, come_in, leave, locked, over
from labeling.jobs import Job, JobCancelled, JobTaken, mark_lost, patiently
from labeling.models import Comparison, Preference

WAIT = 1.0  # seconds between two looks at what colleagues still hold
HANDED_OVER_AT_ONCE = 500  # verdicts in one transaction


class RunActive(Exception):
    """A run of this judge version waits, works or is paused: a second would ask the same."""


class BudgetUnknown(ValueError):
    """A limit for a judge that takes what the run cannot see."""


def already_at_work(version: JudgeVersion, active: JudgeRun) -> str:
    words = {"version": version, "run": active.pk, "status": active.get_status_display().lower()}
    if active.status == Job.Status.PAUSED:
        return _("Run %(run)s of %(version)s is paused: resume it, or cancel it first.") % words
    return _("%(version)s is at work already: run %(run)s is %(status)s.") % words


def waiting_for(
    version: JudgeVersion, selection: Mapping[str, Any] | None = None
) -> QuerySet[Comparison]:
    """The selected comparisons of the project that this version has not judged, in their order.

    Its exemplars are left out: a judge that was shown the answer proves nothing by giving it.
    """
    judged = Verdict.objects.filter(version=version, comparison=OuterRef("pk"))
    shown = list(exemplars_of(version).values_list("pk", flat=True))
    rows = selected(version.judge.project, selection or {})
    return rows.filter(~Exists(judged)).exclude(pk__in=shown)


@transaction.atomic
def new_run(
    version: JudgeVersion,
    limit: int | None = None,
    user: Any = None,
    *,
    selection: Mapping[str, Any] | None = None,
    counts: bool = True,
    most_tokens: int | None = None,
    most_cost: float | None = None,
    workers: int = 1,
) -> JudgeRun:
    """A queued run over what this version has not judged yet. The caller wakes its workers.

    Args:
        selection: see judges.selection; empty is everything.
        counts: whether its verdicts become preferences. Those of the laboratory do not: see
            `hand_over`.
        most_tokens, most_cost: the run pauses before it would spend more.
        workers: how many processes may share it.
    Raises: RunActive when one waits, works or is paused; BudgetUnknown for a limit of cost where
        the judge's server has no prices; ValueError for a selection that is not known.
    """
    JudgeVersion.objects.select_for_update().get(pk=version.pk)  # one new run at a time
    active = version.runs.unfinished().first()
    if active is not None:
        raise RunActive(already_at_work(version, active))
    check_budget(version, most_tokens, most_cost)
    n_waiting = waiting_for(version, selection).count()
    return JudgeRun.objects.create(
        version=version,
        limit=limit,
        selection=dict(selection or {}),
        counts=counts,
        most_tokens=most_tokens,
        most_cost=most_cost,
        workers_wanted=workers,
        created_by=user if user is not None and user.is_authenticated else None,
        n_total=n_waiting if limit is None else min(limit, n_waiting),
    )


def check_budget(version: JudgeVersion, most_tokens: int | None, most_cost: float | None) -> None:
    """Raises: BudgetUnknown for a limit of cost that could not be kept: where a server that the
    judge asks has no prices, or those of a jury's members are in several currencies."""
    if most_cost is None:
        return
    servers = servers_of(version)
    if not servers or any(price_of_a_token(server) is None for server in servers):
        raise BudgetUnknown(
            _("No price is known for %(version)s, so a limit of its cost cannot be kept.")
            % {"version": version}
        )
    if len({server.currency for server in servers}) > 1:
        raise BudgetUnknown(
            _(
                "The servers of %(version)s have prices in several currencies, so a limit of its "
                "cost cannot be kept."
            )
            % {"version": version}
        )


def raise_budget(
    run: JudgeRun, most_tokens: int | None = None, most_cost: float | None = None
) -> None:
    """Other limits for a run that has stopped; None leaves one as it is.

    Raises: BudgetUnknown for a limit of cost where the judge's server has no prices.
    """
    check_budget(run.version, most_tokens, most_cost)
    run.most_tokens = run.most_tokens if most_tokens is None else most_tokens
    run.most_cost = run.most_cost if most_cost is None else most_cost
    run.save(update_fields=["most_tokens", "most_cost"])


@transaction.atomic
def requeue(run: JudgeRun) -> bool:
    """Queue a stopped run again; what it has done is kept. False if it is not stopped.

    Raises: RunActive when another run of its version waits, works or is paused.
    """
    JudgeVersion.objects.select_for_update().get(pk=run.version_id)
    active = run.version.runs.unfinished().exclude(pk=run.pk).first()
    if active is not None:
        raise RunActive(already_at_work(run.version, active))
    return run.requeue()


def joined(run_id: int) -> JudgeRun | None:
    """A running run that may have one more worker, or None."""
    run = JudgeRun.objects.filter(pk=run_id, status=Job.Status.RUNNING, pause_requested=False)
    row = run.first()
    if row is None or row.workers.present().count() >= row.workers_wanted:
        return None
    return row


def add_worker(run: JudgeRun) -> bool:
    """Let one more process share a run that waits or works; the caller wakes it. False if the run
    has ended."""
    return bool(
        JudgeRun.objects.active()
        .filter(pk=run.pk, workers_wanted__lt=32767)
        .update(workers_wanted=F("workers_wanted") + 1)
    )


def notice_death(run: JudgeRun) -> None:
    """Mark a run as lost whose processes ran on this machine and are gone.

    The sweep finds it too, half a minute later and from any machine.
    """
    if run.status != Job.Status.RUNNING or not run.is_deserted:
        return
    mark_lost(JudgeRun.objects.filter(pk=run.pk, status=Job.Status.RUNNING, worker=run.worker))
    run.refresh_from_db()


def carry_out(
    run: JudgeRun,
    *,
    batch_tokens: int = 0,
    device: str = "",
    on_batch: Callable[[JudgeRun], None] | None = None,
) -> None:
    """Work on a running run as one of its workers, batch by batch, until it has ended.

    Every batch is kept in one transaction: a process that is killed loses the batch in its hands
    and nothing else, and what has a verdict is not asked again. A worker that cannot go on leaves;
    the last one ends the run with the reason, and it can be resumed.

    Raises: JobCancelled, JobTaken; RunPaused, with the reason; ModelUnusable when the model cannot
        be loaded; whatever else went wrong.
    """
    worker = come_in(run)
    attendance = Attendance(run, worker)
    try:
        with attendance.kept():
            _work(run, worker, attendance, batch_tokens, device, on_batch)
    except (StopNow, Halted):
        if not connection.in_atomic_block:
            connection.close()  # a jury reads and writes rows between its questions
        row = JudgeRun.objects.get(pk=run.pk)
        goes_on = row.status == Job.Status.RUNNING and row.worker == run.worker
        leave(run, worker, Job.Status.PAUSED)
        reason = RunPaused(_("Paused.")) if goes_on else over(row)
        if not isinstance(reason, RunEnded):
            raise reason from None
    except RunEnded:
        leave(run, worker, Job.Status.SUCCEEDED)
    except (JobCancelled, JobTaken) as error:
        leave(run, worker, Job.Status.LOST, str(error))
        raise
    except RunPaused as error:
        leave(run, worker, Job.Status.PAUSED, "" if str(error) == _("Paused.") else str(error))
        raise
    except EngineStopped as error:
        leave(run, worker, Job.Status.PAUSED, str(error))
        raise RunPaused(str(error)) from error
    except KeyboardInterrupt:
        leave(run, worker, Job.Status.CANCELLED)
        raise
    except Exception as error:
        leave(run, worker, Job.Status.FAILED, failure_line(error))
        raise
    else:
        leave(run, worker, Job.Status.SUCCEEDED)


def _work(
    run: JudgeRun,
    worker: RunWorker,
    attendance: Attendance,
    batch_tokens: int,
    device: str,
    on_batch: Callable[[JudgeRun], None] | None,
) -> None:
    """Load the model if there is anything to ask, and ask until nothing is left."""
    version = JudgeVersion.objects.select_related("judge__project", "rater", "server").get(
        pk=run.version_id
    )
    if run.counts:
        hand_over(version)  # what the laboratory asked before is not asked again

    def waiting() -> QuerySet[Comparison]:
        return waiting_for(version, run.selection)

    def still_waiting() -> deque[int]:
        return patiently(lambda: deque(waiting().values_list("pk", flat=True)))

    left = still_waiting()
    patiently(lambda: _count(run, len(left)))
    ask = None
    told: set[str] = set()  # by the judge's server, of its model
    while True:
        if left and ask is None:
            with attendance.loading():
                ask = opened(
                    version,
                    device=device,
                    batch_tokens=batch_tokens,
                    budget=budget_of(run),
                    counts=worker.troubles,
                    halt=attendance.halt,
                    run=run,
                )
            asking = RunWorker.objects.filter(pk=worker.pk)
            patiently(partial(asking.update, asking_since=timezone.now()))
        window = patiently(partial(claim_window, run, worker, left, waiting))
        if window.comparisons:
            batches = _batches(ask, window.comparisons)
            while True:
                with attendance.computing():
                    batch = next(batches, None)
                if batch is None:
                    break
                colleagues_wait = patiently(partial(_keep, run, worker, version, batch))
                news = _told_by(batch) - told
                if news:
                    told |= news
                    _notice(version, news)
                if on_batch is not None:
                    on_batch(run)
                if run.pause_requested:
                    raise RunPaused(_("Paused."))
                if colleagues_wait and not left:  # all that is left is in this worker's hands
                    left.extendleft(give_back(run, worker))
                    break
        elif window.others_hold:
            time.sleep(WAIT)
            if not left:
                held = Claim.objects.filter(run=run, comparison=OuterRef("pk"))
                left = deque(waiting().filter(~Exists(held)).values_list("pk", flat=True))
        elif patiently(lambda: _finished(run, waiting)):
            return
        else:  # a colleague died, or new comparisons were imported
            left = still_waiting()


def _batches(
    ask: Ask, comparisons: Sequence[Comparison]
) -> Iterator[list[tuple[Comparison, Outcome]]]:
    """What the judge makes of every comparison, batch by batch."""
    for batch in ask(comparisons):
        yield [(comparisons[place], outcome) for place, outcome in batch]


def _told_by(batch: Sequence[tuple[Comparison, Outcome]]) -> set[str]:
    return {one for _row, outcome in batch for one in outcome.raw.get("server_told", ())}


def _notice(version: JudgeVersion, told: set[str]) -> None:
    """Have the project's judge checked where its server tells of another model."""
    check = check_if_told_anew(version, told)
    if check is not None:
        check.enqueue()


@transaction.atomic
def _count(run: JudgeRun, n_left: int) -> None:
    """Store how far the run is, as its first worker finds it; others add to it."""
    row = locked(run)
    if row.workers.filter(left_at=None).count() > 1:
        run.n_done, run.n_total = row.n_done, row.n_total
        return
    run.n_done = row.verdicts.count()
    run.n_total = run.n_done + n_left
    if row.limit is not None:
        run.n_total = max(run.n_done, min(row.limit, run.n_total))
    run.save(update_fields=["n_done", "n_total"])


@transaction.atomic
def _keep(
    run: JudgeRun,
    worker: RunWorker,
    version: JudgeVersion,
    outcomes: Sequence[tuple[Comparison, Outcome]],
) -> bool:
    """Verdicts and preferences of one batch: all of them, or none.

    Returns whether a colleague has nothing to do.
    Raises: JobTaken, JobCancelled or RunPaused when the run does not go on, or when this worker was
    taken for dead and its comparisons went back; then nothing is written.
    """
    row = locked(run)
    asked = [comparison for comparison, _outcome in outcomes]
    held = Claim.objects.filter(worker=worker, comparison__in=asked)
    if held.delete()[0] != len(outcomes):
        raise JobTaken(f"judge run {run.pk} took this worker for dead: it was not heard of")
    verdicts = [verdict_of(run, version, comparison, outcome) for comparison, outcome in outcomes]
    # A jury on which this judge sits may have been quicker: its verdict stands.
    Verdict.objects.bulk_create(verdicts, ignore_conflicts=True)
    if row.counts:
        correction = correction_of(version)
        for verdict in version.verdicts.filter(comparison__in=asked).select_related("comparison"):
            verdict.version = version
            record_verdict(verdict, correction)
    now = timezone.now()
    RunWorker.objects.filter(pk=worker.pk).update(
        n_judged=F("n_judged") + len(outcomes),
        last_kept_at=now,
        heartbeat_at=now,
        troubles=dict(worker.troubles),
    )
    row.n_done += len(outcomes)
    row.n_total = max(row.n_total or 0, row.n_done)
    row.heartbeat_at = now
    row.save(update_fields=["n_done", "n_total", "heartbeat_at"])
    run.n_done, run.n_total = row.n_done, row.n_total
    run.pause_requested = row.pause_requested
    idle = row.workers.present().exclude(pk=worker.pk).filter(claims=None)
    return idle.exclude(asking_since=None).exists()


@transaction.atomic
def _finished(run: JudgeRun, waiting: Callable[[], QuerySet[Comparison]]) -> bool:
    """End the run if nothing is in anybody's hands and nothing is left."""
    row = locked(run)
    full = row.limit is not None and row.n_done >= row.limit
    if row.claims.exists() or (not full and waiting().exists()):
        return False
    return run.finish(Job.Status.SUCCEEDED, result=figures_of(run).as_json(), pause_requested=False)


def hand_over(version: JudgeVersion) -> int:
    """Record the preferences of stored verdicts that did not count, and let the rest of the runs
    that asked for them count; how many they were.

    Verdicts of the laboratory become labels by this alone. Called again, it goes on.
    """
    version.runs.filter(counts=False).update(counts=True)
    recorded = Preference.objects.current().filter(
        rater=version.rater_id, comparison=OuterRef("comparison")
    )
    missing = version.verdicts.filter(~Exists(recorded)).select_related("comparison")
    n = 0
    while True:
        with transaction.atomic():
            JudgeVersion.objects.select_for_update().get(pk=version.pk)  # one hand-over at a time
            verdicts = list(missing.order_by("pk")[:HANDED_OVER_AT_ONCE])
            correction = correction_of(version)
            for verdict in verdicts:
                verdict.version = version
                record_verdict(verdict, correction)
        if not verdicts:
            return n
        n += len(verdicts)


def failure_line(error: Exception) -> str:
    """An error for the page: our own in plain words, a surprise with where it came from."""
    if isinstance(error, ModelUnusable | EngineStopped):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return _(
            "Out of memory. Everything judged so far is kept. Use a smaller model, load it in "
            "4 bits, or take a machine with more memory, and resume."
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r}, in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"
