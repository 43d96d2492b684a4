"""The pages of statistics as axe reads them: full and empty, light and dark, and on a phone."""

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from judges.certificates import new_run, set_policy
from judges.tasks import run_routing
from labeling.models import AgreementReport, Leaderboard, Rater
from labeling.tasks import run_agreement, run_leaderboard
from tests.factories import MembershipFactory, ProjectFactory, UserFactory
from tests.judges.test_routing import a_world, label
from training.dataset_settings import DatasetSettings
from training.previews import build

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]
PAGES = (
    "labeling:leaderboard",
    "labeling:agreement",
    "judges:routing",
    "training:datasets",
    "training:new_dataset",
)


@pytest.fixture
def storage(tmp_path, settings):
    settings.PREFLOOP_STORAGE = tmp_path


def a_project(slug: str, lead):
    project = ProjectFactory(slug=slug, audit_share=0.5)
    MembershipFactory(project=project, user=lead, role="lead")
    return project


def sign_in(page: Page, live_server) -> None:
    page.goto(f"{live_server}/accounts/login/?next=/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "login" not in url)


def test_axe_finds_nothing_on_the_pages_of_statistics(
    page: Page, live_server, storage, monkeypatch, axe_findings
):
    monkeypatch.setattr(run_routing, "delay_on_commit", lambda pk: None)
    lead = UserFactory(username="lea")
    project = a_project("kitchen", lead)
    _version, comparisons = a_world(project, n=170)
    label(project, comparisons[:160], lambda i: i % 5 == 0, name="bob")
    set_policy(project, None, alpha=0.2)
    run_routing(new_run(project, "issue").pk)
    run_agreement(AgreementReport.objects.create(project=project).pk)
    run_leaderboard(Leaderboard.objects.create(project=project).pk)
    _preview, dataset = build(project, DatasetSettings(near_duplicates=0), freezing=True)
    a_project("bare", lead)
    paths = {reverse(name, args=["kitchen"]): False for name in PAGES}
    paths |= {reverse(name, args=["bare"]): True for name in PAGES[:4]}
    paths[reverse("training:dataset", args=["kitchen", dataset.sha256])] = False
    sign_in(page, live_server)

    found = {}
    for path, is_empty in paths.items():
        page.goto(f"{live_server}{path}")
        assert (page.locator("main .empty").count() > 0) == is_empty, path
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        for scheme, width in (("dark", 1280), ("light", 390)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(50)  # the resize event comes with the next frame
            found[f"{path}, {scheme}, {width}"] = axe_findings(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert {place: wrong for place, wrong in found.items() if wrong} == {}


def test_figures_follow_the_slider_and_a_certificate_can_be_revoked(
    page: Page, live_server, storage, monkeypatch
):
    monkeypatch.setattr(run_routing, "delay_on_commit", lambda pk: None)
    project = a_project("kitchen", UserFactory(username="lea"))
    version, _comparisons = a_world(project)
    set_policy(project, None, alpha=0.15)
    run_routing(new_run(project, "issue").pk)
    sign_in(page, live_server)
    page.goto(f"{live_server}{reverse('judges:routing', args=['kitchen'])}")
    expect(page.get_by_text("people would say otherwise in at most 15.0 % of them")).to_be_visible()

    slider = page.get_by_label("Errors allowed")
    slider.focus()
    for _step in range(6):
        slider.press("ArrowLeft")

    expect(page.locator("#routing-figures")).not_to_contain_text("at least 85 %")
    page.get_by_label("Why").fill("The judge has got lax.")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("Revoked. What it let stand")).to_be_visible()
    assert project.certificates.get().status == "revoked"
    run_routing(project.routing_runs.get(kind="withdraw").pk)
    assert Rater.objects.get(pk=version.rater_id).preferences.filter(certified=True).count() == 0
