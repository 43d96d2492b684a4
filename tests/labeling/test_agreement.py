"""Agreement statistics: worked values, properties, and the libraries they must equal."""

import csv
import gzip
import json
import math
import warnings

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from labeling.agreement import (
    Votes,
    _alpha_parts,
    _alphas,
    _fleiss_kappas,
    _units,
    agreement_report,
    cohen_kappas,
    fleiss_kappa,
    judges_against_people,
    kappa_of_pairs,
    krippendorff_alpha,
    length_preference,
    majority,
    one_against_the_others,
    people_in_figures,
    percent_agreement,
    position_consistency,
    position_preference,
    vote_counts,
)
from labeling.shares import clopper_pearson

CODE = {"a": 0, "b": 1, "tie": 2, "both_bad": 3, "unparsed": 4}

# Krippendorff's reliability data as in evalica's README: observers in rows, units in columns.
RELIABILITY = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
# Fleiss' worked example (Wikipedia): 10 subjects, 14 raters, 5 categories.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


def votes(*rows, judges=(), lengths=(100, 100), n_comparisons=None, prompts=None):
    """Columns from (comparison, rater, choice[, shown_first[, prob_a_ab, prob_a_ba]]).

    prompts: the prompt of each comparison that shares one with another.
    """
    raters = list(dict.fromkeys(row[1] for row in rows))
    full = [(*row, *("", None, None)[len(row) - 3 :]) for row in rows]
    items, item = np.unique([row[0] for row in rows], return_inverse=True)
    return Votes(
        raters=[str(rater) for rater in raters],
        is_judge=np.array([rater in judges for rater in raters], dtype=bool),
        n_comparisons=n_comparisons or len(items),
        item=item,
        prompt=np.array([(prompts or {}).get(row[0], row[0]) for row in rows], dtype=int),
        rater=np.array([raters.index(row[1]) for row in full], dtype=int),
        choice=np.array([CODE[row[2]] for row in full], dtype=int),
        shown_first=np.array([{"a": 0, "b": 1, "": -1}[row[3]] for row in full], dtype=int),
        prob_a_ab=np.array([row[4] for row in full], dtype=float),
        prob_a_ba=np.array([row[5] for row in full], dtype=float),
        length_a=np.full(len(full), lengths[0]),
        length_b=np.full(len(full), lengths[1]),
    )


def counts_of(matrix):
    """(units, values) from observers in rows, None for no answer."""
    data = pd.DataFrame(matrix, dtype=float)
    values = np.unique(data.to_numpy()[~np.isnan(data.to_numpy())])
    return np.array([[(data[unit] == value).sum() for value in values] for unit in data])


small_counts = st.lists(
    st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(lambda row: sum(row) >= 2),
    min_size=2,
    max_size=12,
).map(np.array)


def test_alpha_of_krippendorffs_own_matrix():
    alpha = krippendorff_alpha(counts_of(RELIABILITY))

    assert alpha["value"] == pytest.approx(0.743421, abs=1e-6)
    assert alpha["n"] == 11  # the twelfth unit has one value
    assert alpha["n_votes"] == 40
    assert alpha["low"] < alpha["value"] < alpha["high"]


def test_cohens_kappa_of_the_vignettes_table():
    table = np.array([[13, 0, 0], [0, 20, 7], [0, 4, 56]])

    assert cohen_kappas(table) == pytest.approx(0.796409, abs=1e-6)


def test_fleiss_kappa_of_the_worked_example():
    fleiss = fleiss_kappa(FLEISS)

    assert fleiss["value"] == pytest.approx(0.209931, abs=1e-6)
    assert (fleiss["n"], fleiss["votes_per_comparison"]) == (10, 14)
    assert fleiss["low"] < fleiss["value"] < fleiss["high"]


@given(small_counts)
@settings(max_examples=60, deadline=None)
def test_resampled_alpha_is_evalicas_alpha(counts):
    weights = np.array([[1] * len(counts), list(range(1, len(counts) + 1))])

    ours = _alphas(weights @ _alpha_parts(counts))

    for row, alpha in zip(weights, ours, strict=True):
        resample = np.repeat(counts, row, axis=0)
        if np.count_nonzero(resample.sum(axis=0)) == 1:
            assert math.isnan(alpha)
        else:
            theirs = evalica.alpha(pd.DataFrame(_units(resample))).alpha
            assert alpha == pytest.approx(theirs, abs=1e-9)


def test_resampled_fleiss_kappa_is_the_librarys():
    sums = _alpha_parts(FLEISS).sum(axis=0)[None]

    assert _fleiss_kappas(sums)[0] == pytest.approx(0.209931, abs=1e-6)


@given(st.lists(st.integers(0, 6), min_size=9, max_size=9).filter(any))
@settings(max_examples=60, deadline=None)
def test_kappa_is_scikit_learns_and_the_same_from_both_sides(cells):
    table = np.array(cells).reshape(3, 3)
    first, second = np.repeat(np.indices((3, 3)).reshape(2, -1), table.ravel(), axis=1)

    kappa = cohen_kappas(table)

    if len(np.unique([first, second])) == 1:
        assert np.isnan(kappa)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = cohen_kappa_score(first, second)
        assert kappa == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert kappa == pytest.approx(cohen_kappas(table.T), abs=1e-12, nan_ok=True)


@given(small_counts, st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_new_names_for_the_answers_change_no_figure(counts, names):
    renamed = counts[:, names]

    for statistic in (krippendorff_alpha, percent_agreement, fleiss_kappa):
        before, after = statistic(counts), statistic(renamed)
        assert after["value"] == pytest.approx(before["value"], abs=1e-9)
        assert after["n"] == before["n"]


def test_interval_comes_from_whole_comparisons_and_repeats_with_the_seed():
    rng = np.random.default_rng(5)
    counts = rng.multinomial(3, [0.5, 0.3, 0.2], size=400)
    one_by_one = [
        _alphas(_alpha_parts(counts[rng.integers(0, 400, 400)]).sum(axis=0)[None])[0]
        for _ in range(1000)
    ]

    alpha = krippendorff_alpha(counts)

    assert alpha["low"] == pytest.approx(np.quantile(one_by_one, 0.025), abs=0.01)
    assert alpha["high"] == pytest.approx(np.quantile(one_by_one, 0.975), abs=0.01)
    assert krippendorff_alpha(counts) == alpha


def test_full_agreement_is_one_and_chance_is_about_zero():
    rng = np.random.default_rng(0)
    same = np.array([[3, 0], [0, 3]] * 20)
    chance = rng.multinomial(3, [0.5, 0.5], size=20_000)

    assert krippendorff_alpha(same)["value"] == 1
    assert percent_agreement(same)["value"] == 1
    assert krippendorff_alpha(chance)["value"] == pytest.approx(0, abs=0.02)
    assert percent_agreement(chance)["value"] == pytest.approx(0.5, abs=0.02)


def test_both_bad_is_an_answer_of_its_own():
    tie_and_bad = vote_counts(votes((1, "ann", "tie"), (1, "bob", "both_bad")))

    assert percent_agreement(tie_and_bad)["value"] == 0


def test_one_rater_alone_is_refused_with_the_reason():
    report = agreement_report(votes((1, "ann", "a"), (2, "ann", "b")))

    for key in ("krippendorff_alpha", "percent_agreement", "fleiss_kappa"):
        assert report[key]["value"] is None
        assert report[key]["n"] == 0
        assert "two people" in report[key]["why"]
    assert report["cohen_kappa"] == []


def test_raters_without_a_common_comparison_are_refused():
    report = agreement_report(votes((1, "ann", "a"), (2, "bob", "b")))

    assert report["krippendorff_alpha"]["value"] is None
    assert report["cohen_kappa"] == []


def test_a_single_category_is_refused_and_never_not_a_number():
    report = agreement_report(votes(*[(i, r, "a") for i in range(12) for r in ("ann", "bob")]))

    assert report["krippendorff_alpha"]["value"] is None
    assert "same answer" in report["krippendorff_alpha"]["why"]
    assert report["fleiss_kappa"]["value"] is None
    assert report["percent_agreement"]["value"] == 1
    (pair,) = report["cohen_kappa"]
    assert (pair["value"], pair["agreement"], pair["n"]) == (None, 1.0, 12)
    assert "chance" in pair["why"]
    json.dumps(report, allow_nan=False)


def test_an_empty_project_has_a_report_of_refusals():
    report = agreement_report(votes(n_comparisons=7))

    assert report["n_comparisons"] == 7
    assert report["n_people"] == report["n_preferences"] == 0
    assert report["krippendorff_alpha"]["value"] is None
    assert report["position"]["value"] is None
    assert report["judges"] == report["raters"] == []


def test_alpha_says_how_many_raters_and_what_share_of_their_places_is_empty():
    rows = [(i, "ann", "a") for i in range(4)] + [(i, "bob", "b") for i in range(3)]
    rows += [(0, "cy", "a"), (9, "dee", "a")]  # dee's comparison has no second vote

    alpha = agreement_report(votes(*rows))["krippendorff_alpha"]

    assert (alpha["n"], alpha["n_votes"], alpha["n_raters"]) == (3, 7, 3)
    assert alpha["missing"] == pytest.approx(2 / 9)


def test_fleiss_uses_the_comparisons_with_the_usual_number_of_votes():
    counts = np.array([[2, 1], [1, 2], [3, 0], [2, 0], [1, 0], [1, 0], [1, 0], [1, 0]])

    fleiss = fleiss_kappa(counts)

    assert (fleiss["n"], fleiss["votes_per_comparison"]) == (3, 3)
    assert fleiss["value"] == fleiss_kappa(counts[:3])["value"]


def test_pairs_share_only_what_both_have_judged():
    found = kappa_of_pairs(
        votes(
            *[(i, "ann", "ab"[i % 2]) for i in range(12)],
            *[(i, "bob", "ab"[i % 2]) for i in range(10)],
            (10, "cy", "a"),
            (11, "cy", "a"),
        )
    )

    by_names = {(pair["rater_1"], pair["rater_2"]): pair for pair in found}
    assert set(by_names) == {("ann", "bob"), ("ann", "cy")}
    assert by_names["ann", "bob"]["value"] == 1
    assert by_names["ann", "bob"]["n"] == 10
    assert by_names["ann", "bob"]["low"] is None  # no resample of full agreement differs
    assert "same value" in by_names["ann", "bob"]["why_no_interval"]
    assert by_names["ann", "cy"]["n"] == 2
    assert by_names["ann", "cy"]["agreement"] == 0.5
    assert by_names["ann", "cy"]["low"] is None  # two comparisons carry no interval


def test_majority_is_empty_where_the_top_is_shared():
    found = majority(
        votes(
            (0, "ann", "a"), (0, "bob", "a"), (0, "cy", "b"),
            (1, "ann", "a"), (1, "bob", "b"),
            (2, "cy", "tie"),
        ),
        n_items=4,
    )  # fmt: skip

    assert found.tolist() == [0, -1, 2, -1]


def test_a_judge_meets_untied_majorities_and_its_unreadable_verdicts_disagree():
    people = [(i, rater, "a" if i < 6 else "b") for i in range(8) for rater in ("ann", "bob")]
    split = [(8, "ann", "a"), (8, "bob", "b")]
    verdicts = [(i, "gpt", c) for i, c in enumerate("aaaab")]
    verdicts += [(5, "gpt", "unparsed"), (6, "gpt", "b"), (7, "gpt", "tie"), (8, "gpt", "a")]

    (judge,) = judges_against_people(votes(*people, *split, *verdicts, judges={"gpt"}))

    assert judge["n"] == 9
    assert judge["unparsed"] == 1
    assert judge["with_ties"]["n"] == 8  # not the split one
    assert judge["with_ties"]["agreement"] == 5 / 8
    assert judge["without_ties"]["n"] == 6  # not the tie, not the unreadable one
    assert judge["without_ties"]["agreement"] == 5 / 6
    assert judge["with_ties"]["kappa"] == pytest.approx(
        cohen_kappa_score(list("aaaaaabb"), ["a", "a", "a", "a", "b", "u", "b", "t"])
    )


def test_one_person_is_held_against_the_majority_of_the_others():
    figures = one_against_the_others(
        votes(
            # Both a's meet "a and b" (tied, left out); b meets two a's.
            (0, "ann", "a"), (0, "bob", "a"), (0, "cy", "b"),
            (1, "ann", "a"), (1, "bob", "a"),  # each meets the other
            (2, "ann", "tie"), (2, "bob", "a"),  # no side taken by both
            (3, "ann", "b"),  # nobody to meet
        )
    )  # fmt: skip

    assert (figures["with_ties"]["value"], figures["with_ties"]["n"]) == (2 / 5, 5)
    assert (figures["without_ties"]["value"], figures["without_ties"]["n"]) == (2 / 3, 3)
    assert one_against_the_others(votes())["with_ties"]["value"] is None


def test_a_judge_that_is_right_on_a_handful_has_an_exact_interval_and_none_for_kappa():
    people = [(i, rater, "ab"[i % 2]) for i in range(5) for rater in ("ann", "bob")]
    verdicts = [(i, "gpt", "ab"[i % 2]) for i in range(5)]

    (judge,) = judges_against_people(votes(*people, *verdicts, judges={"gpt"}))

    for figure in (judge["with_ties"], judge["without_ties"]):
        assert figure["agreement"] == figure["kappa"] == 1
        assert figure["agreement_low"] == pytest.approx(0.478176, abs=1e-6)
        assert figure["agreement_high"] == 1
        assert (figure["kappa_low"], figure["kappa_high"]) == (None, None)
        assert "Fewer than 10 prompts" in figure["kappa_why_no_interval"]


def test_full_agreement_has_no_interval_of_alpha_and_an_exact_one_of_the_share():
    same = np.array([[3, 0], [0, 3]] * 20)

    alpha, share = krippendorff_alpha(same), percent_agreement(same)

    assert (alpha["value"], alpha["low"], alpha["high"]) == (1, None, None)
    assert alpha["why_no_interval"] == fleiss_kappa(same)["why_no_interval"]
    assert (share["low"], share["high"]) == clopper_pearson(40, 40)


def test_comparisons_of_one_prompt_are_drawn_together():
    rng = np.random.default_rng(3)
    easy = rng.random(30) < 0.5  # on an easy prompt people agree, on the others they do not
    rows, prompts = [], {}
    for prompt in range(30):
        for place in range(6):
            item = 6 * prompt + place
            prompts[item] = prompt
            first = "ab"[place % 2]
            rows += [(item, "ann", first), (item, "bob", first if easy[prompt] else "tie")]
            rows += [(item, "gpt", first if easy[prompt] else "tie")]
    alone, shared = votes(*rows, judges={"gpt"}), votes(*rows, judges={"gpt"}, prompts=prompts)

    one_by_one, by_prompt = agreement_report(alone), agreement_report(shared)

    assert one_by_one["interval"]["unit"] == "comparisons"
    assert by_prompt["interval"]["unit"] == "prompts"
    for figure in ("krippendorff_alpha", "percent_agreement", "fleiss_kappa"):
        assert by_prompt[figure]["value"] == one_by_one[figure]["value"]
        assert width(by_prompt[figure]) > 2 * width(one_by_one[figure])
    (pair,), (narrow,) = by_prompt["cohen_kappa"], one_by_one["cohen_kappa"]
    assert pair["value"] == narrow["value"]
    assert width(pair) > 2 * width(narrow)
    share = by_prompt["percent_agreement"]
    of_prompts = clopper_pearson(int(easy.sum()), 30)
    assert (share["low"], share["high"]) == pytest.approx(of_prompts, abs=0.04)


def test_a_share_of_all_votes_on_few_prompts_is_no_surer_than_the_prompts():
    rows = [(item, "ann", "a", "a") for item in range(12)]

    leaning = position_preference(votes(*rows, prompts={item: item // 4 for item in range(12)}))

    assert (leaning["value"], leaning["n"]) == (1, 12)
    assert (leaning["low"], leaning["high"]) == clopper_pearson(3, 3)


def width(figure):
    return figure["high"] - figure["low"]


def test_people_and_judges_are_kept_apart():
    report = agreement_report(
        votes(
            (0, "ann", "a"), (0, "bob", "a"), (1, "ann", "b"), (1, "bob", "b"),
            (0, "gpt", "b"), (1, "gpt", "a"), (2, "gpt", "a"),
            judges={"gpt"},
        )
    )  # fmt: skip

    assert report["krippendorff_alpha"]["value"] == 1
    assert (report["n_preferences"], report["n_verdicts"]) == (4, 3)
    assert (report["n_people"], report["n_judges"]) == (2, 1)
    assert [row["rater"] for row in report["raters"]] == ["ann", "bob"]
    assert {"gpt"}.isdisjoint(p["rater_1"] + p["rater_2"] for p in report["cohen_kappa"])
    assert report["judges"][0]["with_ties"]["agreement"] == 0


def test_a_judge_that_follows_the_place_is_consistent_nowhere():
    rows = [(i, "gpt", "tie", "", 0.9, 0.1) for i in range(20)]
    judge = votes(*rows, judges={"gpt"})

    assert position_consistency(judge)["value"] == 0
    leaning = position_preference(judge)
    assert (leaning["value"], leaning["n"]) == (1, 40)
    assert (leaning["first_twice"], leaning["second_twice"]) == (20, 0)
    assert leaning["p_value"] == pytest.approx(2 * 0.5**20)


def test_consistency_leaves_out_single_orders_and_unreadable_verdicts():
    judge = votes(
        (0, "gpt", "a", "", 0.9, 0.8),
        (1, "gpt", "b", "", 0.4, 0.1),
        (2, "gpt", "a", "", 0.9, 0.3),
        (3, "gpt", "a", "a"),
        (4, "gpt", "unparsed", "", 0.9, 0.1),
        (5, "gpt", "a", "", 0.5, 0.9),
        judges={"gpt"},
    )

    figure = position_consistency(judge)

    assert (figure["value"], figure["n"]) == (2 / 4, 4)


def test_each_order_of_a_verdict_is_a_showing_of_its_own():
    judge = votes(
        (0, "gpt", "a", "", 0.9, 0.8),  # A first: first; B first: second
        (1, "gpt", "a", "", 0.9, 0.2),  # first, and first
        (2, "gpt", "b", "", 0.3, None),  # one order alone: second
        (3, "gpt", "b", "", 0.5, 0.1),  # undecided, and first
        judges={"gpt"},
    )

    leaning = position_preference(judge)

    assert (leaning["value"], leaning["n"]) == (4 / 6, 6)


def test_only_verdicts_that_follow_the_place_test_a_judge_for_leaning_to_it():
    rows = [(i, "gpt", "a", "", 0.9, 0.9) for i in range(80)]
    rows += [(i, "gpt", "tie", "", 0.9, 0.1) for i in range(80, 95)]
    rows += [(i, "gpt", "tie", "", 0.1, 0.9) for i in range(95, 100)]

    leaning = position_preference(votes(*rows, judges={"gpt"}))

    assert (leaning["value"], leaning["n"]) == (0.55, 200)
    assert (leaning["first_twice"], leaning["second_twice"]) == (15, 5)
    assert leaning["p_value"] == pytest.approx(0.041389, abs=1e-6)  # 15 of 20, not 110 of 200


def test_a_judge_that_never_follows_the_place_leans_to_none():
    judge = votes(*[(i, "gpt", "a", "", 0.9, 0.9) for i in range(9)], judges={"gpt"})

    assert position_preference(judge)["p_value"] == 1


def test_position_counts_decided_votes_whose_order_is_known():
    leaning = position_preference(
        votes(
            (0, "ann", "a", "a"), (1, "ann", "b", "a"), (2, "ann", "b", "b"),
            (3, "ann", "tie", "a"), (4, "ann", "both_bad", "a"), (5, "ann", "a"),
        )
    )  # fmt: skip

    assert (leaning["value"], leaning["n"]) == (2 / 3, 3)
    assert leaning["p_value"] == 1.0


def test_length_counts_only_clear_differences():
    rows = [(0, "ann", "a"), (1, "ann", "a"), (2, "ann", "b"), (3, "ann", "tie")]

    longer_a = length_preference(votes(*rows, lengths=(131, 100)))
    too_close = length_preference(votes(*rows, lengths=(130, 100)))

    assert (longer_a["value"], longer_a["n"]) == (2 / 3, 3)
    assert too_close["value"] is None
    assert "30 characters" in too_close["why"]


def test_a_raters_row_holds_its_own_votes_alone():
    rows = people_in_figures(
        votes(
            (0, "ann", "a", "a"), (0, "bob", "b", "a"),
            (1, "bob", "b", "b"), (2, "bob", "b", "a"), (2, "ann", "tie", "b"),
        )
    )  # fmt: skip

    assert [(row["rater"], row["n"]) for row in rows] == [("bob", 3), ("ann", 2)]
    assert [row["first_shown_share"] for row in rows] == [1 / 3, 1.0]
    assert rows[1]["choices"] == {"a": 1, "b": 0, "tie": 1, "both_bad": 0, "unparsed": 0}


def test_a_stored_report_keeps_the_pairs_of_the_busiest_people():
    rows = [(i, rater, "a") for rater, n in (("ann", 5), ("bob", 4), ("cy", 3)) for i in range(n)]

    report = agreement_report(votes(*rows), most_raters=2)

    assert [(p["rater_1"], p["rater_2"]) for p in report["cohen_kappa"]] == [("ann", "bob")]
    assert report["pairs_left_out"] == 2


# Real votes, straight from their files ------------------------------------------------------------


def figures_of(shared_data, name):
    return json.loads((shared_data / "reference_figures.json").read_text())["datasets"][name]


def assert_agreement_figures(counts, expected):
    assert krippendorff_alpha(counts)["value"] == pytest.approx(
        expected["krippendorff_alpha_nominal"], abs=1e-4
    )
    share = percent_agreement(counts)
    assert share["value"] == pytest.approx(expected["pairwise_percent_agreement_micro"], abs=1e-4)
    assert share["macro"] == pytest.approx(expected["pairwise_percent_agreement_macro"], abs=1e-4)
    fleiss = fleiss_kappa(counts)
    assert fleiss["value"] == pytest.approx(expected["fleiss_kappa"]["value"], abs=1e-4)
    assert fleiss["n"] == expected["fleiss_kappa"]["items"]
    assert (
        fleiss["votes_per_comparison"] == expected["fleiss_kappa"]["on_items_with_exactly_n_votes"]
    )


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["bluebird", "dog", "rte", "d_product", "s_rel"])
def test_agreement_of_the_crowd_benchmarks(shared_data, name):
    if name == "rte":
        file = shared_data / "crowd-labels" / name / "rte.standardized.tsv.gz"
        table = pd.read_csv(file, sep="\t").rename(columns={"orig_id": "item", "response": "label"})
    else:
        table = pd.read_csv(shared_data / "crowd-labels" / name / "label.csv.gz")

    counts = pd.crosstab(table["item"], table["label"]).to_numpy()

    assert_agreement_figures(counts, figures_of(shared_data, f"crowd-labels/{name}"))


@pytest.mark.realdata
def test_agreement_on_convincing_arguments(shared_data):
    votes_file = shared_data / "ukpconvarg1" / "votes.derived.csv.gz"
    counted: dict[tuple[str, str], list[int]] = {}
    with gzip.open(votes_file, "rt") as lines:
        for row in csv.DictReader(lines):
            item = counted.setdefault((row["topic_side"], row["pair_id"]), [0, 0, 0])
            item[["a1", "a2", "equal"].index(row["value"])] += 1

    counts = np.array(list(counted.values()))

    expected = figures_of(shared_data, "ukpconvarg1")
    assert counts.sum() == expected["votes"]
    assert_agreement_figures(counts, expected)
