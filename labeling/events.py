"""What happens in a project, for those who want to be told of it."""

from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from labeling.models import Assignment, Comparison, Preference, Project, Rater, Webhook
from labeling.notices import tell_of_completion
from labeling.webhooks import tell, write_for

Event = Webhook.Event


def answered(preference: Preference) -> None:
    """Tell of a person's answer, in the transaction that keeps it, and of its comparison if that
    has all its labels now. One query where nobody listens."""
    webhooks = list(Webhook.objects.filter(project__raters=preference.rater_id, disabled_at=None))
    if not webhooks:
        return
    # Locked: of two last answers at the same moment, the later one sees both.
    comparison = Comparison.objects.select_for_update(no_key=True).get(pk=preference.comparison_id)
    write_for(webhooks, Event.PREFERENCE_CREATED, _answer(preference, comparison))
    labels = comparison.preferences.current().filter(rater__kind=Rater.Kind.PERSON)
    if comparison.purpose == Comparison.Purpose.WORK and (
        labels.count() == comparison.labels_wanted
    ):
        payload = _comparison(comparison) | {
            "labels": sorted(labels.values_list("choice", flat=True))
        }
        write_for(webhooks, Event.COMPARISON_COMPLETED, payload)
        if any(Event.PROJECT_COMPLETED in webhook.events for webhook in webhooks):
            # Once it is kept: of two last answers at the same moment, the later one sees both. If
            # it fails, the answer stays kept, and the sweep tells.
            transaction.on_commit(
                lambda: notice_completed_project(comparison.project_id), robust=True
            )


def notice_completed_projects() -> int:
    """Mark projects in which nothing wants a label any more, and tell of each once; how many.

    The sweep for what comes with no answer (a lead who wants fewer labels), and for projects that
    no webhook watches: their answers do not pay for the question.
    """
    notice_more_work()
    return sum(_complete(pk) for pk in list(_done().values_list("pk", flat=True)))


def notice_completed_project(project_id: int) -> bool:
    """Mark the project and tell of it, if nothing in it wants a label any more."""
    # One look at the queue's index, where there is nearly always more to do.
    if Comparison.objects.filter(project=project_id, open_places__gt=0).exists():
        return False
    return _complete(project_id)


def notice_more_work(project_id: int | None = None) -> None:
    """Take the mark away from completed projects (this one, or any) that want labels again."""
    marked = Project.objects.filter(_has_open()).exclude(completed_at=None)
    if project_id is not None:
        marked = marked.filter(pk=project_id)
    marked.update(completed_at=None)


def _complete(project_id: int) -> bool:
    with transaction.atomic():
        now = timezone.now()
        done = _done().filter(pk=project_id)
        # One conditional statement: of two who see it at once, one tells.
        if not done.update(completed_at=now):
            return False
        project = Project.objects.get(pk=project_id)
        payload = {"project": project.slug, "completed_at": now.isoformat()}
        tell(project_id, Event.PROJECT_COMPLETED, payload)
        tell_of_completion(project)
        return True


def _done() -> QuerySet[Project]:
    """Projects whose work has every label it wants, and that are not marked yet."""
    work = Comparison.objects.work().filter(project=OuterRef("pk"), labels_wanted__gt=0)
    is_held = Exists(
        Assignment.objects.filter(
            state=Assignment.State.LEASED,
            repeats=None,
            stream__in=[Assignment.Stream.QUEUE, Assignment.Stream.AUDIT],
            comparison__project=OuterRef("pk"),
        )
    )
    return Project.objects.filter(~_has_open(), ~is_held, Exists(work), completed_at=None)


def _has_open() -> Exists:
    return Exists(Comparison.objects.filter(project=OuterRef("pk"), open_places__gt=0))


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "comparison": comparison.pk,
        "external_id": comparison.external_id,
        "labels_wanted": comparison.labels_wanted,
    }


def _answer(preference: Preference, comparison: Comparison) -> dict[str, Any]:
    return {
        "preference": preference.pk,
        "comparison": comparison.pk,
        "external_id": comparison.external_id,
        "rater": preference.rater.name,
        "choice": preference.choice,
        "strength": preference.strength,
        "tags": preference.tags,
        "aspects": preference.aspects,
        "rationale": preference.rationale,
        "seconds": preference.seconds,
        "shown_first": preference.shown_first,
    }
