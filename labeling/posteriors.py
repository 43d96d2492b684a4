"""What Dawid and Skene's model makes of a project's votes: probabilities for each comparison.

Exports ask here, and training may. Computed anew from the votes each time, always from the same
beginning, so the same votes give the same numbers, whoever asked before. Needs numpy (the extra
`stats`), which is imported where it is used: a web process that is never asked never loads it.
"""

import importlib.util
from typing import TYPE_CHECKING

from django.db.models import QuerySet
from django.utils.translation import gettext_noop

from labeling.aggregation import CLASSES
from labeling.columns import code_of, read_columns
from labeling.models import Choice, Comparison, Preference, Project, Rater
from labeling.reports import StatisticsMissing

if TYPE_CHECKING:
    import numpy as np

    from labeling.rater_models import Fit

LABELS = ("human", "ai", "mixed", "all")
MISSING = gettext_noop(
    "Weighing votes by Dawid and Skene's model needs numpy, which is not installed here: "
    "pip install '.[stats]'"
)


class NumpyMissing(StatisticsMissing):
    """numpy is not installed here; the message is one line that says what to do."""

    def __init__(self) -> None:
        Exception.__init__(self, MISSING)


def can_weigh() -> bool:
    return importlib.util.find_spec("numpy") is not None


class Posteriors:
    """The probability of each choice, by comparison."""

    def __init__(self, comparisons: "np.ndarray", fit: "Fit"):
        self.comparisons = comparisons
        """(comparisons with a counted vote,) their primary keys, rising."""
        self.probabilities = fit.posteriors
        """(comparisons, choices) in the order of `CLASSES`: a, b, tie, both_bad."""
        self.fit = fit

    def __len__(self) -> int:
        return len(self.comparisons)

    def of(self, comparison: int) -> dict[str, float] | None:
        """{"a": 0.91, "b": …, "tie": …, "both_bad": …}; None if no vote on it was weighed."""
        place = int(self.comparisons.searchsorted(comparison))
        if place == len(self) or self.comparisons[place] != comparison:
            return None
        return dict(zip(CLASSES, self.probabilities[place].tolist(), strict=True))


def posteriors(
    project: Project, labels: str = "mixed", current: QuerySet | None = None
) -> Posteriors:
    """Every comparison of the project's work with a counted vote, weighed.

    Args:
        labels: human, ai, mixed (people alone wherever one of them answered, as in
            `counted_kind`), or all: people and judges as raters alike.
        current: the answers that count at all; None: all current ones.
    Raises: NumpyMissing.
    """
    if labels not in LABELS:
        raise ValueError(f"no such labels: {labels}")
    if not can_weigh():
        raise NumpyMissing
    import numpy as np

    from labeling.rater_models import Answers, weighed

    counted = (
        (Preference.objects.current() if current is None else current)
        .filter(comparison__project=project, comparison__purpose=Comparison.Purpose.WORK)
        .exclude(choice=Choice.UNPARSED)
    )
    if labels in ("human", "ai"):
        kind = Rater.Kind.PERSON if labels == "human" else Rater.Kind.JUDGE
        counted = counted.filter(rater__kind=kind)
    rows = counted.values_list(
        "comparison_id",
        "rater_id",
        code_of("choice", {choice: code for code, choice in enumerate(CLASSES)}),
        code_of("shown_first", {"a": 0, "b": 1}),
        code_of("rater__kind", {Rater.Kind.PERSON: 1}),
    )
    votes = read_columns(
        rows, {"item": "i8", "rater": "i8", "label": "i2", "first": "i2", "human": "i2"}
    )
    votes = votes[np.lexsort((votes["rater"], votes["item"]))]
    if labels == "mixed":
        by_people = np.unique(votes["item"][votes["human"] == 1])
        votes = votes[(votes["human"] == 1) | ~np.isin(votes["item"], by_people)]
    comparisons, item = np.unique(votes["item"], return_inverse=True)
    rater = np.unique(votes["rater"], return_inverse=True)[1]
    answers = Answers.of(
        item,
        rater,
        votes["label"],
        votes["first"],
        n_items=len(comparisons),
        n_classes=len(CLASSES),
    )
    return Posteriors(comparisons, weighed(answers)[0])
