"""A project's answers as arrays, for the statistics."""

from typing import TYPE_CHECKING

from django.db.models import Count, Max
from django.db.models.functions import Coalesce

from labeling.models import Comparison, Preference, PreferenceQuerySet, Project, Rater

if TYPE_CHECKING:
    from labeling.agreement import Votes


def votes_of(project: Project) -> "Votes":
    """Every current answer of people and judges to the project's work."""
    import numpy as np  # the page asks the functions below, and serves without numpy

    from labeling.agreement import CHOICES, Votes

    raters = list(
        Rater.objects.filter(project=project).order_by("pk").values_list("pk", "name", "kind")
    )
    rater_code = {pk: code for code, (pk, _name, _kind) in enumerate(raters)}
    choice_code = {choice: code for code, choice in enumerate(CHOICES)}
    first_code = {"a": 0, "b": 1, "": -1}
    rows = _current(project).values_list(
        "comparison_id",
        "comparison__prompt_id",
        "rater_id",
        "choice",
        "shown_first",
        "prob_a_ab",
        "prob_a_ba",
        "comparison__response_a__n_chars",
        "comparison__response_b__n_chars",
        Coalesce("strength", 0),
        "seconds",
        "created_at",
    )
    # Python tuples of a million votes take ten times the room of the array: never all at once.
    votes = np.fromiter(
        (
            (
                *(item, prompt, rater_code[rater], choice_code[choice], first_code[first]),
                *(*numbers, at.timestamp()),
            )
            for item, prompt, rater, choice, first, *numbers, at in rows.iterator(chunk_size=5_000)
        ),
        dtype=[
            ("comparison", "i8"),
            ("prompt", "i8"),
            ("rater", "i8"),
            ("choice", "i8"),
            ("shown_first", "i8"),
            ("prob_a_ab", "f8"),  # None becomes NaN
            ("prob_a_ba", "f8"),
            ("length_a", "i8"),
            ("length_b", "i8"),
            ("strength", "i8"),
            ("seconds", "f8"),
            ("at", "f8"),
        ],
    )
    comparisons, item = np.unique(votes["comparison"], return_inverse=True)
    return Votes(
        raters=[name for _pk, name, _kind in raters],
        is_judge=np.array([kind == Rater.Kind.JUDGE for _pk, _name, kind in raters], dtype=bool),
        n_comparisons=project.comparisons.work().count(),
        item=item,
        comparisons=comparisons,
        rater_keys=np.array([pk for pk, _name, _kind in raters], dtype=np.int64),
        **{name: votes[name].copy() for name in votes.dtype.names[1:]},
    )


def state_of(project: Project) -> tuple[int, int]:
    """How many current answers the project holds, and the key of the newest (0: there is none)."""
    state = _current(project).aggregate(n=Count("pk"), last=Max("pk"))
    return state["n"], state["last"] or 0


def changed_since(project: Project, n_preferences: int, last_preference: int) -> tuple[int, int]:
    """Answers that came, and answers that were withdrawn or edited, since `state_of` said this.

    Keys tell, not times: an imported answer bears the time at which it was given.
    """
    current = _current(project)
    n_new = current.filter(pk__gt=last_preference).count()
    return n_new, n_preferences - (current.count() - n_new)


def _current(project: Project) -> PreferenceQuerySet:
    """Sets of raters stay outside: everybody answers them, and training shows the answer."""
    return Preference.objects.current().filter(
        comparison__project=project, comparison__purpose=Comparison.Purpose.WORK
    )
