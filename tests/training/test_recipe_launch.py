"""A loss that does not suit the labels is refused before a worker is woken, through every door."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.models import Choice
from tests.factories import MembershipFactory, PreferenceFactory, RaterFactory, UserFactory
from tests.training.projects import comparison, labeled_project
from training.dataset_settings import DatasetSettings, settings_of_now
from training.datasets import freeze, load_pairs
from training.models import ModelVersion, Run
from training.runs import create_run
from training.tasks import carry_out

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    """16 comparisons: 12 with a strength, in 4 of them a second rater saw a tie."""
    project = labeled_project(0)
    project.aspects = [{"name": "honest", "question": "Which response is more honest?"}]
    project.save()
    ann, bob = (RaterFactory(project=project, name=name) for name in ("ann", "bob"))
    for i in range(16):
        made = comparison(project, question=f"Tell me about place {i}.")
        strength = 1 + i % 3 if i < 12 else None
        said = {"honest": "b"} if i < 6 else {}
        PreferenceFactory(
            comparison=made, rater=ann, choice=Choice.A, strength=strength, aspects=said
        )
        if i < 4:
            PreferenceFactory(
                comparison=made, rater=bob, choice=Choice.TIE, aspects={"honest": "tie"}
            )
    return project


@pytest.fixture
def lead(client, project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def soft(project):
    return freeze(project, DatasetSettings(aggregate="soft", test_share=0.3, near_duplicates=0.0))


def test_a_dataset_holds_the_strength_of_its_pairs_and_counts_what_is_soft(project):
    hard, both = freeze(project, settings_of_now("mixed", 0.3, 0)), soft(project)

    # A majority of one against a tie is none.
    assert (hard.counts["pairs"], hard.counts["graded"], hard.counts["soft"]) == (12, 8, 0)
    assert (both.counts["pairs"], both.counts["graded"], both.counts["soft"]) == (16, 12, 4)
    train, test = load_pairs(both)
    strengths = sorted(p.strength for p in train + test if p.strength is not None)
    # Two answers, one of them a tie: half of what the other says.
    assert strengths == [0.5, 0.5, 1, 1, 1, 1.5, 2, 2, 2, 3, 3, 3]
    assert sum(p.strength is None for p in train + test) == 4
    assert both.counts["aspect honest"] == 6
    said = [p.aspects["honest"] for p in train + test if p.aspects]
    assert sorted(said) == [-1, -1, -0.5, -0.5, -0.5, -0.5]


def test_the_form_the_api_and_the_command_say_why_a_loss_does_not_suit(
    project, lead, tiny_model, storage
):
    (storage / "models").mkdir()
    (storage / "models" / "tiny").symlink_to(tiny_model)
    dataset = soft(project)
    url = reverse("training:launch", args=["polite", "reward"])
    form = lead.get(url).context["form"]
    values = {f.name: f.value() for f in form}
    values = {name: v for name, v in values.items() if v is not None and v is not False}
    chosen = {"base_model": "tiny", "dataset": dataset.sha256, "loss": "margin"}

    page = lead.post(url, values | chosen | {"launch": "1"})
    asked = {
        "kind": "reward", "base_model": "tiny", "dataset": dataset.sha256,
        "settings": {"loss": "margin"},
    }  # fmt: skip
    answer = lead.post(
        "/api/projects/polite/runs/", json.dumps(asked), content_type="application/json"
    )
    with pytest.raises(CommandError, match="a margin wants hard labels") as refused:
        call_command(
            "train", "reward", "--project", "polite", "--base", "tiny", "--dataset",
            dataset.sha256, "--set", "loss=margin",
        )  # fmt: skip

    assert list(page.context["form"].errors) == ["loss"]
    assert "A margin wants hard labels" in page.context["form"].errors["loss"][0]
    assert (answer.status_code, Run.objects.count()) == (400, 0)
    assert "a margin wants hard labels" in answer.json()["detail"]
    assert refused.value.returncode == 2


def test_every_run_of_a_sweep_is_held_against_the_labels_unless_they_are_too_many_to_count(
    project, lead, tiny_model, storage, monkeypatch
):
    (storage / "models").mkdir()
    (storage / "models" / "tiny").symlink_to(tiny_model)
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    url = reverse("training:launch", args=["polite", "reward"])
    values = {f.name: f.value() for f in lead.get(url).context["form"]}
    values = {name: v for name, v in values.items() if v is not None and v is not False}
    values |= {"base_model": "tiny", "dataset": soft(project).sha256}
    grid = {"sweep": "1", "sweep_setting_1": "loss", "sweep_values_1": "pairs, margin"}

    refused = lead.post(url, values | grid)

    assert list(refused.context["form"].errors) == ["sweep_values_1"]
    assert "a margin wants hard labels" in refused.context["form"].errors["sweep_values_1"][0]
    assert Run.objects.count() == 0
    monkeypatch.setattr("training.forms.launch.COUNTED_AT_ONCE", 3)
    lead.post(url, values | {"dataset": "", "loss": "margin", "launch": "1"})
    assert Run.objects.get().recipe["loss"] == "margin"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"members": "3", "method": "full"}, "members: every member of an ensemble is an adapter"),
        ({"loss": "ratings", "labels": "ai"}, "no pair to train on"),
    ],
)
def test_what_cannot_be_is_refused_before_the_launch(project, tiny_model, chosen, message):
    labels = chosen.pop("labels", "mixed")
    with pytest.raises(ValueError, match=message):
        create_run(
            project, kind="reward", base_model=tiny_model, recipe_settings=chosen, labels=labels,
            test_share=0.3,
        )  # fmt: skip
    assert Run.objects.count() == 0


def test_a_stretched_context_is_refused_for_a_base_without_rotary_positions(project, storage):
    folder = storage / "models" / "gpt2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    with pytest.raises(ValueError, match=r"rope_scaling: the base \(gpt2\) has no rotary"):
        create_run(
            project, kind="dpo", base_model="gpt2", recipe_settings={"rope_scaling": "linear"}
        )


def test_an_ensemble_is_one_model_of_the_project_and_its_page_shows_the_spread(
    project, lead, tiny_model
):
    run = create_run(
        project, kind="reward", base_model=tiny_model, test_share=0.3,
        recipe_settings={"members": 2, "max_steps": 2, "validation_share": 0.2, "eval_every": 1},
    )  # fmt: skip
    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error, run.n_done, run.n_total) == ("succeeded", "", 4, 4)
    assert ModelVersion.objects.get(run=run).kind == "reward"
    assert sorted(run.steps.filter(split="validation").values_list("step", flat=True)) == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    text = lead.get(reverse("training:run", args=["polite", run.pk])).content.decode()
    assert "Spread of the members" in text
    assert 'data-test="validation"' in text
