"""Comparisons with a known answer: training, qualification, and gold mixed into the work."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, F, Max, Min, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import Choice, Comparison, Preference, Project, Rater
from labeling.places import count_places, lock_people
from labeling.shares import Share

SUSPICIOUS_FROM = 4  # answers from which on an item that most people miss is worth a look
MOST = 1_000  # comparisons that one step moves


@dataclass(frozen=True)
class Item:
    """A comparison of a set, and how raters did on it."""

    comparison: Comparison
    right: Share
    answers: dict[str, int]

    @property
    def is_suspicious(self) -> bool:
        """Most people miss it: perhaps the known answer is wrong."""
        return self.right.n >= SUSPICIOUS_FROM and self.right.value < 0.5


@dataclass(frozen=True)
class Chosen:
    """What became of the comparisons that a lead named."""

    n_moved: int = 0
    n_without_gold: int = 0
    n_unknown: int = 0  # ids that name no comparison that could be moved
    n_ranked: int = 0  # pairs of a ranking, which are judged as a whole


def set_sizes(project: Project) -> dict[str, int]:
    """How many comparisons each set holds; the empty ones too."""
    sizes = dict.fromkeys(Comparison.Purpose.values[1:], 0)
    counted = in_sets(project).values_list("purpose").annotate(n=Count("pk")).order_by()
    return sizes | dict(counted)


def in_sets(project: Project) -> QuerySet[Comparison]:
    return project.comparisons.exclude(purpose=Comparison.Purpose.WORK)


def has_entrance(project: Project) -> bool:
    """Whether raters are asked a training or a qualification before real work."""
    entrance = (Comparison.Purpose.TRAINING, Comparison.Purpose.QUALIFICATION)
    return in_sets(project).filter(purpose__in=entrance).exists()


def items(comparisons: Iterable[Comparison]) -> list[Item]:
    """These comparisons with people's answers: one query, whatever their number."""
    rows = list(comparisons)
    answers: dict[int, dict[str, int]] = {}
    counted = (
        Preference.objects.current()
        .filter(comparison__in=[row.pk for row in rows], rater__kind=Rater.Kind.PERSON)
        .values_list("comparison_id", "choice")
        .annotate(n=Count("pk"))
        .order_by()
    )
    for pk, choice, n in counted:
        answers.setdefault(pk, {})[choice] = n
    return [
        Item(
            row,
            Share(answers.get(row.pk, {}).get(row.gold, 0), sum(answers.get(row.pk, {}).values())),
            answers.get(row.pk, {}),
        )
        for row in rows
    ]


@transaction.atomic
def choose_by_id(project: Project, names: list[str], purpose: str, gold: str, actor: Any) -> Chosen:
    """Put the comparisons with these numbers, or ids of their file, into a set.

    `gold` is their known answer; "" keeps the one each has. Whoever has none is left out.
    """
    lock_people(project)
    by_name = project.comparisons.filter(external_id__in=names)
    named = set(by_name.values_list("external_id", flat=True))
    # What is no id of a file is the number that our pages show. Longer ones are no numbers of ours.
    numbers = {
        int(name)
        for name in names
        if name not in named and name.isascii() and name.isdigit() and len(name) <= 18
    }
    by_number = project.comparisons.filter(pk__in=numbers)
    known = named | {str(pk) for pk in by_number.values_list("pk", flat=True)}
    found = project.comparisons.filter(Q(external_id__in=named) | Q(pk__in=numbers))
    pairs = found.filter(response_set=None)
    pks = list(pairs.values_list("pk", flat=True))
    ask_entrance_again(project, purpose, pairs if gold else pairs.exclude(gold=""))
    if gold:
        _set_gold(project, pairs, gold, actor)
    n_moved, n_without_gold = move_locked(project, pks, purpose, actor)
    return Chosen(
        n_moved=n_moved,
        n_without_gold=n_without_gold,
        n_unknown=sum(name not in known for name in names),
        n_ranked=found.count() - len(pks),
    )


@transaction.atomic
def choose_with_gold(project: Project, n: int, purpose: str, actor: Any) -> Chosen:
    """Put `n` comparisons whose answer came with their file into a set, drawn at random."""
    ready = _movable(project).exclude(gold="").order_by("random_key")
    n_moved, n_without = set_purpose(project, _first(ready, n), purpose, actor)
    return Chosen(n_moved, n_without)


@transaction.atomic
def choose_unanimous(project: Project, n: int, at_least: int, purpose: str, actor: Any) -> Chosen:
    """Put `n` comparisons on which `at_least` people or more gave one answer into a set.

    That answer becomes the known one: the golden questions that the literature asks for are
    certain and look like all others (arXiv:2505.19134).
    """
    lock_people(project)
    unanimous = list(
        Preference.objects.current()
        .filter(
            comparison__in=_movable(project).filter(gold="").values("pk"),
            rater__kind=Rater.Kind.PERSON,
        )
        .values("comparison")
        .annotate(n=Count("pk"), low=Min("choice"), high=Max("choice"))
        .filter(n__gte=at_least, low=F("high"))
        .order_by("-n", "comparison")
        .values_list("comparison", "low")[: min(n, MOST)]
    )
    found = [pk for pk, _answer in unanimous]
    ask_entrance_again(project, purpose, project.comparisons.filter(pk__in=found))
    for choice in Choice.values:
        pks = [pk for pk, answer in unanimous if answer == choice]
        if pks:
            _set_gold(project, project.comparisons.filter(pk__in=pks), choice, actor)
    n_moved, n_without = move_locked(project, found, purpose, actor)
    return Chosen(n_moved, n_without)


def _movable(project: Project) -> QuerySet[Comparison]:
    """Work that is judged pair by pair, and that is more than implied by a better answer."""
    return project.comparisons.work().filter(response_set=None, labels_wanted__gt=0)


def _first(ready: QuerySet[Comparison], n: int) -> list[int]:
    return list(ready.values_list("pk", flat=True)[: min(n, MOST)])


def _set_gold(project: Project, pairs: QuerySet[Comparison], gold: str, actor: Any) -> None:
    before = dict(pairs.exclude(gold=gold).values_list("pk", "gold"))
    pairs.update(gold=gold)
    note_change(
        project,
        actor,
        gettext_noop("set known answer"),
        _("%(n)d comparisons") % {"n": len(before)},
        before={str(pk): answer for pk, answer in before.items()},
        after=dict.fromkeys(map(str, before), gold),
    )


@transaction.atomic
def set_purpose(
    project: Project, comparison_ids: Iterable[int], purpose: str, actor: Any
) -> tuple[int, int]:
    """Put comparisons to another purpose: (how many were, how many were not for want of `gold`).

    Comparisons of a set want no labels. A larger training or qualification set is asked of
    everybody again, as far as they have not answered it.
    """
    # Purposes change under everybody's lock: who is asked the entrance again, reads them twice.
    lock_people(project)
    pks = list(comparison_ids)
    ready = project.comparisons.filter(pk__in=pks).exclude(gold="")
    ask_entrance_again(project, purpose, ready)
    return move_locked(project, pks, purpose, actor)


def ask_entrance_again(project: Project, purpose: str, ready: QuerySet[Comparison]) -> None:
    """Ask everybody again, if one of the `ready` comparisons comes into training or qualification.

    Before any comparison is locked: who joined since everybody was locked may be answering one.
    """
    entrance = Comparison.Purpose.TRAINING, Comparison.Purpose.QUALIFICATION
    if purpose in entrance and ready.exclude(purpose=purpose).exists():
        project.raters.filter(kind=Rater.Kind.PERSON).update(qualified_at=None)


def move_locked(
    project: Project, comparison_ids: Iterable[int], purpose: str, actor: Any
) -> tuple[int, int]:
    """`set_purpose`, when people are locked and asked again."""
    chosen = project.comparisons.filter(pk__in=list(comparison_ids)).exclude(purpose=purpose)
    list(chosen.order_by("pk").select_for_update(no_key=True).values_list("pk"))
    n_without_gold = 0
    if purpose == Comparison.Purpose.WORK:
        pks = list(chosen.values_list("pk", flat=True))
        chosen.update(purpose=purpose, labels_wanted=project.labels_per_comparison)
        count_places(pks)
    else:
        n_without_gold = chosen.filter(gold="").count()
        with_gold = chosen.exclude(gold="")
        pks = list(with_gold.values_list("pk", flat=True))
        with_gold.update(purpose=purpose, labels_wanted=0, open_places=0)
    if pks:
        note_change(
            project,
            actor,
            gettext_noop("change purpose"),
            f"{len(pks)} comparisons",
            after={"purpose": purpose, "comparisons": pks[:100]},
        )
    return len(pks), n_without_gold
