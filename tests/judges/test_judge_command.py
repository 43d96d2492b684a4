"""`manage.py judge`: its one JSON object, its exit status, and a kill in the middle."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from judges.judging import judge_version, new_run
from judges.ml.config import JudgeRecipe
from judges.models import JudgeRun, JudgeVersion
from tests.factories import ComparisonFactory, ProjectFactory

N = 40

MAKE_ROWS = f"""
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.factories import ComparisonFactory, ProjectFactory
ComparisonFactory.create_batch({N}, project=ProjectFactory(slug="kitchen"))
"""

# The real command, with a note of every sample that reaches the model.
JUDGE = """
import os, sys
import django
django.setup()
from django.core.management import call_command
from judges.ml import engine
ask = engine.ask_with_rows
def noted(model, wording, batch, *rest):
    sections = [text.asked.text.split("=== USER ===\\n")[1] for text in batch]
    with open(sys.argv[1], "a") as notes:
        for prompt in {section.split("\\n")[0] for section in sections}:
            notes.write(prompt + "\\n")
    return ask(model, wording, batch, *rest)
engine.ask_with_rows = noted
call_command("judge", *sys.argv[2:])
"""


def judge(**options) -> dict:
    out = StringIO()
    call_command("judge", json=True, stdout=out, stderr=StringIO(), **options)
    assert len(out.getvalue().strip().splitlines()) == 1
    return json.loads(out.getvalue())


@pytest.mark.django_db
def test_the_command_makes_a_judge_and_prints_one_json_object(tiny_judge):
    project = ProjectFactory(slug="kitchen")
    ComparisonFactory.create_batch(3, project=project)
    settings_of_judge = {"model": str(tiny_judge), "mode": "direct", "set": ["min_answer_mass=0"]}

    first = judge(project="kitchen", judge="tiny", limit=2, **settings_of_judge)
    second = judge(project="kitchen", judge="tiny")
    third = judge(project="kitchen", judge="tiny")

    for figures in (first, second, third):
        assert {
            "questions",
            "parsed",
            "unparsed",
            "seconds",
            "position_consistency",
            "mean_answer_mass",
        } <= set(figures)
    assert [f["questions"] for f in (first, second, third)] == [2, 1, 0]
    assert first["parsed"] == 2
    assert third["position_consistency"] is None
    assert JudgeVersion.objects.count() == 1
    assert judge(project="kitchen", judge="tiny", set=["min_answer_mass=0.5"])["unparsed"] == 3
    assert list(JudgeVersion.objects.values_list("number", flat=True)) == [2, 1]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("options", "says", "status"),
    [
        ({"project": "nowhere", "judge": "x"}, "there is no project nowhere", 2),
        ({"project": "kitchen", "judge": "x"}, "has no judge x; --model MODEL makes it", 2),
        ({"project": "kitchen", "judge": "x", "model": "/gone"}, "no model folder /gone", 1),
        ({"project": "kitchen", "judge": "x", "model": "m", "set": ["loud=1"]}, "no loud", 2),
        ({"project": "kitchen", "judge": "x", "model": "m", "limit": 0}, "at least 1", 2),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_status(options, says, status):
    ComparisonFactory(project=ProjectFactory(slug="kitchen"))

    with pytest.raises(CommandError, match=says) as caught:
        call_command("judge", stdout=StringIO(), stderr=StringIO(), **options)

    assert caught.value.returncode == status


@pytest.mark.django_db
def test_the_command_waits_for_nobody_elses_run(tiny_judge):
    project = ProjectFactory(slug="kitchen")
    ComparisonFactory(project=project)
    judge(project="kitchen", judge="tiny", model=str(tiny_judge), mode="direct")
    ComparisonFactory(project=project)
    version = JudgeVersion.objects.get()
    other = JudgeRun.objects.create(version=version, status="running", worker="elsewhere:1:x")

    with pytest.raises(CommandError, match=f"run {other.pk} is running"):
        judge(project="kitchen", judge="tiny")


@pytest.mark.django_db
def test_the_command_takes_up_a_queued_run_of_the_same_limit_alone(tiny_judge):
    project = ProjectFactory(slug="kitchen")
    ComparisonFactory.create_batch(3, project=project)
    version, _ = judge_version(project, "tiny", str(tiny_judge), JudgeRecipe(mode="direct"))
    queued = new_run(version, limit=2)

    with pytest.raises(CommandError, match=f"run {queued.pk} is queued"):
        judge(project="kitchen", judge="tiny")
    figures = judge(project="kitchen", judge="tiny", limit=2)

    assert (figures["run"], figures["questions"]) == (queued.pk, 2)


@pytest.mark.slow
def test_a_killed_command_goes_on_without_asking_twice_or_losing_a_verdict(tiny_judge, tmp_path):
    storage, notes = tmp_path / "kept", tmp_path / "asked.txt"
    environment = {
        **os.environ,
        "PREFLOOP_STORAGE": str(storage),
        "DATABASE_URL": f"sqlite:///{tmp_path / 'rows.sqlite3'}",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "OMP_NUM_THREADS": "1",
        "SECRET_KEY": "only for this test",
    }

    def python(*arguments: str, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=settings.BASE_DIR,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def rows(sql: str) -> list[tuple]:
        with closing(sqlite3.connect(tmp_path / "rows.sqlite3", timeout=20)) as database:
            return database.execute(sql).fetchall()

    prepared = python("-c", MAKE_ROWS)
    assert prepared.wait() == 0, prepared.stderr.read()
    command = [
        *("--project", "kitchen", "--judge", "tiny", "--json", "--batch-tokens", "1"),
        *("--set", "max_rationale_tokens=40", "--set", "min_answer_mass=0"),
        *("--model", str(tiny_judge)),
    ]
    verdicts = "select id, comparison_id, created_at, prob_a from judges_verdict order by id"

    killed = python("-c", JUDGE, str(notes), *command)
    wanted = random.randint(2, 12)
    deadline = time.monotonic() + 300
    while len(rows(verdicts)) < wanted:
        assert killed.poll() is None, killed.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = rows(verdicts)
    asked_before = Path(notes).read_text().splitlines()
    assert wanted <= len(kept) < N
    assert rows("select status from judges_judgerun") == [("running",)]

    notes.unlink()
    resumed = python("-c", JUDGE, str(notes), *command)
    printed, complaints = resumed.communicate(timeout=300)

    assert resumed.returncode == 0, complaints
    assert json.loads(printed)["questions"] == N
    asked_after = notes.read_text().splitlines()
    # What had a verdict was not asked again; the one batch in flight at the kill was.
    assert len(asked_before) - len(kept) in (0, 1)
    assert len(asked_after) == len(set(asked_after)) == N - len(kept)
    assert rows(verdicts)[: len(kept)] == kept
    assert rows("select count(*), count(distinct comparison_id) from judges_verdict") == [(N, N)]
    assert rows("select count(*) from labeling_preference where superseded_at is null") == [(N,)]
    assert rows("select count(*) from labeling_preference") == [(N,)]
    assert rows("select status, n_done, n_total from judges_judgerun") == [("succeeded", N, N)]
