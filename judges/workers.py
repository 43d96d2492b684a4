"""The processes that share a run: how one comes in and leaves, is seen as gone, is stopped at once.

The run's row is the lock. Whatever decides who may ask or keep what is done while holding it, in
short transactions; nothing is asked inside one.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from judges.ml.asking import Halt
from judges.models import Claim, JudgeRun, RunWorker
from labeling.jobs import Job, JobCancelled, JobTaken, patiently

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between two looks at whether the run still wants this worker


class RunPaused(Exception):
    """The run keeps its place, and goes on when it is resumed; the message says why it paused."""


class RunEnded(Exception):
    """A colleague found that nothing was left, and ended the run."""


class StopNow(BaseException):
    """Raised in the middle of loading or computing. No `except Exception` of a library takes it."""


def locked(run: JudgeRun) -> JudgeRun:
    """The run's row, held to the end of the transaction, while this start of the run goes on.

    Raises: what `over` says when it does not.
    """
    row = JudgeRun.objects.select_for_update().get(pk=run.pk)
    if row.status != Job.Status.RUNNING or row.worker != run.worker:
        raise over(row)
    return row


def over(row: JudgeRun) -> Exception:
    """Why a worker has nothing more to do: RunEnded, JobCancelled, RunPaused or JobTaken."""
    if row.status == Job.Status.SUCCEEDED:
        return RunEnded(f"judge run {row.pk} is done")
    if row.status == Job.Status.CANCELLED:
        return JobCancelled(f"judge run {row.pk} was cancelled")
    if row.status == Job.Status.PAUSED:
        return RunPaused(row.error or _("Paused."))
    return JobTaken(f"judge run {row.pk} went to another worker")


@transaction.atomic
def come_in(run: JudgeRun) -> RunWorker:
    """This process as a worker of a running run.

    Raises: JobTaken where the run has all the workers it wants, or does not run any more.
    """
    row = locked(run)
    let_go_of_the_dead(row)
    others = list(row.workers.present())
    if others and len(others) >= row.workers_wanted:
        raise JobTaken(f"judge run {row.pk} has the workers it wants: {len(others)}")
    name = f"{socket.gethostname()}:{os.getpid()}:{timezone.now():%H%M%S%f}"
    return RunWorker.objects.create(run=row, name=name)


def leave(run: JudgeRun, worker: RunWorker, status: str, line: str = "") -> bool:
    """Take this worker off the run; the last one ends the run with `status` and the line.

    Its claims go back. Where others are still at work the run goes on, and its page shows the line.
    Returns whether the run ended by it.
    """
    return bool(patiently(lambda: _leave(run, worker, status, line)))


@transaction.atomic
def _leave(run: JudgeRun, worker: RunWorker, status: str, line: str) -> bool:
    RunWorker.objects.filter(pk=worker.pk, left_at=None).update(
        left_at=timezone.now(), problem=line, troubles=dict(worker.troubles)
    )
    Claim.objects.filter(worker=worker).delete()
    row = JudgeRun.objects.select_for_update().get(pk=run.pk)
    if row.status != Job.Status.RUNNING or row.worker != run.worker:
        return False
    if row.workers.present().exists():
        return False
    return run.finish(status, error=line, pause_requested=False)


def let_go_of_the_dead(run: JudgeRun) -> int:
    """Give back the claims of workers that are silent; how many workers they were.

    The caller holds the run's lock. One that was only slow finds its claims gone, and keeps
    nothing.
    """
    dead = list(run.workers.silent())
    if dead:
        Claim.objects.filter(worker__in=dead).delete()
        RunWorker.objects.filter(pk__in=[worker.pk for worker in dead]).update(
            left_at=timezone.now(), problem=_("It stopped reporting.")
        )
        logger.warning("judge run %s lost %s", run.pk, ", ".join(map(str, dead)))
    return len(dead)


class Attendance:
    """What a worker's second thread does: tells that it lives, and stops it when it is not wanted.

    Only inside `loading` and `computing` is the worker stopped at once, by a signal to the main
    thread, as Ctrl-C would: there it holds no transaction and nothing that is not kept could be
    kept any more. In a process whose work is not in the main thread it stops at its next look; what
    waits for a server looks at `halt`, wherever it runs.
    """

    def __init__(self, run: JudgeRun, worker: RunWorker) -> None:
        self.run, self.worker = run, worker
        self.halt = Halt()
        self._at = ""
        self._signals = False
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._attend, name=f"attendance of judge run {run.pk}", daemon=True
        )

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A pause stops it too: there is nothing in hand that is worth the wait."""
        with self._stoppable("loading"):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A pause waits for its end, so that what was computed is kept. A server is asked nothing
        more, and only what is in flight is waited for."""
        with self._stoppable("computing"):
            yield

    @contextmanager
    def _stoppable(self, what: str) -> Iterator[None]:
        self._at = what
        try:
            yield
        finally:
            self._at = ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Attend while the block runs."""
        self._signals = threading.current_thread() is threading.main_thread()
        former: Any = None
        if self._signals:
            former = signal.signal(signal.SIGUSR2, self._on_signal)
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            # Not for ever: see labeling.jobs.heartbeat.
            self._thread.join(timeout=settings.PREFLOOP_HEARTBEAT_SECONDS)
            if self._signals:
                signal.signal(signal.SIGUSR2, former or signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # In the main thread, between two steps of it: outside of the blocks it does nothing. Sent
        # again at the next look, should something like a finalizer have swallowed it.
        if self._at:
            raise StopNow

    def _attend(self) -> None:
        beat_at = time.monotonic() + settings.PREFLOOP_HEARTBEAT_SECONDS
        try:
            while not self._end.wait(LOOK_EVERY):
                try:
                    if self._is_to_stop() and self._signals:
                        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
                    if time.monotonic() >= beat_at:
                        self._beat()
                        beat_at = time.monotonic() + settings.PREFLOOP_HEARTBEAT_SECONDS
                except DatabaseError as error:  # busy or restarting: the next look tries again
                    logger.warning("attendance of judge run %s: %s", self.run.pk, error)
                    connection.close()
        finally:
            connection.close()

    def _is_to_stop(self) -> bool:
        """Whether the worker is to be stopped now, whatever it does; tells `halt` on the way."""
        row = (
            JudgeRun.objects.filter(pk=self.run.pk)
            .values_list("status", "worker", "pause_requested")
            .first()
        )
        if row is None:  # not committed yet, or deleted: the worker finds out itself
            return False
        status, worker, pause_requested = row
        is_over = status != Job.Status.RUNNING or worker != self.run.worker
        if is_over:
            self.halt.now.set()
        if is_over or pause_requested:
            self.halt.soon.set()
        return bool(self._at) if is_over else pause_requested and self._at == "loading"

    def _beat(self) -> None:
        now = timezone.now()
        # A long wait for a rate limit shows on the page while it lasts.
        if RunWorker.objects.filter(pk=self.worker.pk, left_at=None).update(
            heartbeat_at=now, troubles=dict(self.worker.troubles)
        ):
            JudgeRun.objects.filter(
                pk=self.run.pk, status=Job.Status.RUNNING, worker=self.run.worker
            ).update(heartbeat_at=now)
