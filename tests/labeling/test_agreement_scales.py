"""Ordered answers, orders of responses, and other ideas of chance: worked values, libraries."""

import csv
import gzip
import json
import math

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau

from labeling.agreement import _units, krippendorff_alpha, percent_agreement
from labeling.agreement_scales import (
    Rankings,
    _ordinal_alphas,
    _ordinal_parts,
    brennan_prediger,
    graded_alpha,
    gwet_ac1,
    kendall_taus,
    kendall_w,
    ordinal_alpha,
    ranking_figures,
    side_free_kappa,
)
from tests.labeling.test_agreement import RELIABILITY, counts_of, small_counts, votes

VIGNETTE = np.array([[13, 0, 0], [0, 20, 7], [0, 4, 56]])  # of irrCAC


def counts_of_table(table: np.ndarray) -> np.ndarray:
    """(items, categories) from a table of two raters."""
    first, second = np.repeat(np.indices(table.shape).reshape(2, -1), table.ravel(), axis=1)
    counts = np.zeros((len(first), len(table)), dtype=int)
    np.add.at(counts, (np.arange(len(first)), first), 1)
    np.add.at(counts, (np.arange(len(first)), second), 1)
    return counts


def test_ordinal_alpha_of_krippendorffs_own_matrix():
    alpha = ordinal_alpha(counts_of(RELIABILITY))

    assert alpha["value"] == pytest.approx(0.815388, abs=1e-6)
    assert (alpha["n"], alpha["n_votes"]) == (11, 40)
    assert alpha["low"] < alpha["value"] < alpha["high"]


@given(small_counts)
@settings(max_examples=60, deadline=None)
def test_resampled_ordinal_alpha_is_evalicas(counts):
    for weights in ([1] * len(counts), range(1, len(counts) + 1)):
        resample = np.repeat(counts, list(weights), axis=0)
        ours = _ordinal_alphas((np.array(weights) @ _ordinal_parts(counts))[None])[0]
        if np.count_nonzero(resample.sum(axis=0)) == 1:
            assert math.isnan(ours)
        else:
            theirs = evalica.alpha(pd.DataFrame(_units(resample)), distance="ordinal").alpha
            assert ours == pytest.approx(theirs, abs=1e-9)


def test_a_step_beside_is_forgiven_and_a_leap_is_not():
    near = [(i, "ann", "a") for i in range(10)] + [(i, "bob", "tie") for i in range(5)]
    near += [(i, "bob", "a") for i in range(5, 10)]
    near += [(i, rater, "b") for i in range(10, 20) for rater in ("ann", "bob")]
    near += [(i, rater, "tie") for i in range(20, 25) for rater in ("ann", "bob")]
    far = [(i, r, "b" if (r, i < 5) == ("bob", True) else choice) for i, r, choice in near]

    assert graded_alpha(votes(*near))["value"] > graded_alpha(votes(*far))["value"]
    assert graded_alpha(votes(*near))["levels"] == ["a", "tie", "b"]


def with_strength(table, strengths):
    from dataclasses import replace

    return replace(table, strength=np.array(strengths))


def test_strengths_make_seven_steps_and_answers_without_a_place_are_counted():
    rows = [(i, rater, "a" if i % 2 else "b") for i in range(12) for rater in ("ann", "bob")]
    rows += [(12, "ann", "tie"), (12, "bob", "both_bad"), (13, "ann", "a"), (13, "bob", "a")]
    strengths = [1 + i // 2 % 3 for i in range(24)] + [0, 0, 2, 0]

    alpha = graded_alpha(with_strength(votes(*rows), strengths))

    assert len(alpha["levels"]) == 7
    assert alpha["n_left_out"] == 2  # both bad; the side without a strength
    assert alpha["n"] == 12
    assert alpha["value"] == 1


def test_nobody_beside_another_is_refused_with_the_reason():
    alone = votes((1, "ann", "a"), (2, "ann", "b"))

    for figure in (
        graded_alpha(alone),
        gwet_ac1(np.array([[1, 0]])),
        brennan_prediger(np.array([[1, 0]])),
        side_free_kappa(alone.item, alone.rater, alone.choice),
        ranking_figures(Rankings([1], [1], [[[1], [2]]]))["kendall_w"],
    ):
        assert figure["value"] is None
        assert "two people" in figure["why"]


def test_one_answer_everywhere_is_refused():
    same = np.array([[2, 0]] * 12)

    assert gwet_ac1(same)["value"] is brennan_prediger(same)["value"] is None
    assert ordinal_alpha(same)["value"] is None


def test_coefficients_of_the_vignettes_table():
    counts = counts_of_table(VIGNETTE)

    assert gwet_ac1(counts)["value"] == pytest.approx(0.849331, abs=1e-6)
    assert brennan_prediger(counts)["value"] == pytest.approx(0.835, abs=1e-6)
    assert brennan_prediger(counts)["expected_agreement"] == pytest.approx(1 / 3)


def test_where_nearly_all_answers_are_the_same_ac1_stays_high_and_alpha_falls():
    counts = np.array([[2, 0]] * 95 + [[1, 1]] * 5)

    assert percent_agreement(counts)["value"] == 0.95
    assert krippendorff_alpha(counts)["value"] < 0
    assert gwet_ac1(counts)["value"] > 0.94


def test_votes_of_one_rater_on_one_item_are_no_pair():
    item, rater = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 1])
    choice = np.array([0, 0, 1, 2, 2])  # the repeated a's of rater 0 meet b twice

    kappa = side_free_kappa(item, rater, choice)

    assert (kappa["agreement"], kappa["n_pairs"], kappa["n"]) == (1 / 3, 3, 2)
    assert kappa["expected_agreement"] == pytest.approx(0.4**2 + 2 * 0.3**2)


def test_names_exchanged_in_some_comparisons_leave_the_side_free_kappa_alone():
    rng = np.random.default_rng(1)
    item, rater = np.repeat(np.arange(60), 3), np.tile(np.arange(3), 60)
    choice = rng.choice(3, size=180, p=[0.7, 0.1, 0.2])
    turned = (item % 3 == 0) & (choice < 2)

    before = side_free_kappa(item, rater, choice)
    after = side_free_kappa(item, rater, np.where(turned, 1 - choice, choice))

    assert after["value"] == pytest.approx(before["value"], abs=1e-12)


orders = st.lists(st.lists(st.integers(1, 4), min_size=5, max_size=5), min_size=3, max_size=5)


@given(orders)
@settings(max_examples=60, deadline=None)
def test_w_is_friedmans_statistic_over_its_most_and_tau_is_scipys(rows):
    from scipy.stats import rankdata

    ranks = np.array([rankdata(row) for row in rows])
    w, taus = kendall_w(ranks), kendall_taus(ranks)

    told = [len(set(row)) > 1 for row in rows]
    if any(told):
        chi = friedmanchisquare(*np.array(rows).T).statistic
        assert w == pytest.approx(chi / (len(rows) * 4), abs=1e-9)
    else:
        assert w is None
    one, other = np.triu_indices(len(rows), k=1)
    theirs = [
        kendalltau(rows[i], rows[j]).statistic if told[i] and told[j] else math.nan
        for i, j in zip(one, other, strict=True)
    ]
    assert taus == pytest.approx(np.array(theirs), abs=1e-9, nan_ok=True)


def test_w_and_tau_of_three_orders_by_hand():
    # Ranks 1 2 3, 1 2 3, 2 1 3: sums 4 5 9, mean 6, S = 14; W = 12·14 / (9·24) = 7/9.
    # Pairs of raters: 1, 1/3, 1/3; of 9 pairs of responses 7 stand the same way round.
    same, other = [[7], [8], [9]], [[8], [7], [9]]

    figures = ranking_figures(Rankings([1, 1, 1, 2], [5, 5, 5, 6], [same, same, other, same]))

    assert figures["kendall_w"]["value"] == pytest.approx(7 / 9)
    assert figures["kendall_w"]["by_chance"] == pytest.approx(1 / 3)
    assert figures["kendall_tau"]["value"] == pytest.approx(5 / 9)
    assert figures["same_order"]["value"] == pytest.approx(7 / 9)
    assert (figures["kendall_w"]["n"], figures["kendall_w"]["n_rankings"]) == (1, 3)


def test_sets_ranked_with_other_responses_are_counted_and_left_out():
    rankings = Rankings([1, 1, 2, 2], [1, 1, 2, 2], [[[1], [2]], [[1], [3]], [[4, 5]], [[4, 5]]])

    figures = ranking_figures(rankings)

    assert figures["kendall_w"]["value"] is None
    assert figures["kendall_w"]["n_left_out"] == 2


def test_random_orders_reach_what_is_called_chance():
    rng = np.random.default_rng(4)
    several = [[[int(r)] for r in rng.permutation(5)] for _ in range(1200)]
    sets = [i // 3 for i in range(1200)]

    figures = ranking_figures(Rankings(sets, sets, several))

    w = figures["kendall_w"]
    assert w["low"] < w["by_chance"] < w["high"]
    assert figures["kendall_tau"]["low"] < 0 < figures["kendall_tau"]["high"]
    assert figures["same_order"]["low"] < 0.5 < figures["same_order"]["high"]


# Real votes ---------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_ordinal_alpha_on_convincing_arguments(shared_data):
    counted: dict[tuple[str, str], list[int]] = {}
    with gzip.open(shared_data / "ukpconvarg1" / "votes.derived.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            item = counted.setdefault((row["topic_side"], row["pair_id"]), [0, 0, 0])
            item[["a1", "equal", "a2"].index(row["value"])] += 1

    alpha = ordinal_alpha(np.array(list(counted.values())))

    assert alpha["value"] == pytest.approx(0.337334, abs=1e-4)
    assert alpha["low"] < alpha["value"] < alpha["high"]


@pytest.mark.realdata
@pytest.mark.parametrize("pair", ["deu-eng", "ron-eng", "fin-eng"])
def test_agreement_of_translation_judges_whichever_system_was_named_first(shared_data, pair):
    table = pd.read_csv(shared_data / "wmt16" / f"wmt16.collapsed.{pair}.csv.gz")
    turned = (table["system1Id"] > table["system2Id"]).to_numpy()
    systems = np.where(turned, table["system2Id"], table["system1Id"]) + "|"
    systems = systems + np.where(turned, table["system1Id"], table["system2Id"])
    item = pd.factorize(table["segmentId"].astype(str) + "|" + systems)[0]
    better = np.sign(table["system2rank"] - table["system1rank"]).to_numpy()
    better = np.where(turned, -better, better)
    choice = np.select([better > 0, better < 0], [0, 1], 2)
    rater = pd.factorize(table["judgeID"])[0]

    kappa = side_free_kappa(item, rater, choice)
    counts = np.zeros((item.max() + 1, 3), dtype=int)
    np.add.at(counts, (item, choice), 1)

    figures = json.loads((shared_data / "reference_figures.json").read_text())["datasets"]
    expected = figures[f"wmt16/{pair}"]["order_independent_different_judges_only"]
    assert kappa["n_pairs"] == expected["comparable"]
    assert kappa["agreement"] == pytest.approx(expected["pA"], abs=1e-4)
    assert kappa["expected_agreement"] == pytest.approx(expected["pE"], abs=1e-4)
    assert kappa["value"] == pytest.approx(expected["kappa"], abs=1e-4)
    assert krippendorff_alpha(counts)["value"] == pytest.approx(
        figures[f"wmt16/{pair}"]["krippendorff_alpha_nominal"], abs=1e-4
    )
