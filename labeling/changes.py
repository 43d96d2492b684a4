"""Who changed what in a project: one row per change, never edited."""

from typing import Any

from labeling.models import Change, Project


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
    return Change.objects.create(
        project=project,
        actor=actor,
        action=action,
        subject=str(subject)[:200],
        before={key: before[key] for key in before if key in differing},
        after={key: after[key] for key in after if key in differing},
    )
