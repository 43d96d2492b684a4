"""How each person labels: right answers, agreement, leanings, consistency, speed.

The functions below the first line take answers and give figures; `quality_of` (one person, from
their own newest answers) and `glances` (a page of people, aggregates alone) fetch the rows. Every
share carries its n and its 95 % interval. Judges have a page of their own.

Which answers count where: habits (sides, ties, speed, runs) are seen in all answers of a person,
agreement in the work alone, known answers in the qualification and check sets. Answers that follow
from a ranking or from a better answer of one's own were not picked from two sides: they count for
agreement and ties, not for sides, speed or runs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from statistics import median
from typing import Any, NamedTuple

from django.core.cache import cache
from django.db.models import Count, DateTimeField, F, Max, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import (
    Assignment,
    Choice,
    Comparison,
    Flag,
    Preference,
    Project,
    Rater,
    RepeatAnswer,
)
from labeling.shares import wilson

HUMAN_AGREEMENT = (0.60, 0.77)
"""What people reach in published preference data: about 63 % in HH-RLHF (arXiv:2204.05862), 73 to
77 % in InstructGPT (arXiv:2203.02155) and Stiennon et al. (arXiv:2009.01325)."""
LENGTHS_DIFFER = 30  # characters; AlpacaEval's definition of "longer"
CHARS_PER_SECOND = 100
"""Nobody reads at this speed: 100 characters a second are 1,000 words a minute at 6 characters to
the word, four times the silent reading of adults (238 words, Brysbaert 2019). Only the two
responses count, not the prompt, so it errs on the rater's side."""
NEWEST = 10_000  # answers of one person that their page is computed from
BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
NEWEST_IN_LIST = 1_000  # answers of each person that the list is computed from
PEOPLE_FOR_MEDIANS = 50
KEEP_MEDIANS = 600  # seconds
MISSED_SHOWN = 10
# From what on a figure is worth a sentence.
FAST_SHARE = 0.1
UNLIKELY_RUN = 0.001
ENOUGH = 20  # answers below which a habit is not spoken of
DECIDED = (Choice.A, Choice.B)
SET_PURPOSES = (Comparison.Purpose.QUALIFICATION, Comparison.Purpose.CHECK)


# Shares -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Hits among n, with the interval of Wilson; without any n there is no value."""

    n_hits: float = 0
    n: int = 0

    @property
    def value(self) -> float | None:
        return self.n_hits / self.n if self.n else None

    @property
    def low(self) -> float | None:
        return wilson(self.n_hits, self.n)[0] if self.n else None

    @property
    def high(self) -> float | None:
        return wilson(self.n_hits, self.n)[1] if self.n else None

    def excludes(self, value: float) -> bool:
        return self.n > 0 and not self.low <= value <= self.high


def share_of(hits: Iterable[bool]) -> Share:
    found = list(hits)
    return Share(sum(found), len(found))


# One person's answers -----------------------------------------------------------------------------


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

    pairs: Share = Share()
    """Pairs (own answer, another person's) that are equal. A comparison with many others makes
    many pairs of one answer, so the interval counts each comparison once."""
    n_pairs: int = 0
    decided: Share = Share()
    """The same where both picked a side: what the literature calls agreement."""
    consensus: Share = Share()
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
    same: Share = Share()
    """Repeats that got the same answer."""
    followed_side: Share = Share()
    """Of the changed answers, those that picked the same place twice."""
    n_first_twice: int = 0  # of those, the first place
    aspects: Share = Share()
    """Of the aspect questions answered both times, those with the same answer."""
    tags: Share = Share()
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


# One person ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Medians over people, to hold one person's habits against."""

    ties: float | None = None
    both_bad: float | None = None
    n_people: int = 0


@dataclass(frozen=True)
class Quality:
    """Everything that one person's page shows."""

    n_answers: int  # all current ones
    n_counted: int  # the newest of them, which the figures rest on
    known: Share
    missed: list[int]  # the newest comparisons whose known answer they did not give
    agreement: Agreement
    position: Share
    longer: Share
    ties: Share
    both_bad: Share
    usual: Rates
    consistency: Consistency
    runs: Runs
    median_seconds: float | None
    n_timed: int
    fast: Share
    speed: list[Bar]
    days: list[Bar]
    n_skipped: int
    n_given: int  # answered or skipped
    flags: dict[str, int] = field(default_factory=dict)

    @property
    def skips(self) -> Share:
        return Share(self.n_skipped, self.n_given)


def quality_of(rater: Rater) -> Quality:
    """The figures of one person, from their newest answers and those of others beside them."""
    answers = newest_answers(rater)
    timed = [a.seconds for a in answers if a.seconds is not None and not a.implied]
    given = rater.assignments.filter(repeats=None).aggregate(
        answered=Count("pk", filter=Q(state=Assignment.State.ANSWERED)),
        skipped=Count("pk", filter=Q(state=Assignment.State.SKIPPED)),
    )
    flags = Flag.objects.filter(rater=rater).values_list("kind").annotate(n=Count("pk"))
    return Quality(
        n_answers=rater.preferences.current().count(),
        n_counted=len(answers),
        known=known_answers(answers),
        missed=missed_answers(answers)[:MISSED_SHOWN],
        agreement=agreement_with(answers, _answers_of_others(rater)),
        position=position_preference(answers),
        longer=length_preference(answers),
        ties=share_of(a.choice == Choice.TIE for a in answers),
        both_bad=share_of(a.choice == Choice.BOTH_BAD for a in answers),
        usual=usual_rates(rater.project),
        consistency=consistency(_repeats_of(rater)),
        runs=runs(answers),
        median_seconds=median(timed) if timed else None,
        n_timed=len(timed),
        fast=too_fast(answers),
        speed=speed_bars(timed),
        days=day_bars([a.created_at for a in answers if a.created_at]),
        n_skipped=given["skipped"],
        n_given=given["skipped"] + given["answered"],
        flags={Flag.Kind(kind).label: n for kind, n in flags},
    )


def newest_answers(rater: Rater) -> list[Answer]:
    """The rater's `NEWEST` current answers, oldest first."""
    rows = (
        rater.preferences.current()
        .order_by("-created_at")
        .values_list(
            "comparison_id",
            "choice",
            "strength",
            "shown_first",
            "seconds",
            "created_at",
            "comparison__purpose",
            "comparison__gold",
            "comparison__response_a__n_chars",
            "comparison__response_b__n_chars",
            "ranking_id",
            "comparison__response_a__author_id",
            "comparison__response_b__author_id",
        )[:NEWEST]
    )
    return [
        Answer(*row, implied=ranking is not None or rater.pk in (author_a, author_b))
        for *row, ranking, author_a, author_b in reversed(rows)
    ]


def _answers_of_others(rater: Rater) -> dict[int, dict[str, int]]:
    """For each comparison of the rater's newest answers: other people's answers, counted."""
    newest = rater.preferences.current().order_by("-created_at").values("comparison")[:NEWEST]
    counted = (
        Preference.objects.current()
        .filter(comparison__in=newest, rater__kind=Rater.Kind.PERSON)
        .exclude(rater=rater)
        .values_list("comparison_id", "choice")
        .annotate(n=Count("pk"))
        .order_by()
    )
    others: dict[int, dict[str, int]] = {}
    for comparison, choice, n in counted:
        others.setdefault(comparison, {})[choice] = n
    return others


def _repeats_of(rater: Rater) -> list[Repeat]:
    rows = (
        RepeatAnswer.objects.filter(assignment__rater=rater)
        .exclude(assignment__repeats=None)
        .order_by("-pk")
        .values_list(
            "assignment__repeats__choice",
            "assignment__repeats__shown_first",
            "choice",
            "assignment__shown_first",
            "assignment__repeats__aspects",
            "aspects",
            "assignment__repeats__tags",
            "tags",
        )[:NEWEST]
    )
    return [Repeat(*row) for row in rows]


def usual_rates(project: Project) -> Rates:
    """How many ties and both-bads are usual here; kept for ten minutes.

    The median of the project's first people, at most fifty, and of their newest answers: enough for
    a median, and it costs the same in a project of a thousand people.
    """
    key = f"usual-rates-{project.pk}"
    kept = cache.get(key)
    rates = Rates(**kept) if kept else None
    if rates is None:
        people = project.raters.filter(kind=Rater.Kind.PERSON).order_by("pk")
        counted = _counted(list(people.values_list("pk", flat=True)[:PEOPLE_FOR_MEDIANS]))
        rates = medians(counted.values())
        if sum(row["n"] for row in counted.values()) > NEWEST_IN_LIST:
            cache.set(key, asdict(rates), KEEP_MEDIANS)  # below that it is quick, and of now
    return rates


def medians(counted: Iterable[dict[str, Any]]) -> Rates:
    """The median person's rates; whoever has few answers is left out."""
    rows = [row for row in counted if row["n"] >= ENOUGH]
    if not rows:
        return Rates()
    return Rates(
        ties=median(row["n_ties"] / row["n"] for row in rows),
        both_bad=median(row["n_both_bad"] / row["n"] for row in rows),
        n_people=len(rows),
    )


# A page of people ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """One person in the list: what aggregates alone can tell."""

    rater: Rater
    n_answers: int  # changed ones count twice where there are more than `NEWEST_IN_LIST`
    last_at: datetime | None
    known: Share
    position: Share
    ties: Share
    both_bad: Share
    same: Share  # repeats that got the same answer
    n_skipped: int

    @property
    def leans(self) -> bool:
        return self.position.n >= ENOUGH and self.position.excludes(0.5)


def glances(raters: Sequence[Rater]) -> list[Glance]:
    """The list's figures for these people: five aggregates, whatever their number.

    Habits are those of the newest answers of each, known answers and repeats of all.
    """
    ids = [rater.pk for rater in raters]
    counted = _counted(ids)
    known = {
        row["rater"]: Share(row["right"], row["n"])
        # Named like its condition, the small index of the sets leads to their answers.
        for row in Preference.objects.current()
        .filter(
            ~Q(comparison__purpose=Comparison.Purpose.WORK),
            comparison__project__in={rater.project_id for rater in raters},
            comparison__purpose__in=SET_PURPOSES,
            rater__in=ids,
        )
        .values("rater")
        .annotate(n=Count("pk"), right=Count("pk", filter=Q(choice=F("comparison__gold"))))
        .order_by()
    }
    same = {
        row["assignment__rater"]: Share(row["same"], row["n"])
        for row in RepeatAnswer.objects.filter(assignment__rater__in=ids)
        .values("assignment__rater")
        .annotate(
            n=Count("pk"), same=Count("pk", filter=Q(choice=F("assignment__repeats__choice")))
        )
        .order_by()
    }
    skipped = dict(
        Assignment.objects.filter(rater__in=ids, state=Assignment.State.SKIPPED)
        .values_list("rater")
        .annotate(n=Count("pk"))
        .order_by()
    )
    found = []
    for rater in raters:
        row = counted.get(rater.pk) or {"n": 0, "n_rows": 0, "n_ties": 0, "n_both_bad": 0}
        found.append(
            Glance(
                rater=rater,
                n_answers=row["n"] if row["n_rows"] <= NEWEST_IN_LIST else row["n_rows"],
                last_at=row.get("last_at"),
                known=known.get(rater.pk, Share()),
                position=Share(row.get("n_first", 0), row.get("n_sided", 0)),
                ties=Share(row["n_ties"], row["n"]),
                both_bad=Share(row["n_both_bad"], row["n"]),
                same=same.get(rater.pk, Share()),
                n_skipped=skipped.get(rater.pk, 0),
            )
        )
    return found


def _counted(rater_ids: list[int]) -> dict[int, dict[str, Any]]:
    """For each rater, among their `NEWEST_IN_LIST` answers: current ones, ties, both-bads, those
    with a side, those on the first; and how many rows there are in all.

    Bounded for each rater, so the list costs the same in a project of a million answers.
    """
    # Index-only; and so is finding where the newest of each begin.
    totals = dict(
        Preference.objects.filter(rater__in=rater_ids)
        .values_list("rater")
        .annotate(n=Count("pk"))
        .order_by()
    )
    newest = Preference.objects.filter(rater=OuterRef("pk")).order_by("-created_at")
    place = NEWEST_IN_LIST - 1
    begin = Coalesce(
        Subquery(newest.values("created_at")[place : place + 1]), Value(BEFORE_ALL, DateTimeField())
    )
    sided = Q(
        preferences__choice__in=DECIDED,
        preferences__shown_first__in=("a", "b"),
        preferences__ranking=None,
    )
    rows = (
        Rater.objects.filter(
            pk__in=rater_ids,
            preferences__superseded_at=None,
            preferences__created_at__gte=begin,
        )
        .values("pk")
        .annotate(
            n=Count("preferences"),
            n_ties=Count("preferences", filter=Q(preferences__choice=Choice.TIE)),
            n_both_bad=Count("preferences", filter=Q(preferences__choice=Choice.BOTH_BAD)),
            n_sided=Count("preferences", filter=sided),
            n_first=Count(
                "preferences", filter=sided & Q(preferences__choice=F("preferences__shown_first"))
            ),
            last_at=Max("preferences__created_at"),
        )
        .order_by()
    )
    return {row["pk"]: row | {"n_rows": totals[row["pk"]]} for row in rows}


# In words -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A sentence for the lead, and what to do next."""

    level: str  # "warn" | "bad"
    text: str
    what_next: str


def findings(quality: Quality, pass_mark: float) -> list[Finding]:
    """What stands out in a person's figures; nothing where the numbers are too few to tell."""
    found = []
    known, agreed = quality.known, quality.agreement.decided
    if known.n and known.high < pass_mark:
        found.append(
            Finding(
                "bad",
                _("Misses comparisons whose answer is known more often than the project allows."),
                _("Read the missed ones together; then let them take the qualification again."),
            )
        )
    if agreed.n >= ENOUGH and agreed.high < HUMAN_AGREEMENT[0]:
        found.append(
            Finding(
                "bad",
                _("Agrees with others less than people usually do, even on hard questions."),
                _(
                    "Look at where they differ: they may have read the guidelines in another way, "
                    "or have seen what the others missed."
                ),
            )
        )
    if quality.fast.n >= ENOUGH and quality.fast.low > FAST_SHARE:
        found.append(
            Finding(
                "bad",
                _("Often answers before anybody could have read both responses."),
                _("Talk to them; pause them if it goes on, and label those comparisons again."),
            )
        )
    if quality.runs.prob < UNLIKELY_RUN:
        found.append(
            Finding(
                "bad",
                ngettext(
                    "Chose the same side %(n)d time in a row.",
                    "Chose the same side %(n)d times in a row.",
                    quality.runs.longest,
                )
                % {"n": quality.runs.longest},
                _("Sides are drawn at random, so this is not chance. Read those answers; pause."),
            )
        )
    if quality.position.n >= ENOUGH and quality.position.excludes(0.5):
        leans_first = quality.position.value > 0.5
        found.append(
            Finding(
                "warn",
                _("Leans to the response shown first.")
                if leans_first
                else _("Leans to the response shown second."),
                _(
                    "Sides are shuffled, so no model gains by it, but labels are lost. Ask them to "
                    "read both to the end. One person in twenty stands out here by luck alone."
                ),
            )
        )
    same = quality.consistency.same
    if same.n >= ENOUGH // 2 and same.high < HUMAN_AGREEMENT[1]:
        found.append(
            Finding(
                "warn",
                _("Often answers the same pair differently the second time."),
                _("Their answers are partly chance: ask for more labels on what they judged."),
            )
        )
    for share, usual, text in (
        (quality.ties, quality.usual.ties, _("Calls far more pairs equal than others do.")),
        (quality.both_bad, quality.usual.both_bad, _("Finds both bad far more often than others.")),
    ):
        if share.n >= ENOUGH and usual is not None and share.low > max(2 * usual, 0.1):
            found.append(
                Finding(
                    "warn",
                    text,
                    _("Ask what they understand by it; an example in the guidelines helps."),
                )
            )
    return found
