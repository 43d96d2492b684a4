"""An installation with a provider named in its environment, visited by people: run by test_oidc.py
in a process of its own, since the environment decides which apps are installed.

Prints one JSON object with what was seen.
"""

import json
import sys
import threading
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
import requests
from django.conf import settings

settings.MIGRATION_MODULES = {name.rpartition(".")[2]: None for name in settings.INSTALLED_APPS}
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
django.setup()

from allauth.mfa.models import Authenticator  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.core.management import call_command  # noqa: E402

from config.wsgi import application  # noqa: E402
from labeling import keys  # noqa: E402
from labeling.models import Change  # noqa: E402
from tests.oidc_provider import TAG  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
users = get_user_model()
users.objects.create_user("ann", password="correct horse")


class Quiet(WSGIRequestHandler):
    def log_message(self, *_arguments):
        pass


server = make_server("127.0.0.1", 0, application, WSGIServer, Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
here = f"http://127.0.0.1:{server.server_port}"


class Browser(requests.Session):
    def press(self, page: str, **fields: str) -> requests.Response:
        self.get(here + page)
        fields["csrfmiddlewaretoken"] = self.cookies["csrftoken"]
        return self.post(here + page, data=fields, headers={"Referer": here + page})

    def name(self) -> str:
        answer = self.get(f"{here}/api/me/")
        return answer.json().get("username", "") if answer.ok else ""


def by_provider(browser: Browser, process: str) -> requests.Response:
    return browser.press(f"/accounts/oidc/oidc/login/?process={process}")


seen = {}
stranger = Browser()
seen["button"] = "Sign in with The House" in stranger.get(f"{here}/accounts/login/").text
seen["stranger"] = "No account here" in by_provider(stranger, "login").text
seen["stranger is"] = stranger.name()

ann = Browser()
ann.press("/accounts/login/", username="ann", password="correct horse")
seen["asked again"] = by_provider(ann, "connect").url.partition("?")[0].removeprefix(here)
seen["connected before"] = ann.get(f"{here}/accounts/oidc/").text.count("Disconnect") > 0
ann.press("/accounts/again/", password="correct horse")
seen["connected"] = ann.get(f"{here}/accounts/oidc/").text.count("Disconnect") > 0

later = Browser()
led = by_provider(later, "login")
seen["led over"] = [step.url.partition("?")[0].rpartition(":")[2] for step in led.history]
seen["ann is"] = later.name()

Authenticator.objects.create(
    user=users.objects.get(username="ann"),
    type=Authenticator.Type.TOTP,
    data={"secret": keys.encrypted("JBSWY3DPEHPK3PXP", keys.SECOND_FACTORS)},
)
halfway = Browser()
seen["second factor"] = by_provider(halfway, "login").url.partition("?")[0].removeprefix(here)
seen["halfway is"] = halfway.name()

settings.PREFLOOP_OIDC_SIGNUP = True
requests.get(f"{sys.argv[1]}/become", timeout=5)
newcomer = Browser()
by_provider(newcomer, "login")
seen["newcomer is"] = newcomer.name()
pages = [newcomer.get(f"{here}{page}").text for page in ("/", "/accounts/oidc/")]
seen["tags"] = [TAG in page for page in pages]
seen["newcomers connection"] = "Disconnect" in pages[1]
forged = Browser()
forged.get(f"{here}/accounts/login/")
seen["forged"] = forged.get(f"{here}/accounts/oidc/oidc/login/callback/?code=x&state=y").text
seen["forged"] = "did not work" in seen["forged"], forged.name()
seen["newcomers rights"] = users.objects.get(username=seen["newcomer is"]).is_staff
seen["written"] = sorted(set(Change.objects.values_list("action", flat=True)))
print(json.dumps(seen))
