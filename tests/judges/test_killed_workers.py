"""Workers as real processes: killed at random moments, several on one run, cancelled in a batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "postgresql"])
def play(request, tmp_path: Path, tiny_judge: Path):
    """Runs tests.judges.killed_workers on a database of its own; its result and its log."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'rows.sqlite3'}"
    environment = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(tmp_path / "kept"),
        "PREFLOOP_HEARTBEAT_SECONDS": "6",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "OMP_NUM_THREADS": "1",
        "SECRET_KEY": "only for this test",
    }

    def run(what: str, seed: int = 0) -> tuple[dict[str, Any], list[tuple[int, list[int]]]]:
        log = tmp_path / f"asked-{seed}.txt"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.judges.killed_workers"),
                *(str(tiny_judge), str(log), str(seed), what),
            ],
            cwd=settings.BASE_DIR,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(done.stdout), [tuple(json.loads(line)) for line in lines]

    return run


@pytest.mark.parametrize("play", ["postgresql"], indirect=True)  # SQLite: test_judge_command.py
def test_a_run_killed_at_random_moments_asks_nothing_twice_and_loses_nothing(play):
    result, log = play("kills", seed=2)

    n = result["n_comparisons"]
    assert result["last_status"] == 0
    assert result["runs"] == [["succeeded", n, n]]
    # One verdict and one preference each, and no claim is left over.
    assert len({row[0] for row in result["kept"]}) == len(result["kept"]) == n
    assert result["n_current"] == result["n_compared"] == result["n_preferences"] == n
    assert result["n_claims"] == 0
    kept_at_start = dict(result["starts"])
    for pid, comparisons in log:
        assert not set(comparisons) & {row[0] for row in kept_at_start[pid]}
    for kept in kept_at_start.values():  # and what was kept is as it was
        assert result["kept"][: len(kept)] == kept
    asked = [pk for _pid, comparisons in log for pk in comparisons]
    # Of each killed process at most the one batch that was answered and not kept yet.
    assert n <= len(asked) <= n + len(kept_at_start) - 1


@pytest.mark.parametrize("play", ["sqlite"], indirect=True)  # PostgreSQL: tests/faults
def test_three_workers_share_a_run_and_take_over_what_a_killed_one_held(play):
    result, log = play("share", seed=4)

    n = result["n_comparisons"]
    assert result["statuses"] == [0, 0]
    assert result["runs"] == [["succeeded", n, n]]
    assert len({row[0] for row in result["kept"]}) == len(result["kept"]) == n
    assert result["n_current"] == result["n_compared"] == result["n_preferences"] == n
    assert result["n_claims"] == 0
    by_worker: dict[int, set[int]] = {pid: set() for pid in result["pids"]}
    for pid, comparisons in log:
        assert not by_worker[pid] & set(comparisons)
        by_worker[pid] |= set(comparisons)
    assert all(by_worker.values())
    first, second = (by_worker[pid] for pid in result["pids"] if pid != result["victim"])
    assert not first & second
    # Only what the killed one held came to another as well.
    assert by_worker[result["victim"]] & (first | second) <= set(result["held"])
    assert sum(n_judged for _name, n_judged, _problem in result["workers"]) == n
    problems = {name.split(":")[1]: problem for name, _n, problem in result["workers"]}
    assert problems[str(result["victim"])] == "It stopped reporting."


@pytest.mark.parametrize("play", ["sqlite"], indirect=True)
def test_a_run_is_cancelled_while_its_model_loads_and_in_the_middle_of_a_long_batch(play):
    result, _log = play("cancel")

    assert result["runs"] == [["cancelled", 0, result["n_comparisons"]]]  # twice, the same run
    assert result["n_asked"] == 0  # no batch came to its end
    assert result["kept"] == []
    assert result["n_claims"] == 0
