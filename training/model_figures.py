"""What held-out pairs say of a trained model: numbers in, numbers out.

No rows in here: `training/reports.py` fetches them. Each figure is a dict with "value", "low",
"high" and "n", as in `labeling.agreement` and `labeling.calibration`, whose intervals stand here
too: 95 %, exact where every prompt has one pair and the figure is a share, else percentiles of a
bootstrap that draws prompts whole. Where a figure cannot be had, "value" is None and "why" says so.

Decisions, all of them visible in the figures:
- The label is the one that the dataset froze. Where it is wrong, a model that is right counts as
  wrong; the pairs that a model gets most wrong are therefore kept, for a person to look at.
- A pair with equal scores is half right.
- The probability behind a margin Δ is σ(Δ): what the loss of definitions §10 makes of it.

The libraries imported here are the extra `stats`: only workers load this module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop

from labeling.agreement import LENGTHS_DIFFER
from labeling.calibration import (
    RESAMPLES,
    cross_fitted,
    fit_temperature,
    mean_of,
    probability_figures,
    ratio,
)
from labeling.intervals import Figure, bootstrap, divide, refused

MOST_SLICES = 12
"""Tags and topics that are shown, those with the most pairs."""
MOST_WRONG = 50
"""Pairs that are kept for a person to look at."""
FEWEST_WRONG = 5
"""Pairs that a model gets wrong, below which no temperature is fitted: of pairs that are all right
the best one is 0."""
QUARTERS = 4
"""Parts of equal size, by spread, that pairs are divided into."""


@dataclass(frozen=True)
class Scored:
    """Pairs as columns, all (pairs,): the scores, and what is known of the label."""

    prompt: np.ndarray
    """Hash of each pair's prompt."""
    chosen: np.ndarray
    """Score of the chosen response: a reward; of a policy the implicit one."""
    rejected: np.ndarray
    chosen_chars: np.ndarray
    rejected_chars: np.ndarray
    a_chosen: np.ndarray
    """bool: the response that the comparison calls A was chosen."""
    n_votes: np.ndarray
    """Answers behind the label; 0 where a lead decided."""
    top_share: np.ndarray
    """Share of them that the most frequent answer has; NaN without answers."""
    strength: np.ndarray
    """Mean strength of the answers for the chosen response, 1 to 3; NaN where none was given."""
    by_people: np.ndarray
    """bool: people labeled it, not AI judges."""
    topics: Mapping[str, np.ndarray]
    """Tag or topic -> bool."""
    spread: np.ndarray
    """Standard deviation of the margin over an ensemble's members; NaN of a single model."""
    moved: np.ndarray
    """Of a policy log π/π_base (nats) of the chosen and the rejected response, (pairs, 2)."""

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def margin(self) -> np.ndarray:
        return self.chosen - self.rejected

    @property
    def longer(self) -> np.ndarray:
        """Characters by which the chosen response is longer."""
        return self.chosen_chars - self.rejected_chars


def rightness(margin: np.ndarray) -> np.ndarray:
    """1 where the chosen response is ahead, 0 where it is behind, a half where both are level."""
    return (np.sign(margin) + 1) / 2


def reward_figures(scored: Scored, a_share_in_training: float | None) -> dict[str, Any]:
    """Every figure of a reward model on held-out pairs, ready for JSON.

    Args: a_share_in_training: share of the training pairs in which A was chosen, from which the
        baseline "always the side that wins more often" is made; None: not known.
    """
    right = rightness(scored.margin)
    longer = rightness(scored.longer)
    side = _majority_side(scored, a_share_in_training)
    said = np.ones(len(scored))
    prob = _sigmoid(scored.margin)
    found: dict[str, Any] = {
        "n": len(scored),
        "n_prompts": len(np.unique(scored.prompt)),
        "accuracy": mean_of(scored.prompt, right),
        "margin": mean_of(scored.prompt, scored.margin),
        "baselines": {
            "longer": mean_of(scored.prompt, longer),
            "side": refused(gettext_noop("The training side is not known."), 0)
            if side is None
            else mean_of(scored.prompt, side),
        },
        "against_longer": difference(scored.prompt, right, longer),
        "probability": probability_figures(scored.prompt, prob, said),
        "length": length_figures(scored),
        "slices": slices(scored),
    }
    if len(scored) and not np.isnan(scored.spread).any():
        found["spread"] = spread_figures(scored)
    if (right < 1).sum() < FEWEST_WRONG:
        found["temperature"] = {
            "why": gettext_noop("It gets too few pairs wrong to fit a temperature: hold out more.")
        }
        return found
    try:
        after = cross_fitted(fit_temperature, prob, said, scored.prompt)
    except ValueError:  # fewer prompts than folds
        found["temperature"] = {"why": gettext_noop("Too few prompts to correct and check it.")}
    else:
        found["temperature"] = probability_figures(scored.prompt, after, said)
        found["temperature"] |= fit_temperature(prob, said)
    return found


def policy_figures(scored: Scored) -> dict[str, Any]:
    """Every figure of a policy on held-out pairs.

    "accuracy" and "margin" are those of the implicit reward of its loss: β · log π/π_base of DPO
    (Rafailov et al. 2023, eq. 5). Changes are log π/π_base in nats; "chosen_change" below 0 is
    likelihood displacement (Razin et al. 2024, arXiv:2410.08847).
    """
    return {
        "n": len(scored),
        "n_prompts": len(np.unique(scored.prompt)),
        "accuracy": mean_of(scored.prompt, rightness(scored.margin)),
        "baselines": {"longer": mean_of(scored.prompt, rightness(scored.longer))},
        "margin": mean_of(scored.prompt, scored.margin),
        "chosen_change": mean_of(scored.prompt, scored.moved[:, 0]),
        "rejected_change": mean_of(scored.prompt, scored.moved[:, 1]),
        "chosen_fell": mean_of(scored.prompt, (scored.moved[:, 0] < 0).astype(float)),
        "length": length_figures(scored),
        "slices": slices(scored),
    }


def written_figures(prompt: np.ndarray, policy: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Characters of what a policy and its base write to the same prompts, and the difference."""
    if not len(prompt):
        nothing = refused(gettext_noop("No held-out prompt fits the model’s context."), 0)
        return {"policy": nothing, "base": nothing, "difference": nothing}
    return {
        "policy": mean_of(prompt, policy.astype(float)),
        "base": mean_of(prompt, base.astype(float)),
        "difference": mean_of(prompt, (policy - base).astype(float)),
    }


def difference(prompt: np.ndarray, one: np.ndarray, other: np.ndarray) -> Figure:
    """The mean of `one` minus that of `other` on the same pairs, with its interval by prompt."""
    parts = np.column_stack([one - other, np.ones(len(one))])
    return {"value": float((one - other).mean()), **ratio(parts, prompt), "n": len(one)}


def _majority_side(scored: Scored, a_share: float | None) -> np.ndarray | None:
    """Rightness of "always the side that was chosen more often in training"."""
    if a_share is None:
        return None
    if a_share == 0.5:
        return np.full(len(scored), 0.5)
    return (scored.a_chosen == (a_share > 0.5)).astype(float)


# Length -------------------------------------------------------------------------------------------


def length_figures(scored: Scored) -> dict[str, Figure]:
    """How far differences of score go with differences of length, within pairs.

    Rewards of two prompts have no common zero, so only differences within a pair are looked at,
    Δ of the score and δ of the length. Which response comes first is arbitrary: each pair enters
    both ways round, so all means are 0.

    Returns:
        "score": r = Σ Δδ / √(Σ Δ² Σ δ²).
        "given_label": the partial correlation given which of the two was chosen. With the label as
            third variable (±1), the residuals are Δ and δ, chosen minus rejected, less their means:
            Pearson's r of margins and differences of length over the pairs as they are.
        "label": r of the label itself with length: what a perfect model of these labels would show.
    """
    d, x = scored.margin, scored.longer.astype(float)
    parts = np.column_stack([d * x, d * d, x * x, d, x, np.ones(len(d))])

    def score(sums: np.ndarray) -> np.ndarray:
        return divide(sums[:, 0], np.sqrt(sums[:, 1] * sums[:, 2]))

    def given_label(sums: np.ndarray) -> np.ndarray:
        xy, dd, xx, d_, x_, n = sums.T
        return divide(xy - d_ * x_ / n, np.sqrt((dd - d_**2 / n) * (xx - x_**2 / n)))

    def label(sums: np.ndarray) -> np.ndarray:
        return divide(sums[:, 4], np.sqrt(sums[:, 5] * sums[:, 2]))

    return {
        name: _statistic(parts, scored.prompt, statistic)
        for name, statistic in (("score", score), ("given_label", given_label), ("label", label))
    }


LEVEL = gettext_noop("Scores or lengths never differ.")


def _statistic(
    parts: np.ndarray,
    prompt: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    why: str = LEVEL,
) -> Figure:
    """Args: why: what it means that the statistic is not defined."""
    value = float(statistic(parts.sum(axis=0, keepdims=True))[0]) if len(parts) else np.nan
    if np.isnan(value):
        return refused(why, len(parts))
    return {"value": value, **bootstrap(parts, prompt, statistic, RESAMPLES), "n": len(parts)}


# Slices -------------------------------------------------------------------------------------------


def slices(scored: Scored) -> list[dict[str, Any]]:
    """[{"by", "rows": [{"name", "accuracy", "margin"}, …]}, …]; slices without a pair are left out.

    "by" is strength, agreement, length, source or topic.
    """
    strength = np.where(np.isnan(scored.strength), 0, np.floor(scored.strength + 0.5))
    several, shared = scored.n_votes > 1, scored.top_share
    topics = sorted(scored.topics.items(), key=lambda item: (-int(item[1].sum()), item[0]))
    cuts: list[tuple[str, list[tuple[str, np.ndarray]]]] = [
        ("strength", [(str(code), strength == code) for code in (3, 2, 1, 0)]),
        (
            "agreement",
            [
                ("all", several & (shared > 1 - 1e-9)),
                ("most", several & (shared >= 2 / 3) & (shared < 1 - 1e-9)),
                ("divided", several & (shared < 2 / 3)),
                ("one", scored.n_votes == 1),
                ("decided", scored.n_votes == 0),
            ],
        ),
        (
            "length",
            [
                ("longer", scored.longer > LENGTHS_DIFFER),
                ("alike", np.abs(scored.longer) <= LENGTHS_DIFFER),
                ("shorter", scored.longer < -LENGTHS_DIFFER),
            ],
        ),
        ("source", [("human", scored.by_people), ("ai", ~scored.by_people)]),
        ("topic", topics[:MOST_SLICES]),
    ]
    right = rightness(scored.margin)
    found = []
    for by, rows in cuts:
        kept = [(name, own) for name, own in rows if own.any()]
        if by != "topic" and [name for name, _own in kept] in (["0"], ["one"], ["human"], ["ai"]):
            continue  # nothing to tell apart
        found.append(
            {
                "by": by,
                "rows": [
                    {
                        "name": name,
                        "accuracy": mean_of(scored.prompt[own], right[own]),
                        "margin": float(scored.margin[own].mean()),
                    }
                    for name, own in kept
                ],
                "left_out": max(0, len(topics) - MOST_SLICES) if by == "topic" else 0,
            }
        )
    return [cut for cut in found if cut["rows"]]


# The spread of an ensemble ------------------------------------------------------------------------


def spread_figures(scored: Scored) -> dict[str, Any]:
    """What the disagreement of an ensemble's members says of a pair; s is the standard deviation of
    its margin Δ over them.

    Returns:
        "mean" of s.
        "quarters": pairs in four parts of equal size, those the members agree on most first: "low"
            and "high" of s, "accuracy", and "said", the mean of σ(|Δ|) that the ensemble gives to
            the response it prefers: where accuracy falls below it, the margins are too sure.
        "gain": accuracy on the half with the smaller s less that on the other half.
        "doubting": log-loss of σ(Δ / √(1 + πs²/8)), which a margin's spread pulls towards one half,
            and "gain_of_doubt", that of σ(Δ) less it: above 0, the spread is worth reading.
            MacKay 1992, "The evidence framework applied to classification networks", eq. 10: the
            mean of σ over a normal distribution of Δ, approximately.
    """
    right, spread, margin = rightness(scored.margin), scored.spread, scored.margin
    order = np.argsort(spread, kind="stable")
    quarters = []
    for own in np.array_split(order, min(QUARTERS, len(order))):
        quarters.append(
            {
                "low": float(spread[own].min()),
                "high": float(spread[own].max()),
                "accuracy": mean_of(scored.prompt[own], right[own]),
                "said": mean_of(scored.prompt[own], _sigmoid(np.abs(margin[own]))),
            }
        )
    agreed = np.zeros(len(scored))
    agreed[order[: (len(order) + 1) // 2]] = 1
    parts = np.column_stack([right * agreed, agreed, right * (1 - agreed), 1 - agreed])

    def gain(sums: np.ndarray) -> np.ndarray:
        return divide(sums[:, 0], sums[:, 1]) - divide(sums[:, 2], sums[:, 3])

    plain = np.logaddexp(0.0, -margin)
    doubting = np.logaddexp(0.0, -margin / np.sqrt(1 + np.pi * spread**2 / 8))
    return {
        "mean": mean_of(scored.prompt, spread),
        "quarters": quarters,
        "gain": _statistic(
            parts, scored.prompt, gain, gettext_noop("One pair has no other half beside it.")
        ),
        "doubting": mean_of(scored.prompt, doubting),
        "gain_of_doubt": difference(scored.prompt, plain, doubting),
    }


# The worst ----------------------------------------------------------------------------------------


def most_wrong(margin: np.ndarray, most: int = MOST_WRONG) -> list[tuple[int, float]]:
    """(place, probability that the model gives to the label) of the pairs that it gets most wrong,
    the worst first; none that it gets right."""
    order = np.argsort(margin, kind="stable")[:most]
    return [(int(i), float(_sigmoid(margin[i]))) for i in order if margin[i] < 0]


def most_disputed(
    margin: np.ndarray, spread: np.ndarray, most: int = MOST_WRONG
) -> list[tuple[int, float]]:
    """(place, probability that the ensemble gives to the label) of the pairs that its members
    disagree on most, for what a margin of that size is worth: s / (1 + |Δ|), the largest first."""
    order = np.argsort(-spread / (1 + np.abs(margin)), kind="stable")[:most]
    return [(int(i), float(_sigmoid(margin[i]))) for i in order]


def _sigmoid(z: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -np.asarray(z, dtype=float)))


def columns(rows: Sequence[Mapping[str, Any]], topics: Mapping[str, set[str]]) -> Scored:
    """Scored pairs as columns. Each row: "prompt", "chosen", "rejected", "chosen_chars",
    "rejected_chars", "a_chosen", "votes" ({choice: n}), "strength", "by_people", "comparison"; of
    an ensemble "spread", of a policy "moved".

    Args: topics: tag or topic -> comparisons that bear it.
    """

    def column(name: str, kind: Any) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=kind)

    votes = [row["votes"] for row in rows]
    n_votes = np.array([sum(counts.values()) for counts in votes], dtype=np.int64)
    most = np.array([max(counts.values(), default=0) for counts in votes], dtype=float)
    comparison = column("comparison", str)
    return Scored(
        prompt=column("prompt", str),
        chosen=column("chosen", float),
        rejected=column("rejected", float),
        chosen_chars=column("chosen_chars", np.int64),
        rejected_chars=column("rejected_chars", np.int64),
        a_chosen=column("a_chosen", bool),
        n_votes=n_votes,
        top_share=divide(most, n_votes),
        strength=np.array([row["strength"] or np.nan for row in rows], dtype=float),
        by_people=column("by_people", bool),
        spread=np.array([row.get("spread") for row in rows], dtype=float),
        moved=np.array([row.get("moved") or (np.nan, np.nan) for row in rows]).reshape(-1, 2),
        topics={
            name: found
            for name, known in topics.items()
            if (found := np.isin(comparison, list(known))).any()
        },
    )
