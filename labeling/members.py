"""Who belongs to a project, in which role, and how much they may judge."""

from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.access import permissions
from labeling.changes import note_change
from labeling.models import Membership, Project, Rater

Role = Membership.Role


class MayNot(Exception):
    """The change of a role is not allowed; the text says why."""


def is_owner(user: Any, project: Project) -> bool:
    return user.is_superuser or project.memberships.filter(user=user, role=Role.OWNER).exists()


@transaction.atomic
def set_role(project: Project, user: Any, role: str | None, actor: Any) -> None:
    """Give a person a role, another one, or none; their answers stay in any case.

    Whoever leads no longer has their open invitations withdrawn: a link would let them in again.

    Raises: MayNot if the actor may not change owners, or if no owner would be left.
    """
    # Two owners who remove each other at the same moment: the second waits here for the first.
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    membership = project.memberships.filter(user=user).first()
    before = membership.role if membership else None
    if Role.OWNER in (before, role) and before != role:
        if not is_owner(actor, project):
            raise MayNot(_("Only an owner makes or changes owners."))
        others = project.memberships.filter(role=Role.OWNER).exclude(user=user)
        if before == Role.OWNER and not others.exists():
            raise MayNot(_("A project keeps at least one owner."))
    if role is None:
        project.memberships.filter(user=user).delete()
    else:
        project.memberships.update_or_create(user=user, defaults={"role": role})
    if "lead" not in permissions(user, project):
        project.invitations.filter(created_by=user, revoked_at=None).update(
            revoked_at=timezone.now()
        )
    note_change(
        project,
        actor,
        gettext_noop("change role"),
        user,
        before={"role": before},
        after={"role": role},
    )


@transaction.atomic
def set_label_limit(rater: Rater, limit: int | None, actor: Any) -> None:
    """Let the rater give at most so many labels; None: as the project says."""
    before, rater.label_limit = rater.label_limit, limit
    rater.save(update_fields=["label_limit"])
    note_change(
        rater.project,
        actor,
        gettext_noop("set label limit"),
        rater,
        before={"label_limit": before},
        after={"label_limit": limit},
    )
