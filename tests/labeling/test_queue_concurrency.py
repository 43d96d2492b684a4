"""Leads change what is wanted while people label: free places are still counted right, and the
history of what they did is one whole chain of seals, though two wrote and sealed it at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """
import django; django.setup()
from tests.factories import ComparisonFactory, ProjectFactory, UserFactory
ComparisonFactory.create_batch(30, project=ProjectFactory(slug="rush"), labels_wanted=3)
UserFactory(username="lead")
"""
LEAD = """
import django; django.setup()
import random
from django.contrib.auth import get_user_model
from labeling import queue
from labeling.models import Project
project, lead = Project.objects.get(slug="rush"), get_user_model().objects.get(username="lead")
pks = list(project.comparisons.values_list("pk", flat=True))
for turn in range(13):
    some = random.sample(pks, 10)
    queue.set_labels_wanted(project, some, random.randint(1, 3), lead)
    queue.take_out(project, some[:5], lead)
    queue.put_back(project, some[:5], lead)
"""
RESULT = """
import django, json; django.setup()
from labeling.models import Comparison
from labeling.sealing import check_chain, seal_changes
places = [
    [c.labels_wanted, c.open_places, c.preferences.current().count(),
     c.assignments.filter(state="leased").count()]
    for c in Comparison.objects.all()
]
seal_changes()
chain = check_chain()
print(json.dumps([places, [chain.rows, chain.unsealed, chain.problems]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_places_stay_right_while_a_lead_changes_what_is_wanted(database, tmp_path: Path, request):
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'rush.sqlite3'}"
    env = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "config.settings",
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
        return out

    result_of(start("manage.py", "migrate", "-v0"))
    result_of(start("manage.py", "flush", "--no-input"))
    result_of(start("-c", SETUP))
    players = [start("-m", "tests.labeling.play_raters", "rush", str(100 * n), "4") for n in (0, 1)]
    leads = [start("-c", LEAD), start("-c", LEAD)]
    for process in [*leads, *players]:
        result_of(process)

    rows, (n_changes, n_unsealed, problems) = json.loads(result_of(start("-c", RESULT)))
    assert len(rows) == 30
    for wanted, free, n_given, n_held in rows:
        assert free == max(0, wanted - n_given - n_held)
        assert n_given <= 3
    assert n_changes > 2 * 13  # each turn of each lead changes something
    assert (n_unsealed, problems) == (0, [])
