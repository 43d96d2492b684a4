"""How good a judge is, held against people: numbers in, numbers out.

No rows in here: `judges/laboratory.py` fetches them. Each figure is a dict with "value", "low",
"high" and "n", as in `labeling.agreement`, whose intervals stand here too: 95 %, exact where every
prompt has one comparison and the figure is a share, else percentiles of a bootstrap by prompt.
Where a figure cannot be had, "value" is None and "why" says so; where the interval cannot,
"why_no_interval" does.

Decisions, all of them visible in the figures:
- The reference is one answer for each comparison, in which people are not divided: the known answer
  where there is one, else an untied majority.
- "Decided": where people chose a side. A judge that chooses none there (exactly one half, or a tie)
  is half right. A verdict that could not be read is wrong, not left out.
- "All": a tie and "both are bad" are answers of their own, and only the same answer is right.

The libraries imported here are the extra `stats`: only workers load this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop
from scipy.stats import false_discovery_control, ttest_1samp, wilcoxon

from labeling.agreement import (
    LENGTHS_DIFFER,
    TIE,
    UNPARSED,
    A,
    B,
    Votes,
    one_against_the_others,
    position_consistency,
    position_preference,
)
from labeling.calibration import (
    MIN_ISOTONIC,
    RESAMPLES,
    cross_fitted,
    fit_isotonic,
    fit_temperature,
    mean_of,
    probability_figures,
    ratio,
)
from labeling.intervals import SEED, Figure, refused, sums_by_prompt

FLIPS = 9_999
"""Random exchanges of two judges' results behind one p-value; its least value is 1 / 10,000."""
ALT_TEST_RATE = 0.05
"""Share of wrong among the people whom the alt-test calls beaten, at most."""
MIN_PEOPLE, MIN_ITEMS = 3, 30
"""People, and comparisons of each, that the alt-test wants."""


@dataclass(frozen=True)
class Labeled:
    """Comparisons whose answer people know, as columns; all arrays are (comparisons,)."""

    comparison: np.ndarray
    prompt: np.ndarray
    reference: np.ndarray
    """A, B, TIE or BOTH_BAD, as in `labeling.agreement`."""
    length_a: np.ndarray
    length_b: np.ndarray
    source_a: np.ndarray
    """(comparisons,) of str: the model that wrote response A; "" where it is not known."""
    source_b: np.ndarray
    people: Votes
    """Every vote of a person on them; `item` is the place of the comparison here."""

    def __len__(self) -> int:
        return len(self.comparison)


@dataclass(frozen=True)
class Answers:
    """What one judge said of some of them, as columns; all arrays are (verdicts,)."""

    place: np.ndarray
    """Of the comparison in `Labeled`; each at most once."""
    choice: np.ndarray
    """A, B, TIE or UNPARSED."""
    prob_a: np.ndarray
    logit_ab: np.ndarray
    """Logit of "A is better" with A shown first; NaN where the order was not asked for itself."""
    logit_ba: np.ndarray
    """The same with B shown first."""
    mass: np.ndarray
    """Probability of the judge's answers together, mean of both orders; NaN where not asked."""
    seconds: np.ndarray
    cost: np.ndarray
    """NaN where no price is known."""
    measured_by: str = "logprobs"

    def __len__(self) -> int:
        return len(self.place)

    def where(self, kept: np.ndarray) -> "Answers":
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return Answers(
            **{k: v[kept] if isinstance(v, np.ndarray) else v for k, v in columns.items()}
        )


def judge_figures(
    labeled: Labeled, answers: Answers, model: str = "", epsilon: float = 0.1
) -> dict[str, Any]:
    """Every figure of one judge, ready for JSON.

    Args:
        model: the judge's model, whose family is looked for among the responses' sources.
        epsilon: what a person's work costs more, for the alt-test; see `alt_test`.
    """
    return {
        "n": len(answers),
        "unparsed": mean_of(
            labeled.prompt[answers.place], (answers.choice == UNPARSED).astype(float)
        )
        if len(answers)
        else refused(gettext_noop("No verdict yet."), n=0),
        "alignment": alignment(labeled, answers),
        "consistency": position_consistency(as_votes(labeled, answers), RESAMPLES),
        "position": position_preference(as_votes(labeled, answers), RESAMPLES),
        "bias": position_bias(labeled, answers),
        "length": length_bias(labeled, answers),
        "self": self_preference(labeled, answers, model),
        "mass": mean_of(labeled.prompt[answers.place], answers.mass),
        "calibration": calibration_figures(labeled, answers),
        "seconds_per_correct": per_correct(labeled, answers, answers.seconds),
        "cost_per_correct": per_correct(labeled, answers, answers.cost),
        "alt_test": alt_test(labeled, answers, epsilon),
        "measured_by": answers.measured_by,
    }


# Alignment ----------------------------------------------------------------------------------------


def alignment(labeled: Labeled, answers: Answers) -> dict[str, Figure]:
    """How often the judge says what people say: {"decided", "both_decided", "all"}.

    "decided" is definition 2's alignment: a judge that names no side is half right. "both_decided"
    leaves such verdicts out; "all" wants the same answer, ties and "both are bad" included.
    Source: AI labeler alignment, Lee et al. 2023, arXiv:2309.00267, section 3.
    """
    reference, prompt = labeled.reference[answers.place], labeled.prompt[answers.place]
    decided = reference <= B
    both = decided & (answers.choice <= B)
    right = rightness(labeled, answers)
    return {
        "decided": mean_of(prompt[decided], right[decided]),
        "both_decided": mean_of(prompt[both], right[both]),
        "all": mean_of(prompt, (answers.choice == reference).astype(float)),
    }


def rightness(labeled: Labeled, answers: Answers) -> np.ndarray:
    """(verdicts,) 1 right, 0 wrong or unreadable, a half for a tie; NaN where people chose no side.

    The one definition of "right" behind alignment, differences and what a right label costs.
    """
    reference = labeled.reference[answers.place]
    right = np.where(answers.choice == reference, 1.0, np.where(answers.choice == TIE, 0.5, 0.0))
    return np.where(reference <= B, right, np.nan)


def win_rate(prompt: np.ndarray, wins: np.ndarray) -> Figure:
    """The mean of wins (1, 0, a half for a draw, or a soft preference), with "standard_error".

    With one comparison a prompt that is the sample's standard deviation over √n, as AlpacaEval
    prints it; with several, the sandwich over prompts.
    """
    figure = mean_of(prompt, wins)
    kept = ~np.isnan(wins)
    wins, prompt = wins[kept], prompt[kept]
    if len(np.unique(prompt)) < 2:
        return figure | {"standard_error": None}
    off = sums_by_prompt((wins - wins.mean())[:, None], prompt)[:, 0]
    n_prompts = len(off)
    error = np.sqrt((off**2).sum() * n_prompts / (n_prompts - 1)) / len(wins)
    return figure | {"standard_error": float(error)}


def ceiling(labeled: Labeled) -> dict[str, Figure]:
    """How often one person gives the answer of most of the others, on these comparisons.

    Source: `labeling.agreement.one_against_the_others`.
    """
    return one_against_the_others(labeled.people, RESAMPLES)


# Places, length, family ---------------------------------------------------------------------------


def position_bias(labeled: Labeled, answers: Answers) -> Figure:
    """The mean of b = (z_ab − z_ba) / 2, in nats: above 0 the judge leans to what is shown first.

    Returns: also "histogram", {"edges", "n"}, whose ends hold what lies beyond; "spread", the
        standard deviation of b.
    """
    b = (answers.logit_ab - answers.logit_ba) / 2
    b = np.where(answers.choice == UNPARSED, np.nan, b)
    figure = mean_of(labeled.prompt[answers.place], b)
    if figure["value"] is None:
        return refused(gettext_noop("No verdict of this judge holds both orders of showing."), n=0)
    held = b[~np.isnan(b)]
    reach = max(0.5, float(np.quantile(np.abs(held), 0.95)))
    edges = np.linspace(-reach, reach, 16)
    n = np.histogram(np.clip(held, -reach, reach), edges)[0]
    return figure | {
        "spread": float(held.std(ddof=1)) if len(held) > 1 else None,
        "histogram": {"edges": edges.tolist(), "n": n.tolist()},
    }


def length_bias(labeled: Labeled, answers: Answers) -> Figure:
    """How much more often than people the judge prefers the longer response.

    Both on the same comparisons: those where people and the judge chose a side and the lengths
    differ by more than `LENGTHS_DIFFER` characters. People may like long responses for a reason, so
    what is above theirs is the bias.

    Returns: also "judge" and "people", the two shares.
    Source: length bias as in AlpacaEval, arXiv:2305.14387, minus the same for people.
    """
    gap = (labeled.length_a - labeled.length_b)[answers.place]
    reference = labeled.reference[answers.place]
    kept = (np.abs(gap) > LENGTHS_DIFFER) & (reference <= B) & (answers.choice <= B)
    if not kept.any():
        why = "No comparison on which both chose a side has responses of so different lengths."
        return refused(gettext_noop(why), n=0)
    longer = np.where(gap > 0, A, B)[kept]
    prompt = labeled.prompt[answers.place][kept]
    of_judge = (answers.choice[kept] == longer).astype(float)
    of_people = (reference[kept] == longer).astype(float)
    return _difference(prompt, of_judge, of_people)


def self_preference(labeled: Labeled, answers: Answers, model: str) -> Figure:
    """How much more often than people the judge prefers the response of its own family.

    On comparisons of which exactly one response came from the family (`family_of`), and where
    people chose a side; a tie of the judge is half a win.

    Returns: also "family", "judge" and "people", their win rates for it.
    Source: Zheng et al. 2023, arXiv:2306.05685, section 3.3: judge win rate minus human win rate.
    """
    family = family_of(model)
    own_a, own_b = (
        np.array([bool(family) and family in source.lower() for source in sources], dtype=bool)
        for sources in (labeled.source_a[answers.place], labeled.source_b[answers.place])
    )
    reference = labeled.reference[answers.place]
    kept = (own_a != own_b) & (reference <= B) & (answers.choice != UNPARSED)
    if not kept.any():
        why = "No response was written by a model of the judge's own family."
        return refused(gettext_noop(why), n=0) | {"family": family}
    own = np.where(own_a, A, B)[kept]
    choice = answers.choice[kept]
    of_judge = np.where(choice == TIE, 0.5, (choice == own).astype(float))
    of_people = (reference[kept] == own).astype(float)
    prompt = labeled.prompt[answers.place][kept]
    return _difference(prompt, of_judge, of_people) | {"family": family}


def family_of(model: str) -> str:
    """The family a model belongs to, by its name: "Qwen/Qwen2.5-0.5B-Instruct" → "qwen".

    The first word of the last part of its name, in lower case; "meta-llama/Meta-Llama-3" is a
    llama. "" for names that begin with no letters.
    """
    name = model.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    letters = [c if c.isalpha() else " " for c in name]
    words = "".join(letters).split()
    return words[0] if words and name[:1].isalpha() else ""


def _difference(prompt: np.ndarray, of_judge: np.ndarray, of_people: np.ndarray) -> Figure:
    """The judge's mean minus people's on the same rows, paired; with both means by themselves."""
    parts = np.column_stack([of_judge - of_people, np.ones(len(prompt))])
    interval = ratio(parts, prompt)
    return {
        "value": float((of_judge - of_people).mean()),
        **interval,
        "n": len(prompt),
        "judge": win_rate(prompt, of_judge),
        "people": mean_of(prompt, of_people),
    }


# Calibration --------------------------------------------------------------------------------------


def calibration_figures(labeled: Labeled, answers: Answers) -> dict[str, Any]:
    """What the probabilities are worth where people chose a side, before and after correction.

    Corrections are cross-fitted: folds of prompts, each corrected by what the others taught.

    Returns: {"n", "before", "temperature", "isotonic"}; each has "ece", "brier", "log_loss" (see
        `probability_figures`), and a correction "parameters", fitted on all of them; or "why".
    """
    reference = labeled.reference[answers.place]
    kept = (reference <= B) & (answers.choice != UNPARSED)
    prompt, prob_a = labeled.prompt[answers.place][kept], answers.prob_a[kept]
    said = (reference[kept] == A).astype(float)
    found: dict[str, Any] = {"n": len(said)}
    found["before"] = probability_figures(prompt, prob_a, said)
    for name, fit in (
        ("temperature", fit_temperature),
        ("isotonic", fit_isotonic),
    ):
        if name == "isotonic" and len(said) < MIN_ISOTONIC:
            found[name] = {"why": gettext_noop("Too few comparisons: it would follow the noise.")}
            continue
        try:
            after = cross_fitted(fit, prob_a, said, prompt)
        except ValueError:  # fewer prompts than folds, or all but a few in one
            found[name] = {"why": gettext_noop("Too few prompts to correct and check it.")}
            continue
        found[name] = probability_figures(prompt, after, said) | {"parameters": fit(prob_a, said)}
    return found


# Cost ---------------------------------------------------------------------------------------------


def per_correct(labeled: Labeled, answers: Answers, spent: np.ndarray) -> Figure:
    """What one right label takes, in the unit of `spent` (verdicts,), where people chose a side."""
    right, prompt = rightness(labeled, answers), labeled.prompt[answers.place]
    kept = ~np.isnan(right) & ~np.isnan(spent)
    right, spent, prompt = right[kept], spent[kept], prompt[kept]
    if not right.sum():
        why = "Nothing is known of what it took, or no label was right."
        return refused(gettext_noop(why), n=len(right))
    parts = np.column_stack([spent, right])
    interval = ratio(parts, prompt)
    return {"value": float(spent.sum() / right.sum()), **interval, "n": len(right)}


# Two judges ---------------------------------------------------------------------------------------


def differences(labeled: Labeled, cells: Sequence[Answers]) -> list[dict[str, Any]]:
    """Every two judges on the comparisons that both judged and people decided.

    Returns: dicts {"first", "second" (places in `cells`), "value" (alignment of the first minus
        that of the second), "low", "high" (paired, by prompt), "n", "p_value", "p_corrected"}. The
        p-value is that of exchanging the two judges' results prompt by prompt, at random (where
        each prompt has one comparison that is McNemar's test with ties); corrected for the number
        of pairs by Holm 1979, so that with 95 % no pair is called different by luck.
    """
    rows = []
    for first, second in combinations(range(len(cells)), 2):
        one, other = cells[first], cells[second]
        _shared, i, j = np.intersect1d(one.place, other.place, return_indices=True)
        right_1, right_2 = rightness(labeled, one)[i], rightness(labeled, other)[j]
        kept = ~np.isnan(right_1)
        prompt = labeled.prompt[one.place[i]][kept]
        row: dict[str, Any] = {"first": first, "second": second}
        if not kept.any():
            why = "They share no comparison on which people chose a side."
            rows.append(row | refused(gettext_noop(why), n=0) | {"p_value": None})
            continue
        gain = (right_1 - right_2)[kept]
        parts = np.column_stack([gain, np.ones(len(gain))])
        row |= {"value": float(gain.mean()), "n": len(gain), "p_value": exchange_p(prompt, gain)}
        if np.any(gain):
            row |= ratio(parts, prompt)
        else:
            why = "Both were right on the same comparisons."
            row |= {"low": None, "high": None, "why_no_interval": gettext_noop(why)}
        rows.append(row)
    for row, p_value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_corrected"] = p_value
    return rows


def exchange_p(prompt: np.ndarray, gain: np.ndarray) -> float:
    """Two-sided p-value of "no difference": signs of whole prompts' sums exchanged at random.

    Never 0, and never too small: (1 + exchanges as far from 0) / (1 + exchanges).
    Source: Fisher's randomisation test; Phipson & Smyth 2010 for the ones.
    """
    sums = sums_by_prompt(gain[:, None], prompt)[:, 0]
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    rng = np.random.default_rng(SEED)
    seen, bound, n_extreme = 0, abs(sums.sum()) - 1e-9, 0
    while seen < FLIPS:
        n = min(1_000, FLIPS - seen)
        signs = rng.integers(0, 2, (n, len(sums)), dtype=np.int8) * 2 - 1
        n_extreme += int((np.abs(signs @ sums) >= bound).sum())
        seen += n
    return (1 + n_extreme) / (1 + FLIPS)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p-value corrected for how many there are; None stays None, and does not count.

    Source: Holm 1979; the same as statsmodels' multipletests(method="holm").
    """
    known = [p for p in p_values if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    in_order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    for rank, (p, i) in enumerate(in_order):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected


# May it stand in for a person? --------------------------------------------------------------------


def alt_test(labeled: Labeled, answers: Answers, epsilon: float = 0.1) -> dict[str, Any]:
    """The alternative annotator test: does the judge represent people as well as one of them does?

    For each person j, on the comparisons that j, the judge and at least one other person answered:
    who gives the others' answers more often, the judge or j? W_judge is 1 where the judge does or
    they are even, W_j the same for j. The judge beats j if the paired t-test rejects
    "mean W_judge ≤ mean W_j − ε" (Wilcoxon's signed ranks below `MIN_ITEMS`, which then only fills
    the table: such a person does not count). Corrected over people by Benjamini and Yekutieli at
    5 %; ω is the share of people beaten, and the judge passes with at least half.

    Args:
        epsilon: how much worse than a person the judge may be, for being cheaper: 0.2 for experts,
            0.15 for trained people, 0.1 for a crowd (the paper's section 3).
    Returns: {"passes", "omega", "n_people", "n_beaten", "advantage" (mean of W_judge: the chance
        that the judge is as good a choice as a person), "epsilon", "people": [{"rater", "n",
        "judge", "person", "p_value", "beaten"}]}; "passes" is None with "why" where fewer than
        `MIN_PEOPLE` people have `MIN_ITEMS` comparisons.
    Source: Calderon, Reichart & Dror 2025, arXiv:2501.10970, section 3.
    """
    people = labeled.people
    choice_of = np.full(len(labeled), -1)
    choice_of[answers.place] = answers.choice
    n_categories = UNPARSED + 1
    counts = np.bincount(
        people.item * n_categories + people.choice, minlength=len(labeled) * n_categories
    ).reshape(-1, n_categories)
    n_votes = counts.sum(axis=1)
    held = (choice_of[people.item] >= 0) & (n_votes[people.item] >= 2)
    rows = []
    for code in np.unique(people.rater[held]).tolist():
        own = held & (people.rater == code)
        item, said = people.item[own], people.choice[own]
        others = n_votes[item] - 1
        as_person = (counts[item, said] - 1) / others
        judge_says = choice_of[item]
        as_judge = (counts[item, judge_says] - (judge_says == said)) / others
        won, lost = as_judge >= as_person - 1e-12, as_person >= as_judge - 1e-12
        rows.append(
            {
                "rater": people.raters[code],
                "n": len(item),
                "judge": float(won.mean()),
                "person": float(lost.mean()),
                "p_value": _p_of_difference(lost.astype(float) - won, epsilon),
            }
        )
    rows.sort(key=lambda row: -row["n"])
    counted = [row for row in rows if row["n"] >= MIN_ITEMS]
    for row in rows:
        row["beaten"] = None
    result: dict[str, Any] = {"epsilon": epsilon, "people": rows, "n_people": len(counted)}
    if len(counted) < MIN_PEOPLE:
        return result | {
            "passes": None,
            "omega": None,
            "advantage": None,
            "n_beaten": 0,
            "why": gettext_noop(
                "It wants three people who each answered thirty of these comparisons together with "
                "somebody else."
            ),
        }
    adjusted = false_discovery_control([row["p_value"] for row in counted], method="by")
    for row, p_value in zip(counted, adjusted.tolist(), strict=True):
        row["beaten"] = p_value <= ALT_TEST_RATE
    n_beaten = sum(row["beaten"] for row in counted)
    omega = n_beaten / len(counted)
    return result | {
        "passes": omega >= 0.5,
        "omega": omega,
        "n_beaten": n_beaten,
        "advantage": float(np.mean([row["judge"] for row in counted])),
    }


def _p_of_difference(difference: np.ndarray, epsilon: float) -> float:
    """p-value of "the mean is at least epsilon"; difference: (items,) W_person − W_judge."""
    shifted = difference - epsilon
    if len(shifted) < 2 or np.ptp(shifted) < 1e-12:
        return 0.0 if len(shifted) >= MIN_ITEMS and shifted[0] < 0 else 1.0
    if len(shifted) < MIN_ITEMS:
        return float(wilcoxon(shifted, alternative="less").pvalue)
    return float(ttest_1samp(shifted, 0.0, alternative="less").pvalue)


def as_votes(labeled: Labeled, answers: Answers) -> Votes:
    """The judge's verdicts as `labeling.agreement` reads them, for what it measures already."""
    return Votes(
        raters=["judge"],
        is_judge=np.array([True]),
        n_comparisons=len(labeled),
        item=answers.place,
        prompt=labeled.prompt[answers.place],
        rater=np.zeros(len(answers), dtype=np.int64),
        choice=answers.choice,
        shown_first=np.full(len(answers), -1),
        prob_a_ab=_sigmoid(answers.logit_ab),
        prob_a_ba=_sigmoid(answers.logit_ba),
        length_a=labeled.length_a[answers.place],
        length_b=labeled.length_b[answers.place],
    )


def _sigmoid(z: np.ndarray) -> np.ndarray:
    """Kept off one half: beyond 36 nats a sum of probabilities rounds, the side does not."""
    return 1 / (1 + np.exp(-np.clip(z, -36, 36)))
