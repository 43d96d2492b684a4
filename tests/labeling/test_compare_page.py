"""The labeling page, as a server sees it."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling.assignment import next_comparison, pause_rater, work_for
from labeling.models import (
    Assignment,
    Comparison,
    Flag,
    Preference,
    Rater,
    RepeatAnswer,
    Response,
)
from tests.factories import ComparisonFactory, MembershipFactory, ProjectFactory, RaterFactory

pytestmark = pytest.mark.django_db
HTMX = {"HTTP_HX-Request": "true"}


@pytest.fixture
def project():
    project = ProjectFactory(slug="tea")
    ComparisonFactory.create_batch(3, project=project)
    return project


@pytest.fixture
def client(project):
    client = Client()
    client.force_login(MembershipFactory(project=project, role="rater").user)
    return client


def held_comparison() -> int:
    """The one to answer now: what was given out first."""
    return Assignment.objects.filter(state="leased").order_by("leased_at", "pk")[0].comparison_id


def pairs_in(response) -> list[int]:
    """The assignments whose cards a response brings."""
    return [int(pk) for pk in re.findall(r'data-pair="(\d+)"', response.content.decode())]


def held_in(response) -> list[int]:
    held = re.search(r'data-held="([\d,]*)"', response.content.decode())[1]
    return [int(pk) for pk in held.split(",") if pk]


def test_the_buttons_name_responses_and_not_sides(client, project):
    for shown_first, left in (("a", 'value="a-3" data-key="1"'), ("b", 'value="b-3" data-key="1"')):
        page = client.get("/projects/tea/compare/")
        Assignment.objects.update(shown_first=shown_first)
        page = client.get("/projects/tea/compare/")
        assert left in page.content.decode()


def test_an_answer_without_htmx_leads_to_the_next_comparison(client):
    client.get("/projects/tea/compare/")
    first = held_comparison()
    response = client.post(
        "/projects/tea/compare/", {"comparison": first, "answer": "a-2", "rationale": " clear "}
    )
    assert (response.status_code, response.url) == (302, "/projects/tea/compare/")
    kept = Preference.objects.get()
    assert (kept.choice, kept.strength, kept.rationale) == ("a", 2, "clear")
    client.get(response.url)
    assert held_comparison() != first


def test_the_page_without_javascript_reserves_one_pair_and_its_script_two_more(client, project):
    ComparisonFactory.create_batch(3, project=project)
    shown = pairs_in(client.get("/projects/tea/compare/"))
    assert len(shown) == 1
    assert Assignment.objects.count() == 1
    ahead = client.get("/projects/tea/compare/", {"have": shown[0]}, **HTMX)
    assert "<html" not in ahead.content.decode()
    assert len(pairs_in(ahead)) == 2
    assert held_in(ahead) == [*shown, *pairs_in(ahead)]


def test_an_answer_brings_only_the_card_that_the_page_has_not_got(client, project):
    ComparisonFactory.create_batch(3, project=project)
    shown = pairs_in(client.get("/projects/tea/compare/"))[0]
    ahead = pairs_in(client.get("/projects/tea/compare/", {"have": shown}, **HTMX))
    answer = {
        "comparison": Assignment.objects.get(pk=shown).comparison_id,
        "assignment": shown,
        "answer": "tie",
        "have": ",".join(map(str, ahead)),
    }
    response = client.post("/projects/tea/compare/", answer, **HTMX)
    (new,) = pairs_in(response)
    assert held_in(response) == [*ahead, new]
    # The page counts its own answers; the server's count comes with the page.
    assert "data-today" not in response.content.decode()
    assert 'data-today="1"' in client.get("/projects/tea/compare/").content.decode()


@pytest.mark.parametrize("n_comparisons", [5, 100])
def test_an_answer_costs_the_same_number_of_queries_in_any_project(n_comparisons):
    project = ProjectFactory(slug="any-size")
    ComparisonFactory.create_batch(n_comparisons, project=project)
    client = Client()
    client.force_login(MembershipFactory(project=project, role="rater").user)
    address = "/projects/any-size/compare/"
    shown = pairs_in(client.get(address))[0]
    ahead = pairs_in(client.get(address, {"have": shown}, **HTMX))
    answer = {
        "comparison": Assignment.objects.get(pk=shown).comparison_id,
        "assignment": shown,
        "answer": "a-1",
        "answer_key": "k1",
        "have": ",".join(map(str, ahead)),
    }
    with CaptureQueriesContext(
        connection,
    ) as queries:
        response = client.post(address, answer, **HTMX)
    assert (response.status_code, len(pairs_in(response))) == (200, 1)
    statements = [q["sql"] for q in queries if not re.match("(BEGIN|SAVEPOINT|RELEASE)", q["sql"])]
    assert len(statements) <= 18, "\n".join(statements)


def test_the_same_answer_sent_again_is_kept_once(client):
    client.get("/projects/tea/compare/")
    answer = {"comparison": held_comparison(), "answer": "a-1", "answer_key": "k1"}
    answer["assignment"] = Assignment.objects.get().pk
    first = client.post("/projects/tea/compare/", answer, **HTMX)
    again = client.post("/projects/tea/compare/", answer, **HTMX)
    assert (first.status_code, again.status_code) == (200, 200)
    assert Preference.objects.count() == 1
    other_key = client.post("/projects/tea/compare/", answer | {"answer_key": "k2"}, **HTMX)
    assert other_key.status_code == 409


def test_reasons_and_questions_are_kept_with_the_answer(client, project):
    project.tags = ["true", "short"]
    project.aspects = [{"name": "kind", "question": "Which response is kinder?"}]
    project.save()
    page = client.get("/projects/tea/compare/").content.decode()
    assert "Which response is kinder?" in page
    answer = {
        "comparison": held_comparison(),
        "answer": "b-2",
        "tags": ["short", "made up"],
        "aspect-kind": "a",
        "aspect-other": "b",
    }
    client.post("/projects/tea/compare/", answer, **HTMX)
    kept = Preference.objects.get()
    assert (kept.tags, kept.aspects) == (["short"], {"kind": "a"})


def test_a_better_answer_is_kept_where_the_project_wants_them(client, project):
    client.get("/projects/tea/compare/")
    answer = {"comparison": held_comparison(), "answer": "b-2", "better": " A third way. "}
    client.post("/projects/tea/compare/", answer, **HTMX)
    assert Response.objects.exclude(author=None).count() == 0
    project.better_answers = True
    project.save()
    client.post("/projects/tea/compare/", answer | {"comparison": held_comparison()}, **HTMX)
    assert Response.objects.exclude(author=None).get().messages[0]["content"] == "A third way."


@pytest.mark.parametrize(
    ("scale", "values", "both_bad"),
    [
        ("seven", ["a-3", "a-2", "a-1", "tie", "b-1", "b-2", "b-3"], True),
        ("three", ["a", "tie", "b"], True),
        ("two", ["a", "b"], False),
    ],
)
def test_a_project_has_the_scale_that_its_lead_chose(client, project, scale, values, both_bad):
    project.scale = scale
    project.save()
    client.get("/projects/tea/compare/")
    Assignment.objects.update(shown_first="a")
    page = client.get("/projects/tea/compare/").content.decode()
    shown = re.findall(r'class="step[^"]*" name="answer" value="([^"]+)" data-key="(\d)"', page)
    assert shown == [(value, str(key)) for key, value in enumerate(values, start=1)]
    assert ('value="both_bad"' in page) == both_bad
    for value in {"a-3", "a", "tie", "both_bad"} - {*values, *(["both_bad"] if both_bad else [])}:
        answer = {"comparison": held_comparison(), "answer": value}
        assert client.post("/projects/tea/compare/", answer, **HTMX).status_code == 409
    assert Preference.objects.count() == 0


def in_the_browser(response) -> str:
    """What a rater's browser gets; numbers and secrets, which differ each time, taken out."""
    text = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", response.content.decode())
    return re.sub(r"\d+", "n", re.sub(r'data-page="[\w-]+"', "", text))


@pytest.mark.parametrize("stream", ["audit", "check", "repeat"])
def test_nothing_tells_a_check_or_a_repeat_from_the_queue(client, project, stream):
    address = "/projects/tea/compare/"
    client.get(address)
    held = Assignment.objects.get()
    Assignment.objects.update(shown_first="a")
    ahead = ",".join(map(str, pairs_in(client.get(address, {"have": held.pk}, **HTMX))))
    answer = {"comparison": held.comparison_id, "assignment": held.pk, "have": ahead}

    def everything() -> list[str]:
        responses = [
            client.get(address),
            client.get(address, {"have": ahead}, **HTMX),
            client.get(f"{address}{held.pk}/difference/"),
            client.post(address, answer | {"answer": "b-1"}, **HTMX),
            client.post(f"{address}undo/", {"have": ahead}, **HTMX),
            client.post(address, answer | {"answer": "b-1"}, **HTMX),
            client.get(address, {"have": ahead}, **HTMX),
        ]
        counted = re.search(r'data-today="\d+"', responses[-1].content.decode())[0]
        return [counted, *map(in_the_browser, responses)]

    from_the_queue = everything()
    given = {"state": "leased", "stream": stream, "closed_at": None}
    if stream == "repeat":
        # Taken back once and answered again: the answer of then must not show.
        withdrawn = Preference.objects.current().get()
        withdrawn.superseded_at = timezone.now()
        withdrawn.save()
        given["repeats"] = held.rater.preferences.create(comparison=held.comparison, choice="a")
    else:
        Preference.objects.all().delete()
    if stream == "check":
        set_of = Comparison.objects.filter(pk=held.comparison_id)
        set_of.update(purpose="check", gold="a", open_places=0)
    Assignment.objects.filter(pk=held.pk).update(**given)
    assert everything() == from_the_queue
    assert RepeatAnswer.objects.count() == (stream == "repeat")


def test_training_tells_the_known_answer_and_qualification_only_the_result(client, project):
    for purpose, gold in (("training", "a"), ("qualification", "b")):
        ComparisonFactory(
            project=project,
            purpose=purpose,
            gold=gold,
            labels_wanted=0,
            metadata={"explanation": "Because *facts* count."} if purpose == "training" else {},
        )
    page = client.get("/projects/tea/compare/").content.decode()
    assert "data-feedback-follows" in page
    assert "Because" not in page
    Assignment.objects.update(shown_first="a")
    answer = {"comparison": held_comparison(), "answer": "b-3"}
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert "Not right." in text
    assert "<strong>left is better</strong>" in text
    assert "Because <em>facts</em> count." in text

    assert Assignment.objects.get(state="leased").stream == "qualification"
    answer = {"comparison": held_comparison(), "answer": "b-1"}
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert 'data-graded="passed"' in text
    assert "data-feedback" not in text


def test_training_without_javascript_says_the_known_answer_on_the_next_page(client, project):
    ComparisonFactory(project=project, purpose="training", gold="tie", labels_wanted=0)
    client.get("/projects/tea/compare/")
    answer = {"comparison": held_comparison(), "answer": "tie"}
    page = client.post("/projects/tea/compare/", answer, follow=True).content.decode()
    assert "Right. The known answer: both are equally good." in page


def test_a_failed_qualification_ends_the_work_and_says_why(client, project):
    ComparisonFactory(project=project, purpose="qualification", gold="b", labels_wanted=0)
    client.get("/projects/tea/compare/")
    answer = {"comparison": held_comparison(), "answer": "a-1"}
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert 'data-graded="failed"' in text
    assert "did not reach the pass mark" in text
    assert Assignment.objects.filter(state="leased").count() == 0


def test_a_skip_has_a_reason_and_a_flag_passes_the_pair_on(client):
    client.get("/projects/tea/compare/")
    first = held_comparison()
    client.post("/projects/tea/compare/skip/", {"comparison": first, "reason": "too long"}, **HTMX)
    second = held_comparison()
    flagged = {"comparison": second, "flag": "private", "note": "a phone number"}
    client.post("/projects/tea/compare/skip/", flagged, **HTMX)
    third = held_comparison()
    wrong = client.post("/projects/tea/compare/skip/", {"comparison": third, "flag": "x"}, **HTMX)
    assert wrong.status_code == 409
    skipped = Assignment.objects.filter(state="skipped").order_by("closed_at")
    assert [a.skip_reason for a in skipped] == ["too long", ""]
    flag = Flag.objects.get()
    assert (flag.comparison_id, flag.kind, flag.note) == (second, "private", "a phone number")


def test_undo_sent_twice_takes_back_one_answer(client):
    for _n in range(2):
        client.get("/projects/tea/compare/")
        answer = {"comparison": held_comparison(), "answer": "a-1", "rationale": "of then"}
        client.post("/projects/tea/compare/", answer)
    last = Assignment.objects.filter(state="answered").order_by("-closed_at")[0]
    for _n in range(2):
        response = client.post("/projects/tea/compare/undo/", {"assignment": last.pk}, **HTMX)
        text = response.content.decode()
        assert f'data-back="{last.pk}"' in text
        assert "You took back" in text
        assert 'value="of then"' in text
    assert Preference.objects.current().count() == 1


def test_pairs_loaded_ahead_go_back_when_their_page_is_left(client, project):
    page = client.get("/projects/tea/compare/").content.decode()
    token = re.search(r'data-page="([^"]+)"', page)[1]
    shown = Assignment.objects.get().pk
    ahead = pairs_in(client.get("/projects/tea/compare/", {"have": shown}, **HTMX))
    leaving = {"page": token, "assignments": ",".join(map(str, ahead))}
    assert client.post("/projects/tea/compare/release/", leaving).status_code == 204
    assert Assignment.objects.filter(state="expired").count() == 2
    assert Comparison.objects.filter(open_places=1).count() == 2

    # After a reload they are the new page's, and the old page's last word comes too late.
    ahead = pairs_in(client.get("/projects/tea/compare/", {"have": shown}, **HTMX))
    client.get("/projects/tea/compare/")
    client.post("/projects/tea/compare/release/", leaving)
    assert Assignment.objects.filter(state="leased").count() == 3


def test_nobody_releases_or_reads_what_another_rater_holds(client, project):
    page = client.get("/projects/tea/compare/").content.decode()
    token = re.search(r'data-page="([^"]+)"', page)[1]
    other = next_comparison(RaterFactory(project=project))
    client.post("/projects/tea/compare/release/", {"page": token, "assignments": other.pk})
    other.refresh_from_db()
    assert other.state == "leased"
    assert client.get(f"/projects/tea/compare/{other.pk}/difference/").status_code == 404
    answer = {"comparison": other.comparison_id, "assignment": other.pk, "answer": "a-1"}
    assert client.post("/projects/tea/compare/", answer, **HTMX).status_code == 409


def test_differences_mark_what_one_side_alone_says(client, project):
    client.get("/projects/tea/compare/")
    Assignment.objects.update(shown_first="b")
    comparison = Comparison.objects.get(pk=held_comparison())
    for response, text in (
        (comparison.response_a, "Tea is <b>hot</b> today"),
        (comparison.response_b, "Tea was <b>hot</b> today"),
    ):
        response.messages = [{"role": "assistant", "content": text}]
        response.save()
    held = Assignment.objects.get()
    address = f"/projects/tea/compare/{held.pk}/difference/"
    text = client.get(address, **HTMX).content.decode()
    assert "Tea <del>was </del>&lt;b&gt;hot&lt;/b&gt; today</div>" in text
    assert "Tea <ins>is </ins>&lt;b&gt;hot&lt;/b&gt; today</div>" in text
    assert "<h1>Differences</h1>" in client.get(address).content.decode()


def test_an_empty_queue_says_why_and_until_when(client, project):
    def why() -> str:
        page = client.get("/projects/tea/compare/", **HTMX).content.decode()
        assert held_in(client.get("/projects/tea/compare/", **HTMX)) == []
        return page

    rater = Rater.objects.create(project=project, user_id=client.session["_auth_user_id"], name="r")
    project.labels_per_day = 1
    project.save()
    client.get("/projects/tea/compare/")
    client.post("/projects/tea/compare/", {"comparison": held_comparison(), "answer": "tie"})
    tomorrow = (timezone.now() + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00")
    assert "at most 1 labels a day" in why()
    assert f'<time datetime="{tomorrow}' in why()
    project.labels_per_day, project.labels_per_rater = None, 1
    project.save()
    assert "as many labels as this project takes" in why()
    project.labels_per_rater = None
    project.save()
    pause_rater(rater, None)
    assert "has paused your work" in why()
    Rater.objects.update(paused_at=None)
    others = work_for(RaterFactory(project=project), 2)
    assert "2 comparisons are in other raters" in why()
    assert f'<time datetime="{others[0].expires_at:%Y-%m-%dT%H:%M}' in why()
    Assignment.objects.filter(pk__in=[a.pk for a in others]).delete()
    Comparison.objects.update(open_places=0)
    assert "has all the labels it wants" in why()
    Comparison.objects.all().delete()
    assert "This project has no comparisons" in why()


def test_an_answer_with_htmx_brings_cards_alone(client):
    client.get("/projects/tea/compare/")
    first = held_comparison()
    card = client.post("/projects/tea/compare/", {"comparison": first, "answer": "tie"}, **HTMX)
    text = card.content.decode()
    assert "<html" not in text
    assert f'name="comparison" value="{held_comparison()}"' in text
    assert held_comparison() != first


def test_a_second_answer_gets_409_and_changes_nothing(client):
    client.get("/projects/tea/compare/")
    answer = {"comparison": held_comparison(), "answer": "a-1"}
    client.post("/projects/tea/compare/", answer, **HTMX)
    late = client.post("/projects/tea/compare/", answer | {"answer": "b-3"}, **HTMX)
    assert late.status_code == 409
    assert "you have answered it already" in late.content.decode()
    assert list(Preference.objects.values_list("choice", "strength")) == [("a", 1)]


def test_numbers_that_no_row_can_have_are_refused(client):
    client.get("/projects/tea/compare/")
    for number in ("9" * 30, "-1", "x", ""):
        named = {"comparison": number, "assignment": number, "answer": "a-1", "have": number}
        for path in ("", "skip/"):
            response = client.post(f"/projects/tea/compare/{path}", named, **HTMX)
            assert response.status_code == 409
        assert client.get("/projects/tea/answers/", {"before": number}).status_code == 200
    assert Preference.objects.count() == 0


@pytest.mark.parametrize("answer", ["", "c", "a-9", "left", "unparsed", "a-2; drop"])
def test_an_unknown_answer_keeps_nothing(client, answer):
    client.get("/projects/tea/compare/")
    response = client.post(
        "/projects/tea/compare/", {"comparison": held_comparison(), "answer": answer}, **HTMX
    )
    assert response.status_code == 409
    assert Preference.objects.count() == 0


def test_a_comparison_of_another_project_cannot_be_answered(client):
    other = ComparisonFactory()
    next_comparison(RaterFactory(project=other.project))
    response = client.post(
        "/projects/tea/compare/", {"comparison": other.pk, "answer": "a-1"}, **HTMX
    )
    assert response.status_code == 409
    assert Preference.objects.count() == 0


def test_another_raters_answer_and_the_models_names_are_not_shown(client, project):
    Comparison.objects.update(labels_wanted=2, open_places=2)
    other = RaterFactory(project=project)
    for comparison in project.comparisons.all():
        comparison.response_a.source = "model-nineteen"
        comparison.response_a.save()
        comparison.preferences.create(rater=other, choice="a", rationale="other-reason")
    page = client.get("/projects/tea/compare/").content.decode()
    assert "model-nineteen" not in page
    assert "other-reason" not in page


def test_skip_and_undo_work_without_htmx(client):
    client.get("/projects/tea/compare/")
    first = held_comparison()
    client.post(
        "/projects/tea/compare/skip/", {"comparison": first, "other_reason": "not my field"}
    )
    assert Assignment.objects.get(comparison=first).skip_reason == "not my field"
    client.get("/projects/tea/compare/")
    second = held_comparison()
    client.post("/projects/tea/compare/", {"comparison": second, "answer": "b-1"})
    client.post("/projects/tea/compare/undo/")
    client.get("/projects/tea/compare/")
    assert held_comparison() == second
    assert Preference.objects.current().count() == 0


def test_nothing_to_undo_is_said(client):
    page = client.post("/projects/tea/compare/undo/", follow=True)
    assert "There is no answer of yours that can be taken back" in page.content.decode()


def test_a_new_rater_does_not_take_the_name_of_an_imported_one(client, project):
    user = MembershipFactory(project=project, role="rater").user
    RaterFactory(project=project, name=user.username)
    other = Client()
    other.force_login(user)
    other.get("/projects/tea/compare/")
    assert Rater.objects.get(user=user).name == f"{user.username} ({user.pk})"


def test_a_reason_that_is_too_long_to_skip_with_is_named(client):
    client.get("/projects/tea/compare/")
    data = {"comparison": held_comparison(), "other_reason": "x" * 501}
    page = client.post("/projects/tea/compare/skip/", data, follow=True).content.decode()
    assert "at most 500 characters" in page
    assert not Assignment.objects.filter(state="skipped").exists()


def test_the_page_has_a_heading_and_every_button_says_in_words_what_it_means(client):
    page = client.get("/projects/tea/compare/").content.decode()
    assert page.count("<h1") == 1
    assert "Left response is much better" in page
    assert "Both are equally good" in page
