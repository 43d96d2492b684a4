"""How far raters agree (alpha, kappas), and which sides they lean to: numbers in, numbers out.

No rows in here: `labeling/votes.py` fetches a project's votes, `agreement_report` turns them into
what the command prints and the page shows. Intervals are those of `labeling/intervals.py`.

Decisions, all of them visible in the figures:
- "Both are bad" is a category of its own, beside a, b and tie. Answers are nominal: no category is
  nearer to another.
- Verdicts that could not be read ("unparsed") are a category too, so they count as disagreement.
- Every statistic here is a function of sums over comparisons, so a prompt is a row of sums, and a
  resample a sum of rows.

The libraries imported here are the extra `stats`. They take 430 MB and a second to import, so only
the command and the worker load this module, by `labeling/reports.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import evalica
import numpy as np
import pandas as pd
from django.utils.translation import gettext_noop
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from labeling.intervals import RESAMPLES, Figure, bootstrap, divide, refused, resamples_of, share_of
from labeling.rater_models import distinct, pairs_within
from labeling.shares import CONFIDENCE

CHOICES = ("a", "b", "tie", "both_bad", "unparsed")
"""What the codes of `Votes.choice` mean."""
A, B, TIE, BOTH_BAD, UNPARSED = range(len(CHOICES))
LENGTHS_DIFFER = 30  # characters; AlpacaEval's definition of "longer"
PAIR_RESAMPLES = 400  # for one of the thousands of pairs, and for one of hundreds of people
MANY_PAIRS = 1_000  # pairs of raters whose kappa gets an interval, those that share most


@dataclass(frozen=True)
class Votes:
    """Answers as columns: row i is one rater's current answer on one comparison."""

    raters: list[str]
    is_judge: np.ndarray
    """(raters,) bool: an AI judge, not a person."""
    n_comparisons: int
    """Comparisons there are, answered or not."""
    item: np.ndarray
    """(votes,) code of the comparison, 0 … number of answered comparisons − 1."""
    prompt: np.ndarray
    """(votes,) code or key of the comparison's prompt."""
    rater: np.ndarray
    """(votes,) place in `raters`; at most one vote for a rater and a comparison."""
    choice: np.ndarray
    """(votes,) place in `CHOICES`."""
    shown_first: np.ndarray
    """(votes,) A, B, or −1 where it is not known."""
    prob_a_ab: np.ndarray
    """(votes,) a judge's probability of response A with A shown first; NaN where there is none."""
    prob_a_ba: np.ndarray
    """(votes,) the same with B shown first."""
    length_a: np.ndarray
    """(votes,) characters of response A."""
    length_b: np.ndarray
    strength: np.ndarray | None = None
    """(votes,) 1 slightly, 2 clearly, 3 much better; 0 where none was given. None: not read."""
    seconds: np.ndarray | None = None
    """(votes,) how long the answer took; NaN where it was not timed. None: not read."""
    at: np.ndarray | None = None
    """(votes,) when it was given, seconds since 1970. None: not read."""
    comparisons: np.ndarray | None = None
    """(items,) primary keys behind the codes of `item`. None: there are no rows behind."""
    rater_keys: np.ndarray | None = None
    """(raters,) primary keys behind the places in `raters`."""

    def __len__(self) -> int:
        return len(self.item)

    def where(self, mask: np.ndarray) -> "Votes":
        """The votes that the mask keeps; raters and comparisons keep their codes."""
        whole = ("raters", "is_judge", "n_comparisons", "comparisons", "rater_keys")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Votes(
            **{
                name: value if name in whole or value is None else value[mask]
                for name, value in values.items()
            }
        )


def agreement_report(
    votes: Votes,
    most_raters: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Every figure of a project, ready for JSON.

    Args:
        most_raters: keep only pairs among the judges and this many people, those with the most
            votes (a stored report stays small); None keeps every pair. "pairs_left_out" counts the
            pairs of people that are not kept.
        on_progress: told (rows done, rows in all) after each pair, judge and person, which are
            what takes long.
    """
    by_judge = votes.is_judge[votes.rater]
    people = votes.where(~by_judge)
    counts, prompt = vote_counts(people), prompt_of_counts(people)
    sizes = _votes_of_raters(people)
    kept, paired = np.ones(len(votes.raters), dtype=bool), votes
    if most_raters is not None and most_raters < np.count_nonzero(sizes):
        kept = votes.is_judge.copy()
        kept[np.argsort(-sizes, kind="stable")[:most_raters]] = True
        paired = votes.where(kept[votes.rater])
    n_judges, n_people = len(distinct(votes.rater[by_judge])), int(np.count_nonzero(sizes))
    one, other = _sharing_raters(votes)
    is_kept = kept[one] & kept[other]
    n_left_out = int((~is_kept & ~votes.is_judge[one] & ~votes.is_judge[other]).sum())
    n_rows, n_done = int(is_kept.sum()) + n_judges + n_people, 0

    def on_row() -> None:
        nonlocal n_done
        n_done += 1
        on_progress(n_done, n_rows)

    pairs = kappa_of_pairs(paired, on_row)
    return {
        "n_comparisons": votes.n_comparisons,
        "n_people": n_people,
        "n_judges": n_judges,
        "n_preferences": len(people),
        "n_verdicts": int(by_judge.sum()),
        "votes_per_comparison": _histogram(counts.sum(axis=1)),
        "choices": {name: int((people.choice == code).sum()) for code, name in enumerate(CHOICES)},
        "krippendorff_alpha": krippendorff_alpha(counts, prompt, _n_paired_raters(people)),
        "percent_agreement": percent_agreement(counts, prompt),
        "fleiss_kappa": fleiss_kappa(counts, prompt),
        "position": position_preference(people),
        "length": length_preference(people),
        "one_against_the_others": one_against_the_others(people),
        "cohen_kappa": [pair for pair in pairs if not (pair["judge_1"] or pair["judge_2"])],
        "judge_pairs": [pair for pair in pairs if pair["judge_1"] or pair["judge_2"]],
        "pairs_left_out": n_left_out,
        "judges": judges_against_people(votes, on_row),
        "raters": people_in_figures(people, on_row),
        "interval": {
            "confidence": CONFIDENCE,
            "resamples": resamples_of(len(distinct(votes.prompt)), RESAMPLES),
            "method": "percentile",
            "unit": _resampled_unit(votes),
        },
    }


# Agreement of many raters -------------------------------------------------------------------------


def vote_counts(votes: Votes) -> np.ndarray:
    """(answered comparisons, categories) how many votes each category got; no empty rows."""
    n_items = int(votes.item.max()) + 1 if len(votes) else 0
    flat = np.bincount(votes.item * len(CHOICES) + votes.choice, minlength=n_items * len(CHOICES))
    counts = flat.reshape(n_items, len(CHOICES))
    return counts[counts.sum(axis=1) > 0]


def prompt_of_counts(votes: Votes) -> np.ndarray:
    """(answered comparisons,) the prompt of each row of `vote_counts`."""
    return votes.prompt[np.unique(votes.item, return_index=True)[1]]


def _n_paired_raters(votes: Votes) -> int:
    """Raters with a vote on a comparison that has two votes or more."""
    return len(distinct(votes.rater[np.bincount(votes.item)[votes.item] >= 2]))


def krippendorff_alpha(
    counts: np.ndarray, prompt: np.ndarray | None = None, n_raters: int | None = None
) -> Figure:
    """Krippendorff's alpha for nominal data: 1 is full agreement, 0 what chance would give.

    Comparisons with a single vote say nothing about agreement and are left out.

    Args:
        counts: (comparisons, categories) votes; raters may differ from comparison to comparison.
        prompt: (comparisons,) their prompts; None: a prompt of its own for each.
        n_raters: how many gave these votes; None: not known.
    Returns: also "n_votes", "n_raters", "missing" (the share of these raters' places on these
        comparisons that is empty), and "expected_agreement": how often two of these votes, drawn
        without regard to the comparison, are the same.
    Source: evalica.alpha; Krippendorff 2018, ch. 12. Interval by prompt, see `_alphas`: not
        evalica's own bootstrap, which holds the expected disagreement fixed.
    """
    counts, prompt = _with_votes(counts, prompt, counts.sum(axis=1) >= 2)
    if why := _why_no_agreement(counts):
        return refused(why, n=len(counts))
    if np.count_nonzero(counts.sum(axis=0)) == 1:
        return refused(
            gettext_noop(
                "Everybody gave the same answer everywhere: there is no disagreement that chance "
                "could have made, so agreement beyond chance is not defined."
            ),
            n=len(counts),
        )
    result = evalica.alpha(pd.DataFrame(_units(counts)), distance="nominal")
    return {
        "value": float(result.alpha),
        **bootstrap(_alpha_parts(counts), prompt, _alphas),
        "n": len(counts),
        "n_votes": int(counts.sum()),
        "n_raters": n_raters,
        "missing": float(1 - counts.sum() / (len(counts) * n_raters)) if n_raters else None,
        "expected_agreement": float(1 - _expected_disagreement(counts.sum(axis=0))),
    }


def percent_agreement(counts: np.ndarray, prompt: np.ndarray | None = None) -> Figure:
    """Share of vote pairs on the same comparison that agree (micro average over pairs).

    Returns: "n" comparisons with two votes or more, "n_pairs" pairs of votes, "macro" the mean over
        comparisons, in which one with many votes counts no more than another.
    """
    counts, prompt = _with_votes(counts, prompt, counts.sum(axis=1) >= 2)
    if why := _why_no_agreement(counts):
        return refused(why, n=len(counts))
    agreeing, pairs = _pair_parts(counts).T // 2
    share = share_of(prompt, agreeing, pairs)
    macro = float((agreeing / pairs).mean())
    return share | {"n": len(counts), "n_pairs": share["n"], "macro": macro}


def fleiss_kappa(counts: np.ndarray, prompt: np.ndarray | None = None) -> Figure:
    """Fleiss' kappa on the comparisons with exactly the most common number of votes (at least 2).

    It is defined only where every comparison has equally many votes; alpha has no such limit.

    Source: statsmodels.stats.inter_rater.fleiss_kappa, method "fleiss".
    """
    votes = counts.sum(axis=1)
    if why := _why_no_agreement(counts[votes >= 2]):
        return refused(why, n=0)
    usual = int(np.bincount(votes[votes >= 2]).argmax())
    counts, prompt = _with_votes(counts, prompt, votes == usual)
    if np.count_nonzero(counts.sum(axis=0)) == 1:
        return refused(gettext_noop("Everybody gave the same answer everywhere."), n=len(counts))
    return {
        "value": float(statsmodels_fleiss(counts, method="fleiss")),
        **bootstrap(_alpha_parts(counts), prompt, _fleiss_kappas),
        "n": len(counts),
        "votes_per_comparison": usual,
    }


def _with_votes(
    counts: np.ndarray, prompt: np.ndarray | None, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    prompt = np.arange(len(counts)) if prompt is None else prompt
    return counts[kept], prompt[kept]


def _why_no_agreement(counts: np.ndarray) -> str:
    if len(counts):
        return ""
    return gettext_noop(
        "No comparison has votes of two people yet, so there is nothing to compare."
    )


def _units(counts: np.ndarray) -> np.ndarray:
    """(most votes, comparisons) the votes as codes, NaN-padded: the form that evalica reads.

    Who gave a vote does not enter alpha, so a row here is "the first vote", not a rater; with
    hundreds of raters the usual matrix of raters would be almost empty.
    """
    votes = counts.sum(axis=1)
    values = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    unit = np.repeat(np.arange(len(counts)), votes)
    place = np.arange(len(values)) - np.repeat(np.cumsum(votes) - votes, votes)
    units = np.full((votes.max(), len(counts)), np.nan)
    units[place, unit] = values
    return units


def _expected_disagreement(totals: np.ndarray) -> Any:
    """Chance that two different votes drawn from all of them differ; totals: (…, categories)."""
    n = totals.sum(axis=-1)
    return (n**2 - (totals**2).sum(axis=-1)) / (n * (n - 1))


def _alpha_parts(counts: np.ndarray) -> np.ndarray:
    """(comparisons, 3 + categories) what `_alphas` and `_fleiss_kappas` want summed."""
    votes = counts.sum(axis=1)
    agreeing, pairs = _pair_parts(counts).T
    disagreement = (pairs - agreeing) / (votes - 1)
    return np.column_stack([disagreement, agreeing, pairs, counts])


def _pair_parts(counts: np.ndarray) -> np.ndarray:
    """(comparisons, 2) ordered pairs of votes that agree, and all of them."""
    votes = counts.sum(axis=1)
    return np.column_stack([(counts * (counts - 1)).sum(axis=1), votes * (votes - 1)])


def _alphas(sums: np.ndarray) -> np.ndarray:
    """Nominal alpha of many resamples at once; the same number as evalica.alpha on each of them.

    Args:
        sums: (resamples, 3 + categories) of `_alpha_parts`, comparisons with two votes or more.
    Returns: (resamples,), NaN where a resample holds one category only.
    Source: 1 − D_o / D_e with the coincidence matrix, Krippendorff 2018, eq. 12.6.
    """
    totals = sums[:, 3:]
    return 1 - divide(divide(sums[:, 0], totals.sum(axis=1)), _expected_disagreement(totals))


def _fleiss_kappas(sums: np.ndarray) -> np.ndarray:
    """(resamples,) Fleiss' kappa; argument as in `_alphas`, every comparison with equal votes.

    Source: Fleiss 1971, eqs. 3 to 7.
    """
    totals = sums[:, 3:]
    agreement = divide(sums[:, 1], sums[:, 2])
    by_chance = ((totals / totals.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return divide(agreement - by_chance, 1 - by_chance)


# Pairs of raters ----------------------------------------------------------------------------------


def kappa_of_pairs(votes: Votes, on_row: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Cohen's kappa and plain agreement of every two raters that share a comparison.

    Returns: dicts, most shared first: "rater_1", "rater_2", "judge_1", "judge_2" (is it an AI
        judge?), "value" (kappa, or None with "why"), "low", "high" (None with "why_no_interval",
        and after the first `MANY_PAIRS` pairs), "n" shared comparisons, "agreement".
    """
    first, second, choice_1, choice_2, prompt = _pairs_of_votes(votes)
    k = len(CHOICES)
    keys, pair = np.unique(first * len(votes.raters) + second, return_inverse=True)
    tables = np.bincount(pair * k * k + choice_1 * k + choice_2, minlength=len(keys) * k * k)
    tables = tables.reshape(-1, k, k)
    kappas, shared = cohen_kappas(tables), tables.sum(axis=(1, 2))
    agree = np.trace(tables, axis1=1, axis2=2) / np.maximum(shared, 1)
    by_pair = np.argsort(pair, kind="stable")
    ends = np.cumsum(shared)
    found = []
    for i in np.argsort(-shared, kind="stable").tolist():
        rater_1, rater_2 = divmod(int(keys[i]), len(votes.raters))
        row: dict[str, Any] = {
            "rater_1": votes.raters[rater_1],
            "rater_2": votes.raters[rater_2],
            "judge_1": bool(votes.is_judge[rater_1]),
            "judge_2": bool(votes.is_judge[rater_2]),
            "value": None,
            "low": None,
            "high": None,
            "n": int(shared[i]),
            "agreement": float(agree[i]),
        }
        if np.isnan(kappas[i]):
            row["why"] = gettext_noop(
                "Both gave one and the same answer everywhere: chance explains it all."
            )
        else:
            row["value"] = float(kappas[i])
            if len(found) < MANY_PAIRS:
                own = by_pair[ends[i] - shared[i] : ends[i]]
                row |= _kappa_interval(choice_1[own], choice_2[own], prompt[own])
        found.append(row)
        on_row()
    return found


def _kappa_interval(choice_1: np.ndarray, choice_2: np.ndarray, prompt: np.ndarray) -> Figure:
    """Of Cohen's kappa, by prompt; all arguments (shared comparisons,)."""
    k = len(CHOICES)
    cells = np.zeros((len(prompt), k * k))
    cells[np.arange(len(prompt)), choice_1 * k + choice_2] = 1
    return bootstrap(
        cells, prompt, lambda sums: cohen_kappas(sums.reshape(-1, k, k)), PAIR_RESAMPLES
    )


def _sharing_raters(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) each: the places of every two raters that share a comparison."""
    first, second, *_columns = _pairs_of_votes(votes)
    return np.divmod(distinct(first * len(votes.raters) + second), max(1, len(votes.raters)))


def cohen_kappas(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa of many confusion tables at once.

    The same number as sklearn.metrics.cohen_kappa_score, which takes close to a millisecond a
    call: a hundred raters make thousands of pairs, and each interval a thousand tables.

    Args:
        tables: (…, categories, categories) counts; first rater in rows, second in columns.
    Returns: (…), NaN where chance alone gives full agreement, or the table is empty.
    Source: Cohen 1960: (p_o − p_e) / (1 − p_e), p_e = Σ p_k· p_·k.
    """
    n = tables.sum(axis=(-2, -1))
    observed = divide(np.trace(tables, axis1=-2, axis2=-1), n)
    by_chance = divide(
        (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1), n.astype(float) ** 2
    )
    return divide(observed - by_chance, 1 - by_chance)


def _pairs_of_votes(votes: Votes) -> tuple[np.ndarray, ...]:
    """Every two votes on one comparison: raters (lower code first), their choices, the prompt."""
    order = np.lexsort((votes.rater, votes.item))
    item, rater, choice = votes.item[order], votes.rater[order], votes.choice[order]
    one, two = pairs_within(item)
    return rater[one], rater[two], choice[one], choice[two], votes.prompt[order][one]


# Judges against people ----------------------------------------------------------------------------


def majority(votes: Votes, n_items: int) -> np.ndarray:
    """(n_items,) the answer with the most votes, −1 where two answers share the top or none is."""
    flat = np.bincount(votes.item * len(CHOICES) + votes.choice, minlength=n_items * len(CHOICES))
    return _untied_top(flat.reshape(n_items, len(CHOICES)))


def _untied_top(counts: np.ndarray) -> np.ndarray:
    """(rows,) the column with the highest count of each row, −1 where it is shared or 0."""
    top = counts.max(axis=1, initial=0)
    untied = (top > 0) & ((counts == top[:, None]).sum(axis=1) == 1)
    return np.where(untied, counts.argmax(axis=1), -1)


def judges_against_people(
    votes: Votes, on_row: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Each judge against the majority of people, where that majority is untied.

    "with_ties" holds every such comparison, and a verdict that could not be read disagrees;
    "without_ties" only those where both the majority and the judge chose a or b.
    """
    by_judge = votes.is_judge[votes.rater]
    n_items = int(votes.item.max()) + 1 if len(votes) else 0
    of_people = majority(votes.where(~by_judge), n_items)
    rows = []
    for code in distinct(votes.rater[by_judge]).tolist():
        judge = votes.where(votes.rater == code)
        reference, verdict = of_people[judge.item], judge.choice
        held = reference >= 0
        decided = held & (reference <= B) & (verdict <= B)
        position, length = position_preference(judge), length_preference(judge)
        consistency = position_consistency(judge)
        rows.append(
            {
                "rater": votes.raters[code],
                "n": len(judge),
                "with_ties": _against_reference(judge, reference, held),
                "without_ties": _against_reference(judge, reference, decided),
                "unparsed": int((verdict == UNPARSED).sum()),
                "choices": {c: int((verdict == i).sum()) for i, c in enumerate(CHOICES)},
                "position_consistency": consistency["value"],
                "first_shown_share": position["value"],
                "longer_share": length["value"],
                "consistency": consistency,
                "position": position,
                "length": length,
            }
        )
        on_row()
    return rows


def one_against_the_others(votes: Votes, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """How often one person gives the answer of most of the other people: what a judge may reach.

    The others' answer counts where it is untied; "with_ties" and "without_ties" as for judges.

    Returns: two figures, "n" votes; one comparison gives as many as it has people.
    Source: the "human" row of AlpacaEval: leave-one-out agreement with the majority.
    """
    n_items = int(votes.item.max()) + 1 if len(votes) else 0
    k = len(CHOICES)
    counts = np.bincount(votes.item * k + votes.choice, minlength=n_items * k).reshape(n_items, k)
    others = counts[votes.item]  # (votes, categories)
    others[np.arange(len(votes)), votes.choice] -= 1
    reference = _untied_top(others)
    held = reference >= 0
    decided = held & (reference <= B) & (votes.choice <= B)
    figures = {}
    for key, kept in (("with_ties", held), ("without_ties", decided)):
        if kept.any():
            same = reference[kept] == votes.choice[kept]
            figures[key] = share_of(votes.prompt[kept], same, resamples=resamples)
        else:
            figures[key] = refused(
                gettext_noop("No comparison has votes of two people that allow it."), n=0
            )
    return figures


def _against_reference(judge: Votes, reference: np.ndarray, kept: np.ndarray) -> Figure:
    """Agreement and Cohen's kappa of a judge's verdicts with the people's answer.

    Args:
        reference: (verdicts,) the people's answer to each, as in `CHOICES`.
        kept: (verdicts,) bool: which of them count.
    """
    reference, verdict, prompt = reference[kept], judge.choice[kept], judge.prompt[kept]
    if not len(reference):
        return {
            "agreement": None,
            "kappa": None,
            "n": 0,
            "why": gettext_noop(
                "The judge and an untied majority of people share no such comparison."
            ),
        }
    share = share_of(prompt, reference == verdict)
    figure: Figure = {
        "agreement": share["value"],
        "agreement_low": share["low"],
        "agreement_high": share["high"],
        "kappa": None,
        "kappa_low": None,
        "kappa_high": None,
        "n": share["n"],
    }
    if "why_no_interval" in share:
        figure["agreement_why_no_interval"] = share["why_no_interval"]
    if len(np.unique(np.concatenate([reference, verdict]))) == 1:
        figure["why"] = gettext_noop(
            "People and the judge gave one and the same answer everywhere."
        )
    else:
        figure["kappa"] = float(cohen_kappa_score(reference, verdict))
        interval = _kappa_interval(reference, verdict, prompt)
        figure |= {f"kappa_{name}": value for name, value in interval.items()}
    return figure


def position_consistency(votes: Votes, resamples: int = RESAMPLES) -> Figure:
    """Share of readable verdicts that name the same response whichever is shown first.

    A probability of exactly one half names neither, so such a verdict is not consistent.

    Source: position consistency as in Wang et al. 2023, arXiv:2305.17926.
    """
    both = ~np.isnan(votes.prob_a_ab) & ~np.isnan(votes.prob_a_ba) & (votes.choice != UNPARSED)
    if not both.any():
        return refused(gettext_noop("No verdict of this judge holds both orders of showing."), n=0)
    same = (votes.prob_a_ab[both] - 0.5) * (votes.prob_a_ba[both] - 0.5) > 0
    return share_of(votes.prompt[both], same, resamples=resamples)


# Leaning to a place, leaning to length ------------------------------------------------------------


def position_preference(votes: Votes, resamples: int = RESAMPLES) -> Figure:
    """Share of decided votes (a or b) that went to the response shown first.

    A verdict with probabilities counts once for each order of showing that it holds, decided by
    that order's own probability; any other vote once, where the first place was recorded.

    Returns: "n" decided showings; "first_twice", "second_twice": verdicts that name the same place
        in both orders; "p_value" of the exact binomial test against one half. A verdict that names
        the same response in both orders says nothing about places, so it is not in the test; one
        that names the same place twice is in it once, like any vote on a single showing.
    """
    readable = votes.choice != UNPARSED
    ab = readable & ~np.isnan(votes.prob_a_ab)
    ba = readable & ~np.isnan(votes.prob_a_ba)
    once = ~ab & ~ba & (votes.choice <= B) & (votes.shown_first >= 0)
    # For each kind of showing, one after the other: its prompt, the side of the first place
    # that the answer took (1), or that it took neither side (a half).
    prompt = np.concatenate([votes.prompt[ab], votes.prompt[ba], votes.prompt[once]])
    to_first = np.concatenate(
        [
            (np.sign(votes.prob_a_ab[ab] - 0.5) + 1) / 2,
            (np.sign(0.5 - votes.prob_a_ba[ba]) + 1) / 2,
            (votes.choice == votes.shown_first)[once],
        ]
    )
    showings = (to_first != 0.5).astype(np.int64)
    to_first = (to_first == 1).astype(np.int64)
    if not showings.sum():
        return refused(gettext_noop("No decided vote whose order of showing was recorded."), n=0)
    figure = share_of(prompt, to_first, showings, resamples)
    both = ab & ba
    # The place that each order names: the first (1), the second (−1), neither (0).
    in_ab, in_ba = np.sign(votes.prob_a_ab[both] - 0.5), np.sign(0.5 - votes.prob_a_ba[both])
    first_twice = int(((in_ab == 1) & (in_ba == 1)).sum())
    second_twice = int(((in_ab == -1) & (in_ba == -1)).sum())
    consistent = int((in_ab * in_ba == -1).sum())
    n_first = int(to_first.sum()) - first_twice - consistent
    n_tested = figure["n"] - first_twice - second_twice - 2 * consistent
    return _tested(figure, n_first, n_tested) | {
        "first_twice": first_twice,
        "second_twice": second_twice,
    }


def length_preference(votes: Votes, resamples: int = RESAMPLES) -> Figure:
    """Share of decided votes that went to the longer response, where lengths differ enough.

    Returns: "n" decided votes with more than `LENGTHS_DIFFER` characters between the responses;
        "p_value" of the exact binomial test against one half.
    Source: length bias as in AlpacaEval, arXiv:2305.14387.
    """
    gap = votes.length_a - votes.length_b
    counted = (votes.choice <= B) & (np.abs(gap) > LENGTHS_DIFFER)
    if not counted.any():
        return refused(
            f"No decided vote on responses whose lengths differ by more than {LENGTHS_DIFFER} "
            "characters.",
            n=0,
        )
    longer = np.where(gap[counted] > 0, A, B) == votes.choice[counted]
    figure = share_of(votes.prompt[counted], longer, resamples=resamples)
    return _tested(figure, int(longer.sum()), figure["n"])


def people_in_figures(
    votes: Votes, on_row: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """A row for each rater that voted: counts, and leanings to a place and to length."""
    sizes = _votes_of_raters(votes)
    by_rater = np.argsort(votes.rater, kind="stable")
    ends = np.cumsum(sizes)
    rows = []
    for code in np.argsort(-sizes, kind="stable").tolist():
        if not sizes[code]:
            break
        own = votes.where(by_rater[ends[code] - sizes[code] : ends[code]])
        position = position_preference(own, PAIR_RESAMPLES)
        length = length_preference(own, PAIR_RESAMPLES)
        rows.append(
            {
                "rater": votes.raters[code],
                "n": len(own),
                "choices": {c: int((own.choice == i).sum()) for i, c in enumerate(CHOICES)},
                "first_shown_share": position["value"],
                "longer_share": length["value"],
                "position": position,
                "length": length,
            }
        )
        on_row()
    return rows


def _tested(figure: Figure, n_successes: int, n: int) -> Figure:
    return figure | {"p_value": float(binomtest(n_successes, n).pvalue) if n else 1.0}


def _resampled_unit(votes: Votes) -> str:
    """What a resample draws: "prompts", or "comparisons" where each prompt has one."""
    n_items = len(distinct(votes.item))
    return "comparisons" if len(distinct(votes.prompt)) == n_items else "prompts"


def _votes_of_raters(votes: Votes) -> np.ndarray:
    return np.bincount(votes.rater, minlength=len(votes.raters))


def _histogram(values: np.ndarray) -> dict[str, int]:
    distinct, size = np.unique(values, return_counts=True)
    return {str(value): int(n) for value, n in zip(distinct, size, strict=True)}
