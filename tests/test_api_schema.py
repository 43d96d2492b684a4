"""Requests that a machine makes up from the OpenAPI document: none may end in a 500, and every
answer is as the document says."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from labeling.api.documentation import openapi
from labeling.assignment import work_for
from labeling.invitations import invite
from labeling.models import Flag
from labeling.webhooks import make_webhook, send_test
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    bearer,
)

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 12
DOCUMENT = openapi()


@pytest.fixture
def world() -> dict[str, Any]:
    """A project with one of most things, its lead's token, and the ids by what the path names."""
    project = ProjectFactory(slug="world", better_answers=True)
    lead = MembershipFactory(project=project).user
    lead.is_staff = True
    lead.save()
    comparisons = ComparisonFactory.create_batch(3, project=project, gold="a")
    preference = PreferenceFactory(comparison=comparisons[0])
    rater = RaterFactory(project=project, user=lead)
    assignment = work_for(rater)[0]
    flag = Flag.objects.create(comparison=comparisons[0], rater=rater, kind="unsafe")
    invitation, _token = invite(project, "rater", lead)
    webhook = make_webhook(project, "https://example.org/", ["preference.created"], lead)
    return {
        "slug": "world",
        "headers": bearer(lead),
        "ids": {
            "comparisons": comparisons[0].pk,
            "preferences": preference.pk,
            "raters": rater.pk,
            "assignments": assignment.pk,
            "flags": flag.pk,
            "webhooks": webhook.pk,
            "invitations": invitation.pk,
            "deliveries": send_test(webhook).pk,
        },
        "assignment": assignment.pk,
    }


def point_at(case: Any, world: dict[str, Any]) -> None:
    """Let half of the made-up requests speak of things that are there."""
    given = case.path_parameters if isinstance(case.path_parameters, dict) else {}
    if "slug" in given:
        given["slug"] = world["slug"]
    parts = case.path.split("/")
    for subject, name in pairwise(parts):
        name = name.strip("{}")
        if name in given and name != "slug" and subject in world["ids"]:
            is_odd = isinstance(given[name], int) and given[name] % 2
            given[name] = given[name] if is_odd else world["ids"][subject]
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("assignment"), int):
        body["assignment"] = world["assignment"]


@pytest.mark.parametrize(
    ("path", "method"),
    [(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations],
)
def test_made_up_requests_are_answered_as_the_document_says(path, method, world, served):
    schema = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))
    schema.app = get_wsgi_application()
    operation = schema[path][method]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        point_at(case, world)
        with transaction.atomic():
            # What is packed would have to be unpacked here.
            headers = world["headers"] | {"Accept-Encoding": "identity"}
            response = case.call(headers=headers)
            transaction.set_rollback(True)
        case.validate_response(response, checks=CHECKS)

    check()


@pytest.fixture
def served(settings: Any) -> Iterator[None]:
    """No limits; and the test's own connection stays open from one request to the next."""
    settings.PREFLOOP_API_PER_MINUTE = settings.PREFLOOP_API_JOBS_PER_MINUTE = 0
    settings.ALLOWED_HOSTS = ["*"]
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)
