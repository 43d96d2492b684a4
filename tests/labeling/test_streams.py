"""How work comes to a rater: random streams, sets with known answers, repeats, limits, pauses."""

from datetime import timedelta

import pytest
from django.utils import timezone

from labeling.answering import (
    record_preference,
    record_ranking,
    revise_preference,
    skip_comparison,
    undo_last,
)
from labeling.assignment import (
    REPEAT_AFTER,
    TAKEN_BACK_AT_ONCE,
    next_comparison,
    set_assignments,
    why_empty,
    work_for,
)
from labeling.models import (
    Assignment,
    Change,
    Comparison,
    Preference,
    RepeatAnswer,
    Response,
    ResponseSet,
)
from labeling.places import NotYours, release, take_back_expired
from labeling.raters import let_in, pause_rater, requalify, resume_rater
from labeling.sets import set_purpose
from tests.factories import (
    ComparisonFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def known(project, purpose, gold="a", **more):
    return ComparisonFactory(
        project=project, purpose=purpose, gold=gold, labels_wanted=0, open_places=0, **more
    )


def answer_all(rater, choice="a", at_most=1000):
    """Answer what comes; the assignments in their order."""
    done = []
    while len(done) < at_most and (assignment := next_comparison(rater)) is not None:
        record_preference(rater, assignment.comparison, choice, assignment_id=assignment.pk)
        done.append(assignment)
    return done


# Prefetch


def test_work_ahead_is_reserved_and_comes_in_the_same_order():
    project = ProjectFactory()
    ComparisonFactory.create_batch(4, project=project)
    rater = RaterFactory(project=project)
    ahead = work_for(rater, 3)
    assert len({a.comparison_id for a in ahead}) == 3
    record_preference(rater, ahead[0].comparison, "a")
    assert work_for(rater, 3)[:2] == ahead[1:]
    other = RaterFactory(project=project)
    assert work_for(other, 3) == []


def test_what_was_reserved_and_left_returns_to_the_queue_and_may_come_again():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    ann, ben = RaterFactory.create_batch(2, project=project)
    first, second = work_for(ann, 2)
    assert release(ann, [second.pk]) == 1
    assert next_comparison(ben).comparison_id == second.comparison_id
    assert work_for(ann, 2) == [first]
    release(ben)
    again = work_for(ann, 2)[1]
    assert (again.pk, again.shown_first) == (second.pk, second.shown_first)


def test_nobody_releases_what_others_hold():
    comparison = ComparisonFactory()
    ann, ben = RaterFactory.create_batch(2, project=comparison.project)
    held = next_comparison(ann)
    assert release(ben, [held.pk]) == 0
    assert next_comparison(ann) == held


# The same answer sent again


def test_the_same_answer_sent_again_is_kept_once():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    held = next_comparison(rater)
    sent = {"assignment_id": held.pk, "answer_key": "one"}
    kept = record_preference(rater, comparison, "b", strength=1, **sent)
    assert record_preference(rater, comparison, "b", strength=1, **sent) == kept
    with pytest.raises(NotYours):
        record_preference(rater, comparison, "b", assignment_id=held.pk, answer_key="two")
    assert Preference.objects.count() == 1


def test_the_same_skip_sent_again_is_one_skip():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    for _sent in range(2):
        skip_comparison(rater, comparison, "too long", flag="broken", answer_key="one")
    comparison.refresh_from_db()
    assert comparison.open_places == 1
    assert [f.kind for f in comparison.flags.all()] == ["broken"]


def test_an_undone_answer_sent_late_is_refused():
    """The page sends an answer again after its undo: the undo holds."""
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    held = next_comparison(rater)
    record_preference(rater, comparison, "a", assignment_id=held.pk, answer_key="one")
    undo_last(rater)
    record_preference(rater, comparison, "b", assignment_id=held.pk, answer_key="two")
    with pytest.raises(NotYours):
        record_preference(rater, comparison, "a", assignment_id=held.pk, answer_key="one")
    assert [p.choice for p in Preference.objects.current()] == ["b"]


# The random audit stream


def test_the_audit_stream_is_the_low_end_of_the_random_order_whatever_the_priorities():
    project = ProjectFactory(audit_share=0.25)
    keys = [(n + 0.5) / 40 for n in range(40)]
    for key in keys:
        ComparisonFactory(project=project, random_key=key, priority=int(key * 10))
    rater = RaterFactory(project=project)
    done = answer_all(rater)
    audit = [a.comparison.random_key for a in done if a.stream == "audit"]
    queue = [a.comparison.random_key for a in done if a.stream == "queue"]
    assert audit == [key for key in keys if key < 0.25]
    assert sorted(queue) == [key for key in keys if key >= 0.25]
    assert queue == sorted(queue, key=lambda key: (-int(key * 10), -key))
    kept = Preference.objects.order_by("pk")
    assert {(p.audit, p.inclusion_probability) for p in kept} == {(True, 0.25), (False, 0.75)}
    # The stream is drawn each time: it neither comes first nor waits for the end.
    places = [n for n, a in enumerate(done) if a.stream == "audit"]
    assert places != list(range(10))
    assert places != list(range(30, 40))


def test_every_kind_of_assignment_says_its_inclusion_probability():
    project = ProjectFactory(audit_share=0.5, check_share=0.2, repeat_share=0.2)
    known(project, "training")
    known(project, "qualification")
    for _n in range(5):
        known(project, "check")
    ComparisonFactory.create_batch(60, project=project)
    rater = RaterFactory(project=project)
    answer_all(rater)
    streams = set(Assignment.objects.values_list("stream", flat=True))
    assert streams >= {"training", "qualification", "queue", "audit"}
    for probability in Assignment.objects.values_list("inclusion_probability", flat=True):
        assert 0 < probability <= 1


# Gold comparisons


def test_gold_is_mixed_in_at_its_share_and_wants_no_labels():
    project = ProjectFactory(check_share=0.9)
    checks = {known(project, "check", gold="b").pk for _n in range(3)}
    work = {c.pk for c in ComparisonFactory.create_batch(40, project=project)}
    ann, ben = RaterFactory.create_batch(2, project=project)
    done = answer_all(ann)
    given = [a.comparison_id for a in done]
    assert len(given) == len(set(given))
    assert set(given) == work | checks
    # The work is done; gold alone is no work.
    assert next_comparison(ben) is None
    assert why_empty(ben).reason == "done"


def test_gold_needs_a_known_answer():
    project = ProjectFactory()
    with_gold = ComparisonFactory(project=project, gold="tie")
    without = ComparisonFactory(project=project)
    lead = UserFactory()
    assert set_purpose(project, [with_gold.pk, without.pk], "check", lead) == (1, 1)
    with_gold.refresh_from_db()
    assert (with_gold.purpose, with_gold.open_places, with_gold.labels_wanted) == ("check", 0, 0)
    assert set_purpose(project, [with_gold.pk], "work", lead) == (1, 0)
    with_gold.refresh_from_db()
    assert (with_gold.purpose, with_gold.open_places, with_gold.labels_wanted) == ("work", 1, 1)
    assert [c.action for c in Change.objects.all()] == ["change purpose"] * 2


# Training and qualification


def test_training_comes_first_then_the_qualification_then_work():
    project = ProjectFactory(qualification_pass=0.5)
    ComparisonFactory(project=project)
    for gold in "ab":
        known(project, "qualification", gold=gold)
    known(project, "training")
    rater = RaterFactory(project=project)
    # Ahead of training there is nothing: its feedback comes before the qualification.
    assert [a.stream for a in work_for(rater, 3)] == ["training"]
    done = answer_all(rater, "a")  # one of two is right: enough
    assert [a.stream for a in done] == ["training", "qualification", "qualification", "queue"]
    rater.refresh_from_db()
    assert rater.qualified_at is not None


def test_who_fails_the_qualification_gets_no_work_until_a_lead_says_so():
    project = ProjectFactory(qualification_pass=0.8)
    work = ComparisonFactory(project=project)
    for _n in range(2):
        known(project, "qualification", gold="b")
    rater, lead = RaterFactory(project=project), UserFactory()
    assert [a.stream for a in answer_all(rater, "a")] == ["qualification"] * 2
    assert why_empty(rater).reason == "disqualified"
    with pytest.raises(NotYours):
        record_preference(rater, work, "a")
    assert undo_last(rater) is None  # it was graded

    requalify(rater, lead)
    assert [a.stream for a in answer_all(rater, "b")] == ["qualification"] * 2 + ["queue"]
    let_in(rater, lead)
    assert rater.disqualified_at is None


def test_a_skipped_question_of_the_qualification_counts_as_not_right():
    project = ProjectFactory(qualification_pass=0.6)
    ComparisonFactory(project=project)
    for _n in range(2):
        known(project, "qualification")
    rater = RaterFactory(project=project)
    answer_all(rater, "a", at_most=1)
    skip_comparison(rater, next_comparison(rater).comparison)
    assert next_comparison(rater) is None
    assert why_empty(rater).reason == "disqualified"


def test_an_explained_answer_is_not_taken_back():
    project = ProjectFactory()
    known(project, "training")
    rater = RaterFactory(project=project)
    answer_all(rater, "b")
    assert undo_last(rater) is None
    with pytest.raises(NotYours, match="stay"):
        revise_preference(rater, Preference.objects.get(), "a")


def test_a_larger_qualification_is_asked_of_everybody():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    later = ComparisonFactory(project=project, gold="a", priority=-1)
    rater = RaterFactory(project=project)
    assert [a.stream for a in answer_all(rater, at_most=1)] == ["queue"]
    set_purpose(project, [later.pk], "qualification", UserFactory())
    assert [a.stream for a in answer_all(rater)] == ["qualification", "queue"]


# Repeats


def test_an_old_pair_comes_again_once_with_its_sides_exchanged():
    project = ProjectFactory(repeat_share=0.4)
    ComparisonFactory.create_batch(REPEAT_AFTER + 30, project=project)
    rater = RaterFactory(project=project)
    done = answer_all(rater)
    repeats = [a for a in done if a.stream == "repeat"]
    assert repeats, "with 30 chances of 0.4 one repeat comes in all but one of four million runs"
    order = [a.comparison_id for a in done]
    for repeat in repeats:
        first = next(a for a in done if a.comparison_id == repeat.comparison_id)
        assert repeat.shown_first != first.shown_first
        assert order.count(repeat.comparison_id) == 2
        assert done.index(repeat) - done.index(first) > REPEAT_AFTER
    # They are apart from preferences, and take no places.
    assert RepeatAnswer.objects.count() == len(repeats)
    assert Preference.objects.count() == REPEAT_AFTER + 30
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {0}


def test_a_repeat_is_undone_like_any_answer():
    project = ProjectFactory()
    ComparisonFactory.create_batch(REPEAT_AFTER + 2, project=project)
    rater = RaterFactory(project=project)
    answer_all(rater, at_most=REPEAT_AFTER + 1)
    rater.project.repeat_share = 1
    repeat = next_comparison(rater)
    assert repeat.stream == "repeat"
    record_preference(rater, repeat.comparison, "tie", assignment_id=repeat.pk)
    assert undo_last(rater) == repeat
    assert RepeatAnswer.objects.count() == 0
    release(rater)
    assert not Assignment.objects.filter(stream="repeat").exists()
    assert sum(Comparison.objects.values_list("open_places", flat=True)) == 1


# Limits and pauses


def test_a_rater_gets_no_more_than_the_limits_say():
    project = ProjectFactory(labels_per_rater=3)
    ComparisonFactory.create_batch(6, project=project)
    ann, ben = RaterFactory(project=project), RaterFactory(project=project, label_limit=1)
    assert len(work_for(ann, 5)) == 3
    assert len(answer_all(ann)) == 3
    assert why_empty(ann).reason == "limit"
    assert len(answer_all(ben)) == 1


def test_a_day_has_its_limit():
    project = ProjectFactory(labels_per_day=2)
    ComparisonFactory.create_batch(5, project=project)
    rater = RaterFactory(project=project)
    assert len(answer_all(rater)) == 2
    assert why_empty(rater).reason == "day_limit"
    Assignment.objects.update(closed_at=timezone.now() - timedelta(days=1))
    assert len(answer_all(rater)) == 2


def test_a_paused_rater_holds_nothing_and_is_told_why():
    comparison = ComparisonFactory(labels_wanted=1)
    ann, ben = RaterFactory.create_batch(2, project=comparison.project)
    lead = UserFactory()
    next_comparison(ann)
    pause_rater(ann, lead)
    with pytest.raises(NotYours, match="paused"):
        record_preference(ann, comparison, "a")
    with pytest.raises(NotYours, match="paused"):
        undo_last(ann)
    assert next_comparison(ann) is None
    assert why_empty(ann).reason == "paused"
    held = next_comparison(ben)
    assert held.comparison == comparison
    release(ben)
    resume_rater(ann, lead)
    assert next_comparison(ann).comparison == comparison
    assert [c.action for c in Change.objects.order_by("pk")] == ["pause rater", "resume rater"]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda rater, c: c.delete(), "nothing"),
        (lambda rater, c: next_comparison(RaterFactory(project=c.project)), "held"),
        (lambda rater, c: skip_comparison(rater, next_comparison(rater).comparison), "seen"),
        (lambda rater, c: answer_all(RaterFactory(project=c.project)), "done"),
    ],
)
def test_an_empty_queue_says_why(prepare, reason):
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    prepare(rater, comparison)
    assert next_comparison(rater) is None
    assert why_empty(rater).reason == reason


# Revising, better answers


def test_a_revised_answer_keeps_the_earlier_one():
    comparison = ComparisonFactory(labels_wanted=2)
    ann, ben = RaterFactory.create_batch(2, project=comparison.project)
    held = next_comparison(ann)
    first = record_preference(ann, comparison, "a", strength=2, seconds=31.0)
    second = revise_preference(ann, first, "tie", strength=2, rationale="I looked again")
    assert (second.choice, second.strength, second.seconds) == ("tie", None, 31.0)
    assert second.shown_first == held.shown_first
    assert list(Preference.objects.current()) == [second]
    for rater, preference in ((ann, first), (ben, second)):
        with pytest.raises(NotYours):
            revise_preference(rater, preference, "b")
    comparison.refresh_from_db()
    assert comparison.open_places == 1


def test_a_better_answer_is_preferred_to_both_and_leaves_with_its_undo():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    record_preference(rater, comparison, "a", better=" Better. ")
    written = Response.objects.get(author=rater)
    assert written.messages == [{"role": "assistant", "content": "Better."}]
    implied = Comparison.objects.exclude(pk=comparison.pk)
    assert {(c.response_a, c.response_b) for c in implied} == {
        (written, comparison.response_a),
        (written, comparison.response_b),
    }
    assert Preference.objects.current().filter(choice="a").count() == 3
    assert sum(implied.values_list("open_places", flat=True)) == 0
    undo_last(rater)
    assert Preference.objects.current().count() == 0
    record_preference(rater, comparison, "b", better="Better.")
    assert Preference.objects.current().count() == 3
    assert Response.objects.filter(author=rater).count() == 1


# Response sets


@pytest.fixture
def three():
    """A set of three responses to one prompt, and the comparisons of its pairs."""
    project = ProjectFactory()
    prompt = PromptFactory(project=project)
    response_set = ResponseSet.objects.create(project=project, prompt=prompt, content_hash="x")
    responses = ResponseFactory.create_batch(3, prompt=prompt)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        ComparisonFactory(
            project=project,
            prompt=prompt,
            response_a=responses[a],
            response_b=responses[b],
            response_set=response_set,
        )
    return response_set, [r.pk for r in responses]


def test_a_response_set_is_one_piece_of_work_and_a_ranking_implies_its_preferences(three):
    response_set, (one, two, three_) = three
    rater, other = RaterFactory.create_batch(2, project=response_set.project)
    pieces = work_for(rater, 3)
    assert len(pieces) == 1
    assert len(set_assignments(pieces[0])) == 3
    assert work_for(other, 3) == []
    with pytest.raises(ValueError, match="exactly once"):
        record_ranking(rater, response_set, [[one], [two]])
    ranking = record_ranking(rater, response_set, [[two], [one, three_]], answer_key="k")
    assert record_ranking(rater, response_set, [[two], [one, three_]], answer_key="k") == ranking
    choices = dict(Preference.objects.values_list("comparison__pk", "choice"))
    assert [choices[pk] for pk in sorted(choices)] == ["b", "tie", "a"]
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {0}
    with pytest.raises(NotYours):
        record_ranking(rater, response_set, [[one], [two], [three_]])


def test_a_ranking_is_undone_whole(three):
    response_set, responses = three
    rater = RaterFactory(project=response_set.project)
    work_for(rater, 1)
    record_ranking(rater, response_set, [[pk] for pk in responses])
    undo_last(rater)
    assert Preference.objects.current().count() == 0
    assert len(set_assignments(work_for(rater, 1)[0])) == 3
    record_ranking(rater, response_set, [responses])
    assert set(Preference.objects.current().values_list("choice", flat=True)) == {"tie"}
    assert response_set.rankings.filter(superseded_at=None).count() == 1


def test_a_set_that_ran_out_returns_whole(three):
    response_set, responses = three
    ann, ben = RaterFactory.create_batch(2, project=response_set.project)
    work_for(ann, 1)
    Assignment.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert take_back_expired() == 3
    assert len(set_assignments(work_for(ben, 1)[0])) == 3
    with pytest.raises(NotYours):
        record_ranking(ann, response_set, [[pk] for pk in responses])
    assert Preference.objects.count() == 0


# Cost


def test_the_number_of_queries_does_not_grow_with_the_project(django_assert_num_queries):
    project = ProjectFactory()
    ComparisonFactory.create_batch(5, project=project, labels_wanted=2)
    rater = RaterFactory(project=project, qualified_at=timezone.now())

    def one_label() -> None:
        held = work_for(rater, 1)[0]
        record_preference(rater, held.comparison, "a", assignment_id=held.pk)
        work_for(rater, 1)

    one_label()  # from here on one is held when the next label begins
    # Lock the rater, what they hold, texts; the answer: read, lock, close, keep, who listens; as at
    # first with a lease: take the place, write it down. Three transactions.
    with django_assert_num_queries(19):
        one_label()
    ComparisonFactory.create_batch(60, project=project, labels_wanted=2)
    with django_assert_num_queries(19):
        one_label()


def test_one_answer_of_a_ranking_is_not_revised_alone(three):
    response_set, responses = three
    rater = RaterFactory(project=response_set.project)
    work_for(rater, 1)
    record_ranking(rater, response_set, [[pk] for pk in responses])
    preference = rater.preferences.current().first()
    with pytest.raises(NotYours):
        revise_preference(rater, preference, "tie")
    assert rater.preferences.current().get(pk=preference.pk).choice == preference.choice


def test_a_rater_who_finds_no_work_takes_some_leases_back_and_the_sweep_the_rest():
    project = ProjectFactory()
    ComparisonFactory.create_batch(TAKEN_BACK_AT_ONCE + 5, project=project)
    gone = RaterFactory(project=project)
    work_for(gone, TAKEN_BACK_AT_ONCE + 5)
    gone.assignments.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert next_comparison(RaterFactory(project=project)) is not None
    assert gone.assignments.filter(state="leased").count() == 5
    assert take_back_expired() == 5
