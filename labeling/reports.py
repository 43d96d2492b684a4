"""A project's agreement figures and leaderboard, for the worker and the commands."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import transaction

from labeling.models import Project
from labeling.votes import known_answers_of, rankings_of, topics_of, votes_of

if TYPE_CHECKING:
    from labeling.agreement import Votes
    from labeling.rater_models import Fit, Parameters

OWN_MODELS = ("dawid-skene", "one-coin", "majority")
ALL_MODELS = (*OWN_MODELS, "MACE", "GLAD")
"""Ways to make one label of the votes; the last two by crowd-kit, which takes seconds."""
VERSION = "3"
"""Of the figures: a stored report of another version is computed anew."""

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


def compute_anew(project: Project, reports: Any, by: Any) -> Any:
    """The computation among the project's `reports` that waits or works; a new one, of which `by`
    is told, if none does."""
    with transaction.atomic():
        # Two clicks at the same moment: the second waits here for the first.
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        report = reports.active().first()
        if report is None:
            report = reports.create(project=project, created_by=by)
            report.enqueue()
    return report


def stop(reports: Any) -> None:
    """Stop the computation that waits or works; the figures of before stay."""
    for report in reports.active():
        report.request_cancel()


def agreement_of(
    project: Project,
    most_raters: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    models: Sequence[str] = OWN_MODELS,
) -> dict[str, Any]:
    """The project's figures of now; arguments and result as in `agreement_report`, and more keys:
    those of `scale_figures`, "truth", "over_time" and "topics".

    Args: models: of `ALL_MODELS`; those held beside the model.
    Raises: StatisticsMissing.
    """
    return report_of(project, most_raters, on_progress, models)[0]


def report_of(
    project: Project,
    most_raters: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    models: Sequence[str] = OWN_MODELS,
    parameters: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures, and the parameters of the rater model for the next time.

    Args: parameters: of the last time: where the model begins.
    Raises: StatisticsMissing.
    """
    with statistics_for("Agreement figures"):
        from labeling.agreement import agreement_report  # libraries of 430 MB
        from labeling.agreement_scales import scale_figures
        from labeling.agreement_time import agreement_over_time
        from labeling.disputes import disputed_topics
        from labeling.truth import truth_figures
    votes = votes_of(project)
    people = votes.where(~votes.is_judge[votes.rater])
    rankings, known = rankings_of(project), known_answers_of(project, votes.comparisons)
    by, topics = topics_of(project)

    def beside() -> tuple[dict[str, Any], "Fit | None"]:
        truth, fit = truth_figures(votes, known, _start(votes, parameters), models)
        figures = {
            **scale_figures(votes, rankings),
            "version": VERSION,
            "truth": truth,
            "over_time": agreement_over_time(people),
            "topics": disputed_topics(people, topics, by),
        }
        return figures, fit

    # At the same time: numpy lets go of the interpreter while it works. The database stays with
    # this thread, which reports how far it is.
    with ThreadPoolExecutor(max_workers=1) as second:
        others = second.submit(beside)
        report = agreement_report(votes, most_raters, on_progress)
        figures, fit = others.result()
    report |= figures
    return report, _parameters(votes, fit)


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


def _start(votes: "Votes", parameters: dict[str, Any] | None) -> "Parameters | None":
    """Where a fit begins that goes on from another; None where that one knew too little.

    Of fewer votes than half of today's it is no better a beginning than the shares of votes, and
    might hold the fit in a worse place.
    """
    import numpy as np

    from labeling.rater_models import Parameters

    if not parameters or 2 * parameters["n_votes"] < len(votes):
        return None
    prior = np.array(parameters["prior"])
    if not prior.all():  # a class that could not be true then would never be again
        return None
    confusion = np.full((len(votes.raters), len(prior), len(prior)), np.nan)
    for place, key in enumerate(votes.rater_keys.tolist()):
        if str(key) in parameters["raters"]:
            confusion[place] = parameters["raters"][str(key)]
    return Parameters(prior, confusion)


def _parameters(votes: "Votes", fit: "Fit | None") -> dict[str, Any]:
    """A fit as JSON; raters by primary key, since names and places may change."""
    if fit is None:
        return {}
    tables = {
        str(key): table.round(6).tolist()
        for key, table in zip(votes.rater_keys.tolist(), fit.parameters.confusion, strict=True)
        if not (table != table).any()  # NaN: no vote
    }
    return {"n_votes": len(votes), "prior": fit.parameters.prior.tolist(), "raters": tables}
