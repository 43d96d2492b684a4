"""Several answers to one comparison become one label: majority, soft shares, margins.

Votes weighed by how reliable each rater is: `labeling/posteriors.py`.
"""

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
