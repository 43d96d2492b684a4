"""The pages of judges: who may see and do what, with and without JavaScript."""

import shutil

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from judges.judging import judge_version
from judges.ml.config import Exemplar, JudgeRecipe
from judges.models import Judge, JudgeRun, JudgeTrial, JudgeVersion, Verdict
from judges.runs import new_run
from judges.tasks import run_judge, try_judge
from labeling.models import Membership
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

HTMX = {"HTTP_HX_REQUEST": "true"}


@pytest.fixture
def queued(monkeypatch) -> list[tuple[str, int]]:
    """What would have been sent to a worker: the network begins there."""
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(run_judge, "delay_on_commit", lambda pk: sent.append(("run", pk)))
    monkeypatch.setattr(try_judge, "delay_on_commit", lambda pk: sent.append(("trial", pk)))
    return sent


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", guidelines="Prefer what is correct.")


@pytest.fixture
def lead(client, project):
    user = MembershipFactory(project=project, role=Membership.Role.LEAD).user
    client.force_login(user)
    return client


def careful(project) -> JudgeVersion:
    version, _made = judge_version(project, "careful", "owner/model", JudgeRecipe())
    return version


def verdict(version: JudgeVersion, run: JudgeRun | None = None, **values) -> Verdict:
    said = {
        "logp_ab_first": -0.1,
        "logp_ab_second": -3,
        "logp_ba_first": -3,
        "logp_ba_second": -0.1,
        "prob_a": 0.9,
        "answer_mass_ab": 0.95,
        "answer_mass_ba": 0.95,
        "parsed": True,
        "n_tokens": 100,
        "seconds": 0.5,
    }
    comparison = ComparisonFactory(project=version.judge.project)
    return Verdict.objects.create(
        version=version, run=run, comparison=comparison, **(said | values)
    )


def form_values(**changes) -> dict:
    values = {
        "name": "careful",
        "model": "owner/model",
        "mode": "rationale",
        "preamble": "Be fair.",
        "exemplars": "",
        "rationale_request": "Which is better?",
        "max_rationale_tokens": 32,
        "ending": "Preferred Response=",
        "min_answer_mass": 0.5,
        "max_context": 0,
        "chat": "auto",
        "dtype": "auto",
    }
    return values | changes


def routes(project, version, run, trial) -> dict[str, tuple[str, str]]:
    """Route: (method, role it needs)."""
    slug, judge = project.slug, version.judge_id
    return {
        reverse("judges:list", args=[slug]): ("get", "view"),
        reverse("judges:judge", args=[slug, judge]): ("get", "view"),
        reverse("judges:run", args=[slug, run.pk]): ("get", "view"),
        reverse("judges:trial", args=[slug, trial.pk]): ("get", "view"),
        reverse("judges:prompts", args=[slug]): ("get", "view"),
        reverse("judges:prompt", args=[slug, version.prompt_id]): ("get", "view"),
        reverse("judges:create", args=[slug]): ("get", "lead"),
        reverse("judges:edit", args=[slug, judge]): ("get", "lead"),
        reverse("judges:launch", args=[slug, judge]): ("post", "lead"),
        reverse("judges:try", args=[slug, judge]): ("post", "lead"),
        reverse("judges:cancel", args=[slug, run.pk]): ("post", "lead"),
        reverse("judges:pause", args=[slug, run.pk]): ("post", "lead"),
        reverse("judges:worker", args=[slug, run.pk]): ("post", "lead"),
        reverse("judges:resume", args=[slug, run.pk]): ("post", "lead"),
    }


@pytest.mark.parametrize(
    ("role", "sees", "leads"),
    [
        (None, 404, 404),
        ("rater", 403, 403),
        ("viewer", 200, 403),
        ("lead", 200, (200, 302)),
        ("owner", 200, (200, 302)),
    ],
)
def test_every_route_asks_for_its_role(client, project, queued, role, sees, leads):
    version = careful(project)
    comparison = ComparisonFactory(project=project)
    run = new_run(version)
    trial = JudgeTrial.objects.create(version=version, comparison=comparison)
    user = UserFactory()
    if role:
        MembershipFactory(project=project, user=user, role=role)

    for route, (method, needs) in routes(project, version, run, trial).items():
        client.logout()
        assert getattr(client, method)(route).url.startswith("/accounts/login/"), route
        client.force_login(user)
        status = getattr(client, method)(route).status_code
        expected = sees if needs == "view" else leads
        assert status in (expected if isinstance(expected, tuple) else (expected,)), route


def test_nothing_of_another_project_is_found_through_ones_own(lead, project, queued):
    other = careful(ProjectFactory())
    run = new_run(other)
    trial = JudgeTrial.objects.create(
        version=other, comparison=ComparisonFactory(project=other.judge.project)
    )

    for route, (method, _role) in routes(project, other, run, trial).items():
        if route.endswith(("/judges/new/", "/judges/", "/judges/prompts/")):
            continue
        assert getattr(lead, method)(route).status_code == 404, route


def test_a_lead_makes_a_judge_by_the_projects_guidelines(lead, project):
    route = reverse("judges:create", args=[project.slug])
    assert "Prefer what is correct." in lead.get(route).content.decode()

    response = lead.post(route, form_values(max_rationale_tokens=7, load_in_4bit="on"))

    version = JudgeVersion.objects.get()
    assert response.url == reverse("judges:judge", args=[project.slug, version.judge_id])
    assert (version.number, version.model, version.rater.name) == (1, "owner/model", "careful v1")
    assert version.recipe["preamble"] == "Be fair."
    assert version.recipe["max_rationale_tokens"] == 7
    assert version.recipe["load_in_4bit"] is True
    ComparisonFactory(project=project)
    assert (
        "Which is better?\nRationale: …\nPreferred Response="
        in lead.get(response.url).content.decode()
    )


def test_two_judges_of_a_project_have_two_names(lead, project):
    careful(project)

    response = lead.post(reverse("judges:create", args=[project.slug]), form_values())

    assert response.status_code == 422
    assert "The project has a judge of this name." in response.content.decode()
    assert JudgeVersion.objects.count() == 1


def test_a_change_is_a_new_version_and_no_change_is_none(lead, project):
    lead.post(reverse("judges:create", args=[project.slug]), form_values())
    judge = Judge.objects.get()
    route = reverse("judges:edit", args=[project.slug, judge.pk])

    lead.post(route, form_values())
    assert judge.versions.count() == 1
    response = lead.post(route, form_values(preamble="Be strict.\r\nVery."), follow=True)

    assert list(judge.versions.values_list("number", flat=True)) == [2, 1]
    assert judge.versions.first().recipe["preamble"] == "Be strict.\nVery."
    assert judge.versions.first().rater.name == "careful v2"
    assert "This is version 2 now" in response.content.decode()


def test_exemplars_come_from_comparisons_with_a_reference_answer(lead, project):
    for_a = ComparisonFactory(project=project, gold="a")
    for_b = ComparisonFactory(project=project, gold="b")
    without = ComparisonFactory(project=project)
    route = reverse("judges:create", args=[project.slug])

    refused = lead.post(route, form_values(exemplars=f"{for_a.pk}, {without.pk}"))
    lead.post(route, form_values(exemplars=f"{for_a.pk}, {for_b.pk}"))

    assert f"with a reference answer: {without.pk}." in refused.content.decode()
    one, two = JudgeVersion.objects.get().recipe["exemplars"]
    assert (one["first"], one["answer"]) == (for_a.response_a.messages, "1")
    # The better response of every other exemplar stands second: no place is the right one.
    assert (two["second"], two["answer"]) == (for_b.response_b.messages, "2")
    edit = reverse("judges:edit", args=[project.slug, Judge.objects.get().pk])
    lead.post(edit, form_values(keep_exemplars="on", preamble="New."))
    assert len(JudgeVersion.objects.first().recipe["exemplars"]) == 2
    lead.post(edit, form_values(preamble="New."))
    assert len(JudgeVersion.objects.first().recipe["exemplars"]) == 0


def test_a_launched_run_waits_for_a_worker_and_only_once(lead, project, queued):
    version = careful(project)
    ComparisonFactory.create_batch(3, project=project)
    route = reverse("judges:launch", args=[project.slug, version.judge_id])

    first = lead.post(route, {"version": version.pk, "limit": 2})
    second = lead.post(route, {"version": version.pk})

    run = JudgeRun.objects.get()
    assert (run.limit, run.n_total, run.status) == (2, 2, "queued")
    assert first.url == second.url == reverse("judges:run", args=[project.slug, run.pk])
    assert queued == [("run", run.pk)]


def test_a_judge_that_has_judged_everything_is_not_launched(lead, project, queued):
    version = careful(project)
    verdict(version)

    response = lead.post(
        reverse("judges:launch", args=[project.slug, version.judge_id]),
        {"version": version.pk},
        follow=True,
    )

    assert "has nothing left to judge" in response.content.decode()
    assert not JudgeRun.objects.exists()
    assert queued == []


def test_the_card_of_a_run_polls_until_the_run_ends(lead, project, queued):
    version = careful(project)
    ComparisonFactory(project=project)
    run = new_run(version)
    route = reverse("judges:run", args=[project.slug, run.pk])

    waiting = lead.get(route, **HTMX).content.decode()
    page = lead.get(route).content.decode()
    JudgeRun.objects.filter(pk=run.pk).update(status="succeeded")
    ended = lead.get(route, **HTMX).content.decode()

    assert "<html" not in waiting
    assert waiting.count('hx-trigger="every 2s"') == 1
    assert '<noscript><meta http-equiv="refresh"' in page
    assert "hx-trigger" not in ended
    assert "refresh" not in lead.get(route).content.decode()


def test_the_card_shows_figures_with_their_n_and_interval(lead, project):
    version = careful(project)
    run = new_run(version)
    for _ in range(3):
        verdict(version, run)
    verdict(version, run, logp_ba_first=-0.1, logp_ba_second=-3, prob_a=0.5)
    verdict(version, run, parsed=False)

    card = lead.get(reverse("judges:run", args=[project.slug, run.pk]), **HTMX).content.decode()

    # 3 of 4 parsed verdicts: Clopper-Pearson 19.4–99.4 %.
    assert "75.0 %" in card
    assert "19.4–99.4 %, n = 4" in card
    assert "20.0 %" in card
    assert "1 named the first place twice and 0 the second" in card
    assert "unparsed</span>" in card


def test_stop_and_go_on_by_form_and_by_htmx(lead, project, queued):
    version = careful(project)
    ComparisonFactory(project=project)
    run = new_run(version)
    cancel = reverse("judges:cancel", args=[project.slug, run.pk])
    resume = reverse("judges:resume", args=[project.slug, run.pk])
    pause = reverse("judges:pause", args=[project.slug, run.pk])

    stopped = lead.post(cancel, **HTMX).content.decode()
    assert "cancelled" in stopped
    assert "<html" not in stopped
    assert lead.post(resume).url == reverse("judges:run", args=[project.slug, run.pk])
    run.refresh_from_db()
    assert run.status == "queued"
    assert queued == [("run", run.pk)]
    JudgeRun.objects.filter(pk=run.pk).update(status="running")
    assert "It pauses after the batch in hand" in lead.post(pause, **HTMX).content.decode()
    run.refresh_from_db()
    assert (run.status, run.pause_requested) == ("running", True)
    assert ">cancelled</span>" in lead.post(cancel, **HTMX).content.decode()


def test_a_stopped_run_does_not_go_on_beside_another(lead, project, queued):
    version = careful(project)
    ComparisonFactory(project=project)
    stopped = new_run(version)
    stopped.request_cancel()
    new_run(version)

    card = lead.post(reverse("judges:resume", args=[project.slug, stopped.pk]), **HTMX)

    assert "is at work already" in card.content.decode()
    stopped.refresh_from_db()
    assert stopped.status == "cancelled"
    assert queued == []


def test_a_judge_is_tried_by_a_worker_and_the_page_shows_all_it_read(
    lead, project, queued, tiny_judge
):
    comparison = ComparisonFactory(project=project)
    recipe = JudgeRecipe(max_rationale_tokens=8, min_answer_mass=0)
    version, _ = judge_version(project, "tiny", str(tiny_judge), recipe)
    route = reverse("judges:try", args=[project.slug, version.judge_id])

    response = lead.post(route, {"version": version.pk, "comparison": comparison.pk})
    trial = JudgeTrial.objects.get()
    waiting = lead.get(response.url, **HTMX).content.decode()
    try_judge(trial.pk)
    done = lead.get(response.url, **HTMX).content.decode()

    assert queued == [("trial", trial.pk)]
    assert 'hx-trigger="every 1s"' in waiting
    assert "hx-trigger" not in done
    trial.refresh_from_db()
    assert f"{trial.result['prob_a']:.3f}" in done
    for question in trial.result["questions"]:
        assert f"{question['mass']:.4f}" in done
        assert f"{question['answers'][0]['prob']:.4f}" in done
    assert done.count("=== RESPONSE 1 ===") == 2
    assert "Preferred Response=" in done


def test_a_trial_of_a_missing_comparison_or_model_says_so(lead, project, queued):
    version, _ = judge_version(project, "gone", "/no/such/model", JudgeRecipe())
    route = reverse("judges:try", args=[project.slug, version.judge_id])

    empty = lead.post(route, {"version": version.pk}, follow=True)
    assert "The project has no comparisons yet." in empty.content.decode()
    ComparisonFactory(project=project)
    wrong = lead.post(route, {"version": version.pk, "comparison": 10**6}, follow=True)
    assert "no comparison number 1000000" in wrong.content.decode()
    lead.post(route, {"version": version.pk})
    trial = JudgeTrial.objects.get()
    with pytest.raises(Exception, match="no model folder"):
        try_judge(trial.pk)
    page = lead.get(reverse("judges:trial", args=[project.slug, trial.pk])).content.decode()
    assert "there is no model folder /no/such/model" in page


def test_what_a_response_or_a_judge_wrote_is_never_markup(lead, project):
    version = careful(project)
    run = new_run(version)
    verdict(version, run, rationale_ab="<script>alert(1)</script>")

    card = lead.get(reverse("judges:run", args=[project.slug, run.pk])).content.decode()

    assert "<script>alert(1)" not in card
    assert "&lt;script&gt;alert(1)" in card


@pytest.mark.parametrize("route", ["judges:list", "judges:judge"])
def test_a_list_costs_the_same_queries_at_one_and_at_three(lead, project, route):
    version = careful(project)

    def show() -> int:
        arguments = [project.slug] + ([version.judge_id] if route == "judges:judge" else [])
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page = lead.get(reverse(route, args=arguments))
        assert page.status_code == 200
        return len(queries)

    run = new_run(version)
    verdict(version, run)
    run.request_cancel()
    at_one = show()
    for n in range(2):
        more, _ = judge_version(project, "careful", f"owner/model-{n}", JudgeRecipe())
        other, _ = judge_version(project, f"judge-{n}", "owner/model", JudgeRecipe())
        for made in (more, other):
            run = new_run(made)
            verdict(made, run)
            run.request_cancel()

    assert show() == at_one


def test_the_form_offers_the_language_models_kept_here(lead, project, storage, tiny_judge):
    shutil.copytree(tiny_judge, storage / "models" / "demo" / "judge")
    (storage / "models" / "broken").mkdir()
    (storage / "models" / "broken" / "config.json").write_text("{")

    page = lead.get(reverse("judges:create", args=[project.slug])).content.decode()

    assert '<option value="demo/judge">' in page
    assert "broken" not in page


def test_pages_say_how_many_comparisons_are_left_out_as_exemplars(lead, project):
    shown, _other = ComparisonFactory.create_batch(2, project=project)
    exemplar = Exemplar(
        prompt=shown.prompt.messages,
        first=shown.response_a.messages,
        second=shown.response_b.messages,
        answer="1",
    )
    version, _made = judge_version(
        project, "careful", "owner/model", JudgeRecipe(exemplars=(exemplar,))
    )

    judge = lead.get(reverse("judges:judge", args=[project.slug, version.judge_id]))
    run = lead.get(reverse("judges:run", args=[project.slug, new_run(version).pk]))

    assert "1 of 2 comparisons have no verdict" in judge.content.decode()
    assert "Left out: 1 that it is shown as exemplar, with the answer" in judge.content.decode()
    assert "Left out: 1 comparison that the judge is shown" in run.content.decode()
