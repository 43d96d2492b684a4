"""A project's agreement figures and leaderboard, for the worker and the commands."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labeling.models import Project
from labeling.votes import votes_of

LIBRARIES = ("numpy", "scipy", "pandas", "sklearn", "statsmodels", "evalica")
"""What the extra `stats` brings, by the names they are imported under."""


class StatisticsMissing(Exception):
    """The extra `stats` is not installed here; the message is one line that says what to do."""

    def __init__(self, what: str, library: str) -> None:
        super().__init__(
            f"{what} need statistics libraries, and {library} is not installed here: "
            "pip install '.[stats]'"
        )


def libraries_missing() -> list[str]:
    """Those of `LIBRARIES` that are not installed here; none is loaded for it."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def agreement_of(
    project: Project,
    most_raters: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The project's figures of now; arguments and result as in `agreement_report`.

    Raises: StatisticsMissing.
    """
    with statistics_for("Agreement figures"):
        from labeling.agreement import agreement_report  # libraries of 430 MB
    return agreement_report(votes_of(project), most_raters, on_progress)


def leaderboard_of(
    project: Project, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The project's leaderboard of now; result as in `leaderboard_report`.

    Raises: StatisticsMissing.
    """
    with statistics_for("Leaderboards"):
        from labeling.leaderboard import answers_of, leaderboard_report
    return leaderboard_report(answers_of(project), on_progress)


@contextmanager
def statistics_for(what: str) -> Iterator[None]:
    """Around an import: a library of the extra `stats` that is missing is said in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        raise StatisticsMissing(what, library) from error
