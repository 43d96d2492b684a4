"""The exact interval of a share and the test of one half: worked values, properties, and the
library that they must equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from labeling.shares import chance_of_split, clopper_pearson


def test_42_of_50():
    assert clopper_pearson(42, 50) == pytest.approx((0.708874, 0.928299), abs=1e-6)


def test_none_and_all_of_them_reach_the_end_exactly():
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert clopper_pearson(1, 1) == (pytest.approx(0.025), 1.0)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_it_is_scipys_interval_and_mirrors(counts):
    k, n = counts
    low, high = clopper_pearson(k, n)
    expected = binomtest(k, n).proportion_ci(0.95, method="exact")

    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-8, abs=1e-12)
    assert clopper_pearson(n - k, n) == pytest.approx((1 - high, 1 - low), rel=1e-8, abs=1e-12)


def test_a_million_trials_take_milliseconds_and_stay_right():
    expected = binomtest(600_000, 1_000_000).proportion_ci(0.95, method="exact")

    assert clopper_pearson(600_000, 1_000_000) == pytest.approx((expected.low, expected.high))


def test_there_is_no_interval_of_nothing():
    with pytest.raises(ValueError, match="no interval for 0 of 0"):
        clopper_pearson(0, 0)


def test_8_of_10_and_7_of_7_fall_like_coins():
    assert chance_of_split(8, 10) == pytest.approx(0.109375)
    assert chance_of_split(7, 7) == pytest.approx(0.015625)
    assert chance_of_split(5, 10) == chance_of_split(0, 0) == 1.0
    with pytest.raises(ValueError, match="3 of 2"):
        chance_of_split(3, 2)


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_chance_of_a_split_is_scipys_binomial_test(counts):
    k, n = counts

    assert chance_of_split(k, n) == pytest.approx(binomtest(k, n).pvalue, rel=1e-7, abs=1e-300)
    assert chance_of_split(n - k, n) == chance_of_split(k, n)
