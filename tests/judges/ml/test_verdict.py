"""Log-probabilities of both orders to one verdict, against the golden vector."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.ml.verdict import answer_mass, prob_a_preferred, read_both_orders


def logps(z: float, mass: float = 1.0) -> tuple[float, float]:
    """(first, second) with the logit z for "first" and the given answer mass."""
    first = 1 / (1 + math.exp(-z))
    return math.log(mass * first), math.log(mass * (1 - first))


def test_the_soft_label_of_the_golden_vector():
    # z for A: 1.7 with A first; 0.3 with B first, where "second" speaks for A.
    reading = read_both_orders(logps(1.7), logps(-0.3))

    assert reading.prob_a_ab == pytest.approx(0.845535, abs=5e-7)
    assert reading.prob_a_ba == pytest.approx(0.574443, abs=5e-7)
    assert reading.prob_a == pytest.approx(0.709989, abs=5e-7)
    assert 1 / (1 + math.exp(-reading.mean_logit)) == pytest.approx(0.731059, abs=5e-7)
    assert reading.position_bias == pytest.approx(0.7, abs=1e-9)
    assert reading.consistent


@pytest.mark.parametrize(("mass", "parsed"), [(0.9, True), (0.51, True), (0.49, False)])
def test_too_little_answer_mass_in_either_order_is_unparsed(mass, parsed):
    assert read_both_orders(logps(1.0, mass), logps(-1.0)).parsed is parsed
    assert read_both_orders(logps(1.0), logps(-1.0, mass)).parsed is parsed
    assert answer_mass(logps(1.0, mass)) == pytest.approx(mass)


@settings(deadline=None)  # a busy machine is no failure
@given(z=st.floats(-30, 30), mass=st.floats(0.01, 1))
def test_a_judge_that_follows_the_place_alone_comes_out_at_one_half(z, mass):
    logp = logps(z, mass)
    # Log of (1 - first) underflows to a number above 0 nowhere; both orders answer alike.
    reading = read_both_orders(logp, logp)

    assert reading.prob_a == pytest.approx(0.5, abs=1e-12)
    assert reading.mean_logit == 0
    assert not reading.consistent


@settings(deadline=None)  # a busy machine is no failure
@given(z_ab=st.floats(-20, 20), z_ba=st.floats(-20, 20))
def test_exchanging_the_names_of_the_responses_turns_the_verdict_round(z_ab, z_ba):
    one = read_both_orders(logps(z_ab), logps(z_ba))
    other = read_both_orders(logps(z_ba), logps(z_ab))

    assert one.prob_a == pytest.approx(1 - other.prob_a, abs=1e-9)
    assert one.position_bias == pytest.approx(other.position_bias, abs=1e-6)


@pytest.mark.parametrize("wrong", [(0.3, -1.0), (float("nan"), -1.0)])
def test_what_is_no_log_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="expected log-probabilities"):
        prob_a_preferred(wrong, (-0.1, -3.0))


def test_impossible_answers_name_neither_side():
    nothing = (float("-inf"), float("-inf"))

    assert read_both_orders(nothing, nothing).prob_a == 0.5
    assert not read_both_orders(nothing, nothing).parsed
