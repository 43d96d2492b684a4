"""Agreement on scales that are more than names, and coefficients that chance troubles less.

Numbers in, numbers out, as in `labeling/agreement.py`; figures and their intervals are those of
`labeling/intervals.py`:

- graded answers ("A much better" … "equal" … "B much better"): ordinal alpha, which forgives a
  neighbouring step and not a leap;
- one-sided votes: Gwet's AC1 and Brennan-Prediger, which stay put where nearly all answers are the
  same, and a kappa whose chance knows that A and B are but names;
- orders of several responses: Kendall's W and tau.

A and B are the stored names of the responses, so nothing in here depends on what stood where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import evalica
import numpy as np
import pandas as pd
from django.utils.translation import gettext_noop

from labeling.agreement import (
    CHOICES,
    TIE,
    A,
    B,
    Votes,
    _n_paired_raters,
    _units,
    _why_no_agreement,
    _with_votes,
    prompt_of_counts,
    vote_counts,
)
from labeling.intervals import Figure, bootstrap, divide, refused

LEVELS = ("a3", "a2", "a1", "tie", "b1", "b2", "b3")
"""Graded answers in order: A much, clearly, slightly better, equal, B slightly … better."""
SIDES = ("a", "tie", "b")
"""The same of a project that asks for no strength."""
ONE_ANSWER = gettext_noop(
    "Everybody gave the same answer everywhere: there is no disagreement that chance could have "
    "made, so agreement beyond chance is not defined."
)


def scale_figures(votes: Votes, rankings: "Rankings | None" = None) -> dict[str, Any]:
    """The keys that these scales add to a report; people alone, as in `agreement_report`."""
    people = votes.where(~votes.is_judge[votes.rater])
    counts, prompt = vote_counts(people), prompt_of_counts(people)
    return {
        "ordinal_alpha": graded_alpha(people),
        "gwet_ac1": gwet_ac1(counts, prompt),
        "brennan_prediger": brennan_prediger(counts, prompt),
        "side_free_kappa": side_free_kappa(people.item, people.rater, people.choice, people.prompt),
        "rankings": ranking_figures(rankings or Rankings([], [], [])),
    }


# Graded answers -----------------------------------------------------------------------------------


def graded_alpha(votes: Votes) -> Figure:
    """Ordinal alpha of preferences as steps from "A much better" to "B much better".

    Where at least half of the votes for a side say how much better, the seven steps count, and
    votes for a side without a strength are left out; else the three steps A, equal, B. "Both are
    bad" and verdicts without an answer have no place on the scale.

    Returns: also "levels", the names of the steps, and "n_left_out", votes without a place on it.
    """
    sided = votes.choice <= B
    strength = np.zeros(len(votes), dtype=np.int64) if votes.strength is None else votes.strength
    graded = sided & (strength > 0)
    if 2 * graded.sum() >= max(1, sided.sum()):
        levels, kept = LEVELS, graded | (votes.choice == TIE)
        level = 3 + np.where(votes.choice == A, -strength, np.where(votes.choice == B, strength, 0))
    else:
        levels, kept = SIDES, votes.choice <= TIE
        level = np.array([0, 2, 1, 0, 0])[votes.choice]
    counts, prompt = _level_counts(votes.item[kept], level[kept], votes.prompt[kept], len(levels))
    figure = ordinal_alpha(counts, prompt)
    n_raters = _n_paired_raters(votes.where(kept)) if kept.any() else 0
    return figure | {
        "levels": list(levels),
        "n_raters": n_raters,
        "n_left_out": int((~kept).sum()),
    }


def _level_counts(
    item: np.ndarray, level: np.ndarray, prompt: np.ndarray, n_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """(items, levels) votes on each level, and the prompt of each of these items."""
    _, first, code = np.unique(item, return_index=True, return_inverse=True)
    counts = np.bincount(code * n_levels + level, minlength=len(first) * n_levels)
    return counts.reshape(len(first), n_levels), prompt[first]


def ordinal_alpha(counts: np.ndarray, prompt: np.ndarray | None = None) -> Figure:
    """Krippendorff's alpha for ordered categories: a step beside weighs less than a leap.

    Args:
        counts: (items, levels) votes, levels in their order; prompt: as in `krippendorff_alpha`.
    Returns: also "n_votes".
    Source: evalica.alpha(distance="ordinal"); Krippendorff 2018, ch. 12. The resamples by the same
        formula on sums, `_ordinal_alphas`.
    """
    counts, prompt = _with_votes(counts, prompt, counts.sum(axis=1) >= 2)
    if why := _why_no_agreement(counts):
        return refused(why, n=0)
    if np.count_nonzero(counts.sum(axis=0)) == 1:
        return refused(ONE_ANSWER, n=len(counts))
    result = evalica.alpha(pd.DataFrame(_units(counts)), distance="ordinal")
    return {
        "value": float(result.alpha),
        **bootstrap(_ordinal_parts(counts), prompt, _ordinal_alphas),
        "n": len(counts),
        "n_votes": int(counts.sum()),
    }


def _ordinal_parts(counts: np.ndarray) -> np.ndarray:
    """(items, pairs of levels + levels) coincidences of two different levels, and the votes."""
    low, high = np.triu_indices(counts.shape[1], k=1)
    coincidences = counts[:, low] * counts[:, high] / (counts.sum(axis=1, keepdims=True) - 1)
    return np.column_stack([coincidences, counts])


def _ordinal_alphas(sums: np.ndarray) -> np.ndarray:
    """(resamples,) ordinal alpha of sums of `_ordinal_parts`; NaN with one level only.

    Source: Krippendorff 2018, ch. 12: α = 1 − (n − 1) Σ o_ck δ² / Σ n_c n_k δ² over c < k, with
    δ_ck = n_c/2 + n_(c+1) + … + n_(k−1) + n_k/2.
    """
    n_levels = int((np.sqrt(8 * sums.shape[1] + 1) - 1) / 2)
    low, high = np.triu_indices(n_levels, k=1)
    coincidences, totals = sums[:, : len(low)], sums[:, len(low) :]
    upto = np.cumsum(totals, axis=1)
    middle = upto - totals / 2  # where the middle of each level lies among all votes
    apart = (middle[:, high] - middle[:, low]) ** 2
    expected = (totals[:, low] * totals[:, high] * apart).sum(axis=1)
    return 1 - (upto[:, -1] - 1) * divide((coincidences * apart).sum(axis=1), expected)


# Coefficients with another idea of chance ---------------------------------------------------------


def gwet_ac1(counts: np.ndarray, prompt: np.ndarray | None = None) -> Figure:
    """Gwet's AC1: agreement beyond chance that does not collapse where one answer is very common.

    Categories are those that occur. All items with a vote say how common an answer is, those with
    two or more how far raters agree.

    Returns: also "expected_agreement".
    Source: Gwet 2008, British Journal of Mathematical and Statistical Psychology 61, eqs. 5, 9:
        p_e = Σ π_k (1 − π_k) / (q − 1), π_k the mean over items of the share of k.
    """
    return _chance_corrected(counts, prompt, _ac1s)


def brennan_prediger(counts: np.ndarray, prompt: np.ndarray | None = None) -> Figure:
    """Agreement beyond that of raters who throw a die with a face for each answer that occurs.

    Source: Brennan & Prediger 1981, Educational and Psychological Measurement 41: p_e = 1/q.
    """
    return _chance_corrected(counts, prompt, _brennan_predigers)


def _chance_corrected(counts: np.ndarray, prompt: np.ndarray | None, statistic: Any) -> Figure:
    counts, prompt = _with_votes(counts, prompt, counts.sum(axis=1) >= 1)
    paired = counts.sum(axis=1) >= 2
    if why := _why_no_agreement(counts[paired]):
        return refused(why, n=0)
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] == 1:
        return refused(ONE_ANSWER, n=int(paired.sum()))
    votes = counts.sum(axis=1)
    agreeing = divide((counts * (counts - 1)).sum(axis=1), votes * (votes - 1))
    parts = np.column_stack([np.nan_to_num(agreeing), paired, counts / votes[:, None]])
    value = float(statistic(parts.sum(axis=0)[None])[0])
    observed = float(agreeing[paired].mean())
    return {
        "value": value,
        **bootstrap(parts, prompt, statistic),
        "n": int(paired.sum()),
        "expected_agreement": (observed - value) / (1 - value) if value < 1 else None,
    }


def _ac1s(sums: np.ndarray) -> np.ndarray:
    """(resamples,) AC1; sums: agreement, items with two votes, then a column for each answer."""
    shares = sums[:, 2:] / sums[:, 2:].sum(axis=1, keepdims=True)
    by_chance = (shares * (1 - shares)).sum(axis=1) / (shares.shape[1] - 1)
    return divide(divide(sums[:, 0], sums[:, 1]) - by_chance, 1 - by_chance)


def _brennan_predigers(sums: np.ndarray) -> np.ndarray:
    by_chance = 1 / (sums.shape[1] - 2)
    return (divide(sums[:, 0], sums[:, 1]) - by_chance) / (1 - by_chance)


def side_free_kappa(
    item: np.ndarray, rater: np.ndarray, choice: np.ndarray, prompt: np.ndarray | None = None
) -> Figure:
    """Kappa of pairs of votes by different raters, with a chance that is the same for A and B.

    Which response bears the name A is an accident, so chance takes both sides equally often and
    every other answer as often as it was given: the figure does not move if some comparisons'
    names are exchanged. Two votes of one rater on one item are no pair.

    Args: (votes,) each; choice as in `CHOICES`; prompt None: every item a prompt of its own.
    Returns: also "agreement" and "expected_agreement"; "n" items with such a pair, "n_pairs".
    Source: the kappa of the WMT evaluations, Bojar et al. 2016, W16-2301, §3.1:
        P(E) = P(tie)² + 2 ((1 − P(tie)) / 2)².
    """
    prompt = item if prompt is None else prompt
    k = len(CHOICES)
    counts, prompt_of = _level_counts(item, choice, prompt, k)
    agreeing, pairs = _pairs(counts)
    # Taken out again: pairs within one rater's repeated votes on one item.
    own = item.astype(np.int64) * (int(rater.max(initial=0)) + 1) + rater
    if len(np.unique(own)) < len(own):
        code = np.unique(item, return_inverse=True)[1]
        repeated, of_item = _level_counts(own, choice, code, k)
        agreeing_own, pairs_own = _pairs(repeated)
        agreeing = agreeing - np.bincount(of_item, agreeing_own, minlength=len(agreeing))
        pairs = pairs - np.bincount(of_item, pairs_own, minlength=len(pairs))
    if not pairs.sum():
        return refused(_why_no_agreement(counts[:0]), n=0)
    parts = np.column_stack([agreeing, pairs, counts])
    value = _side_free_kappas(parts.sum(axis=0)[None])[0]
    n = int((pairs > 0).sum())
    if np.isnan(value):
        return refused(ONE_ANSWER, n=n)
    observed = float(agreeing.sum() / pairs.sum())
    return {
        "value": float(value),
        **bootstrap(parts, prompt_of, _side_free_kappas),
        "n": n,
        "n_pairs": int(pairs.sum()),
        "agreement": observed,
        "expected_agreement": float(_side_free_chance(counts.sum(axis=0)[None])[0]),
    }


def _pairs(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(items,) pairs of votes that agree, and all pairs."""
    votes = counts.sum(axis=1)
    return (counts * (counts - 1)).sum(axis=1) / 2, votes * (votes - 1) / 2


def _side_free_chance(totals: np.ndarray) -> np.ndarray:
    shares = totals / totals.sum(axis=1, keepdims=True)
    side = (shares[:, A] + shares[:, B]) / 2
    return 2 * side**2 + (shares[:, TIE:] ** 2).sum(axis=1)


def _side_free_kappas(sums: np.ndarray) -> np.ndarray:
    by_chance = _side_free_chance(sums[:, 2:])
    return divide(divide(sums[:, 0], sums[:, 1]) - by_chance, 1 - by_chance)


# Orders of several responses ----------------------------------------------------------------------


@dataclass(frozen=True)
class Rankings:
    """Orders of response sets, one for each set and rater."""

    sets: Sequence[int]
    prompts: Sequence[int]
    orders: Sequence[Sequence[Sequence[int]]]
    """[[response, …], …]: best first; equals share a place."""


def ranking_figures(rankings: Rankings) -> dict[str, Figure]:
    """How far raters put the responses of a set in the same order; sets with two orders or more.

    Returns: "kendall_w" (0 no common order, 1 the same order everywhere; "by_chance": what random
        orders give), "kendall_tau" (−1 … 1, of two raters drawn at random), "same_order" (share of
        the pairs of responses that both put apart and put the same way round); "n" sets,
        "n_rankings". A set of which somebody ranked other responses than the rest is left out and
        counted in "n_left_out", as is one that nobody told apart.
    Source: W with ties, Kendall & Gibbons 1990, Rank Correlation Methods, ch. 6; tau-b, ch. 3.
    """
    by_set: dict[int, list[int]] = {}
    for place, the_set in enumerate(rankings.sets):
        by_set.setdefault(the_set, []).append(place)
    several = [places for places in by_set.values() if len(places) >= 2]
    rows, prompts, n_rankings, n_left_out = [], [], 0, 0
    for places in several:
        orders = [rankings.orders[place] for place in places]
        ranks = _ranks(orders)
        w = None if ranks is None else kendall_w(ranks)
        if ranks is None or w is None:
            n_left_out += 1
            continue
        taus = kendall_taus(ranks)
        same, apart = _same_order(ranks)
        rows.append([w, 1, 1 / len(orders), np.nansum(taus), (~np.isnan(taus)).sum(), same, apart])
        prompts.append(rankings.prompts[places[0]])
        n_rankings += len(orders)
    counted = {"n_rankings": n_rankings, "n_left_out": n_left_out}
    if not rows:
        why = gettext_noop("No set of responses has been ranked by two people yet.")
        nothing = refused(why, n=0) | counted
        return {"kendall_w": nothing, "kendall_tau": nothing, "same_order": nothing}
    parts, prompt = np.array(rows, dtype=float), np.array(prompts)
    figures: dict[str, Figure] = {}
    for name, over, under in (
        ("kendall_w", 0, 1),
        ("kendall_tau", 3, 4),
        ("same_order", 5, 6),
    ):
        own = parts[:, [over, under]]
        value = divide(own[:, 0].sum(), own[:, 1].sum())
        if np.isnan(value):
            why = gettext_noop("No two people told the same responses apart.")
            figures[name] = refused(why, n=len(rows)) | counted
            continue
        interval = bootstrap(own, prompt, lambda sums: divide(sums[:, 0], sums[:, 1]))
        figures[name] = {"value": float(value), **interval, "n": len(rows), **counted}
    figures["kendall_w"]["by_chance"] = float(parts[:, 2].mean())
    figures["same_order"]["n_pairs"] = int(parts[:, 6].sum())
    return figures


def _ranks(orders: Sequence[Sequence[Sequence[int]]]) -> np.ndarray | None:
    """(raters, responses) ranks from 1, equals at the mean of their places; None where the
    responses are not the same ones."""
    responses = sorted(response for place in orders[0] for response in place)
    column = {response: i for i, response in enumerate(responses)}
    ranks = np.empty((len(orders), len(responses)))
    for row, order in zip(ranks, orders, strict=True):
        if sorted(response for place in order for response in place) != responses:
            return None
        before = 0
        for place in order:
            for response in place:
                row[column[response]] = before + (len(place) + 1) / 2
            before += len(place)
    return ranks


def kendall_w(ranks: np.ndarray) -> float | None:
    """Concordance of several orders of the same responses; None where nobody told any apart.

    Args:
        ranks: (raters, responses) from 1; equals share the mean of their places.
    Source: Kendall & Gibbons 1990, eq. 6.8: W = 12 S / (m² (n³ − n) − m Σ (t³ − t)).
    """
    m, n = ranks.shape
    deviations = ranks.sum(axis=0) - m * (n + 1) / 2
    # Σ (t³ − t) over a rater's groups of equals is how far their squares fall short.
    short = m * (n**3 - n) - 12 * ((ranks - (n + 1) / 2) ** 2).sum()
    most = m**2 * (n**3 - n) - m * short
    return float(12 * (deviations**2).sum() / most) if most > 1e-9 else None


def kendall_taus(ranks: np.ndarray) -> np.ndarray:
    """(pairs of raters,) Kendall's tau-b of every two orders; NaN where one holds no order.

    Source: the same as scipy.stats.kendalltau, for all pairs at once.
    """
    signs = _signs(ranks)
    one, other = np.triu_indices(len(ranks), k=1)
    told = np.abs(signs).sum(axis=1)
    return divide((signs @ signs.T)[one, other], np.sqrt(told[one] * told[other]))


def _same_order(ranks: np.ndarray) -> tuple[float, float]:
    """Pairs of responses that two raters put the same way round, and that both put apart."""
    signs = _signs(ranks)
    one, other = np.triu_indices(len(ranks), k=1)
    difference = (signs @ signs.T)[one, other].sum()
    apart = (np.abs(signs) @ np.abs(signs).T)[one, other].sum()
    return float((apart + difference) / 2), float(apart)


def _signs(ranks: np.ndarray) -> np.ndarray:
    """(raters, pairs of responses) which of the two stands before the other: −1, 0, 1."""
    one, other = np.triu_indices(ranks.shape[1], k=1)
    return np.sign(ranks[:, one] - ranks[:, other])
