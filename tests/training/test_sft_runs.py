"""Supervised fine-tuning and continued pre-training from launch to model page."""

import json
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.models import Choice
from labeling.storage import storage_path
from tests.factories import MembershipFactory, PreferenceFactory, UserFactory
from tests.training.projects import answer, labeled_project
from training.datasets import load_pairs
from training.models import Run
from training.runs import create_run
from training.tasks import carry_out
from training.texts import known_texts, load_texts

pytestmark = pytest.mark.django_db

QUICK = {"max_steps": 2, "batch_size": 4, "lora_rank": 2, "dtype": "float32"}


@pytest.fixture
def project():
    return labeled_project(16)


@pytest.fixture
def lead(client, project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


@pytest.fixture
def text(storage):
    """A file of twelve texts, one of them twice."""
    folder = storage / "texts"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": f"The river number {i} is calm."}) for i in range(12)]
    (folder / "rivers.jsonl").write_text("\n".join([*lines, lines[0], ""]))
    return "rivers.jsonl"


def run_of(project, base: str, kind: str, **settings) -> Run:
    return create_run(
        project, kind=kind, base_model=base, recipe_settings=QUICK | settings, test_share=0.4
    )


def carried_out(run: Run) -> Run:
    carry_out(run.pk)
    run.refresh_from_db()
    return run


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["polite", *args])


def text_of(response) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def demonstrate(project, comparison) -> None:
    """ann writes a better answer, which is preferred to both responses."""
    ann = project.raters.get(name="ann")
    written = answer(comparison.prompt, "Thank you for asking! Here is all of it.", "rater 1")
    written.author = ann
    written.save()
    from tests.factories import ComparisonFactory

    made = ComparisonFactory(
        project=project,
        prompt=comparison.prompt,
        response_a=comparison.response_a,
        response_b=written,
    )
    PreferenceFactory(comparison=made, rater=ann, choice=Choice.B)


def test_a_policy_imitates_the_chosen_responses_and_is_the_named_base_of_dpo(
    project, lead, tiny_model
):
    run = carried_out(run_of(project, tiny_model, "sft"))

    assert (run.status, run.error) == ("succeeded", "")
    assert run.model_version.kind == "policy"
    assert run.metrics["n_train"] == run.dataset.counts["train"]
    assert list(run.steps.filter(split="train").values_list("step", flat=True)) == [1, 2]
    words = text_of(lead.get(page("run", run.pk)))
    assert "loss, nats a token 5." in words
    assert "0 longer than 256 tokens" in words
    assert "Accuracy" not in words
    assert "imitate responses that 1 person preferred" in text_of(
        lead.get(page("model", f"sft-{run.pk}"))
    )
    assert "nats a token, n" in text_of(lead.get(page("list")))

    after = carried_out(run_of(project, f"sft-{run.pk}", "dpo"))
    assert (after.status, after.model_version.base) == ("succeeded", run.model_version)


def test_better_answers_that_raters_wrote_are_known_in_the_dataset_and_imitated_alone(
    project, tiny_model
):
    for comparison in list(project.comparisons.all()):
        demonstrate(project, comparison)
    run = carried_out(run_of(project, tiny_model, "sft", imitate="demonstrations"))

    assert (run.status, run.error) == ("succeeded", "")
    assert run.dataset.counts["demonstrations"] == 16
    train, test = load_pairs(run.dataset)
    assert sum(pair.demonstration for pair in train + test) == 16
    assert run.metrics["n_train"] + run.metrics["n"] == 16
    assert run.metrics["other"] == 16


def test_continued_pre_training_reads_a_file_and_keeps_its_hash(project, lead, tiny_model, text):
    run = carried_out(run_of(project, tiny_model, "pretrain", text=text))

    assert (run.status, run.error, run.dataset) == ("succeeded", "", None)
    assert len(run.text_sha256) == 64
    assert run.metrics["n_texts"] + run.metrics["loss"]["n"] == 12
    assert any("1 repeated ones left out" in event.text for event in run.events.all())
    model = text_of(lead.get(page("model", f"pretrain-{run.pk}")))
    assert run.text_sha256 in model
    assert f"from {run.metrics['n_texts']} raw texts" in model
    assert "rivers.jsonl" in text_of(lead.get(page("run", run.pk)))
    assert f"pretrain-{run.pk}" in text_of(lead.get(page("list")))
    program = lead.get(f"/api/projects/polite/runs/{run.pk}/").json()
    assert (program["dataset"], program["text_sha256"]) == (None, run.text_sha256)

    storage_path(f"texts/{text}").write_text('"Other words."')
    Run.objects.filter(pk=run.pk).update(status=Run.Status.QUEUED)
    carried_out(run)
    assert run.status == "failed"
    assert "rivers.jsonl is no longer what this run began with" in run.error


def test_a_text_file_is_divided_and_split_the_same_way_every_time(storage):
    folder = storage / "texts"
    folder.mkdir()
    (folder / "two.txt").write_text("One\nstill one\n\n \n\nTwo\n\nOne\nstill one\n")
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"words": 1}\n')

    train, test, n_repeated = load_texts("two.txt", 0.5, 0)

    assert sorted(train + test) == ["One\nstill one", "Two"]
    assert (len(train), n_repeated) == (1, 1)
    assert load_texts("two.txt", 0.5, 0) == (train, test, 1)
    assert known_texts() == ["bad.jsonl", "two.txt"]
    with pytest.raises(ValueError, match=r'bad.jsonl, line 2: no JSON with a "text"'):
        load_texts("bad.jsonl", 0.5, 0)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "gone.txt", "models/base"])
def test_only_files_of_the_folder_of_texts_are_read(project, tiny_model, text, name):
    with pytest.raises(ValueError, match=r"^text: "):
        run_of(project, tiny_model, "pretrain", text=name)
    assert Run.objects.count() == 0


def fields(client, url: str) -> dict[str, str]:
    """What a browser would send from the form as it stands."""
    values = {field.name: field.value() for field in client.get(url).context["form"]}
    return {
        name: "on" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }


def test_the_forms_launch_both_kinds_of_run(project, lead, text, storage, monkeypatch, tiny_model):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    (storage / "models").mkdir(exist_ok=True)
    (storage / "models" / "tiny").symlink_to(tiny_model)

    for kind, more in (("sft", {}), ("pretrain", {"text": text, "test_share": "0.25"})):
        url = page("launch", kind)
        response = lead.post(url, fields(lead, url) | {"base_model": "tiny"} | more)
        run = Run.objects.first()
        assert (response.status_code, response.url) == (302, page("run", run.pk))
        assert run.kind == kind

    assert (run.recipe["text"], run.recipe["test_share"]) == (text, 0.25)
    assert "rivers.jsonl , 5" in text_of(lead.get(url))


def test_a_form_that_asks_for_demonstrations_where_there_are_none_says_so(
    project, lead, storage, tiny_model
):
    (storage / "models").mkdir(exist_ok=True)
    (storage / "models" / "tiny").symlink_to(tiny_model)
    url = page("launch", "sft")

    response = lead.post(
        url, fields(lead, url) | {"base_model": "tiny", "imitate": "demonstrations"}
    )

    assert list(response.context["form"].errors) == ["imitate"]
    assert Run.objects.count() == 0


def test_without_a_file_of_text_the_form_says_where_to_put_one(project, lead):
    assert "put one into texts/" in text_of(lead.get(page("launch", "pretrain")))


def test_programs_and_the_command_line_start_both(project, lead, tiny_model, text, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    (storage_path("models")).mkdir(exist_ok=True)
    (storage_path("models") / "tiny").symlink_to(tiny_model)
    asked = {"kind": "pretrain", "base_model": "tiny", "settings": {"text": text}}
    response = lead.post(
        "/api/projects/polite/runs/", json.dumps(asked), content_type="application/json"
    )
    assert (response.status_code, response.json()["recipe"]["text"]) == (202, text)
    del asked["settings"]
    refused = lead.post(
        "/api/projects/polite/runs/", json.dumps(asked), content_type="application/json"
    )
    assert (refused.status_code, "pretrain wants text" in refused.content.decode()) == (400, True)

    out = StringIO()
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    call_command(
        "train", "pretrain", "--project=polite", "--base=tiny", f"--text={text}", "--wait",
        *settings, stdout=out,
    )  # fmt: skip
    assert "Texts of rivers.jsonl." in out.getvalue()
    assert "nats a token  5." in out.getvalue()
    with pytest.raises(CommandError, match="pretrain wants text"):
        call_command("train", "pretrain", "--project=polite", "--base=tiny")
