"""How each person labels: every figure worked by hand, and the pages that show them."""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling.habits import (
    Answer,
    Repeat,
    agreement_with,
    consistency,
    day_bars,
    known_answers,
    length_preference,
    missed_answers,
    position_preference,
    prob_of_run,
    runs,
    speed_bars,
    too_fast,
)
from labeling.models import Assignment, Change, Preference, RepeatAnswer, Response
from labeling.quality import (
    Finding,
    findings,
    glances,
    medians,
    newest_answers,
    quality_of,
    usual_rates,
)
from labeling.shares import Share, wilson
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    ResponseFactory,
)


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


# Formulas -----------------------------------------------------------------------------------------


def test_the_interval_of_wilson():
    # Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662; 0 of 20 ends at 0.1611.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))


def test_a_share_of_nothing_has_no_value():
    assert (Share().value, Share().low, Share().excludes(0.5)) == (None, None, False)


def every_sequence(n: int) -> list[str]:
    return [f"{i:0{n}b}" for i in range(2**n)]


@pytest.mark.parametrize(("length", "n"), [(1, 1), (2, 2), (3, 5), (4, 4), (4, 9), (9, 9), (10, 9)])
def test_the_probability_of_a_run_is_that_of_counting_all_sequences(length, n):
    long = [s for s in every_sequence(n) if "0" * length in s or "1" * length in s]
    assert prob_of_run(length, n) == pytest.approx(len(long) / 2**n)


# Answers ------------------------------------------------------------------------------------------


def sided(*places: str) -> list[Answer]:
    """Answers for the first ("f") or the second ("s") response, ties ("t")."""
    choice = {"f": "a", "s": "b", "t": "tie"}
    return [Answer(i, choice[place], shown_first="a") for i, place in enumerate("".join(places))]


def test_the_position_preference_counts_answers_that_picked_a_side():
    answers = [*sided("fffst"), Answer(9, "a", shown_first=""), Answer(10, "b", implied=True)]
    assert position_preference(answers) == Share(3, 4)


def test_known_answers_are_those_of_the_qualification_and_of_gold():
    answers = [
        Answer(1, "a", purpose="check", gold="a"),
        Answer(2, "b", purpose="qualification", gold="a"),
        Answer(3, "b", purpose="training", gold="a"),
        Answer(4, "b", purpose="work", gold="a"),
    ]
    assert known_answers(answers) == Share(1, 2)
    assert missed_answers(answers) == [2]


def test_length_counts_where_lengths_differ():
    answers = [
        Answer(1, "a", n_chars_a=200, n_chars_b=100),
        Answer(2, "a", n_chars_a=100, n_chars_b=200),
        Answer(3, "b", n_chars_a=100, n_chars_b=131),
        Answer(4, "b", n_chars_a=100, n_chars_b=130),
        Answer(5, "tie", n_chars_a=10, n_chars_b=400),
        Answer(6, "a", n_chars_a=900, n_chars_b=1, implied=True),
    ]
    assert length_preference(answers) == Share(2, 3)


def test_two_thousand_characters_are_not_read_in_less_than_twenty_seconds():
    answers = [
        Answer(1, "a", seconds=19.9, n_chars_a=1000, n_chars_b=1000),
        Answer(2, "a", seconds=20.0, n_chars_a=1000, n_chars_b=1000),
        Answer(3, "a", seconds=None, n_chars_a=1000, n_chars_b=1000),
    ]
    assert too_fast(answers) == Share(1, 2)


def test_agreement_with_others_by_pairs_by_sides_and_with_the_majority():
    answers = [Answer(1, "a"), Answer(2, "b"), Answer(3, "tie"), Answer(4, "a")]
    others = {1: {"a": 2, "b": 1}, 2: {"b": 1, "tie": 1}, 3: {"tie": 1}}
    agreement = agreement_with(answers, others)
    # Pairs: 2 of 3, 1 of 2, 1 of 1; the interval has three comparisons to rest on.
    assert agreement.n_pairs == 6
    assert agreement.pairs == Share(pytest.approx(4 / 6 * 3), 3)
    # Both picked a side: 2 of 3 and 1 of 1, on two comparisons.
    assert agreement.decided == Share(pytest.approx(3 / 4 * 2), 2)
    # Majorities: a (same), none (b and tie share the top), tie (same).
    assert agreement.consensus == Share(2, 2)
    assert agreement.n_without_majority == 1


def test_answers_to_sets_are_no_agreement():
    assert agreement_with([Answer(1, "a", purpose="check")], {1: {"a": 5}}).n_pairs == 0


def test_a_changed_answer_may_have_followed_the_side():
    repeats = [
        Repeat("a", "a", "a", "b"),  # the same
        Repeat("a", "a", "b", "b"),  # the first place twice
        Repeat("a", "b", "b", "a"),  # the second place twice
        Repeat("a", "a", "tie", "b"),  # changed, without a side
    ]
    figures = consistency(repeats)
    assert figures.same == Share(1, 4)
    assert figures.followed_side == Share(2, 3)
    assert figures.n_first_twice == 1


def test_what_was_said_beside_the_answer_is_held_against_the_repeat():
    repeats = [
        Repeat("a", "a", "a", "b", {"kind": "a", "true": "b"}, {"kind": "a", "true": "tie"}),
        Repeat("a", "a", "a", "b", {"kind": "a"}, {"true": "b"}, ["clear", "safe"], ["safe"]),
        Repeat("a", "a", "a", "b", {}, {}, [], ["complete"]),
    ]
    figures = consistency(repeats)
    assert figures.aspects == Share(1, 2)
    assert figures.tags == Share(1, 3)


def test_a_run_is_of_sides_and_ties_do_not_break_it():
    found = runs(sided("fsfff", "t", "fs"))
    assert (found.longest, found.n) == (4, 7)
    assert found.prob == pytest.approx(prob_of_run(4, 7))
    assert found.longest_key == 3  # the key of the tie lies between


def test_bars_of_speed_hold_every_answer_and_end_where_the_next_begins():
    bars = speed_bars([4.9, 5, 9.9, 10, 320, 4000])
    assert [(bar.label, bar.n) for bar in bars] == [
        ("< 5", 1),
        ("5–10", 2),
        ("10–20", 1),
        ("20–40", 0),
        ("40–80", 0),
        ("80–160", 0),
        ("160–320", 0),
        ("≥ 320", 2),
    ]
    assert max(bar.height for bar in bars) == 1


def test_bars_of_days_include_days_without_an_answer():
    day = datetime(2026, 3, 20, 12, tzinfo=UTC)
    bars = day_bars([day, day, day - timedelta(days=2)])
    assert len(bars) == 14
    assert [bar.n for bar in bars[-3:]] == [1, 0, 2]
    assert bars[-1].label == "2026-03-20"
    assert len(day_bars([day, day - timedelta(days=90)])) == 30


def test_the_median_leaves_out_who_has_hardly_answered():
    rows = [
        {"n": 20, "n_ties": 2, "n_both_bad": 0},
        {"n": 100, "n_ties": 20, "n_both_bad": 10},
        {"n": 40, "n_ties": 20, "n_both_bad": 4},
        {"n": 3, "n_ties": 3, "n_both_bad": 0},
    ]
    rates = medians(rows)
    assert (rates.ties, rates.both_bad, rates.n_people) == (0.2, 0.1, 3)


# Rows ---------------------------------------------------------------------------------------------


def repeat_of(preference: Preference, choice: str) -> None:
    assignment = Assignment.objects.create(
        comparison=preference.comparison,
        rater=preference.rater,
        stream=Assignment.Stream.REPEAT,
        state=Assignment.State.ANSWERED,
        repeats=preference,
        shown_first="b" if preference.shown_first == "a" else "a",
        expires_at=timezone.now(),
    )
    RepeatAnswer.objects.create(assignment=assignment, choice=choice)


@pytest.mark.django_db
def test_one_persons_figures_from_rows():
    project = ProjectFactory()
    ann, ben, eve = RaterFactory.create_batch(3, project=project)
    judge = RaterFactory(project=project, kind="judge")
    work = ComparisonFactory.create_batch(4, project=project)
    gold = ComparisonFactory(
        project=project, purpose="check", gold="b", labels_wanted=0, open_places=0
    )
    for comparison, choice, first in zip(work, ["a", "a", "tie", "b"], "abab", strict=True):
        PreferenceFactory(
            comparison=comparison, rater=ann, choice=choice, shown_first=first, seconds=30
        )
    first_answer = ann.preferences.get(comparison=work[0])
    PreferenceFactory(comparison=gold, rater=ann, choice="b", shown_first="b", seconds=0.01)
    # Withdrawn: no answer any more, of hers or of others.
    PreferenceFactory(
        comparison=work[0], rater=ann, choice="both_bad", superseded_at=timezone.now()
    )
    PreferenceFactory(comparison=work[0], rater=ben, choice="b", superseded_at=timezone.now())
    PreferenceFactory(comparison=work[0], rater=ben, choice="a")
    PreferenceFactory(comparison=work[0], rater=eve, choice="b")
    PreferenceFactory(comparison=work[1], rater=ben, choice="b")
    PreferenceFactory(comparison=work[1], rater=judge, choice="a")  # no person
    repeat_of(first_answer, "b")
    Assignment.objects.create(
        comparison=ComparisonFactory(project=project),
        rater=ann,
        state="skipped",
        shown_first="a",
        expires_at=timezone.now(),
    )
    quality = quality_of(ann)
    assert (quality.n_answers, quality.n_counted) == (5, 5)
    assert quality.known == Share(1, 1)
    assert quality.position == Share(3, 4)  # a first; a second; b second of a/b … and gold first
    assert quality.ties == Share(1, 5)
    assert quality.both_bad == Share(0, 5)
    assert quality.agreement.n_pairs == 3
    assert quality.agreement.pairs.value == pytest.approx(1 / 3)
    assert quality.agreement.consensus == Share(0, 1)
    assert quality.agreement.n_without_majority == 1
    assert quality.consistency.same == Share(0, 1)
    assert quality.consistency.followed_side == Share(1, 1)
    assert quality.median_seconds == 30
    assert quality.fast == Share(1, 5)
    assert (quality.n_skipped, quality.n_given) == (1, 1)


@pytest.mark.django_db
def test_what_a_better_answer_implies_tells_nothing_about_sides():
    rater = RaterFactory()
    comparison = ComparisonFactory(project=rater.project)
    own = ResponseFactory(prompt=comparison.prompt)
    Response.objects.filter(pk=own.pk).update(author=rater, n_chars=900)
    implied = ComparisonFactory(
        project=rater.project,
        prompt=comparison.prompt,
        response_a=own,
        response_b=comparison.response_b,
    )
    PreferenceFactory(comparison=implied, rater=rater, choice="a")
    assert [answer.implied for answer in newest_answers(rater)] == [True]
    assert quality_of(rater).longer == Share()


@pytest.mark.django_db
def test_the_list_counts_as_the_page_does():
    project = ProjectFactory()
    ann, ben = RaterFactory.create_batch(2, project=project)
    for choice in ["a", "a", "b", "tie"]:
        PreferenceFactory(
            comparison=ComparisonFactory(project=project), rater=ann, choice=choice, shown_first="a"
        )
    gold = ComparisonFactory(
        project=project, purpose="qualification", gold="b", labels_wanted=0, open_places=0
    )
    PreferenceFactory(comparison=gold, rater=ann, choice="a", shown_first="b")
    repeat_of(ann.preferences.first(), "a")
    glance, empty = glances([ann, ben])
    quality = quality_of(ann)
    assert glance.n_answers == 5
    assert glance.known == quality.known == Share(0, 1)
    assert glance.position == quality.position == Share(2, 4)
    assert glance.ties == quality.ties == Share(1, 5)
    assert glance.same == quality.consistency.same == Share(1, 1)
    assert (empty.n_answers, empty.ties) == (0, Share())


@pytest.mark.django_db
def test_the_list_looks_at_the_newest_answers_of_each(monkeypatch):
    monkeypatch.setattr("labeling.quality.NEWEST_IN_LIST", 2)
    rater = RaterFactory()
    now = timezone.now()
    for days, choice in enumerate(["a", "a", "tie", "tie"]):
        PreferenceFactory(
            comparison=ComparisonFactory(project=rater.project),
            rater=rater,
            choice=choice,
            created_at=now - timedelta(days=days),
        )
    (glance,) = glances([rater])
    assert (glance.n_answers, glance.ties) == (4, Share(0, 2))


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["raters/", "sets/"])
def test_the_number_of_queries_does_not_grow_with_the_raters(path, django_assert_num_queries):
    project = ProjectFactory()
    client = Client()
    client.force_login(MembershipFactory(project=project, role="viewer").user)

    def add_person():
        gold = ComparisonFactory(
            project=project, purpose="check", gold="a", labels_wanted=0, open_places=0
        )
        PreferenceFactory(comparison=gold, rater=RaterFactory(project=project))

    add_person()
    address = f"/projects/{project.slug}/{path}"
    client.get(address)
    with CaptureQueriesContext(connection) as one:
        client.get(address)
    add_person()
    add_person()
    with django_assert_num_queries(len(one)):
        client.get(address)


@pytest.mark.django_db
def test_the_number_of_queries_does_not_grow_with_the_answers(django_assert_num_queries):
    project = ProjectFactory()
    ann, ben = RaterFactory.create_batch(2, project=project)

    def answer():
        comparison = ComparisonFactory(project=project)
        PreferenceFactory(comparison=comparison, rater=ann, seconds=3, shown_first="a")
        repeat_of(PreferenceFactory(comparison=comparison, rater=ben, shown_first="a"), "b")

    answer()
    with CaptureQueriesContext(connection) as one:
        quality_of(ann)
    answer()
    answer()
    with django_assert_num_queries(len(one)):
        quality_of(ann)


@pytest.mark.django_db
def test_medians_are_of_people_and_not_of_judges():
    project = ProjectFactory()
    person = RaterFactory(project=project)
    judge = RaterFactory(project=project, kind="judge")
    for i in range(20):
        comparison = ComparisonFactory(project=project)
        PreferenceFactory(comparison=comparison, rater=person, choice="tie" if i < 5 else "a")
        PreferenceFactory(comparison=comparison, rater=judge, choice="tie")
    rates = usual_rates(project)
    assert (rates.ties, rates.n_people) == (0.25, 1)


# In words -----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_careful_person_gives_no_finding_and_a_careless_one_several():
    project = ProjectFactory()
    careful, careless, other = RaterFactory.create_batch(3, project=project)
    for i in range(40):
        comparison = ComparisonFactory(project=project)
        first = "ab"[i % 2]
        choice = "ab"[(i // 2) % 2]
        PreferenceFactory(comparison=comparison, rater=other, choice=choice, shown_first=first)
        PreferenceFactory(
            comparison=comparison, rater=careful, choice=choice, shown_first=first, seconds=20
        )
        PreferenceFactory(
            comparison=comparison, rater=careless, choice=first, shown_first=first, seconds=0.01
        )
    assert findings(quality_of(careful), pass_mark=0.8) == []
    found = findings(quality_of(careless), pass_mark=0.8)
    assert [finding.text for finding in found] == [
        "Often answers before anybody could have read both responses.",
        "Chose the same side 40 times in a row.",
        "Leans to the response shown first.",
    ]
    assert all(isinstance(finding, Finding) and finding.what_next for finding in found)


# Pages --------------------------------------------------------------------------------------------


@pytest.fixture
def lead(db):
    client = Client()
    membership = MembershipFactory(role="lead")
    client.force_login(membership.user)
    client.project = membership.project
    client.user = membership.user
    return client


def test_a_person_with_and_without_answers_has_a_page(lead):
    rater = RaterFactory(project=lead.project)
    path = f"/projects/{lead.project.slug}/raters/{rater.pk}/"
    assert "No answer yet." in lead.get(path).content.decode()
    PreferenceFactory(
        comparison=ComparisonFactory(project=lead.project), rater=rater, seconds=7, shown_first="a"
    )
    page = lead.get(path).content.decode()
    assert "Median 7.0 s of 1 timed answers." in page
    assert "5–10: 1" in page


def test_a_judge_and_another_projects_rater_have_no_page(lead):
    judge = RaterFactory(project=lead.project, kind="judge")
    stranger = RaterFactory()
    for rater in (judge, stranger):
        path = f"/projects/{lead.project.slug}/raters/{rater.pk}/"
        assert lead.get(path).status_code == 404
        assert lead.post(f"{path}pause/").status_code == 404


def test_a_paused_raters_work_returns_to_the_queue(lead):
    from labeling.assignment import next_comparison

    comparison = ComparisonFactory(project=lead.project)
    rater = RaterFactory(project=lead.project)
    next_comparison(rater)
    path = f"/projects/{lead.project.slug}/raters/{rater.pk}/"
    page = lead.get(path).content.decode()
    assert "the 1 comparison they hold goes back to the queue" in page
    lead.post(f"{path}pause/")
    comparison.refresh_from_db()
    rater.refresh_from_db()
    assert comparison.open_places == 1
    assert rater.paused_at is not None
    assert next_comparison(rater) is None
    lead.post(f"{path}resume/")
    assert next_comparison(rater).comparison == comparison
    assert list(
        Change.objects.filter(actor=lead.user).order_by("pk").values_list("action", flat=True)
    ) == ["pause rater", "resume rater"]


def test_a_limit_is_set_noted_and_taken_away(lead):
    rater = RaterFactory(project=lead.project)
    path = f"/projects/{lead.project.slug}/raters/{rater.pk}/limit/"
    lead.post(path, {"label_limit": "30"})
    rater.refresh_from_db()
    assert rater.label_limit == 30
    lead.post(path, {"label_limit": "none"})
    rater.refresh_from_db()
    assert rater.label_limit == 30
    lead.post(path, {"label_limit": ""})
    rater.refresh_from_db()
    assert rater.label_limit is None
    changes = Change.objects.filter(action="set label limit").order_by("pk")
    assert [(c.before, c.after) for c in changes] == [
        ({"label_limit": None}, {"label_limit": 30}),
        ({"label_limit": 30}, {"label_limit": None}),
    ]


def test_a_failed_rater_is_let_in_or_asked_again(lead):
    ComparisonFactory(
        project=lead.project, purpose="qualification", gold="a", labels_wanted=0, open_places=0
    )
    rater = RaterFactory(project=lead.project, disqualified_at=timezone.now())
    path = f"/projects/{lead.project.slug}/raters/{rater.pk}/"
    assert "failed the qualification" in lead.get(path).content.decode()
    lead.post(f"{path}admit/")
    rater.refresh_from_db()
    assert (rater.disqualified_at, rater.qualified_at is None) == (None, False)
    lead.post(f"{path}requalify/")
    rater.refresh_from_db()
    assert (rater.disqualified_at, rater.qualified_at) == (None, None)


def test_the_list_filters_by_state(lead):
    RaterFactory(project=lead.project, name="busy-bee")
    RaterFactory(project=lead.project, name="sleepy", paused_at=timezone.now())
    page = lead.get(f"/projects/{lead.project.slug}/raters/?who=paused").content.decode()
    assert "sleepy" in page
    assert "busy-bee" not in page
