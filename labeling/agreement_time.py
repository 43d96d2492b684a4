"""Whether people agree now as they did before: agreement over time, and where it changed.

Numbers in, numbers out; figures and refusals as in `labeling/agreement.py`.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop

from labeling.agreement import Votes
from labeling.shares import wilson

MOST_BINS = 40
VOTES_IN_BIN = 25
FEWEST_BINS = 6
SHORTEST = 3600  # seconds; a span below which times say nothing
SHORTEST_SEGMENT = 2  # bins
PENALTY = 4.0
"""Times log(bins) for each change. Of 1,600 made-up series without a change 1.4 in 100 show one; of
series of 20 bins of about 50 votes that fall from 65 % to 50 % half-way, 86 in 100 show it."""


def agreement_over_time(votes: Votes) -> dict[str, Any]:
    """Each vote beside the earlier votes of others on its comparison, in bins of equally many.

    Returns: "bins", each with "start", "end" (seconds since 1970), "value", "low", "high", "n"
        votes, "n_pairs"; "changes", each with "at", "before", "after"; without bins "why".
    """
    if votes.at is None or not len(votes):
        return _refused(gettext_noop("No vote has a time."))
    order = np.lexsort((votes.at, votes.item))
    item, choice, at = votes.item[order], votes.choice[order], votes.at[order]
    earlier = _rank_within(item)
    same = _rank_within(item * 8 + choice)
    kept = earlier > 0
    by_time = np.argsort(at[kept], kind="stable")
    at, earlier, same = at[kept][by_time], earlier[kept][by_time], same[kept][by_time]
    n_bins = min(MOST_BINS, len(at) // VOTES_IN_BIN)
    if n_bins < FEWEST_BINS:
        return _refused(
            gettext_noop(
                "Too few comparisons have votes of two people to see a change over time: "
                "150 votes that meet an earlier one are needed."
            )
        )
    if at[-1] - at[0] < SHORTEST:
        return _refused(
            gettext_noop(
                "All votes bear times within one hour: they were imported without their own "
                "times, or there was no time for a change."
            )
        )
    edges = np.linspace(0, len(at), n_bins + 1).astype(int)
    agreeing = np.add.reduceat(same, edges[:-1]).astype(float)
    pairs = np.add.reduceat(earlier, edges[:-1]).astype(float)
    bins = []
    for i in range(n_bins):
        n, share = int(edges[i + 1] - edges[i]), agreeing[i] / pairs[i]
        low, high = wilson(share * n, n)  # a vote is one piece of evidence, however many it meets
        bins.append(
            {
                "start": float(at[edges[i]]),
                "end": float(at[edges[i + 1] - 1]),
                "value": float(share),
                "low": low,
                "high": high,
                "n": n,
                "n_pairs": int(pairs[i]),
            }
        )
    starts = [0, *change_points(agreeing, pairs), n_bins]
    levels = [float(agreeing[a:b].sum() / pairs[a:b].sum()) for a, b in pairwise(starts)]
    changes = [
        {"at": bins[place]["start"], "bin": place, "before": before, "after": after}
        for place, before, after in zip(starts[1:-1], levels[:-1], levels[1:], strict=True)
    ]
    return {"bins": bins, "changes": changes}


def _refused(why: str) -> dict[str, Any]:
    return {"bins": [], "changes": [], "why": why}


def _rank_within(keys: np.ndarray) -> np.ndarray:
    """(rows,) how many earlier rows have the same key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    begin = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - begin
    return ranks


def change_points(agreeing: np.ndarray, pairs: np.ndarray) -> list[int]:
    """The bins with which another level of agreement begins; the best of all partitions.

    Each segment has one share, its cost is −2 log-likelihood of the binomial over the dispersion
    φ, and each change costs `PENALTY` · log(bins). φ is how much more neighbouring bins differ than
    the binomial has it (pairs of votes share comparisons), at least 1; from neighbours, so that a
    change does not hide itself. Every partition is compared, by dynamic programming.

    Args: (bins,) each.
    Source: Jackson et al. 2005, IEEE Signal Processing Letters 12(2), eq. 5 (optimal partitioning);
        φ as in quasi-likelihood, Wedderburn 1974, from successive differences, von Neumann 1941.
    """
    n = len(pairs)
    share = agreeing / pairs
    middle = (agreeing[1:] + agreeing[:-1]) / (pairs[1:] + pairs[:-1])
    variance = middle * (1 - middle) * (1 / pairs[1:] + 1 / pairs[:-1])
    apart = np.divide((share[1:] - share[:-1]) ** 2, variance, where=variance > 0,
                      out=np.zeros(n - 1))  # fmt: skip
    dispersion = max(1.0, float(apart.mean()))
    upto_agreeing = np.append(0, np.cumsum(agreeing))
    upto_pairs = np.append(0, np.cumsum(pairs))
    penalty = PENALTY * math.log(n)
    best, last = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    best[0] = -penalty
    for end in range(SHORTEST_SEGMENT, n + 1):
        for begin in range(end - SHORTEST_SEGMENT + 1):
            hits = upto_agreeing[end] - upto_agreeing[begin]
            trials = upto_pairs[end] - upto_pairs[begin]
            cost = best[begin] + penalty + _deviance(hits, trials) / dispersion
            if cost < best[end]:
                best[end], last[end] = cost, begin
    found, end = [], n
    while last[end] > 0:
        end = int(last[end])
        found.append(end)
    return found[::-1]


def _deviance(hits: float, trials: float) -> float:
    """−2 log-likelihood of the share that fits best."""
    return -2 * sum(part * math.log(part / trials) for part in (hits, trials - hits) if part > 1e-9)
