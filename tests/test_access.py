"""Every route, tried as nobody, as a stranger, as a rater and as a viewer.

The list of routes is made from the URL configuration, so a new route cannot be forgotten.
"""

import pytest
from django.test import Client
from django.urls import URLPattern, get_resolver

from labeling.models import Membership
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db

# What a rater may open in a project; every other project page is for viewers and leads.
OPEN_TO_RATERS = {
    "labeling:project",
    "labeling:compare",
    "labeling:skip",
    "labeling:undo",
    "labeling:rank",
    "labeling:rank_skip",
    "labeling:release",
    "labeling:answers",
}
# Pages of a rater's own rows: those of others do not exist for them.
OWN_ROWS = {"labeling:difference", "labeling:answer", "labeling:own_ranking"}
# Routes without a project: they decide by themselves what to show.
WITHOUT_PROJECT = {
    "labeling:home",
    "labeling:create",
    "labeling:join",
    "labeling:tokens",
    "labeling:revoke_token",
    "labeling:notices",
    "labeling:notice_count",
    "labeling:read_notices",
    "labeling:notice",
}
# The installation's, not a project's.
FOR_ADMINISTRATORS = {
    "labeling:status",
    "labeling:audit",
    "labeling:people",
    "labeling:export_person",
    "labeling:erase_person",
    "judges:servers",
    "judges:allow_server",
    "judges:server",
    "judges:change_server",
    "judges:try_server",
    "judges:remove_server",
}
# For people without an account: the link itself is what opens it.
OPEN_TO_NOBODY = {"labeling:join"}
SAMPLE_ARGUMENTS = {
    "slug": "secret",
    "pk": 1,
    "version": 1,
    "name": "x",
    "sha256": "0" * 64,
    "delivery": 1,
    "token": "wrong",
}


def routes() -> list[tuple[str, str]]:
    """(name, path with sample arguments) of every route of our own apps."""
    found = []
    for resolver in get_resolver().url_patterns:
        if getattr(resolver, "app_name", None) not in {"labeling", "judges", "training"}:
            continue
        for pattern in resolver.url_patterns:
            assert isinstance(pattern, URLPattern)
            path = "/" + str(pattern.pattern)
            for name, converter in pattern.pattern.converters.items():
                argument = SAMPLE_ARGUMENTS.get(name, 1)
                path = path.replace(f"<{_kind(converter)}:{name}>", str(argument))
            assert "<" not in path, f"give {pattern.name} a sample argument: {path}"
            found.append((f"{resolver.app_name}:{pattern.name}", path))
    return found


def _kind(converter: object) -> str:
    return {"SlugConverter": "slug", "IntConverter": "int", "StringConverter": "str"}[
        type(converter).__name__
    ]


ROUTES = routes()
ADMINISTRATORS_ROUTES = [(n, p) for n, p in ROUTES if n in FOR_ADMINISTRATORS]
PROJECT_ROUTES = [
    (n, p) for n, p in ROUTES if n not in WITHOUT_PROJECT and n not in FOR_ADMINISTRATORS
]


def both_methods(client: Client, path: str) -> list[int]:
    """The status of a GET and of a POST; 405 says that the route does not know the method."""
    statuses = [client.get(path).status_code, client.post(path).status_code]
    return [status for status in statuses if status != 405]


def signed_in_as(role: str | None) -> Client:
    project = ProjectFactory(slug="secret")
    user = UserFactory()
    if role:
        MembershipFactory(project=project, user=user, role=role)
    client = Client()
    client.force_login(user)
    return client


def test_every_app_has_routes():
    assert {name.split(":")[0] for name, _path in ROUTES} == {"labeling", "judges", "training"}


@pytest.mark.parametrize(("name", "path"), ROUTES)
def test_nobody_is_sent_to_the_sign_in_page(name, path):
    ProjectFactory(slug="secret")
    if name in OPEN_TO_NOBODY:
        assert set(both_methods(Client(), path)) == {410}
        return
    for response in (Client().get(path), Client().post(path)):
        if response.status_code != 405:
            assert response.status_code == 302
            assert response.url.startswith("/accounts/login/")


@pytest.mark.parametrize(("name", "path"), PROJECT_ROUTES)
def test_a_stranger_is_not_told_that_the_project_exists(name, path):
    assert set(both_methods(signed_in_as(None), path)) == {404}


@pytest.mark.parametrize(("name", "path"), PROJECT_ROUTES)
def test_a_rater_sees_their_own_work_alone(name, path):
    statuses = both_methods(signed_in_as(Membership.Role.RATER), path)
    if name in OPEN_TO_RATERS:
        assert set(statuses) <= {200, 204, 302}
    else:
        assert set(statuses) == ({404} if name in OWN_ROWS else {403})


@pytest.mark.parametrize(("name", "path"), PROJECT_ROUTES)
def test_a_viewer_changes_nothing(name, path):
    client = signed_in_as(Membership.Role.VIEWER)
    status = client.post(path).status_code
    assert status in {403, 405}, f"{name} answers a viewer's POST with {status}"


@pytest.mark.parametrize(("name", "path"), ADMINISTRATORS_ROUTES)
def test_the_installation_is_the_administrators_alone(name, path):
    client = signed_in_as(Membership.Role.OWNER)
    assert set(both_methods(client, path)) == {403}


def test_only_staff_makes_projects():
    client = signed_in_as(Membership.Role.OWNER)
    assert client.get("/projects/new/").status_code == 403
    assert client.post("/projects/new/", {"name": "x", "slug": "x"}).status_code == 403


@pytest.mark.parametrize(("method", "refresh"), [("get", "true"), ("post", None)])
def test_htmx_is_never_led_to_the_sign_in_page(method, refresh):
    ProjectFactory(slug="secret")
    response = getattr(Client(), method)(
        "/projects/secret/compare/", headers={"HX-Request": "true"}
    )
    assert response.status_code == 403
    assert response.headers.get("HX-Refresh") == refresh


def test_a_changed_password_is_confirmed():
    user = UserFactory()
    user.set_password("walnut-river-8")
    user.save()
    client = Client()
    client.force_login(user)
    new = {"new_password1": "walnut-river-9", "new_password2": "walnut-river-9"}
    data = {"old_password": "walnut-river-8", **new}
    page = client.post("/accounts/password/", data, follow=True)
    assert "Your password is changed." in page.content.decode()
