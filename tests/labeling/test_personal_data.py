"""One person's data: all of it given out, and erased without a figure changing."""

import io
import json
import os
import time
import zipfile

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.test import Client

from labeling import keys
from labeling.changes import note_change
from labeling.models import (
    AgreementReport,
    ApiToken,
    Assignment,
    Change,
    Choice,
    Delivery,
    Flag,
    IdempotentRequest,
    ImportJob,
    Preference,
    Rater,
    Rating,
    Webhook,
)
from labeling.personal_data import exported, find_person, traces
from labeling.raters import pause_rater
from labeling.reports import agreement_of
from labeling.sealing import check_chain, seal_changes
from labeling.tasks import forget_old_rows
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    UserFactory,
    bearer,
)

pytestmark = pytest.mark.django_db
NAME = "änne-müller"


@pytest.fixture
def world():
    """A project with three raters and all kinds of rows that say one of their names."""
    project = ProjectFactory()
    user = UserFactory(username=NAME)
    MembershipFactory(project=project, user=user, role="rater")
    raters = [
        Rater.objects.create(project=project, name=NAME, user=user),
        Rater.objects.create(project=project, name="bo"),
        Rater.objects.create(project=project, name="cy"),
    ]
    choices = [Choice.A, Choice.B, Choice.TIE, Choice.A]
    for n in range(12):
        comparison = ComparisonFactory(project=project)
        for place, rater in enumerate(raters):
            PreferenceFactory(
                comparison=comparison,
                rater=rater,
                choice=choices[(n + (n % 5 == 0) * place) % 4],
                rationale=f"because of {n}",
            )
    Rating.objects.create(
        response=comparison.response_a,
        rater=raters[0],
        desirable=True,
        rationale="it helped me",
        metadata={"by": NAME},
    )
    Flag.objects.create(comparison=comparison, rater=raters[0], kind="unsafe", note="my street")
    lead = MembershipFactory(project=project).user
    pause_rater(raters[0], lead)
    note_change(project, lead, "mark flag", "x", after={"rater": NAME, "flag": "unsafe"})
    hook = Webhook.objects.create(
        project=project, url="https://example.org", encrypted_secret=keys.encrypted("s", "p")
    )
    Delivery.objects.create(webhook=hook, event="preference.created", payload={"rater": NAME})
    AgreementReport.objects.create(project=project, result={"people": [{"rater": NAME, "n": 12}]})
    bearer(user)
    client = Client()
    client.force_login(user)
    client.get("/")
    seal_changes()
    return project, user, raters[0], lead


def report_of(project) -> dict:
    return json.loads(json.dumps(agreement_of(project), default=str))


def test_the_export_holds_every_row_about_one_person_and_no_secret(world):
    project, user, rater, _lead = world
    with zipfile.ZipFile(io.BytesIO(exported(find_person(NAME)))) as archive:
        told = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert told["auth.user.json"][0]["username"] == NAME
    assert len(told["labeling.preference.json"]) == 12
    assert {row["rater_id"] for row in told["labeling.preference.json"]} == {rater.pk}
    assert told["labeling.flag.json"][0]["note"] == "my street"
    assert told["labeling.membership.json"][0]["project_id"] == project.pk
    text = json.dumps(told)
    assert user.password not in text
    assert ApiToken.objects.get().token_hash not in text
    assert "bo" not in {row["name"] for row in told["labeling.rater.json"]}


def test_an_erasure_changes_no_figure_and_leaves_the_name_nowhere(world):
    project, user, rater, _lead = world
    before = report_of(project)
    administrator = UserFactory(is_superuser=True)
    client = Client()
    client.force_login(administrator)
    page = client.get("/people/", {"name": NAME}).content.decode()
    assert "An account, with 1 rater." in page
    refused = client.post("/people/erase/", {"name": NAME, "confirmed": "somebody"})
    assert refused.status_code == 422
    assert get_user_model().objects.filter(username=NAME).exists()

    done = client.post("/people/erase/", {"name": NAME, "confirmed": NAME}, follow=True)

    rater.refresh_from_db()
    assert f"stand under {rater.name}" in done.content.decode()
    assert rater.name.startswith("erased-")
    after = json.loads(json.dumps(report_of(project)).replace(rater.name, json.dumps(NAME)[1:-1]))
    assert in_order(after) == in_order(before)
    assert traces(NAME) == {}
    assert not get_user_model().objects.filter(pk=user.pk).exists()
    assert not ApiToken.objects.exists()
    left = [session.get_decoded() for session in Session.objects.all()]
    assert {session["_auth_user_id"] for session in left} == {str(administrator.pk)}
    mine = Preference.objects.filter(rater=rater)
    assert set(mine.values_list("rationale", flat=True)) == {""}
    assert Preference.objects.exclude(rater=rater).filter(rationale="").count() == 0
    assert Flag.objects.get().note == ""
    assert Rating.objects.get().rationale == ""
    kept = AgreementReport.objects.get().result
    assert kept == {"people": [{"rater": rater.name, "n": 12}]}
    seal_changes()
    found = check_chain()
    assert found.problems == []
    assert found.redacted >= 2
    erasure = Change.objects.get(action="erase rater")
    assert (erasure.actor, erasure.subject) == (administrator, rater.name)
    assert set(erasure.after["redacted"]) == set(
        Change.objects.exclude(redacted_at=None).values_list("pk", flat=True)
    )
    assert Change.objects.get(action="pause rater").subject == rater.name
    assert Assignment.objects.count() == 0


def test_what_imports_left_behind_forgets_an_erased_rater_and_goes_after_a_month(world, storage):
    """Rejected lines in any form, uploads that wait, answers told to programs."""
    project, _user, _rater, lead = world
    theirs, others = storage / "uploads", {"prompt": "Hi", "preferences": [{"rater": "bo"}]}
    theirs.mkdir(exist_ok=True)
    vote = {"rater": NAME, "choice": "c", "rationale": "my neighbour said"}
    lines = [
        {"line": 1, "reason": f"rater {NAME!r} has no such choice", "text": json.dumps(vote)},
        {"line": 2, "reason": "x", "text": f'{{"rater": "{NAME}", "rationale": "my neighb…'},
        {"line": 3, "reason": "x", "text": json.dumps(others), "kept": True},
    ]
    rejects = theirs / "aa.jsonl.rejects.jsonl"
    rejects.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    own = theirs / "bb.jsonl.rejects.jsonl"  # of labels that name nobody
    own.write_text('{"line": 1, "reason": "x", "text": "my neighbour said"}\n')
    ImportJob.objects.create(
        project=project, filename="b", path="uploads/bb.jsonl", options={"rater": NAME}
    )
    csv, json_lines = theirs / "cc.csv", theirs / "dd.jsonl"
    csv.write_text(f"prompt,response_a,response_b,rater,rationale\na,b,c,{NAME},my neighbour\n")
    json_lines.write_text(json.dumps(others) + "\n")
    IdempotentRequest.objects.create(user=lead, key="k", status=201, body={"answers": [vote]})
    assert traces(NAME)["uploads/aa.jsonl.rejects.jsonl"] == 2
    assert traces(NAME)["uploads/cc.csv"] == 1

    call_command("erase_rater", NAME, "--yes")

    assert traces(NAME) == {}
    told = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["line"], line["text"]) for line in told] == [
        (1, ""),
        (2, ""),
        (3, json.dumps(others)),
    ]
    assert "neighbour" not in own.read_text() + str(IdempotentRequest.objects.get().body)
    assert (csv.exists(), json_lines.exists()) == (False, True)
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(own, (long_ago, long_ago))
    forget_old_rows()
    assert (own.exists(), rejects.exists()) == (False, True)


def in_order(value):
    """A report without the order of its raters, who are listed by name."""
    if isinstance(value, dict):
        return {key: in_order(part) for key, part in value.items()}
    if isinstance(value, list):
        return sorted((in_order(part) for part in value), key=lambda part: json.dumps(part))
    return value


def test_reasons_are_kept_where_that_is_chosen(world, capsys):
    call_command("erase_rater", NAME, "--yes", "--keep-reasons")
    assert "is erased-" in capsys.readouterr().out
    assert Preference.objects.filter(rationale="").count() == 0
    with pytest.raises(CommandError, match="Nobody here"):
        call_command("erase_rater", NAME, "--yes")


def test_an_imported_rater_without_an_account_is_erased_too(world, tmp_path):
    call_command("export_rater", "bo", "--out", str(tmp_path / "bo.zip"))
    assert (tmp_path / "bo.zip").stat().st_mode & 0o777 == 0o600
    call_command("erase_rater", "bo", "--yes")
    assert not Rater.objects.filter(name="bo").exists()
    assert get_user_model().objects.filter(username=NAME).exists()


def test_nobody_erases_themselves_or_the_last_administrator():
    administrator = UserFactory(is_superuser=True)
    client = Client()
    client.force_login(administrator)
    name = administrator.username
    page = client.post("/people/erase/", {"name": name, "confirmed": name}, follow=True)
    assert "Nobody erases themselves" in page.content.decode()
    with pytest.raises(CommandError, match="last administrator"):
        call_command("erase_rater", name, "--yes")
    assert get_user_model().objects.get() == administrator
