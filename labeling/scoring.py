"""Ratings of single responses by a judge, for whoever trains on them.

A judge is a rater, and its app hangs what it is made of on its rater: so training asks the rater,
and neither app has to know the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from labeling.models import Messages, Project, Rater

LOWEST, HIGHEST = 1.0, 10.0
"""The ends of the scale."""


class CannotRate(Exception):
    """The judge cannot be asked, or no more; the message is one line that says what to do."""


@dataclass(frozen=True)
class Rating:
    """What a judge makes of one response."""

    value: float | None
    """From LOWEST to HIGHEST; None where it gave no score that can be read."""
    problem: str = ""
    """Why not."""


class Rates(Protocol):
    """A judge that is ready to be asked. Of a server it spends from the limits that it was opened
    with."""

    spent_tokens: int
    spent_cost: float

    def __call__(
        self, asked: Sequence[tuple[Messages, Messages]]
    ) -> Iterator[list[tuple[int, Rating]]]:
        """Ratings of (prompt, response) as they come: (place in `asked`, rating), each place once.

        Raises: CannotRate; what was yielded before stays good.
        """


@dataclass(frozen=True)
class OwnModel:
    """What a judge of ours loads where it is asked, for whoever must know what room it takes."""

    folder: str
    dtype: str
    in_4_bits: bool
    context: int
    """Tokens of a question at most; 0 is as much as the model can read."""
    lead: int
    """About how many tokens every question begins with; they are held once."""
    words: int
    """About how many stand after the response."""


def own_model_of(rater: Rater) -> OwnModel | None:
    """The model that `open_rater` would load; None where the judge is on a server, or gone."""
    version = getattr(rater, "judge_version", None)
    found: OwnModel | None = version.own_model() if version is not None else None
    return found


def raters_that_rate(project: Project) -> list[Rater]:
    """The judges of a project that rate each response by itself, the newest first."""
    rows = Rater.objects.filter(project=project, kind=Rater.Kind.JUDGE)
    return list(rows.filter(judge_version__recipe__mode="score").order_by("-pk"))


def open_rater(
    rater: Rater,
    *,
    most_tokens: int | None = None,
    most_cost: float | None = None,
    spent_tokens: int = 0,
    spent_cost: float = 0.0,
) -> Rates:
    """The judge behind a rater, ready to be asked; a model of ours is loaded now.

    Args: most_…: that a server may be asked for, with what was spent before; None is no limit.
    Raises: CannotRate.
    """
    version = getattr(rater, "judge_version", None)
    if version is None:
        raise CannotRate(f"The judge {rater} is gone: it was deleted.")
    found: Rates = version.open_to_rate(
        most_tokens=most_tokens,
        most_cost=most_cost,
        spent_tokens=spent_tokens,
        spent_cost=spent_cost,
    )
    return found
