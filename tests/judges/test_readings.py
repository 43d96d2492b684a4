"""What the laboratory says of a judge's figures, and the advice that fits its mode."""

import pytest

from judges.readings import Reading, readings_of

NOTHING = {"value": None, "low": None, "high": None, "n": 0, "why": "nothing"}
NO_CEILING = {"without_ties": NOTHING}


def figure(value: float, half_width: float = 0.05) -> dict:
    return {"value": value, "low": value - half_width, "high": value + half_width, "n": 200}


def cell(mode: str, **figures) -> dict:
    before = {"ece": NOTHING}
    return {
        "mode": mode,
        "alignment": {"decided": figure(0.7)},
        "consistency": figure(0.9),
        "position": {"first_twice": 10, "second_twice": 9, "p_value": 0.9},
        "bias": figure(0.1),
        "calibration": {"before": before, "temperature": {}, "isotonic": {}},
        "length": NOTHING,
        "self": NOTHING,
        "unparsed": figure(0.0, 0.0),
        "mass": figure(0.9),
        "alt_test": {"passes": None, "why": "too few"},
    } | figures


def said_of(subject: str, mode: str, **figures) -> Reading:
    return next(
        reading
        for reading in readings_of(cell(mode, **figures), NO_CEILING)
        if reading.subject == subject
    )


LEANS = {"position": {"first_twice": 40, "second_twice": 4, "p_value": 1e-6}}


def test_a_judge_that_explains_is_not_told_to_explain():
    direct, explains, draws = (
        said_of("Leaning to a place", mode, **LEANS) for mode in ("direct", "rationale", "sampled")
    )
    assert {reading.level for reading in (direct, explains, draws)} == {"warn"}
    assert "A rationale first" in direct.what_next
    assert "mean of several rationales, or with an answer at once" in explains.what_next
    assert "Rating each response alone" in draws.what_next
    for reading in (explains, draws):
        assert "rationale first" not in reading.what_next.lower()


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("direct", "ask for a rationale"),
        ("rationale", "take the mean of several rationales"),
        ("sampled", "draw more rationales"),
    ],
)
def test_a_judge_that_wavers_is_told_what_its_mode_can_do(mode, advice):
    reading = said_of("Leaning to a place", mode, consistency=figure(0.6))
    assert "changes its mind often" in reading.said
    assert advice in reading.what_next


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("direct", "a rationale first"),
        ("rationale", "an answer at once"),
        ("sampled", "an answer at once"),
        ("score", "compare the two"),
        ("reward", "another reward model"),
        ("jury", "members one by one"),
    ],
)
def test_a_coin_is_told_what_its_mode_can_do(mode, advice):
    reading = said_of("Agreement with people", mode, alignment={"decided": figure(0.5)})
    assert reading.level == "bad"
    assert advice in reading.what_next


def test_a_judge_without_a_preamble_is_not_told_to_change_it():
    longer = {"length": figure(0.2) | {"judge": figure(0.8), "people": figure(0.6)}}
    assert "preamble" in said_of("Longer responses", "direct", **longer).what_next
    for mode in ("reward", "jury"):
        assert "preamble" not in said_of("Longer responses", mode, **longer).what_next
