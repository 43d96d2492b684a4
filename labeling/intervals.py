"""Shares and other statistics with their intervals, by prompt: numbers in, numbers out.

A figure is a dict with "value", "low", "high" and "n"; where its assumption does not hold, "value"
is None and "why" says so in a sentence.

- Intervals are 95 % percentile intervals of `RESAMPLES` bootstrap resamples of whole prompts, drawn
  from a fixed seed: the comparisons of one prompt (a ranked list of K answers makes K(K−1)/2 of
  them) are no independent evidence. Where each prompt has one comparison, that is the bootstrap by
  comparison.
- Where each prompt has one vote (the shares of a single rater) that bootstrap only imitates the
  binomial distribution, so the exact Clopper-Pearson interval stands.
- A bootstrap knows nothing of what it has not seen. Of fewer than `MIN_PROMPTS` prompts, or where
  no resample differs from another, there is no interval, and "why_no_interval" says so; a share of
  0 or 1 gets the exact interval that it has with one trial a prompt, which is never too narrow.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop

from labeling.shares import CONFIDENCE, clopper_pearson

RESAMPLES = 1_000
SEED = 20_260_131
MIN_PROMPTS = 10  # prompts below which nothing is resampled
FEW = 64  # prompts up to which the resamples are kept, for the thousands of pairs of raters
AT_ONCE = 100_000  # draws
MANY_PROMPTS, FEW_RESAMPLES = 20_000, 400  # of more prompts, so many: intervals are narrow there

Figure = dict[str, Any]


def share_of(
    prompt: np.ndarray,
    successes: np.ndarray,
    trials: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> Figure:
    """Successes among trials with an interval by prompt; all arrays are (rows,).

    Args:
        trials: how many each row holds; None: one.
    """
    trials = np.ones(len(successes)) if trials is None else trials
    parts = np.column_stack([successes, trials]).astype(float)
    per_prompt = sums_by_prompt(parts[trials > 0], prompt[trials > 0])
    n_successes, n = (int(total) for total in per_prompt.sum(axis=0))
    interval: Figure
    if len(per_prompt) == n:
        low, high = clopper_pearson(n_successes, n)
        interval = {"low": low, "high": high}
    elif n_successes in (0, n):
        low, high = clopper_pearson(len(per_prompt) if n_successes else 0, len(per_prompt))
        interval = {"low": low, "high": high}
    else:
        interval = bootstrap(
            per_prompt, None, lambda sums: divide(sums[:, 0], sums[:, 1]), resamples
        )
    return {"value": n_successes / n, **interval, "n": n}


def bootstrap(
    parts: np.ndarray,
    prompt: np.ndarray | None,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
) -> Figure:
    """Percentile interval of a statistic of sums, prompts resampled whole.

    Args:
        parts: (rows, columns) what each row adds to the sums.
        prompt: (rows,) prompt of each; None: every row is a prompt's.
        statistic: (resamples, columns) sums -> (resamples,), NaN where it is not defined.
    Returns: "low" and "high"; both None with "why_no_interval" where resampling says nothing.
    """
    per_prompt = parts if prompt is None else sums_by_prompt(parts, prompt)
    if len(per_prompt) < MIN_PROMPTS:
        return no_interval(f"Fewer than {MIN_PROMPTS} prompts: too few to resample.")
    values = statistic(resampled_sums(per_prompt, resamples_of(len(per_prompt), resamples)))
    values = values[~np.isnan(values)]
    if not len(values) or np.ptp(values) < 1e-12:
        return no_interval(
            gettext_noop("Every resample gives the same value, so none shows how far it varies.")
        )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


def resamples_of(n_prompts: int, asked: int) -> int:
    """How many resamples are drawn of so many prompts."""
    return min(asked, FEW_RESAMPLES) if n_prompts > MANY_PROMPTS else asked


def no_interval(why: str) -> Figure:
    return {"low": None, "high": None, "why_no_interval": why}


def sums_by_prompt(parts: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """(prompts, columns) sums of the rows (rows, columns) of each prompt."""
    codes = np.unique(prompt, return_inverse=True)[1]
    n = int(codes.max(initial=-1)) + 1
    sums = [np.bincount(codes, column, minlength=n) for column in parts.T]
    return np.column_stack(sums).astype(float)


def resampled_sums(per_prompt: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, columns) sums over as many prompts as there are, drawn with replacement.

    Prompts that look alike to the statistic are drawn together: n prompts with k distinct rows
    give multinomial counts over the k rows, the same bootstrap at the cost of k, not of n.
    """
    n = len(per_prompt)
    if n <= FEW:
        return _draws(n, resamples) @ per_prompt
    rng = np.random.default_rng(SEED)
    # Rows by one number each, which sorts in a tenth of the time: equal rows have equal ones, and
    # others collide by no chance.
    mark = (per_prompt * np.random.default_rng(SEED + 1).normal(size=per_prompt.shape[1])).sum(
        axis=1
    )
    _marks, where, size = np.unique(mark, return_index=True, return_counts=True)
    if 10 * len(where) < n:
        return rng.multinomial(n, size / n, size=resamples) @ per_prompt[where]
    # Mostly distinct: counting draws is faster than the multinomial; so many resamples at once that
    # the draws stay in the processor's reach.
    at_once = max(1, AT_ONCE // n)
    sums = np.empty((resamples, per_prompt.shape[1]))
    for begin in range(0, resamples, at_once):
        size = min(at_once, resamples - begin)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        draws = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[begin : begin + size] = draws.astype(float) @ per_prompt
    return sums


@lru_cache(maxsize=FEW)
def _draws(n: int, resamples: int) -> np.ndarray:
    """(resamples, n) how often each of n prompts was drawn."""
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws.astype(float)  # so that the product with sums is one of floats, which is fast


def divide(a: Any, b: Any) -> np.ndarray:
    """a / b, NaN where b is 0 (or only rounding away from it)."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=np.abs(b) > 1e-12)


def refused(why: str, n: int) -> Figure:
    return {"value": None, "low": None, "high": None, "n": n, "why": why}
