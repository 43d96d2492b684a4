"""A person ranks responses in a real browser: by keys, by dragging, and without JavaScript."""

from itertools import combinations

import pytest
from playwright.sync_api import Page, expect

from labeling.assignment import response_name
from labeling.models import Preference, Ranking, Rater, Response, ResponseSet, content_hash
from tests.browser.test_labeling import sign_in
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
    MembershipFactory(project=project, user=UserFactory(username="ann"), role="rater")
    for n in range(2):
        prompt = PromptFactory(project=project, messages=[{"role": "user", "content": f"Why {n}?"}])
        the_set = ResponseSet.objects.create(
            project=project, prompt=prompt, content_hash=content_hash(n)
        )
        responses = [
            ResponseFactory(
                prompt=prompt,
                source="secret-model",
                messages=[{"role": "assistant", "content": f"Because {letter}{n}. " * 60}],
            )
            for letter in "PQRS"
        ]
        for a, b in combinations(responses, 2):
            ComparisonFactory(
                project=project,
                prompt=prompt,
                response_a=a,
                response_b=b,
                response_set=the_set,
                random_key=0.5 - n / 10,
            )
    return project


def card(page: Page):
    return page.locator("#cards > .pair:not([hidden])")


def name_of(response_id: int) -> str:
    return response_name(Rater.objects.get(user__username="ann").pk, response_id)


def shown_responses(page: Page) -> list[int]:
    """The ids of the responses in their places; the page has other names for them."""
    names = {name_of(pk): pk for pk in Response.objects.values_list("pk", flat=True)}
    articles = card(page).locator("[data-response]")
    return [names[one.get_attribute("data-response")] for one in articles.all()]


def order_of(page: Page) -> list[str]:
    """The strip in words: one text for each place, such as "1AC"."""
    return [text.strip() for text in card(page).locator("[data-group]").all_inner_texts()]


def wait_for_next(page: Page, before: str) -> None:
    page.wait_for_function(
        "before => document.querySelector('#cards > .pair:not([hidden])')?.dataset.pair !== before",
        arg=before,
    )


def test_responses_are_ranked_by_keys_alone(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    assert "secret-model" not in page.content()
    first, second, third, fourth = shown_responses(page)
    before = card(page).get_attribute("data-pair")
    page.wait_for_timeout(300)
    for key in "2141":  # each goes to the next that has no place yet
        page.keyboard.press(key)
    assert [text.replace("\n", "") for text in order_of(page)] == ["1BD", "2A", "4C"]
    expect(card(page).locator("[data-response]").nth(3)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    expect(card(page).locator("[data-tray]")).to_contain_text("C")
    page.keyboard.press("3")
    expect(card(page).locator("[data-tray]")).to_have_count(0)
    page.keyboard.press("Enter")
    wait_for_next(page, before)
    expect(page.locator("#sent")).to_have_text("kept")
    ranking = Ranking.objects.get()
    assert [sorted(tied) for tied in ranking.order] == [sorted([second, fourth]), [first], [third]]
    assert 0.2 < ranking.seconds < 60
    assert Preference.objects.filter(ranking=ranking).count() == 6

    # Undo brings it back with the order filled in.
    page.wait_for_timeout(300)
    page.keyboard.press("z")
    page.wait_for_function(
        "pair => document.querySelector('#cards > .pair:not([hidden])')?.dataset.pair === pair",
        arg=before,
    )
    assert shown_responses(page) == [first, second, third, fourth]
    expect(card(page).locator("[data-group]")).to_have_count(3)
    page.wait_for_timeout(300)
    page.keyboard.press("Enter")
    wait_for_next(page, before)
    expect(page.locator("#sent")).to_have_text("kept")
    assert Ranking.objects.get(superseded_at=None).order == ranking.order


def test_letters_are_dragged_into_an_order(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    first, second, third, fourth = shown_responses(page)
    strip = card(page).locator("[data-strip]")

    def drag(source, target):
        start, end = source.bounding_box(), target.bounding_box()
        page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        page.mouse.down()
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2 - 3, steps=5)
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=3)
        page.mouse.up()

    def chip(pk):
        return strip.locator(f'[data-chip="{name_of(pk)}"]')

    page.wait_for_timeout(300)
    heads = card(page).locator("[data-response] [data-chip]")
    drag(heads.nth(2), strip.locator("[data-gap]"))
    assert [text.replace("\n", "") for text in order_of(page)] == ["1C"]
    drag(chip(first), strip.locator('[data-gap="1"]'))
    drag(chip(second), strip.locator('[data-gap="0"]'))
    drag(chip(fourth), strip.locator('[data-group="1"]'))
    assert [text.replace("\n", "") for text in order_of(page)] == ["1B", "2CD", "3A"]
    drag(chip(fourth), strip.locator('[data-gap="3"]'))
    assert [text.replace("\n", "") for text in order_of(page)] == ["1B", "2C", "3A", "4D"]
    before = card(page).get_attribute("data-pair")
    card(page).get_by_role("button", name="Keep this order").click()
    wait_for_next(page, before)
    expect(page.locator("#sent")).to_have_text("kept")
    assert Ranking.objects.get().order == [[second], [third], [first], [fourth]]


def test_an_order_that_leaves_one_out_is_not_sent(page: Page, live_server, project):
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.wait_for_timeout(300)
    page.keyboard.press("1")
    before = card(page).get_attribute("data-pair")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert card(page).get_attribute("data-pair") == before
    assert Ranking.objects.count() == 0
    expect(card(page).locator("select").nth(1)).to_be_focused()
    # Digits in a list of places are the list's own; a set may be skipped without an order.
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.keyboard.press("1")
    wait_for_next(page, before)
    expect(page.locator("#sent")).to_have_text("kept")
    assert Ranking.objects.count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_card_to_rank(
    page: Page, live_server, project, axe_findings, scheme
):
    page.emulate_media(color_scheme=scheme)
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    found = {"nothing placed": axe_findings(page)}
    for key in "213":
        page.keyboard.press(key)
    found["three placed"] = axe_findings(page)
    page.keyboard.press("s")
    found["menu"] = axe_findings(page)
    assert {name: findings for name, findings in found.items() if findings} == {}


def test_responses_are_ranked_without_javascript(browser, live_server, project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    shown = shown_responses(page)
    for letter, place in zip("ABCD", "2134", strict=True):
        page.get_by_label(f"Place of response {letter}").select_option(place)
    page.get_by_role("button", name="Keep this order").click()
    expect(page.locator("[data-today]").first).to_be_visible()
    first, second, third, fourth = shown
    assert Ranking.objects.get().order == [[second], [first], [third], [fourth]]
    assert Response.objects.count() == 8
    context.close()
