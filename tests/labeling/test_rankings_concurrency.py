"""Raters at once on response sets, in real processes and threads: a set is held whole or not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N_PROCESSES, N_THREADS, N_SETS, N_PAIRS = 4, 4, 12, 6
SETUP = """
import django; django.setup()
from tests.factories import ProjectFactory
from tests.labeling.test_rankings import make_set
project = ProjectFactory(slug="rush", audit_share=0.2)
for _ in range({n}):
    make_set(project, k=4, wanted={wanted})
"""
PLAY = """
import django; django.setup()
import random, sys, threading
from django.db import connection
from labeling.answering import record_ranking, skip_set, undo_last
from labeling.assignment import set_assignments, work_for
from labeling.places import NotYours, release
from labeling.models import Project, Rater

project = Project.objects.get(slug="rush")
sizes = []

def play(number):
    chance = random.Random(number)
    rater, _ = Rater.objects.get_or_create(project=project, name=f"player-{number}")
    while work := work_for(rater, chance.randint(1, 2)):
        if len(work) > 1 and chance.random() < 0.3:
            release(rater, [work[1].pk])
        pairs = set_assignments(work[0])
        sizes.append(len(pairs))
        the_set = work[0].comparison.response_set
        responses = list({r for a in pairs for r in (a.comparison.response_a_id,
                                                     a.comparison.response_b_id)})
        chance.shuffle(responses)
        if chance.random() < 0.1:
            skip_set(rater, the_set)
        else:
            record_ranking(rater, the_set, [[pk] for pk in responses])
            if chance.random() < 0.1:
                undo_last(rater)
    connection.close()

first = int(sys.argv[1])
threads = [threading.Thread(target=play, args=(first + n,)) for n in range(int(sys.argv[2]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*sizes)
"""
RESULT = """
import django, json; django.setup()
from django.db.models import Count
from labeling.models import Assignment, Comparison, Preference, Ranking
current = Preference.objects.current()
print(json.dumps({
    "votes": list(current.values_list("comparison").annotate(n=Count("pk"))),
    "open": sum(Comparison.objects.values_list("open_places", flat=True)),
    "leased": Assignment.objects.filter(state="leased").count(),
    "of_rankings": list(
        current.values_list("ranking").annotate(n=Count("pk")).values_list("n", flat=True)
    ),
    "rankings": Ranking.objects.filter(superseded_at=None).count(),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("database", "wanted"), [("sqlite", 3), ("postgresql", 1)])
def test_a_set_is_held_and_ranked_whole(database, wanted, tmp_path: Path, request):
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
    python("-c", SETUP.format(n=N_SETS, wanted=wanted))
    players = [
        subprocess.Popen(
            [sys.executable, "-c", PLAY, str(100 * n), str(N_THREADS)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(N_PROCESSES)
    ]
    sizes = []
    for player in players:
        out, err = player.communicate(timeout=120)
        assert player.returncode == 0, err
        assert "Traceback" not in err, err
        sizes += [int(size) for size in out.split()]
    assert set(sizes) == {N_PAIRS}
    result = json.loads(python("-c", RESULT))
    assert max(n for _comparison, n in result["votes"]) <= wanted
    assert set(result["of_rankings"]) == {N_PAIRS}
    assert len(result["of_rankings"]) == result["rankings"]
    assert result["leased"] == 0
    given = sum(n for _comparison, n in result["votes"])
    assert given + result["open"] == N_SETS * N_PAIRS * wanted
    assert given >= 0.9 * N_SETS * N_PAIRS * wanted
