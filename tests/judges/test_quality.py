"""A judge held against people: values worked by hand, and what must hold for any numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from judges.quality import (
    Answers,
    Labeled,
    alignment,
    alt_test,
    calibration_figures,
    ceiling,
    differences,
    exchange_p,
    family_of,
    holm,
    judge_figures,
    length_bias,
    per_correct,
    position_bias,
    self_preference,
    win_rate,
)
from labeling.agreement import BOTH_BAD, TIE, UNPARSED, A, B, Votes
from labeling.calibration import calibration_error, mean_of
from labeling.shares import clopper_pearson
from tests.bench.laboratory import coverage, too_few, too_many

CODE = {"a": A, "b": B, "t": TIE, "x": BOTH_BAD, "?": UNPARSED}


def labeled(reference: str, prompt=None, length_a=None, length_b=None, sources=None, people=()):
    """Comparisons with this answer each; `people` are strings of the same length, " " for none."""
    n = len(reference)
    votes = [
        (i, who, CODE[c]) for who, said in enumerate(people) for i, c in enumerate(said) if c != " "
    ]
    item, rater, choice = (
        (np.array(column, dtype=np.int64) for column in zip(*votes, strict=True))
        if votes
        else (np.empty(0, dtype=np.int64),) * 3
    )
    prompt = np.arange(n) if prompt is None else np.array(prompt)
    nothing = np.full(len(item), np.nan)
    return Labeled(
        comparison=np.arange(n),
        prompt=prompt,
        reference=np.array([CODE[c] for c in reference]),
        length_a=np.array(length_a or [100] * n),
        length_b=np.array(length_b or [100] * n),
        source_a=np.array([a for a, _b in sources or [("", "")] * n]),
        source_b=np.array([b for _a, b in sources or [("", "")] * n]),
        people=Votes(
            raters=[f"person-{k}" for k in range(len(people))],
            is_judge=np.zeros(len(people), dtype=bool),
            n_comparisons=n,
            item=item,
            prompt=prompt[item],
            rater=rater,
            choice=choice,
            shown_first=np.full(len(item), -1),
            prob_a_ab=nothing,
            prob_a_ba=nothing,
            length_a=np.zeros(len(item)),
            length_b=np.zeros(len(item)),
        ),
    )


def said(choices: str, prob_a=None, ab=None, ba=None, seconds=1.0, places=None) -> Answers:
    """A judge that chose these; probabilities 0.8 for what it chose unless given."""
    n = len(choices)
    probs = {"a": 0.8, "b": 0.2, "t": 0.5, "?": 0.5}
    prob_a = np.array([probs[c] for c in choices] if prob_a is None else prob_a, dtype=float)
    z = np.log(prob_a / (1 - prob_a))
    return Answers(
        place=np.arange(n) if places is None else np.array(places),
        choice=np.array([CODE[c] for c in choices]),
        prob_a=prob_a,
        logit_ab=z if ab is None else np.array(ab, dtype=float),
        logit_ba=z if ba is None else np.array(ba, dtype=float),
        mass=np.full(n, 0.9),
        seconds=np.full(n, seconds),
        cost=np.full(n, np.nan),
    )


def test_alignment_counts_a_tie_as_half_right_and_an_unreadable_verdict_as_wrong():
    rows = labeled("aabbtx")
    found = alignment(rows, said("ab?tta"))
    # Decided: right, wrong, unreadable, tie → 1.5 of 4.
    assert (found["decided"]["value"], found["decided"]["n"]) == (1.5 / 4, 4)
    assert found["decided"]["low"] == clopper_pearson(1, 4)[0]
    assert found["decided"]["high"] == clopper_pearson(2, 4)[1]
    # Both chose a side: right, wrong.
    assert (found["both_decided"]["value"], found["both_decided"]["n"]) == (1 / 2, 2)
    # The same answer: the first, and the tie on which people tied.
    assert (found["all"]["value"], found["all"]["n"]) == (2 / 6, 6)


def test_the_interval_of_a_share_is_exact_where_prompts_have_one_comparison_each():
    found = alignment(labeled("a" * 50), said("a" * 42 + "b" * 8))["decided"]
    assert found["value"] == 0.84
    assert (found["low"], found["high"]) == pytest.approx((0.708874, 0.928299), abs=1e-6)


def test_comparisons_of_one_prompt_are_no_independent_evidence():
    wins = np.tile([1.0, 1.0, 1.0, 0.0], 20)
    each = mean_of(np.arange(80), wins)
    # All four comparisons of a prompt say the same: 20 prompts' worth of evidence, not 80.
    alike = mean_of(np.repeat(np.arange(20), 4), np.repeat(np.tile([1.0, 1.0, 1.0, 0.0], 5), 4))
    assert each["value"] == alike["value"] == 0.75
    assert alike["high"] - alike["low"] > 1.6 * (each["high"] - each["low"])


def test_a_win_rate_has_the_standard_error_of_its_mean_and_more_where_prompts_are_shared():
    wins = np.array([1, 0, 0.5, 1, 1, 0, 1, 0.25, 1, 0, 1, 1])
    alone = win_rate(np.arange(12), wins)
    assert alone["value"] == pytest.approx(wins.mean())
    assert alone["standard_error"] == pytest.approx(wins.std(ddof=1) / np.sqrt(12))
    doubled = win_rate(np.repeat(np.arange(12), 2), np.repeat(wins, 2))
    assert doubled["standard_error"] == pytest.approx(alone["standard_error"])


def test_the_ceiling_is_one_person_against_the_others():
    # On each comparison two agree and one does not; the two are measured against a tied rest.
    found = ceiling(labeled("aab", people=["aab", "aab", "bba"]))["without_ties"]
    assert (found["value"], found["n"]) == (0.0, 3)
    found = ceiling(labeled("aab", people=["aab", "aab", "aab"]))["without_ties"]
    assert (found["value"], found["n"]) == (1.0, 9)


def test_position_bias_is_half_the_difference_of_the_logits():
    found = position_bias(labeled("a"), said("a", ab=[1.7], ba=[0.3]))
    assert found["value"] == pytest.approx(0.7)
    assert sum(found["histogram"]["n"]) == 1
    assert position_bias(labeled("a"), said("a", ab=[np.nan], ba=[np.nan]))["value"] is None


def test_length_bias_is_what_exceeds_peoples_own():
    lengths = {"length_a": [200, 200, 100, 100, 120], "length_b": [100, 100, 200, 200, 100]}
    # Longer: a, a, b, b, and one pair too alike to count.
    found = length_bias(labeled("abab" + "a", **lengths), said("aabaa"))
    assert (found["judge"]["value"], found["people"]["value"]) == (0.75, 0.5)
    found = length_bias(labeled("ababa", **lengths), said("aabba"))
    assert (found["judge"]["value"], found["people"]["value"]) == (1.0, 0.5)
    assert (found["value"], found["n"]) == (0.5, 4)


def test_self_preference_counts_where_one_response_is_of_the_judges_family():
    sources = [
        ("qwen-7b", "other"),
        ("other", "Qwen2-1b"),
        ("qwen", "qwen-2"),
        ("x", "y"),
        ("", "qwen"),
    ]
    found = self_preference(labeled("aaaab", sources=sources), said("abaat"), "Qwen/Qwen2.5-7B")
    # Own side: a, b, and b; people a, a, b → 2 of 3; the judge a, b, tie → 2.5 of 3.
    assert found["family"] == "qwen"
    assert (found["judge"]["value"], found["people"]["value"]) == pytest.approx((2.5 / 3, 2 / 3))
    assert (found["value"], found["n"]) == (pytest.approx(0.5 / 3), 3)
    assert self_preference(labeled("a"), said("a"), "Qwen/Qwen2.5-7B")["value"] is None


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama"),
        ("gpt-4o-2024-08-06", "gpt"),
        ("/models/Mistral-7B/", "mistral"),
        ("7b", ""),
        ("", ""),
    ],
)
def test_a_family_is_the_first_word_of_a_models_name(model, family):
    assert family_of(model) == family


def test_what_a_right_label_takes():
    found = per_correct(labeled("aabbt"), said("abta?", seconds=2.0), np.full(5, 2.0))
    # 8 seconds where people chose a side; right: 1 + 0 + ½ + 0.
    assert (found["value"], found["n"]) == (pytest.approx(8 / 1.5), 4)
    assert per_correct(labeled("a"), said("b"), np.ones(1))["value"] is None


def test_calibration_leaves_the_unreadable_and_the_undecided_out():
    rng = np.random.default_rng(2)
    n = 300
    z = rng.normal(0, 1.5, n)
    answers = "".join("a" if x else "b" for x in rng.random(n) < 1 / (1 + np.exp(-z)))
    probs = 1 / (1 + np.exp(-3 * z))
    chosen = "".join("a" if p > 0.5 else "b" for p in probs)

    found = calibration_figures(labeled(answers + "t"), said(chosen + "a", [*probs, 0.9]))

    assert found["n"] == n
    assert found["before"]["ece"]["low"] > 0.05
    after = found["temperature"]
    assert after["parameters"]["temperature"] == pytest.approx(3.0, abs=0.8)
    assert after["log_loss"]["value"] < found["before"]["log_loss"]["value"]
    assert after["ece"]["low"] < 0.01
    assert "Too few" in found["isotonic"]["why"]
    assert sum(row["n"] for row in found["before"]["bins"]) == n
    for row in found["before"]["bins"]:
        assert row["low"] <= row["right"] <= row["high"]


def test_a_perfectly_calibrated_judge_shows_only_the_error_that_luck_makes():
    rng = np.random.default_rng(5)
    probs = rng.beta(2, 2, 400)
    figure = calibration_error(np.arange(400), probs, (rng.random(400) < probs).astype(float))
    assert figure["low"] == 0
    assert 0.5 < figure["value"] / figure["by_luck"] < 2


def test_differences_are_paired_and_corrected_for_their_number():
    n = 40
    rows = labeled("a" * n)
    right, half = said("a" * n), said("ab" * (n // 2))
    late = said("a" * 20, places=list(range(20, 40)))

    first, second, third = differences(rows, [right, half, late])

    assert (first["value"], first["n"]) == (0.5, n)
    assert first["low"] > 0.3
    assert first["p_value"] == 1 / 10_000  # 20 prompts, all one way: as small as it can be
    assert first["p_corrected"] == pytest.approx(3 / 10_000)
    assert (second["value"], second["n"], second["p_value"]) == (0, 20, 1.0)
    assert second["why_no_interval"]
    assert third["n"] == 20


def test_the_exchange_test_is_mcnemars_on_single_comparisons():
    # 12 discordant, 10 of them one way: two-sided binomial p = 0.0386.
    gain = np.array([1.0] * 10 + [-1.0] * 2 + [0.0] * 30)
    assert exchange_p(np.arange(42), gain) == pytest.approx(0.0386, abs=0.006)
    assert exchange_p(np.arange(3), np.zeros(3)) == 1.0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels_holm(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_what_has_no_p_value_does_not_count_among_the_looks():
    assert holm([None, 0.01, None, 0.03]) == [None, 0.02, None, 0.03]


def crowd(n: int, n_people: int, agree: float, seed: int) -> tuple[str, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.5
    people = [
        "".join("a" if t == (r < agree) else "b" for t, r in zip(truth, rng.random(n), strict=True))
        for _ in range(n_people)
    ]
    return "".join("a" if t else "b" for t in truth), people


def test_a_judge_that_knows_better_than_people_passes_the_alt_test_and_a_coin_does_not():
    truth, people = crowd(120, 4, agree=0.8, seed=1)
    rows = labeled(truth, people=people)

    knows = alt_test(rows, said(truth), epsilon=0.1)
    assert (knows["passes"], knows["omega"], knows["n_people"]) == (True, 1.0, 4)
    assert knows["advantage"] > 0.8

    coin = "".join(np.random.default_rng(2).choice(["a", "b"], 120))
    fails = alt_test(rows, said(coin), epsilon=0.1)
    assert (fails["passes"], fails["n_beaten"]) == (False, 0)


def test_the_alt_test_by_hand():
    """Three people, thirty comparisons: 1 and 2 always say a; 3 says b on ten of them.

    The judge always says a. Against person 1 and 2 (and 3) it is never worse: W_judge = 1. Person 1
    is as good as the judge everywhere; person 3 is worse on ten.
    """
    rows = labeled("a" * 30, people=["a" * 30, "a" * 30, "a" * 20 + "b" * 10])
    found = alt_test(rows, said("a" * 30), epsilon=0.1)
    people = {row["rater"]: row for row in found["people"]}
    assert (people["person-0"]["judge"], people["person-0"]["person"]) == (1.0, 1.0)
    assert (people["person-2"]["judge"], people["person-2"]["person"]) == (
        1.0,
        pytest.approx(2 / 3),
    )
    assert found["omega"] == 1.0
    assert found["passes"] is True


def test_the_alt_test_wants_three_people_with_thirty_comparisons_each():
    truth, people = crowd(29, 3, agree=0.9, seed=4)
    found = alt_test(labeled(truth, people=people), said(truth))
    assert found["passes"] is None
    assert "thirty" in found["why"]
    assert len(found["people"]) == 3


def test_a_judge_without_any_verdict_gets_reasons_not_numbers():
    rows = labeled("ab", people=["ab"])
    found = judge_figures(rows, said(""), "Qwen/Qwen2.5-7B")
    assert found["n"] == 0
    assert found["alignment"]["decided"]["why"]
    assert found["calibration"]["before"]["ece"]["why"]
    assert found["alt_test"]["why"]


@pytest.mark.slow
def test_intervals_hold_the_truth_of_a_synthetic_judge_as_often_as_they_say():
    """The bench in small; see tests/bench/laboratory.py for 500 draws."""
    got = coverage(n_draws=60, n_prompts=120, per_prompt=2, population=300_000, seed=11)
    assert len(got["rows"]) == 17
    rows = {row["what"]: (row["held"], row["draws"]) for row in got["rows"]}
    assert [what for what, held in rows.items() if too_few(*held, len(rows))] == []
    alarms = {row["what"]: (row["raised"], row["draws"]) for row in got["alarms"]}
    assert [what for what, seen in alarms.items() if too_many(*seen, len(alarms))] == []
    for row in got["rows"]:
        if not row["what"].startswith("ECE"):  # an absolute value: biased, and its interval knows
            assert abs(row["mean"] - row["truth"]) < 0.5 * row["width"], row
