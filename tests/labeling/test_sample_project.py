"""The sample project: sixty comparisons that a newcomer can label at once."""

import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from labeling.management.commands.sample_project import SAMPLE
from labeling.models import Project
from labeling.rendering import render_markdown
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db


def records():
    lines = (SAMPLE / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def make_sample(**options):
    out = StringIO()
    call_command("sample_project", stdout=out, **options)
    return out.getvalue()


def test_a_second_call_adds_nothing_and_keeps_what_people_changed():
    UserFactory(username="maria")

    first = make_sample(owner="maria")
    Project.objects.update(guidelines="Ours.", name="Warm-up")
    second = make_sample(owner="maria")

    assert first == "Project `sample`: 60 comparisons added, 0 were there already.\n"
    assert second == "Project `sample`: 0 comparisons added, 60 were there already.\n"
    project = Project.objects.get(slug="sample")
    assert project.comparisons.count() == 60
    assert (project.guidelines, project.name) == ("Ours.", "Warm-up")
    assert [(m.user.username, m.role) for m in project.memberships.all()] == [("maria", "owner")]


def test_an_owner_is_not_needed_but_must_exist_when_named():
    make_sample()
    assert not Project.objects.get(slug="sample").memberships.exists()

    with pytest.raises(CommandError, match="no user 'nobody'") as error:
        make_sample(owner="nobody")
    assert error.value.returncode == 2


def test_nobody_has_labelled_the_sample_and_no_side_gives_a_source_away():
    rows = records()

    assert len({row["id"] for row in rows}) == len(rows) == 60
    assert not any({"preferences", "verdicts", "gold"} & set(row) for row in rows)
    longer_is_a = sum(len(row["response_a"]) > len(row["response_b"]) for row in rows)
    assert 18 <= longer_is_a <= 42


def test_every_text_of_the_sample_renders():
    for row in records():
        for text in (row["response_a"], row["response_b"]):
            html = render_markdown(text)
            assert "<" in html
            assert "```" not in html, row["id"]  # each code block is closed and found
