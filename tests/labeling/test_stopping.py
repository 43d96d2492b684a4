"""A stop rule that one may look at every day."""

import math

import numpy as np
import pytest

from labeling.stopping import log_capital, sequential_win_rate


def test_the_first_bet_worked_by_hand():
    # Stake √(2 ln 40 / (¼ · 1 · ln 2)) = 6.5, held to ½ / 0.5 = 1: an answer of 1 makes 1.5 of 1.
    capital = log_capital(np.array([1.0, 1.0]), 0.5)

    assert capital[0] == pytest.approx(math.log(1.5 / 2))
    assert capital[1] == pytest.approx(math.log(1.5**2 / 2))


def test_nobody_grows_rich_on_average_by_betting_against_the_truth():
    rng = np.random.default_rng(4)
    answers = (rng.random((20_000, 12)) < 0.5).astype(float)

    capital = np.exp(log_capital(answers, 0.5)).mean(axis=0)

    assert (capital < 1.02).all()


def test_a_clear_winner_is_decided_and_stays_decided():
    rng = np.random.default_rng(2)
    answers = (rng.random(600) < 0.65).astype(float)

    found = sequential_win_rate(answers)
    mirrored = sequential_win_rate(1 - answers)

    assert found["decided"] == "a"
    assert found["decided_at"] < 400
    assert 0.5 < found["low"] < 0.65 < found["high"]
    assert mirrored["decided"] == "b"
    assert mirrored["high"] == pytest.approx(1 - found["low"], abs=0.006)
    assert sequential_win_rate(answers[: found["decided_at"]])["low"] <= found["low"]


def test_equals_stay_undecided_and_nothing_is_refused():
    found = sequential_win_rate(np.full(200, 0.5))

    assert (found["value"], found["decided"], found["decided_at"]) == (0.5, "", None)
    assert found["low"] < 0.5 < found["high"]
    assert sequential_win_rate(np.array([]))["value"] is None


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_the_interval_is_wrong_at_some_look_in_at_most_one_run_of_twenty(rate):
    rng = np.random.default_rng(9)
    answers = (rng.random((400, 500)) < rate).astype(float)

    wrong = (log_capital(answers, rate).max(axis=1) >= math.log(20)).mean()

    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
