"""The history of a project: who changed what, and what it was before."""

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from labeling import queue
from labeling.changes import differences, note_change
from labeling.models import Project
from labeling.views import history
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def viewer_of(project: Project) -> Client:
    client = Client()
    client.force_login(MembershipFactory(project=project, role="viewer").user)
    return client


def test_changes_are_read_newest_first_page_by_page(monkeypatch):
    monkeypatch.setattr(history, "PAGE", 2)
    project, actor = ProjectFactory(), UserFactory()
    for n in range(3):
        note_change(project, actor, f"act {n}", "something")
    note_change(ProjectFactory(), actor, "act elsewhere", "something")
    client = viewer_of(project)

    page = client.get(f"/projects/{project.slug}/history/")
    assert [change.action for change in page.context["changes"]] == ["act 2", "act 1"]
    earlier = client.get(f"/projects/{project.slug}/history/?before={page.context['next']}")
    assert [change.action for change in earlier.context["changes"]] == ["act 0"]
    assert earlier.context["next"] is None


def test_changes_of_one_person_are_found():
    project, ann, ben = ProjectFactory(), UserFactory(username="ann"), UserFactory()
    note_change(project, ann, "pause rater", "eve")
    note_change(project, ben, "resume rater", "eve")
    client = viewer_of(project)
    page = client.get(f"/projects/{project.slug}/history/?by=ann").content.decode()
    assert "pause rater" in page
    assert "resume rater" not in page
    assert UserFactory().username not in page  # who changed nothing is no choice
    page = client.get(f"/projects/{project.slug}/history/?by=nobody").content.decode()
    assert "pause rater" not in page
    assert "no such person" in page


def test_a_change_is_said_in_words():
    project = ProjectFactory()
    change = note_change(
        project,
        UserFactory(),
        "change settings",
        project,
        before={"audit_share": 0.1, "better_answers": False, "tags": ["clear"], "name": "same"},
        after={"audit_share": 0.2, "better_answers": True, "tags": [], "name": "same"},
    )
    words = {(d.name, d.before, d.after) for d in differences(change)}
    assert words == {
        ("audit share", "0.1", "0.2"),
        ("better answers", "no", "yes"),
        ("tags", "clear", ""),
    }


def test_a_change_to_many_counts_what_they_had_before():
    project = ProjectFactory()
    comparisons = ComparisonFactory.create_batch(3, project=project)
    comparisons.append(ComparisonFactory(project=project, priority=4))
    queue.set_priority(project, [c.pk for c in comparisons], 9, UserFactory())
    (difference,) = differences(project.changes.get())
    assert (difference.before, difference.after) == ("0 (3), 4 (1)", "9")
    (of_one,) = differences(project.changes.get(), of=comparisons[3].pk)
    assert (of_one.before, of_one.after) == ("4", "9")
    page = viewer_of(project).get(f"/projects/{project.slug}/history/").content.decode()
    assert "4 comparisons" in page
    assert all(f"/comparisons/{c.pk}/" in page for c in comparisons)


def test_the_number_of_queries_does_not_grow_with_the_changes():
    project = ProjectFactory()
    client = viewer_of(project)

    def n_queries() -> int:
        with CaptureQueriesContext(connection) as queries:
            client.get(f"/projects/{project.slug}/history/")
        return len(queries)

    note_change(project, UserFactory(), "act", "something")
    n_queries()
    for_one = n_queries()
    for _ in range(2):
        note_change(project, UserFactory(), "act", "something")
    assert n_queries() == for_one
