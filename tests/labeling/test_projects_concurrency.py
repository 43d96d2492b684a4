"""A lead changes the number of wanted labels while raters work: no place is lost, none doubled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N_COMPARISONS = 150
SETUP = """
import django; django.setup()
from tests.factories import ComparisonFactory, ProjectFactory
project = ProjectFactory(slug="rush")
ComparisonFactory.create_batch({n}, project=project, labels_wanted=1)
"""
CHANGE = """
import django; django.setup()
from labeling import projects
from labeling.models import Preference, Project
projects.BATCH = 7
project = Project.objects.get()
while Preference.objects.count() < 10:
    pass
steps = [(1, 2), (2, 3), (3, 1), (1, 3), (3, 2), (2, 3)]
print([projects.change_labels_wanted(project, old, new) for old, new in steps])
"""
RESULT = """
import django, json; django.setup()
from django.db.models import Count, Q
from labeling.models import Comparison
rows = Comparison.objects.annotate(
    n=Count("preferences", filter=Q(preferences__superseded_at=None), distinct=True),
    n_held=Count("assignments", filter=Q(assignments__state="leased"), distinct=True),
)
print(json.dumps(list(rows.values_list("labels_wanted", "open_places", "n", "n_held"))))
"""


@pytest.mark.slow
def test_places_are_right_after_the_wanted_number_changed_under_work(
    postgresql_url, tmp_path: Path
):  # on SQLite test_queue_concurrency.py changes it too
    env = os.environ | {
        "DATABASE_URL": postgresql_url,
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

    def end(process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        return out

    end(start("manage.py", "migrate", "-v0"))
    end(start("manage.py", "flush", "--no-input"))
    end(start("-c", SETUP.format(n=N_COMPARISONS)))
    players = [
        start("-m", "tests.labeling.play_raters", "rush", str(100 * n), "3") for n in range(2)
    ]
    lead = start("-c", CHANGE)
    steps = json.loads(end(lead))
    for player in players:
        end(player)
    assert steps == [N_COMPARISONS] * len(steps)
    for wanted, open_places, n_given, n_held in json.loads(end(start("-c", RESULT))):
        assert (wanted, n_held) == (3, 0)
        assert n_given <= 3
        assert open_places == wanted - n_given
