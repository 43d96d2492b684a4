"""Raters' flags: a lead has dealt with one, or takes it up again."""

from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.models import Flag


@transaction.atomic
def resolve_flag(flag: Flag, user: Any) -> None:
    """Say that the flag is dealt with; once is enough."""
    if Flag.objects.filter(pk=flag.pk, resolved_at=None).update(
        resolved_at=timezone.now(), resolved_by=user
    ):
        _note(flag, user, gettext_noop("resolve flag"))


@transaction.atomic
def reopen_flag(flag: Flag, user: Any) -> None:
    """Take a resolved flag up again."""
    resolved = Flag.objects.filter(pk=flag.pk).exclude(resolved_at=None)
    if resolved.update(resolved_at=None, resolved_by=None):
        _note(flag, user, gettext_noop("reopen flag"))


def _note(flag: Flag, user: Any, action: str) -> None:
    comparison = flag.comparison
    after = {"flag": flag.kind, "rater": flag.rater.name, "comparisons": [comparison.pk]}
    note_change(comparison.project, user, action, comparison, after=after)
