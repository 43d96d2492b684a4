"""What jobs bring from other machines, and leave for them."""

import shutil

import fsspec
import pytest
from django.core.management import call_command

from labeling import shared
from tests.factories import UserFactory
from tests.training.projects import labeled_project
from training import rounds
from training.fleet import bring
from training.ml import generation
from training.models import Arena, Merge, MergePart, ModelReport, Round, Run
from training.registry import delete_run
from training.rounds import RoundSettings, create_round
from training.runs import create_run, resume_run
from training.tasks import carry_out, carry_out_job

pytestmark = pytest.mark.django_db


@pytest.fixture
def machine(settings, tmp_path):
    """Turns this process into a worker of another machine; they share a filesystem in memory."""
    settings.PREFLOOP_SHARED_STORAGE = "memory://fleet"

    def turn(name: str):
        settings.PREFLOOP_STORAGE = tmp_path / name
        settings.PREFLOOP_STORAGE.mkdir(exist_ok=True)
        return settings.PREFLOOP_STORAGE

    yield turn
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def project(machine):
    """A project whose base, policy, reward model and dataset lie upon another machine."""
    here = machine("one")
    for name in ("models/base", "runs/5/model", "runs/6/model", "models/unnamed", "texts"):
        (here / name).mkdir(parents=True)
        (here / name / "config.json").write_text(name)
    (here / "texts/one.txt").write_text("once")
    for name in ("models/base", "runs/5/model", "runs/6/model", "models/unnamed", "texts/one.txt"):
        shared.put(name)
    project = labeled_project()
    base = project.models.create(name="base", kind="base", path=str(here / "models/base"))
    base.path = "models/base"
    base.save()
    project.models.create(name="policy", kind="policy", path="runs/5/model", base=base)
    project.models.create(name="reward", kind="reward", path="runs/6/model", base=base)
    return project


def brought(root) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_run_brings_its_base_with_what_it_stands_on_and_its_reward_models(project, machine):
    run = project.runs.create(kind="ppo", base_model="policy", folder="runs/7")
    run.reward_models.create(model=project.models.get(name="reward"), place=1)
    there = machine("two")

    bring(run)

    assert brought(there) == {
        "models/base/config.json",
        "runs/5/model/config.json",
        "runs/6/model/config.json",
    }


def test_a_run_on_texts_brings_its_file_and_a_base_without_a_row(project, machine):
    run = project.runs.create(
        kind="pretrain", base_model="unnamed", recipe={"text": "one.txt"}, folder="runs/7"
    )
    there = machine("two")

    bring(run)

    assert brought(there) == {"models/unnamed/config.json", "texts/one.txt"}


def test_merges_and_reports_bring_their_models(project, machine):
    merge = Merge.objects.create(project=project, name="both", method="linear")
    MergePart.objects.create(merge=merge, model=project.models.get(name="policy"), place=1)
    there = machine("two")
    bring(merge)
    assert brought(there) == {"models/base/config.json", "runs/5/model/config.json"}

    there = machine("three")
    bring(ModelReport.objects.create(project=project, model=project.models.get(name="reward")))
    assert brought(there) == {"models/base/config.json", "runs/6/model/config.json"}


def test_rounds_and_arenas_bring_who_answers_and_who_reads(project, machine):
    there = machine("two")
    names = {"models": ["policy", "unnamed", "owner/of-the-hub"], "scorer": "reward"}
    bring(Round.objects.create(project=project, number=1, options=names))
    assert brought(there) == {
        "models/base/config.json",
        "models/unnamed/config.json",
        "runs/5/model/config.json",
        "runs/6/model/config.json",
    }

    there = machine("three")
    bring(Arena.objects.create(project=project, options={"models": ["base", "unnamed"]}))
    assert brought(there) == {"models/base/config.json", "models/unnamed/config.json"}


def test_a_round_that_was_cancelled_goes_on_upon_another_machine_with_what_was_answered(
    tiny_model, machine, monkeypatch
):
    one = machine("one")
    shutil.copytree(tiny_model, one / "models/tiny")
    call_command("share", "models/tiny")
    project = labeled_project(12)
    settings = RoundSettings(
        models=("tiny",),
        scorer="",
        way="random",
        n_labels=4,
        n_prompts=6,
        responses=2,
        max_new_tokens=4,
        temperature=1.0,
    )
    monkeypatch.setattr(rounds, "PROMPTS_AT_ONCE", 2)
    made = create_round(project, settings)
    sample = generation.sample

    def sample_and_cancel(*args, **options):
        Round.objects.filter(pk=made.pk).update(cancel_requested=True)
        return sample(*args, **options)

    two = machine("two")
    with monkeypatch.context() as patched:
        patched.setattr(generation, "sample", sample_and_cancel)
        carry_out_job(Round, made.pk)
    made.refresh_from_db()
    assert made.status == "cancelled"
    (answered,) = (two / f"rounds/{made.pk}").iterdir()
    first = answered.read_text().splitlines()
    assert len(first) == 2

    three = machine("three")
    assert made.requeue()
    carry_out_job(Round, made.pk)

    made.refresh_from_db()
    assert (made.status, made.error, made.result["chosen"]) == ("succeeded", "", 4)
    (answered,) = (three / f"rounds/{made.pk}").iterdir()
    lines = answered.read_text().splitlines()
    assert (lines[:2], len(lines)) == (first, 6)


def test_a_shared_storage_that_is_away_ends_no_run_before_its_end(
    tiny_model, settings, tmp_path, django_capture_on_commit_callbacks
):
    place = tmp_path / "shared"
    settings.PREFLOOP_SHARED_STORAGE = f"file://{place}/files"
    project = labeled_project()
    run = create_run(
        project,
        kind="reward",
        base_model=tiny_model,
        recipe_settings={"max_steps": 2, "lora_rank": 2, "dtype": "float32"},
        test_share=0.3,
    )

    def take_it_away(report) -> None:
        if place.is_dir():
            place.rename(tmp_path / "away")
            place.write_text("a file, where a folder should be")

    carry_out(run.pk, take_it_away)

    run.refresh_from_db()
    texts = list(run.events.values_list("text", flat=True))
    assert any("is on this machine alone for now" in text for text in texts)
    assert (run.status, run.n_done, run.can_resume) == ("failed", 2, True)

    place.unlink()
    (tmp_path / "away").rename(place)
    user = UserFactory(is_superuser=True)
    resume_run(run, user)
    carry_out(run.pk)
    run.refresh_from_db()
    assert run.status == "succeeded"
    assert (place / "files" / run.folder / "model/files.json").exists()

    ModelReport.objects.update(status="cancelled")  # it would read what goes
    with django_capture_on_commit_callbacks(execute=True):
        delete_run(Run.objects.get(pk=run.pk), user, agreed={run.model_version.pk})
    assert (place / "files" / run.dataset.path).exists()
    assert not (place / "files" / run.folder).exists()
