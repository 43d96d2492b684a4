"""Who holds which comparison: places are taken and come back, and locks have one order.

A comparison gives out one place per label it wants (`open_places`). Taking a place is one
conditional UPDATE, so no two raters ever take the last one, on SQLite and PostgreSQL alike.

Locks are taken in one order, so that two requests never wait for each other: the **rater**, whose
row stands for everything they hold, then their **assignments**, then **comparisons** by their keys.
Whoever comes from elsewhere (`take_back_expired`) takes what is free and leaves the rest.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import (
    Assignment,
    Comparison,
    Preference,
    Project,
    Rater,
)

State, Stream, Purpose = Assignment.State, Assignment.Stream, Comparison.Purpose


PAUSED = _lazy("You are paused in this project; what you held went back to the queue.")


class NotYours(Exception):
    """The answer came too late, twice, or for a comparison that this rater does not hold."""


@transaction.atomic
def release(rater: Rater, assignment_ids: Iterable[int] | None = None) -> int:
    """Give back what the rater holds, or these of it; how many. They may come to them again."""
    lock_rater(rater)
    held = rater.assignments.filter(state=State.LEASED)
    if assignment_ids is not None:
        named = Q(pk__in=list(assignment_ids))
        # One assignment stands for its whole response set.
        sets = held.filter(named).values_list("comparison__response_set", flat=True)
        of_sets = Q(comparison__response_set__in=[pk for pk in sets if pk is not None])
        held = held.filter(named | of_sets)
    return _give_back(held)


@transaction.atomic
def count_places(comparison_ids: Iterable[int]) -> None:
    """Count the open places of these comparisons from the rows, after something else changed them.

    Counting instead of adding, because an imported vote may have filled a place while it was held,
    and two requests at once may both believe that they give it back.
    """
    work = Comparison.objects.filter(pk__in=list(comparison_ids), purpose=Purpose.WORK)
    # Locked first, and in one order: who takes a place now waits until it is counted. Then one
    # statement, hence one moment: an answer that arrives meanwhile is either still a lease or
    # already a preference, never neither.
    pks = list(work.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    answered = Preference.objects.current().filter(
        comparison=OuterRef("pk"), rater__kind=Rater.Kind.PERSON
    )
    held = Assignment.objects.filter(comparison=OuterRef("pk"), state=State.LEASED, repeats=None)
    Comparison.objects.filter(pk__in=pks).update(
        open_places=Greatest(F("labels_wanted") - _n_rows(answered) - _n_rows(held), 0)
    )


def take_back_expired(project_id: int | None = None, most: int | None = None) -> int:
    """Return the places of leases that ran out to their comparisons; how many.

    The first `most` of them, if given. What somebody else is changing at this moment stays for the
    next time.
    """
    expired = Assignment.objects.filter(state=State.LEASED, expires_at__lte=timezone.now())
    concerned = expired if project_id is None else expired.filter(comparison__project=project_id)
    # What a rater holds of a response set goes back in one step, or somebody gets a part of it.
    together: dict[tuple[int, object], dict[int, int]] = {}
    rows = concerned.order_by("expires_at", "pk").values_list(
        "pk", "comparison", "repeats", "rater", "comparison__response_set"
    )
    for pk, comparison_id, repeats, rater_id, set_id in rows[:most]:
        whole = ("alone", pk) if set_id is None or repeats is not None else set_id
        together.setdefault((rater_id, whole), {})[pk] = comparison_id
    n_returned = 0
    for held in together.values():
        with transaction.atomic():
            leases = expired.filter(pk__in=held)
            comparisons = Comparison.objects.filter(pk__in=held.values())
            if _all_free(leases, len(held)) and _all_free(comparisons, len(set(held.values()))):
                n_returned += _give_back(leases)
    return n_returned


def lock_people(project: Project) -> None:
    """Lock the project's people before comparisons, for a change that needs both."""
    people = project.raters.filter(kind=Rater.Kind.PERSON).order_by("pk")
    list(people.select_for_update(no_key=True).values_list("pk"))


def lock_rater(rater: Rater) -> None:
    """Lock the rater until the transaction ends, and read anew what a lead may have changed."""
    locked = Rater.objects.select_for_update(no_key=True).filter(pk=rater.pk)
    rater.paused_at, rater.qualified_at, rater.disqualified_at = locked.values_list(
        "paused_at", "qualified_at", "disqualified_at"
    ).get()


def refuse_paused(rater_id: int) -> None:
    """Lock the rater, whose answers come one by one. Raises: NotYours if a lead paused them."""
    rater = Rater.objects.select_for_update(no_key=True).filter(pk=rater_id)
    if rater.values_list("paused_at").first() != (None,):
        raise NotYours(PAUSED)


def _give_back(leases: Any) -> int:
    """Give these back in one step; how many there were."""
    held = list(leases.order_by("pk").values_list("pk", "comparison", "repeats"))
    n_returned, freed = 0, []
    for pk, comparison_id, repeats in held:
        # The rater may have answered between the reading and now: the state decides.
        if not leases.filter(pk=pk).update(state=State.EXPIRED):
            continue
        if repeats is not None:
            Assignment.objects.filter(pk=pk, state=State.EXPIRED).delete()
        else:
            freed.append(comparison_id)
        n_returned += 1
    if freed:
        count_places(freed)
    return n_returned


def _all_free(rows: Any, n: int) -> bool:
    """Lock these rows without waiting; whether that got all `n` of them."""
    free = rows.order_by("pk").select_for_update(skip_locked=True, no_key=True)
    return len(free.values_list("pk", flat=True)) == n


def takes_places(assignment: Assignment) -> bool:
    return assignment.repeats_id is None and assignment.comparison.purpose == Purpose.WORK


def place_taken(comparison_id: int) -> bool:
    """Take one place by one conditional statement; False if none is left."""
    places = Comparison.objects.filter(pk=comparison_id, open_places__gt=0)
    return bool(places.update(open_places=F("open_places") - 1))


def _n_rows(rows: Any) -> Coalesce:
    """The number of rows of a correlated queryset, as an expression."""
    of_one = rows.order_by().values("comparison").annotate(n=Count("pk")).values("n")
    return Coalesce(Subquery(of_one), 0)


def take_place(comparison_id: int, otherwise: str) -> None:
    if not place_taken(comparison_id):
        raise NotYours(otherwise)


def lease_time() -> timedelta:
    return timedelta(minutes=settings.PREFLOOP_LEASE_MINUTES)
