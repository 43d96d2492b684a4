"""Judge runs by program: launched with a selection and limits, paused, shared, resumed, watched."""

import pytest

from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import JudgeRun, JudgeServer, RunWorker, Verdict
from judges.tasks import run_judge
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    bearer,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def woken(monkeypatch) -> list[int]:
    """Runs whose workers were woken: the network begins there."""
    sent: list[int] = []
    monkeypatch.setattr(run_judge, "delay_on_commit", sent.append)
    return sent


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen")


@pytest.fixture
def call(client, project):
    """POST or GET under the project's judge runs, as its lead."""
    headers = bearer(MembershipFactory(project=project).user)

    def call(path: str = "", given: dict | None = None, method: str = "post"):
        send = getattr(client, method)
        options = {"content_type": "application/json", "data": given or {}}
        options = options if method == "post" else {}
        return send(f"/api/projects/kitchen/judge-runs/{path}", headers=headers, **options)

    return call


def test_a_run_is_launched_with_a_selection_limits_and_workers(call, project, woken):
    version, _made = judge_version(project, "careful", "owner/model", JudgeRecipe())
    ComparisonFactory.create_batch(2, project=project)
    for choice in ("a", "b"):
        PreferenceFactory(comparison=project.comparisons.first(), choice=choice)

    nothing = call(given={"version": version.pk, "select": "audit"})
    priced = call(given={"version": version.pk, "most_cost": 1})
    wanted = {"version": version.pk, "select": "disputed", "most_tokens": 5000, "workers": 2}
    launched = call(given=wanted)

    assert nothing.status_code == priced.status_code == 409
    assert "No price is known" in priced.json()["detail"]
    assert launched.status_code == 202
    run = launched.json()
    assert {name: run[name] for name in ("select", "most_tokens", "workers", "n_total")} == {
        "select": "disputed",
        "most_tokens": 5000,
        "workers": 2,
        "n_total": 1,
    }
    assert woken == [run["id"]] * 2


def test_a_run_is_paused_shared_and_resumed_with_another_limit(call, project, woken):
    version, _made = judge_version(project, "careful", "owner/model", JudgeRecipe())
    ComparisonFactory(project=project)
    run = call(given={"version": version.pk, "most_tokens": 10}).json()["id"]

    paused = call(f"{run}/pause/")
    refused = call(f"{run}/worker/")
    resumed = call(f"{run}/resume/", {"most_tokens": 10_000})
    shared = call(f"{run}/worker/")

    assert (paused.status_code, paused.json()["status"]) == (200, "paused")
    assert refused.status_code == 409
    assert (resumed.status_code, resumed.json()["most_tokens"]) == (202, 10_000)
    assert (shared.status_code, shared.json()["workers"]) == (202, 2)
    assert woken == [run] * 3


def test_one_run_tells_its_progress(call, project, woken):
    version, _made = judge_version(project, "careful", "owner/model", JudgeRecipe())
    run = JudgeRun.objects.create(version=version, status="running", n_done=4, n_total=10)
    RunWorker.objects.create(run=run, name="host:7:120000", n_judged=4)
    for _comparison in range(4):  # names the first place in both orders
        Verdict.objects.create(
            **dict.fromkeys(("logp_ab_first", "logp_ba_first"), -0.1),
            **dict.fromkeys(("logp_ab_second", "logp_ba_second"), -3.0),
            **dict.fromkeys(("answer_mass_ab", "answer_mass_ba"), 0.9),
            version=version,
            run=run,
            comparison=ComparisonFactory(project=project),
            prob_a=0.5,
            parsed=True,
            n_tokens=100,
            cost=0.25,
            seconds=1.0,
        )

    progress = call(f"{run.pk}/", method="get").json()["progress"]

    assert (progress["questions"], progress["tokens"], progress["cost"]) == (4, 400, 1.0)
    assert progress["first_place_share"] == 1.0
    assert progress["position_bias_p"] == pytest.approx(2 * 0.5**4)
    assert (progress["unparsed_low"], progress["unparsed_share"]) == (0.0, 0.0)
    assert progress["unparsed_high"] == pytest.approx(0.6024, abs=1e-4)  # Clopper-Pearson, 0 of 4
    (worker,) = progress["workers"]
    assert (worker["name"], worker["judged"], worker["loading"]) == ("host:7", 4, True)


def make(client, project, given):
    headers = bearer(MembershipFactory(project=project).user)
    path = f"/api/projects/{project.slug}/judges/"
    return client.post(path, given, content_type="application/json", headers=headers)


def test_a_judge_and_its_next_version_are_made_by_program(client, project):
    given = {"name": "careful", "model": "owner/model", "recipe": {"mode": "direct"}}

    made = make(client, project, given)
    again = make(client, project, given)
    changed = make(client, project, given | {"recipe": {"principles": ["Be brief."]}})

    assert [made.status_code, again.status_code, changed.status_code] == [201, 200, 201]
    judge = project.judges.get()
    assert [v["number"] for v in changed.json()["versions"]] == [2, 1]
    assert judge.versions.get(number=1).recipe["mode"] == "direct"
    assert judge.versions.get(number=2).recipe["principles"] == ["Be brief."]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": ""}, "Name the model"),
        ({"model": "/etc"}, "Only an administrator names a path"),
        ({"recipe": {"colour": "blue"}}, "has no colour"),
        ({"recipe": {"mode": "guess"}}, "mode"),
        ({"recipe": {"max_rationale_tokens": "many"}}, "none of its kind"),
        ({"recipe": {"n_samples": 10**6}}, "n_samples: "),
        ({"recipe": {"mode": "jury", "members": [2**70, 1]}}, "9223372036854775807"),
        ({"recipe": {"principles": [1]}}, "are texts"),
        ({"recipe": {"exemplars": [{}]}}, "beside the recipe"),
        ({"exemplars": [2**62]}, "with a reference answer: 4611686018427387904"),
        ({"recipe": {"mode": "reward"}, "server": "Home"}, "runs in a worker of ours"),
        ({"server": "nowhere"}, "nowhere"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_with_the_reason(client, project, wrong, said):
    JudgeServer.objects.create(name="Home", url="http://127.0.0.1:9/v1")
    response = make(client, project, {"name": "careful", "model": "owner/model"} | wrong)
    assert response.status_code == 400
    assert said in response.content.decode()
    assert not project.judges.exists()


def test_a_jury_sits_with_judges_of_its_own_project_alone(client, project):
    recipe = JudgeRecipe()
    own = [judge_version(project, name, "owner/model", recipe)[0].pk for name in ("a", "b")]
    foreign = judge_version(ProjectFactory(), "c", "owner/model", recipe)[0].pk

    def jury(*members):
        given = {"name": "j", "recipe": {"mode": "jury", "members": members}}
        return make(client, project, given)

    refused = jury(own[0], foreign)
    made = jury(*own)
    sitting = project.judges.get(name="j").versions.get().pk

    assert refused.status_code == 400
    assert made.status_code == 201
    assert "or a jury itself" in jury(own[0], sitting).content.decode()


def test_exemplars_are_gold_comparisons_by_their_numbers_as_on_the_page(client, project):
    for_a, for_b, tied = (
        ComparisonFactory(project=project, gold=gold) for gold in ("a", "b", "tie")
    )
    foreign = ComparisonFactory(gold="a")
    given = {"name": "careful", "model": "owner/model"}

    made = make(client, project, given | {"exemplars": [for_a.pk, for_b.pk]})
    ties = make(client, project, given | {"exemplars": [tied.pk], "recipe": {"ties": True}})

    assert [made.status_code, ties.status_code] == [201, 201]
    recipes = [version.recipe for version in project.judges.get().versions.order_by("number")]
    one, two = recipes[0]["exemplars"]
    assert (one["first"], one["answer"]) == (for_a.response_a.messages, "1")
    assert (two["second"], two["answer"]) == (for_b.response_b.messages, "2")
    assert [shown["answer"] for shown in recipes[1]["exemplars"]] == ["tie"]
    for wrong in (tied.pk, foreign.pk):
        refused = make(client, project, given | {"exemplars": [wrong]})
        assert refused.status_code == 400
        assert f"with a reference answer: {wrong}" in refused.content.decode()
