"""Whether a verdict on memory can fail, on lives whose growth is known."""

import random

import pytest

from tests.faults.weighing import common_rise, trend


def life(
    seconds: int,
    *,
    at_first: float = 120.0,
    an_hour: float = 0.0,
    noise: float = 0.3,
    seed: int = 1,
) -> list[tuple[float, float]]:
    """A process that grows by 40 MB in three minutes, as it meets its pages, then steadily."""
    chance = random.Random(seed)
    return [
        (
            float(at),
            at_first + min(at, 180) * 40 / 180 + at * an_hour / 3600 + chance.gauss(0, noise),
        )
        for at in range(0, seconds, 3)
    ]


def test_a_process_that_stays_as_it_is_after_its_first_minutes_is_flat():
    found = trend("web", [life(600)])

    assert found.verdict == "flat"
    assert found.longest == 597
    assert found.rise == pytest.approx(0, abs=0.5)


def test_a_leak_of_thirty_megabytes_an_hour_is_found():
    found = trend("web", [life(600, an_hour=30)])

    assert found.verdict == "grows"
    assert found.rise == pytest.approx(5, abs=0.5)
    assert found.low < 5 < found.high


def test_lives_that_a_kill_ended_count_together():
    """Each starts elsewhere, which says nothing of a leak; what each adds does."""
    sizes = [120.0, 90.0, 150.0]
    flat = [life(420, at_first=size, seed=n) for n, size in enumerate(sizes)]
    assert trend("web", flat).verdict == "flat"

    leaking = [life(420, at_first=s, an_hour=60, seed=n) for n, s in enumerate(sizes)]
    found = trend("web", leaking)
    assert (found.n_lives, found.verdict) == (3, "grows")
    assert found.rise == pytest.approx(10, abs=1.5)


def test_what_was_not_shown_is_not_called_flat():
    assert trend("web", [life(600, noise=30.0)]).verdict == "open"
    short = trend("web", [life(290), life(90)])
    assert (short.verdict, short.rise) == ("too short", None)


def test_the_slope_of_one_line_by_hand():
    rise, low, high = common_rise([[(0.0, 1.0), (60.0, 2.0), (120.0, 3.0)]])
    assert (rise, low, high) == pytest.approx((10.0, 10.0, 10.0))
