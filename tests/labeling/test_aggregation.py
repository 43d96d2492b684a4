"""Formulas that make one label of several answers: by hand and by property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.aggregation import decide, margin, soft_label
from labeling.models import Rater

PERSON, JUDGE = Rater.Kind.PERSON, Rater.Kind.JUDGE


@pytest.mark.parametrize(
    ("choices", "outcome"),
    [
        (["a", "a", "b"], "a"),
        (["b"], "b"),
        (["a", "b"], "disputed"),
        (["tie", "tie", "a"], "ties"),
        (["both_bad"], "both_bad"),
        (["a", "tie"], "disputed"),
        (["a", "a", "b", "b", "tie"], "disputed"),
    ],
)
def test_the_choice_with_the_most_votes_decides_and_a_shared_first_place_is_a_dispute(
    choices, outcome
):
    answers = [(PERSON, choice, rater) for rater, choice in enumerate(choices)]

    assert decide(answers, "human").outcome == outcome


def test_people_decide_before_judges_and_judges_only_where_no_person_answered():
    both = [(PERSON, "a", 1), (JUDGE, "b", 2), (JUDGE, "b", 3)]
    judges = [(JUDGE, "b", 2), (JUDGE, "unparsed", 3)]

    assert (decide(both, "mixed").outcome, decide(both, "mixed").source) == ("a", "human")
    assert (decide(both, "ai").outcome, decide(both, "human").outcome) == ("b", "a")
    assert (decide(judges, "mixed").outcome, decide(judges, "mixed").source) == ("b", "ai")
    assert decide(judges, "mixed").raters == (2,)
    assert decide(judges, "human").outcome == "unlabeled"


def test_a_dispute_between_people_is_not_settled_by_a_judge():
    answers = [(PERSON, "a", 1), (PERSON, "b", 2), (JUDGE, "b", 3)]

    assert decide(answers, "mixed").outcome == "disputed"


def test_only_unreadable_verdicts_are_counted_as_such():
    assert decide([(JUDGE, "unparsed", 1)], "mixed").outcome == "unparsed"


def test_a_soft_label_is_the_share_of_votes_and_a_tie_is_half():
    assert soft_label([("a", None), ("a", None), ("b", None)]) == pytest.approx(2 / 3)
    assert soft_label([("a", None), ("tie", None)]) == 0.75
    assert soft_label([("both_bad", None)]) == 0.5
    assert soft_label([("a", 0.9), ("b", 0.2)]) == pytest.approx(0.55)


@given(st.lists(st.sampled_from(["a", "b", "tie", "both_bad"]), min_size=1, max_size=20))
def test_a_soft_label_with_the_names_exchanged_is_the_rest_to_one(choices):
    exchanged = [{"a": "b", "b": "a"}.get(choice, choice) for choice in choices]
    there, back = ([(choice, None) for choice in side] for side in (choices, exchanged))
    assert soft_label(there) + soft_label(back) == pytest.approx(1)


def test_the_margin_is_the_mean_of_signed_strengths_over_three():
    assert margin("a", [("a", 3)]) == 1
    assert margin("b", [("b", 1)]) == pytest.approx(1 / 3)
    assert margin("a", [("a", 3), ("a", 2), ("b", 1)]) == pytest.approx(4 / 9)
    assert margin("a", [("a", None), ("tie", None)]) == 0
    assert margin("a", [("a", 1), ("b", 3)]) == 0  # never against the chosen response
