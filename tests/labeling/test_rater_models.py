"""Dawid and Skene's model and its kin: by hand, by property, against crowd-kit, on real crowds."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from labeling.rater_models import (
    Answers,
    Fit,
    Parameters,
    by_crowd_kit,
    dawid_skene,
    entropies,
    majority,
    misfit,
    one_coin,
    reliabilities,
    too_alike,
    weighed,
)


def answers_of(items: list[list[tuple[int, int]]], **counts: int) -> Answers:
    """From the votes on each item: (rater, label)."""
    rows = [(item, *vote) for item, votes in enumerate(items) for vote in votes]
    item, rater, label = (np.array(column, dtype=int) for column in zip(*rows, strict=True))
    return Answers.of(item, rater, label, n_items=len(items), **counts)


def crowd(
    seed: int,
    *,
    n_items: int = 400,
    accuracy: tuple[float, ...] = (0.85, 0.85, 0.85, 0.5, 0.5, 0.5, 0.5),
    leaning: tuple[float, ...] = (0, 0, 0, 0, 0, 0, 0),
) -> tuple[np.ndarray, Answers]:
    """The truth of two-sided items, and a vote of each rater on each: right with their accuracy,
    and with the probability of their leaning the side that stands first, unread."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n_items)
    item, rater = np.divmod(np.arange(n_items * len(accuracy)), len(accuracy))
    first = rng.integers(0, 2, len(item))
    right = rng.random(len(item)) < np.array(accuracy)[rater]
    label = np.where(right, truth[item], 1 - truth[item])
    label = np.where(rng.random(len(item)) < np.array(leaning)[rater], first, label)
    return truth, Answers.of(item, rater, label, first)


def accuracy_of(truth: np.ndarray, posteriors: np.ndarray) -> float:
    return float((posteriors.argmax(axis=1) == truth).mean())


def test_one_step_of_dawid_and_skene_is_what_a_pencil_finds():
    # Two items, three raters, no smoothing to speak of. Shares of votes to start from:
    # item 0: (2/3, 1/3), item 1: (1/3, 2/3); prior (1/2, 1/2).
    # Raters 0 and 1 agree with the shares: theta[0][0] = 2/3, theta[1][0] = 1/3; rater 2 answers
    # the other way round. So q_0(0) ~ 2/3 * 2/3 * 2/3 and q_0(1) ~ 1/3 * 1/3 * 1/3.
    answers = answers_of([[(0, 0), (1, 0), (2, 1)], [(0, 1), (1, 1), (2, 0)]])

    fit = dawid_skene(answers, alpha=1e-12, pooled=0, max_steps=1)

    assert fit.posteriors == pytest.approx(np.array([[8 / 9, 1 / 9], [1 / 9, 8 / 9]]))
    assert fit.parameters.confusion[0] == pytest.approx(np.array([[2, 1], [1, 2]]) / 3)


def test_good_raters_count_for_more_than_those_who_guess():
    truth, answers = crowd(1)

    found = accuracy_of(truth, dawid_skene(answers).posteriors)

    assert found > (majority(answers) == truth).mean() + 0.05
    assert found > 0.9  # three raters of 0.85, had one known who they are: 0.94


def test_a_leaning_to_what_stands_first_is_learned_as_an_error():
    accuracy = (0.85, 0.85, 0.85, 1, 1, 1, 1)
    truth, answers = crowd(2, accuracy=accuracy, leaning=(0, 0, 0, 0.8, 0.8, 0.8, 0.8))
    unknown = np.full(len(answers), -1)
    blind = Answers.of(answers.item, answers.rater, answers.label, unknown)

    fit = dawid_skene(answers)

    assert accuracy_of(truth, fit.posteriors) > accuracy_of(truth, dawid_skene(blind).posteriors)
    table = fit.parameters.confusion[5]
    assert table[1, 0] == pytest.approx(0.8, abs=0.06)  # says first where the second is true
    assert table[0, 1] < 0.05


def test_exchanged_names_give_exchanged_posteriors():
    _truth, answers = crowd(3, leaning=(0, 0, 0, 0.5, 0.5, 0, 0))
    turned = Answers.of(answers.item, answers.rater, 1 - answers.label, 1 - answers.shown_first)

    there, back = dawid_skene(answers), dawid_skene(turned)

    assert there.posteriors == pytest.approx(back.posteriors[:, ::-1])
    assert there.parameters.confusion == pytest.approx(back.parameters.confusion)


def test_a_rater_of_few_votes_is_taken_for_one_of_the_crowd():
    good = [[(rater, i % 2) for rater in range(4)] for i in range(60)]
    good[0].append((4, 1))  # against everybody, once

    alone, pooled = (dawid_skene(answers_of(good), pooled=n).parameters for n in (0, 5))

    assert alone.confusion[4, 0, 0] < 0.02  # always wrong, as far as this one vote goes
    assert pooled.confusion[4, 0, 0] == pytest.approx(5 / 6, abs=0.02)


def test_an_item_without_votes_has_the_prior_and_an_empty_crowd_none():
    fit = dawid_skene(answers_of([[(0, 0)], [(0, 0)], []], n_classes=2), alpha=1e-9)

    assert fit.posteriors[2] == pytest.approx([1, 0], abs=1e-6)
    nobody = dawid_skene(Answers.of([], [], [], n_items=2, n_raters=1, n_classes=4))
    assert nobody.posteriors.tolist() == [[0.25] * 4] * 2
    assert np.isnan(nobody.parameters.confusion).all()


def test_a_repeated_vote_counts_twice_and_a_silent_rater_has_no_table():
    once = answers_of([[(0, 0), (1, 1)], [(0, 1), (1, 1)]], n_raters=3)
    twice = answers_of([[(0, 0), (0, 0), (1, 1)], [(0, 1), (1, 1)]], n_raters=3)

    one, two = dawid_skene(once, max_steps=1), dawid_skene(twice, max_steps=1)

    assert two.posteriors[0, 0] > one.posteriors[0, 0]
    assert np.isnan(two.parameters.confusion[2]).all()


def test_a_warm_start_ends_where_a_cold_one_does_in_fewer_steps():
    _truth, answers = crowd(5, accuracy=(0.8, 0.7, 0.7, 0.6, 0.6, 0.6, 0.55))
    cold = dawid_skene(answers, tolerance=1e-9, max_steps=1000)
    newcomer = cold.parameters.confusion.copy()
    newcomer[6] = np.nan  # votes, but nothing was known of them

    warm = dawid_skene(answers, tolerance=1e-9, max_steps=1000, start=cold.parameters)
    again = dawid_skene(
        answers, tolerance=1e-9, max_steps=1000, start=Parameters(cold.parameters.prior, newcomer)
    )

    assert warm.n_steps < cold.n_steps / 4
    assert warm.posteriors == pytest.approx(cold.posteriors, abs=1e-4)
    assert again.posteriors == pytest.approx(cold.posteriors, abs=1e-3)


def test_entropy_is_one_bit_for_an_even_chance_and_nothing_for_a_sure_label():
    rows = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4])

    assert entropies(rows).tolist() == [1, 0, 2]


def test_a_shared_first_place_has_no_majority():
    answers = answers_of([[(0, 0), (1, 1)], [(0, 1), (1, 1)], []], n_classes=3)

    assert majority(answers).tolist() == [-1, 1, -1]


def test_reliability_and_side_are_found_again():
    accuracy, leaning = (0.9, 0.8, 0.7, 0.85, 1), (0, 0, 0, 0.3, 0.4)
    _truth, answers = crowd(6, n_items=2000, accuracy=accuracy, leaning=leaning)

    rows = reliabilities(answers, dawid_skene(answers))

    for row, right, lean in zip(rows, accuracy, leaning, strict=True):
        known = right * (1 - lean) + lean / 2
        assert row["reliability"]["low"] <= known <= row["reliability"]["high"]
        assert row["side"]["low"] <= lean <= row["side"]["high"]
        assert row["reliability"]["high"] - row["reliability"]["low"] < 0.1
        assert row["n"] == row["reliability"]["n"] == 2000


def test_comparisons_of_one_prompt_make_a_wider_interval():
    _truth, answers = crowd(7, n_items=600)
    prompts = np.arange(600) // 6
    alike = Answers.of(  # the six comparisons of a prompt get the votes of its first
        answers.item, answers.rater, answers.label[(answers.item // 6) * 42 + answers.rater]
    )
    fit = dawid_skene(alike)

    (alone, *_), (together, *_) = reliabilities(alike, fit), reliabilities(alike, fit, prompts)

    def width(row):
        return row["reliability"]["high"] - row["reliability"]["low"]

    assert together["reliability"]["value"] == alone["reliability"]["value"]
    assert width(together) > 2 * width(alone)


def test_votes_that_nobody_else_has_judged_say_nothing_about_their_rater():
    items = [[(0, i % 2), (1, i % 2)] for i in range(20)] + [[(0, 0)]] * 5 + [[(2, 1), (2, 1)]] * 20

    rows = reliabilities(answers_of(items), dawid_skene(answers_of(items)))

    assert (rows[0]["n"], rows[0]["n_alone"]) == (25, 5)
    assert rows[0]["reliability"]["n"] == 20
    assert (rows[2]["n"], rows[2]["n_alone"]) == (40, 40)  # repeats are no second opinion
    assert rows[2]["reliability"]["value"] is None
    assert "others judged" in rows[2]["reliability"]["why"]
    assert rows[0]["side"]["value"] is None  # no order of showing is known


# Where the model is wrong -------------------------------------------------------------------------


def hard_for_all(seed: int, hard: float, n_items: int = 1_500) -> tuple[np.ndarray, Answers]:
    """How often each of six raters is right, and five votes an item, some of them on items on which
    everybody guesses and a tenth says that both are equal. No item is a tie in truth."""
    rng = np.random.default_rng(seed)
    truth, is_hard = rng.integers(0, 2, n_items), rng.random(n_items) < hard
    accuracy = np.linspace(0.8, 0.95, 6)
    rater = rng.permuted(np.tile(np.arange(6), (n_items, 1)), axis=1)[:, :5].ravel()
    item = np.repeat(np.arange(n_items), 5)
    right = rng.random(len(item)) < np.where(is_hard[item], 0.5, accuracy[rater])
    label = np.where(right, truth[item], 1 - truth[item])
    tied = is_hard[item] & (rng.random(len(item)) < 0.1)
    label = np.where(tied, 2, label)
    return (1 - hard) * accuracy + hard * 0.45, Answers.of(item, rater, label, n_classes=3)


def test_a_class_that_nobody_calls_by_its_name_is_not_let_be_true():
    known, answers = hard_for_all(1, hard=0.2)
    alone = dawid_skene(answers)
    assert alone.parameters.prior[2] > 0.1  # hard ones end as "ties", which a tenth calls them

    fit, possible = weighed(answers)

    assert possible.tolist() == [True, True, False]
    assert (fit.posteriors[:, 2] == 0).all()
    assert fit.posteriors.sum(axis=1) == pytest.approx(1)
    found = [row["reliability"]["value"] for row in reliabilities(answers, fit)]
    before = [row["reliability"]["value"] for row in reliabilities(answers, alone)]
    assert np.abs(found - known).mean() < 0.04 < 0.06 < np.abs(before - known).mean()


def test_true_ties_stay_ties():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    item, rater = np.divmod(np.arange(1_200), 4)
    label = np.where(rng.random(1_200) < 0.7, truth[item], rng.integers(0, 3, 1_200))
    answers = Answers.of(item, rater, label, n_classes=4)  # nobody ever says "both are bad"

    fit, possible = weighed(answers)

    assert possible.all()
    assert (fit.posteriors == dawid_skene(answers).posteriors).all()
    assert accuracy_of(truth, fit.posteriors) > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_raters_who_err_alone_show_no_misfit_and_those_who_err_together_do(seed):
    _truth, alone = crowd(seed, n_items=1_500)
    _known, together = hard_for_all(seed, hard=0.3)

    fine, off = misfit(alone, dawid_skene(alone)), misfit(together, weighed(together)[0])

    assert fine["value"] < 0.02
    assert fine["p_value"] > 0.01
    assert 0.02 < off["value"] < 0.3  # no more items than are hard
    assert off["p_value"] < 0.01


def test_intervals_grow_by_the_misfit_and_beyond_a_tenth_there_are_none():
    known, answers = hard_for_all(3, hard=0.1)
    fit, _possible = weighed(answers)
    checked = misfit(answers, fit)

    plain, wider = reliabilities(answers, fit), reliabilities(answers, fit, None, checked)
    none = reliabilities(answers, fit, None, checked | {"value": 0.11})

    for before, after, refused, right in zip(plain, wider, none, known, strict=True):
        before, after = before["reliability"], after["reliability"]
        assert before["low"] - after["low"] == pytest.approx(checked["value"])
        assert after["high"] == pytest.approx(min(1, before["high"] + checked["value"]))
        assert after["low"] <= right <= after["high"]
        assert refused["reliability"]["value"] == before["value"]
        assert refused["reliability"]["low"] is None
        assert "err together" in refused["reliability"]["why_no_interval"]


@pytest.mark.parametrize(("copied", "named"), [(0.5, [(0, 1)]), (0.8, [(3, 4), (2, 4), (2, 3)])])
def test_a_rater_who_copies_is_seen_but_not_always_as_the_one_who_does(copied, named):
    """Who copies most of the time is taken for right, and the others then agree too often."""
    _truth, answers = crowd(5, n_items=800, accuracy=(0.75, 0.75, 0.75, 0.85, 0.9))
    votes = answers.label.reshape(800, 5)
    copies = np.random.default_rng(5).random(800) < copied
    votes[:, 1] = np.where(copies, votes[:, 0], votes[:, 1])
    answers = Answers.of(answers.item, answers.rater, votes.ravel(), answers.shown_first)
    fit, _possible = weighed(answers)

    pairs = too_alike(answers, fit)
    rows = reliabilities(answers, fit, None, misfit(answers, fit), alike=True)

    assert [(pair["rater_1"], pair["rater_2"]) for pair in pairs] == named
    one, other = named[0]
    assert pairs[0]["same"] == pytest.approx((votes[:, one] == votes[:, other]).mean())
    assert pairs[0]["same"] > pairs[0]["expected"] + 0.08
    assert pairs[0]["n"] == 800
    assert all(row["reliability"]["low"] is None for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_raters_who_are_good_agree_and_are_not_too_alike(seed):
    _truth, answers = crowd(seed, n_items=1_000, accuracy=(0.95, 0.95, 0.9, 0.6, 0.9))

    assert too_alike(answers, dawid_skene(answers)) == []


def test_three_votes_an_item_cannot_show_a_misfit():
    _truth, answers = crowd(4, accuracy=(0.8, 0.8, 0.8), leaning=(0, 0, 0))

    figure = misfit(answers, dawid_skene(answers))

    assert figure["value"] is None
    assert "four votes" in figure["why"]


def test_a_pattern_is_expected_as_often_as_a_pencil_says():
    # Four raters who are right with 0.8, two classes: 4-0 in 0.8^4 + 0.2^4 = 0.4112 of items,
    # 3-1 in 4 (0.8^3 0.2 + 0.2^3 0.8) = 0.4352, 2-2 in 0.1536. All items are in full agreement.
    table = np.tile(np.array([[0.8, 0.2], [0.2, 0.8]]), (4, 1, 1))
    answers = answers_of([[(rater, i % 2) for rater in range(4)] for i in range(1_000)])
    fit = dawid_skene(answers)
    fit = Fit(fit.posteriors, Parameters(np.array([0.5, 0.5]), table), 1, True, 0.0)

    figure = misfit(answers, fit)

    assert figure["value"] == pytest.approx(1 - 0.4112, abs=0.03)  # less what chance makes of it


# Against crowd-kit --------------------------------------------------------------------------------


def table_of(answers: Answers) -> pd.DataFrame:
    return pd.DataFrame({"task": answers.item, "worker": answers.rater, "label": answers.label})


def test_it_is_the_dawid_and_skene_of_crowd_kit():
    from crowdkit.aggregation import DawidSkene, MajorityVote, OneCoinDawidSkene

    _truth, answers = crowd(4)
    blind = Answers.of(answers.item, answers.rater, answers.label)
    table = table_of(answers)

    ours = dawid_skene(blind, alpha=1e-10, pooled=0, tolerance=1e-9)
    coin = one_coin(blind, alpha=1e-10, tolerance=1e-9)

    theirs = DawidSkene(n_iter=100, tol=1e-9).fit(table).probas_.sort_index()[[0, 1]]
    assert ours.posteriors == pytest.approx(theirs.to_numpy(), abs=1e-3)
    theirs = OneCoinDawidSkene(n_iter=100, tol=1e-9).fit(table).probas_.sort_index()[[0, 1]]
    # crowd-kit stops by a bound that counts the prior once for each vote, so a little earlier.
    assert coin.posteriors == pytest.approx(theirs.to_numpy(), abs=0.02)
    assert (majority(blind) == MajorityVote().fit_predict(table).sort_index().to_numpy()).all()


@pytest.mark.parametrize("method", ["MACE", "GLAD"])
def test_mace_and_glad_find_the_truth_where_good_raters_are_the_most(method):
    truth, answers = crowd(8, n_items=40, accuracy=(0.9, 0.9, 0.9, 0.9, 0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = by_crowd_kit(answers, method)

    assert (labels == truth).mean() >= 0.9


# Real crowds --------------------------------------------------------------------------------------


def real_crowd(shared_data, name: str) -> tuple[np.ndarray, Answers]:
    folder = shared_data / "crowd-labels" / name
    if name == "rte":
        table = pd.read_csv(folder / "rte.standardized.tsv.gz", sep="\t")
        table.columns = ["hit", "worker", "item", "label", "truth"]
        truth = dict(zip(table["item"], table["truth"], strict=True))
    else:
        table = pd.read_csv(folder / "label.csv.gz")
        known = pd.read_csv(folder / "truth.csv.gz")
        truth = dict(zip(known["item"], known["truth"], strict=True))
    item, items = pd.factorize(table["item"], sort=True)
    answers = Answers.of(item, pd.factorize(table["worker"])[0], table["label"])
    return np.array([truth.get(item, -1) for item in items]), answers


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["bluebird", "rte", "dog", "d_product", "s_rel"])
def test_it_finds_the_truth_as_often_as_the_reference_on_real_crowds(shared_data, name):
    """Made with crowd-kit; it moves by about 0.01 with the way to stop (108 items in bluebird)."""
    figures = json.loads((shared_data / "reference_figures.json").read_text())["datasets"]
    expected = figures[f"crowd-labels/{name}"]["aggregation"]
    truth, answers = real_crowd(shared_data, name)
    known = truth >= 0

    found = dawid_skene(answers).posteriors
    most = majority(answers)

    assert accuracy_of(truth[known], found[known]) == pytest.approx(
        expected["dawid_skene_accuracy"], abs=0.02 if name == "bluebird" else 0.01
    )
    split = np.where(most < 0, np.nan, most == truth)[known]
    counted = np.nansum(split) + sum(
        _share_of_the_tied(answers, item, truth[item])
        for item in np.flatnonzero((most < 0) & known)
    )
    assert counted / known.sum() == pytest.approx(
        expected["majority_vote_accuracy_ties_split_evenly"], abs=1e-4
    )


def _share_of_the_tied(answers: Answers, item: int, truth: int) -> float:
    votes = np.bincount(answers.label[answers.item == item])
    leaders = np.flatnonzero(votes == votes.max())
    return float(truth in leaders) / len(leaders)


@pytest.mark.realdata
def test_it_finds_the_truth_of_convincing_arguments(shared_data):
    figures = json.loads((shared_data / "reference_figures.json").read_text())["datasets"]
    table = pd.read_csv(shared_data / "ukpconvarg1" / "votes.derived.csv.gz")
    item, pairs = pd.factorize(table["topic_side"] + "|" + table["pair_id"].astype(str))
    names = ["a1", "a2", "equal"]
    label = table["value"].map(names.index)
    gold = table.drop_duplicates(["topic_side", "pair_id"])["gold"].map(
        lambda value: names.index(value) if value in names else -1
    )
    answers = Answers.of(item, pd.factorize(table["worker"])[0], label)

    found = dawid_skene(answers).posteriors

    known = gold.to_numpy() >= 0
    assert known.sum() == 12_516
    assert len(pairs) == len(gold)
    assert accuracy_of(gold.to_numpy()[known], found[known]) == pytest.approx(
        figures["ukpconvarg1"]["aggregation_vs_MACE_gold"]["dawid_skene_accuracy"], abs=0.01
    )
