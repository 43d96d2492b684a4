"""A project's settings: copying them to another project, changing them, and who is told."""

from typing import Any

from django.core.cache import cache
from django.db import transaction
from django.db.models import QuerySet
from django.forms.models import model_to_dict
from django.utils.translation import gettext_noop

from labeling.changes import note_change
from labeling.events import notice_more_work
from labeling.models import Comparison, Membership, Project
from labeling.places import count_places

SETTINGS = (
    "guidelines",
    "labels_per_comparison",
    "scale",
    "tags",
    "aspects",
    "better_answers",
    "break_after_minutes",
    "audit_share",
    "check_share",
    "repeat_share",
    "qualification_pass",
    "training_feedback",
    "labels_per_rater",
    "labels_per_day",
)
"""What a copy of a project takes over, beside its members where that is wished."""
BATCH = 2_000  # comparisons that are locked at once: some tens of milliseconds


def settings_of(project: Project) -> dict[str, Any]:
    return model_to_dict(project, fields=SETTINGS)


@transaction.atomic
def make_project(project: Project, owner: Any, members_of: Project | None = None) -> Project:
    """Save a new project with its owner, and with the members of another one in their roles.

    The other project's owners become leads: a project's owner is whoever made it.
    """
    project.save()
    project.memberships.create(user=owner, role=Membership.Role.OWNER)
    if members_of is not None:
        Membership.objects.bulk_create(
            Membership(
                project=project,
                user_id=user_id,
                role=Membership.Role.LEAD if role == Membership.Role.OWNER else role,
            )
            for user_id, role in members_of.memberships.exclude(user=owner).values_list(
                "user", "role"
            )
        )
    after = {"from": members_of.slug} if members_of is not None else {}
    note_change(project, owner, gettext_noop("make project"), project, after=after)
    return project


@transaction.atomic
def keep_settings(project: Project, before: dict[str, Any], actor: Any) -> None:
    """Save changed settings and note what they were; `before` comes from `settings_of`."""
    project.save()
    after = settings_of(project) | {"name": project.name}
    note_change(
        project, actor, gettext_noop("change settings"), project, before=before, after=after
    )


def wanting(project: Project, n_labels: int) -> QuerySet[Comparison]:
    """Comparisons to be judged by so many people."""
    return project.comparisons.work().filter(labels_wanted=n_labels)


def change_labels_wanted(project: Project, old: int, new: int) -> int:
    """Let the comparisons that want `old` labels want `new`; how many.

    Batch by batch, each kept when it is done, so raters never wait long. What is changed wants
    `old` no more: broken off, it is simply called again.
    """
    n_changed, last = 0, 0
    while True:
        batch = wanting(project, old).filter(pk__gt=last).order_by("pk")
        pks = list(batch.values_list("pk", flat=True)[:BATCH])
        if not pks:
            break
        n_changed += _change_batch(pks, old, new)
        last = pks[-1]
    if new > old and n_changed:
        notice_more_work(project.pk)
    return n_changed


def change_by_worker(project: Project, old: int, new: int) -> None:
    """`change_labels_wanted` by a worker, who is reminded until it is done."""
    from labeling.tasks import change_existing_comparisons

    Project.objects.filter(pk=project.pk).update(changing_from=old)
    change_existing_comparisons.delay_on_commit(project.pk, old, new)


def go_on_changing() -> None:
    """The sweep: remind a worker of what `change_by_worker` began, once in five minutes."""
    from labeling.tasks import change_existing_comparisons

    for project in Project.objects.exclude(changing_from=None):
        old, new = project.changing_from, project.labels_per_comparison
        if cache.add(f"reminded-of-changing-{project.pk}-{old}-{new}", True, timeout=300):
            change_existing_comparisons.delay(project.pk, old, new)


@transaction.atomic
def _change_batch(pks: list[int], old: int, new: int) -> int:
    rows = Comparison.objects.filter(pk__in=pks, labels_wanted=old)
    # Locked in one order before they change: see labeling/places.py.
    locked = list(rows.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
    n_changed = rows.update(labels_wanted=new)
    count_places(locked)
    return n_changed
