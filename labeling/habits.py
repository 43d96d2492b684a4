"""What one person's answers tell: right ones, agreement, leanings, consistency, speed.

No rows in here: answers in, figures out. Every share carries its n and its 95 % interval.

Which answers count where: habits (sides, ties, speed, runs) are seen in all answers of a person,
agreement in the work alone, known answers in the qualification and check sets. Answers that follow
from a ranking or from a better answer of one's own were not picked from two sides: they count for
agreement and ties, not for sides, speed or runs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from labeling.models import Choice, Comparison
from labeling.shares import NOTHING, Share, share_of

LENGTHS_DIFFER = 30  # characters; AlpacaEval's definition of "longer"
CHARS_PER_SECOND = 100
"""Nobody reads at this speed: 100 characters a second are 1,000 words a minute at 6 characters to
the word, four times the silent reading of adults (238 words, Brysbaert 2019). Only the two
responses count, not the prompt, so it errs on the rater's side."""
DECIDED = (Choice.A, Choice.B)
SET_PURPOSES = (Comparison.Purpose.QUALIFICATION, Comparison.Purpose.CHECK)


class Answer(NamedTuple):
    """A current answer, with what one must know of its comparison."""

    comparison: int
    choice: str
    strength: int | None = None
    shown_first: str = ""  # "a", "b", or "" where it is not known
    seconds: float | None = None
    created_at: datetime | None = None
    purpose: str = Comparison.Purpose.WORK
    gold: str = ""
    n_chars_a: int = 0
    n_chars_b: int = 0
    implied: bool = False  # follows from a ranking, or from a better answer by the rater

    @property
    def went_first(self) -> bool | None:
        """Whether the response shown first was chosen; None where no side was picked."""
        if self.implied or self.choice not in DECIDED or not self.shown_first:
            return None
        return self.choice == self.shown_first

    @property
    def key(self) -> tuple[Any, ...]:
        """What was pressed: the side with its strength, or an answer without a side."""
        side = self.went_first
        return (self.choice, None) if side is None else (side, self.strength)


def known_answers(answers: Sequence[Answer]) -> Share:
    """Right answers to the qualification and to hidden gold comparisons."""
    return share_of(a.choice == a.gold for a in answers if a.purpose in SET_PURPOSES)


def missed_answers(answers: Sequence[Answer]) -> list[int]:
    """The comparisons whose known answer was not given, newest first."""
    missed = (a for a in reversed(answers) if a.purpose in SET_PURPOSES and a.choice != a.gold)
    return [a.comparison for a in missed]


def position_preference(answers: Sequence[Answer]) -> Share:
    """Of the answers that picked a side, those for the response shown first."""
    return share_of(a.went_first for a in answers if a.went_first is not None)


def length_preference(answers: Sequence[Answer]) -> Share:
    """Of the answers that picked a side, those for the longer response, where lengths differ."""
    return share_of(
        (a.choice == Choice.A) == (a.n_chars_a > a.n_chars_b)
        for a in answers
        if not a.implied and a.choice in DECIDED and abs(a.n_chars_a - a.n_chars_b) > LENGTHS_DIFFER
    )


def too_fast(answers: Sequence[Answer]) -> Share:
    """Of the timed answers, those given before anybody could have read both responses."""
    return share_of(
        a.seconds < (a.n_chars_a + a.n_chars_b) / CHARS_PER_SECOND
        for a in answers
        if a.seconds is not None and not a.implied
    )


@dataclass(frozen=True)
class Agreement:
    """One person beside the other people on the same comparisons."""

    pairs: Share = NOTHING
    """Pairs (own answer, another person's) that are equal. A comparison with many others makes
    many pairs of one answer, so the interval counts each comparison once."""
    n_pairs: int = 0
    decided: Share = NOTHING
    """The same where both picked a side: what the literature calls agreement."""
    consensus: Share = NOTHING
    """Own answers that are the majority of the others."""
    n_without_majority: int = 0  # the others' top answers tied: left out of `consensus`


def agreement_with(answers: Sequence[Answer], others: dict[int, dict[str, int]]) -> Agreement:
    """How far work is answered as others answer it.

    Args:
        others: for each comparison, how many other people gave each answer.
    """
    equal = n_pairs = n_shared = 0
    equal_decided = n_decided = n_shared_decided = 0
    n_with_majority = n_as_majority = n_without_majority = 0
    for answer in answers:
        counts = others.get(answer.comparison)
        if answer.purpose != Comparison.Purpose.WORK or not counts:
            continue
        n_shared += 1
        n_pairs += sum(counts.values())
        equal += counts.get(answer.choice, 0)
        sided = sum(counts.get(choice, 0) for choice in DECIDED)
        if answer.choice in DECIDED and sided:
            n_shared_decided += 1
            n_decided += sided
            equal_decided += counts.get(answer.choice, 0)
        top = max(counts.values())
        leaders = [choice for choice, n in counts.items() if n == top]
        if len(leaders) > 1:
            n_without_majority += 1
        else:
            n_with_majority += 1
            n_as_majority += leaders[0] == answer.choice
    return Agreement(
        pairs=_share_over(equal, n_pairs, n_shared),
        n_pairs=n_pairs,
        decided=_share_over(equal_decided, n_decided, n_shared_decided),
        consensus=Share(n_as_majority, n_with_majority),
        n_without_majority=n_without_majority,
    )


def _share_over(n_hits: int, n_pairs: int, n_comparisons: int) -> Share:
    """The share of pairs, with as much evidence as there are comparisons."""
    return Share(n_hits / n_pairs * n_comparisons, n_comparisons) if n_pairs else Share()


class Repeat(NamedTuple):
    """An answer and its repetition with the sides exchanged."""

    choice: str
    shown_first: str
    choice_again: str
    shown_first_again: str
    aspects: dict[str, str] = {}
    aspects_again: dict[str, str] = {}
    tags: Sequence[str] = ()
    tags_again: Sequence[str] = ()


@dataclass(frozen=True)
class Consistency:
    same: Share = NOTHING
    """Repeats that got the same answer."""
    followed_side: Share = NOTHING
    """Of the changed answers, those that picked the same place twice."""
    n_first_twice: int = 0  # of those, the first place
    aspects: Share = NOTHING
    """Of the aspect questions answered both times, those with the same answer."""
    tags: Share = NOTHING
    """Of the reasons picked at either time, those picked both times."""


def consistency(repeats: Sequence[Repeat]) -> Consistency:
    """Whether a pair gets the same answer again, and if not, whether the side decided."""
    changed = [r for r in repeats if r.choice != r.choice_again]
    places = [
        (r.choice == r.shown_first, r.choice_again == r.shown_first_again)
        if r.choice in DECIDED and r.choice_again in DECIDED
        else (None, None)
        for r in changed
    ]
    return Consistency(
        same=Share(len(repeats) - len(changed), len(repeats)),
        followed_side=share_of(p is not None and p == again for p, again in places),
        n_first_twice=sum(p is True and again is True for p, again in places),
        aspects=share_of(
            choice == r.aspects_again[name]
            for r in repeats
            for name, choice in r.aspects.items()
            if name in r.aspects_again
        ),
        tags=share_of(
            tag in r.tags and tag in r.tags_again
            for r in repeats
            for tag in {*r.tags, *r.tags_again}
        ),
    )


@dataclass(frozen=True)
class Runs:
    """The longest stretch of answers on one side."""

    longest: int = 0
    n: int = 0  # answers that picked a side
    prob: float = 1.0
    """Probability of a run at least as long if sides were fair coins, which they are for whoever
    reads: sides are drawn at random."""
    longest_key: int = 0  # the longest stretch of one and the same key, ties among them


def runs(answers: Sequence[Answer]) -> Runs:
    """Straight-lining; `answers` in the order in which they were given."""
    sides = [a.went_first for a in answers if a.went_first is not None]
    longest = _longest(sides)
    return Runs(
        longest=longest,
        n=len(sides),
        prob=prob_of_run(longest, len(sides)),
        longest_key=_longest([a.key for a in answers if not a.implied]),
    )


def _longest(values: Sequence[Any]) -> int:
    return max((sum(1 for _v in run) for _value, run in groupby(values)), default=0)


def prob_of_run(length: int, n: int) -> float:
    """Probability that n fair coins hold a run of `length` or more equal sides, either side.

    Whether a coin equals the one before it is a fair coin again, so this is a run of length − 1
    successes among n − 1; those without one follow a(m) = a(m−1) − a(m−1−r) / 2^(r+1).
    Source: Schilling 1990, The longest run of heads, College Mathematics Journal 21(3).
    """
    r, m = length - 1, n - 1
    if r <= 0:
        return 1.0
    if r > m:
        return 0.0
    if r > 60:  # 2^-60 for each of at most some thousand places: no longer a number worth printing
        return 0.0
    without = [1.0] * r + [1 - 0.5**r]
    step = 0.5 ** (r + 1)
    for i in range(r + 1, m + 1):
        without.append(without[i - 1] - step * without[i - 1 - r])
    return max(0.0, 1 - without[m])


# Pictures: the heights of bars --------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    label: str
    n: int
    height: float  # of the highest: 0 … 1


SPEED_EDGES = (5, 10, 20, 40, 80, 160, 320)
"""Seconds; each class is twice as wide as the one before."""
FEWEST_DAYS, MOST_DAYS = 14, 30


def speed_bars(seconds: Sequence[float]) -> list[Bar]:
    """How many answers took how long."""
    counts = Counter(sum(s >= edge for edge in SPEED_EDGES) for s in seconds)
    labels = [
        f"< {SPEED_EDGES[0]}",
        *(f"{low}–{high}" for low, high in pairwise(SPEED_EDGES)),
        f"≥ {SPEED_EDGES[-1]}",
    ]
    return _bars([(label, counts[place]) for place, label in enumerate(labels)])


def day_bars(moments: Sequence[datetime]) -> list[Bar]:
    """Answers on each of the last days (UTC) up to the newest answer."""
    if not moments:
        return []
    days: Counter[date] = Counter(moment.date() for moment in moments)
    last = max(days)
    n_days = min(max((last - min(days)).days + 1, FEWEST_DAYS), MOST_DAYS)
    shown = [last - timedelta(days=i) for i in reversed(range(n_days))]
    return _bars([(day.isoformat(), days[day]) for day in shown])


def _bars(counts: list[tuple[str, int]]) -> list[Bar]:
    most = max((n for _label, n in counts), default=0) or 1
    return [Bar(label, n, n / most) for label, n in counts]
