"""Quiet-STaR from launch to model page."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.storage import storage_path
from tests.factories import MembershipFactory, ProjectFactory, UserFactory
from tests.training.test_sft_runs import text_of
from training.ml.quiet_star import THOUGHTS, load_thinking, told
from training.models import Run
from training.runs import create_run
from training.tasks import carry_out

pytestmark = pytest.mark.django_db

QUICK = {"max_steps": 1, "batch_size": 4, "lora_rank": 2, "dtype": "float32", "thought_length": 1}


@pytest.fixture
def project(storage):
    """A project with a file of thirty texts."""
    (storage / "texts").mkdir(parents=True)
    lines = [json.dumps(f"Boat {i} is calm, boat {i} is kind.") for i in range(30)]
    (storage / "texts" / "boats.jsonl").write_text("\n".join(lines))
    return ProjectFactory(slug="boats")


@pytest.fixture
def lead(client, project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["boats", *args])


def test_a_run_shows_its_thoughts_and_leaves_an_ordinary_model(project, lead, tiny_model):
    run = create_run(
        project,
        kind="quiet_star",
        base_model=tiny_model,
        recipe_settings=QUICK | {"text": "boats.jsonl"},
        test_share=0.5,
    )
    carry_out(run.pk)
    run.refresh_from_db()

    assert (run.status, run.error, run.model_version.kind) == ("succeeded", "", "policy")
    assert run.predicted_peak > 0
    point = run.steps.get(split="train").values
    assert set(point) >= {"loss", "thought_loss", "mixing_weight", "thought_reward"}
    response = lead.get(page("run", run.pk))
    words = text_of(response)
    for said in (
        "Loss with thoughts", "Mixing weight of the thought", "Reward of REINFORCE",
        "benefit of thoughts, nats a token", "Tokens that thoughts help most",
        "By how hard a token is", "Chosen on one half",
    ):  # fmt: skip
        assert said in words
    listed = run.metrics["where_thoughts_help"]["tokens"]
    assert 0 < len(listed) <= 10
    assert run.metrics["thought_benefit"]["low"] is not None

    name = run.model_version.name
    words = text_of(lead.get(page("model", name)))
    assert "learned to think after each of them (Quiet-STaR, experimental)" in words
    assert "thoughts are off" in words
    folder = storage_path(run.model_version.path)
    assert (folder / THOUGHTS).is_file()
    model, tokenizer, thoughts, length = load_thinking(folder)
    (one,) = told(model, thoughts, [tokenizer("Boat 3")["input_ids"]], length, 0)
    assert (length, len(one.thoughts[0])) == (1, 1)

    # Its adapter is a base like any other.
    after = create_run(
        project,
        kind="pretrain",
        base_model=name,
        recipe_settings={"text": "boats.jsonl", "max_steps": 1, "dtype": "float32"},
    )
    carry_out(after.pk)
    after.refresh_from_db()
    assert (after.status, after.error) == ("succeeded", "")


def test_the_form_says_that_it_is_experimental_and_launches(
    project, lead, storage, monkeypatch, tiny_model
):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    (storage / "models").mkdir(exist_ok=True)
    (storage / "models" / "tiny").symlink_to(tiny_model)
    url = page("launch", "quiet_star")
    opened = lead.get(url)
    values = {
        field.name: "on" if field.value() is True else str(field.value())
        for field in opened.context["form"]
        if field.value() is not None and field.value() is not False
    } | {"base_model": "tiny", "text": "boats.jsonl"}

    refused = lead.post(url, values | {"method": "prefix"})
    launched = lead.post(url, values | {"thought_length": "3"})

    assert "New Quiet-STaR policy experimental" in text_of(opened)
    assert "go around it; choose LoRA" in str(refused.context["form"].errors)
    run = Run.objects.get()
    assert (launched.status_code, run.kind) == (302, "quiet_star")
    assert (run.recipe["thought_length"], run.recipe["text"]) == (3, "boats.jsonl")


def test_the_command_wants_a_text(project, tiny_model):
    with pytest.raises(CommandError, match="quiet_star wants text"):
        call_command("train", "quiet_star", "--project=boats", f"--base={tiny_model}")
