"""SECRET_KEY is replaced without a secret being lost, and the old one can be dropped then."""

import pytest
from allauth.mfa.models import Authenticator
from django.core.management import CommandError, call_command

from judges.models import JudgeServer
from judges.servers import encrypted, key_of
from labeling import keys
from labeling.changes import note_event
from labeling.models import Webhook
from labeling.sealing import check_chain, seal_changes
from labeling.webhooks import make_webhook, secret_of
from tests.factories import ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def stored(settings):
    settings.SECRET_KEY = "the first key"
    server = JudgeServer.objects.create(
        name="house",
        url="http://127.0.0.1:1/v1",
        encrypted_key=encrypted("k", "http://127.0.0.1:1"),
    )
    hook = make_webhook(ProjectFactory(), "https://example.org", [], UserFactory())
    secret = keys.encrypted("ABC", keys.SECOND_FACTORS)
    factor = Authenticator.objects.create(user=UserFactory(), type="totp", data={"secret": secret})
    return server, hook, secret_of(hook), factor


def test_old_keys_read_until_all_is_written_anew(stored, settings, capsys):
    server, hook, secret, factor = stored
    seal_changes()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "the second key", ["the first key"]
    assert (key_of(server), secret_of(hook)) == ("k", secret)
    assert check_chain().problems == []

    call_command("rotate_keys")
    assert "1 keys of judge servers, 1 secrets of webhooks, 1 second" in capsys.readouterr().out

    settings.SECRET_KEY_FALLBACKS = []
    for row in (server, hook, factor):
        row.refresh_from_db()
    assert (key_of(server), secret_of(hook)) == ("k", secret)
    assert keys.decrypted(factor.data["secret"], keys.SECOND_FACTORS) == "ABC"
    seal_changes()
    assert check_chain().problems == []
    settings.SECRET_KEY = "the first key"
    with pytest.raises(keys.WrongKey):
        secret_of(hook)


def test_who_is_signed_in_stays_so_under_the_same_cookie_when_the_old_key_is_dropped(
    settings, client
):
    settings.SECRET_KEY = "the first key"
    client.force_login(UserFactory())
    cookie = client.cookies["sessionid"].value
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "the second key", ["the first key"]

    call_command("rotate_keys")

    settings.SECRET_KEY_FALLBACKS = []
    assert client.get("/").status_code == 200
    assert client.cookies["sessionid"].value == cookie
    settings.SECRET_KEY = "the first key"
    assert client.get("/").status_code == 302


def test_nothing_is_rotated_over_a_broken_history(stored, settings):
    note_event(None, "sign in", "x")
    seal_changes()
    settings.SECRET_KEY, before = "another one, and the first is not named", stored[1]
    with pytest.raises(CommandError, match="not as it was sealed"):
        call_command("rotate_keys")
    assert Webhook.objects.get().encrypted_secret == before.encrypted_secret


def test_a_purpose_reads_nothing_of_another():
    token = keys.encrypted("secret", keys.WEBHOOKS)
    assert "secret" not in token
    with pytest.raises(keys.WrongKey):
        keys.decrypted(token, keys.SECOND_FACTORS)
