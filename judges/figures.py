"""What judges' verdicts come to: counts, shares with their intervals, the time left."""

from dataclasses import dataclass, replace
from typing import Any

from django.db.models import QuerySet

from judges.judging import n_left_out
from judges.models import JudgeRun, Verdict
from labeling.jobs import Job
from labeling.shares import clopper_pearson


@dataclass(frozen=True)
class Share:
    """k of n, with its exact 95 % interval (Clopper and Pearson 1934).

    It takes every comparison for itself: the database counts verdicts, not prompts. Where many
    comparisons share a prompt, the agreement report's interval of the same share is the honest one.
    """

    k: int
    n: int

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """None where nothing was counted."""
        return clopper_pearson(self.k, self.n) if self.n else None


@dataclass(frozen=True)
class Figures:
    """What a set of verdicts comes to."""

    n: int = 0
    n_parsed: int = 0
    n_refused: int = 0
    n_cut: int = 0
    n_consistent: int = 0
    n_first_twice: int = 0
    n_second_twice: int = 0
    mean_mass: float | None = None
    n_tokens: int = 0
    seconds: float = 0.0
    n_exemplars: int = 0
    """Comparisons that a run left out, being the judge's exemplars."""

    @property
    def unparsed(self) -> Share:
        return Share(self.n - self.n_parsed, self.n)

    @property
    def consistency(self) -> Share:
        """Of the parsed verdicts, those that name the same response in both orders."""
        return Share(self.n_consistent, self.n_parsed)

    @property
    def n_asked(self) -> int:
        """Those that fitted the model's context: the answer mass is over them."""
        return self.n - self.n_refused

    @property
    def per_minute(self) -> float | None:
        """Comparisons judged in a minute of computing, both orders; loading left out."""
        return 60 * self.n / self.seconds if self.seconds else None

    def as_json(self) -> dict[str, Any]:
        """What `judge --json` prints. A question is one comparison, asked in both orders."""
        low, high = self.consistency.interval or (None, None)
        return {
            "questions": self.n,
            "parsed": self.n_parsed,
            "unparsed": self.n - self.n_parsed,
            "seconds": round(self.seconds, 3),
            "position_consistency": self.consistency.value,
            "position_consistency_low": low,
            "position_consistency_high": high,
            "first_shown_twice": self.n_first_twice,
            "second_shown_twice": self.n_second_twice,
            "mean_answer_mass": self.mean_mass,
            "did_not_fit": self.n_refused,
            "prompts_cut": self.n_cut,
            "tokens": self.n_tokens,
            "exemplars_left_out": self.n_exemplars,
        }


def figures_by(verdicts: QuerySet[Verdict], field: str) -> dict[int, Figures]:
    """Figures for every value of `field` ("run" or "version") that has verdicts; one query."""
    return {row.pop(field): Figures(**row) for row in verdicts.counted_by(field)}


def figures_of(run: JudgeRun) -> Figures:
    """What the run has come to so far, over all its starts."""
    figures = figures_by(run.verdicts.all(), "run").get(run.pk, Figures())
    return replace(figures, n_exemplars=n_left_out(run.version))


def seconds_left(run: JudgeRun, figures: Figures) -> float | None:
    """Computing time to the end at the speed so far; None where nobody can say."""
    if run.status != Job.Status.RUNNING or run.n_total is None or not figures.n:
        return None
    return figures.seconds / figures.n * max(0, run.n_total - run.n_done)
