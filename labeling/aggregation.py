"""Several answers to one comparison become one label: majority, soft shares, Dawid and Skene."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labeling.models import Choice, Rater

CLASSES = (Choice.A, Choice.B, Choice.TIE, Choice.BOTH_BAD)
VALUES = {Choice.A: 1.0, Choice.B: 0.0, Choice.TIE: 0.5, Choice.BOTH_BAD: 0.5}
"""How far a choice speaks for A. An answer that prefers neither counts one half."""


@dataclass(frozen=True)
class Outcome:
    """What the votes say of one comparison."""

    outcome: str
    """a, b, or the reason why it is no pair."""
    source: str
    """human or ai; empty without a label."""
    votes: dict[str, int]
    raters: tuple[int, ...]
    decided: bool = False
    """Whether a lead's decision stands in place of the votes."""


def counted_kind(kinds: Iterable[str], labels: str) -> str:
    """The kind of rater whose answers to a comparison count; empty if there is none.

    Args: kinds: of those who answered; labels: human, ai, or mixed, where people decide alone
        wherever one of them answered.
    """
    kinds = set(kinds)
    for kind, source in SOURCES.items():
        if labels in ("mixed", source) and kind in kinds:
            return kind
    return ""


SOURCES = {Rater.Kind.PERSON: "human", Rater.Kind.JUDGE: "ai"}


def majority(votes: Counter[str]) -> str:
    """The choice with the most votes; "disputed" where several share the first place."""
    most = max(votes.values())
    winners = [choice for choice, n in votes.items() if n == most]
    if len(winners) > 1:
        return "disputed"
    return {Choice.TIE: "ties"}.get(winners[0], winners[0])


def decide(answers: list[tuple[str, str, int]], labels: str) -> Outcome:
    """Turn the current answers to one comparison into its majority.

    Args: answers: (kind of rater, choice, rater's id); labels: see `counted_kind`.
    """
    counted = counted_kind((kind for kind, _choice, _rater in answers), labels)
    if not counted:
        return Outcome("unlabeled", "", {}, ())
    source = SOURCES[counted]
    mine = [(c, rater) for kind, c, rater in answers if kind == counted and c != Choice.UNPARSED]
    if not mine:
        return Outcome("unparsed", source, {}, ())
    votes = Counter(choice for choice, _rater in mine)
    raters = tuple(rater for _choice, rater in mine)
    return Outcome(majority(votes), source, dict(sorted(votes.items())), raters)


def soft_label(answers: Sequence[tuple[str, float | None]]) -> float:
    """Probability that A is better: the mean over the answers, none of them unparsed.

    Args: answers: (choice, a judge's own probability of A or None). A choice without a probability
        counts 1 for A, 0 for B, one half for a tie and for both bad.
    Source: share of votes; the mean of probabilities is Lee et al. 2023, arXiv:2309.00267, §2.2.
    """
    return sum(VALUES[c] if prob is None else prob for c, prob in answers) / len(answers)


def margin(chosen: str, answers: Iterable[tuple[str, int | None]]) -> float:
    """By how much the chosen response is better, in [0, 1]: the mean of signed strengths over 3.

    An answer for the chosen side adds its strength (1 slightly, 2 clearly, 3 much), one for the
    other takes it away; a tie, or an answer without a strength, adds nothing. One rater's 3, 2, 1
    are 1, 2/3, 1/3, the "small" margins of Touvron et al. 2023, arXiv:2307.09288, appendix A.3.3.

    Args: chosen: a or b; answers: (choice, strength or None), at least one.
    """
    other = Choice.B if chosen == Choice.A else Choice.A
    sign = {chosen: 1, other: -1}
    steps = [sign.get(choice, 0) * (strength or 0) for choice, strength in answers]
    return max(0.0, sum(steps) / len(steps) / 3)


@dataclass
class Votes:
    """Every vote of a crowd, item by item: `starts[j]` to `starts[j + 1]` are those on item j."""

    starts: array
    raters: array  # from 0
    labels: array  # index into the classes
    turned: array  # 1 where B stood first on the rater's screen

    @classmethod
    def empty(cls) -> "Votes":
        return cls(array("q", [0]), array("l"), array("b"), array("b"))

    def add_item(self, votes: Iterable[tuple[int, int, bool]]) -> None:
        """Append an item with its votes: (rater, label, turned)."""
        for rater, label, turned in votes:
            self.raters.append(rater)
            self.labels.append(label)
            self.turned.append(turned)
        self.starts.append(len(self.raters))


def dawid_skene(
    votes: Votes,
    *,
    n_classes: int = len(CLASSES),
    alpha: float = 0.01,
    max_steps: int = 100,
    tolerance: float = 1e-5,
) -> array:
    """Posterior probabilities of every item's true class, by EM, from the shares of votes.

    The M step counts each rater's answers l where the truth is k, theta[k][l] ~ sum of posteriors
    + alpha; the E step is q_j(k) ~ prior_k * product of theta[k][l] over the votes on j. Where a
    rater saw B first, classes 0 and 1 (A and B) change places within that rater's theta: it speaks
    of the first and the second on the screen, so leaning to a side is learned as an error.

    Args: alpha: added to every count, so that nothing becomes impossible; max_steps, tolerance:
        the end, when the log-likelihood per item (nats) rises by less than this.
    Returns: flat, n_classes probabilities an item. Of an item without votes: the prior.
    Source: Dawid & Skene 1979, Applied Statistics 28(1), eq. 2.3 to 2.5.
    """
    classes = range(n_classes)
    swap = [1, 0, *range(2, n_classes)]
    starts = votes.starts
    n_items = len(starts) - 1
    n_raters = max(votes.raters, default=-1) + 1
    # What a vote is worth depends on these three alone: one number for them is one look-up.
    n_codes = 2 * n_classes
    codes = [
        rater * n_codes + n_classes * turned + label
        for rater, label, turned in zip(votes.raters, votes.labels, votes.turned, strict=True)
    ]
    posteriors = array("d", bytes(8 * n_items * n_classes))
    for item in range(n_items):
        begin, end = starts[item], starts[item + 1]
        for vote in range(begin, end):
            posteriors[item * n_classes + votes.labels[vote]] += 1 / (end - begin)
    before = -math.inf
    for _step in range(max_steps):
        # M step
        sums = [[0.0] * n_classes for _ in range(n_raters * n_codes)]
        prior = [alpha] * n_classes
        for item in range(n_items):
            begin, end = starts[item], starts[item + 1]
            if begin == end:
                continue
            q = posteriors[item * n_classes : (item + 1) * n_classes]
            for k in classes:
                prior[k] += q[k]
            for code in codes[begin:end]:
                row = sums[code]
                for k in classes:
                    row[k] += q[k]
        log_prior = [math.log(p / sum(prior)) for p in prior]
        weights = _log_confusions(sums, n_raters, n_classes, swap, alpha)
        # E step
        likelihood, n_voted = 0.0, 0
        for item in range(n_items):
            begin, end = starts[item], starts[item + 1]
            logs = log_prior[:]
            for code in codes[begin:end]:
                row = weights[code]
                for k in classes:
                    logs[k] += row[k]
            top = max(logs)
            parts = [math.exp(value - top) for value in logs]
            total = sum(parts)
            if begin != end:
                likelihood += top + math.log(total)
                n_voted += 1
            posteriors[item * n_classes : (item + 1) * n_classes] = array(
                "d", [part / total for part in parts]
            )
        likelihood /= max(1, n_voted)
        if likelihood - before < tolerance:
            break
        before = likelihood
    return posteriors


def _log_confusions(
    sums: list[list[float]], n_raters: int, n_classes: int, swap: list[int], alpha: float
) -> list[list[float]]:
    """For each code (rater, turned, label): log theta[k][label] by true class k, in A and B."""
    classes = range(n_classes)
    weights = []
    for rater in range(n_raters):
        straight = sums[rater * 2 * n_classes :][:n_classes]
        turned = sums[rater * 2 * n_classes + n_classes :][:n_classes]
        counts = [
            [alpha + straight[label][k] + turned[swap[label]][swap[k]] for label in classes]
            for k in classes
        ]
        theta = [[math.log(n / sum(row)) for n in row] for row in counts]
        weights += [[theta[k][label] for k in classes] for label in classes]
        weights += [[theta[swap[k]][swap[label]] for k in classes] for label in classes]
    return weights
