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
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
)
from tests.training.projects import labeled_project
from training.runs import create_run

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


READ_BY_MACHINES = re.compile(
    r'\b(?:value|min|max|step|x|y|cx|cy|dy|r|rx|width|height|points|d|viewBox|data-[\w-]+)="[^"]*\d,\d'
)


@pytest.mark.django_db
def test_fields_and_pictures_keep_the_decimal_point():
    """What scripts, SVG and number fields read is never localised."""
    project = ProjectFactory(slug="p", audit_share=0.125)
    owner = MembershipFactory(project=project, role=Membership.Role.OWNER)
    rater = RaterFactory(project=project)
    for seconds in (3.5, 41.25, 200.125):
        PreferenceFactory(
            rater=rater, comparison__project=project, choice="a", shown_first="a", seconds=seconds
        )
    client = Client(**IN_GERMAN)
    client.force_login(owner.user)

    settings_page = client.get("/projects/p/edit/").content.decode()
    assert 'value="12.5"' in settings_page
    assert READ_BY_MACHINES.findall(settings_page) == []
    figures = client.get(f"/projects/p/raters/{rater.pk}/").content.decode()
    assert "<svg" in figures
    assert READ_BY_MACHINES.findall(figures) == []


@pytest.mark.django_db
def test_figures_of_a_run_have_a_decimal_comma_and_its_curves_the_point():
    project = labeled_project(16)
    owner = MembershipFactory(project=project, role=Membership.Role.OWNER)
    run = create_run(project, kind="reward", base_model="m", test_share=0.3)
    share = {"value": 0.84, "low": 0.709, "high": 0.928, "n": 50}
    figures = {"log_loss": 0.41, "margin": 1.2, "too_long_train": 0, "too_long_test": 0, "n": 50}
    run.metrics = figures | {"accuracy": share, "longer_wins": share}
    run.status = run.Status.SUCCEEDED
    run.save()
    run.steps.create(step=1, values={"loss": 0.7, "accuracy": 0.5, "margin": 0.1})
    client = Client(**IN_GERMAN)
    client.force_login(owner.user)

    text = client.get(f"/projects/{project.slug}/training/runs/{run.pk}/").content.decode()

    assert "0,840" in text
    assert "[[1, 0.7]]" in text
    assert READ_BY_MACHINES.findall(text) == []
