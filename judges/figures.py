"""What judges' verdicts come to: counts, shares with their intervals, the time left."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import QuerySet
from django.utils.formats import number_format
from django.utils.translation import ngettext

from judges.claims import currency_of
from judges.judging import n_left_out
from judges.models import JudgeRun, RunWorker, Verdict
from labeling.jobs import Job
from labeling.shares import chance_of_split, clopper_pearson

TROUBLES = {
    "out_of_memory": "out_of_memory",
    "retried": "retried",
    "rate_limited": "rate_limited",
    "lost_answers": "lost_answers",
    "bounded_answers": "bounded",
}
"""What programs are told of an engine's counts: {name: the engine's own}."""


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
    n_ordered: int = 0
    """Of the parsed ones, those that were asked in both orders."""
    n_refused: int = 0
    n_cut: int = 0
    n_consistent: int = 0
    n_first_twice: int = 0
    n_second_twice: int = 0
    mean_mass: float | None = None
    n_tokens: int = 0
    """Read and written."""
    n_tokens_written: int = 0
    cost: float | None = None
    """In the currency of the judge's server; None where no price was known."""
    seconds: float = 0.0
    n_exemplars: int = 0
    """Comparisons that a run left out, being the judge's exemplars."""
    troubles: Mapping[str, int] = field(default_factory=dict)
    """What a run's engines met: see judges.ml.asking.Engine.counts."""

    @property
    def unparsed(self) -> Share:
        return Share(self.n - self.n_parsed, self.n)

    @property
    def consistency(self) -> Share:
        """Of the parsed verdicts in both orders, those that name the same response in both."""
        return Share(self.n_consistent, self.n_ordered)

    @property
    def first_place(self) -> Share:
        """Of the verdicts that named the same place in both orders, those that named the first.

        A judge that has no liking for a place, and only wavers, names each as often.
        """
        return Share(self.n_first_twice, self.n_first_twice + self.n_second_twice)

    @property
    def position_bias_p(self) -> float | None:
        """p-value of `first_place` if both places were named alike: exact binomial, two-sided.
        None where no verdict named a place twice."""
        share = self.first_place
        return chance_of_split(share.k, share.n) if share.n else None

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
        first_low, first_high = self.first_place.interval or (None, None)
        unparsed_low, unparsed_high = self.unparsed.interval or (None, None)
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
            "unparsed_share": self.unparsed.value,
            "unparsed_low": unparsed_low,
            "unparsed_high": unparsed_high,
            "first_place_share": self.first_place.value,
            "first_place_low": first_low,
            "first_place_high": first_high,
            "position_bias_p": self.position_bias_p,
            "tokens_written": self.n_tokens_written,
            "cost": self.cost,
            **{name: self.troubles.get(kind, 0) for name, kind in TROUBLES.items()},
        }


def figures_by(verdicts: QuerySet[Verdict], field: str) -> dict[int, Figures]:
    """Figures for every value of `field` ("run" or "version") that has verdicts; one query."""
    return {row.pop(field): Figures(**row) for row in verdicts.counted_by(field)}


def figures_of(run: JudgeRun) -> Figures:
    """What the run has come to so far, over all its starts."""
    figures = figures_by(run.verdicts.all(), "run").get(run.pk, Figures())
    of_members = figures_by(run.member_verdicts.all(), "asked_for").get(run.pk)
    if of_members is not None:
        figures = replace(
            figures,
            n_tokens=figures.n_tokens + of_members.n_tokens,
            n_tokens_written=figures.n_tokens_written + of_members.n_tokens_written,
            cost=of_members.cost if currency_of(run.version) else None,  # no sum of two currencies
            seconds=figures.seconds + of_members.seconds,
        )
    return replace(figures, n_exemplars=n_left_out(run.version), troubles=troubles_of(run))


def troubles_of(run: JudgeRun) -> dict[str, int]:
    """What the engines of all its workers met, over all its starts."""
    found: Counter[str] = Counter()
    for troubles in run.workers.values_list("troubles", flat=True):
        found.update(troubles)
    return dict(found)


def troubles_in_words(troubles: Mapping[str, int]) -> list[str]:
    """A sentence for each kind that there was."""
    return [words(troubles[kind]) for kind, words in _WORDS.items() if troubles.get(kind)]


def _out_of_memory(n: int) -> str:
    said = ngettext(
        "Memory ran out %(n)s time: the batch was made smaller and asked again, so the run is "
        "slower and nothing is lost. A smaller model, 4 bits or fewer tokens in a batch avoid it.",
        "Memory ran out %(n)s times: batches were made smaller and asked again, so the run is "
        "slower and nothing is lost. A smaller model, 4 bits or fewer tokens in a batch avoid it.",
        n,
    )
    return said % {"n": _number(n)}


def _retried(n: int) -> str:
    said = ngettext(
        "%(n)s request to the server failed and was sent again.",
        "%(n)s requests to the server failed and were sent again.",
        n,
    )
    return said % {"n": _number(n)}


def _rate_limited(n: int) -> str:
    said = ngettext(
        "The server limited the rate %(n)s time, and was waited for. Fewer requests at once may "
        "be quicker.",
        "The server limited the rate %(n)s times, and was waited for. Fewer requests at once may "
        "be quicker.",
        n,
    )
    return said % {"n": _number(n)}


def _lost_answers(n: int) -> str:
    said = ngettext(
        "%(n)s answer was lost on its way; it is counted at the most that it can have cost.",
        "%(n)s answers were lost on their way; they are counted at the most that they can have "
        "cost.",
        n,
    )
    return said % {"n": _number(n)}


def _bounded(n: int) -> str:
    said = ngettext(
        "%(n)s answer was not among the tokens that the server names; it has the most that it can "
        "have, so that its verdict leans less than the model does.",
        "%(n)s answers were not among the tokens that the server names; they have the most that "
        "they can have, so that their verdicts lean less than the model does.",
        n,
    )
    return said % {"n": _number(n)}


def _number(n: int) -> str:
    return number_format(n, force_grouping=True)


_WORDS = {
    "out_of_memory": _out_of_memory,
    "rate_limited": _rate_limited,
    "retried": _retried,
    "lost_answers": _lost_answers,
    "bounded": _bounded,
}


def per_minute_now(workers: Iterable[RunWorker]) -> float | None:
    """Comparisons that the run's present workers judge in a minute, each at its own speed since its
    model was loaded. None before the first of them has kept a batch."""
    speeds = []
    for worker in workers:
        if worker.left_at is None and worker.asking_since and worker.last_kept_at:
            seconds = (worker.last_kept_at - worker.asking_since).total_seconds()
            if seconds > 0:
                speeds.append(60 * worker.n_judged / seconds)
    return sum(speeds) if speeds else None


def seconds_left(run: JudgeRun, per_minute: float | None) -> float | None:
    """Time to the end at this speed; None where nobody can say."""
    if run.status != Job.Status.RUNNING or run.n_total is None or not per_minute:
        return None
    return 60 * max(0, run.n_total - run.n_done) / per_minute


def progress_of(run: JudgeRun) -> dict[str, Any]:
    """How far a run is and what it has come to so far, as its page and the API say it."""
    figures = figures_of(run)
    workers = list(run.workers.all())
    speed = per_minute_now(workers) if run.status == Job.Status.RUNNING else None
    return {
        **figures.as_json(),
        "per_minute": speed or figures.per_minute,
        "seconds_left": seconds_left(run, speed),
        "workers": [
            {
                "name": str(worker),
                "joined_at": worker.joined_at,
                "left_at": worker.left_at,
                "loading": worker.left_at is None and worker.asking_since is None,
                "judged": worker.n_judged,
                "problem": worker.problem,
            }
            for worker in workers
        ],
    }
