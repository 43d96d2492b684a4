"""The bound, the order of the tests, and the evidence against a certificate."""

import math

import numpy as np
import pytest
from scipy.stats import beta, hypergeom

from judges.guarantee import (
    GRID,
    Cell,
    cascade,
    contradicted,
    fixed_sequence,
    least_labels,
    level_of_test,
    log_evidence,
    place_of,
    times_as_many,
    upper_bound,
)

THREE = (0.9, 0.8, 0.7)


def test_the_bound_of_8_errors_among_100():
    assert upper_bound(8, 100, 0.1) == pytest.approx(0.126698, abs=1e-6)


@pytest.mark.parametrize("delta", [0.1, 0.05, 0.1 / 3, 6 * 0.1 / (math.pi * 7) ** 2, 1e-6])
def test_the_bound_is_the_quantile_of_the_beta_distribution(delta):
    for n in (1, 2, 30, 100, 1_000, 20_000):
        for errors in {0, min(1, n - 1), n // 20, n // 2, n - 1}:
            expected = beta.ppf(1 - delta, errors + 1, n - errors)
            assert upper_bound(errors, n, delta) == pytest.approx(expected, rel=1e-7)


def test_the_bound_is_one_where_everything_was_wrong_or_nothing_is_known():
    assert upper_bound(5, 5, 0.1) == 1
    assert upper_bound(0, 0, 0.1) == 1


def test_the_bound_rises_with_errors_and_falls_with_labels_and_level():
    assert upper_bound(3, 100, 0.1) < upper_bound(4, 100, 0.1)
    assert upper_bound(3, 200, 0.1) < upper_bound(3, 100, 0.1)
    assert upper_bound(3, 100, 0.1) < upper_bound(3, 100, 0.05)


@pytest.mark.parametrize(("size", "n"), [(40, 15), (100, 60), (300, 30), (1_000, 100)])
def test_the_bound_holds_for_a_sample_without_replacement_of_every_population(size, n):
    """Exactly: the chance that the bound lies below the population's own share of errors."""
    for wrong in range(size + 1):
        errors = np.arange(max(0, n - (size - wrong)), min(n, wrong) + 1)
        below = [upper_bound(int(e), n, 0.1) < wrong / size for e in errors]
        missed = hypergeom.pmf(errors, size, wrong, n)[below].sum()
        assert missed <= 0.1 + 1e-12


def test_a_bound_of_nonsense_is_refused():
    with pytest.raises(ValueError, match="3 errors of 2"):
        upper_bound(3, 2, 0.1)
    with pytest.raises(ValueError, match="no level"):
        upper_bound(1, 2, 0.5)


@pytest.mark.parametrize(
    ("alpha", "delta", "n"), [(0.1, 0.1, 22), (0.1, 0.05, 29), (0.05, 0.1, 45), (0.5, 0.25, 2)]
)
def test_labels_without_an_error_that_are_needed_at_least(alpha, delta, n):
    assert least_labels(alpha, delta) == n
    assert upper_bound(0, n, delta) <= alpha + 1e-12
    assert upper_bound(0, n - 1, delta) > alpha


def test_what_many_tests_may_use_sums_to_delta():
    used = sum(level_of_test(0.1, t) for t in range(1, 100_001))
    assert used == pytest.approx(0.1, rel=1e-4)
    assert used < 0.1


def test_the_grid_falls_from_nearly_certain_to_one_half():
    assert list(GRID) == sorted(GRID, reverse=True)
    assert GRID[-1] == 0.5
    assert [place_of(c, THREE) for c in (0.95, 0.9, 0.89, 0.7, 0.69, 0.0)] == [0, 0, 1, 2, 3, 3]


def test_thresholds_are_accepted_down_to_the_first_that_fails():
    test = fixed_sequence([(100, 1), (200, 30), (400, 5)], 0.1, 0.1, grid=THREE)

    assert [step.state for step in test.steps] == ["accepted", "failed", "untried"]
    assert test.chosen.threshold == 0.9


def test_everything_is_left_to_people_when_the_first_fails():
    test = fixed_sequence([(100, 30), (5_000, 50), (9_000, 90)], 0.1, 0.1, grid=THREE)

    assert [step.state for step in test.steps] == ["failed", "untried", "untried"]
    assert test.chosen is None


def test_a_threshold_with_too_few_labels_is_passed_over():
    test = fixed_sequence([(29, 0), (31, 0), (60, 2)], 0.1, 0.1, grid=THREE)

    assert [step.state for step in test.steps] == ["few", "accepted", "accepted"]
    assert test.least == 30
    assert fixed_sequence([(44, 0)], 0.05, 0.1, grid=(0.9,)).chosen is None
    assert fixed_sequence([(45, 0)], 0.05, 0.1, grid=(0.9,)).chosen is not None


def test_nothing_labeled_abstains():
    assert fixed_sequence([(0, 0)] * 3, 0.1, 0.1, grid=THREE, starts=3).chosen is None


def test_a_second_start_saves_a_judge_that_errs_most_where_it_is_surest():
    counts = [(50, 15), (400, 18), (1_000, 40)]

    assert fixed_sequence(counts, 0.1, 0.1, grid=THREE).chosen is None
    test = fixed_sequence(counts, 0.1, 0.1, grid=THREE, starts=3)
    assert [step.state for step in test.steps] == ["failed", "accepted", "accepted"]
    # Each start pays for the others.
    assert test.steps[2].bound == upper_bound(40, 1_000, 0.1 / 3)


def test_where_a_test_starts_depends_on_no_error():
    rng = np.random.default_rng(5)
    n = np.cumsum(rng.integers(0, 40, len(GRID)))
    for starts in (1, 2, 5):
        tried = [
            {
                i
                for i, step in enumerate(fixed_sequence(counts, 0.2, 0.1, starts=starts).steps)
                if step.state == "few"
            }
            for counts in (
                [(int(k), 0) for k in n],
                [(int(k), int(k)) for k in n],
                [(int(k), int(k) // 3) for k in n],
            )
        ]
        assert tried[0] == tried[1] == tried[2]


def test_a_cascade_of_one_is_the_plain_test():
    cells = [
        Cell((0,), 1_000, 900, (100,), (1,)),
        Cell((1,), 500, 450, (100,), (2,)),
        Cell((3,), 2_000, 1_800, (200,), (90,)),
    ]
    [stage] = cascade(cells, 1, 0.1, 0.1, grid=THREE)

    counts = [(100, 1), (200, 3), (200, 3)]
    assert stage.test == fixed_sequence(counts, 0.1, 0.1, grid=THREE)
    assert stage.covered == (1_000, 1_500, 1_500)
    assert (stage.n_decided, stage.n_open) == (1_500, 1_350)


def test_the_second_judge_sees_what_the_first_left_and_pays_its_share():
    cells = [
        # The first is sure; the second would be wrong there.
        Cell((0, 0), 1_000, 1_000, (100, 100), (0, 100)),
        Cell((3, 0), 600, 600, (60, 60), (30, 1)),
        Cell((3, 3), 400, 400, (40, 40), (20, 20)),
    ]
    first, second = cascade(cells, 2, 0.1, 0.1, grid=THREE)

    assert first.test.chosen.threshold == 0.7
    assert (first.test.chosen.n, first.test.chosen.errors) == (100, 0)
    assert (second.test.chosen.n, second.test.chosen.errors) == (60, 1)
    assert second.test.chosen.bound == upper_bound(1, 60, 0.05)
    assert (first.n_decided, second.n_decided) == (1_000, 600)


def test_a_judge_after_one_that_abstains_sees_everything():
    cells = [Cell((0, 0), 100, 100, (50, 50), (50, 0))]
    first, second = cascade(cells, 2, 0.1, 0.1, grid=THREE)

    assert (first.n_decided, second.n_decided) == (0, 100)


def test_a_plan_goes_by_the_errors_that_were_seen():
    assert times_as_many([(10, 0)], 0.1, 0.1) == pytest.approx(3, rel=0.03)
    assert times_as_many([(100, 2)], 0.1, 0.1) == 1
    times = times_as_many([(40, 3)], 0.1, 0.1)
    assert fixed_sequence([(round(40 * times), math.ceil(3 * times))], 0.1, 0.1, grid=(0.9,)).chosen
    assert 2 < times < 20
    assert times_as_many([(100, 10)], 0.1, 0.1) is None
    assert times_as_many([(0, 0)], 0.1, 0.1) is None


def test_a_plan_minds_that_the_first_threshold_must_pass():
    # More labels let the first threshold be tried, on which the judge always errs.
    assert times_as_many([(10, 10), (25, 20), (31, 29)], 0.1, 0.1) is None


def test_evidence_of_one_label_by_hand():
    # One error: 1/(1 − α) ∫ p/α dp = (1 + α) / (2α); none: ∫ (1 − p)/(1 − α)² dp = 1/2.
    assert math.exp(log_evidence(1, 1, 0.1)) == pytest.approx(1.1 / 0.2)
    assert math.exp(log_evidence(0, 1, 0.1)) == pytest.approx(0.5)
    assert log_evidence(0, 0, 0.1) == 0


def test_evidence_is_a_martingale_at_the_bound_itself():
    alpha = 0.2
    for n, errors in ((0, 0), (3, 1), (50, 4), (50, 20)):
        now = math.exp(log_evidence(errors, n, alpha))
        right, wrong = (math.exp(log_evidence(errors + x, n + 1, alpha)) for x in (0, 1))
        assert alpha * wrong + (1 - alpha) * right == pytest.approx(now)


def test_a_judge_that_keeps_its_word_is_seldom_contradicted_however_often_one_looks():
    rng = np.random.default_rng(11)
    wrong = np.cumsum(rng.random((400, 300)) < 0.1, axis=1)
    rejected = [
        any(contradicted(int(row[n]), n + 1, 0.1, 0.1) for n in range(300)) for row in wrong
    ]
    assert sum(rejected) / len(rejected) < 0.1


def test_a_judge_that_got_worse_is_contradicted():
    assert contradicted(30, 100, 0.1, 0.1)
    assert not contradicted(10, 100, 0.1, 0.1)
