"""From which confidence on a judge may decide alone: numbers in, numbers out, in plain Python.

A judge's confidence in a comparison is c = max(p, 1 − p). A random sample of comparisons was
labeled by people; an **error** is a comparison on which the judge does not say what they say.
Wanted is a threshold λ such that, with probability 1 − δ over the sample, at most a share α of
**all** comparisons with c ≥ λ are errors.

The grid of thresholds is fixed before anybody looks at a label, and so is the order in which they
are tried: from the surest downwards, each by an exact bound, until the first that fails (fixed
sequence testing, Bauer 1991; for thresholds Angelopoulos et al. 2021, arXiv:2110.01052, and for
judges Jung et al. 2024, arXiv:2407.18370). If the first fails, the judge decides nothing.

Drawn at random is the comparison, without replacement, so that the number of errors among the
sampled comparisons with c ≥ λ is hypergeometric, whatever prompts they share. The binomial bound
used here is wider than a hypergeometric one, hence safe: a test holds it against every population
of some sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from labeling.shares import clopper_pearson

GRID = (0.9999, 0.9995, 0.999, 0.995, *(percent / 100 for percent in range(99, 49, -1)))
"""Thresholds on the judge's own word. The first four part those who say nearly always 0.99."""
LEAST = 30
"""Labeled comparisons that a threshold needs before it is tried at all."""
MOST_TIMES = 50
"""Beyond so many times the labels that there are, "how many more" is no plan."""


@dataclass(frozen=True)
class Step:
    """One threshold of a test."""

    threshold: float
    n: int  # labeled comparisons with this confidence or more
    errors: int
    bound: float  # of the share of errors, at the test's level
    state: str  # "few", "accepted", "failed", or "untried": it came after a failure


@dataclass(frozen=True)
class Test:
    """What became of one judge's thresholds."""

    steps: tuple[Step, ...]
    least: int  # labeled comparisons that a threshold needed to be tried

    @property
    def place(self) -> int | None:
        """Of the lowest threshold that was accepted, in the grid; None: the judge abstains."""
        accepted = [i for i, step in enumerate(self.steps) if step.state == "accepted"]
        return accepted[-1] if accepted else None

    @property
    def chosen(self) -> Step | None:
        return None if self.place is None else self.steps[self.place]


@lru_cache(maxsize=200_000)
def upper_bound(errors: int, n: int, delta: float) -> float:
    """The largest share of errors at which so few would still be seen with probability `delta`.

    R⁺ = BetaInv(1 − δ; e + 1, n − e), and 1 where everything was wrong, or nothing was labeled.

    Raises: ValueError if there are more errors than labels, or for a level outside (0, 0.5).
    Source: Clopper & Pearson 1934, one-sided; 8 errors of 100 at δ = 0.1 give .126698.
    """
    if not 0 < delta < 0.5:
        raise ValueError(f"{delta} is no level of a bound")
    if not 0 <= errors <= n:
        raise ValueError(f"{errors} errors of {n}")
    # Both ends of a two-sided interval leave δ outside each.
    return clopper_pearson(errors, n, 1 - 2 * delta)[1] if n else 1.0


def least_labels(alpha: float, delta: float) -> int:
    """Labels without a single error that a threshold needs: ⌈ln δ / ln(1 − α)⌉."""
    return math.ceil(math.log(delta) / math.log1p(-alpha) - 1e-9)


def level_of_test(delta: float, number: int) -> float:
    """The share of δ that the `number`-th test of a project may use: 6δ / (π² t²).

    Over any number of tests these sum to δ at most.
    """
    if number < 1:
        raise ValueError("tests are counted from 1")
    return 6 * delta / (math.pi * number) ** 2


def fixed_sequence(
    counts: Sequence[tuple[int, int]],
    alpha: float,
    delta: float,
    *,
    grid: Sequence[float] = GRID,
    starts: int = 1,
) -> Test:
    """Try the thresholds from the surest downwards, and stop at the first that fails.

    With several starts J the sequence is begun at J places, evenly spread over the thresholds that
    have labels enough, each at level δ / J: a judge that errs most where it is surest is then not
    lost at the first step (Learn-then-Test, arXiv:2110.01052, section 4). Which thresholds
    are tried depends on n alone, never on errors.

    Args:
        counts: for each threshold of the grid, (labeled, errors) among comparisons with this
            confidence or more; labeled never falls along the grid.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"{alpha} is no share of errors")
    if starts < 1:
        raise ValueError("a test has at least one start")
    level = delta / starts
    least = max(LEAST, least_labels(alpha, level))
    states = ["untried" if n >= least else "few" for n, _errors in counts]
    bounds = [upper_bound(errors, n, level) for n, errors in counts]
    for start in _starts([n for n, _errors in counts], least, starts):
        for i in range(start, len(counts)):
            if bounds[i] > alpha:
                # What another start has accepted stays accepted: each has a level of its own.
                if states[i] != "accepted":
                    states[i] = "failed"
                break
            states[i] = "accepted"
    steps = (
        Step(threshold, n, errors, bound, state)
        for threshold, (n, errors), bound, state in zip(grid, counts, bounds, states, strict=True)
    )
    return Test(tuple(steps), least)


def _starts(n: Sequence[int], least: int, starts: int) -> list[int]:
    """Where the sequences begin: evenly spread over the thresholds with labels enough."""
    enough = [i for i, labels in enumerate(n) if labels >= least]
    return sorted({enough[len(enough) * j // starts] for j in range(starts) if enough})


# Several judges -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Comparisons on which every judge has the same place in the grid."""

    places: tuple[int, ...]
    """For each judge the first threshold that it reaches; the grid's length if it reaches none."""
    n: int  # comparisons in all
    n_open: int  # of them those that people would still be asked about
    labeled: tuple[int, ...]  # for each judge, those that people labeled for its test
    errors: tuple[int, ...]  # for each judge, its errors among them


@dataclass(frozen=True)
class Stage:
    """One judge of a cascade, which sees what those before it left."""

    test: Test
    covered: tuple[int, ...]  # for each threshold, comparisons that the judge would decide
    n_open: int  # of those it decides, the ones that people need no longer be asked about

    @property
    def n_decided(self) -> int:
        return 0 if self.test.place is None else self.covered[self.test.place]


def cascade(
    cells: Sequence[Cell],
    n_judges: int,
    alpha: float,
    delta: float,
    *,
    grid: Sequence[float] = GRID,
    starts: int = 1,
) -> tuple[Stage, ...]:
    """Test judge after judge at δ / M, each on what the judges before it left.

    What is left depends on the labels by which the earlier thresholds were chosen, so each judge
    has labels of its own: the caller deals them out at random (`Cell.labeled`). Then a threshold
    is chosen for a set that its labels had no part in, and the δ / M add up.
    """
    stages, left = [], list(cells)
    for k in range(n_judges):
        labeled, errors, covered = ([0] * (len(grid) + 1) for _ in range(3))
        for cell in left:
            labeled[cell.places[k]] += cell.labeled[k]
            errors[cell.places[k]] += cell.errors[k]
            covered[cell.places[k]] += cell.n
        counts = list(zip(_summed(labeled), _summed(errors), strict=True))
        test = fixed_sequence(counts, alpha, delta / n_judges, grid=grid, starts=starts)
        last = -1 if test.place is None else test.place
        n_open = sum(cell.n_open for cell in left if cell.places[k] <= last)
        stages.append(Stage(test, tuple(_summed(covered)), n_open))
        left = [cell for cell in left if cell.places[k] > last]
    return tuple(stages)


def _summed(by_place: Sequence[int]) -> list[int]:
    """Sums along the grid, without what reaches no threshold."""
    total, sums = 0, []
    for n in by_place[:-1]:
        total += n
        sums.append(total)
    return sums


def place_of(confidence: float, grid: Sequence[float] = GRID) -> int:
    """The first threshold that a confidence reaches; the grid's length if it reaches none."""
    for place, threshold in enumerate(grid):
        if confidence >= threshold:
            return place
    return len(grid)


# What is still needed, and the running audit ------------------------------------------------------


def times_as_many(
    counts: Sequence[tuple[int, int]], alpha: float, delta: float, *, starts: int = 1
) -> float | None:
    """With how many times as many labels a test would accept something, if errors go on to come
    as they came; 1.0 if it does now, None where `MOST_TIMES` as many would not do.

    A plan, no promise: it goes by the errors that were seen, each rounded up.
    """
    level = delta / starts
    least = max(LEAST, least_labels(alpha, level))
    times = 1.0
    while times <= MOST_TIMES:
        n = [round(times * labels) for labels, _errors in counts]
        for start in _starts(n, least, starts):
            errors = min(n[start], math.ceil(times * counts[start][1] - 1e-9))
            if upper_bound(errors, n[start], level) <= alpha:
                return times
        times *= 1.03
    return None


def log_evidence(errors: int, n: int, alpha: float) -> float:
    """How strongly n labels speak against "at most a share α are errors", as a logarithm.

    The mean over rates p, uniform between α and 1, of the likelihood ratio of p to α:
        M = 1/(1 − α) · ∫ p^e (1 − p)^(n − e) dp / (α^e (1 − α)^(n − e)).
    If the share is α or less this is a nonnegative supermartingale that starts at 1, so it ever
    reaches 1/δ with probability δ at most, however often one looks.

    Source: Ville 1939; mixtures of likelihood ratios, Robbins 1970; Howard et al. 2021,
    arXiv:1810.08240. The integral is B(e + 1, n − e + 1) · P(e or less of n + 1 with chance α).
    """
    if not 0 <= errors <= n:
        raise ValueError(f"{errors} errors of {n}")
    if not n:
        return 0.0
    log_alpha, log_rest = math.log(alpha), math.log1p(-alpha)
    log_beta = math.lgamma(errors + 1) + math.lgamma(n - errors + 1) - math.lgamma(n + 2)
    log_likelihood = errors * log_alpha + (n - errors) * log_rest
    return log_beta + _log_chance_of_less(errors, n + 1, alpha) - log_rest - log_likelihood


def contradicted(errors: int, n: int, alpha: float, delta: float) -> bool:
    """Whether labels given since say, at level δ, that more than a share α are errors."""
    return log_evidence(errors, n, alpha) >= -math.log(delta)


def _log_chance_of_less(k: int, n: int, p: float) -> float:
    """log P(k or less of n, each with chance p), for k < n."""
    log_odds = math.log(p) - math.log1p(-p)
    log_term = n * math.log1p(-p)
    terms = [log_term]
    for i in range(k):
        log_term += math.log(n - i) - math.log(i + 1) + log_odds
        terms.append(log_term)
    highest = max(terms)
    return highest + math.log(math.fsum(math.exp(term - highest) for term in terms))
