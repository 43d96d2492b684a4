"""Which comparison a rater sees next, and keeping the answer.

A comparison gives out one place per label it wants (`open_places`). Taking a place is one
conditional UPDATE, so no two raters ever take the last one, on SQLite and PostgreSQL alike.
"""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from labeling.models import Assignment, Choice, Comparison, Preference, Rater


class NotYours(Exception):
    """The answer came too late, twice, or for a comparison that this rater does not hold."""


@dataclass(frozen=True)
class EmptyQueue:
    """Why a rater has nothing to do."""

    n_comparisons: int
    n_open: int  # still want a label that nobody holds
    n_held: int  # want a label that another rater holds now
    held_until: Any  # the first of those leases to run out, or None


def next_comparison(rater: Rater) -> Assignment | None:
    """Give the rater a comparison to judge, or the one they hold; None when nothing is left.

    The comparison is held until `expires_at`, then its place returns by itself.
    """
    take_back_expired(rater.project_id)
    with transaction.atomic():
        held = (
            rater.assignments.select_for_update()
            .filter(state=Assignment.State.LEASED, expires_at__gt=timezone.now())
            .order_by("-leased_at")
            .first()
        )
        if held is not None:
            held.expires_at = _lease_end()
            held.save(update_fields=["expires_at"])
            return held
        # Others may be taking the same rows right now. PostgreSQL skips rows that are locked; on
        # SQLite this transaction already holds the only write lock.
        queue = Comparison.objects.open_to(rater).in_queue_order()
        if connection.features.has_select_for_update_skip_locked:
            queue = queue.select_for_update(skip_locked=True, of=("self",))
        comparison = queue.first()
        if comparison is None:
            return None
        _take_place(comparison.pk, "The last place has just been taken.")
        lease = {
            "state": Assignment.State.LEASED,
            "leased_at": timezone.now(),
            "expires_at": _lease_end(),
        }
        assignment, _created = Assignment.objects.update_or_create(
            comparison=comparison,
            rater=rater,
            defaults=lease,
            # Drawn once and kept: a reload, or a second try after a lease ran out, swaps no sides.
            create_defaults=lease | {"shown_first": random.choice("ab")},  # noqa: S311
        )
        return assignment


def why_empty(rater: Rater) -> EmptyQueue:
    """What the project still holds when `next_comparison` found nothing for this rater."""
    comparisons = Comparison.objects.filter(project=rater.project_id)
    leases = Assignment.objects.filter(
        comparison__project=rater.project_id, state=Assignment.State.LEASED
    ).exclude(rater=rater)
    return EmptyQueue(
        n_comparisons=comparisons.count(),
        n_open=comparisons.filter(open_places__gt=0).count(),
        n_held=leases.count(),
        held_until=leases.order_by("expires_at").values_list("expires_at", flat=True).first(),
    )


@transaction.atomic
def record_preference(
    rater: Rater,
    comparison: Comparison,
    choice: str,
    *,
    strength: int | None = None,
    rationale: str = "",
    tags: list[str] | None = None,
    seconds: float | None = None,
) -> Preference:
    """Keep a person's answer to the comparison they hold.

    An answer that comes after the lease ran out is kept too, as long as a place is still free.

    Raises: NotYours if the rater has answered it or never held it, or if others have taken the
    places meanwhile; nothing changes.
    """
    given = Assignment.objects.filter(comparison=comparison, rater=rater)
    answer = {"state": Assignment.State.ANSWERED, "closed_at": timezone.now()}
    if not given.filter(state=Assignment.State.LEASED).update(**answer):
        if not given.filter(state=Assignment.State.EXPIRED).update(**answer):
            raise NotYours(
                "This comparison is not yours to answer, or you have answered it already."
            )
        _take_place(
            comparison.pk,
            "You held this comparison for too long: others have answered it meanwhile.",
        )
    assignment = Assignment.objects.get(comparison=comparison, rater=rater)
    return Preference.objects.create(
        comparison=comparison,
        rater=rater,
        choice=choice,
        strength=strength if choice in (Choice.A, Choice.B) else None,
        rationale=rationale,
        tags=tags or [],
        seconds=seconds,
        shown_first=assignment.shown_first,
        inclusion_probability=assignment.inclusion_probability,
        audit=assignment.stream == Assignment.Stream.AUDIT,
    )


@transaction.atomic
def skip_comparison(rater: Rater, comparison: Comparison, reason: str = "") -> None:
    """Give the place back; this rater is not asked again.

    Raises: NotYours if they do not hold it.
    """
    skipped = Assignment.objects.filter(
        comparison=comparison, rater=rater, state=Assignment.State.LEASED
    ).update(state=Assignment.State.SKIPPED, skip_reason=reason, closed_at=timezone.now())
    if not skipped:
        raise NotYours("This comparison is no longer yours.")
    _count_places(comparison.pk)


@transaction.atomic
def undo_last(rater: Rater) -> Assignment | None:
    """Take back the rater's last answer or skip and show that comparison again; None if there is
    nothing to take back.

    A withdrawn answer is kept as superseded. What the rater held meanwhile goes back to the queue.

    Raises: NotYours if others have taken the place of a skipped comparison; nothing changes.
    """
    last = (
        rater.assignments.filter(state__in=[Assignment.State.ANSWERED, Assignment.State.SKIPPED])
        .exclude(closed_at=None)
        .order_by("-closed_at")
        .first()
    )
    if last is None:
        return None
    if last.state == Assignment.State.SKIPPED:
        _take_place(last.comparison_id, "Others have the comparison that you skipped.")
    rater.preferences.current().filter(comparison=last.comparison_id).update(
        superseded_at=timezone.now()
    )
    held = rater.assignments.filter(state=Assignment.State.LEASED)
    let_go = list(held.values_list("comparison_id", flat=True))
    held.delete()
    for comparison_id in let_go:
        _count_places(comparison_id)
    last.state = Assignment.State.LEASED
    last.leased_at = timezone.now()
    last.expires_at = _lease_end()
    last.closed_at = None
    last.save(update_fields=["state", "leased_at", "expires_at", "closed_at"])
    return last


def take_back_expired(project_id: int | None = None) -> int:
    """Return the places of leases that ran out to their comparisons; how many."""
    expired = Assignment.objects.filter(
        state=Assignment.State.LEASED, expires_at__lte=timezone.now()
    )
    if project_id is not None:
        expired = expired.filter(comparison__project=project_id)
    n_returned = 0
    for pk, comparison_id in expired.values_list("pk", "comparison_id"):
        with transaction.atomic():
            # The rater may have answered between the reading and now: the state decides.
            if Assignment.objects.filter(
                pk=pk, state=Assignment.State.LEASED, expires_at__lte=timezone.now()
            ).update(state=Assignment.State.EXPIRED):
                _count_places(comparison_id)
                n_returned += 1
    return n_returned


def _take_place(comparison_id: int, otherwise: str) -> None:
    taken = Comparison.objects.filter(pk=comparison_id, open_places__gt=0).update(
        open_places=F("open_places") - 1
    )
    if not taken:
        raise NotYours(otherwise)


def _count_places(comparison_id: int) -> None:
    """After a place came back: count the free ones from the rows, instead of adding one.

    An imported vote may have filled the place while it was held, and two requests at once may both
    believe that they give it back.
    """
    comparison = Comparison.objects.select_for_update().get(pk=comparison_id)
    n_answered = comparison.preferences.current().filter(rater__kind=Rater.Kind.PERSON).count()
    n_held = comparison.assignments.filter(state=Assignment.State.LEASED).count()
    comparison.open_places = max(0, comparison.labels_wanted - n_answered - n_held)
    comparison.save(update_fields=["open_places"])


def _lease_end() -> Any:
    return timezone.now() + timedelta(minutes=settings.PREFLOOP_LEASE_MINUTES)
