"""The interface in another language: the catalogue is whole and fresh, pages follow the browser."""

import gettext
import re
import shutil
import subprocess
import sys

import polib
import pytest
from django.conf import settings
from django.test import Client

from labeling.models import Membership
from tests.factories import ComparisonFactory, MembershipFactory, ProjectFactory

OTHERS = [code for code, _name in settings.LANGUAGES if code != "en"]
# A “%” of a text is written “%%” in the catalogue, where placeholders look like “%(n)s”.
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%%|%s|<[^>]+>")
IN_GERMAN = {"HTTP_ACCEPT_LANGUAGE": "de-AT,de;q=0.9,en;q=0.5"}


def catalogue(code: str) -> polib.POFile:
    return polib.pofile(settings.LOCALE_PATHS[0] / code / "LC_MESSAGES" / "django.po")


@pytest.mark.parametrize("code", OTHERS)
def test_every_text_is_translated(code):
    entries = catalogue(code)
    missing = [e.msgid for e in entries if not e.translated() and not e.obsolete]
    assert missing == []
    assert [e.msgid for e in entries if e.obsolete] == []


@pytest.mark.parametrize("code", OTHERS)
def test_translations_keep_placeholders_and_tags(code):
    wrong = []
    for entry in catalogue(code):
        for i, text in (entry.msgstr_plural or {0: entry.msgstr}).items():
            # A translated singular may name the number, or leave it out, as the plural does.
            allowed = [sorted(PLACEHOLDER.findall(entry.msgid))]
            if entry.msgid_plural:
                many = sorted(PLACEHOLDER.findall(entry.msgid_plural))
                allowed = [*allowed, many] if i == 0 else [many]
            if sorted(PLACEHOLDER.findall(text)) not in allowed:
                wrong.append((entry.msgid, text))
    assert wrong == []


@pytest.mark.parametrize("code", OTHERS)
def test_the_compiled_catalogue_is_fresh(code):
    compiled = gettext.translation("django", settings.LOCALE_PATHS[0], [code])
    stale = [
        entry.msgid
        for entry in catalogue(code)
        if not entry.msgid_plural
        and entry.msgstr
        != (
            compiled.pgettext(entry.msgctxt, entry.msgid)
            if entry.msgctxt
            else compiled.gettext(entry.msgid)
        )
    ] + [
        entry.msgid
        for entry in catalogue(code)
        if entry.msgid_plural
        for i, n in ((0, 1), (1, 2))
        if compiled.ngettext(entry.msgid, entry.msgid_plural, n) != entry.msgstr_plural[i]
    ]
    assert stale == []


@pytest.mark.parametrize("code", OTHERS)
def test_every_text_of_the_program_is_in_the_catalogue(code, tmp_path):
    if shutil.which("xgettext") is None:
        pytest.skip("finding the texts needs the gettext programs")
    for name in ("config", "labeling", "judges", "training", "templates", "manage.py"):
        source = settings.BASE_DIR / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "locale").mkdir()
    subprocess.run(
        [sys.executable, "manage.py", "makemessages", "-l", code, "--no-location"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    found = polib.pofile(tmp_path / "locale" / code / "LC_MESSAGES" / "django.po")
    known = {(e.msgctxt, e.msgid, e.msgid_plural) for e in catalogue(code)}
    assert {(e.msgctxt, e.msgid, e.msgid_plural) for e in found} == known


def test_sign_in_follows_the_browser():
    page = Client().get("/accounts/login/", **IN_GERMAN)
    text = page.content.decode()
    assert page.headers["Content-Language"] == "de"
    assert '<html lang="de">' in text
    assert "<h1>Anmelden</h1>" in text
    assert "<h1>Sign in</h1>" in Client().get("/accounts/login/").content.decode()


@pytest.mark.django_db
def test_a_raters_way_is_german_and_english_can_be_chosen():
    project = ProjectFactory(slug="p")
    ComparisonFactory(project=project)
    member = MembershipFactory(project=project, role=Membership.Role.RATER)
    client = Client(**IN_GERMAN)
    client.force_login(member.user)

    assert "<h1>Projekte</h1>" in client.get("/").content.decode()
    assert "Welche Antwort ist besser?" in client.get("/projects/p/compare/").content.decode()

    chosen = client.post("/i18n/setlang/", {"language": "en", "next": "/projects/p/compare/"})
    assert chosen.url == "/projects/p/compare/"
    text = client.get(chosen.url).content.decode()
    assert "Which response is better?" in text
    assert '<html lang="en">' in text


@pytest.mark.django_db
def test_the_chooser_leads_nowhere_else():
    answer = Client().post("/i18n/setlang/", {"language": "de", "next": "https://evil.example/"})
    assert answer.url == "/"


@pytest.mark.django_db
def test_figures_have_a_decimal_comma_and_fields_keep_the_point():
    """What JavaScript, SVG and number fields read is never localised."""
    project = ProjectFactory(slug="p", audit_share=0.125)
    member = MembershipFactory(project=project, role=Membership.Role.OWNER)
    client = Client(**IN_GERMAN)
    client.force_login(member.user)
    text = client.get("/projects/p/settings/").content.decode()
    assert 'value="12.5"' in text
    assert "12,5" not in text
