"""What must hold however an installation's parts are killed under load: one short scenario with one
fault of every kind (tests/faults/scenario.py), and a test for each invariant."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.faults import rig

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("PREFLOOP_TEST_SEED") or 1)


@pytest.fixture(scope="module")
def facts(tiny_judge: Path, tiny_model: str) -> dict[str, Any]:
    """What was left after the faults."""
    if why := rig.missing():
        pytest.skip(why)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.scenario", "--seed", str(SEED)),
            *("--judge-model", str(tiny_judge), "--base-model", tiny_model),
        ],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=400,
        env={key: value for key, value in os.environ.items() if not key.startswith("PREFLOOP_")},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def story(facts) -> str:
    """For a failing test."""
    return "\n".join([*facts["story"], *map(str, facts["jobs"])])


def test_every_acknowledged_preference_is_there_once_as_it_was_given(facts, story):
    assert facts["acknowledged"] > 300, story
    assert (facts["lost"], facts["doubled"], facts["wrong"]) == ([], [], []), story


def test_nothing_is_kept_that_nobody_sent(facts):
    assert facts["never_sent"] == []


def test_no_comparison_has_too_many_labels_and_every_place_is_counted(facts):
    assert facts["over"] == 0
    assert facts["wrong_places"] == []


def test_no_rater_waits_for_ever_and_none_is_left_with_nothing_to_send_to(facts, story):
    assert facts["stuck_raters"] == 0, story
    assert facts["slowest"] < 30
    # What was refused was refused with a reason: others have answered it meanwhile.
    assert all("held this comparison for too long" in why for why in facts["refusals"]), story


def test_every_judge_run_and_training_run_and_report_comes_to_its_end(facts, story):
    assert {status for _kind, _pk, status, *_rest in facts["jobs"]} == {"succeeded"}, story
    assert all(done == total for _status, done, total in facts["judge_runs"])
    assert sum(done for _status, done, _total in facts["judge_runs"]) == facts["n_judged"]
    assert facts["claims"] == 0
    assert facts["models"] == facts["runs"] > 0


def test_no_verdict_and_no_step_is_doubled(facts):
    assert facts["verdicts"] == facts["judge_labels"] == facts["n_judged"]
    assert (facts["verdicts_doubled"], facts["judge_labels_doubled"]) == (0, 0)
    assert facts["steps_doubled"] == 0


def test_a_lost_worker_is_noticed_within_a_minute(facts):
    # Three missed heartbeats and what the sweep takes; the heartbeat is 2 s here, by default 10 s.
    assert facts["lost_after"]
    assert all(lost["seconds"] + 3 * (10 - 2) < 60 for lost in facts["lost_after"])


def test_the_page_of_what_stopped_says_what_happened_and_offers_to_resume(facts, story):
    assert facts["offers"], story
    for offer in facts["offers"]:
        assert offer["offers"], offer
        assert offer["says"], offer
        assert offer["error"], offer


def test_a_full_disk_loses_nothing(facts):
    if facts["disk"]:
        pytest.skip(facts["disk"])
    assert facts["disk_filled"] > 10**7
