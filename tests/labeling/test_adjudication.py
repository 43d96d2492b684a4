"""A lead's decision: one at a time, instead of the votes for training, nowhere else."""

import pytest
from django.test import Client

from labeling.adjudication import decide, withdraw_decision
from labeling.agreement import agreement_report
from labeling.models import Comparison, Decision, Project
from labeling.votes import votes_of
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
)

pytestmark = pytest.mark.django_db


def lead_of(project: Project):
    return MembershipFactory(project=project, role="lead").user


def disputed_in(project: Project) -> Comparison:
    comparison = ComparisonFactory(project=project)
    for choice in "ab":
        rater = RaterFactory(project=project)
        PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
    return comparison


def test_a_decision_supersedes_the_former_one_and_both_stay():
    comparison = ComparisonFactory()
    lead = lead_of(comparison.project)
    first = decide(comparison, lead, "a", strength=3, note="The source says so.")
    second = decide(comparison, lead, "tie", strength=2)

    first.refresh_from_db()
    assert first.superseded_at is not None
    assert second.strength is None  # a tie has none
    assert comparison.decisions.get(superseded_at=None) == second
    changes = comparison.project.changes.order_by("pk").values_list("action", "before", "after")
    about = {"comparisons": [comparison.pk]}
    said = {"choice": "a", "strength": 3, "note": "The source says so."}
    assert list(changes) == [
        ("decide", {}, said | about),
        ("decide", said, {"choice": "tie"} | about),
    ]


def test_a_withdrawn_decision_decides_nothing_and_is_kept():
    comparison = ComparisonFactory()
    lead = lead_of(comparison.project)
    decide(comparison, lead, "b")
    withdraw_decision(comparison, lead)
    withdraw_decision(comparison, lead)
    assert not comparison.decisions.filter(superseded_at=None).exists()
    assert Decision.objects.count() == 1
    assert comparison.project.changes.count() == 2


@pytest.mark.parametrize("choice", ["unparsed", "maybe", ""])
def test_nobody_decides_for_what_is_no_answer(choice):
    comparison = ComparisonFactory()
    with pytest.raises(ValueError, match="no decision"):
        decide(comparison, lead_of(comparison.project), choice)


def test_agreement_between_raters_does_not_see_decisions():
    project = ProjectFactory()
    comparisons = [disputed_in(project) for _ in range(3)]
    before = agreement_report(votes_of(project))
    for comparison in comparisons:
        decide(comparison, lead_of(project), "a")
    assert agreement_report(votes_of(project)) == before


def test_disputed_comparisons_are_decided_one_after_the_other():
    project = ProjectFactory()
    first, second = disputed_in(project), disputed_in(project)
    PreferenceFactory(comparison=ComparisonFactory(project=project))
    client = Client()
    client.force_login(lead_of(project))
    start = f"/projects/{project.slug}/comparisons/"
    query = "?disagreement=people&decision=no"

    def at(response) -> str:
        return response.headers["Location"]

    # From the second the way leads back to the first, which is still undecided.
    page = client.get(f"{start}disputed/")
    assert at(page) == f"{start}{first.pk}/{query}"
    answer = client.post(f"{start}{second.pk}/decide/{query}", {"answer": "b-1", "note": "Kinder."})
    assert at(answer) == f"{start}{first.pk}/{query}"
    answer = client.post(f"{start}{first.pk}/decide/{query}", {"answer": "both_bad"})
    assert at(answer) == f"{start}{query}"
    assert "Nothing is left in this filter." in client.get(at(answer)).content.decode()

    current = Decision.objects.filter(superseded_at=None).order_by("comparison")
    assert list(current.values_list("comparison", "choice", "strength", "note")) == [
        (first.pk, "both_bad", None, ""),
        (second.pk, "b", 1, "Kinder."),
    ]


def test_a_decision_that_is_no_answer_is_not_kept():
    project = ProjectFactory()
    comparison = disputed_in(project)
    client = Client()
    client.force_login(lead_of(project))
    address = f"/projects/{project.slug}/comparisons/{comparison.pk}/decide/"
    page = client.post(address, {"answer": "c-1"}, follow=True)
    assert "Choose an answer." in page.content.decode()
    assert not Decision.objects.exists()


def test_a_decision_is_withdrawn_on_the_page():
    project = ProjectFactory()
    comparison = disputed_in(project)
    lead = lead_of(project)
    decide(comparison, lead, "b", note="Kinder.")
    client = Client()
    client.force_login(lead)
    address = f"/projects/{project.slug}/comparisons/{comparison.pk}/"
    page = client.post(f"{address}withdraw/", follow=True).content.decode()
    assert "the votes count again" in page
    assert "Earlier decisions" in page
    assert not comparison.decisions.filter(superseded_at=None).exists()
