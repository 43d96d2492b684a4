"""A person labels in a real browser: by keyboard alone, and with JavaScript switched off."""

import re

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import Page, expect

from labeling.models import Comparison, Preference
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    PromptFactory,
    ResponseFactory,
    UserFactory,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def project():
    project = ProjectFactory(slug="browser", guidelines="**Correct** beats pleasant.")
    user = UserFactory(username="ann")
    MembershipFactory(project=project, user=user, role="rater")
    for n in range(8):
        prompt = PromptFactory(project=project, messages=[{"role": "user", "content": f"Why {n}?"}])
        a, b = (
            ResponseFactory(
                prompt=prompt,
                source="secret-model",
                messages=[{"role": "assistant", "content": f"Because {letter}{n}. " * 60}],
            )
            for letter in "AB"
        )
        ComparisonFactory(project=project, prompt=prompt, response_a=a, response_b=b)
    return project


def sign_in(page: Page, address: str) -> None:
    page.goto(f"{address}/accounts/login/")
    page.get_by_label("User name").fill("ann")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")


def press(page: Page, key: str) -> None:
    """Press a key as a reader would: after the guard, and wait for the next pair."""
    before = page.locator(".desk-vote [name=comparison]").input_value()
    page.wait_for_timeout(300)
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.querySelector('.desk-vote [name=comparison]')?.value !== before",
        arg=before,
    )


def test_five_comparisons_by_keyboard_alone_one_undone(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    expect(page.locator("[data-progress]")).to_have_text("0 of 8 labels in the project")
    assert "secret-model" not in page.content()
    last = None
    for key in ["1", "7", "4", "x", "2"]:
        last = page.locator(".desk-vote [name=comparison]").input_value()
        left = page.locator(".desk-vote .step-1").get_attribute("value")
        press(page, key)
    expect(page.locator("[data-progress]")).to_have_text("5 of 8 labels in the project")
    expect(page.locator(".desk-bar strong")).to_have_text("5")

    press(page, "z")
    assert page.locator(".desk-vote [name=comparison]").input_value() == last
    expect(page.locator("[data-progress]")).to_have_text("4 of 8 labels in the project")
    expect(page.locator(".earlier")).to_have_text("You took back: left, clearly better.")
    # The sides stay where they were: the same button still names the same response.
    assert page.locator(".desk-vote .step-1").get_attribute("value") == left

    page.keyboard.press("r")
    page.keyboard.type("1 and 7 are typed here, not pressed")
    page.keyboard.press("Escape")
    press(page, "6")
    expect(page.locator("[data-progress]")).to_have_text("5 of 8 labels in the project")
    answer = Preference.objects.current().get(comparison=last)
    right = "b" if answer.shown_first == "a" else "a"
    assert (answer.choice, answer.strength) == (right, 2)
    assert answer.rationale == "1 and 7 are typed here, not pressed"
    assert 0.2 < answer.seconds < 60
    assert sorted(Preference.objects.current().values_list("choice", flat=True)).count("tie") == 1
    assert Preference.objects.count() == 6


def test_a_double_press_does_not_vote_on_an_unread_pair(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.wait_for_timeout(300)
    shown = page.locator(".desk-vote [name=comparison]").input_value()
    page.keyboard.press("1")
    page.wait_for_function(
        "shown => document.querySelector('.desk-vote [name=comparison]').value !== shown", arg=shown
    )
    page.keyboard.press("1")
    page.wait_for_timeout(400)
    assert Preference.objects.count() == 1


def test_an_answer_that_cannot_be_sent_stays_in_the_page(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.keyboard.press("r")
    page.keyboard.type("my reason")
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    page.context.set_offline(True)
    page.keyboard.press("1")
    expect(page.locator("#notice")).to_contain_text("your answer was not kept")
    expect(page.locator("#reason")).to_have_value("my reason")
    page.troubles.clear()  # the browser itself reports the lost connection
    page.context.set_offline(False)
    press(page, "1")
    assert Preference.objects.get().rationale == "my reason"


def test_an_answer_survives_a_session_that_ended(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.get_by_label("Reason, optional").fill("worth keeping")
    page.keyboard.press("Escape")
    Session.objects.all().delete()
    page.wait_for_timeout(300)
    page.keyboard.press("7")
    expect(page.locator("#notice")).to_contain_text("your answer was not kept")
    page.troubles.clear()  # the browser itself reports the 403
    with page.expect_popup() as popup:
        page.locator("#notice a").click()
    other = popup.value
    other.get_by_label("User name").fill("ann")
    other.get_by_label("Password").fill("correct horse")
    other.keyboard.press("Enter")
    other.wait_for_url(f"{live_server.url}/")
    press(page, "7")
    assert Preference.objects.get().rationale == "worth keeping"


def test_the_page_works_without_javascript(browser, live_server, project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.get_by_role("button", name=re.compile("Left response is much better")).click()
    page.get_by_role("button", name="Skip").click()
    page.get_by_label("Reason, optional").fill("both wrong")
    page.get_by_role("button", name="Both bad").click()
    expect(page.locator("[data-progress]")).to_have_text("2 of 8 labels in the project")
    kept = Preference.objects.order_by("pk")
    assert [(p.choice in "ab", p.rationale) for p in kept] == [(True, ""), (False, "both wrong")]
    assert kept[0].choice == kept[0].shown_first
    assert kept[0].seconds is not None
    context.close()


def test_an_empty_queue_says_why(page: Page, live_server, project):
    sign_in(page, live_server.url)
    Comparison.objects.update(open_places=0)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    expect(page.locator(".empty-queue")).to_contain_text("has all the labels it wants")
