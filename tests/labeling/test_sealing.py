"""The history cannot be edited by the application, and what was edited behind its back shows."""

import threading

import pytest
from allauth.mfa.models import Authenticator
from django.core.management import call_command
from django.db import connection
from django.test import Client

from labeling.changes import note_change, note_event
from labeling.models import Change, Project, ReadOnly
from labeling.sealing import check_chain, seal_changes
from tests.factories import MembershipFactory, ProjectFactory, UserFactory, bearer

pytestmark = pytest.mark.django_db


def test_the_administration_changes_no_role_and_a_factor_it_takes_away_stands_in_the_history():
    member = MembershipFactory(role="lead")
    factor = Authenticator.objects.create(
        user=member.user, type=Authenticator.Type.TOTP, data={"secret": "encrypted-S3cret"}
    )
    client = Client()
    client.force_login(UserFactory(is_superuser=True, is_staff=True))

    project = client.get(f"/admin/labeling/project/{member.project.pk}/change/").content.decode()
    page = client.get(f"/admin/mfa/authenticator/{factor.pk}/change/").content.decode()
    assert "memberships-" not in project
    assert member.user.username in page
    assert "S3cret" not in page
    assert client.get("/admin/mfa/authenticator/add/").status_code == 403
    client.post(f"/admin/mfa/authenticator/{factor.pk}/delete/", {"post": "yes"})

    assert not Authenticator.objects.exists()
    told = Change.objects.get(action="turn off second factor")
    assert told.subject == member.user.username
    assert told.after == {"kind": "an authenticator app"}


@pytest.fixture
def sealed() -> list[Change]:
    project, actor = ProjectFactory(), UserFactory()
    for n in range(4):
        note_change(project, actor, "change settings", "s", before={"n": n}, after={"n": n + 1})
    note_event(None, "fail to sign in", "?", with_a_wrong="password")
    assert seal_changes() == 5
    assert check_chain().problems == []
    return list(Change.objects.order_by("number"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row.save(),
        lambda row: row.delete(),
        lambda row: Change.objects.update(action="x"),
        lambda row: Change.objects.filter(pk=row.pk).delete(),
        lambda row: Change.objects.bulk_update([row], ["action"]),
        lambda row: Change.objects.update_or_create(pk=row.pk, defaults={"action": "x"}),
        lambda row: row.project.changes.all().delete(),
        lambda row: row.project.changes.update(action="x"),
    ],
)
def test_the_application_cannot_edit_the_history(sealed, edit):
    with pytest.raises(ReadOnly):
        edit(sealed[0])
    assert check_chain().problems == []
    assert Change.objects.count() == 5


def test_the_history_outlives_project_and_people(sealed):
    sealed[0].actor.delete()
    Project.objects.get().delete()
    found = check_chain()
    assert (found.rows, found.problems) == (5, [])
    assert Change.objects.first().actor is None
    assert Change.objects.first().actor_key == sealed[0].actor_key


def edit_database(sql: str, *values: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("UPDATE labeling_change SET after = '{}' WHERE number = 2", "says something else now"),
        ("UPDATE labeling_change SET subject = 'x' WHERE number = 2", "says something else now"),
        ("UPDATE labeling_change SET actor_key = 0 WHERE number = 2", "is broken"),
        ("UPDATE labeling_change SET action = 'x' WHERE number = 5", "is broken"),
        (
            "UPDATE labeling_change SET created_at = '2020-01-01 00:00:00' WHERE number = 3",
            "is broken",
        ),
        ("DELETE FROM labeling_change WHERE number = 3", "number 3 is missing"),
        (
            "UPDATE labeling_change SET subject = 'x', redacted_at = created_at WHERE number = 2",
            "no erasure names it",
        ),
    ],
)
def test_an_edit_in_the_database_is_found(sealed, sql, told, capsys):
    edit_database(sql)
    with pytest.raises(SystemExit):
        call_command("check_audit")
    said = capsys.readouterr().out
    assert "BROKEN" in said
    assert told in said


def test_an_end_that_was_cut_off_is_found_by_whoever_noted_the_seal(sealed, capsys):
    noted = sealed[-1].seal
    call_command("check_audit", expect=noted)
    assert "5 sealed rows" in capsys.readouterr().out
    edit_database("DELETE FROM labeling_change WHERE number = 5")
    assert check_chain().problems == []
    assert "its end was cut off" in check_chain(noted).problems[0]


def test_who_has_the_database_alone_cannot_seal_anew(sealed, settings):
    settings.SECRET_KEY = "another one that the attacker made up"
    assert len(check_chain().problems) == 5


@pytest.mark.django_db(transaction=True)
def test_rows_are_sealed_as_soon_as_they_are_committed():
    note_event(None, "rotate keys", "all")
    row = Change.objects.get()
    assert (row.number, len(row.seal)) == (1, 64)


def test_tokens_downloads_and_accounts_stand_in_the_history():
    member = MembershipFactory(role="viewer")
    headers = bearer(member.user, "read")
    page = f"/projects/{member.project.slug}/export/download/?format=csv&labels=mixed"
    client = Client()
    client.force_login(member.user)
    client.get(page)
    token = member.user.api_tokens.get()
    client.post(f"/account/tokens/{token.pk}/revoke/")
    assert client.get("/api/me/", headers=headers).status_code == 401

    administrator = UserFactory(is_staff=True, is_superuser=True)
    client.force_login(administrator)
    data = {"username": member.user.username, "is_staff": "on", "is_active": "on"}
    data |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    client.post(f"/admin/auth/user/{member.user.pk}/change/", data)
    written = Change.objects.order_by("pk").values_list("actor_key", "action", "subject", "after")
    assert list(written) == [
        (
            member.user.pk,
            "make token",
            token.prefix,
            {"scopes": ["read"], "days": 1},
        ),
        (member.user.pk, "download", f"{member.project.slug}.csv.mixed.votes.csv", {}),
        (member.user.pk, "revoke token", token.prefix, {}),
        (administrator.pk, "change account", member.user.username, {"is_staff": True}),
    ]

    page = client.get("/audit/?what=access").content.decode()
    assert "make token" in page
    assert "download" not in page.partition('id="rows"')[2]
    history = Client()
    history.force_login(member.user)
    shown = history.get(f"/projects/{member.project.slug}/history/").content.decode()
    assert "votes.csv" in shown  # who leads a project sees who took its labels away
    assert "make token" not in shown


@pytest.mark.django_db(transaction=True)
def test_rows_of_many_at_once_make_one_chain():
    def write(n: int) -> None:
        try:
            for _ in range(5):
                note_event(None, "sign in", str(n))
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seal_changes()
    found = check_chain()
    assert (found.rows, found.unsealed, found.problems) == (20, 0, [])
