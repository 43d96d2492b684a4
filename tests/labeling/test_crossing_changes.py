"""Leads, imports and the sweep change things while people label: nobody waits for nobody, no error,
no place lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N_COMPARISONS, WANTED = 40, 2
SETUP = f"""
import django; django.setup()
from tests.factories import ComparisonFactory, ProjectFactory, RaterFactory, UserFactory
from labeling.models import Webhook
project = ProjectFactory(slug="rush", audit_share=0.3, check_share=0.1, repeat_share=0.1)
for n in range({N_COMPARISONS}):
    ComparisonFactory(
        project=project, labels_wanted={WANTED}, gold="a" if n < 20 else "", external_id=f"c{{n}}"
    )
# Who answers also locks the comparison, to tell of it.
Webhook.objects.create(project=project, url="https://example.org/", events=["comparison.completed"])
UserFactory(username="lead")
for number in (0, 1, 100, 101):
    RaterFactory(project=project, name=f"player-{{number}}")
"""
LEADS = """
import django; django.setup()
import random
from django.contrib.auth import get_user_model
from labeling import places, queue, raters, sets
from labeling.imports.records import store_records
from labeling.models import Assignment, Project, Rater
project, lead = Project.objects.get(slug="rush"), get_user_model().objects.get(username="lead")
pks = list(project.comparisons.values_list("pk", flat=True))
with_gold = list(project.comparisons.exclude(gold="").values_list("pk", flat=True))
"""
PAUSES = """
for turn in range(20):
    for rater in random.sample(list(project.raters.filter(imported=False)), 2):
        raters.pause_rater(rater, lead)
        raters.resume_rater(rater, lead)
        raters.requalify(rater, lead)
        raters.let_in(rater, lead)
"""
PURPOSES = """
for turn in range(8):
    some = random.sample(with_gold, 8)
    sets.set_purpose(project, some, random.choice(["check", "qualification"]), lead)
    sets.choose_by_id(project, [f"c{n}" for n in random.sample(range(20), 5)], "check", "b", lead)
    queue.set_labels_wanted(project, random.sample(pks, 20), 2, lead)
    sets.set_purpose(project, with_gold, "work", lead)
"""
IMPORTS = """
for turn in range(10):
    votes = [{"rater": f"file {turn}", "choice": "a"}]
    ids = random.sample(range(40), 15)
    store_records(project, [{"id": f"c{n}", "preferences": votes} for n in ids], None)
"""
SWEEPS = """
import time
from datetime import timedelta
from django.utils import timezone
for turn in range(20):
    held = Assignment.objects.filter(state="leased").order_by("?")[:5]
    for pk in list(held.values_list("pk", flat=True)):
        gone = timezone.now() - timedelta(seconds=1)
        Assignment.objects.filter(pk=pk, state="leased").update(expires_at=gone)
    places.take_back_expired()
    time.sleep(0.01)
"""
RESULT = """
import django, json; django.setup()
from labeling.models import Assignment, Comparison
print(json.dumps([
    [c.purpose, c.labels_wanted, c.open_places,
     c.preferences.current().filter(rater__kind="person").count(),
     c.preferences.current().filter(rater__kind="person", rater__imported=False).count(),
     c.assignments.filter(state="leased", repeats=None).count(),
     c.assignments.filter(state="answered", repeats=None).count()]
    for c in Comparison.objects.all()
]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_everybody_at_once(database, tmp_path: Path, request):
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'rush.sqlite3'}"
    env = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "CELERY_BROKER_URL": "memory://localhost",
    }

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result_of(process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "Traceback" not in err, err  # of a thread that died
        return out

    result_of(start("manage.py", "migrate", "-v0"))
    result_of(start("manage.py", "flush", "--no-input"))
    result_of(start("-c", SETUP))
    players = [start("-m", "tests.labeling.play_raters", "rush", str(100 * n), "4") for n in (0, 1)]
    others = [start("-c", LEADS + what) for what in (PAUSES, PURPOSES, IMPORTS, SWEEPS)]
    for process in [*players, *others]:
        result_of(process)

    rows = json.loads(result_of(start("-c", RESULT)))
    assert len(rows) == N_COMPARISONS
    for purpose, wanted, free, n_given, n_given_here, n_held, n_answered in rows:
        assert free == (max(0, wanted - n_given - n_held) if purpose == "work" else 0)
        assert n_answered == n_given_here
