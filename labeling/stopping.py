"""When may one stop asking? An interval for a win rate that holds at every look, not at one.

Who looks at an ordinary 95 % interval every day and stops when it leaves ½ out will be wrong far
more often than once in twenty. A confidence sequence holds at all times together: the chance that
it is ever wrong is at most 5 %, however often and whenever one looks.

It is a bet: for each possible win rate m somebody begins with 1 and bets, before each answer, that
the win rate is not m. If it is m, no way of betting makes 20 out of 1 with a probability above 5 %;
so whoever gets there has shown that it is not m.
"""

import math

import numpy as np
from django.utils.translation import gettext_noop

from labeling.intervals import Figure, refused
from labeling.shares import CONFIDENCE

LEVEL = 1 - CONFIDENCE
MOST_STAKE = 0.5  # of what one has, at the worst answer
GRID = np.linspace(0, 1, 201)[1:-1]  # win rates that are tried


def log_capital(answers: np.ndarray, rate: float | np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Logarithm of what a bet against each win rate has become after each answer.

    Half of the capital bets that the win rate is higher, half that it is lower; the stake follows
    the variance of the answers before.

    Args:
        answers: (…, n) in [0, 1], in the order in which they came; each has the win rate as its
            mean, whatever came before.
        rate: broadcast against (…, 1).
    Returns: (…, n). It passes log(1 / level) at some time with probability `level` at most.
    Source: hedged capital process with predictable plug-in bets, Waudby-Smith & Ramdas 2023,
        "Estimating means of bounded random variables by betting", arXiv:2010.09686, theorem 3,
        eqs. 24 to 26.
    """
    n = answers.shape[-1]
    t = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(answers, axis=-1)) / (t + 1)
    variance = (0.25 + np.cumsum((answers - mean) ** 2, axis=-1)) / (t + 1)
    before = np.concatenate([np.full((*answers.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    stake = np.sqrt(2 * math.log(2 / level) / (before * t * np.log(t + 1)))
    rate = np.asarray(rate, dtype=float)
    up = np.log1p(np.minimum(stake, MOST_STAKE / rate) * (answers - rate))
    down = np.log1p(-np.minimum(stake, MOST_STAKE / (1 - rate)) * (answers - rate))
    return np.maximum(np.cumsum(up, axis=-1), np.cumsum(down, axis=-1)) - math.log(2)


def sequential_win_rate(answers: np.ndarray, level: float = LEVEL) -> Figure:
    """The win rate with an interval that holds at every look, and whether it is decided.

    Args:
        answers: (n,) one for each prompt, in the order in which they came.
    Returns: also "decided": "a", "b" or "", and "decided_at": after how many answers.
    """
    n = len(answers)
    if not n:
        return refused(gettext_noop("Nobody has compared these two yet."), n=0)
    at_half = np.flatnonzero(log_capital(answers, 0.5, level) >= math.log(1 / level))
    value = float(answers.mean())
    most = np.full(len(GRID), -np.inf)
    at_once = max(1, int(2e6 / n))
    for begin in range(0, len(GRID), at_once):
        some = slice(begin, begin + at_once)
        most[some] = log_capital(answers, GRID[some, None], level).max(axis=1)
    kept = np.flatnonzero(most < math.log(1 / level))
    if not len(kept):
        return refused(gettext_noop("The answers do not look as if they had one win rate."), n=n)
    # Outwards to the next rate that was tried, which is excluded, or to the end.
    low = GRID[kept[0] - 1] if kept[0] else 0.0
    high = GRID[kept[-1] + 1] if kept[-1] + 1 < len(GRID) else 1.0
    decided = "" if not len(at_half) else "a" if low >= 0.5 else "b" if high <= 0.5 else ""
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "n": n,
        "decided": decided,
        "decided_at": int(at_half[0]) + 1 if decided else None,
    }
