"""Runs wait in the queue of the smallest GPUs that hold them; their page says who could come."""

import json
import struct
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from config.celery import app
from labeling.models import Project, Worker
from labeling.workers import class_queues, queues_within
from tests.factories import UserFactory
from tests.training.projects import labeled_project
from tests.training.test_fits import CONFIG
from training.models import Run
from training.routing import queue_for
from training.runs import start_run

pytestmark = pytest.mark.django_db


@pytest.fixture
def classes(settings):
    settings.PREFLOOP_GPU_CLASSES = [24, 48, 80]
    return settings


def waiting_in(queue: str) -> list[int]:
    """Runs whose messages lie in a queue of the broker."""
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(queue)
        found = []
        while simple.qsize():
            found.append(simple.get_nowait().decode()[0][0])
        simple.close()
        return found


@pytest.fixture
def large(storage) -> str:
    """A base of eight billion numbers that is nothing but its config."""
    folder = storage / "models" / "large"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return "large"


def started(base: str, **changes) -> Run:
    project = Project.objects.filter(slug="polite").first() or labeled_project()
    settings = {"batch_size": 1, "max_length": 256, "gradient_checkpointing": True} | changes
    return start_run(project, kind="reward", base_model=base, recipe_settings=settings)


def test_without_classes_there_is_one_queue(tiny_model, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        run = started(tiny_model)

    assert (run.queue, class_queues(), queues_within(80e9)) == ("gpu", [], [])
    assert run.pk in waiting_in("gpu")


def test_a_run_waits_in_the_queue_of_the_smallest_gpu_that_holds_it(
    classes, large, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        small = started(large)
        middle = started(large, max_length=8192, batch_size=4)
        most = started(large, method="full")

    for run, queue in ((small, "train-24"), (middle, "train-80"), (most, "train-more")):
        run.refresh_from_db()
        assert (run.queue, waiting_in(queue)) == (queue, [run.pk])
    assert waiting_in("train-48") == []


def test_what_earlier_runs_took_beyond_what_was_foretold_counts(classes, large):
    run = started(large)
    assert queue_for(run) == "train-24"

    for measured in (24, 25, 26):  # of 10 that were foretold
        Run.objects.create(
            project=run.project,
            kind="reward",
            recipe={"method": "lora"},
            device="cuda",
            predicted_peak=10 * 10**9,
            measured_peak=measured * 10**9,
        )

    assert queue_for(run) == "train-48"


def test_what_cannot_be_foretold_waits_for_the_largest(classes, large, storage):
    run = started(large)
    (storage / "models" / "large" / "config.json").write_text('{"model_type": "unheard-of"}')

    assert queue_for(run) == "train-more"


def test_a_queued_run_is_sent_anew_to_where_the_classes_of_now_say(
    classes, large, django_capture_on_commit_callbacks
):
    run = started(large)
    classes.PREFLOOP_GPU_CLASSES = [48]

    with django_capture_on_commit_callbacks(execute=True):
        run.enqueue()

    run.refresh_from_db()
    assert (run.queue, waiting_in("train-48")) == ("train-48", [run.pk])


def test_the_page_says_what_a_run_waits_for_and_whether_anybody_could_take_it(
    classes, large, client
):
    run = started(large)
    client.force_login(UserFactory(is_superuser=True))
    page = reverse("training:run", args=[run.project.slug, run.pk])

    text = client.get(page).content.decode()
    assert "It needs a GPU of 24 GB: queue train-24." in text
    assert "No worker that is there serves the queue train-24" in text

    worker = Worker.objects.create(
        name="one:1",
        queues=["gpu", "train-24"],
        disk_free=1,
        disk_total=1,
        started_at=timezone.now(),
        heartbeat_at=timezone.now(),
    )
    text = client.get(page).content.decode()
    assert "It needs a GPU of 24 GB: queue train-24." in text
    assert "No worker" not in text

    worker.heartbeat_at -= timedelta(minutes=5)  # it has fallen silent
    worker.save()
    assert "No worker that is there serves" in client.get(page).content.decode()


def test_what_waits_is_counted_by_queue(classes, large, client, settings):
    settings.PREFLOOP_METRICS_TOKEN = "of-a-collector"
    started(large)

    figures = client.get("/metrics", headers={"Authorization": "Bearer of-a-collector"})

    lines = figures.content.decode().splitlines()
    assert 'prefloop_queue_runs{queue="train-24"} 1.0' in lines
    assert 'prefloop_queue_runs{queue="train-80"} 0.0' in lines
    assert 'prefloop_workers{queue="train-24"} 0.0' in lines


@pytest.mark.parametrize(
    ("memory", "queues"),
    [
        (0, []),
        (23034 * 2**20, ["train-24"]),  # an L4, sold as 24 GB
        (49140 * 2**20, ["train-24", "train-48"]),
        (81559 * 2**20, ["train-24", "train-48", "train-80"]),
        (143771 * 2**20, ["train-24", "train-48", "train-80", "train-more"]),
    ],
)
def test_a_worker_serves_the_classes_that_its_gpu_holds(classes, capsys, memory, queues):
    call_command("queues", gpu_memory=str(memory))

    assert capsys.readouterr().out.strip().split(",") == ["gpu", *queues]


def test_an_amount_of_memory_that_is_none_is_refused(classes):
    with pytest.raises(CommandError, match="is no amount of memory"):
        call_command("queues", gpu_memory="much")
