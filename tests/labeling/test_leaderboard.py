"""Leaderboards of a project: rows in, figures out, and the page that shows them."""

import html
import json
import random
import re
from io import StringIO

import numpy as np
import pytest
from django.core.management import call_command

from labeling.leaderboard import answers_of, leaderboard_report, pair_figures
from labeling.models import Assignment, Comparison, Leaderboard, Membership, Preference, Rater
from labeling.tasks import run_leaderboard
from labeling.views import leaderboard as page
from tests import real_data
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
    bearer,
)

pytestmark = pytest.mark.django_db

URL = "/projects/tea/leaderboard/"


@pytest.fixture
def lead(client):
    membership = MembershipFactory(project=ProjectFactory(slug="tea"))
    client.force_login(membership.user)
    return membership


def compared(project, a, b, text_a="", text_b="", prompt=None, **fields):
    """A comparison of two sources."""
    prompt = prompt or PromptFactory(project=project)
    pair = {}
    for letter, source, text in (("a", a, text_a), ("b", b, text_b)):
        words = {"messages": [{"role": "assistant", "content": text}]} if text else {}
        pair[f"response_{letter}"] = ResponseFactory(prompt=prompt, source=source, **words)
    return ComparisonFactory(project=project, prompt=prompt, **pair, **fields)


def computed(project):
    """A leaderboard of now, stored by the worker's own function."""
    board = Leaderboard.objects.create(project=project)
    run_leaderboard(board.pk)
    board.refresh_from_db()
    assert board.status == "succeeded", board.error
    return board


def words_of(response):
    """The page as a person reads it: tags gone, runs of white space one space."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode())))


def many(project, n, seed=0, n_labelled=None, audit=True, imported=False, judge="gpt"):
    """n comparisons of "new" and "old" in bulk: people prefer "new" in 60 %, the judge often
    agrees; `n_labelled` have a person's label."""
    rng = random.Random(seed)
    person = RaterFactory(project=project, imported=imported)
    verdicts = RaterFactory(project=project, name=judge, kind=Rater.Kind.JUDGE)
    for k in range(n):
        swapped = rng.random() < 0.5
        comparison = compared(project, *(("old", "new") if swapped else ("new", "old")))
        new_is_better = rng.random() < 0.6
        choice = "b" if new_is_better == swapped else "a"
        agrees = rng.random() < 0.85
        prob_new = 0.8 if new_is_better == agrees else 0.2
        if k < (n if n_labelled is None else n_labelled):
            PreferenceFactory(
                comparison=comparison,
                rater=person,
                choice=choice,
                audit=audit,
                inclusion_probability=0.5 if audit else None,
            )
        prob_a = 1 - prob_new if swapped else prob_new
        PreferenceFactory(
            comparison=comparison,
            rater=verdicts,
            choice="a" if prob_a > 0.5 else "b",
            prob_a=prob_a,
        )


def test_rows_become_arrays_whatever_the_order_of_the_responses():
    project = ProjectFactory()
    ann, bob = RaterFactory(project=project), RaterFactory(project=project)
    judge = RaterFactory(project=project, name="gpt", kind=Rater.Kind.JUDGE)
    one = compared(project, "old", "new", "- a\n- b\n# C", "**bold** text")
    other = compared(project, "new", "old")
    for comparison, rater, choice in (
        (one, ann, "a"),
        (one, bob, "both_bad"),
        (other, ann, "b"),
    ):
        PreferenceFactory(comparison=comparison, rater=rater, choice=choice, audit=rater == ann)
    PreferenceFactory(comparison=one, rater=judge, choice="a", prob_a=0.9)
    PreferenceFactory(comparison=other, rater=judge, choice="unparsed")
    # Left out: without a source, of one with itself, a check with a known answer, an old answer.
    PreferenceFactory(comparison=compared(project, "", "new"))
    PreferenceFactory(comparison=compared(project, "new", "new"))
    PreferenceFactory(
        comparison=compared(
            project, "new", "old", purpose="check", gold="a", labels_wanted=0, open_places=0
        )
    )
    PreferenceFactory(comparison=compared(project, "new", "old"), superseded_at="2026-01-01T00:00Z")

    found = answers_of(project)

    assert found.sources == ["new", "old"]
    assert list(zip(found.first, found.second, strict=True)) == [(1, 0), (0, 1)]
    assert found.people.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert found.random.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert found.first_answer.tolist() == [1, 0]
    assert found.judges["gpt"][0] == 0.9
    assert np.isnan(found.judges["gpt"][1])
    assert found.style[0].tolist() == [[2, 1, 0], [0, 0, 1]]
    assert found.n_left_out == {
        "no_source": 1, "same_source": 1, "unparsed": 1, "chosen": 0,
    }  # fmt: skip


def test_pairs_that_a_round_chose_are_no_sample_and_its_random_part_is():
    """By the model all is even; on the pairs that were chosen "old" wins each time."""
    project = ProjectFactory()
    rater, judge = RaterFactory(project=project), RaterFactory(project=project, kind="judge")
    round_ = project.rounds.create(number=1, purpose="reward", status="succeeded")
    for k in range(30):
        comparison = compared(project, "new", "old")
        chosen, at_random = k < 12, 12 <= k < 15
        better = "b" if chosen or k % 2 else "a"
        if k < 15:
            round_.pairs.create(comparison=comparison, probability=0.5, at_random=at_random)
        PreferenceFactory(comparison=comparison, rater=rater, choice=better, audit=True)
        PreferenceFactory(comparison=comparison, rater=judge, choice="a", prob_a=0.5 + k / 100)

    found = answers_of(project)

    assert (len(found), found.n_left_out["chosen"]) == (18, 12)
    assert found.people.sum(axis=1).tolist() == [9, 0, 9]
    [pair] = leaderboard_report(found)["pairs"]
    assert (pair["people"]["value"], pair["people"]["n"]) == (0.5, 18)


def test_a_judge_that_always_says_equal_has_no_board_and_spoils_no_other():
    project = ProjectFactory()
    rater, judge = RaterFactory(project=project), RaterFactory(project=project, kind="judge")
    for k in range(12):
        comparison = compared(project, "new", "old")
        PreferenceFactory(comparison=comparison, rater=rater, choice="b" if k % 3 else "a")
        PreferenceFactory(comparison=comparison, rater=judge, choice="tie", prob_a=0.5)

    boards = leaderboard_report(answers_of(project))["boards"]

    by_kind = {board["kind"]: board for board in boards}
    assert by_kind["people"]["parts"][0]["n"] == 12
    assert by_kind["judge"]["why"] == "Every answer is a tie: nothing says who is better."


def test_labels_of_the_desk_are_random_while_nothing_has_a_priority():
    project = ProjectFactory()
    comparisons = [compared(project, "new", "old") for _ in range(3)]
    imported = RaterFactory(project=project, imported=True)
    at_desk = RaterFactory(project=project)
    PreferenceFactory(comparison=comparisons[0], rater=at_desk, inclusion_probability=0.9)
    PreferenceFactory(
        comparison=comparisons[1], rater=at_desk, inclusion_probability=0.1, audit=True
    )
    PreferenceFactory(comparison=comparisons[2], rater=imported)

    assert answers_of(project).random.sum(axis=0).tolist() == [1, 1, 0]

    Comparison.objects.filter(pk=comparisons[0].pk).update(priority=5)
    assert answers_of(project).random.sum(axis=0).tolist() == [0, 1, 0]


def test_people_judge_and_both_stand_side_by_side():
    project = ProjectFactory()
    many(project, 160, n_labelled=80)

    report = leaderboard_report(answers_of(project))

    (pair,) = report["pairs"]
    assert (pair["a"], pair["b"], report["judge"]) == ("new", "old", "gpt")
    assert pair["people"]["n"] == 80
    assert pair["judge"]["n"] == 160
    assert (pair["combined"]["n"], pair["combined"]["n_others"]) == (80, 80)
    assert pair["combined"]["factor"] > 1
    assert pair["corrected"]["value"] is not None
    assert pair["sequential"]["n"] == 80
    kinds = [(board["kind"], bool(board["parts"])) for board in report["boards"]]
    assert kinds == [("people", True), ("judge", True), ("combined", True)]
    for board in report["boards"]:
        (part,) = board["parts"]
        assert part["sources"][0]["source"] == "new"
    json.dumps(report, allow_nan=False)


def test_the_same_figures_from_the_other_side():
    project = ProjectFactory()
    many(project, 160, n_labelled=80)
    answers = answers_of(project)

    forth, back = pair_figures(answers, 0, 1, "gpt"), pair_figures(answers, 1, 0, "gpt")

    mirrored = page.turned(back)
    for key in ("people", "judge", "combined", "corrected"):
        for end in ("value", "low", "high"):
            assert mirrored[key][end] == pytest.approx(forth[key][end], abs=1e-9)
    assert mirrored["more"] == forth["more"]


def test_labels_of_unknown_origin_are_not_joined_with_a_judge():
    project = ProjectFactory()
    many(project, 80, n_labelled=50, audit=False, imported=True)

    report = leaderboard_report(answers_of(project))

    (pair,) = report["pairs"]
    assert pair["people"]["value"] is not None
    assert pair["combined"]["value"] is None
    assert "no random sample" in pair["combined"]["why"]
    assert "no random sample" in report["boards"][2]["why"]
    assert report["boards"][2]["parts"] == []
    assert pair["sequential"]["value"] is None


def test_a_judge_that_saw_a_selection_of_the_labelled_is_not_joined():
    project = ProjectFactory()
    many(project, 120, n_labelled=80)
    labelled = Preference.objects.filter(rater__kind="person").values("comparison")
    verdicts = Preference.objects.filter(rater__kind="judge", comparison__in=labelled)
    verdicts.filter(pk__in=list(verdicts.values_list("pk", flat=True)[:20])).delete()

    report = leaderboard_report(answers_of(project))

    assert "no verdict on many" in report["pairs"][0]["combined"]["why"]
    assert "no verdict on many" in report["boards"][2]["why"]


def test_imported_labels_with_their_probabilities_are_joined():
    project = ProjectFactory()
    many(project, 160, n_labelled=80, audit=False, imported=True)
    Preference.objects.filter(rater__kind="person").update(inclusion_probability=0.5)

    (pair,) = leaderboard_report(answers_of(project))["pairs"]

    assert pair["combined"]["method"] == "active"
    assert (pair["combined"]["n"], pair["combined"]["n_others"]) == (80, 80)


def test_text_of_the_command_and_a_project_that_is_not_there():
    project = ProjectFactory(slug="tea")
    many(project, 24)
    written, as_json = StringIO(), StringIO()

    call_command("leaderboard", project="tea", stdout=written)
    call_command("leaderboard", project="tea", json=True, stdout=as_json)

    assert "24 answers of people and 24 verdicts on 24 comparisons" in written.getvalue()
    assert "new over old" in written.getvalue()
    assert json.loads(as_json.getvalue())["n_votes"] == 24


def test_the_page_says_who_is_better_and_what_to_do_next(client, lead):
    many(lead.project, 60, n_labelled=40, seed=2)
    assert "and no figures yet" in words_of(client.get(URL))
    computed(lead.project)

    response = client.get(URL)

    text = words_of(response)
    assert "60 comparisons of two sources with 40 votes of people." in text
    assert "How often is new preferred to old?" in text
    assert "n = 40 comparisons with a label, 40 prompts" in text
    assert "n = 40 labels, 20 verdicts without one" in text
    assert re.search(r"about \d+ more labels decide whether “\w+” is better", text)
    assert "new over old: " in response.content.decode()  # the picture of wins


def test_the_page_turns_a_pair_and_chooses_a_board(client, lead):
    many(lead.project, 40)
    computed(lead.project)

    turned, judge = client.get(URL + "?a=old&b=new"), client.get(URL + "?board=1")
    forth = client.get(URL + "?a=new&b=old")

    assert "How often is old preferred to new?" in words_of(turned)
    shares = [r.context["pair"]["people"]["value"] for r in (turned, forth)]
    assert sum(shares) == pytest.approx(1)
    chances = [r.context["chances"][0]["value"] for r in (turned, forth)]
    assert sum(chances) == pytest.approx(1)
    assert "This is what the judge prefers." in words_of(judge)
    assert client.get(URL + "?board=x&a=1&b=<").status_code == 200


def test_groups_that_were_never_compared_are_named(client, lead):
    for a, b in (("tea", "milk"), ("cat", "dog")):
        for choice in "abab":
            PreferenceFactory(comparison=compared(lead.project, a, b), choice=choice)
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "No chain of comparisons joins these groups" in text
    assert "Group 2 of 2" in text
    assert "compare the two, or one of each group" in text
    assert "Nobody has compared these two with each other" in words_of(
        client.get(URL + "?a=tea&b=dog")
    )


def test_a_source_that_was_never_beaten_is_said_so(client, lead):
    for _ in range(3):
        PreferenceFactory(comparison=compared(lead.project, "tea", "milk"), choice="a")
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "Nobody else has beaten tea yet" in text
    assert "inf" not in text.split()


def test_neighbours_that_were_hardly_compared_are_to_be_compared_more(client, lead):
    for choice in "aab":
        PreferenceFactory(comparison=compared(lead.project, "tea", "milk"), choice=choice)
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "“tea” and “milk” stand next to each other" in text
    assert "people have compared them on 3 comparisons: give them more." in text
    assert "more labels decide" not in text


def test_nothing_to_rank_is_said(client, lead):
    assert "nothing to rank" in words_of(client.get(URL))
    PreferenceFactory(comparison=ComparisonFactory(project=lead.project))
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "No comparison of two named sources has an answer yet" in text
    assert "1 comparisons are left out: a response names no source." in text


def test_a_click_wakes_one_worker_and_a_viewer_none(
    client, lead, django_capture_on_commit_callbacks
):
    PreferenceFactory(comparison=compared(lead.project, "tea", "milk"))
    with django_capture_on_commit_callbacks() as messages:
        assert client.post(URL).url == URL
        client.post(URL)
    assert (len(messages), Leaderboard.objects.get().status) == (1, "queued")
    assert "Waiting for a worker" in words_of(client.get(URL))

    viewer = MembershipFactory(project=lead.project, role=Membership.Role.VIEWER)
    client.force_login(viewer.user)
    assert client.get(URL).status_code == 200
    assert client.post(URL).status_code == 403


def test_a_cancelled_leaderboard_ends_at_its_next_step(lead, monkeypatch):
    monkeypatch.setattr("labeling.tasks.SECONDS_BETWEEN_REPORTS", 0.0)
    many(lead.project, 12)
    board = Leaderboard.objects.create(project=lead.project, cancel_requested=True)

    run_leaderboard(board.pk)

    board.refresh_from_db()
    assert (board.status, board.result) == ("cancelled", {})


def test_number_of_queries_does_not_grow_with_the_sources(client, lead, django_assert_num_queries):
    PreferenceFactory(comparison=compared(lead.project, "tea", "milk"))
    computed(lead.project)
    client.get(URL)
    with django_assert_num_queries(8) as few:
        client.get(URL)
    for a, b in (("tea", "cola"), ("milk", "juice"), ("juice", "tea")):
        PreferenceFactory(comparison=compared(lead.project, a, b))
    computed(lead.project)

    with django_assert_num_queries(len(few)):
        client.get(URL)


def test_programs_ask_for_a_leaderboard_once_and_read_it(client, lead):
    PreferenceFactory(comparison=compared(lead.project, "tea", "milk"))
    headers = bearer(lead.user)

    first = client.post("/api/projects/tea/leaderboards/", headers=headers)
    second = client.post("/api/projects/tea/leaderboards/", headers=headers)
    run_leaderboard(first.json()["id"])
    read = client.get(f"/api/projects/tea/leaderboards/{first.json()['id']}/", headers=headers)

    assert (first.status_code, second.json()["id"]) == (202, first.json()["id"])
    assert read.json()["status"] == "succeeded"
    assert read.json()["result"]["n_votes"] == 1
    listed = client.get("/api/projects/tea/leaderboards/", headers=headers).json()["results"]
    assert [row["id"] for row in listed] == [first.json()["id"]]


def test_answers_given_at_the_desk_are_counted(lead):
    """From the assignment to the figures: the recorded probability makes the label random."""
    comparison = compared(lead.project, "tea", "milk")
    rater = RaterFactory(project=lead.project)
    assignment = Assignment.objects.create(
        comparison=comparison,
        rater=rater,
        shown_first="a",
        expires_at="2030-01-01T00:00Z",
        inclusion_probability=0.9,
    )
    PreferenceFactory(
        comparison=comparison,
        rater=rater,
        choice="b",
        inclusion_probability=assignment.inclusion_probability,
    )

    assert answers_of(lead.project).random[:, 0].tolist() == [0, 0, 1]


@pytest.mark.realdata
@pytest.mark.slow
def test_llmfao_from_its_file_to_the_published_board(shared_data, tmp_path):
    file = real_data.write_jsonl(real_data.llmfao(shared_data), tmp_path / "llmfao.jsonl")
    call_command("import_comparisons", str(file), project="llmfao", create=True, stdout=StringIO())
    written = StringIO()

    call_command("leaderboard", project="llmfao", json=True, stdout=written)

    report = json.loads(written.getvalue())
    board = {board["name"] or board["kind"]: board for board in report["boards"]}
    (part,) = board["people"]["parts"]
    assert (report["n_votes"], report["n_verdicts"]) == (8931, 2 * 2139)
    assert (len(part["sources"]), part["n"], part["has_prior"]) == (59, 8931, False)
    top = [row["source"] for row in part["sources"]]
    assert top[:2] == ["GPT 4", "Platypus-2 Instruct (70B)"]
    assert top[-1] == "Dolly v2 (3B)"
    assert part["sources"][0]["rank_low"] == 1
    length = part["features"]["length"][0]
    assert length["low"] < length["value"] < length["high"]
    judge = {row["source"]: row["rank"] for row in board["gpt-4"]["parts"][0]["sources"]}
    ranks = [judge[source] for source in top]
    # As published for ties as half a win; Davidson's model gives nearly the same order.
    assert np.corrcoef(ranks, range(len(ranks)))[0, 1] == pytest.approx(0.731, abs=0.03)
