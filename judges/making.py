"""What a judge of a project may be made of: the rules that pages and programs share.

What a recipe alone may be stands with it, in `judges.ml.config`.
"""

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from judges.engines import why_unusable
from judges.ml.config import PAIR_MODES, Exemplar
from judges.models import JudgeServer, JudgeVersion
from labeling.models import Choice, Comparison, Project
from labeling.storage import check_model_name


class NotPossible(ValueError):
    """No judge can be made so; the message says why, and `field` what to mend: "model", "server",
    "members" or "exemplars"."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field


def checked_place(
    project: Project, user: Any, mode: str, model: str, server: JudgeServer | None
) -> tuple[str, JudgeServer | None]:
    """The model and the server of a judge of this mode: a jury has neither.

    Raises: NotPossible.
    """
    if mode == "jury":
        return "", None
    if mode == "reward" and server is not None:
        raise NotPossible("server", _("A reward model runs in a worker of ours."))
    if not model:
        raise NotPossible("model", _("Name the model that judges."))
    if server is None:  # a server's names are its own
        try:
            check_model_name(project, model, user)
        except ValidationError as error:
            raise NotPossible("model", error.messages[0]) from None
        wrong = why_unusable(project, model)
        if wrong:
            raise NotPossible("model", wrong)
    return model, server


def possible_members(project: Project) -> QuerySet[JudgeVersion]:
    """Versions that may sit in a jury of the project: no juries."""
    versions = JudgeVersion.objects.filter(judge__project=project).exclude(recipe__mode="jury")
    return versions.select_related("judge").order_by("judge__name", "-number")


def check_members(project: Project, members: Sequence[int]) -> None:
    """Raises: NotPossible for one that may not sit in a jury of the project."""
    if possible_members(project).filter(pk__in=members).count() != len(set(members)):
        raise NotPossible(
            "members", _("A member of the jury is no judge of this project, or a jury itself.")
        )


def exemplars_of_gold(
    project: Project, numbers: Sequence[int], *, mode: str, ties: bool
) -> tuple[Exemplar, ...]:
    """Comparisons with a reference answer as exemplars, by their numbers; every other one shows its
    better response second.

    Raises: NotPossible for a number of no such comparison of the project, or one that is gold for
        an answer that the judge does not have.
    """
    answers = [Choice.A, Choice.B] + ([Choice.TIE] if ties and mode in PAIR_MODES else [])
    known = (
        Comparison.objects.filter(project=project, pk__in=numbers, gold__in=answers)
        .select_related("prompt", "response_a", "response_b")
        .in_bulk()
    )
    missing = [str(number) for number in numbers if number not in known]
    if missing:
        raise NotPossible(
            "exemplars",
            _("No comparison of this project with a reference answer: %(numbers)s.")
            % {"numbers": ", ".join(missing)},
        )
    return tuple(
        _exemplar(known[number], better_second=bool(place % 2))
        for place, number in enumerate(dict.fromkeys(numbers))
    )


def _exemplar(row: Comparison, *, better_second: bool) -> Exemplar:
    better, worse = row.response_a, row.response_b
    if row.gold == Choice.B:
        better, worse = worse, better
    first, second = (worse, better) if better_second else (better, worse)
    answer = "2" if better_second else "1"
    return Exemplar(
        prompt=row.prompt.messages,
        first=first.messages,
        second=second.messages,
        answer="tie" if row.gold == Choice.TIE else answer,
    )
