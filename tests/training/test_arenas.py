"""Blind arenas: models meet on prompts that none was trained on, and nobody is told who is who."""

import pytest
from django.urls import reverse

from labeling.models import Comparison
from tests.factories import MembershipFactory, PreferenceFactory, RaterFactory, UserFactory
from tests.training.projects import labeled_project
from training.arenas import ArenaSettings, create_arena, held_out_prompts, progress_of
from training.datasets import freeze, pair_rows
from training.models import Arena, Run
from training.tasks import carry_out_job

pytestmark = pytest.mark.django_db

SMALL = {"max_new_tokens": 6, "temperature": 1.0}


@pytest.fixture
def project(tiny_model):
    project = labeled_project(24)
    for name, kind in (("base", "base"), ("newer", "policy"), ("third", "policy")):
        project.models.create(name=name, kind=kind, path=tiny_model)
    dataset = freeze(project)
    run = Run.objects.create(project=project, kind="dpo", status="succeeded", dataset=dataset)
    project.models.filter(name="newer").update(run=run)
    return project


@pytest.fixture
def lead(project, client):
    user = UserFactory(username="lea")
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def held(project, *models, **changes) -> Arena:
    made = create_arena(project, ArenaSettings(models=models, **{**SMALL, **changes}))
    carry_out_job(Arena, made.pk)
    made.refresh_from_db()
    return made


def test_models_meet_on_held_out_prompts_alone_and_an_arena_tops_up(project):
    held_out = held_out_prompts(project, ["newer", "base"])
    rows = pair_rows(project.datasets.get())
    assert {p.content_hash for p in held_out} == {
        row["prompt_id"] for row in rows if row["split"] == "test"
    }
    first = held(project, "newer", "base", n_pairs=1)
    assert (first.status, first.error) == ("succeeded", "")
    assert first.comparisons.count() == first.result["created"] == 1
    one = first.comparisons.get()
    assert one.prompt in held_out
    assert {one.response_a.source, one.response_b.source} == {"newer", "base"}
    assert one.open_places == 1
    again = held(project, "newer", "base", "third", n_pairs=2, seed=1)
    made = again.result["created"] + again.result["same"] + again.result["unanswered"]
    n = min(2, len(held_out))
    assert made == (n - 1) + 2 * n  # of the two that met before only what was missing
    assert progress_of(project).n_comparisons == 1 + again.result["created"]


def test_two_models_do_not_draw_the_same_numbers_and_sides_are_shuffled(project):
    found = held(project, "base", "third", n_pairs=50)  # the same weights under two names
    assert found.result["created"] > 0
    sides = list(found.comparisons.values_list("response_a__source", flat=True))
    assert found.result["same"] < found.result["created"]
    assert set(sides) <= {"base", "third"}


def test_the_rater_is_told_no_name(project, client):
    arena = held(project, "newer", "third", n_pairs=5)
    project.comparisons.exclude(arenas=arena).update(open_places=0)
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="rater")
    RaterFactory(project=project, user=user, name=user.username)
    client.force_login(user)
    page = client.get(reverse("labeling:compare", args=[project.slug])).content.decode()
    prompt = arena.comparisons.first().prompt.messages[0]["content"]
    assert "Tell me about place" in page, prompt
    assert "newer" not in page
    assert "third" not in page
    assert "arena" not in page.lower()


def test_the_page_begins_an_arena_and_never_says_who_wins(project, lead):
    url = reverse("training:arenas", args=[project.slug])
    refused = lead.post(url, {"models": ["base"], "n_pairs": 5, "seed": 0, **SMALL})
    assert "two to 12" in refused.content.decode()
    answer = lead.post(url, {"models": ["base", "newer"], "n_pairs": 5, "seed": 0, **SMALL})
    arena = Arena.objects.get()
    assert answer.url == reverse("training:arena", args=[project.slug, arena.pk])
    assert "Waiting for a worker" in lead.get(answer.url).content.decode()
    carry_out_job(Arena, arena.pk)
    ann = RaterFactory(project=project, name="ann-2")
    for comparison in arena.comparisons.select_related("response_a"):
        newer = "a" if comparison.response_a.source == "newer" else "b"
        PreferenceFactory(comparison=comparison, rater=ann, choice=newer)
    Comparison.objects.filter(arenas=arena).update(open_places=0)
    n = arena.comparisons.count()
    page = lead.get(url).content.decode()
    assert f"{n} of {n} comparisons have their labels" in page
    assert "%" not in page.split("<main")[1].split("</main")[0]  # no rate, no rank
    lead.post(reverse("training:cancel_arena", args=[project.slug, arena.pk]))
    arena.refresh_from_db()
    assert arena.status == "succeeded"


def test_where_every_prompt_was_trained_on_it_says_so(project):
    keys = [p.pk for p in held_out_prompts(project, ["newer"])]
    project.prompts.filter(pk__in=keys).delete()
    made = held(project, "newer", "base")
    assert made.status == "failed"
    assert "no model has seen" in made.error
