"""A rater's own answers: to look back on, and to change."""

import pytest
from django.test import Client

from labeling.answering import record_preference, skip_comparison
from labeling.assignment import next_comparison
from labeling.models import Preference, Rater
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    project = ProjectFactory(slug="tea")
    for n in range(3):
        prompt = PromptFactory(project=project, messages=[{"role": "user", "content": f"Why {n}?"}])
        ComparisonFactory(project=project, prompt=prompt, labels_wanted=2)
    return project


@pytest.fixture
def rater(project):
    user = MembershipFactory(project=project, role="rater").user
    return Rater.objects.create(project=project, user=user, name="ann")


@pytest.fixture
def client(rater):
    client = Client()
    client.force_login(rater.user)
    return client


def answer_next(rater: Rater, choice: str = "a", **answer) -> Preference:
    return record_preference(rater, next_comparison(rater).comparison, choice, **answer)


def test_answers_are_the_raters_own_newest_first(client, rater, project):
    first = answer_next(rater, strength=2, rationale="own-reason", tags=["clear"])
    second = answer_next(rater, "tie")
    answer_next(RaterFactory(project=project), rationale="other-reason")
    page = client.get("/projects/tea/answers/").content.decode()
    places = [page.index(f"/projects/tea/answers/{p.pk}/") for p in (second, first)]
    assert places == sorted(places)
    side = "left" if first.shown_first == "a" else "right"
    assert f"{side} is clearly better" in page
    assert "own-reason" in page
    assert "other-reason" not in page


def test_a_page_goes_on_where_the_last_one_ended(client, rater, project, monkeypatch):
    monkeypatch.setattr("labeling.views.answers.PER_PAGE", 2)
    given = [answer_next(rater) for _n in range(3)]
    # Equal times: the order must still be one.
    Preference.objects.update(created_at=given[0].created_at or "2026-01-01T00:00Z")
    first = client.get("/projects/tea/answers/").content.decode()
    assert [f"answers/{p.pk}/" in first for p in given] == [False, True, True]
    assert f"?before={given[1].pk}" in first
    second = client.get("/projects/tea/answers/", {"before": given[1].pk}).content.decode()
    assert [f"answers/{p.pk}/" in second for p in given] == [True, False, False]
    assert 'href="?before=' not in second


def test_an_answer_is_opened_and_changed_and_its_history_is_kept(client, rater):
    kept = answer_next(rater, strength=3, rationale="at first", tags=["clear"])
    left = kept.shown_first
    page = client.get(f"/projects/tea/answers/{kept.pk}/").content.decode()
    assert 'value="at first"' in page
    assert 'value="clear" checked' in page
    assert "data-menu" not in page
    other = "b" if left == "a" else "a"
    assert f'name="assignment" value="{rater.assignments.get().pk}"' in page
    changed = {"assignment": rater.assignments.get().pk, "answer": "right-1", "rationale": "now"}
    response = client.post(f"/projects/tea/answers/{kept.pk}/", changed)
    assert response.url == "/projects/tea/answers/"
    current = Preference.objects.current().get()
    assert (current.choice, current.strength, current.rationale) == (other, 1, "now")
    assert Preference.objects.count() == 2
    page = client.get(f"/projects/tea/answers/{current.pk}/").content.decode()
    assert "at first" in page
    old = client.get(f"/projects/tea/answers/{kept.pk}/").content.decode()
    assert "You have changed this answer since" in old
    again = client.post(f"/projects/tea/answers/{kept.pk}/", changed, follow=True)
    assert "you have changed it since" in again.content.decode()
    assert Preference.objects.count() == 2


def test_nobody_opens_or_changes_another_raters_answer(client, project):
    kept = answer_next(RaterFactory(project=project))
    address = f"/projects/tea/answers/{kept.pk}/"
    assert client.get(address).status_code == 404
    changed = {"assignment": kept.rater.assignments.get().pk, "answer": "tie"}
    assert client.post(address, changed).status_code == 404
    assert Preference.objects.get().choice == "a"


def test_graded_answers_stay_as_they_are(client, rater, project):
    ComparisonFactory(project=project, purpose="training", gold="b", labels_wanted=0)
    kept = answer_next(rater)
    page = client.get(f"/projects/tea/answers/{kept.pk}/").content.decode()
    assert "stay as they are" in page
    changed = {"assignment": rater.assignments.get().pk, "answer": "left-1"}
    page = client.post(f"/projects/tea/answers/{kept.pk}/", changed, follow=True)
    assert "stay as they are" in page.content.decode()
    assert Preference.objects.get().choice == "a"


def test_what_was_skipped_is_listed_with_its_reason(client, rater, project):
    held = next_comparison(rater)
    skip_comparison(rater, held.comparison, "not my field")
    page = client.get("/projects/tea/answers/").content.decode()
    assert "not my field" in page
    assert str(held.comparison.prompt) in page


@pytest.mark.parametrize("n_answers", [1, 3])
def test_the_list_costs_the_same_number_of_queries_for_any_length(
    client, rater, n_answers, django_assert_num_queries
):
    for _n in range(n_answers):
        answer_next(rater)
    with django_assert_num_queries(11):
        assert client.get("/projects/tea/answers/").status_code == 200
