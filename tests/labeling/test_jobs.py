"""Jobs as rows: claimed once, cancelled, lost, resumed, kept alive by a heartbeat."""

import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from labeling.jobs import JobCancelled, JobTaken, heartbeat
from labeling.models import ImportJob, Project
from labeling.tasks import sweep_jobs

Status = ImportJob.Status
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def sent(monkeypatch):
    """Jobs sent to the queue, in order; no broker is started here."""
    sent = []
    monkeypatch.setattr(ImportJob, "enqueue", lambda job: sent.append(job.pk))
    return sent


def make_job(**columns) -> ImportJob:
    project, _ = Project.objects.get_or_create(slug="kitchen", defaults={"name": "Kitchen"})
    return ImportJob.objects.create(
        project=project, filename="pairs.jsonl", path="uploads/pairs.jsonl", **columns
    )


def claimed() -> ImportJob:
    return ImportJob.objects.claim(make_job().pk)


def test_a_claimed_job_is_running_and_names_its_worker():
    job = claimed()

    stored = ImportJob.objects.get()
    assert stored.status == Status.RUNNING
    assert stored.worker == job.worker != ""
    assert stored.started_at == stored.heartbeat_at == job.started_at


def test_only_a_queued_job_can_be_claimed():
    for status in Status:
        job = make_job(status=status)
        assert (ImportJob.objects.claim(job.pk) is not None) == (status == Status.QUEUED)
    assert ImportJob.objects.claim(0) is None


@pytest.mark.django_db(transaction=True)
def test_of_eight_workers_that_claim_at_once_exactly_one_gets_the_job():
    pks = [make_job().pk for _ in range(5)]
    winners, start = [], threading.Barrier(8)

    def work():
        start.wait()
        for pk in pks:
            job = ImportJob.objects.claim(pk)
            if job:
                winners.append((pk, job.worker))
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        for worker in [pool.submit(work) for _ in range(8)]:
            worker.result()

    assert sorted(pk for pk, _ in winners) == pks
    assert dict(winners) == dict(ImportJob.objects.values_list("pk", "worker"))


def test_a_report_stores_progress_and_proves_that_the_worker_lives():
    job = claimed()
    ImportJob.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=20))

    job.report(n_done=3, n_total=10)

    stored = ImportJob.objects.get()
    assert (stored.n_done, stored.n_total, job.n_done) == (3, 10, 3)
    assert timezone.now() - stored.heartbeat_at < timedelta(seconds=5)


def test_a_running_job_stops_at_its_next_report_after_a_cancel():
    job = claimed()
    ImportJob.objects.get().request_cancel()
    assert ImportJob.objects.get().status == Status.RUNNING

    with pytest.raises(JobCancelled):
        job.report(n_done=1)

    stored = ImportJob.objects.get()
    assert (stored.status, stored.n_done) == (Status.CANCELLED, 1)
    assert stored.finished_at is not None


def test_a_cancelled_queued_job_never_starts():
    job = make_job()
    job.request_cancel()

    assert job.status == Status.CANCELLED
    assert ImportJob.objects.claim(job.pk) is None


def test_a_silent_job_is_lost_and_a_reporting_one_is_not():
    lost, alive = claimed(), claimed()
    ImportJob.objects.filter(pk=lost.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=31))
    ImportJob.objects.filter(pk=alive.pk).update(
        heartbeat_at=timezone.now() - timedelta(seconds=29)
    )

    sweep_jobs()

    lost.refresh_from_db()
    alive.refresh_from_db()
    assert (lost.status, alive.status) == (Status.LOST, Status.RUNNING)
    assert "stopped reporting" in lost.error
    assert lost.can_resume
    assert not alive.can_resume


def test_a_worker_that_was_given_up_writes_nothing_more():
    job = claimed()
    ImportJob.objects.update(status=Status.LOST)
    assert ImportJob.objects.get().resume()
    second = ImportJob.objects.claim(job.pk)
    second.report(n_done=7)

    with pytest.raises(JobTaken):
        job.report(n_done=1)
    assert not job.finish(Status.SUCCEEDED, n_done=1)

    stored = ImportJob.objects.get()
    assert (stored.status, stored.worker, stored.n_done) == (Status.RUNNING, second.worker, 7)


def test_resume_keeps_what_was_done_and_queues_the_job_once(sent):
    job = claimed()
    job.report(n_done=4)
    assert job.finish(Status.FAILED, error="disk full")

    assert job.resume()
    assert not job.resume()

    assert sent == [job.pk]
    assert (job.status, job.n_done, job.error) == (Status.QUEUED, 4, "")
    assert job.finished_at is None


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED])
def test_a_job_that_has_not_stopped_cannot_be_resumed(status, sent):
    assert not make_job(status=status).resume()
    assert sent == []


def test_the_sweep_sends_a_forgotten_job_again_and_leaves_a_fresh_one(sent):
    forgotten = make_job(queued_at=timezone.now() - timedelta(seconds=31))
    make_job()

    sweep_jobs()

    assert sent == [forgotten.pk]


def test_a_job_behind_a_long_one_is_sent_again_every_five_minutes_only(sent):
    job = make_job(queued_at=timezone.now() - timedelta(hours=1))

    sweep_jobs()
    sweep_jobs()
    assert sent == [job.pk]

    ImportJob.objects.update(heartbeat_at=timezone.now() - timedelta(minutes=5, seconds=1))
    sweep_jobs()
    assert sent == [job.pk, job.pk]


def test_only_running_jobs_of_this_machine_whose_process_is_gone_are_orphaned():
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = socket.gethostname()
    orphan = make_job(status=Status.RUNNING, worker=f"{here}:{ended.pid}:120000")
    make_job(status=Status.RUNNING, worker=f"{here}:{os.getpid()}:120000")
    make_job(status=Status.RUNNING, worker=f"not-{here}:{ended.pid}:120000")
    make_job(status=Status.SUCCEEDED, worker=f"{here}:{ended.pid}:120000")

    assert list(ImportJob.objects.orphaned()) == [orphan]


def test_a_process_that_is_dead_but_not_yet_buried_counts_as_gone():
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    make_job(status=Status.RUNNING, worker=f"{socket.gethostname()}:{zombie.pid}:120000")

    assert ImportJob.objects.orphaned().count() == (1 if os.path.exists("/proc/self") else 0)
    zombie.wait()


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_keeps_a_long_step_alive(settings):
    settings.PREFLOOP_HEARTBEAT_SECONDS = 0.05
    job = claimed()
    long_ago = timezone.now() - timedelta(minutes=5)
    ImportJob.objects.update(heartbeat_at=long_ago)

    with heartbeat(job):
        deadline = time.monotonic() + 10
        while ImportJob.objects.get().heartbeat_at == long_ago and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ImportJob.objects.silent().count() == 0

    beat = ImportJob.objects.get().heartbeat_at
    assert beat > long_ago
    time.sleep(0.2)
    assert ImportJob.objects.get().heartbeat_at == beat


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_does_not_speak_for_a_job_that_was_given_up(settings):
    settings.PREFLOOP_HEARTBEAT_SECONDS = 0.05
    job = claimed()
    ImportJob.objects.update(status=Status.LOST)
    before = ImportJob.objects.get().heartbeat_at

    with heartbeat(job):
        time.sleep(0.3)

    assert ImportJob.objects.get().heartbeat_at == before


def test_a_heartbeat_lets_the_error_of_the_step_through():
    with pytest.raises(ZeroDivisionError), heartbeat(claimed()):
        raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name.startswith("heartbeat")]
