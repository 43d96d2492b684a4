"""Shares and their intervals, and the exact test of one half, in plain Python: pages show them
without a statistics library."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

CONFIDENCE = 0.95
Z = 1.959964  # two-sided 95 %


def clopper_pearson(
    n_successes: int, n: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The exact interval of `n_successes` in `n` trials.

    Raises: ValueError if there is nothing to count.
    Source: Clopper & Pearson 1934; 42 of 50 gives [.708874, .928299].
    """
    if n < 1 or not 0 <= n_successes <= n:
        raise ValueError(f"no interval for {n_successes} of {n}")
    tail = (1 - confidence) / 2
    return _lower(n_successes, n, tail), 1 - _lower(n - n_successes, n, tail)


def wilson(n_hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share; n > 0. Source: Wilson 1927, JASA 22, p. 209."""
    z2 = Z * Z
    middle = (n_hits + z2 / 2) / (n + z2)
    half = Z / (n + z2) * math.sqrt(max(0.0, n_hits * (n - n_hits) / n) + z2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def chance_of_split(n_successes: int, n: int) -> float:
    """p-value of `n_successes` in `n` trials if each were a fair coin: exact binomial, two-sided.

    The chance of a split as uneven as this one, either way. 1.0 where nothing was tried.

    Raises: ValueError if there are more successes than trials.
    Source: the sign test; 8 of 10 gives .109375, 7 of 7 gives .015625.
    """
    if not 0 <= n_successes <= n:
        raise ValueError(f"{n_successes} of {n} is no count")
    larger = max(n_successes, n - n_successes)
    if 2 * larger == n:
        return 1.0
    if larger == n:
        return 2 * 0.5**n
    log_chance, _slope = _log_chance(larger, n, 0.5)
    return min(1.0, 2 * math.exp(log_chance))


def _lower(k: int, n: int, tail: float) -> float:
    """The probability of success at which k or more of n happen with probability `tail`.

    Newton's method on the logarithm of that probability, which is concave in p: after the first
    step it comes nearer from below and never passes the root.
    """
    if k == 0:
        return 0.0
    if k == n:
        return tail ** (1 / n)
    p = k / n
    for _ in range(100):
        log_chance, slope = _log_chance(k, n, p)
        step = (math.log(tail) - log_chance) / slope
        nearer = p + step if p + step > 0 else p / 2
        if abs(nearer - p) <= 1e-14 * p:
            return nearer
        p = nearer
    return p


def _log_chance(k: int, n: int, p: float) -> tuple[float, float]:
    """log P(k or more of n) for 0 < k < n, and its slope in p.

    That probability is the regularised incomplete beta function I_p(a, b), a = k, b = n − k + 1.

    Source: its continued fraction, NIST DLMF 8.17.22, by the modified method of Lentz.
    """
    a, b = k, n - k + 1
    log_density = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + (a - 1) * math.log(p)
        + (b - 1) * math.log1p(-p)
    )
    tiny = 1e-300
    ratio_c, ratio_d = 1.0, 1 / (1 - (a + b) * p / (a + 1) or tiny)
    fraction, m, change = ratio_d, 0, 0.0
    while abs(change - 1) > 1e-15:
        m += 1
        for coefficient in (
            m * (b - m) * p / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * p / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            ratio_d = 1 / (1 + coefficient * ratio_d or tiny)
            ratio_c = 1 + coefficient / ratio_c or tiny
            change = ratio_c * ratio_d
            fraction *= change
    # I = p (1 − p) · density · fraction / a
    log_chance = log_density + math.log(p) + math.log1p(-p) + math.log(fraction / a)
    return log_chance, math.exp(log_density - log_chance)


@dataclass(frozen=True)
class Share:
    """Hits among n, with the interval of Wilson; without any n there is no value."""

    n_hits: float = 0
    n: int = 0

    @property
    def value(self) -> float | None:
        return self.n_hits / self.n if self.n else None

    @property
    def low(self) -> float | None:
        return wilson(self.n_hits, self.n)[0] if self.n else None

    @property
    def high(self) -> float | None:
        return wilson(self.n_hits, self.n)[1] if self.n else None

    def excludes(self, value: float) -> bool:
        return self.n > 0 and not self.low <= value <= self.high


NOTHING = Share()
"""Nothing was counted; never changed, so one serves all."""


def share_of(hits: Iterable[bool]) -> Share:
    found = list(hits)
    return Share(sum(found), len(found))
