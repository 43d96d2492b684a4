"""PPO from launch to model page: the reward models it names, what is refused, what a run leaves."""

import json
import re
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import labeled_project
from tests.training.reward_models import save_reward_model
from training.causes import remedies
from training.lineage import lineage
from training.models import ModelVersion, Run
from training.registry import what_depends
from training.runs import create_run, recipe_of, resume_run, start_run
from training.tasks import carry_out

pytestmark = pytest.mark.django_db

QUICK = {
    "steps": 2,
    "prompts_per_step": 4,
    "max_new_tokens": 4,
    "minibatches": 1,
    "epochs": 1,
    "lora_rank": 2,
    "dtype": "float32",
    "eval_every": 1,
    "checkpoint_every": 1,
}


@pytest.fixture
def project(tiny_model, storage):
    """With a base and two reward models."""
    made = labeled_project(16)
    base = made.models.create(name="tiny", kind=ModelVersion.Kind.BASE, path=tiny_model)
    for seed, name in ((1, "kind"), (2, "watchful")):
        save_reward_model(tiny_model, storage / "runs" / name, seed=seed)
        made.models.create(
            name=name, kind=ModelVersion.Kind.REWARD, path=f"runs/{name}/model", base=base
        )
    return made


@pytest.fixture
def lead(client, project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    client.user = user
    return client


def run_of(project, **settings) -> Run:
    return create_run(
        project,
        kind="ppo",
        base_model="tiny",
        recipe_settings=QUICK | {"reward_models": "kind"} | settings,
        test_share=0.4,
    )


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["polite", *args])


def text_of(response) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())


def form_values(form) -> dict:
    """What a browser would send of the form as it stands."""
    values = {field.name: field.value() for field in form}
    return {
        name: "on" if value is True else value
        for name, value in values.items()
        if value is not False and value is not None
    }


def test_a_run_from_the_command_to_its_pages(project, lead, tiny_model, untouched):
    out = StringIO()
    asked = [f"--set={name}={value}" for name, value in QUICK.items()]
    call_command(
        "train", "ppo", "--project=polite", "--base=tiny", "--set=reward_models=kind", *asked,
        "--set=algorithm=rloo", "--set=samples_per_prompt=2", "--test-share=0.4", "--wait",
        stdout=out,
    )  # fmt: skip

    run = Run.objects.get()
    assert run.status == Run.Status.SUCCEEDED, run.error
    assert "score gained" in out.getvalue()
    assert run.recipe["reward_models"] == "kind"
    assert run.metrics["shared"] == 1
    model = run.model_version
    assert (model.name, model.kind, model.base.name) == (f"ppo-{run.pk}", "policy", "tiny")
    costs = run.steps.filter(split="train").values_list("cost", flat=True)
    assert all(cost["tokens"] > 0 and cost["generation"] > 0 for cost in costs)
    assert [step.step for step in run.steps.filter(split="test")] == [0, 1, 2]
    assert run.measured_peak is not None

    shown = lead.get(page("run", run.pk))
    assert list(shown.context["curves"]["curves"])[:4] == ["score", "careful", "unknown", "kl"]
    assert [point["words"][:6] for point in shown.context["frontier"]["series"][0]["points"]] == [
        "step 0", "step 1", "step 2",
    ]  # fmt: skip
    assert sum(one["percent"] for one in shown.context["shares"]) == pytest.approx(100)
    words = text_of(shown)
    assert "Reward models kind" in words
    assert "Learned on" in words
    assert "to score higher by kind" in text_of(lead.get(page("model", model.name)))
    assert "gain of the score" in text_of(lead.get(page("list")))
    names = {(node.kind, node.title) for node in lineage(model).nodes}
    assert {("base", "kind"), ("base", "tiny"), ("run", str(run))} <= names
    assert {kind for kind, _title in names} >= {"dataset", "labels"}
    kind = project.models.get(name="kind")
    assert [version.name for version in what_depends(kind).models] == [model.name, "kind"]


def test_a_cancelled_run_goes_on_to_the_same_weights(project, lead):
    from safetensors.torch import load_file

    from labeling.storage import storage_path

    whole, cut = run_of(project), run_of(project)
    carry_out(whole.pk)
    asked = []

    def ask_once(report):
        if report.step == 1 and report.values and not asked:
            asked.append(Run.objects.filter(pk=cut.pk).update(cancel_requested=True))

    carry_out(cut.pk, show=ask_once)
    cut.refresh_from_db()
    assert cut.status == Run.Status.CANCELLED
    assert cut.checkpoints.get().step == 1
    assert resume_run(cut, by=lead.user)
    carry_out(cut.pk)

    cut.refresh_from_db()
    whole.refresh_from_db()
    assert cut.status == Run.Status.SUCCEEDED, cut.error
    first, second = (
        load_file(storage_path(run.folder) / "model" / "adapter_model.safetensors")
        for run in (whole, cut)
    )
    assert all((first[name] == second[name]).all() for name in first)
    assert cut.metrics["gain"] == whole.metrics["gain"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"reward_models": ""}, "reward_models: name a reward model of this project; there are"),
        ({"reward_models": "tiny"}, "reward_models: tiny is no reward model of this project"),
        ({"reward_models": "/etc"}, "reward_models: /etc is no reward model of this project"),
        ({"reward_models": "kind,kind"}, "reward_models: one is named twice"),
        ({"judge_model": "kind"}, "judge_model: kind is no language model of this project"),
        ({"holdout_reward_model": "kind"}, "holdout_reward_model: the policy learns from this one"),
        ({"method": "full"}, "method: the roles of PPO stand beside each other"),
        ({"algorithm": "grpo"}, "samples_per_prompt must be at least 2: grpo compares"),
        ({"beta": 0.1}, "ppo has no setting 'beta'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_queued(project, chosen, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_of(project, **chosen)
    assert Run.objects.count() == 0


def test_the_form_offers_the_projects_reward_models_and_launches_with_them(
    project, lead, monkeypatch
):
    monkeypatch.setattr("training.models.Run.enqueue", lambda run: None)
    url = page("launch", "ppo")
    form = lead.get(url).context["form"]
    assert [name for name, _words in form.fields["reward_models"].choices] == ["watchful", "kind"]
    assert form["holdout_reward_model"].value() == "kind"
    assert dict(form.fields["method"].choices).keys() == {"lora", "qlora", "rslora", "dora"}
    values = form_values(form) | {"launch": "1", "base_model": "tiny"}

    refused = lead.post(url, values | {"reward_models": []})
    assert list(refused.context["form"].errors) == ["reward_models"]
    same = lead.post(url, values | {"reward_models": ["kind", "watchful"]})
    errors = same.context["form"].errors
    assert list(errors) == ["holdout_reward_model"]
    assert "The policy learns from this one" in errors["holdout_reward_model"][0]
    assert Run.objects.count() == 0
    lead.post(url, values | {"reward_models": ["watchful"]})

    run = Run.objects.get()
    assert (run.kind, run.recipe["reward_models"], run.recipe["holdout_reward_model"]) == (
        "ppo", "watchful", "kind",
    )  # fmt: skip
    assert [(used.model.name, used.holds_out) for used in run.reward_models.all()] == [
        ("watchful", False), ("kind", True),
    ]  # fmt: skip
    again = lead.get(url, {"from": run.pk}).context["form"]
    assert again["reward_models"].value() == ["watchful"]
    assert recipe_of(run).reward_models.endswith("runs/watchful/model")


def test_a_program_and_the_command_line_are_told_the_same(project, lead, monkeypatch):
    monkeypatch.setattr("training.models.Run.enqueue", lambda run: None)
    asked = {"kind": "ppo", "base_model": "tiny", "settings": {"reward_models": "nobody"}}
    url = "/api/projects/polite/runs/"
    refused = lead.post(url, json.dumps(asked), content_type="application/json")
    with pytest.raises(CommandError, match="nobody is no reward model of this project"):
        call_command(
            "train", "ppo", "--project=polite", "--base=tiny", "--set=reward_models=nobody"
        )
    asked["settings"] = {"reward_models": "kind, watchful", "combine": "worst"}
    started = lead.post(url, json.dumps(asked), content_type="application/json")

    assert (refused.status_code, started.status_code) == (400, 202)
    assert "there are watchful, kind" in refused.json()["detail"]
    assert started.json()["recipe"]["reward_models"] == "kind, watchful"
    assert Run.objects.get().reward_models.count() == 2


def test_a_run_that_ran_out_of_memory_is_told_what_needs_less(project):
    run = start_run(
        project, kind="ppo", base_model="tiny", recipe_settings={"reward_models": "kind"}
    )
    run.cause = "memory"
    first, second, *_others = remedies(run, recipe_of(run))
    assert first.changes == {"batch_size": 4, "rollout_batch_size": 32}
    assert second.changes == {"algorithm": "rloo", "samples_per_prompt": 2}


def dies_at_a_checkpoint(report):
    if report.checkpoint:
        raise RuntimeError("the worker has died")


@pytest.mark.parametrize("on_alarm", ["stop", "pause"])
def test_an_alarm_keeps_the_best_weights_and_asks_people(project, lead, on_alarm):
    run = run_of(
        project, steps=4, kl_budget=1e-6, learning_rate=1e-2, on_alarm=on_alarm,
        holdout_reward_model="watchful",
    )  # fmt: skip
    before = project.comparisons.count()
    if on_alarm == "pause":  # a worker that dies between the checkpoint and the pause
        carry_out(run.pk, dies_at_a_checkpoint)
        run.refresh_from_db()
        assert run.status == Run.Status.FAILED
        assert resume_run(run, by=lead.user)
    carry_out(run.pk)
    run.refresh_from_db()

    asked = project.comparisons.filter(metadata__alarm_of_run=run.pk)
    assert 0 < asked.count() <= 20
    assert project.comparisons.count() == before + asked.count()
    sources = {c.response_a.source for c in asked} | {c.response_b.source for c in asked}
    told = run.events.get(text__startswith="Alarm at step").text
    at, kept = (int(n) for n in re.search(r"step (\d+): .* of step (\d+)\.", told).groups())
    assert sources == {f"ppo-{run.pk}-step-{n}" if n else "tiny" for n in (at, kept)}
    assert 0 <= kept < at < 4
    assert "the budget is 1e-06" in " ".join(run.events.values_list("text", flat=True))
    if on_alarm == "stop":
        assert run.status == Run.Status.SUCCEEDED, run.error
        alarm = run.metrics["alarm"]
        assert (alarm["step"], alarm["kept_step"], alarm["kinds"]) == (at, kept, ["too_far"])
        assert (run.metrics["n_steps"], run.metrics["kept_step"]) == (at, kept)
        assert f"An alarm stopped the run at step {at}" in text_of(lead.get(page("run", run.pk)))
        return
    assert run.status == Run.Status.PAUSED
    assert f"Paused by an alarm at step {at}" in text_of(lead.get(page("run", run.pk)))
    assert resume_run(run, by=lead.user)
    carry_out(run.pk)
    run.refresh_from_db()
    assert (run.status, run.metrics["n_steps"]) == (Run.Status.SUCCEEDED, 4)
