"""Which comparison a rater sees next, and what becomes of the answer."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from labeling.answering import record_preference, skip_comparison, undo_last
from labeling.assignment import next_comparison, why_empty, work_for
from labeling.imports.interchange import parse_row
from labeling.imports.rows import RowStore
from labeling.models import Assignment, Comparison, Preference
from labeling.places import NotYours, count_places, take_back_expired
from tests.factories import ComparisonFactory, PreferenceFactory, ProjectFactory, RaterFactory

pytestmark = pytest.mark.django_db


def let_leases_run_out():
    Assignment.objects.filter(state="leased").update(
        expires_at=timezone.now() - timedelta(seconds=1)
    )


def test_a_rater_never_sees_a_comparison_twice():
    project = ProjectFactory()
    rater = RaterFactory(project=project)
    first, second = ComparisonFactory.create_batch(2, project=project, labels_wanted=3)
    seen = []
    while (assignment := next_comparison(rater)) is not None:
        seen.append(assignment.comparison)
        record_preference(rater, assignment.comparison, "a")
    assert sorted(c.pk for c in seen) == [first.pk, second.pk]


def test_an_imported_answer_of_the_same_rater_counts_as_seen():
    project = ProjectFactory()
    rater = RaterFactory(project=project)
    judged, fresh = ComparisonFactory.create_batch(2, project=project, labels_wanted=2)
    PreferenceFactory(comparison=judged, rater=rater)
    assert next_comparison(rater).comparison == fresh


def test_asking_again_gives_the_comparison_that_is_held():
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    rater = RaterFactory(project=project)
    assert next_comparison(rater) == next_comparison(rater)


def test_other_projects_stay_out_of_the_queue():
    ComparisonFactory()
    assert next_comparison(RaterFactory()) is None


def test_the_last_place_is_given_once():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    ann, ben = RaterFactory.create_batch(2, project=project)
    assert next_comparison(ann) is not None
    assert next_comparison(ben) is None
    empty = why_empty(ben)
    assert (empty.n_held, empty.n_open) == (1, 0)
    assert empty.held_until == Assignment.objects.get().expires_at


def test_the_database_itself_refuses_one_place_too_many():
    comparison = ComparisonFactory(open_places=0)
    with pytest.raises(IntegrityError), transaction.atomic():
        Comparison.objects.filter(pk=comparison.pk).update(open_places=F("open_places") - 1)


def test_the_database_itself_refuses_a_second_current_preference():
    preference = PreferenceFactory()
    with pytest.raises(IntegrityError), transaction.atomic():
        PreferenceFactory(comparison=preference.comparison, rater=preference.rater)


def test_higher_priority_comes_first_then_the_one_nearest_to_completion():
    project = ProjectFactory()
    ComparisonFactory(project=project, labels_wanted=3)
    begun = ComparisonFactory(project=project, labels_wanted=3, open_places=1)
    urgent = ComparisonFactory(project=project, labels_wanted=3, priority=1)
    rater = RaterFactory(project=project)
    order = []
    while (assignment := next_comparison(rater)) is not None:
        order.append(assignment.comparison)
        record_preference(rater, assignment.comparison, "b")
    assert order[:2] == [urgent, begun]


def test_an_abandoned_comparison_returns_by_itself():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    ann, ben = RaterFactory.create_batch(2, project=project)
    next_comparison(ann)
    let_leases_run_out()
    assert next_comparison(ben).comparison == comparison
    assert Assignment.objects.get(rater=ann).state == "expired"


def test_taking_back_twice_returns_a_place_once():
    comparison = ComparisonFactory()
    next_comparison(RaterFactory(project=comparison.project))
    let_leases_run_out()
    assert (take_back_expired(), take_back_expired()) == (1, 0)
    comparison.refresh_from_db()
    assert comparison.open_places == 1


def test_a_late_answer_is_kept_while_a_place_is_free():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    let_leases_run_out()
    take_back_expired()
    record_preference(rater, comparison, "tie")
    comparison.refresh_from_db()
    assert comparison.open_places == 0
    assert Preference.objects.get().choice == "tie"


def test_a_late_answer_is_refused_once_others_have_taken_the_place():
    comparison = ComparisonFactory()
    slow, quick = RaterFactory.create_batch(2, project=comparison.project)
    next_comparison(slow)
    let_leases_run_out()
    next_comparison(quick)
    with pytest.raises(NotYours, match="too long"):
        record_preference(slow, comparison, "a")
    assert Preference.objects.count() == 0
    assert Assignment.objects.get(rater=slow).state == "expired"


def test_a_second_answer_is_refused_and_changes_nothing():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    record_preference(rater, comparison, "a", strength=3)
    with pytest.raises(NotYours):
        record_preference(rater, comparison, "b")
    assert list(Preference.objects.values_list("choice", "strength")) == [("a", 3)]


def test_an_answer_without_an_assignment_is_refused():
    comparison = ComparisonFactory()
    with pytest.raises(NotYours):
        record_preference(RaterFactory(project=comparison.project), comparison, "a")
    assert Preference.objects.count() == 0


def test_a_tie_has_no_strength():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    assert record_preference(rater, comparison, "tie", strength=2).strength is None


def test_a_skipped_comparison_goes_to_somebody_else_and_not_back():
    comparison = ComparisonFactory()
    ann, ben = RaterFactory.create_batch(2, project=comparison.project)
    next_comparison(ann)
    skip_comparison(ann, comparison, "I do not read Greek")
    assert next_comparison(ann) is None
    assert next_comparison(ben).comparison == comparison
    assert Assignment.objects.get(rater=ann).skip_reason == "I do not read Greek"


def test_undo_shows_the_last_comparison_again_and_keeps_the_earlier_answer():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    rater = RaterFactory(project=project)
    first = next_comparison(rater)
    record_preference(rater, first.comparison, "a", rationale="shorter")
    second = next_comparison(rater)
    assert undo_last(rater) == first
    # What was held meanwhile stays with the rater and comes after it.
    assert work_for(rater, 2) == [first, second]
    record_preference(rater, first.comparison, "b")
    answers = first.comparison.preferences.order_by("pk")
    assert [(p.choice, p.superseded_at is None) for p in answers] == [("a", False), ("b", True)]


def test_undo_with_nothing_to_undo_changes_nothing():
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    held = next_comparison(rater)
    assert undo_last(rater) is None
    assert next_comparison(rater) == held


def test_sides_are_shuffled_and_stay_when_the_page_is_loaded_again():
    project = ProjectFactory()
    ComparisonFactory.create_batch(60, project=project)
    rater = RaterFactory(project=project)
    first_sides = []
    while (assignment := next_comparison(rater)) is not None:
        assert next_comparison(rater).shown_first == assignment.shown_first
        first_sides.append(assignment.shown_first)
        kept = record_preference(rater, assignment.comparison, "a")
        assert kept.shown_first == assignment.shown_first
    # 60 fair coins: fewer than 12 or more than 48 heads happens once in two million times.
    assert 12 <= first_sides.count("a") <= 48


def test_undo_takes_a_skip_back_when_the_skip_came_last():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    rater = RaterFactory(project=project)
    answered = next_comparison(rater)
    record_preference(rater, answered.comparison, "a")
    skipped = next_comparison(rater)
    skip_comparison(rater, skipped.comparison)
    assert undo_last(rater) == skipped
    assert next_comparison(rater) == skipped
    assert Preference.objects.current().count() == 1


def test_a_skip_cannot_be_undone_once_others_have_the_comparison():
    comparison = ComparisonFactory()
    ann, ben = RaterFactory.create_batch(2, project=comparison.project)
    next_comparison(ann)
    skip_comparison(ann, comparison)
    next_comparison(ben)
    with pytest.raises(NotYours, match="Others have"):
        undo_last(ann)
    assert Assignment.objects.get(rater=ann).state == "skipped"


def test_a_vote_that_is_imported_while_the_place_is_held_keeps_it_filled():
    project = ProjectFactory()
    ann, ben = RaterFactory.create_batch(2, project=project)
    record = {"prompt": "Why?", "response_a": "Because.", "response_b": "No idea."}
    RowStore(project).store([parse_row(record)])
    comparison = next_comparison(ann).comparison
    voted = record | {"preferences": [{"rater": "from-a-file", "choice": "a"}]}
    RowStore(project).store([parse_row(voted)])
    assert comparison.preferences.count() == 1
    skip_comparison(ann, comparison)
    comparison.refresh_from_db()
    assert comparison.open_places == 0
    assert next_comparison(ben) is None


def test_the_same_place_given_back_twice_is_free_once():
    """What two undo requests at once do on PostgreSQL: both believe that they give it back."""
    comparison = ComparisonFactory()
    rater = RaterFactory(project=comparison.project)
    next_comparison(rater)
    rater.assignments.all().delete()
    for _request in range(2):
        count_places([comparison.pk])
    comparison.refresh_from_db()
    assert comparison.open_places == 1
