"""A run in a process of its own: what ends the process, or the worker, ends the run in words."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from django.conf import settings
from django.db import connection

from labeling.jobs import process_lives
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.training.projects import labeled_project
from training import causes
from training.models import ModelVersion, Run
from training.runs import cancel_run, create_run
from training.tasks import train
from training.watching import OUTPUT

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = {"max_steps": 2, "batch_size": 4, "lora_rank": 2, "dtype": "float32"}


@pytest.fixture(autouse=True)
def shared_with_children(storage, monkeypatch):
    """The test's database and storage, in the environment that a child inherits."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{connection.settings_dict['NAME']}")
    monkeypatch.setenv("PREFLOOP_STORAGE", str(storage))


def queued(base: str, **changes) -> Run:
    return create_run(
        labeled_project(),
        kind="reward",
        base_model=base,
        recipe_settings=QUICK | changes,
        test_share=0.3,
    )


def child_of(pid: int, run: Run) -> int | None:
    """The process that trains for a worker."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", f"training.child {run.pk} "],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(found.stdout.split()[0]) if found.stdout else None


def wait_for(what, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def in_the_meantime(run: Run, act) -> threading.Thread:
    """Do something to the process of a run as soon as there is one."""

    def wait_and_act() -> None:
        try:
            act(wait_for(lambda: child_of(os.getpid(), run)))
        finally:
            connection.close()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("signum", "cause", "words"),
    [
        (signal.SIGKILL, causes.KILLED, "the machine or its container ran out of memory"),
        (signal.SIGSEGV, causes.CRASH, "crashed in compiled code (SIGSEGV)"),
    ],
)
def test_a_process_that_dies_ends_its_run_and_not_the_worker(tiny_model, signum, cause, words):
    run = queued(tiny_model)
    thread = in_the_meantime(run, lambda pid: os.kill(pid, signum))

    train(run.pk)

    thread.join()
    run.refresh_from_db()
    assert (run.status, run.cause, run.can_resume) == ("failed", cause, True)
    assert words in run.error
    assert run.error in run.events.last().text


def test_a_run_is_trained_by_its_child_and_a_cancelled_one_stops_while_it_loads(tiny_model):
    run = queued(tiny_model)
    train(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert ModelVersion.objects.get(run=run).name == f"reward-{run.pk}"
    step = run.steps.filter(split="train").last()
    assert step.values["grad_norm"] > 0
    assert step.cost["tokens"] > 0
    assert step.cost["memory"] > 10**8
    assert (storage_path(run.folder) / OUTPUT).exists()

    Run.objects.filter(pk=run.pk).update(status=Run.Status.QUEUED)
    asked_at = []

    def cancel(pid: int) -> None:
        # Stopped, it is as deep in a step as can be: it reports nothing and sees nothing.
        os.kill(pid, signal.SIGSTOP)
        asked_at.append(time.monotonic())
        cancel_run(Run.objects.get(pk=run.pk), by=UserFactory())

    thread = in_the_meantime(run, cancel)
    train(run.pk)
    seconds = time.monotonic() - asked_at[0]
    thread.join()
    run.refresh_from_db()
    assert (run.status, run.can_resume) == ("cancelled", True)
    assert seconds < 8
    assert child_of(os.getpid(), run) is None


def test_a_killed_worker_takes_its_child_along_and_the_run_is_seen_as_lost(tiny_model):
    from labeling.jobs import mark_lost

    run = queued(tiny_model)
    program = (
        f"import django; django.setup(); from training.tasks import train; train(int({run.pk}))"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=settings.BASE_DIR,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "config.settings"},
    )
    child = wait_for(lambda: child_of(worker.pid, run))

    worker.kill()
    worker.wait()

    wait_for(lambda: not process_lives(child), seconds=5)
    assert mark_lost(Run.objects.orphaned()) == 1
    run.refresh_from_db()
    assert (run.status, run.can_resume) == ("lost", True)
