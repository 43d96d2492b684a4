"""A run that several processes share, under accelerate's launcher: it ends as one, and goes on upon
two other machines, which share nothing with the first but the database and a shared storage."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection

from labeling.jobs import process_lives
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.postgresql import free_port
from tests.training.projects import labeled_project
from training.models import Run
from training.runs import cancel_run, create_run
from training.tasks import keep_copy, train

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

PORT = free_port()


@pytest.fixture(autouse=True)
def two_processes(settings, monkeypatch):
    """And the test's database, in the environment that they inherit."""
    settings.PREFLOOP_RUN_PROCESSES = 2
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{connection.settings_dict['NAME']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def machine(settings, tmp_path, monkeypatch):
    """Turns this worker, and what it starts, into one of another machine."""
    settings.PREFLOOP_SHARED_STORAGE = f"file://{tmp_path}/shared"
    monkeypatch.setenv("PREFLOOP_SHARED_STORAGE", settings.PREFLOOP_SHARED_STORAGE)

    def turn(name: str) -> Path:
        settings.PREFLOOP_STORAGE = tmp_path / name
        settings.PREFLOOP_STORAGE.mkdir(exist_ok=True)
        monkeypatch.setenv("PREFLOOP_STORAGE", str(settings.PREFLOOP_STORAGE))
        return settings.PREFLOOP_STORAGE

    return turn


def ranks_of(run: Run) -> dict[int, int]:
    """{rank: process} of the processes that share a run."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = place.joinpath("cmdline").read_bytes().split(b"\0")
            named = [b"training.child", b"run", str(run.pk).encode()]
            if words[2:5] != named and words[3:6] != named:
                continue
            given = place.joinpath("environ").read_bytes().split(b"\0")
            env = dict(each.split(b"=", 1) for each in given if each)
            found[int(env[b"RANK"])] = int(place.name)
        except (OSError, KeyError):  # it has ended meanwhile; or it is not one of them
            continue
    return found


def launch_of(rank: int, folder: Path) -> Path:
    """A file as `accelerate config` writes it for one of two machines, with a process each."""
    file = folder / f"machine-{rank}.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: 'no'\n"
        f"num_machines: 2\nnum_processes: 2\nmachine_rank: {rank}\nrdzv_backend: static\n"
        f"main_process_ip: 127.0.0.1\nmain_process_port: {PORT}\nsame_network: true\n"
    )
    return file


def joining(folder: Path, storage: Path) -> subprocess.Popen:
    """What the second machine runs."""
    words = ["accelerate.commands.launch", "--config_file", str(launch_of(1, folder))]
    return subprocess.Popen(
        [sys.executable, "-m", *words, "-m", "training.child", "join"],
        env=os.environ | {"PREFLOOP_STORAGE": str(storage)},
    )


def test_two_processes_share_a_run_that_is_cancelled_as_one_and_resumed_upon_two_machines(
    tiny_model, machine, settings, tmp_path
):
    pages = machine("pages")
    shutil.copytree(tiny_model, pages / "models/tiny")
    call_command("share", "models/tiny")
    run = create_run(
        labeled_project(),
        kind="reward",
        base_model="tiny",
        recipe_settings={
            "max_steps": 60,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "checkpoint_every": 2,
            "eval_every": 60,
            "lora_rank": 2,
            "dtype": "float32",
        },
        test_share=0.3,
    )
    seen: dict[int, int] = {}

    def cancel_in_the_middle() -> None:
        deadline = time.monotonic() + 90
        while newest_checkpoint_of(run) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        seen.update(ranks_of(run))
        os.kill(seen[1], signal.SIGSTOP)  # the first one waits for it in the middle of a step
        cancel_run(Run.objects.get(pk=run.pk), by=UserFactory())
        connection.close()

    one = machine("one")
    thread = threading.Thread(target=cancel_in_the_middle)
    thread.start()
    train(run.pk)
    thread.join()

    run.refresh_from_db()
    assert sorted(seen) == [0, 1]
    assert (run.status, run.can_resume) == ("cancelled", True)
    deadline = time.monotonic() + 5
    while any(map(process_lives, seen.values())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(process_lives, seen.values()))
    assert 0 < run.n_done < 60

    three = machine("three")
    two = machine("two")
    settings.PREFLOOP_ACCELERATE_CONFIG = str(launch_of(0, tmp_path))
    run.recipe |= {"max_steps": run.n_done + 4}
    run.status, run.cancel_requested = Run.Status.QUEUED, False
    run.save()
    joined = joining(tmp_path, three)
    train(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert joined.wait(10) == 0
    texts = list(run.events.values_list("text", flat=True))
    assert texts.count("2 processes share each step.") == 2
    assert any(text.startswith("Goes on from checkpoint-") for text in texts)
    steps = list(run.steps.filter(split="train").values_list("step", flat=True))
    assert steps == list(range(1, run.recipe["max_steps"] + 1))
    assert run.model_version.name == f"reward-{run.pk}"
    assert ranks_of(run) == {}
    made = Path(run.model_version.path) / "adapter_model.safetensors"
    assert [(root / made).exists() for root in (one, two, three)] == [False, True, False]
    assert (three / "models/tiny/config.json").exists()
    machine("pages")
    keep_copy(run.model_version.path)
    assert (pages / made).read_bytes() == (two / made).read_bytes()


def newest_checkpoint_of(run: Run) -> Path | None:
    found = sorted((storage_path(run.folder) / "checkpoints").glob("checkpoint-*/complete"))
    return found[-1] if found else None
