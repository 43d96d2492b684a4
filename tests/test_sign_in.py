"""The door: lock-out, sessions that end, the second factor, and what the history keeps of it."""

import re
import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.utils import timezone

from config import settings as installed
from config.sign_in import counted_try
from labeling import keys
from labeling.models import Change, SignInFailure
from labeling.sign_ins import address_of, forget_old_failures
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


def test_a_network_of_ipv6_is_one_address(settings, rf):
    settings.PREFLOOP_SIGN_IN_TRIES = 1
    user = person()
    sign_in(Client(REMOTE_ADDR="2001:db8:1:2::1"), user.username, "wrong")
    beside, elsewhere = Client(REMOTE_ADDR="2001:db8:1:2:ffff::9"), "2001:db8:1:3::1"
    assert "Too many" in sign_in(beside, user.username).content.decode()
    assert sign_in(Client(REMOTE_ADDR=elsewhere), user.username).status_code == 302


def test_guesses_from_elsewhere_do_not_lock_the_owner_out_of_a_known_device(settings):
    settings.PREFLOOP_SIGN_IN_TRIES = 2
    user, other = person(), person()
    owner = Client(REMOTE_ADDR="192.0.2.1")
    sign_in(owner, user.username)
    owner.post("/accounts/logout/")
    for n in range(20):
        sign_in(Client(REMOTE_ADDR=f"198.51.100.{n}"), user.username, "wrong")
    sign_in(Client(REMOTE_ADDR="192.0.2.1"), user.username, "wrong")
    assert "Too many" in sign_in(Client(), user.username).content.decode()  # an unknown device
    assert sign_in(owner, user.username).status_code == 302

    owner.post("/accounts/logout/")
    for _ in range(2):
        sign_in(owner, user.username, "wrong")
    assert "Too many" in sign_in(owner, user.username).content.decode()  # its own are counted
    thief = Client()
    thief.cookies["prefloop_device"] = owner.cookies["prefloop_device"].value + "x"
    assert "Too many" in sign_in(thief, user.username).content.decode()
    assert sign_in(owner, other.username).status_code == 302  # known for one, as good as new here


def test_guesses_at_unknown_accounts_are_one_row_of_the_history_each_window():
    for n in range(30):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{n}"), f"nobody-{n}", "wrong")
    assert not Change.objects.exists()
    SignInFailure.objects.update(created_at=timezone.now() - timedelta(minutes=31))
    forget_old_failures()
    forget_old_failures()
    assert [(c.action, c.after) for c in Change.objects.all()] == [
        ("fail to sign in", {"times": 30})
    ]
    assert not SignInFailure.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_guesses_that_come_at_once_are_no_more_than_one_after_another(rf):
    user, looked = person(), []
    together = threading.Barrier(12)

    def guess():
        together.wait()
        with suppress(ValidationError), counted_try(rf.post(DOOR), user.username, "password"):
            looked.append(time.sleep(0.05))
            raise ValidationError("wrong")
        connection.close()

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(looked) <= 5


def test_a_wrong_old_password_counts_and_tokens_end_with_the_password():
    user, client = person(is_staff=True), Client()
    sign_in(client, user.username)
    assert client.get("/admin/password_change/").url == "/accounts/password/"
    kept, headers = bearer(user), bearer(user)
    new = {"new_password1": "walnut-river-9", "new_password2": "walnut-river-9"}
    page = client.get("/accounts/password/").content.decode()
    assert "Revoke my 2 tokens" in page
    assert re.search(r"name=.revoke_tokens.[^>]* checked", page)
    for _ in range(5):
        client.post("/accounts/password/", {"old_password": "wrong", **new})
    late = client.post("/accounts/password/", {"old_password": "correct horse", **new})
    assert "Too many" in late.content.decode()
    SignInFailure.objects.all().delete()
    client.post("/accounts/password/", {"old_password": "correct horse", **new})
    assert Client().get("/api/me/", headers=kept).status_code == 200
    again = {"new_password1": "walnut-river-8", "new_password2": "walnut-river-8"}
    client.post(
        "/accounts/password/", {"old_password": "walnut-river-9", **again, "revoke_tokens": "on"}
    )
    assert Client().get("/api/me/", headers=headers).status_code == 401
    assert "token" not in client.get("/accounts/password/").content.decode().split("<h1>")[
        1
    ].lower().replace("csrfmiddlewaretoken", "")


def test_a_token_is_made_behind_the_password_alone():
    user, client = person(), Client()
    sign_in(client, user.username)
    asked = {"name": "script", "scopes": ["read"], "days": "7"}
    again = client.post("/account/tokens/", asked)
    assert again.url.startswith("/accounts/again/")
    assert not user.api_tokens.exists()
    client.post(again.url, {"password": "wrong"})
    assert not user.api_tokens.exists()
    page = client.post(again.url, {"password": "correct horse"}).content.decode()
    assert "pf_" in page
    assert user.api_tokens.get().name == "script"
    assert 'action="/account/tokens/"' in page  # the page stands at another address now


def test_a_code_is_good_once_whatever_a_process_remembers():
    user, secret = person(), "JBSWY3DPEHPK3PXP"
    Authenticator.objects.create(
        user=user,
        type=Authenticator.Type.TOTP,
        data={"secret": keys.encrypted(secret, keys.SECOND_FACTORS)},
    )
    code, answers = code_now(secret), []
    before = format_hotp_value(hotp_value(secret, int(time.time()) // 30 - 1))
    for given in (code, code, before):
        cache.clear()  # as another process, or as time that has gone by
        client = Client()
        sign_in(client, user.username)
        answers.append(client.post(f"{FACTOR}authenticate/", {"code": given}))
    assert answers[0].url == "/"
    assert all("has been used" in answer.content.decode() for answer in answers[1:])
