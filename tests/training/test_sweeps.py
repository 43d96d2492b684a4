"""Sweeps over a grid, runs beside each other, and what a failed run's page leads to."""

import json
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.models import Change
from tests.factories import MembershipFactory, UserFactory, bearer
from tests.training.projects import labeled_project
from training import causes
from training.comparing import best_of, differing_settings
from training.models import Run, Sweep
from training.runs import create_run
from training.sweeps import combinations, create_sweep, may_start, read_grid, wake_next

pytestmark = pytest.mark.django_db

QUICK = {"max_steps": 2, "batch_size": 4, "lora_rank": 2, "dtype": "float32"}


@pytest.fixture
def project():
    return labeled_project(16)


@pytest.fixture
def lead(client, project):
    user = UserFactory(username="lea")
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


@pytest.fixture
def base(storage, tiny_model):
    """The name of a model that a person who is no administrator may choose."""
    (storage / "models").mkdir()
    (storage / "models" / "tiny").symlink_to(tiny_model)
    return "tiny"


@pytest.fixture
def woken(monkeypatch):
    sent = []
    monkeypatch.setattr("training.tasks.train.delay_on_commit", sent.append)
    return sent


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["polite", *args])


def text_of(response) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def fields(client, url: str) -> dict[str, str]:
    """What a browser would send from the form as it stands."""
    values = {field.name: field.value() for field in client.get(url).context["form"]}
    return {
        name: "on" if value is True else str(value)
        for name, value in values.items()
        if value is not None and value is not False
    }


def succeed(run: Run, value: float, low: float, high: float) -> None:
    figure = {"value": value, "low": low, "high": high, "n": 50}
    metrics = {"n": 50, "accuracy": figure, "longer_wins": figure, "seconds": 2.0}
    metrics |= {"too_long_train": 0, "too_long_test": 0, "log_loss": 0.5, "margin": 1.0}
    metrics |= {"trained_parameters": 1, "parameters": 10, "length_correlation": None}
    Run.objects.filter(pk=run.pk).update(status=Run.Status.SUCCEEDED, metrics=metrics)
    for step in (1, 2):
        run.steps.create(step=step, values={"loss": 0.7, "accuracy": 0.5, "margin": 0.1})
        run.steps.create(step=step, split="test", values={"loss": value, "accuracy": value})


def test_a_grid_is_every_combination_of_its_values():
    assert read_grid({"seed": " 1, 2,1 ,"}) == {"seed": ["1", "2"]}
    assert combinations("dpo", {"beta": [0.1, 0.2], "seed": [1, 2]}) == [
        {"beta": 0.1, "seed": 1},
        {"beta": 0.1, "seed": 2},
        {"beta": 0.2, "seed": 1},
        {"beta": 0.2, "seed": 2},
    ]
    for grid, words in (
        ({}, "a sweep wants a grid"),
        ({"seed": [1]}, "2 to 12 runs; this grid makes 1"),
        ({"seed": [1, 2, 3, 4], "lora_rank": [1, 2, 3, 4]}, "this grid makes 16"),
        ({"colour": ["red", "blue"]}, "colour cannot be swept over"),
        ({"base_model": ["a", "b"]}, "base_model cannot be swept over"),
    ):
        with pytest.raises(ValueError, match=words):
            combinations("dpo", grid)


def test_the_runs_of_a_sweep_go_one_after_another_on_one_dataset(project, base, woken):
    sweep = create_sweep(
        project, kind="reward", base_model=base, grid={"seed": [1, 2, 3]}, recipe_settings=QUICK
    )
    first, second, third = sweep.runs.order_by("pk")
    assert {run.labels["seed"] for run in (first, second, third)} == {1}
    assert [may_start(run.pk) for run in (first, second, third)] == [True, False, False]

    Run.objects.claim(first.pk)
    assert not may_start(second.pk)
    Run.objects.filter(pk=first.pk).update(status=Run.Status.FAILED)
    assert [may_start(second.pk), may_start(third.pk)] == [True, False]
    wake_next(first.pk)
    assert woken == [second.pk]

    Run.objects.claim(second.pk)
    Run.objects.filter(pk=first.pk).update(status=Run.Status.QUEUED)  # resumed meanwhile
    assert not may_start(first.pk)


def test_the_form_starts_a_sweep_whose_page_names_the_best(lead, project, base, woken):
    url = page("launch", "reward")
    sent = fields(lead, url) | {"base_model": base, "test_share": "0.3", "sweep": "1"}
    refused = lead.post(url, sent)
    assert "A sweep wants a grid" in text_of(refused)
    refused = lead.post(
        url, sent | {"sweep_setting_1": "learning_rate", "sweep_values_1": "1e-4, fast"}
    )
    assert refused.context["form"].errors["sweep_values_1"] == [
        "Learning_rate must be a number, not 'fast'."
    ]
    assert Run.objects.count() == 0

    grid = {"sweep_setting_1": "learning_rate", "sweep_values_1": "1e-4, 2e-4"}
    grid |= {"sweep_setting_2": "seed", "sweep_values_2": "1,2"}
    response = lead.post(url, sent | grid)

    sweep = Sweep.objects.get()
    runs = list(sweep.runs.order_by("pk"))
    assert response.url == page("sweep", sweep.pk)
    assert [(run.recipe["learning_rate"], run.seed) for run in runs] == [
        (1e-4, 1), (1e-4, 2), (2e-4, 1), (2e-4, 2),
    ]  # fmt: skip
    assert woken == [runs[0].pk]
    assert Change.objects.get().after["learning_rate"] == ["1e-4", "2e-4"]
    words = text_of(lead.get(page("sweep", sweep.pk)))
    assert "0 of 4 runs have ended." in words

    succeed(runs[0], 0.7, 0.6, 0.8)
    succeed(runs[1], 0.9, 0.85, 0.95)
    lead.post(page("cancel_sweep", sweep.pk))
    words = text_of(lead.get(page("sweep", sweep.pk)))
    assert "4 of 4 runs have ended." in words
    assert f"Reward model run {runs[1].pk} : highest accuracy" in words
    assert "No other run’s interval reaches into its own." in words
    assert "It was chosen among 2" in words
    assert [run.status for run in sweep.runs.order_by("pk")][2:] == ["cancelled", "cancelled"]
    assert Change.objects.filter(action="cancel sweep").count() == 1


def test_runs_stand_beside_each_other_with_what_differs(lead, project, base):
    made = [
        create_run(project, kind="reward", base_model=base, recipe_settings=QUICK | {"seed": seed})
        for seed in (1, 2)
    ]
    Run.objects.filter(pk=made[1].pk).update(dataset=made[0].dataset)
    succeed(made[0], 0.7, 0.6, 0.8)
    succeed(made[1], 0.75, 0.65, 0.85)
    runs = list(Run.objects.order_by("pk"))

    assert differing_settings(runs) == [("seed", [1, 2])]
    best = best_of(runs)
    assert (best.run, best.measure, best.n_overlapping) == (runs[1], "accuracy", 1)
    response = lead.get(page("compare"), {"run": [run.pk for run in runs]})
    words = text_of(response)
    assert "0.700 [0.600, 0.800] n 50" in words
    assert "the difference may be chance" in words
    found = re.search(r'<script id="overlay"[^>]*>(.*?)</script>', response.content.decode())
    lines = json.loads(found[1])["accuracy"]
    assert [(line["name"], line["test"]) for line in lines] == [
        (f"reward {runs[0].pk}", [[1, 0.7], [2, 0.7]]),
        (f"reward {runs[1].pk}", [[1, 0.75], [2, 0.75]]),
    ]

    fewer = runs[1].metrics | {"n": 49}  # another max_length left one out
    Run.objects.filter(pk=runs[1].pk).update(metrics=fewer)
    assert best_of(list(Run.objects.all())) is None
    Run.objects.filter(pk=runs[1].pk).update(dataset=None)
    other = text_of(lead.get(page("compare"), {"run": [run.pk for run in runs]}))
    assert "measured on different held-out rows" in other
    assert lead.get(page("compare"), {"run": ["9" * 30, "x"]}).status_code == 200
    assert best_of(list(Run.objects.all())) is None


def test_a_failed_run_leads_to_its_form_with_the_change_filled_in(lead, project, base, woken):
    run = create_run(
        project, kind="reward", base_model=base, recipe_settings=QUICK | {"train_norms": False}
    )
    Run.objects.filter(pk=run.pk).update(
        status=Run.Status.FAILED, cause=causes.MEMORY, error="The machine ran out of memory."
    )
    response = lead.get(page("run", run.pk))
    words = text_of(response)
    assert "Out of memory. The machine ran out of memory." in words
    assert "Batches of 2, 2 of them summed up before a step" in words
    assert "Resume" in words
    address = re.search(r'href="([^"]*batch_size=2[^"]*)"', response.content.decode())[1]

    form = lead.get(address.replace("&amp;", "&")).context["form"]

    assert form["base_model"].value() == base
    assert (form["batch_size"].value(), form["gradient_accumulation"].value()) == ("2", "2")
    assert (form["lora_rank"].value(), form["train_norms"].value()) == (2, False)
    assert form["dataset"].value() == run.dataset.sha256
    assert lead.get(page("launch", "dpo"), {"from": run.pk}).status_code == 404
    assert lead.get(page("launch", "reward"), {"from": "x"}).status_code == 404

    url = page("launch", "reward") + f"?from={run.pk}&gradient_checkpointing=True"
    lead.post(url, fields(lead, url) | {"launch": "1"})
    copy = Run.objects.first()
    assert (copy.recipe["gradient_checkpointing"], copy.dataset) == (True, run.dataset)
    assert copy.recipe["train_norms"] is False


def test_programs_sweep_and_the_command_line_too(lead, client, project, base, woken):
    asked = {"kind": "reward", "base_model": base, "grid": {"seed": [1, 2]}, "settings": QUICK}
    headers = bearer(project.memberships.get().user)

    def post(path: str, body: dict):
        return client.post(
            f"/api/projects/polite/{path}", body, "application/json", headers=headers
        )

    started = post("sweeps/", asked)
    assert started.status_code == 202
    made = started.json()
    assert ([run["seed"] for run in made["runs"]], made["best"]) == ([1, 2], None)
    refused = post("sweeps/", asked | {"grid": {"seed": [1]}})
    assert (refused.status_code, "this grid makes 1" in refused.content.decode()) == (400, True)
    refused = post("sweeps/", asked | {"grid": {"seed": "1,2"}})
    assert (refused.status_code, "a list of 1 to 12 values" in refused.content.decode()) == (
        400, True,
    )  # fmt: skip
    stopped = post(f"sweeps/{made['id']}/cancel/", {}).json()
    assert {run["status"] for run in stopped["runs"]} == {"cancelled"}
    listed = client.get("/api/projects/polite/sweeps/", headers=headers).json()["results"]
    assert listed[0]["runs"] == [run["id"] for run in made["runs"]]

    out = StringIO()
    call_command(
        "sweep", "reward", "--project=polite", "--base=tiny", "--grid=learning_rate=1e-4,1e-3",
        *(f"--set={name}={value}" for name, value in QUICK.items()), "--test-share=0.4",
        "--wait", "--json", stdout=out,
    )  # fmt: skip
    printed = json.loads(out.getvalue())
    assert [row["status"] for row in printed["runs"]] == ["succeeded", "succeeded"]
    assert printed["best"] in [row["run"] for row in printed["runs"]]
    assert len({run.dataset for run in Run.objects.filter(sweep=printed["sweep"])}) == 1
    with pytest.raises(CommandError, match="this grid makes 1"):
        call_command("sweep", "reward", "--project=polite", "--base=tiny", "--grid=seed=1")


def test_the_form_offers_what_is_installed_and_says_how_to_get_the_rest(lead, base, monkeypatch):
    there = {"tensorboard"}
    monkeypatch.setattr("training.forms.launch.find_spec", lambda name: name in there or None)
    url = page("launch", "reward")

    field = lead.get(url).context["form"]["report_to"]

    assert [value for value, _words in field.field.choices] == ["", "tensorboard"]
    assert "pip install wandb trackio" in field.help_text
    refused = lead.post(url, fields(lead, url) | {"base_model": base, "report_to": "wandb"})
    assert list(refused.context["form"].errors) == ["report_to"]
