"""A lead opens the agreement page of a project without figures and sees them come by themselves."""

import pytest
from playwright.sync_api import Page, expect

from labeling.models import AgreementReport
from labeling.tasks import run_agreement
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def test_the_first_visit_wakes_a_worker_and_its_figures_replace_the_wait(
    page: Page, live_server, monkeypatch
):
    woken = []
    monkeypatch.setattr("labeling.tasks.run_agreement.delay_on_commit", woken.append)
    project = ProjectFactory(slug="tea")
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    ann, bob = (RaterFactory(project=project, name=name) for name in ("ann", "bob"))
    for choices in ("aa", "bb", "ab", "bb"):
        comparison = ComparisonFactory(project=project)
        for rater, choice in zip((ann, bob), choices, strict=True):
            PreferenceFactory(comparison=comparison, rater=rater, choice=choice)

    page.goto(f"{live_server}/accounts/login/?next=/projects/tea/agreement/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")

    expect(page.locator("#status")).to_contain_text("Waiting for a worker.")
    report = AgreementReport.objects.get()
    assert woken == [report.pk]
    run_agreement(report.pk)

    expect(page.get_by_text("give the same answer in 75 % of cases")).to_be_visible(timeout=15_000)
    expect(page.get_by_role("button", name="Recompute")).to_be_visible()
    assert woken == [report.pk]  # the page that came back sent nobody
