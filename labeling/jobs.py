"""Long jobs as rows: claimed once, seen as lost when their worker dies, cancelled and resumed.

The row is the truth and the queue's message only wakes a worker, so a lost message, a doubled one
and a killed worker all end in a state that the page can show.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

from django.apps import apps
from django.conf import settings
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    models,
    transaction,
)
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _lazy

logger = logging.getLogger(__name__)


PATIENCE_SECONDS = 120.0
"""How long a job waits for a database that is away before it gives up."""
PAUSE_SECONDS = 1.0


class JobCancelled(Exception):
    """Raised inside a job at its next report after somebody asked it to stop."""


class JobTaken(Exception):
    """Raised inside a job whose row has gone to another worker: stop and write nothing more."""


def patiently(do: Callable[[], Any]) -> Any:
    """Do one whole transaction, and again while the database is away: it restarts, or its disk is
    full. Hours of work must not end by seconds of that.

    Raises: what it raised, after PATIENCE_SECONDS, or at once within a transaction of the caller's.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return do()
        except (OperationalError, InterfaceError) as error:
            if connection.in_atomic_block or time.monotonic() > deadline:
                raise
            logger.warning("the database is away, waiting for it: %s", error)
            connection.close()
            time.sleep(PAUSE_SECONDS)


class JobQuerySet(models.QuerySet):
    def active(self) -> Self:
        """Jobs that wait for a worker or have one."""
        return self.filter(status__in=[Job.Status.QUEUED, Job.Status.RUNNING])

    def silent(self) -> Self:
        """Running jobs whose worker has missed three reports."""
        deadline = timezone.now() - timedelta(seconds=3 * settings.PREFLOOP_HEARTBEAT_SECONDS)
        return self.filter(status=Job.Status.RUNNING, heartbeat_at__lt=deadline)

    def orphaned(self) -> Self:
        """Running jobs of this machine whose process is gone.

        Only for the one process that watches over all others of this machine: a container sees
        the processes of another as gone.
        """
        running = self.filter(
            status=Job.Status.RUNNING, worker__startswith=f"{socket.gethostname()}:"
        )
        gone = [
            pk
            for pk, worker in running.values_list("pk", "worker")
            if not process_lives(int(worker.rsplit(":", 2)[1]))
        ]
        return self.filter(status=Job.Status.RUNNING, pk__in=gone)

    def forgotten(self) -> Self:
        """Queued jobs whose message may be lost: nobody took them for half a minute.

        While a job is queued, `heartbeat_at` is when its message was sent again. The next time is a
        minute later, and for one that has waited for ten, five minutes: a job behind a long one
        must not fill the queue with messages.
        """
        now = timezone.now()
        new = models.Q(queued_at__gt=now - timedelta(minutes=10))
        return self.filter(
            models.Q(heartbeat_at=None)
            | new & models.Q(heartbeat_at__lt=now - timedelta(minutes=1))
            | models.Q(heartbeat_at__lt=now - timedelta(minutes=5)),
            status=Job.Status.QUEUED,
            queued_at__lt=now - timedelta(seconds=30),
        )

    def claim(self, pk: int) -> Any:
        """Take a queued job for this process, or None if it is gone, cancelled or taken.

        One conditional UPDATE, so two workers never share a job.
        """
        now = timezone.now()
        worker = f"{socket.gethostname()}:{os.getpid()}:{now:%H%M%S%f}"
        taken = self.filter(pk=pk, status=Job.Status.QUEUED).update(
            status=Job.Status.RUNNING, worker=worker, started_at=now, heartbeat_at=now, error=""
        )
        return self.get(pk=pk) if taken else None


class Job(models.Model):
    """What every long job has: a state, an owner, progress, an end, a cancel and a resume.

    A subclass adds its own columns and says how it is sent to a worker (`enqueue`).
    """

    class Status(models.TextChoices):
        QUEUED = "queued", _lazy("Queued")
        RUNNING = "running", _lazy("Running")
        PAUSED = "paused", _lazy("Paused")  # of jobs that can: goes on from its place when resumed
        SUCCEEDED = "succeeded", _lazy("Succeeded")
        FAILED = "failed", _lazy("Failed")
        CANCELLED = "cancelled", _lazy("Cancelled")
        LOST = "lost", _lazy("Lost")

    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED)
    created_at = models.DateTimeField(auto_now_add=True)
    queued_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=200, blank=True)
    cancel_requested = models.BooleanField(default=False)
    n_done = models.PositiveIntegerField(default=0)
    n_total = models.PositiveIntegerField(null=True, blank=True)
    error = models.TextField(blank=True)

    objects = JobQuerySet.as_manager()

    # The route of its page, which takes a project's slug and a key. Whoever started a job that has
    # one is told how it ended: see labeling/notices.py.
    PAGE: ClassVar[str] = ""

    class Meta:
        abstract = True

    @property
    def of_project(self) -> Any:
        """The project that the job belongs to."""
        return self.project

    @property
    def address(self) -> str:
        """Its page, without the host; empty where there is none."""
        return reverse(self.PAGE, args=[self.of_project.slug, self.pk]) if self.PAGE else ""

    @property
    def tells_of_success(self) -> bool:
        """Whether somebody is told when it has gone well: not of what takes seconds, before which
        a person sits. That it failed or was lost is always told."""
        return True

    @property
    def is_active(self) -> bool:
        return self.status in (self.Status.QUEUED, self.Status.RUNNING)

    @property
    def can_resume(self) -> bool:
        return self.status in RESUMABLE

    def enqueue(self) -> None:
        """Send the message that wakes a worker, once the row is committed."""
        raise NotImplementedError

    def report(self, **values: Any) -> None:
        """Store progress and prove that the worker lives.

        Raises: JobCancelled when somebody asked for it; JobTaken when the row is no longer ours.
        """
        patiently(lambda: self._report(values))

    def _report(self, values: dict[str, Any]) -> None:
        mine = type(self).objects.filter(pk=self.pk, status=self.Status.RUNNING, worker=self.worker)
        if not mine.update(heartbeat_at=timezone.now(), **values):
            raise JobTaken(f"{self._meta.verbose_name} {self.pk} went to another worker")
        for name, value in values.items():
            setattr(self, name, value)
        if mine.filter(cancel_requested=True).exists():
            self.finish(self.Status.CANCELLED)
            raise JobCancelled(f"{self._meta.verbose_name} {self.pk} was cancelled")

    def finish(self, status: str, **values: Any) -> bool:
        """End the job, and tell who started it; False if it was no longer this worker's to end."""
        return patiently(lambda: self._finish(status, values))

    def _finish(self, status: str, values: dict[str, Any]) -> bool:
        from labeling.notices import tell_of_job

        values = values | {"status": status, "finished_at": timezone.now()}
        mine = type(self).objects.filter(pk=self.pk, status=self.Status.RUNNING, worker=self.worker)
        with transaction.atomic():
            if not mine.update(**values):
                return False
            for name, value in values.items():
                setattr(self, name, value)
            tell_of_job(self)
        return True

    def request_cancel(self) -> None:
        """Stop a queued job now, and a running one at its next report."""
        cls = type(self)
        cls.objects.filter(pk=self.pk, status=self.Status.QUEUED).update(
            status=self.Status.CANCELLED, finished_at=timezone.now()
        )
        cls.objects.filter(pk=self.pk, status=self.Status.RUNNING).update(cancel_requested=True)
        self.refresh_from_db()

    def resume(self) -> bool:
        """Queue a stopped job again and wake a worker. False if it is not stopped."""
        queued = self.requeue()
        if queued:
            self.enqueue()
        return queued

    def requeue(self) -> bool:
        """Queue a stopped job again; what it has done is kept. False if it is not stopped."""
        queued = (
            type(self)
            .objects.filter(pk=self.pk, status__in=RESUMABLE)
            .update(
                status=self.Status.QUEUED,
                queued_at=timezone.now(),
                heartbeat_at=None,
                cancel_requested=False,
                finished_at=None,
                error="",
            )
        )
        if queued:
            self.refresh_from_db()
        return bool(queued)


WORKER_GONE = (
    "The worker stopped reporting: killed, out of memory, or switched off. "
    "What it had stored is kept; resume goes on from there."
)
RESUMABLE = (Job.Status.PAUSED, Job.Status.FAILED, Job.Status.CANCELLED, Job.Status.LOST)


def job_models() -> list[type[Job]]:
    """Every kind of job, of every app."""
    return [model for model in apps.get_models() if issubclass(model, Job)]


def active_by_kind() -> list[tuple[type[Job], dict[str, Any]]]:
    """Of every kind of job: {"queued", "running", "oldest"}, how many wait and run, and since when
    the oldest waits (None: none does)."""
    return [
        (
            model,
            model.objects.active().aggregate(
                queued=models.Count("pk", filter=models.Q(status=Job.Status.QUEUED)),
                running=models.Count("pk", filter=models.Q(status=Job.Status.RUNNING)),
                oldest=models.Min("queued_at", filter=models.Q(status=Job.Status.QUEUED)),
            ),
        )
        for model in job_models()
    ]


def mark_lost(jobs: JobQuerySet) -> int:
    """End jobs whose worker is gone, and tell who started them; how many they were."""
    from labeling.notices import tell_of_job

    n = 0
    for job in jobs:
        # Once more: it may have reported, ended, or gone to another worker since it was read.
        still = jobs.filter(pk=job.pk, worker=job.worker)
        with transaction.atomic():
            if not still.update(
                status=Job.Status.LOST, finished_at=timezone.now(), error=WORKER_GONE
            ):
                continue
            job.status, job.error = Job.Status.LOST, WORKER_GONE
            tell_of_job(job)
        n += 1
    return n


def database_came_back_lately() -> bool:
    """Whether PostgreSQL started so lately that workers have not all had the time to report since:
    their silence proves nothing."""
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")
        [seconds] = cursor.fetchone()
    return seconds < 1.5 * settings.PREFLOOP_HEARTBEAT_SECONDS


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is there and not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and belongs to another user
        return True
    try:  # a zombie still answers to signals
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no /proc here
        return True


@contextmanager
def heartbeat(job: Job) -> Iterator[None]:
    """Keep telling that this process lives while one step of `job` takes long.

    Beats from a thread on a database connection of its own; the first beat comes after
    PREFLOOP_HEARTBEAT_SECONDS, so a short job never opens one. It proves that the process lives,
    not that the work moves on, and never raises: cancel and take-over are seen by `job.report`.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_beat, args=(job, stop), name=f"heartbeat of job {job.pk}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # Not for ever: the caller may hold the row's lock in an open transaction. A beat that is
        # still waiting then ends by itself, and the condition on status keeps it harmless.
        thread.join(timeout=settings.PREFLOOP_HEARTBEAT_SECONDS)


def _beat(job: Job, stop: threading.Event) -> None:
    mine = type(job).objects.filter(pk=job.pk, status=Job.Status.RUNNING, worker=job.worker)
    try:
        while not stop.wait(settings.PREFLOOP_HEARTBEAT_SECONDS):
            try:
                if not mine.update(heartbeat_at=timezone.now()):
                    return  # ended or taken: `report` tells the job
            except (
                DatabaseError
            ) as error:  # a busy or restarting database: the next beat tries again
                logger.warning("heartbeat of job %s: %s", job.pk, error)
                connection.close()
    finally:
        connection.close()
