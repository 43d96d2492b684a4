"""Figures on models: held against other ways to compute them, and worked by hand."""

import numpy as np
import pytest

from labeling.calibration import fit_temperature
from training.ml.evaluation import log_loss
from training.model_figures import (
    columns,
    most_disputed,
    most_wrong,
    policy_figures,
    reward_figures,
    rightness,
)
from training.study_figures import curve, labels, over_seeds


def scored(n: int = 400, *, seed: int = 1, lean: float = 0.0, **changes):
    """Made-up pairs, two a prompt: margins by a quality and, with `lean`, by length."""
    rng = np.random.default_rng(seed)
    longer = rng.integers(-200, 200, n)
    margin = rng.normal(0.8, 1.5, n) + lean * longer / 100
    rows = [
        {
            "prompt": f"p{i // 2}",
            "comparison": f"c{i}",
            "chosen": margin[i],
            "rejected": 0.0,
            "chosen_chars": 300 + longer[i],
            "rejected_chars": 300,
            "a_chosen": i % 4 != 0,
            "votes": {"a": 3} if i % 2 else {"a": 2, "b": 1},
            "strength": i % 4,
            "by_people": True,
        }
        | {name: value[i] for name, value in changes.items()}
        for i in range(n)
    ]
    return columns(rows, {"medicine": {f"c{i}" for i in range(0, n, 10)}})


def test_log_loss_and_brier_of_the_margins_are_those_of_their_sigmoid():
    pairs = scored()
    prob = 1 / (1 + np.exp(-pairs.margin))

    found = reward_figures(pairs, 0.6)["probability"]

    assert found["log_loss"]["value"] == pytest.approx(log_loss(pairs.margin))
    assert found["brier"]["value"] == pytest.approx(np.mean((1 - prob) ** 2))
    sure = np.maximum(prob, 1 - prob)
    ends = np.quantile(sure, np.arange(11) / 10, method="higher")
    ece = 0.0
    for low, high in zip(ends, [*ends[1:-1], np.inf], strict=False):
        own = (sure >= low) & (sure < high)
        ece += own.mean() * abs((pairs.margin > 0)[own].mean() - sure[own].mean())
    assert found["ece"]["value"] == pytest.approx(ece)


def test_a_temperature_undoes_margins_that_are_too_large():
    rng = np.random.default_rng(5)
    truth = rng.normal(0, 1.5, 4_000)
    side = np.where(rng.random(4_000) < 1 / (1 + np.exp(-truth)), 1, -1)  # who was preferred
    pairs = scored(4_000, chosen=3 * side * truth)

    found = reward_figures(pairs, None)

    assert found["temperature"]["temperature"] == pytest.approx(3, rel=0.1)
    assert found["temperature"]["log_loss"]["value"] < found["probability"]["log_loss"]["value"]
    assert found["baselines"]["side"]["value"] is None
    whole = fit_temperature(1 / (1 + np.exp(-pairs.margin)), np.ones(4_000))
    assert whole["temperature"] == pytest.approx(found["temperature"]["temperature"])


def test_the_partial_correlation_with_length_is_that_of_residuals_on_the_label():
    pairs = scored(lean=0.5)
    d, x = pairs.margin, pairs.longer.astype(float)
    # Each pair both ways round, with the label as a column of its own.
    both_d, both_x = np.concatenate([d, -d]), np.concatenate([x, -x])
    label = np.repeat([1.0, -1.0], len(d))

    def residual(values):
        return values - label * (values @ label) / (label @ label)

    found = reward_figures(pairs, 0.5)["length"]

    assert found["score"]["value"] == pytest.approx(np.corrcoef(both_d, both_x)[0, 1])
    expected = np.corrcoef(residual(both_d), residual(both_x))[0, 1]
    assert found["given_label"]["value"] == pytest.approx(expected)
    assert found["label"]["value"] == pytest.approx(np.corrcoef(label, both_x)[0, 1])
    assert found["score"]["low"] < found["score"]["value"] < found["score"]["high"]


def test_slices_part_the_pairs_and_the_sides_baseline_follows_training():
    pairs = scored()

    found = reward_figures(pairs, 0.9)

    cuts = {cut["by"]: cut["rows"] for cut in found["slices"]}
    assert list(cuts) == ["strength", "agreement", "length", "topic"]  # people alone: no cut
    for by in ("strength", "agreement", "length"):
        assert sum(row["accuracy"]["n"] for row in cuts[by]) == 400
    assert [row["name"] for row in cuts["agreement"]] == ["all", "most"]
    assert cuts["topic"][0]["accuracy"]["n"] == 40
    assert found["baselines"]["side"]["value"] == pytest.approx(0.75)


def test_equal_scores_are_half_right_and_wrong_pairs_come_worst_first():
    assert rightness(np.array([2.0, 0.0, -1.0])).tolist() == [1, 0.5, 0]
    assert most_wrong(np.array([0.5, -1.0, -3.0, 0.0])) == [
        (2, pytest.approx(1 / (1 + np.e**3))),
        (1, pytest.approx(1 / (1 + np.e))),
    ]


def test_a_policy_that_lowers_both_responses_shows_displacement():
    rng = np.random.default_rng(2)
    moved = np.column_stack([rng.normal(-5, 1, 200), rng.normal(-9, 1, 200)])
    rewards = 0.1 * moved
    pairs = scored(200, chosen=rewards[:, 0], rejected=rewards[:, 1], moved=moved.tolist())

    found = policy_figures(pairs)

    assert found["accuracy"]["value"] > 0.99
    assert found["margin"]["value"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean())
    assert found["chosen_change"]["value"] == pytest.approx(moved[:, 0].mean())
    assert found["rejected_change"]["value"] == pytest.approx(moved[:, 1].mean())
    assert found["chosen_change"]["high"] < 0
    assert found["chosen_fell"]["value"] == 1


def cells(*margins):
    return [{"n": 100, "margins": list(values)} for values in margins]


def test_a_study_compares_pair_by_pair_and_leaves_out_what_no_training_could_read():
    rng = np.random.default_rng(4)
    half, whole = rng.normal(0.1, 1, (2, 300)), rng.normal(1.2, 1, (2, 300))
    half[:, 0] = np.nan
    prompts = [f"p{i}" for i in range(300)]
    given = {"0.5": cells(*half), "1.0": cells(*whole)}

    found = curve(given, prompts)

    assert found["n"] == 299
    right = (whole[:, 1:] > 0).mean() - (half[:, 1:] > 0).mean()
    assert found["gain"]["value"] == pytest.approx(right)
    assert found["answer"] == "helps"
    ways = labels({"majority": given["0.5"], "soft": given["1.0"]}, prompts)["rows"]
    assert "against" not in ways[0]
    assert ways[1]["against"]["value"] == pytest.approx(right)
    assert ways[1]["over_seeds"]["n"] == 2


def test_the_interval_over_seeds_is_students():
    # mean 2, s = 1, t(0.975, 2) = 4.302653: half width 4.302653 / √3.
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["low"] == pytest.approx(2 - 4.302653 / 3**0.5)
    assert over_seeds([1.0])["low"] is None


def test_a_spread_that_tells_of_errors_is_seen_to_tell_and_one_that_does_not_is_not():
    rng = np.random.default_rng(7)
    spread = rng.uniform(0.2, 4, 2_000)
    telling = scored(2_000, chosen=rng.normal(1, spread), spread=spread)
    idle = scored(2_000, chosen=rng.normal(1, 2, 2_000), spread=spread)

    found, other = (reward_figures(pairs, None)["spread"] for pairs in (telling, idle))

    assert found["gain"]["low"] > 0.1
    assert other["gain"]["low"] < 0 < other["gain"]["high"]
    assert found["gain_of_doubt"]["low"] > 0
    right = [quarter["accuracy"]["value"] for quarter in found["quarters"]]
    assert right == sorted(right, reverse=True)
    assert [q["accuracy"]["n"] for q in found["quarters"]] == [500] * 4
    assert found["quarters"][3]["said"]["value"] > right[3]  # too sure where they disagree
    assert "spread" not in reward_figures(scored(40), None)  # a single model


def test_a_margin_with_a_spread_is_worth_what_mackay_says():
    pairs = scored(2, chosen=[2.0, -1.0], spread=[0.0, 3.0])

    found = reward_figures(pairs, None)["spread"]

    shrunk = -1.0 / np.sqrt(1 + np.pi * 9 / 8)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-shrunk))) / 2
    assert found["doubting"]["value"] == pytest.approx(expected)
    assert found["mean"]["value"] == 1.5
    assert [place for place, _prob in most_disputed(pairs.margin, pairs.spread)] == [1, 0]


def test_no_temperature_is_advised_from_pairs_that_are_nearly_all_right():
    sure = scored(60, chosen=np.full(60, 2.0))

    found = reward_figures(sure, None)

    assert found["accuracy"]["value"] == 1
    assert found["temperature"]["why"].startswith("It gets too few pairs wrong")
