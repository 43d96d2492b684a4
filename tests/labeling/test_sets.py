"""Sets of known answers: which comparisons are in them, and how raters did."""

import pytest
from django.test import Client

from labeling.models import Change, Project, ResponseSet
from labeling.sets import (
    choose_by_id,
    choose_unanimous,
    choose_with_gold,
    has_entrance,
    items,
    set_sizes,
)
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def gold(project: Project, purpose: str = "check", answer: str = "a"):
    return ComparisonFactory(
        project=project, purpose=purpose, gold=answer, labels_wanted=0, open_places=0
    )


def lead_of(project: Project) -> Client:
    client = Client()
    client.force_login(MembershipFactory(project=project, role="lead").user)
    return client


def test_an_item_that_most_people_miss_is_suspicious():
    project = ProjectFactory()
    hard, fine, new = gold(project), gold(project), gold(project)
    for choice in ["b", "b", "tie", "a"]:
        PreferenceFactory(comparison=hard, rater=RaterFactory(project=project), choice=choice)
    for choice in ["a", "a", "b", "a"]:
        PreferenceFactory(comparison=fine, rater=RaterFactory(project=project), choice=choice)
    judge = RaterFactory(project=project, kind="judge")
    PreferenceFactory(comparison=fine, rater=judge, choice="b")
    found = {item.comparison: item for item in items([hard, fine, new])}
    assert (found[hard].right.n_hits, found[hard].right.n) == (1, 4)
    assert found[hard].is_suspicious
    assert (found[fine].right.n_hits, found[fine].right.n) == (3, 4)
    assert not found[fine].is_suspicious
    assert found[new].right.value is None
    page = lead_of(project).get(f"/projects/{project.slug}/sets/").content.decode()
    assert page.count("look at it") == 1


def test_sizes_name_the_empty_sets_too():
    project = ProjectFactory()
    gold(project)
    ComparisonFactory(project=project)
    assert set_sizes(project) == {"training": 0, "qualification": 0, "check": 1}
    assert not has_entrance(project)
    gold(project, "training")
    assert has_entrance(project)


def test_comparisons_are_chosen_by_the_id_of_their_file_or_by_our_number():
    project = ProjectFactory()
    named = ComparisonFactory(project=project, external_id="tea-1")
    numbered = ComparisonFactory(project=project)
    without = ComparisonFactory(project=project, external_id="tea-2")
    ranked = ComparisonFactory(project=project, gold="b")
    ranked.response_set = ResponseSet.objects.create(
        project=project, prompt=ranked.prompt, content_hash="x"
    )
    ranked.save()
    elsewhere = ComparisonFactory(external_id="tea-3", gold="a")
    actor = UserFactory()
    numbered.gold = "b"
    numbered.save()
    names = ["tea-2", str(numbered.pk), str(ranked.pk), str(elsewhere.pk), "tea-3", "9" * 30]
    chosen = choose_by_id(project, names, "check", "", actor)
    assert (chosen.n_moved, chosen.n_without_gold) == (1, 1)
    assert (chosen.n_unknown, chosen.n_ranked) == (3, 1)
    chosen = choose_by_id(project, ["tea-1", "tea-2"], "training", "tie", actor)
    assert chosen.n_moved == 2
    purposes = dict(project.comparisons.values_list("pk", "purpose"))
    assert purposes == {
        named.pk: "training",
        numbered.pk: "check",
        without.pk: "training",
        ranked.pk: "work",
    }
    named.refresh_from_db()
    assert (named.gold, named.open_places) == ("tie", 0)
    known = Change.objects.get(action="set known answer")
    assert known.after == {str(named.pk): "tie", str(without.pk): "tie"}


def test_what_people_agree_on_becomes_gold():
    project = ProjectFactory()
    raters = RaterFactory.create_batch(3, project=project)
    judge = RaterFactory(project=project, kind="judge")

    def answered(*choices: str):
        comparison = ComparisonFactory(project=project)
        for rater, choice in zip(raters, choices, strict=False):
            PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
        PreferenceFactory(comparison=comparison, rater=judge, choice="tie")
        return comparison

    all_a, all_tie = answered("a", "a", "a"), answered("tie", "tie", "tie")
    disputed, few = answered("a", "a", "b"), answered("b", "b")
    chosen = choose_unanimous(project, 10, 3, "check", UserFactory())
    assert chosen.n_moved == 2
    found = {c.pk: (c.purpose, c.gold) for c in project.comparisons.all()}
    assert found == {
        all_a.pk: ("check", "a"),
        all_tie.pk: ("check", "tie"),
        disputed.pk: ("work", ""),
        few.pk: ("work", ""),
    }


def test_gold_of_the_file_is_drawn_at_random_up_to_a_number():
    project = ProjectFactory()
    for key in (0.9, 0.1, 0.5):
        ComparisonFactory(project=project, gold="b", random_key=key)
    ComparisonFactory(project=project, random_key=0.0)
    assert choose_with_gold(project, 2, "qualification", UserFactory()).n_moved == 2
    in_set = project.comparisons.filter(purpose="qualification")
    assert sorted(in_set.values_list("random_key", flat=True)) == [0.1, 0.5]


def test_a_lead_puts_in_and_takes_out_and_a_viewer_only_looks():
    project = ProjectFactory(labels_per_comparison=2)
    comparison = ComparisonFactory(project=project)
    lead = lead_of(project)
    path = f"/projects/{project.slug}/sets/"
    sent = {"purpose": "check", "source": "ids", "ids": f"{comparison.pk}\nnone", "gold": "b"}
    page = lead.post(path, sent, follow=True).content.decode()
    assert "1 comparison put in." in page
    assert "1 left out: no comparison of this project has that id." in page
    comparison.refresh_from_db()
    assert (comparison.purpose, comparison.gold, comparison.open_places) == ("check", "b", 0)
    viewer = Client()
    viewer.force_login(MembershipFactory(project=project, role="viewer").user)
    page = viewer.get(path).content.decode()
    assert "B is better" in page
    assert "Take out" not in page
    assert viewer.post(f"{path}{comparison.pk}/out/").status_code == 403
    lead.post(f"{path}{comparison.pk}/out/")
    comparison.refresh_from_db()
    assert (comparison.purpose, comparison.open_places) == ("work", 2)


def test_ids_are_asked_for_where_ids_are_meant():
    project = ProjectFactory()
    page = lead_of(project).post(
        f"/projects/{project.slug}/sets/", {"purpose": "check", "source": "ids"}
    )
    assert page.status_code == 422
    assert "Give at least one id." in page.content.decode()
