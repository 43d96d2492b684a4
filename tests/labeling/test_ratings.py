"""Ratings: worked values, invariances, and the libraries and published boards they must equal."""

import csv
import gzip
import json
from collections import defaultdict
from dataclasses import replace

import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from labeling.ratings import (
    PRIOR_SD,
    Games,
    connected_parts,
    controlled,
    davidson_cost,
    elo,
    length_feature,
    pairs_of,
    rank_intervals,
    rao_kupper,
    rating_table,
    resampled_strengths,
    strengths,
    style_features,
    unbounded,
    win_table,
)

RESULTS = {"left": evalica.Winner.X, "right": evalica.Winner.Y, "tie": evalica.Winner.Draw}


def games(*rows, prompts=None):
    """Games from (first, second, wins, ties, losses); a prompt each unless told."""
    sources = sorted({row[0] for row in rows} | {row[1] for row in rows})
    columns = np.array([[sources.index(row[0]), sources.index(row[1])] for row in rows])
    counts = np.array([row[2:] for row in rows], dtype=float)
    prompt = np.arange(len(rows)) if prompts is None else np.array(prompts)
    return Games(sources, prompt, *columns.T, *counts.T)


THREE = games(("A", "B", 60, 20, 20), ("A", "C", 70, 20, 10), ("B", "C", 50, 25, 25))


def single_games(first, second, result, prompt=None):
    """A row for each answer: result "left", "tie" or "right"."""
    sources = sorted(set(first) | set(second))
    code = {name: place for place, name in enumerate(sources)}
    result = np.array(result)
    return Games(
        sources,
        np.arange(len(result)) if prompt is None else np.array(prompt),
        np.array([code[name] for name in first]),
        np.array([code[name] for name in second]),
        *((result == name).astype(float) for name in ("left", "tie", "right")),
    )


def random_games(seed, n_sources=5, n=400, n_prompts=100, strength=None):
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=n_sources) if strength is None else strength
    first = rng.integers(n_sources, size=n)
    second = (first + rng.integers(1, n_sources, size=n)) % n_sources
    d = strength[first] - strength[second]
    parts = np.stack([np.exp(d / 2), np.full(n, 0.7), np.exp(-d / 2)])
    outcome = (rng.random(n) > np.cumsum(parts / parts.sum(axis=0), axis=0)).sum(axis=0)
    results = [(outcome == k).astype(float) for k in range(3)]
    names = [f"m{k}" for k in range(n_sources)]
    return Games(names, rng.integers(n_prompts, size=n), first, second, *results)


def test_davidsons_model_on_the_worked_table():
    found = strengths(pairs_of(THREE))

    assert found.log_strength == pytest.approx([1.006204, -0.152572, -0.853632], abs=1e-6)
    assert np.exp(found.log_tie) == pytest.approx(0.672428, abs=1e-6)
    assert davidson_cost(*win_table(THREE), found) == pytest.approx(279.477756, abs=1e-6)


def test_rao_and_kuppers_model_on_the_worked_table():
    found, eta, cost = rao_kupper(*win_table(THREE))

    assert found == pytest.approx([0.789922, -0.125619, -0.664304], abs=1e-5)
    assert eta == pytest.approx(1.747008, abs=1e-5)
    assert cost == pytest.approx(279.762100, abs=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_both_models_are_evalicas(seed):
    some = random_games(seed)
    left, right = ([some.sources[k] for k in column] for column in (some.first, some.second))
    kinds = [RESULTS["left"], RESULTS["tie"], RESULTS["right"]]
    result = [kinds[k] for k in np.argmax([some.wins, some.ties, some.losses], axis=0)]
    pairs = pairs_of(some)

    half = evalica.bradley_terry(left, right, result, tolerance=1e-12, limit=10_000).scores
    newman = evalica.newman(left, right, result, tolerance=1e-12, limit=10_000)

    assert strengths(pairs, "half").log_strength == pytest.approx(
        centred_log(half[some.sources]), abs=1e-5
    )
    davidson = strengths(pairs)
    assert davidson.log_strength == pytest.approx(
        centred_log(newman.scores[some.sources]), abs=1e-4
    )
    assert np.exp(davidson.log_tie) / 2 == pytest.approx(newman.v, abs=1e-4)


def centred_log(scores):
    log = np.log(np.asarray(scores, dtype=float))
    return log - log.mean()


@given(st.integers(0, 10_000), st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_order_of_rows_sides_and_sources_changes_nothing(seed, names):
    some = random_games(seed)
    renamed = np.array(names)
    other = Games(
        some.sources,
        some.prompt[::-1],
        renamed[some.second][::-1],
        renamed[some.first][::-1],
        some.losses[::-1],
        some.ties[::-1],
        some.wins[::-1],
    )

    before, after = strengths(pairs_of(some)), strengths(pairs_of(other))

    assert after.log_strength[renamed] == pytest.approx(before.log_strength, abs=1e-7)
    assert after.covariance[np.ix_(renamed, renamed)] == pytest.approx(before.covariance, abs=1e-7)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_what_is_expected_is_what_was_seen(seed):
    """The likelihood's slope is zero: each source wins as often as the model says."""
    some = random_games(seed)
    found = strengths(pairs_of(some), "half")
    wins, ties = win_table(some)
    played = wins + wins.T + ties

    d = found.log_strength[:, None] - found.log_strength[None, :]
    expected = (played / (1 + np.exp(-d))).sum(axis=1)

    assert expected == pytest.approx((wins + ties / 2).sum(axis=1), abs=1e-5)


def test_four_hundred_points_are_ten_to_one():
    found = strengths(pairs_of(games(("A", "B", 10, 0, 1))))

    points = elo(found.log_strength)

    assert points[0] - points[1] == pytest.approx(400)
    assert points.mean() == pytest.approx(1000)


def test_one_answer_a_prompt_gives_the_classical_error_and_copies_of_a_prompt_add_nothing():
    one = single_games(["A"] * 100, ["B"] * 100, ["left"] * 64 + ["right"] * 36)
    twice = Games(
        one.sources, *(np.tile(c, 2) for c in (one.prompt, one.first, one.second)),
        *(np.tile(c, 2) for c in (one.wins, one.ties, one.losses)),
    )  # fmt: skip

    found, copied = strengths(pairs_of(one)), strengths(pairs_of(twice))

    # The difference of two centred strengths of ±θ: twice one of them.
    error = 2 * np.sqrt(found.covariance[0, 0])
    assert error == pytest.approx(1 / np.sqrt(100 * 0.64 * 0.36) * np.sqrt(100 / 99), abs=1e-6)
    assert copied.covariance == pytest.approx(found.covariance, abs=1e-9)


def test_resampled_strengths_are_refits_and_spread_as_the_sandwich_says():
    some = random_games(3, n=3_000, n_prompts=600)
    pairs = pairs_of(some)
    found = strengths(pairs)

    drawn = resampled_strengths(pairs, found)

    assert drawn.shape == (1_000, 5)
    assert drawn.std(axis=0) == pytest.approx(np.sqrt(np.diag(found.covariance)), rel=0.1)
    assert drawn.mean(axis=0) == pytest.approx(found.log_strength, abs=0.02)
    assert (resampled_strengths(pairs, found) == drawn).all()  # the seed is fixed


def test_sources_without_a_chain_of_comparisons_are_rated_apart():
    some = games(
        ("A", "B", 3, 1, 2), ("B", "C", 2, 0, 2), ("X", "Y", 5, 0, 3), prompts=[1, 2, 3]
    )  # fmt: skip

    found = rating_table(some)

    assert [part.tolist() for part in connected_parts(some)] == [[0, 1, 2], [3, 4]]
    assert [[row["source"] for row in part["sources"]] for part in found] == [
        ["A", "B", "C"],
        ["X", "Y"],
    ]
    assert found[1]["sources"][0]["rating"]["value"] > 1000
    assert found[1]["sources"][0]["rank_low"] is None  # three prompts carry no interval


def test_a_source_that_won_everything_is_named_and_its_rating_is_finite():
    rows = [("A", "B", 1, 0, 0)] * 12 + [("B", "C", 1, 0, 0), ("C", "B", 1, 0, 0)] * 10
    some = games(*rows)

    (part,) = rating_table(some)

    assert unbounded(some) == {"above": [0], "below": []}
    with pytest.raises(ValueError, match="no finite best value"):
        strengths(pairs_of(some))
    assert part["has_prior"] is True
    top = part["sources"][0]
    assert (top["source"], top["edge"], top["wins"], top["n"]) == ("A", "above", 12, 12)
    assert 1000 < top["rating"]["value"] < 1000 + 400 * PRIOR_SD
    json.dumps(part, allow_nan=False)


def test_two_groups_that_never_met_in_defeat_are_named_whole():
    some = games(("A", "B", 2, 0, 2), ("C", "D", 2, 0, 2), ("A", "C", 3, 0, 0))

    assert unbounded(some) == {"above": [0, 1], "below": [2, 3]}
    assert unbounded(games(("A", "B", 2, 0, 2), ("A", "C", 3, 1, 0))) == {"above": [], "below": []}


def test_ranks_stay_open_where_intervals_meet():
    low, high = np.array([1100.0, 1000, 990, 800]), np.array([1200.0, 1050, 1010, 900])

    best, worst = rank_intervals(low, high)

    assert best.tolist() == [1, 2, 2, 4]
    assert worst.tolist() == [1, 3, 3, 4]


def test_a_source_that_is_only_longer_is_not_better_at_equal_length():
    rng = np.random.default_rng(11)
    n = 3_000
    first, second = np.zeros(n, dtype=int), np.ones(n, dtype=int)
    length_first = rng.normal(1_200, 300, n)  # source 0 writes more
    length_second = rng.normal(600, 300, n)
    z = length_feature(length_first, length_second)
    won = (rng.random(n) < 1 / (1 + np.exp(-1.5 * z))).astype(float)
    some = Games(["long", "short"], np.arange(n) // 2, first, second, won, 0 * won, 1 - won)

    held = controlled(some, z[:, None])
    raw = strengths(pairs_of(some)).log_strength

    assert raw[0] - raw[1] > 0.8
    assert abs(held.log_strength[0] - held.log_strength[1]) < 0.25
    assert held.weights[0] == pytest.approx(1.5, abs=0.25)
    low, high = np.quantile(held.drawn_weights[:, 0], [0.025, 0.975])
    assert low < 1.5 < high


def test_one_step_from_the_whole_is_as_good_as_a_refit():
    some = random_games(7, n=2_000)
    some = replace(some, prompt=np.arange(2_000) % 400)
    features = np.random.default_rng(1).normal(size=(2_000, 2))
    held = controlled(some, features, resamples=20)

    rng = np.random.default_rng(20_260_131)
    for drawn in held.drawn:
        count = np.bincount(rng.integers(400, size=400), minlength=400)
        again = Games(
            some.sources, some.prompt, some.first, some.second,
            *(counts * count[some.prompt] for counts in (some.wins, some.ties, some.losses)),
        )  # fmt: skip
        refit = controlled(again, features, resamples=1)
        assert drawn == pytest.approx(refit.log_strength, abs=0.02)


def test_features_that_are_all_alike_leave_the_ratings_as_they_are():
    some = random_games(4, n=2_000)

    held = controlled(some, np.zeros((2_000, 1)), resamples=1)

    raw = strengths(pairs_of(some), prior_sd=PRIOR_SD)
    assert held.log_strength == pytest.approx(raw.log_strength, abs=1e-6)
    assert held.weights[0] == pytest.approx(0, abs=1e-9)


def test_style_is_the_relative_difference_in_units_of_its_spread():
    first = np.array([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    second = np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 0.0]])

    found = style_features(first, second)

    assert found[:, 0] == pytest.approx(np.array([0.5, 0, -0.5]) / np.std([0.5, 0, -0.5]))
    assert found[:, 1].tolist() == [0, 0, 0]


def test_the_table_shows_models_with_context_beside_the_raw_ratings():
    some = random_games(2, n=600)
    lengths = np.random.default_rng(0).normal(size=(600, 1))
    lengths[:5] = np.nan
    told = []

    (part,) = rating_table(
        some, features={"length": lengths}, on_progress=lambda *a: told.append(a)
    )

    top = part["sources"][0]
    assert top["controlled"]["length"]["low"] < top["controlled"]["length"]["value"]
    assert sum(row["controlled"]["length"]["n"] for row in part["sources"]) == 2 * 595
    assert part["features"]["length"][0]["n"] == 595
    assert top["rating"]["low"] < top["rating"]["value"] < top["rating"]["high"]
    assert told[-1] == (1000, 1000)
    assert told == sorted(told)
    json.dumps(part, allow_nan=False)


# Real boards --------------------------------------------------------------------------------------


def reference(shared_data, name):
    return json.loads((shared_data / "reference_figures.json").read_text())["datasets"][name]


def read_csv(path, **options):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **options))


def half_scores(some):
    """Bradley-Terry scores of geometric mean 1, by source."""
    found = strengths(pairs_of(some), "half")
    return dict(zip(some.sources, np.exp(found.log_strength), strict=True))


def ranked(scores):
    return sorted(scores, key=scores.get, reverse=True)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["simple", "food", "llmfao"])
def test_golden_boards_of_evalica(shared_data, name):
    folder = shared_data / "evalica-golden"
    golden = {
        row["item"]: float(row["score"])
        for row in read_csv(folder / f"{name}-golden.csv")
        if row["algorithm"] == "bradley_terry"
    }
    rows = read_csv(
        shared_data / "llmfao" / "crowd-comparisons.csv.gz"
        if name == "llmfao"
        else folder / f"{name}.csv"
    )

    found = half_scores(
        single_games(*([row[k] for row in rows] for k in ("left", "right", "winner")))
    )

    total = sum(found.values())
    assert {item: score / total for item, score in found.items()} == pytest.approx(
        golden, abs=1e-3 / len(golden)
    )
    assert ranked(found) == ranked(golden)


@pytest.mark.realdata
def test_llmfao_with_ties_as_half_and_with_ties_dropped(shared_data):
    expected = reference(shared_data, "llmfao")
    rows = read_csv(shared_data / "llmfao" / "crowd-comparisons.csv.gz")
    some = single_games(*([row[k] for row in rows] for k in ("left", "right", "winner")))
    decided = some.where(some.ties == 0)

    half = half_scores(some)
    dropped = strengths(pairs_of(decided))

    board = expected["bradley_terry_crowd"]
    assert ranked(half)[:5] == list(board["top5"])
    for name, score in (board["top5"] | board["bottom3"]).items():
        assert half[name] == pytest.approx(score, abs=1e-3)
    board = expected["bradley_terry_crowd_ties_dropped"]
    assert len(decided) == board["n_decided_votes"]
    by_name = dict(zip(some.sources, dropped.log_strength, strict=True))
    assert ranked(by_name)[:5] == list(board["top5"])
    for name, score in (board["top5"] | board["bottom3"]).items():
        assert by_name[name] == pytest.approx(score, abs=1e-3)
    both = [list(half.values()), [by_name[name] for name in half]]
    assert spearmanr(*both).statistic == pytest.approx(
        board["spearman_with_ties_as_half"], abs=1e-4
    )


@pytest.mark.realdata
@pytest.mark.parametrize("pair", ["deu-eng", "ron-eng", "fin-eng"])
def test_rankings_of_translation_systems(shared_data, pair):
    expected = reference(shared_data, f"wmt16/{pair}")["bradley_terry_uncollapsed"]
    rows = read_csv(shared_data / "wmt16" / f"wmt16.{pair}.csv.gz")
    ranks = np.array([[int(row["system1rank"]), int(row["system2rank"])] for row in rows])
    result = np.array(["left", "tie", "right"])[1 + np.sign(ranks[:, 0] - ranks[:, 1])]
    some = single_games(
        [row["system1Id"] for row in rows], [row["system2Id"] for row in rows], result
    )

    half = half_scores(some)
    decided = strengths(pairs_of(some.where(some.ties == 0)))

    assert (len(some), int(some.ties.sum())) == (expected["comparisons"], expected["ties"])
    assert half == pytest.approx(expected["evalica_scores"], abs=1e-3)
    assert ranked(half) == expected["ranking_best_first"]
    assert dict(zip(some.sources, decided.log_strength, strict=True)) == pytest.approx(
        expected["choix_log_strength_ties_dropped"], abs=1e-3
    )


@pytest.mark.realdata
def test_rankings_of_arguments(shared_data):
    expected = reference(shared_data, "ukpconvarg1")["bradley_terry_per_topic_side"]
    votes = defaultdict(list)
    for row in read_csv(shared_data / "ukpconvarg1" / "votes.derived.csv.gz"):
        votes[row["topic_side"]].append(row)
    found = {}
    for side in expected:
        pair_ids = [row["pair_id"].split("_") for row in votes[side]]
        result = [{"a1": "left", "a2": "right"}.get(row["value"], "tie") for row in votes[side]]
        scores = half_scores(single_games(*zip(*pair_ids, strict=True), result))
        path = shared_data / "ukpconvarg1" / "ranking-csv" / f"{side}.csv.gz"
        published = {
            row["#id"]: float(row["rank"])
            for row in read_csv(path, delimiter="\t", quoting=csv.QUOTE_NONE)
        }
        both = sorted(scores.keys() & published.keys())
        # Some arguments have equal strengths: the reference broke such ties by rounding, so it lies
        # between the two extreme ways to break them.
        ends = []
        for way in (-1, 1):
            order = sorted(both, key=lambda k: (round(scores[k], 7), way * published[k]))
            ends.append(spearmanr(range(len(order)), [published[k] for k in order]).statistic)
        found[side] = (len(scores), len(both), *ends)

    for side, figures in expected.items():
        assert found[side][:2] == (figures["arguments"], figures["matched_with_ranking_file"])
        low, high = found[side][2:]
        assert high - low < 0.01
        assert low - 1e-4 <= figures["spearman_bradley_terry_vs_ranking_file"] <= high + 1e-4


@pytest.mark.realdata
def test_people_and_judges_rank_the_models_as_published(shared_data):
    expected = reference(shared_data, "llmfao")["rank_correlation_of_bradley_terry_rankings"]
    boards = {}
    for name in ("crowd", "gpt4-crowd", "gpt3-crowd"):
        rows = read_csv(shared_data / "llmfao" / f"{name}-comparisons.csv.gz")
        some = single_games(*([row[k] for row in rows] for k in ("left", "right", "winner")))
        boards[name] = half_scores(some)

    order = sorted(boards["crowd"])
    ranks = {name: rankdata([board[k] for k in order]) for name, board in boards.items()}
    for one, other, key in (
        ("crowd", "gpt4-crowd", "crowd_gpt4"),
        ("crowd", "gpt3-crowd", "crowd_gpt3"),
        ("gpt4-crowd", "gpt3-crowd", "gpt4_gpt3"),
    ):
        assert spearmanr(ranks[one], ranks[other]).statistic == pytest.approx(
            expected[key], abs=1e-3
        )
