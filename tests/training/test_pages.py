"""The training pages: who may see and do what, with and without JavaScript."""

import json
import re
import subprocess
import sys

import pytest
from django.conf import settings
from django.urls import reverse

from labeling.models import Choice
from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import comparison, labeled_project
from training.models import ModelVersion, Run
from training.runs import create_run
from training.views.runs import POINTS_SHOWN, curves

pytestmark = pytest.mark.django_db

METRICS = {
    "n": 50,
    "accuracy": {"value": 0.84, "low": 0.709, "high": 0.928, "n": 50},
    "longer_wins": {"value": 0.44, "low": 0.3, "high": 0.587, "n": 50},
    "log_loss": 0.41,
    "margin": 1.2,
    "margin_sd": 0.8,
    "length_correlation": -0.1,
    "too_long_train": 3,
    "too_long_test": 1,
    "trained_parameters": 1000,
    "parameters": 50000,
    "seconds": 12.0,
}


@pytest.fixture
def project():
    return labeled_project(16)


@pytest.fixture
def as_role(client, project):
    def sign_in(role: str):
        user = UserFactory()
        MembershipFactory(project=project, user=user, role=role)
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def base(storage):
    """A folder that looks like a model: the web process reads no more than its headers."""
    folder = storage / "models" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps(
        {"model.layers.0.self_attn.q_proj.weight": {"dtype": "F32", "shape": [4, 4]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return "base"


@pytest.fixture
def finished(project, base):
    run = create_run(project, kind="reward", base_model=base, test_share=0.3)
    Run.objects.filter(pk=run.pk).update(
        status=Run.Status.SUCCEEDED, metrics=METRICS, n_done=10, n_total=10, base_revision="a" * 64
    )
    run.refresh_from_db()
    for step in range(1, 11):
        run.steps.create(step=step, values={"loss": 0.7, "accuracy": 0.5, "margin": 0.1})
    run.steps.create(step=10, split="test", values={"loss": 0.6, "accuracy": 0.8, "margin": 0.3})
    return run


def fields(client, url: str) -> dict[str, str]:
    """What a browser would send from the form as it stands."""
    form = client.get(url).context["form"]
    values = {field.name: field.value() for field in form}
    return {
        name: "on" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["polite", *args])


def text_of(response) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def test_viewers_look_and_leads_launch(as_role, finished):
    viewer = as_role("viewer")
    assert "New reward model" not in text_of(viewer.get(page("list")))
    assert viewer.get(page("run", finished.pk)).status_code == 200
    for response in (
        viewer.get(page("launch", "reward")),
        viewer.post(page("launch", "reward"), {}),
        viewer.post(page("cancel", finished.pk)),
        viewer.post(page("resume", finished.pk)),
    ):
        assert response.status_code == 403

    lead = as_role("lead")
    assert "New reward model" in text_of(lead.get(page("list")))
    assert lead.get(page("launch", "reward")).status_code == 200


def test_a_rater_sees_nothing_of_training(as_role, finished):
    rater = as_role("rater")

    assert rater.get(page("list")).status_code == 403
    assert rater.get(page("run", finished.pk)).status_code == 403


def test_a_run_of_another_project_is_not_found(as_role, finished):
    from tests.factories import ProjectFactory

    other = ProjectFactory(slug="other")
    Run.objects.filter(pk=finished.pk).update(project=other)

    assert as_role("lead").get(page("run", finished.pk)).status_code == 404


def test_the_form_as_it_stands_launches_a_run_with_the_recipes_defaults(as_role, base, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    lead = as_role("lead")
    url = page("launch", "dpo")

    response = lead.post(url, fields(lead, url) | {"base_model": base, "launch": "1"})

    run = Run.objects.get()
    assert response.url == page("run", run.pk)
    assert (run.status, run.kind, run.recipe["beta"], run.recipe["train_norms"]) == (
        "queued", "dpo", 0.1, True,
    )  # fmt: skip
    assert run.created_by.memberships.get().role == "lead"
    assert (run.dataset, run.labels["labels"]) == (None, "mixed")
    assert "those of now, not frozen yet" in text_of(lead.get(response.url))


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"base_model": "a/b/gone"}, "base_model", "a/b/gone is no folder under models/"),
        ({"base_model": "/no/model"}, "base_model", "Only an administrator names a path."),
        (
            {"target_modules": "c_attn"},
            "target_modules",
            "no layer c_attn; it has q_proj in layers 0 to 0.",
        ),
        ({"learning_rate": "0"}, "learning_rate", "Must be above 0."),
        ({"method": "magic"}, "method", "Select a valid choice."),
        ({"method": "prompt"}, "method", "Prompt tuning puts vectors in the place of word ids"),
        (
            {"method": "prefix", "gradient_checkpointing": "on"},
            "method",
            "Prefix tuning needs the cache that gradient checkpointing turns off.",
        ),
        ({"method": "pissa"}, "lora_rank", "the narrowest has 4"),
        ({"labels": "ai"}, "labels", "No pair to train on: no clear preference by AI judges yet."),
        ({"test_share": "2"}, "test_share", "less than or equal to 0.9"),
    ],
)
def test_what_cannot_work_is_said_beside_its_field_and_nothing_is_started(
    as_role, base, changes, field, message
):
    lead = as_role("lead")
    url = page("launch", "reward")

    response = lead.post(url, fields(lead, url) | {"base_model": base} | changes)

    form = response.context["form"]
    assert list(form.errors) == [field]
    assert message in form.errors[field][0]
    assert message in response.content.decode()
    assert Run.objects.count() == 0


@pytest.mark.parametrize("seed", ["inf", "-inf", "nan", "1e400", "2147483648", "7.5", ""])
def test_a_seed_that_is_none_is_refused_beside_its_field(as_role, base, seed):
    lead = as_role("lead")
    url = page("launch", "reward")

    response = lead.post(url, fields(lead, url) | {"base_model": base, "seed": seed})

    assert (response.status_code, list(response.context["form"].errors)) == (200, ["seed"])
    assert Run.objects.count() == 0


def test_the_form_shows_the_settings_of_the_chosen_method_alone(as_role, base, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    lead = as_role("lead")
    url = page("launch", "reward")
    whole = lead.get(url).content.decode()
    assert 'name="settings_of" value="lora"' in whole
    assert 'name="lora_rank"' in whole
    assert 'name="virtual_tokens"' not in whole

    first = fields(lead, url) | {"settings_of": "lora"}
    chosen = first | {"base_model": base, "method": "prefix", "virtual_tokens": ""}
    part = lead.post(
        url, chosen, headers={"HX-Request": "true", "HX-Trigger": "id_method"}
    ).content.decode()

    assert part.strip().startswith("<fieldset")
    assert set(re.findall(r'name="(\w+)"', part)) == {"settings_of", "virtual_tokens"}
    assert 'value="20"' in part

    # Without JavaScript the page still shows those of LoRA: they are not read, defaults are.
    lead.post(url, chosen | {"lora_rank": "junk", "launch": "1"})

    recipe = Run.objects.get().recipe
    assert (recipe["method"], recipe["virtual_tokens"], recipe["lora_rank"]) == ("prefix", 20, 16)


def test_a_setting_that_the_page_did_not_show_keeps_its_default(as_role, base, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    lead = as_role("lead")
    url = page("launch", "reward")
    shown = fields(lead, url)
    sent = {n: v for n, v in shown.items() if n not in ("lora_rank", "train_norms")}

    lead.post(
        url,
        sent | {"base_model": base, "method": "lora", "settings_of": "head", "launch": "1"},
    )

    recipe = Run.objects.get().recipe
    assert (recipe["lora_rank"], recipe["train_norms"]) == (16, True)


def test_a_method_that_the_recipe_cannot_take_says_why_as_soon_as_it_is_chosen(as_role, base):
    lead = as_role("lead")
    url = page("launch", "dpo")

    part = lead.post(
        url,
        fields(lead, url) | {"method": "head"},
        headers={"HX-Request": "true", "HX-Trigger": "id_method"},
    ).content.decode()

    assert "Only a reward model has a head of its own to train" in part


def test_check_only_shows_the_dataset_and_starts_nothing(as_role, project, base):
    comparison(project, ann=Choice.TIE)
    known = comparison(project, ann=Choice.A)
    known.gold = Choice.A
    known.save()
    lead = as_role("lead")
    url = page("launch", "reward")

    response = lead.post(url, fields(lead, url) | {"base_model": base, "check": "1"})

    assert "Ties 1 " in text_of(response)
    assert "control questions with a known answer 1 " in text_of(response)
    assert response.context["preview"]["counts"]["pairs"] == 16
    assert Run.objects.count() == 0


def test_htmx_gets_the_preview_alone(as_role, base):
    lead = as_role("lead")
    url = page("launch", "reward")

    response = lead.post(url, fields(lead, url) | {"labels": "ai"}, headers={"HX-Request": "true"})

    assert response.content.decode().strip().startswith("<aside")
    assert "No pair to train on" in response.content.decode()
    assert Run.objects.count() == 0


def test_the_run_page_shows_results_with_their_interval_beside_the_length_baseline(
    as_role, finished
):
    response = as_role("viewer").get(page("run", finished.pk))

    words = text_of(response)
    assert "accuracy 0.840 [0.709, 0.928], n 50" in words
    assert "“the longer wins” 0.440 [0.300, 0.587], n 50" in words
    assert "4 pairs longer than 1,024 tokens left out" in words
    data = json.loads(
        re.search(r'<script id="curves"[^>]*>(.*?)</script>', response.content.decode())[1]
    )
    assert len(data["loss"]["train"]) == 10
    assert data["accuracy"]["test"] == [[10, 0.8]]


def test_an_active_run_polls_and_an_ended_one_does_not(as_role, finished):
    viewer = as_role("viewer")
    ended = viewer.get(page("run", finished.pk)).content.decode()
    assert "every 2s" not in ended

    Run.objects.filter(pk=finished.pk).update(status=Run.Status.RUNNING)
    whole = viewer.get(page("run", finished.pk)).content.decode()
    part = viewer.get(page("run", finished.pk), headers={"HX-Request": "true"}).content.decode()

    assert 'hx-trigger="every 2s"' in whole
    assert part.strip().startswith('<div id="live"')
    assert "What it is made from" not in part


def test_cancel_and_resume_work_from_plain_forms(as_role, finished, monkeypatch):
    woken = []
    monkeypatch.setattr("training.tasks.train.delay_on_commit", woken.append)
    Run.objects.filter(pk=finished.pk).update(status=Run.Status.QUEUED)
    lead = as_role("lead")
    assert ">Cancel<" in lead.get(page("run", finished.pk)).content.decode()

    lead.post(page("cancel", finished.pk))
    finished.refresh_from_db()
    assert finished.status == "cancelled"
    assert ">Resume" in lead.get(page("run", finished.pk)).content.decode()

    lead.post(page("resume", finished.pk))
    finished.refresh_from_db()
    assert (finished.status, woken) == ("queued", [finished.pk])


def test_resuming_a_run_that_ended_well_says_so_and_changes_nothing(as_role, finished):
    response = as_role("lead").post(page("resume", finished.pk), follow=True)

    assert "is succeeded: there is nothing to resume" in text_of(response)
    finished.refresh_from_db()
    assert finished.status == "succeeded"


def test_every_model_answers_why_it_exists(as_role, project, base):
    comparison(project, gpt_judge="a")
    run = create_run(project, kind="reward", base_model=base, test_share=0.3)
    Run.objects.filter(pk=run.pk).update(metrics=METRICS, base_revision="c0ffee" * 10)
    parent = ModelVersion.objects.create(project=project, name="base", kind="base", path=base)
    ModelVersion.objects.create(
        project=project, name="polite-1", kind="reward", path="runs/1/model", run=run, base=parent
    )

    words = text_of(as_role("viewer").get(page("model", "polite-1")))

    assert "16 pairs by people and 1 by AI judges" in words
    assert run.dataset.sha256 in words
    assert "gpt_judge AI judge version 1" in words
    assert "ann person 16" in words
    assert run.code_version in words
    assert "c0ffee" * 10 in words
    assert "polite-1 Reward model" in text_of(as_role("viewer").get(page("model", "base")))


def test_the_list_takes_as_many_queries_for_three_runs_as_for_one(
    as_role, project, base, django_assert_num_queries
):
    viewer = as_role("viewer")

    def add_run(name):
        run = create_run(project, kind="reward", base_model=base, test_share=0.3)
        ModelVersion.objects.create(
            project=project, name=name, kind="reward", path="runs/1/model", run=run
        )

    add_run("one")
    with django_assert_num_queries(9):
        viewer.get(page("list"))
    add_run("two")
    add_run("three")
    with django_assert_num_queries(9):
        viewer.get(page("list"))


def test_a_long_run_sends_a_screenful_of_points_each_the_mean_of_several(finished):
    n = 3 * POINTS_SHOWN
    finished.steps.all().delete()
    finished.steps.bulk_create(
        finished.steps.model(
            run=finished, step=step, values={"loss": step, "accuracy": 1.0, "margin": 0.0}
        )
        for step in range(1, n + 1)
    )

    found = curves(finished)

    assert found["steps_per_point"] == 3
    assert len(found["curves"]["loss"]["train"]) == POINTS_SHOWN
    assert found["curves"]["loss"]["train"][0] == [3, 2.0]


def test_the_web_process_opens_every_training_page_without_torch():
    program = """
import sys
import django
django.setup()
from django.urls import get_resolver
get_resolver().url_patterns
import training.views.runs, training.views.datasets, training.forms.launch, training.runs
import training.tasks, training.admin
heavy = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes"} & set(sys.modules)
print(sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=settings.BASE_DIR,
        env={"DJANGO_SETTINGS_MODULE": "config.settings", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"
