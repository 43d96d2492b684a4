"""What the votes of a project add up to, and how far each rater may be believed, as figures.

Numbers in, numbers out. The models are those of `labeling/rater_models.py`; people and AI judges
are raters alike. Verdicts that could not be read hold no label: they are left out and counted.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop

from labeling.agreement import BOTH_BAD, CHOICES, Votes
from labeling.intervals import Figure, refused, share_of
from labeling.rater_models import (
    ENOUGH,
    Answers,
    Fit,
    Parameters,
    by_crowd_kit,
    distinct,
    entropies,
    majority,
    misfit,
    one_coin,
    reliabilities,
    too_alike,
    weighed,
)
from labeling.shares import wilson

CLASSES = CHOICES[: BOTH_BAD + 1]
SURE, UNSURE = 0.95, 0.7
CROWD_KIT_VOTES = (200, 20_000)
"""Votes from which and up to which MACE and GLAD are asked: five seconds for a hundred votes, half
a minute for twenty thousand."""
MOST_RATERS = 1_000  # whose row is kept


def truth_figures(
    votes: Votes,
    known: np.ndarray | None = None,
    start: Parameters | None = None,
    models: Sequence[str] = ("dawid-skene", "one-coin", "majority"),
) -> tuple[dict[str, Any], Fit | None]:
    """The labels that Dawid and Skene's model gives, what other models say of them, the raters.

    Args:
        known: (items,) codes of known answers, −1 where there is none.
        start: where the model begins; its raters are those of `votes`. None: with shares of votes.
        models: those to hold beside it: also MACE and GLAD, by crowd-kit.
    Returns: figures for the report, and the fit (None where there is nothing to fit).
    """
    n_unparsed = int((votes.choice > BOTH_BAD).sum())
    read = votes.where(votes.choice <= BOTH_BAD)
    if not len(read):
        why = gettext_noop("There is no vote yet that says anything.")
        return {"why": why, "raters": [], "models": [], "n_unparsed": n_unparsed}, None
    n_items = int(votes.item.max()) + 1
    answers = Answers.of(
        read.item,
        read.rater,
        read.choice,
        read.shown_first,
        n_items=n_items,
        n_raters=len(votes.raters),
        n_classes=len(CLASSES),
    )
    prompt = np.zeros(n_items, dtype=np.int64)
    prompt[votes.item] = votes.prompt
    fit, possible = weighed(answers, start)
    checked, alike = misfit(answers, fit), too_alike(answers, fit)
    n_votes = np.bincount(answers.item, minlength=n_items)
    voted = n_votes > 0
    q, most = fit.posteriors, majority(answers)
    label, sureness = q.argmax(axis=1), q.max(axis=1)
    untied = most >= 0
    n_raters = len(distinct(answers.rater))
    n_pairs = len(distinct(answers.item * len(votes.raters) + answers.rater))
    figures = {
        "n_comparisons": int(voted.sum()),
        "n_votes": len(answers),
        "n_unparsed": n_unparsed,
        "n_one_vote": int((n_votes == 1).sum()),
        "n_without_votes": max(0, votes.n_comparisons - int(voted.sum())),
        "n_repeated_votes": len(answers) - n_pairs,
        "missing": float(1 - n_pairs / (voted.sum() * n_raters)),
        "steps": fit.n_steps,
        "converged": fit.converged,
        "warm": start is not None,
        "impossible": [c for c, may_be in zip(CLASSES, possible, strict=True) if not may_be],
        "misfit": checked,
        "too_alike": [
            pair | {key: votes.raters[pair[key]] for key in ("rater_1", "rater_2")}
            for pair in alike
        ],
        "prior": dict(zip(CLASSES, map(float, fit.parameters.prior), strict=True)),
        "labels": {c: int((label[voted] == code).sum()) for code, c in enumerate(CLASSES)},
        "sure": share_of(prompt[voted], (sureness >= SURE)[voted], resamples=200),
        "n_unsure": int((sureness[voted] < UNSURE).sum()),
        "entropy": float(entropies(q[voted]).mean()),
        "n_majority": int(untied.sum()),
        "n_overturned": int((label != most)[untied].sum()),
        "n_settled": int((voted & ~untied & (sureness >= UNSURE)).sum()),
        "n_tied": int((voted & ~untied).sum()),
        "models": _models(models, answers, fit, known, prompt, voted),
        "raters": _raters(read, answers, fit, prompt, known, checked, bool(alike))[:MOST_RATERS],
    }
    return figures, fit


def _models(
    names: Sequence[str],
    answers: Answers,
    fit: Fit,
    known: np.ndarray | None,
    prompt: np.ndarray,
    voted: np.ndarray,
) -> list[dict[str, Any]]:
    """A row for each way to make one label of the votes: "same", the share of comparisons to which
    it gives the label of Dawid and Skene's model; "accuracy" against known answers."""
    reference = fit.posteriors.argmax(axis=1)
    rows = []
    for name in names:
        labels, why = _labels(name, answers, fit)
        row: dict[str, Any] = {"name": name}
        if labels is None:
            rows.append(row | {"same": None, "n": 0, "accuracy": None, "why": why})
            continue
        given = voted & (labels >= 0)
        row |= {"same": float((labels == reference)[given].mean()), "n": int(given.sum())}
        row["accuracy"] = _accuracy(labels, known, prompt, given)
        rows.append(row)
    return rows


def _labels(name: str, answers: Answers, fit: Fit) -> tuple[np.ndarray | None, str]:
    """(items,) labels, −1 where the model gives none; or None, and why."""
    if name == "dawid-skene":
        return fit.posteriors.argmax(axis=1), ""
    if name == "one-coin":
        return one_coin(answers).posteriors.argmax(axis=1), ""
    if name == "majority":
        return majority(answers), ""
    if not CROWD_KIT_VOTES[0] <= len(answers) <= CROWD_KIT_VOTES[1]:
        return None, gettext_noop("Asked only where there are 200 to 20,000 votes.")
    try:
        with warnings.catch_warnings():  # of its use of pandas
            warnings.simplefilter("ignore")
            return by_crowd_kit(answers, name), ""
    except ModuleNotFoundError:
        return None, gettext_noop("Needs crowd-kit, which is not installed: pip install '.[crowd]'")


def _accuracy(
    labels: np.ndarray, known: np.ndarray | None, prompt: np.ndarray, given: np.ndarray
) -> Figure | None:
    held = given if known is None else given & (known >= 0)
    if known is None or not held.any():
        return None
    return share_of(prompt[held], (labels == known)[held])


def _raters(
    votes: Votes,
    answers: Answers,
    fit: Fit,
    prompt: np.ndarray,
    known: np.ndarray | None,
    checked: Figure,
    alike: bool,
) -> list[dict[str, Any]]:
    """A row for each rater with a vote, those with the most first."""
    n = np.bincount(votes.rater, minlength=len(votes.raters))
    lowest, highest = np.full(answers.n_items, 99), np.full(answers.n_items, -1)
    np.minimum.at(lowest, answers.item, answers.label)
    np.maximum.at(highest, answers.item, answers.label)
    several = np.bincount(answers.item, minlength=answers.n_items) >= 2
    met, disputed = several[votes.item], (lowest < highest)[votes.item]
    n_met = np.bincount(votes.rater, met, minlength=len(n))
    n_disputed = np.bincount(votes.rater, met & disputed, minlength=len(n))
    rows = reliabilities(answers, fit, prompt, checked, alike)
    medians = _median_seconds(votes)
    truth = np.full(len(votes), -1) if known is None else known[votes.item]
    n_known = np.bincount(votes.rater, truth >= 0, minlength=len(n))
    n_right = np.bincount(votes.rater, truth == votes.choice, minlength=len(n))
    found = []
    for i in np.argsort(-n, kind="stable").tolist():
        if not n[i]:
            break
        share: Figure = {"value": None, "low": None, "high": None, "n": int(n_met[i])}
        if n_met[i]:
            low, high = wilson(n_disputed[i], n_met[i])
            share |= {"value": float(n_disputed[i] / n_met[i]), "low": low, "high": high}
        found.append(
            {
                "rater": votes.raters[i],
                "is_judge": bool(votes.is_judge[i]),
                **rows[i],
                "known": _share_of_known(n_right[i], n_known[i]) if n_known[i] else None,
                "disputed": share,
                "seconds": medians[i][0],
                "n_timed": medians[i][1],
            }
        )
    return found


def _share_of_known(n_right: float, n: float) -> Figure:
    """How often a rater gave the known answer: no model stands in between."""
    if n < ENOUGH:
        return refused(gettext_noop("Fewer than 10 votes on known answers."), n=int(n))
    low, high = wilson(n_right, n)
    return {"value": float(n_right / n), "low": low, "high": high, "n": int(n)}


def _median_seconds(votes: Votes) -> list[tuple[float | None, int]]:
    """Of each rater: the median time of an answer, and how many were timed."""
    if votes.seconds is None:
        return [(None, 0)] * len(votes.raters)
    timed = ~np.isnan(votes.seconds)
    rater, seconds = votes.rater[timed], votes.seconds[timed]
    order = np.argsort(rater, kind="stable")
    sizes = np.bincount(rater, minlength=len(votes.raters))
    groups = np.split(seconds[order], np.cumsum(sizes)[:-1])
    return [(float(np.median(g)) if len(g) else None, len(g)) for g in groups]
