"""A lead in a real browser: filters that stay in the address, decisions by keyboard."""

import pytest
from playwright.sync_api import Page, expect

from labeling.models import Decision
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


def sign_in(page: Page, address: str) -> None:
    page.goto(f"{address}/accounts/login/")
    page.get_by_label("User name").fill("lea")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")


def test_a_lead_filters_and_decides_by_keyboard(page: Page, live_server):
    project = ProjectFactory(slug="browser")
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    raters = RaterFactory.create_batch(2, project=project)
    disputed = ComparisonFactory.create_batch(2, project=project)
    ComparisonFactory(project=project)
    for comparison in disputed:
        for rater, choice in zip(raters, "ab", strict=True):
            PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
    sign_in(page, live_server.url)
    address = f"{live_server.url}/projects/browser/comparisons/"

    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("3 comparisons")
    page.get_by_label("Disagreement").select_option("people")
    expect(page.get_by_role("status")).to_have_text("2 comparisons")
    page.wait_for_url(f"{address}?disagreement=people")
    page.get_by_label("Decision").select_option("no")
    page.wait_for_url(f"{address}?disagreement=people&decision=no")
    page.get_by_label("Tick all on this page").check()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)

    page.get_by_role("link", name=str(disputed[0])).click()
    page.wait_for_timeout(300)  # the guard against a double press
    page.keyboard.press("r")
    page.keyboard.type("7 is a word here")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_url(f"{address}{disputed[1].pk}/?disagreement=people&decision=no")
    page.wait_for_timeout(300)
    page.keyboard.press("x")
    page.wait_for_url(f"{address}?disagreement=people&decision=no")

    decided = Decision.objects.order_by("pk").values_list("choice", "strength", "note")
    assert list(decided) == [("a", 2, "7 is a word here"), ("both_bad", None, "")]


def test_words_are_sought_while_typing_and_by_enter_without_an_error(page: Page, live_server):
    project = ProjectFactory(slug="browser")
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    ComparisonFactory.create_batch(2, project=project)
    ComparisonFactory(project=project, external_id="needle")
    errors: list[str] = []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/comparisons/")
    for words in ("need", "needle"):
        page.get_by_label("Words").fill(words)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{live_server.url}/projects/browser/comparisons/?text={words}")
    expect(page.get_by_role("status")).to_have_text("1 comparison")
    assert errors == []


def test_on_a_phone_the_pages_of_a_project_are_a_menu(page: Page, live_server):
    project = ProjectFactory(slug="browser", name="Kitchen talk")
    MembershipFactory(project=project, user=UserFactory(username="lea"), role="lead")
    page.set_viewport_size({"width": 390, "height": 844})
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/")
    expect(page.get_by_role("link", name="Agreement")).to_have_count(0)
    page.locator(".tabs-menu summary").click()
    links = page.get_by_role("navigation", name="Project").get_by_role("link")
    assert links.count() == 12
    for box in (link.bounding_box() for link in links.all()):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.get_by_role("link", name="Agreement").click()
    page.wait_for_url(f"{live_server.url}/projects/browser/agreement/")
