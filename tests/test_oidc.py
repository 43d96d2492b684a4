"""Sign-in by OpenID Connect against a real provider on loopback, with real redirects."""

import json
import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.test import Client

from tests import oidc_provider


@pytest.mark.django_db
def test_without_a_provider_in_the_environment_there_is_no_such_door():
    assert "oidc" not in Client().get("/accounts/login/").content.decode()
    assert Client().get("/accounts/oidc/oidc/login/").status_code == 404


def test_people_sign_in_at_their_provider_and_come_back_as_themselves(tmp_path):
    with oidc_provider.running() as provider:
        environment = os.environ | {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PREFLOOP_STORAGE": str(tmp_path),
            "DATABASE_URL": f"sqlite:///{tmp_path / 'visit.sqlite3'}",
            "LOG_LEVEL": "WARNING",
            "PREFLOOP_OIDC_ISSUER": provider.issuer,
            "PREFLOOP_OIDC_CLIENT_ID": oidc_provider.CLIENT,
            "PREFLOOP_OIDC_CLIENT_SECRET": oidc_provider.SECRET,
            "PREFLOOP_OIDC_NAME": "The House",
        }
        visited = subprocess.run(
            [sys.executable, "-m", "tests.oidc_visit", provider.issuer],
            cwd=settings.BASE_DIR,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert visited.returncode == 0, visited.stderr[-3000:]
    seen = json.loads(visited.stdout.splitlines()[-1])
    assert provider.refused == []
    assert seen["button"]
    # Of the same user name as an account of ours, and yet nobody: only `sub` counts.
    assert seen["stranger"]
    assert seen["stranger is"] == ""
    assert seen["asked again"] == "/accounts/again/"  # a stolen session connects nothing
    assert not seen["connected before"]
    assert seen["connected"]
    assert seen["ann is"] == "ann"
    assert [step.split("/", 1)[1] for step in seen["led over"]] == [
        "accounts/oidc/oidc/login/",
        "authorize",
        "accounts/oidc/oidc/login/callback/",
    ]
    assert seen["newcomer is"] not in ("", "ann")  # the name was taken
    assert seen["newcomers rights"] is False
    assert seen["newcomers connection"]
    assert seen["tags"] == [False, False]
    assert seen["second factor"] == "/accounts/second-factor/authenticate/"
    assert seen["halfway is"] == ""
    assert seen["forged"] == [True, ""]
    assert {"connect sign-in", "sign in"} <= set(seen["written"])
