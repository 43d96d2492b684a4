"""Correcting probabilities, and measuring what they are worth: values worked by hand, and what must
hold for any of them."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss
from torch import tensor
from torch.nn.functional import sigmoid

from labeling import calibration
from labeling.calibration import (
    bin_sums,
    brier_scores,
    correct,
    cross_fitted,
    equal_mass_bins,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
    log_losses,
)
from labeling.correction import corrected


def overconfident(n: int, times: float, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are `times` too large, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return 1 / (1 + np.exp(-times * z)), labels


def test_a_temperature_divides_the_logit():
    # logit 0.8 = ln 4; half of it is ln 2, whose probability is 2 / 3.
    assert corrected({"temperature": 2.0}, 0.8) == pytest.approx(2 / 3)
    assert corrected({"temperature": 1.0}, 0.8) == pytest.approx(0.8)
    assert corrected({"temperature": 0.5}, 0.8) == pytest.approx(16 / 17)


@pytest.mark.parametrize(
    "parameters", [{"temperature": 3.1}, {"x": [0, 0.5, 1], "y": [0.1, 0.5, 0.9]}]
)
def test_a_correction_treats_both_names_alike_and_leaves_a_half(parameters):
    assert corrected(parameters, 0.5) == pytest.approx(0.5)
    for prob in (0.0, 0.01, 0.3, 0.77, 1.0):
        assert corrected(parameters, prob) + corrected(parameters, 1 - prob) == pytest.approx(1)


def test_points_are_joined_by_straight_lines_and_level_beyond_them():
    parameters = {"x": [0.2, 0.4, 0.8], "y": [0.1, 0.3, 0.9]}
    assert [corrected(parameters, p) for p in (0.0, 0.2, 0.3, 0.6, 0.8, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.6, 0.9, 0.9]
    )


@pytest.mark.parametrize(
    ("parameters", "prob"),
    [({"slope": 1}, 0.5), ({"temperature": 0.0}, 0.5), ({"temperature": 1}, 1.2)],
)
def test_what_is_no_calibration_is_refused(parameters, prob):
    with pytest.raises(ValueError, match=r"parameters|temperature|probability"):
        corrected(parameters, prob)


def test_the_fitted_temperature_undoes_what_made_the_judge_too_sure():
    probs, labels = overconfident(20_000, times=3.0)

    fitted = fit_temperature(probs, labels)["temperature"]

    assert fitted == pytest.approx(3.0, abs=0.15)
    # No other temperature has less log-loss.
    best = log_losses(correct({"temperature": fitted}, probs), labels).mean()
    for other in (0.98 * fitted, 1.02 * fitted):
        assert log_losses(correct({"temperature": other}, probs), labels).mean() > best


def test_exchanging_the_names_changes_no_correction():
    probs, labels = overconfident(2_000, times=2.0)
    assert fit_temperature(1 - probs, 1 - labels)["temperature"] == pytest.approx(
        fit_temperature(probs, labels)["temperature"], rel=1e-5
    )
    assert correct(fit_isotonic(1 - probs, 1 - labels), probs) == pytest.approx(
        correct(fit_isotonic(probs, labels), probs), abs=1e-9
    )


def test_isotonic_rises_and_is_refused_with_few():
    probs, labels = overconfident(3_000, times=2.5)

    parameters = json.loads(json.dumps(fit_isotonic(probs, labels)))

    x, y = np.array(parameters["x"]), np.array(parameters["y"])
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()
    assert 0 < y[0] < y[-1] < 1
    assert log_losses(correct(parameters, probs), labels).mean() < log_losses(probs, labels).mean()
    with pytest.raises(ValueError, match="wants 500 comparisons, there are 499"):
        fit_isotonic(probs[:499], labels[:499])


def test_no_comparison_helps_to_correct_itself_or_its_prompt():
    """Whatever the labels of one prompt are, its own corrected probabilities stay as they were."""
    probs, labels = overconfident(400, times=2.0)
    prompt = np.repeat(np.arange(100), 4)
    before = cross_fitted(fit_temperature, probs, labels, prompt)

    for own in (0, 57):
        changed = np.where(prompt == own, 1 - labels, labels)
        after = cross_fitted(fit_temperature, probs, changed, prompt)
        assert (after[prompt == own] == before[prompt == own]).all()
        assert (after != before).any()
    with pytest.raises(ValueError, match="4 prompts make no 5 folds"):
        cross_fitted(fit_temperature, probs, labels, np.arange(400) % 4)


def test_a_calibration_error_worked_by_hand():
    # Two bins: 0.6 said, 1 of 2 right (gap 0.1); 0.9 said, 1 of 2 right (gap 0.4).
    sure = np.array([0.6, 0.6, 0.9, 0.9])
    right = np.array([1.0, 0.0, 1.0, 0.0])
    bins = equal_mass_bins(sure, n_bins=2)
    assert bins.tolist() == [0, 0, 1, 1]
    assert expected_calibration_error(bin_sums(bins, right, sure).sum(axis=0)) == pytest.approx(
        0.25
    )


def test_bins_are_of_equal_mass_and_never_part_equal_values():
    rng = np.random.default_rng(0)
    assert np.bincount(equal_mass_bins(rng.random(1_000))).tolist() == [100] * 10
    values = np.repeat([0.5, 0.7, 0.9], [5, 80, 15])
    bins = equal_mass_bins(values)
    assert [len(set(bins[values == value])) for value in (0.5, 0.7, 0.9)] == [1, 1, 1]
    assert equal_mass_bins(np.array([])).tolist() == []


def test_the_scores_are_those_of_the_usual_libraries():
    probs, labels = overconfident(500, times=2.0)
    assert brier_scores(probs, labels).mean() == pytest.approx(brier_score_loss(labels, probs))
    assert log_losses(probs, labels).mean() == pytest.approx(
        log_loss(labels, np.clip(probs, 1e-6, 1 - 1e-6)), rel=1e-9
    )
    assert brier_scores(np.array([0.5]), np.array([1.0]))[0] == 0.25
    assert log_losses(np.array([0.5]), np.array([0.0]))[0] == pytest.approx(math.log(2))


def test_certainty_that_is_wrong_costs_much_but_not_everything():
    assert log_losses(np.array([1.0]), np.array([0.0]))[0] == pytest.approx(-math.log(1e-6))


def test_corrected_agrees_with_torch():
    probs = np.array([0.03, 0.4, 0.5, 0.99])
    by_torch = sigmoid(tensor(calibration.logits(probs)) / 1.7)
    assert correct({"temperature": 1.7}, probs) == pytest.approx(by_torch.numpy())
