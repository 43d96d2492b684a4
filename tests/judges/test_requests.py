"""What other apps want judged before people see it."""

import pytest

from judges.models import JudgeRun
from judges.requests import NO_CERTIFICATE, take_requests
from labeling.judge_requests import ask_judges_first
from labeling.models import JudgeRequest
from tests.factories import ComparisonFactory, ProjectFactory

pytestmark = pytest.mark.django_db


def test_without_a_certificate_people_decide_and_the_request_says_so():
    project = ProjectFactory(certificate_in_force=True)  # revoked since, not yet taken back
    comparison = ComparisonFactory(project=project)
    ask_judges_first(project, [comparison.pk])
    assert take_requests() == 0
    request = JudgeRequest.objects.get()
    assert request.outcome == NO_CERTIFICATE
    assert request.taken_at is not None
    assert take_requests() == 0
    assert not JudgeRun.objects.exists()


def test_nothing_is_asked_where_people_decide_everything():
    project = ProjectFactory()
    assert ask_judges_first(project, [ComparisonFactory(project=project).pk]) is None
    assert ask_judges_first(ProjectFactory(certificate_in_force=True), []) is None
