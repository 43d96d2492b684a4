"""Every route of the API, tried as nobody, as strangers, in every role, and with the wrong token.

The list of routes is made from the URL configuration, so a new route cannot be forgotten.
"""

from datetime import timedelta

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, get_resolver
from django.utils import timezone

from labeling.api.access import scope_of
from labeling.models import ApiToken, Membership
from labeling.tokens import make_token, revoke
from tests.factories import MembershipFactory, ProjectFactory, UserFactory, bearer

pytestmark = pytest.mark.django_db

APPS = {"api", "judges-api", "training-api"}
SAMPLE_ARGUMENTS = {"<slug:slug>": "secret", "<int:pk>": "999999", "<int:delivery>": "1"}
# What is no project's: these decide by themselves what the caller may see. `docs` is a page.
WITHOUT_PROJECT = {"api:schema", "api:me", "api:projects"}
# Work is the caller's own or it is nobody's: to everybody else it does not exist.
OWN_WORK = {
    "api:answer",
    "api:revise",
    "api:rank",
    "api:revise_ranking",
    "api:skip",
    "api:flag_it",
}
OPEN_TO_RATERS = {
    ("GET", "api:project"),
    ("GET", "api:comparisons"),
    ("GET", "api:comparison"),
    ("GET", "api:preferences"),
    ("POST", "api:next"),
    ("POST", "api:undo"),
    ("POST", "api:release"),
}


def routes() -> list[tuple[str, str, str, str]]:
    """(method, name, path with sample arguments, what it needs) of every API route."""
    found = []
    for resolver in get_resolver().url_patterns:
        if getattr(resolver, "app_name", None) not in APPS:
            continue
        for pattern in resolver.url_patterns:
            assert isinstance(pattern, URLPattern)
            path = "/api/" + str(pattern.pattern)
            for argument, value in SAMPLE_ARGUMENTS.items():
                path = path.replace(argument, value)
            assert "<" not in path, f"give {pattern.name} a sample argument: {path}"
            name = f"{resolver.app_name}:{pattern.name}"
            view = getattr(pattern.callback, "view_class", None)
            if view is None:
                assert name == "api:docs", f"{name} is no API view"
                continue
            for method in ("get", "post", "put", "patch", "delete"):
                if hasattr(view, method):
                    needed = view.allowed[method.upper()]
                    found.append((method.upper(), name, path, needed))
    return found


ROUTES = routes()
OF_PROJECT = [r for r in ROUTES if r[1] not in WITHOUT_PROJECT | OWN_WORK]


def call(method: str, path: str, headers: dict[str, str] | None = None) -> int:
    kind = "multipart/form-data; boundary=x" if path.endswith("/imports/") else "application/json"
    body = "--x--\r\n" if path.endswith("/imports/") else "{}"
    data = "" if method == "GET" else body
    return Client().generic(method, path, data, kind, headers=headers or {}).status_code


def member(role: str) -> dict[str, str]:
    """Headers of a member of the secret project with every scope."""
    project = ProjectFactory(slug="secret")
    user = UserFactory()
    MembershipFactory(project=project, user=user, role=role)
    return bearer(user)


def test_every_app_has_routes():
    assert {name.split(":")[0] for _method, name, _path, _needed in ROUTES} == APPS


def refused_otherwise(routes, headers: dict[str, str], allowed) -> list[str]:
    """Routes whose status is not among `allowed(method, name, needed)`; what a call writes is taken
    back, so that none depends on another."""
    wrong = []
    for method, name, path, needed in routes:
        with transaction.atomic():
            status = call(method, path, headers)
            transaction.set_rollback(True)
        if status not in allowed(method, name, needed):
            wrong.append(f"{method} {name} ({needed}): {status}")
    return wrong


def test_nobody_is_asked_for_a_token():
    ProjectFactory(slug="secret")
    assert refused_otherwise(ROUTES, {}, lambda *_: {401}) == []
    assert Client().get("/api/me/").headers["WWW-Authenticate"] == "Bearer"


def test_an_expired_token_opens_nothing():
    headers = member(Membership.Role.OWNER)
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert refused_otherwise(ROUTES, headers, lambda *_: {401}) == []


def test_a_revoked_token_opens_nothing():
    headers = member(Membership.Role.OWNER)
    revoke(ApiToken.objects.get())
    assert refused_otherwise(ROUTES, headers, lambda *_: {401}) == []


@pytest.mark.parametrize("scope", ApiToken.Scope.values)
def test_a_token_without_the_scope_is_refused(scope):
    project = ProjectFactory(slug="secret")
    owner = UserFactory(is_staff=True)
    MembershipFactory(project=project, user=owner, role=Membership.Role.OWNER)
    routes = [r for r in ROUTES if scope_of(r[0], r[3]) == scope]
    assert routes
    others = [s for s in ApiToken.Scope.values if s != scope]
    assert refused_otherwise(routes, bearer(owner, *others), lambda *_: {403}) == []


def test_a_stranger_is_not_told_that_the_project_exists():
    ProjectFactory(slug="secret")
    assert refused_otherwise(OF_PROJECT, bearer(UserFactory()), lambda *_: {404}) == []


@pytest.mark.parametrize("role", [Membership.Role.RATER, Membership.Role.OWNER])
def test_another_projects_members_are_strangers(role):
    ProjectFactory(slug="secret")
    headers = bearer(MembershipFactory(role=role).user)
    assert refused_otherwise(OF_PROJECT, headers, lambda *_: {404}) == []


def test_a_rater_reaches_their_own_work_alone():
    def allowed(method, name, _needed):
        # There is no such comparison, and nothing to take back.
        return {200, 404, 409} if (method, name) in OPEN_TO_RATERS else {403}

    assert refused_otherwise(OF_PROJECT, member(Membership.Role.RATER), allowed) == []


def test_a_viewer_changes_nothing():
    def allowed(method, _name, needed):
        return {403} if method != "GET" or needed in ("lead", "label") else {200, 404}

    assert refused_otherwise(OF_PROJECT, member(Membership.Role.VIEWER), allowed) == []


def test_an_owner_comes_through():
    """The refusals above are about people: the routes themselves are there."""
    found = {200, 201, 202, 400, 404, 409}
    assert refused_otherwise(OF_PROJECT, member(Membership.Role.OWNER), lambda *_: found) == []


def test_somebody_elses_work_does_not_exist():
    body = '{"assignment": 1, "choice": "left", "order": [["1"]], "kind": "unsafe"}'
    headers = member(Membership.Role.OWNER)
    for method, name, path, _needed in ROUTES:
        if name in OWN_WORK:
            response = Client().generic(method, path, body, "application/json", headers=headers)
            assert (name, response.status_code) == (name, 404)


def test_only_staff_makes_projects():
    body = {"slug": "mine", "name": "Mine"}
    for user, status in ((UserFactory(), 403), (UserFactory(is_staff=True), 201)):
        response = Client().post("/api/projects/", body, "application/json", headers=bearer(user))
        assert response.status_code == status


def test_the_token_of_a_closed_account_opens_nothing():
    user = UserFactory()
    headers = bearer(user)
    assert call("GET", "/api/me/", headers) == 200
    user.is_active = False
    user.save()
    assert call("GET", "/api/me/", headers) == 401


def test_a_browser_session_reads_and_writes_with_its_csrf_token_alone():
    membership = MembershipFactory(project=ProjectFactory(slug="secret"), role="owner")
    client = Client(enforce_csrf_checks=True)
    client.force_login(membership.user)
    assert client.get("/api/projects/secret/").status_code == 200
    refused = client.patch("/api/projects/secret/", {"name": "x"}, "application/json")
    assert refused.status_code == 403
    client.get("/account/tokens/")
    csrf = {"X-CSRFToken": client.cookies["csrftoken"].value}
    kept = client.patch("/api/projects/secret/", {"name": "x"}, "application/json", headers=csrf)
    assert kept.status_code == 200


def test_a_token_is_stored_as_its_hash_and_notes_its_use_once_a_minute(django_assert_num_queries):
    user = UserFactory()
    token, secret = make_token(user, "script", ["read"], 1)
    assert secret not in str(ApiToken.objects.values().get())
    headers = {"Authorization": f"Bearer {secret}"}
    call("GET", "/api/me/", headers)
    token.refresh_from_db()
    first = token.last_used_at
    assert first is not None
    with django_assert_num_queries(2):  # the token with its user, and the roles
        call("GET", "/api/me/", headers)
    token.refresh_from_db()
    assert token.last_used_at == first


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer pf_nothing", "Basic eDp5"])
def test_a_header_that_is_no_token_is_401(value):
    assert call("GET", "/api/me/", {"Authorization": value}) == 401


def test_the_documentation_page_asks_people_to_sign_in():
    assert Client().get("/api/docs/").status_code == 302
