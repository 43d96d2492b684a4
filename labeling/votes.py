"""A project's answers as arrays, for the statistics."""

from typing import TYPE_CHECKING

from django.db.models import Count, Max, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce

from labeling.models import (
    Comparison,
    Preference,
    PreferenceQuerySet,
    Project,
    Ranking,
    Rater,
    content_hash,
)

if TYPE_CHECKING:
    import numpy as np

    from labeling.agreement import Votes
    from labeling.agreement_scales import Rankings


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


def rankings_of(project: Project) -> "Rankings":
    """Every current order of a response set by a person."""
    from labeling.agreement_scales import Rankings

    rows = _rankings(project).values_list("response_set_id", "response_set__prompt_id", "order")
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return Rankings(*columns)


def topics_of(project: Project) -> tuple[str, dict[str, list[int]]]:
    """What the project's comparisons are about: (by what, {topic: keys of comparisons}).

    The metadata key "topic", else "category", where comparisons bear at least two values of it;
    else the reasons that people ticked, each on the comparisons for which somebody did; else
    nothing, ("prompt", {}).
    """
    work = project.comparisons.work()
    for key in ("topic", "category"):
        found: dict[str, list[int]] = {}
        named = work.filter(metadata__has_key=key).annotate(value=KT(f"metadata__{key}"))
        for pk, value in named.values_list("pk", "value").iterator(chunk_size=5_000):
            if value:
                found.setdefault(str(value)[:100], []).append(pk)
        if len(found) >= 2:
            return key, found
    found = {}
    ticked = _current(project).filter(rater__kind=Rater.Kind.PERSON).exclude(tags=[])
    for pk, tags in ticked.values_list("comparison_id", "tags").iterator(chunk_size=5_000):
        for tag in tags:
            found.setdefault(str(tag)[:100], []).append(pk)
    return ("tag", found) if len(found) >= 2 else ("prompt", {})


def known_answers_of(project: Project, comparisons: "np.ndarray") -> "np.ndarray | None":
    """The code in `CHOICES` of the known answer to each of these comparisons, −1 where there is
    none; None where none has one.

    Args: comparisons: (comparisons,) primary keys, rising.
    """
    import numpy as np

    from labeling.agreement import CHOICES

    gold = list(project.comparisons.work().exclude(gold="").values_list("pk", "gold"))
    known = np.full(len(comparisons), -1)
    for pk, answer in gold:
        place = int(np.searchsorted(comparisons, pk))
        if place < len(comparisons) and comparisons[place] == pk:
            known[place] = CHOICES.index(answer)
    return known if (known >= 0).any() else None


def fingerprint_of(project: Project, version: str) -> str:
    """Changes with everything that a report rests on: the votes, the orders, who the raters are,
    known answers and topics as far as their number goes, and the version of the figures."""
    work = project.comparisons.work()
    rankings = _rankings(project).aggregate(n=Count("pk"), last=Max("pk"))
    return content_hash(
        version,
        state_of(project),
        [work.count(), work.exclude(gold="").count(), work.exclude(metadata={}).count()],
        [rankings["n"], rankings["last"]],
        list(project.raters.order_by("pk").values_list("pk", "name", "kind")),
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


def _rankings(project: Project) -> QuerySet:
    return Ranking.objects.filter(
        response_set__project=project, rater__kind=Rater.Kind.PERSON, superseded_at=None
    ).order_by("pk")


def _current(project: Project) -> PreferenceQuerySet:
    """Sets of raters stay outside: everybody answers them, and training shows the answer."""
    return Preference.objects.current().filter(
        comparison__project=project, comparison__purpose=Comparison.Purpose.WORK
    )
