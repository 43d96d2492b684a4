"""Members, their roles, and the links that make them."""

import threading
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connections
from django.test import Client
from django.utils import timezone

from labeling.invitations import NotValid, accept, hash_of, invite
from labeling.members import MayNot, set_role
from labeling.models import Change, Invitation, Membership
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

User = get_user_model()


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


def client_of(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def an_invitation(role: str = "rater", **options) -> tuple[Invitation, str]:
    return invite(ProjectFactory(), role, UserFactory(is_superuser=True), **options)


# Making links -------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_link_is_shown_once_and_only_its_hash_is_kept():
    lead = MembershipFactory(role="lead")
    client = client_of(lead.user)
    path = f"/projects/{lead.project.slug}/members/"
    page = client.post(f"{path}invite/", {"role": "viewer", "days": 3, "uses": 2})
    token = page.content.decode().split("/join/")[1].split("/")[0]
    invitation = lead.project.invitations.get()
    assert invitation.token_hash == hash_of(token)
    assert (invitation.role, invitation.uses_left) == ("viewer", 2)
    left = invitation.expires_at - timezone.now()
    assert timedelta(days=2, hours=23) < left <= timedelta(days=3)
    again = client.get(path).content.decode()
    assert token not in again
    assert "no-store" in page.headers["Cache-Control"]
    assert Change.objects.get().action == "invite"


@pytest.mark.django_db
def test_a_lead_invites_no_owner_and_an_owner_does():
    lead = MembershipFactory(role="lead")
    owner = MembershipFactory(project=lead.project, role="owner")
    path = f"/projects/{lead.project.slug}/members/invite/"
    wanted = {"role": "owner", "days": 1, "uses": 1}
    assert client_of(lead.user).post(path, wanted).status_code == 422
    assert not Invitation.objects.exists()
    client_of(owner.user).post(path, wanted)
    assert Invitation.objects.get().role == "owner"


@pytest.mark.django_db
def test_a_revoked_link_opens_nothing_and_says_so():
    invitation, token = an_invitation()
    lead = MembershipFactory(project=invitation.project, role="lead")
    path = f"/projects/{invitation.project.slug}/members/invitations/{invitation.pk}/revoke/"
    client_of(lead.user).post(path)
    page = Client().get(f"/join/{token}/")
    assert page.status_code == 410
    assert "This invitation was withdrawn." in page.content.decode()


@pytest.mark.django_db
def test_another_projects_lead_revokes_nothing():
    invitation, _token = an_invitation()
    stranger = MembershipFactory(role="owner")
    path = f"/projects/{stranger.project.slug}/members/invitations/{invitation.pk}/revoke/"
    assert client_of(stranger.user).post(path).status_code == 404
    invitation.refresh_from_db()
    assert invitation.revoked_at is None


# Accepting them -----------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_person_with_an_account_joins_by_a_press():
    invitation, token = an_invitation()
    user = UserFactory()
    client = client_of(user)
    client.get(f"/join/{token}/")
    assert not Membership.objects.filter(user=user).exists()
    response = client.post(f"/join/{token}/")
    assert response.url == f"/projects/{invitation.project.slug}/"
    assert invitation.project.memberships.get(user=user).role == "rater"
    invitation.refresh_from_db()
    assert invitation.uses_left == 0


@pytest.mark.django_db
def test_a_person_without_an_account_makes_one_and_is_signed_in():
    invitation, token = an_invitation()
    client = Client()
    new = {"username": "newcomer", "password1": "walnut-river-8", "password2": "walnut-river-8"}
    response = client.post(f"/join/{token}/", new, follow=True)
    assert response.status_code == 200
    user = User.objects.get(username="newcomer")
    assert user.check_password("walnut-river-8")
    assert (user.is_staff, user.is_superuser) == (False, False)
    assert invitation.project.memberships.get(user=user).role == "rater"
    assert client.get(f"/projects/{invitation.project.slug}/").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("username", "password"), [("newcomer", "12345678"), ("Taken", "walnut-river-8")]
)
def test_a_weak_password_and_a_taken_name_cost_no_use(username, password):
    invitation, token = an_invitation()
    UserFactory(username="taken")
    new = {"username": username, "password1": password, "password2": password}
    page = Client().post(f"/join/{token}/", new)
    assert page.status_code == 422
    assert not User.objects.filter(username=username).exists()
    invitation.refresh_from_db()
    assert invitation.uses_left == 1


@pytest.mark.django_db
def test_a_used_up_link_makes_no_account_and_names_no_project():
    invitation, token = an_invitation()
    accept(token, UserFactory())
    new = {"username": "late", "password1": "walnut-river-8", "password2": "walnut-river-8"}
    page = Client().post(f"/join/{token}/", new)
    assert page.status_code == 410
    assert "This invitation is used up." in page.content.decode()
    assert invitation.project.name not in page.content.decode()
    assert not User.objects.filter(username="late").exists()


@pytest.mark.django_db
def test_an_expired_and_an_unknown_link_say_so():
    _invitation, token = an_invitation()
    Invitation.objects.update(expires_at=timezone.now())
    assert "has expired" in Client().get(f"/join/{token}/").content.decode()
    assert "not valid" in Client().get("/join/made-up/").content.decode()
    with pytest.raises(NotValid):
        accept(token, UserFactory())


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("has", "gets", "ends"),
    [
        ("owner", "rater", "owner"),
        ("lead", "viewer", "lead"),
        ("rater", "viewer", "rater"),
        ("viewer", "rater", "viewer"),
        ("rater", "rater", "rater"),
        ("rater", "lead", "lead"),
        ("lead", "owner", "owner"),
    ],
)
def test_an_invitation_never_lowers_a_role_and_is_not_used_up_in_vain(has, gets, ends):
    invitation, token = an_invitation(gets)
    user = MembershipFactory(project=invitation.project, role=has).user
    assert accept(token, user).role == ends
    invitation.refresh_from_db()
    assert invitation.uses_left == (0 if has != ends else 1)


@pytest.mark.django_db
def test_after_many_failures_an_address_waits_and_others_do_not():
    _invitation, token = an_invitation(uses=100)
    client = Client()
    for i in range(30):
        assert client.get(f"/join/wrong-{i}/").status_code == 410
    assert client.get(f"/join/{token}/").status_code == 429
    assert Client(REMOTE_ADDR="192.0.2.7").get(f"/join/{token}/").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_of_two_people_at_the_last_use_one_gets_in():
    invitation, token = an_invitation(uses=1)
    people = UserFactory.create_batch(4)
    start = threading.Barrier(len(people))
    refused = []

    def join(user):
        try:
            start.wait()
            accept(token, user)
        except NotValid:
            refused.append(user)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=join, args=(user,)) for user in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert invitation.project.memberships.count() == 1
    invitation.refresh_from_db()
    assert invitation.uses_left == 0


# Roles --------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_change_of_role_is_noted():
    member = MembershipFactory(role="rater")
    owner = MembershipFactory(project=member.project, role="owner").user
    set_role(member.project, member.user, "lead", owner)
    change = Change.objects.get()
    assert (change.actor, change.before, change.after) == (
        owner,
        {"role": "rater"},
        {"role": "lead"},
    )
    set_role(member.project, member.user, "lead", owner)  # nothing differs
    assert Change.objects.count() == 1


@pytest.mark.django_db
def test_only_owners_make_and_remove_owners_and_one_stays():
    owner = MembershipFactory(role="owner")
    project = owner.project
    lead = MembershipFactory(project=project, role="lead").user
    with pytest.raises(MayNot, match="Only an owner"):
        set_role(project, lead, "owner", lead)
    with pytest.raises(MayNot, match="Only an owner"):
        set_role(project, owner.user, None, lead)
    with pytest.raises(MayNot, match="at least one owner"):
        set_role(project, owner.user, None, owner.user)
    set_role(project, lead, "owner", owner.user)
    set_role(project, owner.user, None, owner.user)
    assert [m.user for m in project.memberships.all()] == [lead]


@pytest.mark.django_db
def test_whoever_leads_no_longer_has_their_links_withdrawn():
    owner = MembershipFactory(role="owner")
    project = owner.project
    lead = MembershipFactory(project=project, role="lead").user
    _invitation, token = invite(project, "lead", lead)
    _invitation, kept = invite(project, "rater", owner.user)
    set_role(project, lead, None, owner.user)
    with pytest.raises(NotValid, match="withdrawn"):
        accept(token, lead)
    assert accept(kept, lead).role == "rater"


@pytest.mark.django_db
def test_the_members_page_lists_members_and_links():
    lead = MembershipFactory(role="lead")
    MembershipFactory(project=lead.project, user=UserFactory(username="zoe-9"), role="viewer")
    invite(lead.project, "rater", lead.user)
    page = client_of(lead.user).get(f"/projects/{lead.project.slug}/members/").content.decode()
    assert "zoe-9" in page
    assert "Revoke" in page
