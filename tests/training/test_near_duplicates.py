import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.near_duplicates import (
    MISSED,
    N_HASHES,
    Sketches,
    clusters,
    jaccard,
    rows_of_a_band,
    shingles,
)

LONG = "Write a short letter to the council about the noise of the new road near the old school"


def test_the_likeness_of_two_prompts_worked_by_hand():
    one, other = shingles("Tell me about Rome."), shingles("tell me, about rome TODAY")

    assert sorted(one) == ["me about rome", "tell me about"]
    assert jaccard(one, other) == pytest.approx(2 / 3)
    assert shingles("Why?") == {"why"}
    assert len(shingles("你好吗朋友")) == 3


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_miss_a_pair_at_the_threshold_once_in_a_thousand(threshold):
    rows = rows_of_a_band(threshold)

    assert (1 - threshold**rows) ** (N_HASHES // rows) <= MISSED


def test_prompts_that_say_nearly_the_same_are_found_and_verified():
    texts = {"a": LONG, "b": f"{LONG}, please", "c": "Explain how a heat pump works in winter"}
    texts |= {
        f"other {i}": f"Question {i}: what is {i} times {i + 1} plus {i * 7}?" for i in range(50)
    }
    sketches = Sketches(0.8)
    for key, text in texts.items():
        sketches.add(key, text)

    pairs = list(sketches.alike(lambda keys: {key: texts[key] for key in keys}))

    assert pairs == [("b", "a", pytest.approx(16 / 17))]
    assert list(sketches.alike_to({"a"}, lambda keys: {key: texts[key] for key in keys})) == pairs
    assert list(Sketches(0.8).alike(lambda keys: {})) == []


def test_many_of_one_template_are_held_together():
    texts = {f"{i:03d}": f"{LONG}, number {i}" for i in range(200)}
    sketches = Sketches(0.7)
    for key, text in texts.items():
        sketches.add(key, text)

    pairs = list(sketches.alike(lambda keys: {key: texts[key] for key in keys}))

    assert len(pairs) == 199  # no more than it takes
    assert set(clusters((one, other) for one, other, _likeness in pairs).values()) == {"000"}


KEYS = st.sampled_from("abcdefghijklmnopqrst")


@given(st.lists(st.tuples(KEYS, KEYS).filter(lambda pair: pair[0] != pair[1]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_what_hangs_together_has_one_first_member(pairs):
    first = clusters(pairs)

    assert first.keys() == {key for pair in pairs for key in pair}
    assert all(first[one] == first[other] for one, other in pairs)
    assert all(first[key] <= key and first[first[key]] == first[key] for key in first)
