import math

import numpy as np
import pytest

from training.ml.evaluation import (
    clopper_pearson,
    length_correlation,
    log_loss,
    pair_metrics,
    share_right,
)


def test_the_exact_interval_of_42_of_50():
    assert clopper_pearson(42, 50) == pytest.approx((0.708874, 0.928299), abs=1e-6)


def test_the_interval_reaches_the_end_where_all_or_nothing_is_right():
    assert clopper_pearson(10, 10)[1] == 1.0
    assert clopper_pearson(0, 10)[0] == 0.0
    low, high = clopper_pearson(10, 10)
    assert (1 - high, 1 - low) == pytest.approx(clopper_pearson(0, 10))


def test_no_interval_without_a_pair():
    with pytest.raises(ValueError, match="no interval for 0 of 0"):
        clopper_pearson(0, 0)


def test_a_tie_counts_half():
    assert share_right([1.0, 0.0, -1.0, 0.0])["value"] == 0.5
    assert share_right([2.0, 0.0])["value"] == 0.75


def test_turning_every_pair_round_turns_the_accuracy_round():
    margins = np.array([0.3, -1.2, 0.0, 2.0, 0.7])

    assert share_right(margins)["value"] == pytest.approx(1 - share_right(-margins)["value"])


def test_log_loss_is_ln_2_where_the_model_knows_nothing_and_grows_with_sure_errors():
    assert log_loss([0.0, 0.0]) == pytest.approx(math.log(2))
    assert log_loss([1.0]) == pytest.approx(math.log(1 + math.exp(-1)))
    assert log_loss([-50.0]) == pytest.approx(50.0)


def test_correlation_with_length_is_refused_where_nothing_varies():
    assert length_correlation([1.0, 2.0, 3.0], [10, 20, 30]) == pytest.approx(1.0)
    assert length_correlation([1.0, 2.0, 3.0], [5, 5, 5]) is None


def test_metrics_stand_beside_the_length_baseline_with_their_n():
    metrics = pair_metrics([1.0, 2.0, -1.0, 3.0], [5, -5, -5, -5])

    assert metrics["accuracy"]["value"] == 0.75
    assert metrics["longer_wins"]["value"] == 0.25
    assert metrics["accuracy"]["n"] == metrics["longer_wins"]["n"] == metrics["n"] == 4
    assert metrics["margin"] == pytest.approx(1.25)


def test_where_every_test_pair_was_left_out_the_reason_says_so():
    assert pair_metrics([], [], n_left_out=7) == {
        "n": 0,
        "why": "all 7 test pairs were left out: too long or empty",
    }
    assert pair_metrics([], [], n_left_out=1)["why"].startswith("the one test pair was left out:")


def test_without_test_pairs_the_reason_stands_instead_of_a_number():
    assert pair_metrics([], []) == {
        "n": 0,
        "why": "no test pairs: every prompt is on the training side",
    }
