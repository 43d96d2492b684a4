"""How each person labels, as leads see it: one person's page, a page of people, what stands out.

The figures are those of `labeling/habits.py`; `quality_of` (one person, from their own newest
answers) and `glances` (a page of people, aggregates alone) fetch the rows. Judges have a page of
their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

from django.core.cache import cache
from django.db.models import Count, DateTimeField, F, Max, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.habits import (
    DECIDED,
    SET_PURPOSES,
    Agreement,
    Answer,
    Bar,
    Consistency,
    Repeat,
    Runs,
    agreement_with,
    consistency,
    day_bars,
    known_answers,
    length_preference,
    missed_answers,
    position_preference,
    runs,
    speed_bars,
    too_fast,
)
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
from labeling.shares import Share, share_of

HUMAN_AGREEMENT = (0.60, 0.77)
"""What people reach in published preference data: about 63 % in HH-RLHF (arXiv:2204.05862), 73 to
77 % in InstructGPT (arXiv:2203.02155) and Stiennon et al. (arXiv:2009.01325)."""
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
