"""A project's answers as arrays, for the statistics."""

from typing import TYPE_CHECKING

from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce

from labeling.columns import Seconds, code_of, places_of, read_columns
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
    rows = _current(project).values_list(
        "comparison_id",
        "rater_id",
        code_of("choice", {choice: code for code, choice in enumerate(CHOICES)}),
        code_of("shown_first", {"a": 0, "b": 1}),
        "prob_a_ab",
        "prob_a_ba",
        Coalesce("strength", 0),
        "seconds",
        Seconds("created_at"),
    )
    kinds = {
        "comparison": "i8",
        "rater": "i8",
        "choice": "i2",
        "shown_first": "i2",
        "prob_a_ab": "f8",
        "prob_a_ba": "f8",
        "strength": "i2",
        "seconds": "f8",
        "at": "f8",
    }
    votes = read_columns(rows, kinds)
    # Read on its own: a comparison's prompt and lengths once, not once for every vote.
    answered = project.comparisons.work().filter(
        Exists(Preference.objects.current().filter(comparison=OuterRef("pk")))
    )
    compared = read_columns(
        answered.values_list("pk", "prompt_id", "response_a__n_chars", "response_b__n_chars"),
        {"pk": "i8", "prompt": "i8", "length_a": "i4", "length_b": "i4"},
    )
    compared = compared[np.argsort(compared["pk"])]
    place, known = places_of(compared["pk"], votes["comparison"])
    keys = np.array([pk for pk, _name, _kind in raters], dtype=np.int64)
    rater, is_here = places_of(keys, votes["rater"])
    # What was deleted, or came, while we read: as if we had read a moment later, or earlier.
    kept = known & is_here
    order = np.flatnonzero(kept)[np.lexsort((rater[kept], place[kept]))]
    votes, place, rater = votes[order], place[order], rater[order]
    codes, item = np.unique(place, return_inverse=True)
    whole = {name: votes[name].astype(np.int64) for name in ("choice", "shown_first", "strength")}
    real = {name: votes[name].copy() for name in ("prob_a_ab", "prob_a_ba", "seconds", "at")}
    return Votes(
        raters=[name for _pk, name, _kind in raters],
        is_judge=np.array([kind == Rater.Kind.JUDGE for _pk, _name, kind in raters], dtype=bool),
        n_comparisons=project.comparisons.work().count(),
        item=item,
        comparisons=compared["pk"][codes],
        rater_keys=keys,
        rater=rater,
        prompt=compared["prompt"][place],
        length_a=compared["length_a"][place].astype(np.int64),
        length_b=compared["length_b"][place].astype(np.int64),
        **whole,
        **real,
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


def fingerprint_of(project: Project, version: str, state: tuple[int, int]) -> str:
    """Changes with everything that a report rests on: the votes (by `state_of`), the orders, who
    the raters are, known answers and topics as far as their number goes, and the version of the
    figures."""
    work = project.comparisons.work()
    rankings = _rankings(project).aggregate(n=Count("pk"), last=Max("pk"))
    return content_hash(
        version,
        state,
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
    newer = Count("pk", filter=Q(pk__gt=last_preference))
    state = _current(project).aggregate(n=Count("pk"), n_new=newer)
    return state["n_new"], n_preferences - (state["n"] - state["n_new"])


def _rankings(project: Project) -> QuerySet:
    return Ranking.objects.filter(
        response_set__project=project, rater__kind=Rater.Kind.PERSON, superseded_at=None
    ).order_by("pk")


def _current(project: Project) -> PreferenceQuerySet:
    """Sets of raters stay outside: everybody answers them, and training shows the answer."""
    return Preference.objects.current().filter(
        comparison__project=project, comparison__purpose=Comparison.Purpose.WORK
    )
