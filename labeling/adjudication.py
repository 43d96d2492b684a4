"""A lead decides a comparison: for training in place of the votes, for agreement not at all."""

from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import Choice, Comparison, Decision


@transaction.atomic
def decide(
    comparison: Comparison, user: Any, choice: str, *, strength: int | None = None, note: str = ""
) -> Decision:
    """Keep the decision; one that was there before is kept as superseded.

    Raises: ValueError for a choice that is none ("unparsed" is a judge's alone).
    """
    if choice not in Choice.values or choice == Choice.UNPARSED:
        raise ValueError(f"{choice!r} is no decision")
    former = _supersede(comparison)
    decision = Decision.objects.create(
        comparison=comparison,
        decided_by=user,
        choice=choice,
        strength=strength if choice in (Choice.A, Choice.B) else None,
        note=note,
    )
    note_change(
        comparison.project,
        user,
        gettext_noop("decide"),
        comparison,
        before=_said(former),
        after={**_said(decision), "comparisons": [comparison.pk]},
    )
    return decision


@transaction.atomic
def withdraw_decision(comparison: Comparison, user: Any) -> None:
    """Let the votes count again; the decision is kept as superseded."""
    former = _supersede(comparison)
    if former is not None:
        note_change(
            comparison.project,
            user,
            gettext_noop("withdraw decision"),
            comparison,
            before=_said(former),
            after={"comparisons": [comparison.pk]},
        )


def _supersede(comparison: Comparison) -> Decision | None:
    # Locked, so that of two leads who decide at once the second supersedes the first.
    Comparison.objects.select_for_update(no_key=True).get(pk=comparison.pk)
    former = comparison.decisions.filter(superseded_at=None).first()
    if former is not None:
        former.superseded_at = timezone.now()
        former.save(update_fields=["superseded_at"])
    return former


def _said(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {}
    said = {"choice": decision.choice, "strength": decision.strength, "note": decision.note}
    return {name: value for name, value in said.items() if value}
