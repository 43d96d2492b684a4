"""A person labels in a real browser: by keyboard alone, offline, and with JavaScript off."""

import gzip
import re
from datetime import timedelta
from urllib.parse import urlparse

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Page, expect

from labeling.answering import record_preference
from labeling.assignment import next_comparison
from labeling.models import Assignment, Comparison, Flag, Preference, Rater, Response
from labeling.raters import pause_rater
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    PromptFactory,
    ResponseFactory,
    UserFactory,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SHOWN = ".pair:not([hidden])"


def add_comparison(project, n: int, words: int = 60, **more) -> Comparison:
    prompt = PromptFactory(project=project, messages=[{"role": "user", "content": f"Why {n}?"}])
    a, b = (
        ResponseFactory(
            prompt=prompt,
            source="secret-model",
            messages=[{"role": "assistant", "content": f"Because {letter}{n}. " * words}],
        )
        for letter in "AB"
    )
    return ComparisonFactory(project=project, prompt=prompt, response_a=a, response_b=b, **more)


@pytest.fixture
def project():
    project = ProjectFactory(
        slug="browser",
        guidelines="**Correct** beats pleasant.",
        tags=["accurate", "clear"],
        aspects=[
            {"name": "helpful", "question": "Which response helps more?"},
            {"name": "honest", "question": "Which response is more honest?"},
        ],
        better_answers=True,
    )
    MembershipFactory(project=project, user=UserFactory(username="ann"), role="rater")
    for n in range(8):
        add_comparison(project, n)
    return project


def sign_in(page: Page, address: str) -> None:
    page.goto(f"{address}/accounts/login/")
    page.get_by_label("User name").fill("ann")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")


def open_desk(page: Page, live_server) -> None:
    """The labeling page with two pairs loaded ahead."""
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    expect(page.locator(".pair")).to_have_count(3)


def shown(page: Page) -> str:
    """The assignment of the pair in sight."""
    return page.locator(SHOWN).get_attribute("data-pair")


def press(page: Page, key: str) -> None:
    """Press a key as a reader would, after the guard, and see the next pair."""
    before = shown(page)
    page.wait_for_timeout(300)
    page.keyboard.press(key)
    expect(page.locator(f'{SHOWN}[data-pair="{before}"]')).to_have_count(0)


def wait_until_kept(page: Page, n_today: int) -> None:
    expect(page.locator("#sent")).to_have_text("kept")
    expect(page.locator(".desk-bar [data-today]")).to_have_text(str(n_today))


def test_labeling_by_keyboard_alone_is_one_request_a_label_and_never_waits(
    page: Page, live_server, project
):
    open_desk(page, live_server)
    assert "secret-model" not in page.content()
    requests = []
    page.on("request", lambda request: requests.append((request.method, request.url)))
    # From the key to the frame that shows the next pair, measured in the page.
    page.evaluate(
        """() => {
          window.waits = [];
          document.addEventListener("keydown", (event) => {
            const pressed = performance.now();
            const before = document.querySelector(".pair:not([hidden])").dataset.pair;
            requestAnimationFrame(() => setTimeout(() => {
              const now = document.querySelector(".pair:not([hidden])")?.dataset.pair;
              if (now && now !== before) window.waits.push(performance.now() - pressed);
            }));
          }, true);
        }"""
    )
    seen = [shown(page)]
    for n, key in enumerate(["1", "7", "4", "x", "2"], start=1):
        press(page, key)
        wait_until_kept(page, n)
        seen.append(shown(page))
    assert len(set(seen)) == 6
    assert [method for method, _url in requests] == ["POST"] * 5
    waits = sorted(page.evaluate("window.waits"))
    assert len(waits) == 5
    print(f"\nkey to next pair: median {waits[2]:.0f} ms, slowest {waits[-1]:.0f} ms")

    of = {str(a.pk): a for a in Assignment.objects.all()}
    kept = {p.comparison_id: p for p in Preference.objects.all()}
    answers = [(kept[of[pk].comparison_id], of[pk].shown_first) for pk in seen[:5]]
    left, right = [p.choice == first for p, first in answers], [p.strength for p, _first in answers]
    assert (left, right) == ([True, False, False, False, True], [3, 3, None, None, 2])
    assert [p.choice for p, _first in answers[2:4]] == ["tie", "both_bad"]
    assert all(0.2 < p.seconds < 60 for p, _first in answers)


def test_the_next_pair_is_there_before_the_answer_is_kept(page: Page, live_server, project):
    open_desk(page, live_server)
    held = []
    page.route("**/compare/", lambda route: route.continue_() if held else held.append(route))
    press(page, "1")
    press(page, "2")
    expect(page.locator("#sent")).to_have_text("saving…")
    page.wait_for_timeout(300)
    assert Preference.objects.count() == 0  # one after the other, so that their order is kept
    held[0].continue_()
    wait_until_kept(page, 2)
    assert Preference.objects.count() == 2


def test_a_double_press_does_not_vote_on_an_unread_pair(page: Page, live_server, project):
    open_desk(page, live_server)
    page.wait_for_timeout(300)
    # In one go inside the page: a busy machine must not make two slow presses of it.
    page.evaluate(
        """() => {
          const key = { key: "1", code: "Digit1", bubbles: true, cancelable: true };
          document.body.dispatchEvent(new KeyboardEvent("keydown", key));
          document.body.dispatchEvent(new KeyboardEvent("keydown", key));
          document.querySelector(".pair:not([hidden]) .step").click();
        }"""
    )
    wait_until_kept(page, 1)
    page.wait_for_timeout(300)
    assert Preference.objects.count() == 1
    press(page, "1")
    wait_until_kept(page, 2)


def test_reasons_questions_and_a_better_answer_are_chosen_before_the_answer_key(
    page: Page, live_server, project
):
    open_desk(page, live_server)
    first = Assignment.objects.get(pk=shown(page))
    page.keyboard.press("Shift+2")
    page.keyboard.press("q")
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.keyboard.press("w")
    page.keyboard.type("The 7th answer.")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("r")
    page.keyboard.type("1 and 7 are typed here, not pressed")
    page.keyboard.press("Escape")
    press(page, "6")
    wait_until_kept(page, 1)
    kept = Preference.objects.get(comparison=first.comparison_id)
    assert kept.tags == ["clear"]
    assert kept.aspects == {"helpful": first.shown_first, "honest": "tie"}
    assert (kept.choice != first.shown_first, kept.strength) == (True, 2)
    assert kept.rationale == "1 and 7 are typed here, not pressed"
    assert str(Response.objects.exclude(author=None).get()) == "The 7th answer."


def test_skip_and_flag_are_two_keys_each(page: Page, live_server, project):
    open_desk(page, live_server)
    pairs = [shown(page)]
    page.keyboard.press("s")
    press(page, "2")
    pairs.append(shown(page))
    page.keyboard.press("f")
    press(page, "1")
    pairs.append(shown(page))
    page.keyboard.press("s")
    page.keyboard.press("4")
    page.keyboard.type("3 words only")
    press(page, "Enter")
    expect(page.locator("#sent")).to_have_text("kept")
    skipped = [Assignment.objects.get(pk=pk) for pk in pairs]
    assert [a.state for a in skipped] == ["skipped"] * 3
    assert [a.skip_reason for a in skipped] == ["not my field", "", "3 words only"]
    assert Flag.objects.get().comparison_id == skipped[1].comparison_id
    assert Preference.objects.count() == 0


def test_undo_brings_the_last_pair_back_and_keeps_those_ahead(page: Page, live_server, project):
    open_desk(page, live_server)
    first = shown(page)
    left = page.locator(f"{SHOWN} .step").first.get_attribute("value")
    press(page, "2")
    wait_until_kept(page, 1)
    ahead = [card.get_attribute("data-pair") for card in page.locator(".pair").all()]
    press(page, "z")
    assert shown(page) == first
    expect(page.locator(f"{SHOWN} .earlier")).to_have_text("You took back: left is clearly better.")
    # The sides stay where they were: the same button still names the same response.
    assert page.locator(f"{SHOWN} .step").first.get_attribute("value") == left
    assert [card.get_attribute("data-pair") for card in page.locator(".pair").all()] == [
        first,
        *ahead,
    ]
    press(page, "7")
    wait_until_kept(page, 1)
    assert Preference.objects.current().get().strength == 3
    assert Preference.objects.count() == 2


def test_answers_given_offline_are_each_kept_once(page: Page, live_server, project):
    open_desk(page, live_server)
    page.context.set_offline(True)
    seen = []
    for key in ["1", "4"]:
        seen.append(shown(page))
        press(page, key)
    expect(page.locator("#sent")).to_have_text("2 not sent yet")
    expect(page.locator("#notices")).to_contain_text("No connection to the server")
    # An answer that never went out is simply taken out again.
    press(page, "z")
    assert shown(page) == seen[1]
    seen.append(seen[1])
    press(page, "7")
    seen.append(shown(page))
    press(page, "x")
    expect(page.locator("#fetching")).to_contain_text("when there is a connection again")
    assert Preference.objects.count() == 0
    page.context.set_offline(False)
    wait_until_kept(page, 3)
    expect(page.locator("#notices")).to_be_empty()
    expect(page.locator(".pair")).to_have_count(3)
    of = {str(a.pk): a.comparison_id for a in Assignment.objects.all()}
    kept = {p.comparison_id: (p.choice, p.strength) for p in Preference.objects.all()}
    assert len(kept) == Preference.objects.count() == 3
    assert kept[of[seen[0]]][1] == 3
    assert kept[of[seen[1]]][1] == 3  # the second thought, not the tie
    assert kept[of[seen[3]]] == ("both_bad", None)
    page.troubles.clear()  # the browser itself reports the lost connection


def test_an_unsent_answer_survives_a_reload_and_a_lost_response(page: Page, live_server, project):
    open_desk(page, live_server)
    page.on("dialog", lambda dialog: dialog.accept())
    first = shown(page)

    posts = []

    def response_lost(route):
        if route.request.method == "GET" or posts[-1:] == ["connected"]:
            route.continue_()
            return
        if not posts:
            route.fetch()  # the server keeps it, and nobody hears of that
        posts.append("lost")
        route.abort()

    page.route("**/compare/", response_lost)
    press(page, "1")
    expect(page.locator("#sent")).to_have_text("1 not sent yet")
    assert Preference.objects.count() == 1
    page.reload()
    expect(page.locator("#sent")).to_have_text("1 not sent yet")
    assert shown(page) != first
    posts.append("connected")
    wait_until_kept(page, 1)
    assert Preference.objects.count() == 1
    assert page.evaluate("Object.values(sessionStorage).filter(v => v.includes('answer'))") == []
    page.troubles.clear()


def test_an_answer_survives_a_session_that_ended(page: Page, live_server, project):
    open_desk(page, live_server)
    page.keyboard.press("r")
    page.keyboard.type("worth keeping")
    page.keyboard.press("Escape")
    Session.objects.all().delete()
    press(page, "7")
    expect(page.locator("#notices")).to_contain_text("You are signed out")
    with page.expect_popup() as popup:
        page.locator("#notices a").click()
    other = popup.value
    other.get_by_label("User name").fill("ann")
    other.get_by_label("Password").fill("correct horse")
    other.keyboard.press("Enter")
    other.wait_for_url(f"{live_server.url}/")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # back in this tab
    wait_until_kept(page, 1)
    assert Preference.objects.get().rationale == "worth keeping"
    page.troubles.clear()  # the browser itself reports the 403


def test_a_rater_who_is_paused_is_told_and_sees_no_pair_any_more(page: Page, live_server, project):
    open_desk(page, live_server)
    pause_rater(Assignment.objects.get(pk=shown(page)).rater, UserFactory())
    press(page, "1")
    expect(page.locator("#notices .note.bad")).to_contain_text("You are paused in this project")
    expect(page.locator(SHOWN)).to_have_count(0)
    expect(page.locator("#cards [data-empty]")).to_be_visible()
    expect(page.locator("#sent")).to_have_text("")
    page.troubles.clear()  # the browser itself reports the 409


def test_an_answer_that_another_tab_gave_is_named_and_work_goes_on(
    page: Page, live_server, project
):
    open_desk(page, live_server)
    held = Assignment.objects.select_related("comparison__prompt", "rater").get(pk=shown(page))
    record_preference(held.rater, held.comparison, "tie")
    press(page, "1")
    line = page.locator("#notices .note.bad")
    expect(line).to_contain_text("Not kept: Left response is much better")
    expect(line).to_contain_text(str(held.comparison.prompt))
    expect(line).to_contain_text("you have answered it already")
    press(page, "1")
    wait_until_kept(page, 2)
    expect(line).to_be_visible()  # until it is read
    line.get_by_role("button", name="Dismiss").click()
    expect(line).to_have_count(0)
    assert sorted(Preference.objects.values_list("choice", flat=True))[-1] == "tie"
    page.troubles.clear()  # the browser itself reports the 409


def test_pairs_ahead_are_released_on_leaving_and_kept_on_a_reload(page: Page, live_server, project):
    open_desk(page, live_server)
    first = shown(page)
    page.reload()
    expect(page.locator(".pair")).to_have_count(3)
    page.wait_for_timeout(300)
    assert shown(page) == first
    assert Assignment.objects.filter(state="leased").count() == 3
    page.goto(f"{live_server.url}/projects/browser/answers/")
    page.wait_for_timeout(300)
    assert Assignment.objects.get(state="leased").pk == int(first)
    assert Comparison.objects.filter(open_places=1).count() == 7
    page.go_back()
    expect(page.locator(".pair")).to_have_count(3)
    assert shown(page) == first
    assert Assignment.objects.filter(state="leased").count() == 3


def test_differences_folding_and_linked_scroll(page: Page, live_server, project):
    Comparison.objects.exclude(pk=Comparison.objects.first().pk).delete()
    comparison = Comparison.objects.get()
    comparison.prompt.messages = [{"role": "user", "content": "One line.\n\n" * 30}]
    comparison.prompt.save()
    for response, word in ((comparison.response_a, "red"), (comparison.response_b, "blue")):
        response.messages = [{"role": "assistant", "content": f"The {word} one. " + "Yes. " * 3000}]
        response.save()
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    prompt = page.locator(f"{SHOWN} .desk-prompt")
    bar = page.locator(f"{SHOWN} .scale").bounding_box()
    folded = prompt.bounding_box()["height"]
    page.keyboard.press("p")
    assert prompt.bounding_box()["height"] > folded + 50
    page.keyboard.press("d")
    expect(page.locator(f"{SHOWN} del")).to_be_visible()
    assert {page.locator(f"{SHOWN} {tag}").inner_text().strip() for tag in ("del", "ins")} == {
        "red",
        "blue",
    }
    page.keyboard.press("d")
    expect(page.locator(f"{SHOWN} del")).to_be_hidden()
    left, right = page.locator(f"{SHOWN} .response").all()
    tops = "element => element.scrollTop"
    left.evaluate("element => { element.scrollTop = 500 }")
    page.wait_for_timeout(100)
    assert (left.evaluate(tops), right.evaluate(tops)) == (500, 0)
    page.keyboard.press("l")
    left.evaluate("element => { element.scrollTop = 700 }")
    page.wait_for_timeout(100)
    assert abs(right.evaluate(tops) - 700) < 10
    # Neither text nor prompt moves the buttons.
    assert page.locator(f"{SHOWN} .scale").bounding_box() == bar
    page.reload()
    expect(page.get_by_role("button", name="Scroll together")).to_have_attribute(
        "aria-pressed", "true"
    )


def test_training_shows_the_known_answer_before_the_next_pair(
    page: Page, live_server, project, axe_findings
):
    add_comparison(
        project,
        99,
        purpose="training",
        gold="a",
        labels_wanted=0,
        metadata={"explanation": "It names its source."},
    )
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.wait_for_timeout(300)
    page.keyboard.press("x")
    expect(page.locator(f"{SHOWN} [data-feedback]")).to_contain_text("It names its source.")
    expect(page.locator(f"{SHOWN} .response")).to_have_count(2)
    assert axe_findings(page) == []
    press(page, "Enter")
    press(page, "4")
    wait_until_kept(page, 1)  # training is no work of the day


def test_a_break_is_proposed_after_long_work_without_a_pause(page: Page, live_server, project):
    open_desk(page, live_server)
    press(page, "4")
    expect(page.locator("[data-notice=break]")).to_have_count(0)
    page.evaluate(
        """() => sessionStorage.setItem("worked", JSON.stringify(
            {since: Date.now() - 51 * 60000, last: Date.now() - 60000}))"""
    )
    press(page, "4")
    expect(page.locator("[data-notice=break]")).to_contain_text("51 minutes without a pause")
    page.locator("[data-notice=break] button").click()
    press(page, "4")
    expect(page.locator("[data-notice=break]")).to_have_count(0)


def test_single_keys_can_be_switched_off(page: Page, live_server, project):
    open_desk(page, live_server)
    page.keyboard.press("?")
    page.get_by_label("Single keys answer and command").uncheck()
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert Preference.objects.count() == 0
    page.keyboard.press("?")
    page.get_by_label("Single keys answer and command").check()
    page.keyboard.press("Escape")
    press(page, "1")


def test_the_page_works_without_javascript(browser, live_server, project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, live_server.url)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    page.get_by_label("accurate").check()
    page.get_by_role("button", name=re.compile("Left response is much better")).click()
    page.locator("summary", has_text="Skip").click()
    page.get_by_role("button", name="Not my field").click()
    page.get_by_role("link", name="Show where they differ").click()
    expect(page.locator("del").first).to_be_visible()
    page.get_by_role("link", name="Back to the pair").click()
    page.get_by_label("Reason, optional").fill("both wrong")
    page.keyboard.press("Enter")  # in a field it answers nothing
    page.get_by_role("button", name="Both bad").click()
    expect(page.locator(".desk-bar [data-today]")).to_have_text("2")
    kept = Preference.objects.order_by("pk")
    assert [(p.choice in "ab", p.rationale) for p in kept] == [(True, ""), (False, "both wrong")]
    assert kept[0].choice == kept[0].shown_first
    assert (kept[0].tags, kept[0].seconds is not None) == (["accurate"], True)
    assert Assignment.objects.get(state="skipped").skip_reason == "not my field"
    assert Assignment.objects.filter(state="leased").count() == 1
    context.close()


def test_who_reads_for_long_keeps_the_pairs_in_hand(page: Page, live_server, project):
    page.clock.install()
    open_desk(page, live_server)
    soon = timezone.now() + timedelta(minutes=3)
    Assignment.objects.update(expires_at=soon)
    page.clock.run_for(299_000)
    page.mouse.move(300, 300)
    with page.expect_response("**/compare/?have=*"):
        page.clock.run_for(2_000)
    assert all(a.expires_at > soon for a in Assignment.objects.all())


def test_an_empty_queue_says_why_and_looks_again(page: Page, live_server, project):
    Comparison.objects.update(open_places=0)
    sign_in(page, live_server.url)
    page.clock.install()
    page.goto(f"{live_server.url}/projects/browser/compare/")
    expect(page.locator(".empty-queue:visible")).to_contain_text("has all the labels it wants")
    page.wait_for_timeout(100)
    Comparison.objects.update(open_places=1)
    page.clock.run_for(61_000)
    expect(page.locator(SHOWN)).to_be_visible()


def test_the_first_visit_is_light_and_asks_no_other_host(browser, page, live_server, project):
    sign_in(page, live_server.url)
    # Signed in, with an empty cache.
    context = browser.new_context(storage_state=page.context.storage_state())
    visit = context.new_page()
    responses = []
    visit.on("response", lambda response: responses.append(response))
    visit.goto(f"{live_server.url}/projects/browser/compare/")
    expect(visit.locator(".pair")).to_have_count(3)
    visit.wait_for_load_state("networkidle")
    weight = sum(len(gzip.compress(response.body())) for response in responses)
    print(f"\nfirst visit: {len(responses)} requests, {weight:,} bytes compressed")
    assert {urlparse(response.url).netloc for response in responses} == {
        urlparse(live_server.url).netloc
    }
    assert len(responses) < 10
    assert weight < 100_000
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_raters_pages(
    page: Page, live_server, project, axe_findings, scheme
):
    page.emulate_media(color_scheme=scheme)
    open_desk(page, live_server)
    found = {"seven steps": axe_findings(page)}
    for key in ("s", "f", "w"):
        page.keyboard.press(key)
        found[f"menu {key}"] = axe_findings(page)
        page.keyboard.press("Escape")
    page.keyboard.press("q")
    page.keyboard.press("Shift+1")
    page.keyboard.press("d")
    expect(page.locator(f"{SHOWN} .difference").first).to_be_visible()
    found["differences, a reason, a question"] = axe_findings(page)
    page.keyboard.press("Escape")
    for key in ("?", "g"):
        page.keyboard.press(key)
        found[f"dialog {key}"] = axe_findings(page)
        page.keyboard.press("Escape")
    press(page, "2")
    wait_until_kept(page, 1)
    press(page, "z")
    found["taken back"] = axe_findings(page)
    press(page, "2")
    wait_until_kept(page, 1)
    rater = Rater.objects.get(user__username="ann")
    record_preference(rater, next_comparison(rater).comparison, "a")
    press(page, "2")
    expect(page.locator("#notices .bad")).to_be_visible()
    found["not kept"] = axe_findings(page)
    for name, path in {
        "my answers": "projects/browser/answers/",
        "an answer": f"projects/browser/answers/{Preference.objects.current().first().pk}/",
        "home": "",
        "project": "projects/browser/",
    }.items():
        page.goto(f"{live_server.url}/{path}")
        found[name] = axe_findings(page)
    project.scale, project.tags, project.aspects = "three", [], []
    project.save()
    page.goto(f"{live_server.url}/projects/browser/compare/")
    found["three answers"] = axe_findings(page)
    Assignment.objects.filter(state="leased").delete()
    Comparison.objects.update(open_places=0)
    page.goto(f"{live_server.url}/projects/browser/compare/")
    found["empty"] = axe_findings(page)
    assert {name: findings for name, findings in found.items() if findings} == {}
    page.troubles.clear()  # the browser itself reports the 409


def test_on_a_phone_the_bar_is_one_line_and_its_tools_are_a_menu(page: Page, live_server, project):
    page.set_viewport_size({"width": 390, "height": 844})
    open_desk(page, live_server)
    bar = page.locator(".desk-bar")
    assert bar.bounding_box()["height"] < 48
    tool = page.get_by_role("button", name="Differences")
    expect(tool).to_be_hidden()
    toggle = page.get_by_role("button", name="Tools")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    box = tool.bounding_box()
    assert box["x"] + box["width"] <= 390
    tool.click()
    found = page.locator(".pair:not([hidden])").locator(".difference, [data-too-long]")
    expect(found.first).to_be_visible()
    expect(toggle).to_be_focused()
    expect(tool).to_be_hidden()
    toggle.click()
    page.keyboard.press("Escape")
    expect(tool).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
