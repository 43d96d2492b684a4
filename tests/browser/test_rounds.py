"""A round on its way in a real browser: its page follows the worker without being loaded again."""

import pytest
from django.test import Client
from playwright.sync_api import Page, expect

from tests.factories import MembershipFactory, UserFactory
from tests.training.projects import labeled_project
from training.models import Round
from training.rounds import RoundSettings, create_round

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def test_the_page_of_a_round_follows_its_worker(page: Page, live_server, storage, axe_findings):
    from tests.training.tiny import save_tiny_model

    tiny = save_tiny_model(storage / "models" / "tiny")
    project = labeled_project(4)
    project.models.create(name="tiny", kind="base", path=str(tiny))
    lea = UserFactory(username="lea")
    MembershipFactory(project=project, user=lea, role="lead")
    client = Client()
    client.force_login(lea)
    session = client.cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": live_server.url}])
    made = create_round(project, RoundSettings(models=("tiny",), n_labels=2))
    loaded = []
    page.on("load", lambda _page: loaded.append(1))
    page.goto(f"{live_server}/projects/{project.slug}/training/rounds/{made.pk}/")
    expect(page.locator("#round-card")).to_contain_text("Waiting for a worker.")
    assert axe_findings(page) == []

    claimed = Round.objects.claim(made.pk)
    claimed.report(n_done=30, n_total=100)
    expect(page.locator("#round-card")).to_contain_text("30 % of the responses", timeout=10_000)
    counts = ("chosen", "candidates", "responses", "prompts", "at_random", "alike", "empty")
    result = dict.fromkeys((*counts, "known", "too_long", "seconds"), 2) | {"floor": 0.05}
    for comparison in project.comparisons.all()[:2]:
        claimed.pairs.create(comparison=comparison, probability=0.5, at_random=True)
    claimed.finish("succeeded", result=result)

    expect(page.locator("#round-card")).to_contain_text("2 of 2 candidates", timeout=10_000)
    page.get_by_role("button", name="Reward model, then PPO").wait_for()
    assert page.locator("#round-card[hx-get]").count() == 0  # it has stopped asking
    assert axe_findings(page) == []
    assert loaded == [1]
