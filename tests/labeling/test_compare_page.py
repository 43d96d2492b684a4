"""The labeling page, as a server sees it."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling.assignment import next_comparison, work_for
from labeling.models import (
    Assignment,
    Comparison,
    Flag,
    Preference,
    Rater,
    RepeatAnswer,
    Response,
)
from labeling.raters import pause_rater
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


def in_hand() -> Assignment:
    """The one to answer now: what was given out first."""
    return Assignment.objects.filter(state="leased").order_by("leased_at", "pk")[0]


def placed(answer: str, shown_first: str) -> str:
    """An answer about A or B ("a-2") as the page has it, by the place of the response."""
    letter, *strength = answer.split("-")
    if letter in ("a", "b"):
        letter = "left" if letter == shown_first else "right"
    return "-".join([letter, *strength])


def answer_with(answer: str, **more) -> dict:
    """The fields of a form that says this of the pair in hand."""
    held = in_hand()
    return {"assignment": held.pk, "answer": placed(answer, held.shown_first), **more}


def pairs_in(response) -> list[int]:
    """The assignments whose cards a response brings."""
    return [int(pk) for pk in re.findall(r'data-pair="(\d+)"', response.content.decode())]


def held_in(response) -> list[int]:
    held = re.search(r'data-held="([\d,]*)"', response.content.decode())[1]
    return [int(pk) for pk in held.split(",") if pk]


def test_nothing_in_the_page_says_which_response_is_which(client, project):
    """A file may always call the chosen response A: its letter would be the answer."""
    project.aspects = [{"name": "kind", "question": "Which response is kinder?"}]
    project.save()
    client.get("/projects/tea/compare/")
    held = Assignment.objects.get()
    Assignment.objects.update(shown_first="a")
    shown = client.get("/projects/tea/compare/").content.decode()
    # The same texts, with the letters exchanged.
    comparison = held.comparison
    a, b = comparison.response_a_id, comparison.response_b_id
    Comparison.objects.filter(pk=comparison.pk).update(response_a=b, response_b=a)
    Assignment.objects.update(shown_first="b")
    exchanged = client.get("/projects/tea/compare/").content.decode()

    def without_secrets(page: str) -> str:
        page = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", page)
        return re.sub(r'data-page="[\w-]+"', "", page)

    assert without_secrets(exchanged) == without_secrets(shown)
    assert 'name="answer" value="left-3" data-key="1"' in shown
    assert 'name="comparison"' not in shown


@pytest.mark.parametrize("shown_first", ["a", "b"])
def test_a_place_is_kept_as_the_response_that_stood_there(client, project, shown_first):
    project.aspects = [{"name": "kind", "question": "Which response is kinder?"}]
    project.save()
    client.get("/projects/tea/compare/")
    Assignment.objects.update(shown_first=shown_first)
    said = {"assignment": in_hand().pk, "answer": "left-2", "aspect-kind": "right"}
    client.post("/projects/tea/compare/", said, **HTMX)
    kept = Preference.objects.get()
    other = "b" if shown_first == "a" else "a"
    assert (kept.choice, kept.strength, kept.aspects) == (shown_first, 2, {"kind": other})
    undone = client.post("/projects/tea/compare/undo/", **HTMX).content.decode()
    assert 'class="step was" name="answer" value="left-2"' in undone
    assert 'name="aspect-kind" value="right" checked' in undone


def test_an_answer_without_htmx_leads_to_the_next_comparison(client):
    client.get("/projects/tea/compare/")
    first = in_hand()
    response = client.post("/projects/tea/compare/", answer_with("a-2", rationale=" clear "))
    assert (response.status_code, response.url) == (302, "/projects/tea/compare/")
    kept = Preference.objects.get()
    assert (kept.choice, kept.strength, kept.rationale) == ("a", 2, "clear")
    client.get(response.url)
    assert in_hand() != first


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
        "assignment": shown,
        "answer": "left-1",
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
    answer = answer_with("a-1", answer_key="k1")
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
    aspects = {"aspect-kind": "tie", "aspect-other": "left"}
    answer = answer_with("b-2", tags=["short", "made up"]) | aspects
    client.post("/projects/tea/compare/", answer, **HTMX)
    kept = Preference.objects.get()
    assert (kept.choice, kept.tags, kept.aspects) == ("b", ["short"], {"kind": "tie"})


def test_a_better_answer_is_kept_where_the_project_wants_them(client, project):
    client.get("/projects/tea/compare/")
    answer = answer_with("b-2", better=" A third way. ")
    client.post("/projects/tea/compare/", answer, **HTMX)
    assert Response.objects.exclude(author=None).count() == 0
    project.better_answers = True
    project.save()
    answer = answer_with("b-2", better=" A third way. ")
    client.post("/projects/tea/compare/", answer, **HTMX)
    assert Response.objects.exclude(author=None).get().messages[0]["content"] == "A third way."


@pytest.mark.parametrize(
    ("scale", "values", "both_bad"),
    [
        ("seven", ["left-3", "left-2", "left-1", "tie", "right-1", "right-2", "right-3"], True),
        ("three", ["left", "tie", "right"], True),
        ("two", ["left", "right"], False),
    ],
)
def test_a_project_has_the_scale_that_its_lead_chose(client, project, scale, values, both_bad):
    project.scale = scale
    project.save()
    page = client.get("/projects/tea/compare/").content.decode()
    shown = re.findall(r'class="step[^"]*" name="answer" value="([^"]+)" data-key="(\d)"', page)
    assert shown == [(value, str(key)) for key, value in enumerate(values, start=1)]
    assert ('value="both_bad"' in page) == both_bad
    known = {*values, *(["both_bad"] if both_bad else [])}
    for value in {"left-3", "left", "a", "tie", "both_bad"} - known:
        answer = {"assignment": in_hand().pk, "answer": value}
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
    answer = {"assignment": held.pk, "have": ahead, "answer": "right-1"}
    answer |= {"tags": ["safe"], "rationale": "said with it"}

    def everything() -> list[str]:
        responses = [
            client.get(address),
            client.get(address, {"have": ahead}, **HTMX),
            client.get(f"{address}{held.pk}/difference/"),
            client.post(address, answer, **HTMX),
            client.post(f"{address}undo/", {"have": ahead}, **HTMX),
            client.post(address, answer, **HTMX),
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
        of_then = {"choice": "a", "rationale": "of then", "tags": ["clear"]}
        given["repeats"] = held.rater.preferences.create(comparison=held.comparison, **of_then)
    else:
        Preference.objects.all().delete()
    if stream == "check":
        set_of = Comparison.objects.filter(pk=held.comparison_id)
        set_of.update(purpose="check", gold="a", open_places=0)
    Assignment.objects.filter(pk=held.pk).update(**given)
    assert everything() == from_the_queue
    assert RepeatAnswer.objects.count() == (stream == "repeat")
    for again in RepeatAnswer.objects.all():
        assert (again.tags, again.rationale) == (["safe"], "said with it")


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
    answer = answer_with("b-3")
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert "Not right." in text
    assert "<strong>left is better</strong>" in text
    assert "Because <em>facts</em> count." in text

    assert Assignment.objects.get(state="leased").stream == "qualification"
    answer = answer_with("b-1")
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert 'data-graded="passed"' in text
    assert "data-feedback" not in text


def test_a_project_may_leave_the_known_answer_of_the_training_unsaid(client, project):
    project.training_feedback = False
    project.save()
    meta = {"explanation": "Because."}
    ComparisonFactory(project=project, purpose="training", gold="a", labels_wanted=0, metadata=meta)
    page = client.get("/projects/tea/compare/").content.decode()
    assert "data-feedback-follows" not in page
    assert "you are told the known one" not in page
    text = client.post("/projects/tea/compare/", answer_with("b-3"), **HTMX).content.decode()
    assert "data-feedback" not in text
    assert "Because." not in text
    # Nothing was explained: a slip can be taken back while the training lasts.
    ComparisonFactory(project=project, purpose="training", gold="b", labels_wanted=0)
    Rater.objects.update(qualified_at=None)
    back = client.post("/projects/tea/compare/undo/", **HTMX).content.decode()
    assert "data-back" in back
    assert Preference.objects.current().count() == 0


def test_the_days_count_leaves_training_and_qualification_out(client, project):
    for purpose in ("training", "qualification"):
        ComparisonFactory(project=project, purpose=purpose, gold="a", labels_wanted=0)
    client.get("/projects/tea/compare/")
    for n_today in ("0", "0"):
        text = client.post("/projects/tea/compare/", answer_with("a-1"), **HTMX).content.decode()
        assert f'data-today="{n_today}"' in text  # else the page would add one by itself
    text = client.post("/projects/tea/compare/", answer_with("a-1"), **HTMX).content.decode()
    assert "data-today" not in text
    assert 'data-today="1"' in client.get("/projects/tea/compare/").content.decode()
    assert "<dd>1</dd>" in client.get("/projects/tea/answers/").content.decode()


def test_training_without_javascript_says_the_known_answer_on_the_next_page(client, project):
    ComparisonFactory(project=project, purpose="training", gold="tie", labels_wanted=0)
    client.get("/projects/tea/compare/")
    answer = answer_with("tie")
    page = client.post("/projects/tea/compare/", answer, follow=True).content.decode()
    assert "Right. The known answer: both are equally good." in page


def test_a_failed_qualification_ends_the_work_and_says_why(client, project):
    ComparisonFactory(project=project, purpose="qualification", gold="b", labels_wanted=0)
    client.get("/projects/tea/compare/")
    answer = answer_with("a-1")
    text = client.post("/projects/tea/compare/", answer, **HTMX).content.decode()
    assert 'data-graded="failed"' in text
    assert "did not reach the pass mark" in text
    assert Assignment.objects.filter(state="leased").count() == 0


def test_a_skip_has_a_reason_and_a_flag_passes_the_pair_on(client):
    client.get("/projects/tea/compare/")
    first = in_hand().pk
    client.post("/projects/tea/compare/skip/", {"assignment": first, "reason": "too long"}, **HTMX)
    second = in_hand()
    flagged = {"assignment": second.pk, "flag": "private", "note": "a phone number"}
    client.post("/projects/tea/compare/skip/", flagged, **HTMX)
    third = in_hand().pk
    wrong = client.post("/projects/tea/compare/skip/", {"assignment": third, "flag": "x"}, **HTMX)
    assert wrong.status_code == 409
    skipped = Assignment.objects.filter(state="skipped").order_by("closed_at")
    assert [a.skip_reason for a in skipped] == ["too long", ""]
    flag = Flag.objects.get()
    assert (flag.comparison, flag.kind, flag.note) == (
        second.comparison,
        "private",
        "a phone number",
    )


def test_undo_sent_twice_takes_back_one_answer(client):
    for _n in range(2):
        client.get("/projects/tea/compare/")
        answer = answer_with("a-1", rationale="of then")
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
    answer = {"assignment": other.pk, "answer": "left-1"}
    assert client.post("/projects/tea/compare/", answer, **HTMX).status_code == 409


def test_differences_mark_what_one_side_alone_says(client, project):
    client.get("/projects/tea/compare/")
    Assignment.objects.update(shown_first="b")
    comparison = in_hand().comparison
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
    client.post("/projects/tea/compare/", answer_with("tie"))
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
    first = in_hand()
    card = client.post("/projects/tea/compare/", answer_with("tie"), **HTMX)
    text = card.content.decode()
    assert "<html" not in text
    assert f'name="assignment" value="{in_hand().pk}"' in text
    assert in_hand() != first


def test_a_second_answer_gets_409_and_changes_nothing(client):
    client.get("/projects/tea/compare/")
    answer = answer_with("a-1")
    client.post("/projects/tea/compare/", answer, **HTMX)
    late = client.post("/projects/tea/compare/", answer | {"answer": "right-3"}, **HTMX)
    assert late.status_code == 409
    assert "you have answered it already" in late.content.decode()
    assert list(Preference.objects.values_list("choice", "strength")) == [("a", 1)]


def test_numbers_that_no_row_can_have_are_refused(client):
    client.get("/projects/tea/compare/")
    for number in ("9" * 30, "-1", "x", ""):
        named = {"assignment": number, "answer": "left-1", "have": number}
        for path in ("", "skip/"):
            response = client.post(f"/projects/tea/compare/{path}", named, **HTMX)
            assert response.status_code == 409
        assert client.get("/projects/tea/answers/", {"before": number}).status_code == 200
    assert Preference.objects.count() == 0


@pytest.mark.parametrize(
    "answer", ["", "c", "left-9", "left", "a", "a-2", "unparsed", "left-2; drop"]
)
def test_an_unknown_answer_keeps_nothing(client, answer):
    client.get("/projects/tea/compare/")
    response = client.post(
        "/projects/tea/compare/", {"assignment": in_hand().pk, "answer": answer}, **HTMX
    )
    assert response.status_code == 409
    assert Preference.objects.count() == 0


def test_a_comparison_of_another_project_cannot_be_answered(client):
    other = ComparisonFactory()
    held = next_comparison(RaterFactory(project=other.project))
    response = client.post(
        "/projects/tea/compare/", {"assignment": held.pk, "answer": "left-1"}, **HTMX
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
    first = in_hand()
    client.post(
        "/projects/tea/compare/skip/", {"assignment": first.pk, "other_reason": "not my field"}
    )
    first.refresh_from_db()
    assert first.skip_reason == "not my field"
    client.get("/projects/tea/compare/")
    second = in_hand()
    client.post("/projects/tea/compare/", answer_with("b-1"))
    client.post("/projects/tea/compare/undo/")
    client.get("/projects/tea/compare/")
    assert in_hand() == second
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
    data = {"assignment": in_hand().pk, "other_reason": "x" * 501}
    page = client.post("/projects/tea/compare/skip/", data, follow=True).content.decode()
    assert "at most 500 characters" in page
    assert not Assignment.objects.filter(state="skipped").exists()


def test_the_page_has_a_heading_and_every_button_says_in_words_what_it_means(client):
    page = client.get("/projects/tea/compare/").content.decode()
    assert page.count("<h1") == 1
    assert "Left response is much better" in page
    assert "Both are equally good" in page
