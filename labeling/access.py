"""Who may do what in a project. Every view asks here, so that no page forgets."""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Membership, Project, Rater

Role = Membership.Role

# What each role may do. "label": judge comparisons; "view": see results, other people's answers
# among them; "lead": change the project, run judges and training.
PERMISSIONS: dict[str, frozenset[str]] = {
    Role.OWNER: frozenset({"label", "view", "lead"}),
    Role.LEAD: frozenset({"label", "view", "lead"}),
    Role.RATER: frozenset({"label"}),
    Role.VIEWER: frozenset({"view"}),
}


def permissions(user: Any, project: Project) -> frozenset[str]:
    """What the user may do in the project: nothing for a stranger, all for an administrator."""
    if user.is_superuser:
        return PERMISSIONS[Role.OWNER]
    membership = project.memberships.filter(user=user.pk).first()
    return PERMISSIONS[membership.role] if membership else frozenset()


REFUSED = {
    "label": _lazy("Your role in this project does not allow you to label."),
    "view": _lazy("Your role in this project does not allow you to view."),
    "lead": _lazy("Your role in this project does not allow you to lead."),
}


def project_for(user: Any, slug: str, to: str | None = None) -> Project:
    """The project, if the user may do `to` ("label", "view", "lead"; None: any member) in it.

    Raises: Http404 for strangers, who are not told that the project exists; PermissionDenied for
    members whose role does not allow it.
    """
    project = Project.objects.filter(slug=slug).first()
    may = permissions(user, project) if project else frozenset()
    if project is None or not may:
        raise Http404("No such project.")
    if to is not None and to not in may:
        raise PermissionDenied(REFUSED[to])
    project.may = may  # for templates: which links to show
    return project


def projects_of(user: Any) -> Any:
    """Projects that the user can open."""
    if user.is_superuser:
        return Project.objects.all()
    return Project.objects.filter(memberships__user=user.pk)


# Written out, because every label asks: the ORM needs four times as long to make these statements
# as the database to answer them.
PERSONS_RATER = """
    SELECT rater.*, membership.role, EXISTS (
        SELECT 1 FROM labeling_webhook AS webhook
        WHERE webhook.project_id = rater.project_id AND webhook.disabled_at IS NULL
    ) AS has_webhooks
    FROM labeling_rater AS rater
    JOIN labeling_project AS project ON project.id = rater.project_id
    JOIN labeling_membership AS membership
        ON membership.project_id = rater.project_id AND membership.user_id = rater.user_id
    WHERE rater.user_id = %s AND project.slug = %s
"""
PROJECT = "SELECT * FROM labeling_project WHERE id = %s"


def project_and_rater(user: Any, slug: str, *, lock: bool = False) -> tuple[Project, Rater]:
    """The project and the person's rater in it, if they may label there: what `project_for` and
    `rater_of` give, at less cost for those who have labeled before.

    With `lock`, in a transaction, nobody else changes what the rater holds until it ends. The rater
    may know whether the project `has_webhooks`.

    Raises: as `project_for`.
    """
    sql = PERSONS_RATER
    if lock and connection.features.has_select_for_no_key_update:
        sql += "FOR NO KEY UPDATE OF rater"  # SQLite's transaction has the only write lock
    rater = next(iter(Rater.objects.raw(sql, [user.pk, slug])), None)
    may = PERMISSIONS[rater.role] if rater else frozenset()
    if rater is None or "label" not in may:
        project = project_for(user, slug, to="label")
        rater = rater_of(user, project)
        if lock:
            rater = Rater.objects.select_for_update(no_key=True).get(pk=rater.pk)
    else:
        [project] = Project.objects.raw(PROJECT, [rater.project_id])
        project.may = may
    rater.project = project
    return project, rater


def rater_of(user: Any, project: Project) -> Rater:
    """The person's rater in this project, made on first use."""
    rater = Rater.objects.filter(project=project, user=user).first()
    if rater is None:
        # An imported rater may already bear this name; two people never share a rater.
        name = user.get_username()
        taken = Rater.objects.filter(project=project, kind=Rater.Kind.PERSON, name=name).exists()
        rater, _created = Rater.objects.get_or_create(
            project=project, user=user, defaults={"name": f"{name} ({user.pk})" if taken else name}
        )
    return rater
