"""What happens in a project, for those who want to be told of it."""

from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils import timezone

from labeling.models import Assignment, Comparison, Preference, Project, Rater, Webhook
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


def notice_completed_projects() -> int:
    """Mark projects in which nothing wants a label any more, and tell of each once; how many.

    Not with the answer itself: of two last answers at the same moment neither sees the other, and
    no answer should pay for it. Work that comes later takes the mark away again.
    """
    work = Comparison.objects.work().filter(project=OuterRef("pk"), labels_wanted__gt=0)
    has_open = Exists(Comparison.objects.filter(project=OuterRef("pk"), open_places__gt=0))
    is_held = Exists(
        Assignment.objects.filter(
            state=Assignment.State.LEASED,
            repeats=None,
            stream__in=[Assignment.Stream.QUEUE, Assignment.Stream.AUDIT],
            comparison__project=OuterRef("pk"),
        )
    )
    Project.objects.filter(has_open).exclude(completed_at=None).update(completed_at=None)
    done = Project.objects.filter(~has_open, ~is_held, Exists(work), completed_at=None)
    n_completed = 0
    for pk, slug in list(done.values_list("pk", "slug")):
        with transaction.atomic():
            now = timezone.now()
            if done.filter(pk=pk).update(completed_at=now):
                payload = {"project": slug, "completed_at": now.isoformat()}
                tell(pk, Event.PROJECT_COMPLETED, payload)
                n_completed += 1
    return n_completed


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
