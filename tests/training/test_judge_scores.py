"""PPO and its kin on scores of a judge of the project: asked as for its verdicts, never twice."""

import re
from dataclasses import replace

import pytest
from django.urls import reverse

from judges.engines import opened
from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import Judge, JudgeServer
from judges.servers import encrypted
from labeling.models import Rater
from labeling.scoring import CannotRate, open_rater
from tests.factories import MembershipFactory, UserFactory
from tests.judges.loopback import serving, status
from tests.training.projects import labeled_project
from training.cards import card_of
from training.fitting import foretold
from training.lineage import lineage
from training.ml import ppo_memory
from training.ml.architecture import read_architecture
from training.models import ModelVersion, Run
from training.runs import create_run, recipe_of, resume_run
from training.tasks import carry_out

pytestmark = pytest.mark.django_db

QUICK = {
    "steps": 2,
    "prompts_per_step": 2,
    "samples_per_prompt": 2,
    "algorithm": "rloo",
    "max_new_tokens": 3,
    "minibatches": 1,
    "epochs": 1,
    "lora_rank": 2,
    "dtype": "float32",
    "checkpoint_every": 1,
    "test_prompts": 1,
}
RECIPE = JudgeRecipe(mode="score", principles=("It names a number.", "It is kind."))
SCORES = {"8": 0.5, "3": 0.3, "10": 0.1, "So": 0.05}


@pytest.fixture
def project(tiny_model, storage):
    made = labeled_project(16)
    made.models.create(name="tiny", kind=ModelVersion.Kind.BASE, path=tiny_model)
    return made


@pytest.fixture
def server():
    with serving(probs=SCORES, key="sk-secret") as behaviour:
        yield behaviour


def judge_on(project, behaviour, recipe=RECIPE, **settings):
    row = JudgeServer.objects.create(
        name="Home", url=behaviour.url, encrypted_key=encrypted("sk-secret", behaviour.url),
        **{"in_own_network": True, "timeout_seconds": 5} | settings,
    )  # fmt: skip
    return judge_version(project, "careful", "tiny", recipe, server=row)[0]


def run_of(project, **settings) -> Run:
    asked = QUICK | {"judge": "careful v1"} | settings
    return create_run(project, kind="ppo", base_model="tiny", recipe_settings=asked, test_share=0.4)


def finished(run) -> Run:
    carry_out(run.pk)
    run.refresh_from_db()
    return run


def test_a_policy_learns_from_a_judge_on_a_server_and_says_so(project, server, client):
    version = judge_on(project, server)
    run = finished(run_of(project))

    assert run.status == Run.Status.SUCCEEDED, run.error
    assert run.judge == version.rater
    assert all("- It names a number." in text and "Score=" in text for text in server.texts)
    assert len(set(server.texts)) == len(server.texts)
    told = run.metrics["judge"]
    assert (told["name"], told["n"], told["unread"]) == ("careful v1", len(server.texts), 0)
    assert told["tokens"] >= server.n_tokens

    comparison = project.comparisons.select_related("prompt", "response_a", "response_b").first()
    [[(_place, outcome)]] = opened(version)([comparison])
    asked = (comparison.prompt.messages, comparison.response_a.messages)
    [[(_place, rating)]] = open_rater(version.rater)([asked])
    assert rating.value == outcome.score_a
    scores = run.steps.filter(split="train").values_list("values", flat=True)
    assert scores[0]["score"] == pytest.approx(0, abs=1e-6)  # scaled: every response had the same

    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    model = run.model_version
    shown = client.get(reverse("training:run", args=["polite", run.pk])).content.decode()
    assert f'{reverse("judges:judge", args=["polite", version.judge_id])}">careful v1' in shown
    words = " ".join(shown.split())
    assert f"{told['n']} responses rated, 0 without a score that can be read" in words
    of_model = client.get(reverse("training:model", args=["polite", model.name]))
    assert "to score higher by careful v1" in " ".join(of_model.content.decode().split())
    nodes = {(node.kind, node.title): node for node in lineage(model).nodes}
    assert nodes["judge", "careful v1"].detail == "AI judge: tiny"
    assert "careful v1: tiny on the server Home" in card_of(model)

    Judge.objects.get(pk=version.judge_id).delete()
    model = ModelVersion.objects.get(pk=model.pk)
    nodes = {(node.kind, node.title): node for node in lineage(model).nodes}
    assert nodes["judge", "careful v1"].detail == "AI judge, deleted"
    assert "careful v1, deleted since" in card_of(model)
    with pytest.raises(CannotRate, match="is gone"):
        open_rater(Rater.objects.get(pk=version.rater_id))


def test_a_judge_that_is_asked_here_is_counted_where_memory_is_foretold(project, server):
    judge_version(project, "near", "tiny", RECIPE)
    judge_on(project, server)
    near, far = (run_of(project, judge=f"{name} v1") for name in ("near", "careful"))
    recipe = recipe_of(near)
    arch = read_architecture(recipe.base_model)

    def terms(run):
        found = foretold("ppo", recipe, arch, device="cpu", judge=run.judge)
        return {term.name: term.bytes for term in found.terms}

    assert "beside" not in terms(far)
    # The base is the judge's model too, and both are loaded; its file is mapped beside it.
    assert terms(near)["beside"] == terms(near)["weights"]
    asked = ppo_memory.Judge(recipe.base_model, "auto", False, 0, lead=0, words=2_000)
    many = replace(recipe, prompts_per_step=64, rollout_batch_size=1, batch_size=1)
    assert ppo_memory.predict(many, arch, device="cpu", judge=asked).moment == "judging"


def test_a_server_that_fails_ends_the_run_in_words_and_it_resumes_without_asking_twice(
    project, server
):
    judge_on(project, server)
    run = run_of(project)
    server.faults.extend([None] * 6 + [status(402)] * 8)
    finished(run)

    assert (run.status, run.cause) == (Run.Status.FAILED, "judge")
    assert "The judge careful v1 cannot be asked: Home wants to be paid first" in run.error
    assert "Resume goes on from the last checkpoint" in run.error
    server.faults.clear()
    failed_at = len(server.texts)
    assert resume_run(run, by=UserFactory())
    finished(run)

    assert run.status == Run.Status.SUCCEEDED, run.error
    assert not set(server.texts[failed_at:]) & set(server.texts[:6])
    assert run.metrics["judge"]["n"] == len(set(server.texts))


@pytest.mark.parametrize(
    ("probs", "chosen", "words"),
    [
        ({"So": 0.9, "8": 0.05}, {}, r"gave no score that can be read to \d of \d responses"),
        (SCORES, {"judge_tokens": 500}, "What the judge careful v1 may be asked for is spent"),
        (SCORES, {"judge_cost": 1.0}, "No price is known for careful v1"),
    ],
)
def test_a_judge_that_is_no_use_ends_the_run_with_the_reason(project, server, probs, chosen, words):
    server.probs = probs
    judge_on(project, server)
    run = finished(run_of(project, **chosen))

    assert (run.status, run.cause) == (Run.Status.FAILED, "judge")
    assert re.search(words, run.error)
    assert server.n_tokens <= chosen.get("judge_tokens", 10**6)


def test_a_run_whose_judge_has_spent_its_limit_goes_on_with_more(project, server, client):
    judge_on(project, server)
    run = finished(run_of(project, judge_tokens=500))
    assert run.cause == "judge"
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    shown = client.get(reverse("training:run", args=["polite", run.pk])).content.decode()
    assert 'name="judge_tokens" min="0" value="500"' in shown
    with pytest.raises(ValueError, match="judge_tokens must not be negative"):
        resume_run(run, by=user, limits={"judge_tokens": "-1"})
    with pytest.raises(ValueError, match="steps: this cannot be changed in a run"):
        resume_run(run, by=user, limits={"steps": 9})

    client.post(reverse("training:resume", args=["polite", run.pk]), {"judge_tokens": "1000000"})
    run.refresh_from_db()
    finished(run)

    assert run.status == Run.Status.SUCCEEDED, run.error
    assert run.recipe["judge_tokens"] == 1_000_000
    assert len(set(server.texts)) == len(server.texts)


def test_a_server_in_our_own_network_is_not_asked_unless_an_administrator_allowed_it(
    project, server
):
    judge_on(project, server, in_own_network=False)
    run = finished(run_of(project))

    assert run.status == Run.Status.FAILED
    assert "leads to an address that is not allowed" in run.error
    assert server.asked == []


def test_a_model_of_the_project_rates_through_the_judges_engine(project):
    recipe = JudgeRecipe(mode="score", min_answer_mass=0.0, score_preamble="")
    judge_version(project, "careful", "tiny", recipe)
    run = finished(run_of(project, algorithm="grpo", steps=1))

    assert run.status == Run.Status.SUCCEEDED, run.error
    assert run.metrics["judge"]["n"] > 0
    assert run.metrics["judge"]["tokens"] == 0  # of a server: there is none


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"judge": "nobody"}, "judge: nobody is no judge of this project that rates"),
        ({"judge": "by pairs v1"}, "judge: by pairs v1 is no judge of this project that rates"),
        ({"judge_model": "tiny"}, "judge_model: name a judge of the project or a model, not both"),
    ],
)
def test_a_judge_that_rates_no_single_response_is_refused(project, chosen, words):
    judge_version(project, "careful", "tiny", JudgeRecipe(mode="score"))
    judge_version(project, "by pairs", "tiny", JudgeRecipe(mode="direct"))
    with pytest.raises(ValueError, match=re.escape(words)):
        run_of(project, **chosen)
