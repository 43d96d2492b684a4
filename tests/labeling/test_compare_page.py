"""The labeling page, as a server sees it."""

import pytest
from django.test import Client

from labeling.assignment import next_comparison
from labeling.models import Assignment, Comparison, Preference, Rater
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
    return Assignment.objects.get(state="leased").comparison_id


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


def test_an_answer_with_htmx_brings_the_next_card_alone(client):
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
    assert "Your answer was not kept" in late.content.decode()
    assert list(Preference.objects.values_list("choice", "strength")) == [("a", 1)]


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
    client.post("/projects/tea/compare/skip/", {"comparison": first, "rationale": "not my field"})
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
    assert "There is no answer of yours to take back" in page.content.decode()


def test_a_new_rater_does_not_take_the_name_of_an_imported_one(client, project):
    user = MembershipFactory(project=project, role="rater").user
    RaterFactory(project=project, name=user.username)
    other = Client()
    other.force_login(user)
    other.get("/projects/tea/compare/")
    assert Rater.objects.get(user=user).name == f"{user.username} ({user.pk})"


def test_a_reason_that_is_too_long_to_skip_with_is_named(client):
    client.get("/projects/tea/compare/")
    data = {"comparison": held_comparison(), "rationale": "x" * 501}
    page = client.post("/projects/tea/compare/skip/", data, follow=True).content.decode()
    assert "at most 500 characters" in page
    assert not Assignment.objects.filter(state="skipped").exists()


def test_the_page_has_a_heading_and_every_button_says_in_words_what_it_means(client):
    page = client.get("/projects/tea/compare/").content.decode()
    assert page.count("<h1") == 1
    assert "Left response is much better" in page
    assert "Both are equally good" in page
