"""Agreement over time, and disputed topics: planted changes are found, and none is invented."""

from dataclasses import replace

import numpy as np

from labeling.agreement_time import agreement_over_time, change_points
from labeling.disputes import disputed_topics
from tests.labeling.test_agreement import votes

DAY = 86_400


def history(n: int, agrees, *, span: float = 30 * DAY):
    """Two people on each of n comparisons, one after the other; agrees(i): do they?"""
    rows = []
    for i in range(n):
        rows += [(i, "ann", "a"), (i, "bob", "a" if agrees(i) else "b")]
    return replace(votes(*rows), at=np.linspace(0, span, 2 * n), comparisons=np.arange(n))


def test_a_change_is_found_with_its_day_and_what_was_before_and_after():
    rng = np.random.default_rng(1)
    found = agreement_over_time(history(1000, lambda i: rng.random() < (0.9 if i < 500 else 0.6)))

    (change,) = found["changes"]
    assert abs(change["at"] - 15 * DAY) < 2 * DAY
    assert abs(change["before"] - 0.9) < 0.05
    assert abs(change["after"] - 0.6) < 0.05
    assert sum(row["n"] for row in found["bins"]) == 1000
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["bins"])


def test_where_nothing_changes_changes_are_rare():
    rng = np.random.default_rng(2)
    pairs = np.full(30, 50.0)

    n_false = sum(bool(change_points(rng.binomial(50, 0.7, 30) * 1.0, pairs)) for _ in range(100))

    assert n_false <= 5


def test_a_change_that_all_share_is_cut_where_it_is():
    agreeing = np.array([9.0] * 8 + [3.0] * 8 + [9.0] * 8) * 10

    assert change_points(agreeing, np.full(24, 100.0)) == [8, 16]


def test_votes_imported_in_one_go_and_few_votes_are_refused_with_the_reason():
    at_once = agreement_over_time(history(400, lambda i: True, span=60))
    few = agreement_over_time(history(40, lambda i: True))

    assert at_once["bins"] == few["bins"] == []
    assert "imported" in at_once["why"]
    assert "Too few" in few["why"]


def test_the_topic_on_which_people_differ_stands_first_and_out():
    table = history(300, lambda i: i % 3 > 0 or i % 2)
    topics = {name: range(k, 300, 3) for k, name in enumerate(("law", "food", "sport"))}

    found = disputed_topics(table, topics | {"rare": [1, 2]}, "topic")

    first = found["rows"][0]
    assert first["topic"] == "law"
    assert (first["value"], first["n"], first["stands_out"]) == (0.5, 100, True)
    assert found["n_topics"] == 3
    assert first["comparison"] % 6 == 0  # one of those that differ


def test_without_topics_the_prompts_with_the_most_evidence_stand_first():
    rows = [(i, rater, "a") for i in range(6) for rater in ("ann", "bob")]
    rows += [(i, "bob" if i else "cy", "b") for i in range(6, 7) for _ in range(1)]
    rows += [(6, "ann", "a")]
    for place, choice in enumerate("ababab"):
        rows.append((7, f"rater {place}", choice))
    table = replace(votes(*rows), comparisons=np.arange(8))

    found = disputed_topics(table, {})

    assert found["by"] == "prompt"
    assert [row["comparison"] for row in found["rows"]] == [7, 6]
    assert disputed_topics(history(5, lambda i: True), {})["rows"] == []
