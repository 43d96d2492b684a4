"""Runs from launch to model: real recipes on a tiny model, real rows."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.utils import timezone

from labeling.jobs import JobCancelled, JobTaken
from labeling.models import Change
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.training.projects import comparison, labeled_project
from training import causes
from training.ml.steps import StepReport
from training.ml.weights import linear_layers
from training.models import ModelVersion, Run
from training.runs import cancel_run, create_run, recipe_of, resume_run, start_run
from training.tasks import Recorder, carry_out

pytestmark = pytest.mark.django_db

QUICK = {"max_steps": 4, "batch_size": 4, "lora_rank": 2, "dtype": "float32"}


def run_of(project, base: str, **changes) -> Run:
    settings = {"kind": "reward", "base_model": base, "recipe_settings": QUICK, "test_share": 0.3}
    return create_run(project, **settings | changes)


def lea():
    return get_user_model().objects.filter(username="lea").first() or UserFactory(username="lea")


def test_a_run_ends_with_curves_metrics_checkpoints_and_a_model_that_knows_its_lineage(tiny_model):
    project = labeled_project()
    run = run_of(project, tiny_model)

    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error, run.n_done, run.n_total) == ("succeeded", "", 4, 4)
    assert list(run.steps.filter(split="train").values_list("step", flat=True)) == [1, 2, 3, 4]
    assert list(run.steps.filter(split="test").values_list("step", flat=True)) == [0, 1, 2, 3, 4]
    assert run.metrics["accuracy"]["n"] == run.dataset.counts["test"]
    assert [storage_path(c.path).exists() for c in run.checkpoints.all()] == [True, True]
    assert len(run.base_revision) == 64
    model = run.model_version
    assert (model.kind, model.base.kind, model.base.path) == ("reward", "base", tiny_model)
    assert (storage_path(model.path) / "adapter_model.safetensors").exists()
    assert run.code_version
    assert run.dataset.raters[0]["rater"] == "ann"


def test_a_policy_of_one_run_is_the_named_base_of_the_next(tiny_model):
    project = labeled_project()
    first = run_of(project, tiny_model, kind="dpo")
    carry_out(first.pk)

    second = run_of(project, f"dpo-{first.pk}", kind="dpo")
    carry_out(second.pk)

    second.refresh_from_db()
    assert (second.status, second.error) == ("succeeded", "")
    assert second.model_version.base == first.model_version
    with pytest.raises(ValueError, match="a reward model starts from a base model, not an adapter"):
        run_of(project, f"dpo-{first.pk}", kind="reward")


def test_two_launches_with_the_same_seed_give_the_same_metrics_on_the_same_dataset(tiny_model):
    project = labeled_project()
    runs = [run_of(project, tiny_model) for _ in range(2)]
    for run in runs:
        carry_out(run.pk)
        run.refresh_from_db()

    first, second = runs
    assert first.dataset == second.dataset
    del first.metrics["seconds"], second.metrics["seconds"]
    assert first.metrics == second.metrics
    assert list(first.steps.values_list("step", "split", "values")) == list(
        second.steps.values_list("step", "split", "values")
    )


def test_a_running_run_that_is_cancelled_stops_and_resumes_from_its_checkpoint(
    tiny_model, django_capture_on_commit_callbacks
):
    project = labeled_project()
    run = run_of(project, tiny_model, recipe_settings=QUICK | {"checkpoint_every": 1})

    def cancel_after_two(report):
        if report.step == 2 and report.checkpoint:
            cancel_run(Run.objects.get(pk=run.pk), by=lea())

    carry_out(run.pk, show=cancel_after_two)
    run.refresh_from_db()
    assert (run.status, run.metrics) == ("cancelled", {})
    assert not ModelVersion.objects.filter(run=run).exists()

    assert resume_run(run, by=lea())
    carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.n_done) == ("succeeded", 4)
    said = list(run.events.values_list("text", flat=True))
    assert any(text.startswith("Goes on from checkpoint-2") for text in said)
    whole = run_of(project, tiny_model, recipe_settings=QUICK | {"checkpoint_every": 1})
    carry_out(whole.pk)
    whole.refresh_from_db()
    assert run.metrics["log_loss"] == whole.metrics["log_loss"]


def test_a_queued_run_that_is_cancelled_is_never_taken(tiny_model):
    run = run_of(labeled_project(), tiny_model)
    cancel_run(run, by=lea())

    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.steps.count()) == ("cancelled", 0)


def test_a_run_whose_worker_fell_silent_is_lost_and_can_be_resumed(tiny_model):
    from labeling.tasks import sweep_jobs

    run = run_of(labeled_project(), tiny_model)
    Run.objects.claim(run.pk)
    Run.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now() - timedelta(minutes=2))

    sweep_jobs()

    run.refresh_from_db()
    assert run.status == "lost"
    assert resume_run(run, by=lea())
    carry_out(run.pk)
    run.refresh_from_db()
    assert run.status == "succeeded"


def test_a_base_that_changed_under_a_run_is_refused_at_resuming(tiny_model):
    run = run_of(labeled_project(), tiny_model)
    Run.objects.filter(pk=run.pk).update(base_revision="0" * 64)

    carry_out(run.pk)

    run.refresh_from_db()
    assert run.status == "failed"
    assert "is no longer what this run began with" in run.error


def test_a_failure_says_its_cause_in_plain_words_and_keeps_the_traceback_in_the_log(tiny_model):
    run = run_of(labeled_project(), tiny_model, recipe_settings=QUICK | {"max_length": 5})

    carry_out(run.pk)

    run.refresh_from_db()
    n_train = run.dataset.counts["train"]
    assert run.status == "failed"
    assert run.error == f"No training pair of {n_train} fits max_length=5"
    assert "Traceback" in run.events.last().text or "raise ValueError" in run.events.last().text


def taken_over(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(worker="elsewhere:1:0")


def test_a_base_that_has_the_name_of_its_runs_model_is_not_in_the_way(tiny_model, tmp_path):
    project = labeled_project()
    run = run_of(project, tiny_model)
    folder = tmp_path / f"reward-{run.pk}"
    folder.symlink_to(tiny_model)
    Run.objects.filter(pk=run.pk).update(base_model=str(folder))

    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    model = run.model_version
    assert (model.name, model.base.name) == (f"reward-{run.pk}-2", f"reward-{run.pk}")


def test_a_model_that_cannot_be_kept_fails_the_run_in_words_and_resuming_keeps_it(
    tiny_model, monkeypatch, django_capture_on_commit_callbacks
):
    run = run_of(labeled_project(), tiny_model)

    def refuse(run):
        raise ValueError("the disk holds no more models")

    with monkeypatch.context() as patched:
        patched.setattr("training.tasks.keep_model", refuse)
        carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == ("failed", "The disk holds no more models")

    assert resume_run(run, by=lea())
    carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.model_version.name) == ("succeeded", f"reward-{run.pk}")


def test_a_worker_that_lost_its_run_at_the_end_keeps_no_model(tiny_model, monkeypatch):
    run = run_of(labeled_project(), tiny_model)
    monkeypatch.setattr("training.tasks._call_recipe", lambda run, record, alone: {})
    monkeypatch.setattr("training.tasks.Recorder.flush", lambda self: taken_over(run))

    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.worker, run.metrics) == ("running", "elsewhere:1:0", {})
    assert not ModelVersion.objects.filter(run=run).exists()


def test_a_worker_that_lost_its_run_writes_nothing_more(tiny_model):
    run = run_of(labeled_project(), tiny_model)
    mine = Run.objects.claim(run.pk)
    record = Recorder(mine, None)
    values = {"loss": 0.5, "accuracy": 1.0, "margin": 1.0}
    taken_over(run)
    n_events = run.events.count()

    with pytest.raises(JobTaken):
        record(
            StepReport(
                step=3, n_steps=4, split="test", values=values, checkpoint=storage_path("x/3")
            )
        )

    assert (run.steps.count(), run.checkpoints.count()) == (0, 0)
    assert run.events.count() == n_events


def test_what_was_done_before_a_cancel_is_kept(tiny_model):
    run = run_of(labeled_project(), tiny_model)
    record = Recorder(Run.objects.claim(run.pk), None)
    cancel_run(run, by=lea())
    checkpoint = storage_path("runs/3")
    checkpoint.mkdir(parents=True)

    with pytest.raises(JobCancelled):
        record(
            StepReport(
                step=3,
                n_steps=4,
                values={"loss": 0.5, "accuracy": 1.0, "margin": 1.0},
                checkpoint=checkpoint,
            )
        )

    run.refresh_from_db()
    assert (run.status, run.n_done) == ("cancelled", 3)
    assert [step.step for step in run.steps.all()] == [3]
    assert [point.step for point in run.checkpoints.all()] == [3]


def test_a_cause_is_said_in_plain_words():
    def of(error: Exception) -> tuple[str, str]:
        return causes.of_error(error)

    on_a_gpu = of(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert on_a_gpu[0] == causes.MEMORY
    assert on_a_gpu[1].startswith("The model and its batch did not fit into memory. Lower")
    on_a_cpu = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
    assert of(RuntimeError(on_a_cpu))[0] == causes.MEMORY
    assert of(ValueError("some-org/model is gone")) == (causes.SETTINGS, "some-org/model is gone")
    assert of(ValueError("no pair fits")) == (causes.SETTINGS, "No pair fits")
    assert "Install the extra [train]" in of(ModuleNotFoundError("x", name="torch"))[1]
    killed = causes.of_exit(-9, 3 * 2**30, ran_out=True)
    assert killed == (
        causes.MEMORY,
        "The machine ran out of memory, and the system ended the process that did this. It held "
        "3.0 GiB at most.",
    )
    assert causes.of_exit(1, None, ran_out=False)[0] == causes.UNKNOWN


def test_a_failed_run_is_advised_by_its_cause_and_its_settings(tiny_model):
    run = run_of(labeled_project(), tiny_model, recipe_settings={"max_length": 200})
    recipe = recipe_of(run)

    def changes(cause: str, error: str = "", **settings) -> list[dict]:
        run.cause, run.error = cause, error
        return [found.changes for found in causes.remedies(run, replace(recipe, **settings))]

    assert changes(causes.MEMORY) == [
        {"batch_size": 4, "gradient_accumulation": 2},
        {"gradient_checkpointing": True},
        {"method": "qlora"},
        {"max_length": 128},
    ]
    assert changes(causes.MEMORY, batch_size=5)[0] == {"batch_size": 1, "gradient_accumulation": 5}
    # A budget of tokens is filled whatever batch_size says.
    assert changes(causes.MEMORY, batch_tokens=4096)[0] == {"batch_tokens": 2048}
    small = {"batch_size": 1, "gradient_checkpointing": True, "method": "qlora", "max_length": 128}
    assert changes(causes.KILLED, **small) == []
    assert changes(causes.DIVERGED, dtype="float32") == [{"learning_rate": 2e-5}]
    assert changes(causes.LENGTH, "No training pair of 9 fits max_length=200") == [
        {"max_length": 1024}
    ]
    assert changes(causes.LENGTH, "No training pair of 9 fits max_length=64") == []
    assert changes(causes.CRASH, method="qlora", dtype="float32") == [{}, {"method": "lora"}]
    assert changes(causes.SETTINGS) == []


def test_a_launch_wakes_a_worker_only_after_the_row_is_committed(
    tiny_model, django_capture_on_commit_callbacks, monkeypatch
):
    sent = []
    monkeypatch.setattr("training.tasks.train.delay", sent.append)
    with django_capture_on_commit_callbacks() as callbacks:
        run = start_run(
            labeled_project(), kind="reward", base_model=tiny_model, recipe_settings=QUICK
        )

    assert sent == []

    for callback in callbacks:
        callback()
    assert sent == [run.pk]


def test_a_launch_leaves_the_freezing_to_the_worker_and_is_written_into_the_history(
    tiny_model, monkeypatch
):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    project, user = labeled_project(), lea()

    run = start_run(
        project,
        kind="reward",
        base_model=tiny_model,
        recipe_settings=QUICK,
        labels="human",
        test_share=0.3,
        created_by=user,
    )

    assert (run.dataset, project.datasets.count()) == (None, 0)
    change = Change.objects.get()
    assert (change.action, change.actor, change.after["max_steps"]) == ("start run", user, 4)
    carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert (run.dataset.counts["pairs"], run.dataset.filters["labels"]) == (24, "human")
    assert any("Froze the labels of now" in event.text for event in run.events.all())

    hopeless = start_run(
        project, kind="reward", base_model=tiny_model, recipe_settings=QUICK, labels="ai"
    )
    carry_out(hopeless.pk)
    hopeless.refresh_from_db()
    assert (hopeless.status, hopeless.cause) == ("failed", causes.SETTINGS)
    assert hopeless.error.startswith("No pair to train on: no clear preference by AI judges yet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "/nowhere/model"}, "there is no model folder /nowhere/model"),
        ({"recipe_settings": {"target_modules": "c_attn"}}, "no layer c_attn; it has down_proj"),
        ({"recipe_settings": {"target_modules": "layers.9.*"}}, r"no layer layers.9.\*; it has"),
        ({"recipe_settings": {"colour": "red"}}, "reward has no setting 'colour'"),
        ({"labels": "ai"}, "no clear preference by AI judges"),
    ],
)
def test_what_cannot_work_is_refused_before_the_launch(tiny_model, changes, message):
    project = labeled_project()

    with pytest.raises(ValueError, match=message):
        run_of(project, tiny_model, **changes)

    assert Run.objects.count() == 0


def test_a_config_that_holds_no_settings_is_refused_in_words(storage):
    folder = storage / "models" / "odd"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("[1]")

    with pytest.raises(ValueError, match=r"base_model: .*config.json holds no settings"):
        run_of(labeled_project(), "odd")


def test_layers_are_read_from_the_weights_without_torch(tiny_model):
    from pathlib import Path

    layers = linear_layers(Path(tiny_model))

    assert len(layers) == 14
    assert layers["model.layers.1.mlp.up_proj"] == [64, 32]


def test_the_command_trains_and_prints_one_json_object(tiny_model, capsys):
    project = labeled_project()
    comparison(project, ann="tie")

    call_command(
        "train", "reward", "--project", project.slug, "--base", tiny_model, "--method", "qlora",
        "--test-share", "0.3", "--set", "max_steps=2", "--set", "batch_size=4", "--wait", "--json",
    )  # fmt: skip

    printed = json.loads(capsys.readouterr().out)
    run = Run.objects.get()
    assert (printed["run"], printed["status"]) == (run.pk, "succeeded")
    assert printed["model"] == f"reward-{run.pk}"
    assert printed["metrics"] == run.metrics
    assert printed["dataset"] == {
        "hash": run.dataset.sha256,
        "train": run.dataset.counts["train"],
        "test": run.dataset.counts["test"],
        "filtered": 0,
        "ties": 1,
    }
    assert run.recipe["method"] == "qlora"


def test_without_wait_the_command_only_queues(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay", lambda pk: None)
    project = labeled_project()

    call_command("train", "dpo", "--project", project.slug, "--base", tiny_model, "--json")

    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["model"], printed["metrics"]) == ("queued", None, {})


@pytest.mark.parametrize(
    ("arguments", "returncode", "message"),
    [
        (["--project", "none", "--base", "m"], 2, "There is no project none"),
        (["--project", "polite", "--base", "m", "--set", "beta"], 2, "--set wants KEY=VALUE"),
        (["--project", "polite", "--base", "m", "--set", "beta=1"], 2, "no setting 'beta'"),
        (["--project", "polite", "--base", "m", "--method", "prompt"], 2, "Prompt tuning puts"),
        (["--project", "polite", "--base", "/no/model"], 1, "there is no model folder /no/model"),
    ],
)
def test_the_command_says_what_was_wrong_and_by_its_status_whose_fault_it_is(
    arguments, returncode, message
):
    labeled_project()

    with pytest.raises(CommandError, match=message) as raised:
        call_command("train", "reward", *arguments, "--wait")

    assert raised.value.returncode == returncode


def test_a_failed_run_gives_the_command_exit_status_1(tiny_model, capsys):
    labeled_project()

    with pytest.raises(CommandError, match=r"failed: No training pair of .* fits") as raised:
        call_command(
            "train", "reward", "--project", "polite", "--base", tiny_model,
            "--set", "max_length=5", "--wait", "--json",
        )  # fmt: skip

    assert raised.value.returncode == 1
    assert json.loads(capsys.readouterr().out)["status"] == "failed"
