"""Raters at once, in real processes and threads, to the last pair: never one label too many."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

N_PROCESSES, N_THREADS, N_COMPARISONS = 4, 8, 40  # 32 raters
SETUP = """
import django; django.setup()
from tests.factories import ComparisonFactory, ProjectFactory
project = ProjectFactory(slug="rush", audit_share=0.2)
ComparisonFactory.create_batch({n}, project=project, labels_wanted={wanted})
"""
RESULT = """
import django, json; django.setup()
from labeling.models import Assignment, Comparison, Preference
votes = Preference.objects.current().values_list("comparison", "rater")
print(json.dumps({
    "votes": list(votes),
    "open": list(Comparison.objects.values_list("open_places", flat=True)),
    "leased": Assignment.objects.filter(state="leased").count(),
    "probabilities": list(
        Preference.objects.values_list("audit", "inclusion_probability").distinct()
    ),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("database", "wanted"), [("sqlite", 1), ("postgresql", 3)])
def test_no_label_too_many_and_none_missing(database, wanted, tmp_path: Path, request):
    import json

    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'rush.sqlite3'}"
    env = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("manage.py", "migrate", "-v0")
    python("manage.py", "flush", "--no-input")
    python("-c", SETUP.format(n=N_COMPARISONS, wanted=wanted))
    players = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.labeling.play_raters",
                "rush",
                str(100 * n),
                str(N_THREADS),
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(N_PROCESSES)
    ]
    kept = 0
    for player in players:
        out, err = player.communicate(timeout=120)
        assert player.returncode == 0, err
        kept += int(out.split()[0])
    result = json.loads(python("-c", RESULT))
    votes = Counter(comparison for comparison, _rater in result["votes"])
    assert max(votes.values()) <= wanted
    assert len(set(map(tuple, result["votes"]))) == len(result["votes"]) == kept
    assert result["leased"] == 0
    assert sorted(result["probabilities"]) == [[False, 0.8], [True, 0.2]]
    # Every place is either answered or still open: none was lost on the way.
    assert sum(result["open"]) + len(result["votes"]) == N_COMPARISONS * wanted
    # With 32 raters and few skips nearly everything is answered.
    assert len(result["votes"]) >= 0.9 * N_COMPARISONS * wanted
