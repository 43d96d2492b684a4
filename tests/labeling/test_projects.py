"""The project pages: progress, who did what, members."""

import pytest
from django.test import Client

from labeling.assignment import next_comparison, record_preference
from labeling.models import Membership, Project
from labeling.progress import project_progress
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def client_of(role: str, project: Project) -> Client:
    client = Client()
    client.force_login(MembershipFactory(project=project, role=role).user)
    return client


def test_progress_counts_given_held_and_free_places():
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project, labels_wanted=2)
    ann, ben = RaterFactory.create_batch(2, project=project)
    record_preference(ann, next_comparison(ann).comparison, "a")
    next_comparison(ben)
    progress = project_progress(project)
    assert (progress.n_comparisons, progress.n_wanted) == (3, 6)
    assert (progress.n_given, progress.n_done) == (1, 0)


def test_a_comparison_is_done_when_its_last_label_is_given():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    rater = RaterFactory(project=project)
    held = next_comparison(rater)
    assert project_progress(project).n_done == 0
    record_preference(rater, held.comparison, "a")
    assert project_progress(project).n_done == 1


def test_a_rater_sees_their_own_numbers_alone():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    PreferenceFactory(comparison=comparison, rater=RaterFactory(project=project, name="zoe-9"))
    page = client_of("rater", project).get(f"/projects/{project.slug}/").content.decode()
    assert "zoe-9" not in page
    assert "by you today" in page
    assert "labels by people" not in page


@pytest.mark.parametrize("path", ["", "comparisons/"])
def test_the_number_of_queries_does_not_grow_with_the_rows(path, django_assert_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    project = ProjectFactory()
    client = client_of("lead", project)
    PreferenceFactory(comparison=ComparisonFactory(project=project))
    address = f"/projects/{project.slug}/{path}"
    client.get(address)
    with CaptureQueriesContext(
        connection,
    ) as one:
        client.get(address)
    for _ in range(2):
        PreferenceFactory(comparison=ComparisonFactory(project=project))
    with django_assert_num_queries(len(one)):
        client.get(address)


def test_a_lead_adds_a_rater():
    project = ProjectFactory()
    user = UserFactory(username="new-one")
    client_of("lead", project).post(
        f"/projects/{project.slug}/members/", {"username": "new-one", "role": "rater"}
    )
    assert project.memberships.get(user=user).role == "rater"


def test_a_lead_cannot_make_owners_nor_change_them():
    project = ProjectFactory()
    owner = MembershipFactory(project=project, role=Membership.Role.OWNER).user
    lead = client_of("lead", project)
    path = f"/projects/{project.slug}/members/"
    UserFactory(username="friend")
    assert lead.post(path, {"username": "friend", "role": "owner"}).status_code == 403
    assert lead.post(path, {"username": owner.username, "role": "viewer"}).status_code == 403
    assert project.memberships.get(user=owner).role == "owner"


def test_the_last_owner_stays():
    project = ProjectFactory()
    membership = MembershipFactory(project=project, role=Membership.Role.OWNER)
    client = Client()
    client.force_login(membership.user)
    page = client.post(
        f"/projects/{project.slug}/members/",
        {"username": membership.user.username, "role": "rater"},
        follow=True,
    )
    membership.refresh_from_db()
    assert membership.role == "owner"
    assert "keeps at least one owner" in page.content.decode()


def test_staff_makes_a_project_and_owns_it():
    user = UserFactory(is_staff=True)
    client = Client()
    client.force_login(user)
    response = client.post(
        "/projects/new/",
        {"name": "Tea", "slug": "tea", "labels_per_comparison": 3, "guidelines": ""},
    )
    assert response.status_code == 302
    project = Project.objects.get(slug="tea")
    assert project.labels_per_comparison == 3
    assert project.memberships.get(user=user).role == "owner"


def test_a_project_cannot_be_called_new():
    user = UserFactory(is_staff=True)
    client = Client()
    client.force_login(user)
    page = client.post("/projects/new/", {"name": "x", "slug": "new", "labels_per_comparison": 1})
    assert "is taken by the application" in page.content.decode()
    assert not Project.objects.exists()


@pytest.mark.parametrize(
    ("name", "slug"), [("Green tea!", "green-tea"), ("茶", "project"), ("New", "new-2")]
)
def test_a_project_without_a_short_name_gets_one_from_its_name(name, slug):
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    client.post("/projects/new/", {"name": name, "slug": "", "labels_per_comparison": 1})
    assert Project.objects.get().slug == slug
    client.post("/projects/new/", {"name": name, "slug": "", "labels_per_comparison": 1})
    assert Project.objects.count() == 2


def test_a_member_is_removed_and_their_answers_stay():
    project = ProjectFactory()
    membership = MembershipFactory(project=project, role=Membership.Role.RATER)
    rater = RaterFactory(project=project, user=membership.user)
    PreferenceFactory(comparison=ComparisonFactory(project=project), rater=rater)
    client_of("lead", project).post(
        f"/projects/{project.slug}/members/",
        {"username": membership.user.username, "role": "none"},
    )
    assert not project.memberships.filter(user=membership.user).exists()
    assert rater.preferences.count() == 1
    removed = Client()
    removed.force_login(membership.user)
    assert removed.get(f"/projects/{project.slug}/").status_code == 404
