"""Links that make whoever opens them a member of a project.

The link holds 256 random bits; only their hash is stored, so it can be shown once, and a copy of
the database opens no door.
"""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from django.core.cache import cache
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.members import MayNot, is_owner
from labeling.models import Invitation, Membership, Project

Role = Membership.Role
# An invitation never takes anything away: it counts only where it leads upwards. A rater may do
# what a viewer may not, and the other way round; neither stands above the other.
RANKS = {Role.VIEWER: 1, Role.RATER: 1, Role.LEAD: 2, Role.OWNER: 3}
FAILURES_ALLOWED = 30
FAILURES_FORGOTTEN = 600  # seconds


class NotValid(Exception):
    """The link opens nothing (any more). The text is the same for every reason but time and use."""


def invite(
    project: Project, role: str, actor: Any, *, days: int = 7, uses: int = 1
) -> tuple[Invitation, str]:
    """Make an invitation: it, and the token that its link bears, which is not stored.

    Raises: MayNot if an owner is to be made by somebody who is none.
    """
    if role == Role.OWNER and not is_owner(actor, project):
        raise MayNot(_("Only an owner makes or changes owners."))
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        invitation = Invitation.objects.create(
            project=project,
            role=role,
            token_hash=hash_of(token),
            created_by=actor,
            expires_at=timezone.now() + timedelta(days=days),
            uses_left=uses,
        )
        note_change(
            project,
            actor,
            gettext_noop("invite"),
            Role(role).label,
            after={"days": days, "uses": uses},
        )
    return invitation, token


def revoke(invitation: Invitation, actor: Any) -> None:
    """Let the link open nothing from now on; members that it made stay."""
    with transaction.atomic():
        open_ones = Invitation.objects.filter(pk=invitation.pk, revoked_at=None)
        if open_ones.update(revoked_at=timezone.now()):
            note_change(
                invitation.project,
                actor,
                gettext_noop("revoke invitation"),
                invitation.get_role_display(),
            )


def state_of(invitation: Invitation) -> str:
    """ "open", "revoked", "used" or "expired"."""
    if invitation.revoked_at is not None:
        return "revoked"
    if not invitation.uses_left:
        return "used"
    return "open" if invitation.expires_at > timezone.now() else "expired"


def invitation_of(token: str) -> Invitation:
    """The open invitation that a link bears.

    Raises: NotValid, with a line for whoever opened it.
    """
    invitation = (
        Invitation.objects.filter(token_hash=hash_of(token)).select_related("project").first()
    )
    if invitation is None:
        raise NotValid(_("This link is not valid. Perhaps a part of it is missing."))
    state = state_of(invitation)
    if state != "open":
        raise NotValid(
            {
                "revoked": _("This invitation was withdrawn. Ask for a new link."),
                "used": _("This invitation is used up. Ask for a new link."),
                "expired": _("This invitation has expired. Ask for a new link."),
            }[state]
        )
    return invitation


def would_change(invitation: Invitation, membership: Membership | None) -> bool:
    """Whether accepting gives the person anything; if not, it costs no use either."""
    return membership is None or RANKS[Role(invitation.role)] > RANKS[Role(membership.role)]


@transaction.atomic
def accept(token: str, user: Any) -> Membership:
    """Make the person a member in the invitation's role; an equal or higher role stays as it is.

    Raises: NotValid, also if somebody else took the last use a moment ago; nothing changes.
    """
    invitation = invitation_of(token)
    project = invitation.project
    membership = project.memberships.filter(user=user).first()
    if not would_change(invitation, membership):
        assert membership is not None
        return membership
    # One conditional statement: of two people at the last use, one gets in.
    taken = Invitation.objects.filter(
        pk=invitation.pk, uses_left__gt=0, revoked_at=None, expires_at__gt=timezone.now()
    ).update(uses_left=F("uses_left") - 1)
    if not taken:
        raise NotValid(_("This invitation is used up. Ask for a new link."))
    before = membership.role if membership else None
    membership, _created = project.memberships.update_or_create(
        user=user, defaults={"role": invitation.role}
    )
    note_change(
        project,
        user,
        gettext_noop("accept invitation"),
        user,
        before={"role": before},
        after={"role": invitation.role},
    )
    return membership


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


# Failures, not visits, are counted: a class that joins from one address is not turned away.


def too_many_failures(address: str) -> bool:
    return cache.get(_failures_key(address), 0) >= FAILURES_ALLOWED


def note_failure(address: str) -> None:
    """Count a wrong link or a refused account; forgotten ten minutes after the last."""
    key = _failures_key(address)
    cache.set(key, cache.get(key, 0) + 1, FAILURES_FORGOTTEN)


def _failures_key(address: str) -> str:
    return f"join-failures-{hash_of(address)[:32]}"
