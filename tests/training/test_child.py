"""Jobs in processes of their own: what ends a process, or the worker, ends the job in words."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from django.conf import settings
from django.db import connection

from labeling.jobs import Job, process_lives
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.training.projects import labeled_project
from training import causes, serving, tasks, watching
from training.models import Merge, ModelExport, ModelReport, ModelVersion, Run, SideBySide, Study
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


def child_of(pid: int, job: Job) -> int | None:
    """The process that does a job for a worker."""
    words = "serve" if isinstance(job, SideBySide) else f"{job._meta.model_name} {job.pk} "
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", f"training.child {words}"],
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


def in_the_meantime(job: Job, act) -> threading.Thread:
    """Do something to the process of a job as soon as there is one."""

    def wait_and_act() -> None:
        try:
            act(wait_for(lambda: child_of(os.getpid(), job)))
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


def test_of_processes_that_share_a_run_the_one_that_went_first_says_why():
    said = """Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 3207)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 3208)  (SIGKILL)
  traceback : Signal 9 (SIGKILL) received by PID 3208"""
    assert watching.ended_by(1, said) == -signal.SIGKILL
    assert watching.ended_by(1, "an exitcode : of our own") == 1
    assert watching.ended_by(-signal.SIGTERM, said) == -signal.SIGTERM


def test_a_run_is_trained_by_its_child_and_a_cancelled_one_stops_while_it_loads(tiny_model):
    run = queued(tiny_model)
    train(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert ModelVersion.objects.get(run=run).name == f"reward-{run.pk}"
    assert run.measured_peak > 10**6
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


@pytest.fixture
def models(tiny_model):
    """A project with a model that writes."""
    project = labeled_project(2)
    project.models.create(name="one", kind="base", path=tiny_model)
    return project


def job_of(project, kind: type[Job]) -> Job:
    """A queued job that will be ended before it has looked at its model."""
    model = project.models.get()
    if kind is Merge:
        return kind.objects.create(project=project, name="two", method="fold")
    if kind is Study:
        run = Run.objects.create(project=project, kind="reward", base_model="one")
        return kind.objects.create(project=project, run=run, kind="curve")
    return kind.objects.create(project=project, model=model)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (Merge, tasks.merge_models),
        (ModelExport, tasks.export_model),
        (ModelReport, tasks.report_on_model),
        (Study, tasks.carry_out_study),
    ],
)
def test_other_work_that_is_killed_or_stopped_ends_alone_and_leaves_nothing(
    models, storage, kind, task, monkeypatch
):
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(watching, "CANCEL_SECONDS", 0.1)
    job = job_of(models, kind)
    for folder in ("merges", "exports"):
        (storage / folder / str(job.pk) / "model.part").mkdir(parents=True)
    kept = storage / "merges" / "77"
    kept.mkdir()
    thread = in_the_meantime(job, lambda pid: os.kill(pid, signal.SIGKILL))
    task(job.pk)
    thread.join()
    job.refresh_from_db()
    assert job.status == "failed"
    assert "The process that did this was killed (SIGKILL)" in job.error
    own = {Merge: "merges", ModelExport: "exports"}.get(kind)
    for folder in ("merges", "exports"):
        assert (storage / folder / str(job.pk)).exists() == (folder != own)
    assert kept.exists()

    assert job.requeue()

    def cancel(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)  # it reports nothing and sees nothing
        job.request_cancel()

    thread = in_the_meantime(job, cancel)
    task(job.pk)
    thread.join()
    job.refresh_from_db()
    assert (job.status, job.error) == ("cancelled", "")
    assert child_of(os.getpid(), job) is None


def asked(project) -> SideBySide:
    return SideBySide.objects.create(
        project=project,
        prompt=[{"role": "user", "content": "Tell me about the river."}],
        model_a="one",
        model_b="one",
        sampling={"temperature": 1.0, "seed": 3, "max_new_tokens": 4},
    )


def answered(pair: SideBySide) -> SideBySide:
    tasks.answer_side_by_side(pair.pk)
    pair.refresh_from_db()
    return pair


@pytest.fixture
def no_process_stays():
    yield
    serving.end()


@pytest.mark.usefixtures("no_process_stays")
def test_the_playground_keeps_one_process_and_starts_another_when_it_dies(models, monkeypatch):
    monkeypatch.setattr(watching, "CANCEL_SECONDS", 0.1)
    pairs = [asked(models) for _n in range(4)]
    for pair in pairs[:2]:
        began = time.monotonic()
        found = answered(pair)
        assert (found.status, found.error) == ("succeeded", "")
        assert found.text_a == found.text_b != ""
    assert time.monotonic() - began < 2  # the second time it imports nothing and loads nothing
    process = child_of(os.getpid(), pairs[0])
    os.kill(process, signal.SIGKILL)  # while nobody asks
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # with all its threads

    thread = in_the_meantime(pairs[2], lambda pid: os.kill(pid, signal.SIGABRT))
    found = answered(pairs[2])
    thread.join()
    assert found.status == "failed"
    assert "crashed in compiled code (SIGABRT)" in found.error

    thread = in_the_meantime(pairs[3], lambda _pid: pairs[3].request_cancel())
    found = answered(pairs[3])
    thread.join()
    assert (found.status, found.error) == ("cancelled", "")
    assert child_of(os.getpid(), pairs[3]) is None


@pytest.mark.usefixtures("no_process_stays")
def test_the_playgrounds_process_ends_when_nobody_asks_or_its_worker_does_other_work(
    models, monkeypatch
):
    for idle_seconds, does_other_work in ((0.05, False), (60.0, True)):
        monkeypatch.setattr(serving, "IDLE_SECONDS", idle_seconds)
        pair = asked(models)
        seen = []

        def stop(pid: int, pair: SideBySide = pair, seen: list = seen) -> None:
            seen.append(pid)
            SideBySide.objects.filter(pk=pair.pk).update(status=Job.Status.CANCELLED)

        thread = in_the_meantime(pair, stop)
        answered(pair)
        thread.join()
        if does_other_work:
            assert process_lives(seen[0])
            tasks.make_room(task=tasks.answer_side_by_side)
            assert process_lives(seen[0])
            tasks.make_room(task=tasks.train)
        wait_for(lambda pid=seen[0]: not process_lives(pid), seconds=5)
