"""Who changed what, and what happened: one row each, never edited."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.utils.text import Truncator
from django.utils.translation import gettext as _

from labeling.models import Change, Project
from labeling.sealing import seal_changes

LISTED = 8
"""How many parts of a list are read out."""


def note_change(
    project: Project,
    actor: Any,
    action: str,
    subject: object,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> Change | None:
    """Write a change down in the caller's transaction; None when nothing differs.

    `action` is a verb with its object ("pause rater"), `subject` what it was done to. Of `before`
    and `after` only what differs is kept.
    """
    before, after = before or {}, after or {}
    differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    if (before or after) and not differing:
        return None
    return _written(
        project,
        actor,
        action,
        subject,
        {key: before[key] for key in before if key in differing},
        {key: after[key] for key in after if key in differing},
    )


def note_event(
    actor: Any,
    action: str,
    subject: object,
    *,
    project: Project | None = None,
    **details: Any,
) -> Change:
    """Write down something that happened and that changed no setting: a sign-in, an export. It is
    the installation's where no project is named; `actor` is None where nobody was signed in."""
    return _written(project, actor, action, subject, {}, details)


def _written(
    project: Project | None,
    actor: Any,
    action: str,
    subject: object,
    before: dict[str, Any],
    after: dict[str, Any],
) -> Change:
    change = Change.objects.create(
        project=project,
        actor=actor,
        action=action,
        subject=str(subject)[:200],
        before=before,
        after=after,
    )
    # After the commit, in a transaction of its own: the chain has one end, and nobody shall wait
    # there for somebody's long change. What is missed is sealed by the next sweep.
    transaction.on_commit(seal_changes, robust=True)
    return change


@dataclass(frozen=True)
class Difference:
    """What one change did to one thing, in words; "" stands for nothing."""

    name: str
    before: str
    after: str


def differences(change: Change, of: int | None = None) -> list[Difference]:
    """The change in words, without the comparisons that it is about (see `comparisons_of`); `of`
    one of them alone, if its key is given."""
    found = []
    for name in {**change.before, **change.after}:
        before, after = change.before.get(name), change.after.get(name)
        if of is not None and _is_by_key(before):
            before = before.get(str(of))
        if name != "comparisons":
            found.append(Difference(name.replace("_", " "), _in_words(before), _in_words(after)))
    return found


def comparisons_of(change: Change) -> list[int]:
    """The keys of the comparisons that a change is about."""
    keys = change.after.get("comparisons") or change.before.get("comparisons") or []
    return keys if isinstance(keys, list) else []


def _is_by_key(value: Any) -> bool:
    """Whether these are the values of many comparisons by their keys."""
    return isinstance(value, dict) and bool(value) and all(key.isdecimal() for key in value)


def _in_words(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, list):
        words = ", ".join(_in_words(part) for part in value[:LISTED])
        return f"{words} … ({len(value)})" if len(value) > LISTED else words
    if _is_by_key(value):  # how often each
        counted = Counter(_in_words(part) or "–" for part in value.values())
        return ", ".join(f"{part} ({n})" for part, n in counted.most_common(LISTED))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_in_words(part)}" for key, part in value.items())
    return Truncator(str(value)).chars(200)
