"""A judge's verdict as a preference."""

import pytest

from labeling.judgements import record_judgement
from labeling.models import Preference
from tests.factories import ComparisonFactory, RaterFactory

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("prob_a", "choice"), [(0.9, "a"), (0.500001, "a"), (0.5, "tie"), (0.1, "b")]
)
def test_the_probability_decides_the_choice(prob_a, choice):
    comparison = ComparisonFactory()
    judge = RaterFactory(project=comparison.project, kind="judge")

    preference = record_judgement(judge, comparison, prob_a=prob_a, prob_a_ab=0.7, rationale="So.")

    preference.refresh_from_db()
    assert (preference.choice, preference.prob_a, preference.prob_a_ab) == (choice, prob_a, 0.7)
    assert preference.rationale == "So."


def test_an_unreadable_verdict_has_no_probability():
    comparison = ComparisonFactory()
    judge = RaterFactory(project=comparison.project, kind="judge")

    preference = record_judgement(judge, comparison, prob_a=0.9, parsed=False)

    assert (preference.choice, preference.prob_a) == ("unparsed", None)


def test_a_new_verdict_replaces_the_old_one_and_keeps_it():
    comparison = ComparisonFactory()
    judge = RaterFactory(project=comparison.project, kind="judge")

    record_judgement(judge, comparison, prob_a=0.9)
    record_judgement(judge, comparison, prob_a=0.2)

    assert [p.choice for p in Preference.objects.current().filter(rater=judge)] == ["b"]
    assert Preference.objects.filter(rater=judge).count() == 2


def test_a_person_or_a_stranger_leaves_no_verdict():
    comparison = ComparisonFactory()

    with pytest.raises(ValueError, match="no AI judge"):
        record_judgement(RaterFactory(project=comparison.project), comparison, prob_a=0.9)
    with pytest.raises(ValueError, match="another project"):
        record_judgement(RaterFactory(kind="judge"), comparison, prob_a=0.9)
    judge = RaterFactory(project=comparison.project, kind="judge")
    with pytest.raises(ValueError, match="no probability"):
        record_judgement(judge, comparison, prob_a=1.2)
    assert not Preference.objects.exists()


def test_a_verdict_takes_no_place_of_a_persons_label():
    comparison = ComparisonFactory(labels_wanted=2)
    judge = RaterFactory(project=comparison.project, kind="judge")

    record_judgement(judge, comparison, prob_a=0.9)

    comparison.refresh_from_db()
    assert comparison.open_places == 2
