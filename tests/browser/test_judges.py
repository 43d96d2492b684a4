"""Every page about judges, light and dark, as axe reads them."""

import pytest
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page

from judges.certificates import new_run
from judges.choosing import choose
from judges.drift import keep_probe, new_check
from judges.ml.config import recipe_from
from judges.models import (
    Certificate,
    CertificateStage,
    DriftCheck,
    JudgeRun,
    JudgeServer,
    JudgeTrial,
    RunWorker,
    Verdict,
)
from judges.prompts import prompt_of
from judges.servers import carry_out_server_trial
from judges.tasks import run_routing
from tests.factories import MembershipFactory, ProjectFactory, UserFactory
from tests.judges.loopback import serving
from tests.judges.test_laboratory_pages import computed, labeled_and_judged

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def pages(monkeypatch) -> dict[str, str]:
    """{what it is: its address}: judges at work, chosen, drifted, tried, and a server."""
    monkeypatch.setattr("judges.tasks.run_judge.delay_on_commit", lambda _pk: None)
    project = ProjectFactory(slug="kitchen")
    user = UserFactory(username="lea", is_superuser=True, is_staff=True)
    MembershipFactory(project=project, user=user, role="lead")
    sure, modest = labeled_and_judged(project, n=30, names=("sure", "modest"))
    prompt, _made = prompt_of(project, recipe_from(sure.recipe), "sure", user)
    run = JudgeRun.objects.create(
        version=sure, status="paused", n_done=30, n_total=90, most_tokens=9000,
        error="Paused before its limit of 9,000 tokens.", result={},
    )  # fmt: skip
    RunWorker.objects.create(
        run=run, name="host:7:120000", n_judged=30, problem="Home limits the rate (429).",
        left_at=timezone.now(),
        troubles={"out_of_memory": 2, "rate_limited": 3, "retried": 1, "bounded": 4},
    )  # fmt: skip
    Verdict.objects.filter(version=sure).update(run=run)
    at_work = JudgeRun.objects.create(version=modest, status="running", n_done=3, n_total=30)
    RunWorker.objects.create(run=at_work, name="host:8:120000", n_judged=3)
    trial = JudgeTrial.objects.create(
        version=sure, comparison=project.comparisons.first(), status="failed", error="It is gone."
    )
    experiment = computed(project, [sure, modest])
    choose(sure, user=user, experiment=experiment)
    check = new_check(keep_probe(sure))
    run_routing(new_run(project, "count").pk)
    certificate = Certificate.objects.create(
        project=project, number=1, status="active", alpha=0.1, delta=0.1, level=0.06, starts=1,
        n_labels=30, n_comparisons=30, n_decided=9, last_comparison=30, last_preference=0,
        guidelines_hash="", sources=[], looked_to=30, audited_to=0, audit_n=5, audit_errors=1,
    )  # fmt: skip
    CertificateStage.objects.create(
        certificate=certificate, position=0, version=sure, threshold=0.9, n=40, errors=1,
        bound=0.09, n_decided=9, steps=[],
    )  # fmt: skip
    moved = {"comparison": project.comparisons.first().pk, "before": 0.9, "after": 0.1}
    result = {"n": 30, "n_moved": 12, "n_turned": 4, "p_value": 1e-9, "drifted": True,
              "mean_shift": 0.3, "moved": [moved]}  # fmt: skip
    DriftCheck.objects.filter(pk=check.pk).update(status="succeeded", result=result)
    with serving(probs={" yes": 0.75, " no": 0.2, "I": 0.05}) as told:
        server = JudgeServer.objects.create(
            name="Home", url=told.url, in_own_network=True, price_read=1.0, price_written=2.0,
            trial={"waits": True, "model": "tiny"},
        )  # fmt: skip
        carry_out_server_trial(server)
    kitchen = {
        "list": [],
        "create": [],
        "judge": [sure.judge_id],
        "edit": [sure.judge_id],
        "trial": [trial.pk],
        "run": [run.pk],
        "laboratory": [],
        "experiment": [experiment.pk],
        "check": [check.pk],
        "routing": [],
        "prompts": [],
        "prompt": [prompt.pk],
    }
    servers = {"servers": [], "allow_server": [], "server": [server.pk]}
    servers["change_server"] = [server.pk]
    found = {
        name: reverse(f"judges:{name}", args=["kitchen", *keys]) for name, keys in kitchen.items()
    }
    found |= {name: reverse(f"judges:{name}", args=keys) for name, keys in servers.items()}
    return found | {"run at work": reverse("judges:run", args=["kitchen", at_work.pk])}


def test_axe_finds_nothing_on_the_pages_of_judges(page: Page, live_server, pages, axe_findings):
    page.goto(f"{live_server}/accounts/login/?next=/projects/kitchen/judges/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{live_server}/projects/kitchen/judges/")

    found, seen = {}, set()
    for name, path in pages.items():
        page.goto(f"{live_server}{path}")
        seen.add(page.locator("h1").inner_text())
        page.evaluate(
            "for (const one of document.querySelectorAll('main details')) one.open = true"
        )
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found[f"{name}, {scheme}"] = axe_findings(page)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}
    assert len(seen) >= 15  # each is the page that it was taken for
