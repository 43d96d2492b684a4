"""The door: lock-out, sessions that end, the second factor, and what the history keeps of it."""

import re
import time
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from config import settings as installed
from labeling.models import Change, SignInFailure
from labeling.sign_ins import address_of
from tests.factories import UserFactory, bearer

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_hashes")]
DOOR = "/accounts/login/"
FACTOR = "/accounts/second-factor/"


@pytest.fixture
def quick_hashes(settings):
    """Real ones are slow by design, and these tests try many passwords."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def person(**more):
    return UserFactory(password=make_password("correct horse"), **more)


def sign_in(client: Client, name: str, password: str = "correct horse", **headers: str):
    return client.post(DOOR, {"username": name, "password": password}, headers=headers)


def is_signed_in(client: Client) -> bool:
    return client.get("/account/tokens/").status_code == 200


def code_now(secret: str) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30))


def test_a_session_has_a_new_key_and_ends_at_a_fixed_time(settings):
    settings.PREFLOOP_SESSION_AGE = timedelta(hours=2)
    user, client = person(), Client()
    client.get(DOOR)
    before = client.session.session_key
    answer = sign_in(client, user.username)
    assert (answer.status_code, answer.url) == (302, "/")
    assert client.session.session_key != before
    ends = Session.objects.get().expire_date
    assert timedelta(minutes=119) < ends - timezone.now() <= timedelta(hours=2)

    session = client.session
    session["used"] = True
    session.save()  # a write would put the end off, if it were not fixed
    assert abs(Session.objects.get().expire_date - ends) < timedelta(seconds=2)
    assert [c.action for c in Change.objects.filter(actor=user)] == ["sign in"]


def test_five_wrong_passwords_close_the_door_for_one_account_from_one_address(settings):
    victim, other = person(), person()
    client = Client(REMOTE_ADDR="192.0.2.1")
    for _ in range(5):
        page = sign_in(client, victim.username, "wrong")
        assert "User name and password do not match." in page.content.decode()

    page = sign_in(client, victim.username)  # the right one, too late
    assert "Too many wrong tries. Wait 15 minutes." in page.content.decode()
    assert "Too many" in sign_in(client, victim.username.upper()).content.decode()
    assert SignInFailure.objects.count() == 5
    assert sign_in(Client(REMOTE_ADDR="192.0.2.2"), victim.username).status_code == 302
    assert sign_in(client, other.username).status_code == 302

    SignInFailure.objects.update(created_at=timezone.now() - timedelta(minutes=16))
    assert sign_in(client, victim.username).status_code == 302
    done = list(Change.objects.order_by("pk").values_list("action", "actor_key"))
    assert done.count(("fail to sign in", victim.pk)) == 5
    assert done.count(("lock sign-in", victim.pk)) == 1


def test_one_address_cannot_try_many_accounts_nor_many_addresses_one(settings):
    settings.PREFLOOP_SIGN_IN_TRIES = 1
    client = Client(REMOTE_ADDR="192.0.2.1")
    for n in range(6):
        sign_in(client, f"nobody-{n}", "my password!")
    user = person()
    assert "Too many" in sign_in(client, user.username).content.decode()

    for n in range(10):
        sign_in(Client(REMOTE_ADDR=f"198.51.100.{n}"), user.username, "wrong")
    assert "Too many" in sign_in(Client(REMOTE_ADDR="203.0.113.9"), user.username).content.decode()
    kept = str(list(Change.objects.values())) + str(list(SignInFailure.objects.values()))
    assert "nobody-" not in kept
    assert "192.0.2" not in kept
    assert "my password" not in kept


def test_an_address_is_believed_from_our_own_proxies_alone(settings, rf):
    forged = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "1.1.1.1, 203.0.113.7"}
    assert address_of(rf.get("/", **forged)) == "10.0.0.1"
    settings.PREFLOOP_PROXIES = 1
    assert address_of(rf.get("/", **forged)) == "203.0.113.7"
    assert address_of(rf.get("/", REMOTE_ADDR="10.0.0.1")) == "10.0.0.1"


def test_a_changed_password_ends_other_sessions_and_a_closed_account_all():
    user, here, there = person(), Client(), Client()
    for client in (here, there):
        sign_in(client, user.username)
    new = {"new_password1": "walnut-river-9", "new_password2": "walnut-river-9"}
    here.post("/accounts/password/", {"old_password": "correct horse", **new})
    assert is_signed_in(here)
    assert not is_signed_in(there)
    assert Change.objects.filter(action="change password", actor=user).exists()

    headers = bearer(user)
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    assert not is_signed_in(here)
    assert Client().get("/api/me/", headers=headers).status_code == 401
    assert "do not match" in sign_in(Client(), user.username, "walnut-river-9").content.decode()


def test_passwords_are_hashed_with_argon2(settings):
    settings.PASSWORD_HASHERS = installed.PASSWORD_HASHERS
    assert make_password("correct horse").startswith("argon2$argon2id$")


def turned_on(client: Client) -> str:
    """Turn the authenticator app on, as a person does; its secret."""
    again = client.get(f"{FACTOR}totp/activate/")
    assert again.url.startswith("/accounts/again/")
    back = client.post(again.url, {"password": "correct horse"})
    assert back.url == f"{FACTOR}totp/activate/"
    page = client.get(back.url).content.decode()
    assert 'src="data:image/svg+xml' in page
    secret = re.search(r'id="secret"[^>]*value="([A-Z2-7]+)"', page)[1]
    refused = client.post(f"{FACTOR}totp/activate/", {"code": "000000"})
    assert "Incorrect code" in refused.content.decode()
    assert client.post(f"{FACTOR}totp/activate/", {"code": code_now(secret)}).status_code == 302
    return secret


def test_with_a_second_factor_the_password_alone_opens_nothing(django_capture_on_commit_callbacks):
    user, client = person(is_staff=True, is_superuser=True), Client()
    sign_in(client, user.username)
    with django_capture_on_commit_callbacks(execute=True):
        secret = turned_on(client)
    assert secret not in str(list(Authenticator.objects.values()))  # it rests encrypted
    codes = client.get(f"{FACTOR}recovery-codes/").content.decode()
    codes = re.findall(r"<li>(\w+)</li>", codes)
    assert len(codes) == 10

    thief = Client()
    answer = sign_in(thief, user.username)
    assert answer.url == f"{FACTOR}authenticate/"
    assert not is_signed_in(thief)
    assert thief.get("/admin/login/", follow=True).redirect_chain[-1][0].startswith(DOOR)
    assert thief.get("/admin/").status_code == 302
    for _ in range(5):
        assert "Incorrect code" in thief.post(answer.url, {"code": "123456"}).content.decode()
    assert "Too many" in thief.post(answer.url, {"code": code_now(secret)}).content.decode()
    assert not is_signed_in(thief)

    owner = Client(REMOTE_ADDR="192.0.2.8")
    sign_in(owner, user.username)
    assert owner.post(f"{FACTOR}authenticate/", {"code": codes[0]}).url == "/"
    assert is_signed_in(owner)
    twice = Client(REMOTE_ADDR="192.0.2.8")
    sign_in(twice, user.username)
    assert "Incorrect code" in twice.post(answer.url, {"code": codes[0]}).content.decode()

    page = owner.get(FACTOR).content.decode()
    assert "9 codes are left." in page
    again = owner.get(f"{FACTOR}totp/deactivate/")
    assert again.status_code == 302  # a code or the password once more
    owner.post(again.url, {"password": "correct horse"})
    with django_capture_on_commit_callbacks(execute=True):
        owner.post(f"{FACTOR}totp/deactivate/")
    assert not Authenticator.objects.exists()
    actions = set(Change.objects.filter(actor_key=user.pk).values_list("action", flat=True))
    assert {"turn on second factor", "turn off second factor", "lock sign-in"} <= actions


@pytest.mark.parametrize("page", ["", "totp/activate/", "totp/deactivate/", "recovery-codes/"])
def test_nobody_reaches_anothers_second_factor(page):
    assert Client().get(FACTOR + page).url.startswith(DOOR)


def test_accounts_are_made_by_invitation_alone():
    for page in ("signup", "password/reset", "email", "social/signup"):
        assert Client().get(f"/accounts/{page}/").status_code == 404
