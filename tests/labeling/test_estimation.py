"""Win rates from few people and many verdicts: worked values, properties, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from labeling.estimation import (
    active_inference,
    labels_to_decide,
    ppi_mean,
    prediction_powered,
    rogan_gladen,
    win_rate,
)
from labeling.shares import clopper_pearson

# Checked with ppi_py.ppi_mean_ci.
Y = np.array([1, 0, 1, 1, 0, 1, 0, 0.0])
F = np.array([0.6, 0.4, 0.9, 0.3, 0.5, 0.7, 0.2, 0.6])
OTHERS = np.array([0.7, 0.5, 0.2, 0.9, 0.6, 0.8, 0.4, 0.3, 0.6, 0.5])


def judged(n, seed=0, noise=0.2, rate=0.6):
    """(answers, verdicts) of n comparisons; verdicts are soft and too high."""
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.normal(rate, 0.25, n), 0.02, 0.98)
    answers = (rng.random(n) < chance).astype(float)
    verdicts = np.clip(chance + 0.1 + rng.normal(0, noise, n), 0, 1)
    return answers, verdicts


@pytest.mark.parametrize(
    ("weight", "value", "low", "high"),
    [(None, 0.515082, 0.191393, 0.838770), (0.0, 0.5, 0.153524, 0.846476)],
)
def test_prediction_powered_mean_of_the_worked_example(weight, value, low, high):
    found, error, lam = ppi_mean(Y, F, OTHERS, weight)

    assert found == pytest.approx(value, abs=1e-6)
    assert found - 1.959964 * error == pytest.approx(low, abs=1e-5)
    assert found + 1.959964 * error == pytest.approx(high, abs=1e-5)
    assert lam == pytest.approx(0.603265 if weight is None else 0, abs=1e-6)
    assert ppi_mean(Y, F, OTHERS, 1.0)[0] == pytest.approx(0.525)


def test_one_answer_a_prompt_gives_the_libraries_intervals():
    answers = np.array([1.0] * 42 + [0.0] * 18)

    large = win_rate(answers, np.arange(60))
    small = win_rate(answers[30:], np.arange(30))
    few = win_rate(answers[35:55], np.arange(20))

    # 59 trials have the variance that 60 prompts show, with n − 1 in its denominator.
    assert (large["low"], large["high"]) == pytest.approx(
        proportion_confint(42 * 59 / 60, 59, method="wilson"), abs=1e-9
    )
    assert (large["n"], large["method"]) == (60, "wilson")
    assert small["method"] == "wilson"
    assert (few["low"], few["high"]) == clopper_pearson(7, 20)


def test_ties_are_halves_and_few_counts_are_rounded_outwards():
    found = win_rate(np.array([1, 1, 0.5, 0]), np.arange(4))

    assert found["value"] == 0.625
    assert found["low"] == clopper_pearson(2, 4)[0]
    assert found["high"] == clopper_pearson(3, 4)[1]


def test_comparisons_of_one_prompt_count_as_one():
    rng = np.random.default_rng(1)
    answers = (rng.random(60) < 0.6).astype(float)

    alone = win_rate(answers, np.arange(60))
    ten_times = win_rate(np.repeat(answers, 10), np.repeat(np.arange(60), 10))

    assert ten_times["value"] == pytest.approx(alone["value"])
    assert (ten_times["low"], ten_times["high"]) == pytest.approx((alone["low"], alone["high"]))
    assert (ten_times["n"], ten_times["n_prompts"]) == (600, 60)


@given(st.integers(0, 1_000))
@settings(max_examples=20, deadline=None)
def test_b_over_a_is_one_minus_a_over_b(seed):
    answers, verdicts = judged(400, seed)
    y, f, others = answers[:100], verdicts[:100], verdicts[100:]
    prompts = np.arange(100), np.arange(100, 400)
    probability = np.where(np.arange(400) < 100, 0.25, np.nan)
    labelled = np.where(np.arange(400) < 100, answers, np.nan)

    for one, other in (
        (win_rate(y, prompts[0]), win_rate(1 - y, prompts[0])),
        (
            prediction_powered(y, f, prompts[0], others, prompts[1]),
            prediction_powered(1 - y, 1 - f, prompts[0], 1 - others, prompts[1]),
        ),
        (
            rogan_gladen(y, (f > 0.5) * 1.0, others),
            rogan_gladen(1 - y, (f <= 0.5) * 1.0, 1 - others),
        ),
    ):
        if one["value"] is None:
            assert other["why"] == one["why"]
            continue
        assert other["value"] == pytest.approx(1 - one["value"], abs=1e-9)
        assert other["low"] == pytest.approx(1 - one["high"], abs=1e-9)
    found = active_inference(labelled, verdicts, probability, np.arange(400))
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_a_good_judge_makes_labels_worth_more_and_a_coin_adds_nothing():
    answers, verdicts = judged(5_000, noise=0.05)
    coin = np.random.default_rng(5).random(5_000)
    prompt = np.arange(5_000)

    for predicted, at_least, at_most in ((answers * 0.8 + 0.1, 5, 1e9), (coin, 0.95, 1.1)):
        found = prediction_powered(
            answers[:300], predicted[:300], prompt[:300], predicted[300:], prompt[300:]
        )
        assert at_least < found["factor"] < at_most
    useful = prediction_powered(
        answers[:300], verdicts[:300], prompt[:300], verdicts[300:], prompt[300:]
    )
    alone = win_rate(answers[:300], prompt[:300])
    assert useful["high"] - useful["low"] < alone["high"] - alone["low"]
    assert useful["low"] < answers.mean() < useful["high"]
    assert abs(verdicts.mean() - answers.mean()) > 0.05  # the judge alone is wrong


def test_equal_probabilities_are_the_random_sample_of_ppi():
    answers, verdicts = judged(4_000)
    rng = np.random.default_rng(8)
    drawn = rng.random(4_000) < 0.1
    prompt = np.arange(4_000)

    active = active_inference(
        np.where(drawn, answers, np.nan), verdicts, np.full(4_000, 0.1), prompt
    )
    ppi = prediction_powered(
        answers[drawn], verdicts[drawn], prompt[drawn], verdicts[~drawn], prompt[~drawn]
    )

    assert active["value"] == pytest.approx(ppi["value"], abs=0.02)
    assert active["error"] == pytest.approx(ppi["error"], rel=0.15)
    assert active["n"] == ppi["n"] == drawn.sum()


def test_what_the_design_does_not_allow_is_refused_with_the_reason():
    answers, verdicts = judged(200)
    prompt = np.arange(200)
    labelled = np.where(prompt < 60, answers, np.nan)

    unknown = active_inference(labelled, verdicts, np.full(200, np.nan), prompt)
    rare = active_inference(labelled, verdicts, np.full(200, 0.001), prompt)
    few = prediction_powered(answers[:20], verdicts[:20], prompt[:20], verdicts[20:], prompt[20:])
    one_prompt = prediction_powered(
        answers[:60], verdicts[:60], np.zeros(60, dtype=int), verdicts[60:], prompt[60:]
    )
    everything = prediction_powered(answers, verdicts, prompt, verdicts[:0], prompt[:0])
    nothing = win_rate(answers[:0], prompt[:0])

    assert "no probability is recorded" in unknown["why"]
    assert "below 1 %" in rare["why"]
    assert few["why"] == one_prompt["why"]
    assert "Fewer than 30 prompts" in few["why"]
    assert "every comparison" in everything["why"]
    assert nothing["n"] == 0
    for figure in (unknown, rare, few, one_prompt, everything, nothing):
        assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)


def test_known_errors_of_a_judge_are_taken_out():
    people = np.repeat([1.0, 0.0], [100, 100])
    judge = np.concatenate([np.repeat([1.0, 0.0], [90, 10]), np.repeat([1.0, 0.0], [30, 70])])
    others = np.repeat([1.0, 0.0], [660, 340])  # 0.9 θ + 0.3 (1 − θ) = 0.65 at θ = 0.583

    found = rogan_gladen(people, judge, others)
    coin = rogan_gladen(people, np.tile([1.0, 0.0], 100), others)

    p = (660 + 120) / 1200
    assert found["value"] == pytest.approx((p + 0.7 - 1) / 0.6)
    assert found["low"] < 0.583 < found["high"]
    assert "coin" in coin["why"]


def test_more_labels_are_asked_for_the_nearer_the_two_are():
    def figure(value, error=0.03, n=300):
        ends = {"low": value - 1.96 * error, "high": value + 1.96 * error}
        return {"value": value, "error": error, "n": n, **ends}

    decided = labels_to_decide(figure(0.6))
    near, nearer = labels_to_decide(figure(0.54)), labels_to_decide(figure(0.52))
    equal = labels_to_decide(figure(0.5))

    assert decided["value"] == 0
    # (1.960 + 0.842)² · 0.03² / 0.04² · 300 − 300
    assert near["value"] == pytest.approx(1025, abs=1)
    assert near["low"] < near["value"] < nearer["value"]
    assert equal["value"] is None
    assert "no number of labels" in equal["why"]
    assert labels_to_decide(win_rate(np.array([]), np.array([])))["value"] is None
