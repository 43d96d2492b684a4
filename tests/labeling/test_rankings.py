"""Ranking several responses at once: the card, the order that is kept, skip, undo, twice sent."""

import re
from datetime import timedelta
from itertools import combinations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling.assignment import ranking_places, set_assignments, work_for
from labeling.models import (
    Assignment,
    Comparison,
    Flag,
    Preference,
    Project,
    Ranking,
    Rater,
    Response,
    ResponseSet,
    content_hash,
)
from labeling.views.rank import rank_card
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db
RANK = "/projects/kitchen/compare/rank/"


def make_set(project: Project, k: int = 3, wanted: int = 1) -> ResponseSet:
    prompt = PromptFactory(project=project)
    the_set = ResponseSet.objects.create(
        project=project, prompt=prompt, content_hash=content_hash(prompt.pk)
    )
    responses = ResponseFactory.create_batch(k, prompt=prompt, source="secret-model")
    for a, b in combinations(responses, 2):
        ComparisonFactory(
            project=project,
            prompt=prompt,
            response_a=a,
            response_b=b,
            response_set=the_set,
            labels_wanted=wanted,
            random_key=0.5,
        )
    return the_set


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", guidelines="Be kind.")


@pytest.fixture
def client(project) -> Client:
    return client_of(project, "ann")


def client_of(project: Project, name: str) -> Client:
    user = UserFactory(username=name)
    MembershipFactory(project=project, user=user, role="rater")
    client = Client()
    client.force_login(user)
    return client


def card_of(client: Client, project: Project):
    """The set in the hands of the one rater of this client: (assignment, card)."""
    client.get("/projects/kitchen/compare/")
    rater = Rater.objects.get(project=project, user=client.session["_auth_user_id"])
    (assignment,) = work_for(rater, 1)
    return assignment, rank_card(assignment)


def places(card, *numbers: int) -> dict[str, int]:
    """Form fields that give the responses of a card, from the left, these places."""
    shown = [entry.name for entry in card.responses]
    return {f"place-{name}": place for name, place in zip(shown, numbers, strict=True)}


def named(assignment: Assignment, **more) -> dict:
    return {"assignment": assignment.pk} | more


def test_the_page_shows_all_responses_of_a_set_blind(client, project):
    the_set = make_set(project, k=4)
    html = client.get("/projects/kitchen/compare/").content.decode()
    for response in the_set.prompt.responses.all():
        assert str(response) in html
        # Ids follow the file, hence the models.
        assert not re.search(rf'(place-|data-(chip|response)="){response.pk}"', html)
    assert "secret-model" not in html
    assert re.findall(r'data-chip="\w{12}">(\w)<', html) == ["A", "B", "C", "D"]
    assert "Put the responses in order" in html
    assert Assignment.objects.filter(state="leased").count() == 6


def test_an_order_is_kept_with_every_preference_that_it_implies(client, project):
    the_set = make_set(project, k=3)
    assignment, card = card_of(client, project)
    answer = places(card, 2, 1, 2) | {"rationale": "clearer", "seconds": "12.5"}
    response = client.post(RANK, named(assignment) | answer)
    assert response.url == "/projects/kitchen/compare/"
    left, middle, right = (entry.response.pk for entry in card.responses)
    ranking = Ranking.objects.get()
    assert [sorted(tied) for tied in ranking.order] == [[middle], sorted([left, right])]
    assert (ranking.rationale, ranking.seconds) == ("clearer", 12.5)
    assert ranking.response_set == the_set
    better = {
        frozenset((p.comparison.response_a_id, p.comparison.response_b_id)): {
            "a": p.comparison.response_a_id,
            "b": p.comparison.response_b_id,
        }.get(p.choice, p.choice)
        for p in ranking.preferences.select_related("comparison")
    }
    assert better == {
        frozenset((left, middle)): middle,
        frozenset((middle, right)): middle,
        frozenset((left, right)): "tie",
    }
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {0}


def test_gaps_between_places_say_nothing(client, project):
    make_set(project, k=3)
    assignment, card = card_of(client, project)
    client.post(RANK, named(assignment) | places(card, 3, 1, 1))
    left, middle, right = (entry.response.pk for entry in card.responses)
    assert [set(tied) for tied in Ranking.objects.get().order] == [{middle, right}, {left}]


def test_without_a_measured_time_it_is_the_time_since_it_was_given_out(client, project):
    make_set(project)
    assignment, card = card_of(client, project)
    client.post(RANK, named(assignment) | places(card, 1, 2, 3))
    assert 0 < Ranking.objects.get().seconds < 60


def test_what_stood_first_is_what_the_page_showed_first(project):
    the_set = make_set(project, k=5)
    for rater in RaterFactory.create_batch(3, project=project):
        Comparison.objects.update(open_places=1)
        (piece,) = work_for(rater, 1)
        shown = [entry.response.pk for entry in rank_card(piece).responses]
        assert sorted(shown) == sorted(the_set.prompt.responses.values_list("pk", flat=True))
        for assignment in set_assignments(piece):
            comparison = assignment.comparison
            first = {"a": comparison.response_a_id, "b": comparison.response_b_id}
            second = first["b" if assignment.shown_first == "a" else "a"]
            assert shown.index(first[assignment.shown_first]) < shown.index(second)
        assert [entry.response.pk for entry in rank_card(piece).responses] == shown


def test_places_are_dealt_by_chance_from_rater_to_rater():
    orders = [tuple(ranking_places(rater, range(1, 4))) for rater in range(6000)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 6
    assert all(850 < n < 1150 for n in counts.values())
    # the same for one rater, in whatever company
    assert ranking_places(7, [1, 3]) == [pk for pk in ranking_places(7, [1, 2, 3]) if pk != 2]


@pytest.mark.parametrize("numbers", [(1, 2, ""), (1, 2, 4), (0, 1, 2), (1, 2, "x"), (1, 2, 1.5)])
def test_an_order_that_leaves_one_out_is_refused(client, project, numbers):
    make_set(project)
    assignment, card = card_of(client, project)
    page = client.post(RANK, named(assignment) | places(card, *numbers), follow=True)
    assert "Give each response a place." in page.content.decode()
    assert (Ranking.objects.count(), Preference.objects.count()) == (0, 0)
    assert Assignment.objects.filter(state="leased").count() == 3


def test_the_script_is_told_why_and_gets_the_card_again(client, project):
    make_set(project)
    assignment, _card = card_of(client, project)
    response = client.post(RANK, named(assignment), headers={"HX-Request": "true"})
    assert response.status_code == 409
    assert 'data-refused="Give each response a place."' in response.content.decode()
    assert f'data-pair="{assignment.pk}"' in response.content.decode()


def test_an_order_sent_twice_is_kept_once(client, project):
    make_set(project)
    assignment, card = card_of(client, project)
    body = named(assignment, answer_key="k1") | places(card, 1, 2, 3)
    htmx = {"HX-Request": "true"}
    assert client.post(RANK, body, headers=htmx).status_code == 200
    kept = list(Preference.objects.order_by("pk").values())
    assert client.post(RANK, body, headers=htmx).status_code == 200
    assert list(Preference.objects.order_by("pk").values()) == kept
    assert Ranking.objects.count() == 1
    other = client.post(RANK, body | {"answer_key": "k2"}, headers=htmx)
    assert other.status_code == 409
    assert Ranking.objects.count() == 1


def test_a_set_of_somebody_else_is_refused(client, project):
    make_set(project)
    assignment, card = card_of(client, project)
    bo = client_of(project, "bo")
    for path in (RANK, f"{RANK}skip/"):
        body = named(assignment) | places(card, 1, 2, 3)
        assert bo.post(path, body, headers={"HX-Request": "true"}).status_code == 409
    for nonsense in ("", "x", "-1", "9" * 30):
        body = named(assignment) | {"assignment": nonsense}
        assert bo.post(RANK, body, headers={"HX-Request": "true"}).status_code == 409
    assert Ranking.objects.count() == 0
    assert set(Assignment.objects.values_list("state", flat=True)) == {"leased"}


def test_a_single_pair_is_not_ranked(client, project):
    ComparisonFactory(project=project)
    client.get("/projects/kitchen/compare/")
    assignment = Assignment.objects.get()
    answer = client.post(RANK, named(assignment), headers={"HX-Request": "true"})
    assert answer.status_code == 409
    assert "This ranking is not yours to give." in answer.content.decode()


def test_a_skipped_set_goes_to_others_whole(client, project):
    make_set(project)
    assignment, _card = card_of(client, project)
    body = named(assignment, reason="too long", answer_key="k1")
    for _ in range(2):  # the second is the first, sent again
        answer = client.post(f"{RANK}skip/", body, headers={"HX-Request": "true"})
        assert answer.status_code == 200
    skipped = Assignment.objects.values_list("state", "skip_reason", flat=False)
    assert set(skipped) == {("skipped", "too long")}
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {1}
    assert "data-empty" in client.get("/projects/kitchen/compare/").content.decode()
    assert len(set_assignments(work_for(RaterFactory(project=project))[0])) == 3


def test_a_flagged_set_is_flagged_and_passed_on(client, project):
    make_set(project)
    assignment, _card = card_of(client, project)
    client.post(f"{RANK}skip/", named(assignment, flag="unsafe", note="see C"))
    assert set(Flag.objects.values_list("kind", "note")) == {("unsafe", "see C")}
    assert Flag.objects.count() == 3
    assert Ranking.objects.count() == 0


def test_an_order_taken_back_comes_back_filled_in(client, project):
    make_set(project)
    ComparisonFactory.create_batch(2, project=project, random_key=0.1)
    assignment, card = card_of(client, project)
    client.post(RANK, named(assignment, rationale="mine") | places(card, 2, 1, 3))
    back = client.post(
        "/projects/kitchen/compare/undo/",
        {"assignment": assignment.pk},
        headers={"HX-Request": "true"},
    )
    html = back.content.decode()
    assert f'data-back="{assignment.pk}"' in html
    assert re.findall(r"<option selected>(\d)</option>", html) == ["2", "1", "3"]
    assert "You took this order back" in html
    assert 'value="mine"' in html
    assert Ranking.objects.get().superseded_at is not None
    assert Preference.objects.current().count() == 0

    client.post(RANK, named(assignment) | places(card, 1, 2, 3))
    first = card.responses[0].response.pk
    assert Ranking.objects.get(superseded_at=None).order[0] == [first]
    assert Preference.objects.current().count() == 3


def test_a_part_of_a_set_is_ranked_as_what_it_is(client, project):
    """Two of its pairs were labeled from a file: what is left are the responses of the third."""
    make_set(project)
    Comparison.objects.filter(pk__in=Comparison.objects.values_list("pk")[:2]).update(open_places=0)
    assignment, card = card_of(client, project)
    assert len(card.responses) == 2
    client.post(RANK, named(assignment) | places(card, 1, 2))
    assert Preference.objects.count() == 1
    assert Response.objects.count() == 3


def test_a_card_costs_the_same_queries_for_three_and_for_nine(project, client):
    n_queries = {}
    for k in (3, 9):
        Comparison.objects.all().delete()
        make_set(project, k=k)
        client.get("/projects/kitchen/compare/")  # leases a place of every pair
        with CaptureQueriesContext(connection) as captured:
            client.get("/projects/kitchen/compare/")
        n_queries[k] = len(captured)
    assert n_queries[3] == n_queries[9]


def test_an_order_is_one_row_of_my_answers_and_can_be_changed(client, project):
    make_set(project, k=3)
    assignment, card = card_of(client, project)
    client.post(RANK, named(assignment, rationale="at first", seconds="9") | places(card, 2, 1, 2))
    before = list(Preference.objects.order_by("comparison"))
    page = client.get("/projects/kitchen/answers/").content.decode()
    kept = Ranking.objects.get()
    assert page.count("answers/rankings/") == 1
    assert "B, A = C" in page
    address = f"/projects/kitchen/answers/rankings/{kept.pk}/"
    assert address in page
    # The pairs that follow from it lead to it.
    assert client.get(f"/projects/kitchen/answers/{before[0].pk}/").url == address
    page = client.get(address).content.decode()
    assert re.findall(r"<option selected>(\d)</option>", page) == ["2", "1", "2"]
    assert 'value="at first"' in page
    assert "secret-model" not in page

    answer = client.post(address, places(card, 1, 2, 3) | {"rationale": "now"})
    assert answer.url == "/projects/kitchen/answers/"
    kept.refresh_from_db()
    revised = Ranking.objects.get(superseded_at=None)
    assert kept.superseded_at is not None
    assert revised.order == [[entry.response.pk] for entry in card.responses]
    assert (revised.rationale, revised.seconds) == ("now", 9)
    current = list(Preference.objects.current().order_by("comparison"))
    assert [p.ranking for p in current] == [revised] * 3
    asked = [(p.shown_first, p.inclusion_probability, p.audit) for p in before]
    assert [(p.shown_first, p.inclusion_probability, p.audit) for p in current] == asked
    assert [p.choice for p in current] == [p.shown_first for p in current]
    assert Preference.objects.exclude(superseded_at=None).count() == 3
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {0}

    page = client.get(f"/projects/kitchen/answers/rankings/{revised.pk}/").content.decode()
    assert "at first" in page
    again = client.post(address, places(card, 3, 2, 1), follow=True).content.decode()
    assert "you have changed it since" in again
    assert Ranking.objects.get(superseded_at=None) == revised
    half = client.post(
        f"/projects/kitchen/answers/rankings/{revised.pk}/", places(card, 1, 2, ""), follow=True
    )
    assert "nothing was changed" in half.content.decode()


def test_nobody_reads_or_changes_the_order_of_another_rater(client, project):
    make_set(project)
    assignment, card = card_of(client, project)
    client.post(RANK, named(assignment) | places(card, 1, 2, 3))
    address = f"/projects/kitchen/answers/rankings/{Ranking.objects.get().pk}/"
    bo = client_of(project, "bo")
    assert bo.get(address).status_code == 404
    assert bo.post(address, places(card, 3, 2, 1)).status_code == 404
    assert Ranking.objects.count() == 1


def test_a_ranking_is_one_answer_in_every_count_and_limit(client, project):
    project.labels_per_day, project.labels_per_rater = 2, 3
    project.save()
    for _n in range(2):
        make_set(project)
    ComparisonFactory.create_batch(3, project=project, random_key=0.1)
    for n in range(2):
        assignment, card = card_of(client, project)
        client.post(RANK, named(assignment) | places(card, 1, 2, 3))
        page = client.get("/projects/kitchen/compare/").content.decode()
        assert f'data-today="{n + 1}"' in page
    assert "at most 2 labels a day" in page
    Assignment.objects.update(closed_at=timezone.now() - timedelta(days=2))
    page = client.get("/projects/kitchen/compare/").content.decode()
    client.post(
        "/projects/kitchen/compare/",
        {"assignment": Assignment.objects.get(state="leased").pk, "answer": "tie"},
    )
    page = client.get("/projects/kitchen/compare/").content.decode()
    assert "as many labels as this project takes" in page
    mine = client.get("/projects/kitchen/answers/").content.decode()
    assert re.findall(r"<dd>(\d+)</dd>", mine)[:2] == ["3", "1"]
