"""What a lead does with a rater: pause, let in, ask again, delete."""

from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import (
    Assignment,
    Comparison,
    Rater,
)
from labeling.places import count_places, lock_rater, release

State, Stream, Purpose = Assignment.State, Assignment.Stream, Comparison.Purpose


@transaction.atomic
def pause_rater(rater: Rater, actor: Any) -> None:
    """Give the rater no more work, and put what they hold back into the queue."""
    # The update locks the rater: an answer on its way is kept first or refused.
    if Rater.objects.filter(pk=rater.pk, paused_at=None).update(paused_at=timezone.now()):
        n_returned = release(rater)
        note_change(
            rater.project, actor, gettext_noop("pause rater"), rater, after={"returned": n_returned}
        )
    rater.refresh_from_db()


@transaction.atomic
def resume_rater(rater: Rater, actor: Any) -> None:
    """Let a paused rater work again."""
    if Rater.objects.filter(pk=rater.pk).exclude(paused_at=None).update(paused_at=None):
        note_change(rater.project, actor, gettext_noop("resume rater"), rater)
    rater.refresh_from_db()


@transaction.atomic
def requalify(rater: Rater, actor: Any) -> None:
    """Ask the rater the training and qualification sets again; earlier answers are superseded."""
    lock_rater(rater)
    entrance = Purpose.TRAINING, Purpose.QUALIFICATION
    rater.preferences.current().filter(comparison__purpose__in=entrance).update(
        superseded_at=timezone.now()
    )
    rater.assignments.filter(comparison__purpose__in=entrance).update(state=State.EXPIRED)
    Rater.objects.filter(pk=rater.pk).update(qualified_at=None, disqualified_at=None)
    release(rater)
    rater.refresh_from_db()
    note_change(rater.project, actor, gettext_noop("ask for qualification again"), rater)


@transaction.atomic
def let_in(rater: Rater, actor: Any) -> None:
    """Give the rater real work, whatever the qualification says."""
    Rater.objects.filter(pk=rater.pk).update(qualified_at=timezone.now(), disqualified_at=None)
    rater.refresh_from_db()
    note_change(rater.project, actor, gettext_noop("let rater in"), rater)


@transaction.atomic
def delete_rater(rater: Rater) -> None:
    """Delete a rater with all their answers; the places of those are open again."""
    lock_rater(rater)
    concerned = Comparison.objects.filter(assignments__rater=rater) | Comparison.objects.filter(
        preferences__rater=rater
    )
    pks = list(concerned.values_list("pk", flat=True).distinct())
    rater.delete()
    count_places(pks)
