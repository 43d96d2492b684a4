"""Who may label, asked in one query."""

import pytest
from django.core.exceptions import PermissionDenied
from django.http import Http404

from labeling.access import project_and_rater
from labeling.models import Membership
from tests.factories import MembershipFactory, ProjectFactory, RaterFactory, UserFactory

pytestmark = pytest.mark.django_db


def test_a_rater_is_found_with_their_project_with_two_questions(django_assert_num_queries):
    owner = MembershipFactory(role=Membership.Role.OWNER)
    member = MembershipFactory(project=owner.project, role=Membership.Role.RATER)
    MembershipFactory(project=owner.project, role=Membership.Role.LEAD)
    project, rater = project_and_rater(member.user, member.project.slug)  # makes the rater
    with django_assert_num_queries(2):
        again = project_and_rater(member.user, member.project.slug)
    assert again == (project, rater)
    assert again[0].may == {"label"}


def test_who_was_made_a_viewer_does_not_label_on_in_the_role_of_the_owner():
    owner = MembershipFactory(role=Membership.Role.OWNER)
    viewer = MembershipFactory(project=owner.project, role=Membership.Role.VIEWER)
    RaterFactory(project=owner.project, user=viewer.user)
    with pytest.raises(PermissionDenied):
        project_and_rater(viewer.user, owner.project.slug)


@pytest.mark.parametrize(("role", "error"), [(None, Http404), ("viewer", PermissionDenied)])
def test_who_may_not_label_is_refused_even_with_a_rater_from_earlier(role, error):
    project, user = ProjectFactory(), UserFactory()
    RaterFactory(project=project, user=user)
    if role:
        MembershipFactory(project=project, user=user, role=role)
    with pytest.raises(error):
        project_and_rater(user, project.slug)


def test_an_administrator_labels_without_a_membership():
    project, user = ProjectFactory(), UserFactory(is_superuser=True)
    assert project_and_rater(user, project.slug)[0] == project
    assert project_and_rater(user, project.slug)[1].user == user
