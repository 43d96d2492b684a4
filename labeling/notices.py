"""What people are told in the application, and by e-mail where the installation sends any.

Who started a job is told how it ended; of what nobody started, and of certificates and alarms, the
project's owners and leads are told; of a project that has all its labels its raters too. A notice
is a row written with the change it speaks of.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling.jobs import Job
from labeling.models import Membership, Notice, Project

Kind = Notice.Kind
SHOWN = 8
"""In the header's list; the page has all."""
KEPT_FOR = timedelta(days=60)
MAILED_WITHIN = timedelta(days=1)
"""A notice that could not be mailed for so long is not mailed any more."""
KINDS = {
    Job.Status.SUCCEEDED: Kind.FINISHED,
    Job.Status.FAILED: Kind.FAILED,
    Job.Status.LOST: Kind.LOST,
    Job.Status.PAUSED: Kind.PAUSED,
}


def tell(
    people: Iterable[int],
    project: Project,
    kind: str,
    address: str,
    about: str = "",
    words: str = "",
) -> int:
    """One notice for each of these users, in the caller's transaction; how many."""
    rows = [
        Notice(
            user_id=pk,
            project=project,
            kind=kind,
            about=about[:200],
            words=words,
            address=address,
        )
        for pk in people
    ]
    Notice.objects.bulk_create(rows)
    if rows and settings.EMAIL_HOST:
        from labeling.tasks import mail_notices

        mail_notices.delay_on_commit()
    return len(rows)


def tell_of_job(job: Job) -> int:
    """Tell whoever started a job how it ended, or the leads if nobody did; how many were told.

    Nobody of what was cancelled or paused by hand: somebody sat before its page.
    """
    kind = KINDS.get(Job.Status(job.status))
    by_hand = job.status == Job.Status.PAUSED and not job.error
    if kind is None or by_hand or not job.address:
        return 0
    if kind == Kind.FINISHED and not job.tells_of_success:
        return 0
    project = job.of_project
    people = [job.created_by_id] if job.created_by_id else leads_of(project)
    return tell(people, project, kind, job.address, str(job), job.error)


def tell_leads(project: Project, kind: str, address: str, about: str, words: str) -> int:
    """Tell the project's owners and leads; how many."""
    return tell(leads_of(project), project, kind, address, about, words)


def tell_of_completion(project: Project) -> int:
    """Tell everybody of a project, raters too, that it has all the labels it wants; how many."""
    members = project.memberships.exclude(role=Membership.Role.VIEWER)
    people = list(members.values_list("user", flat=True))
    return tell(people, project, Kind.COMPLETED, reverse("labeling:project", args=[project.slug]))


def leads_of(project: Project) -> list[int]:
    roles = [Membership.Role.OWNER, Membership.Role.LEAD]
    return list(project.memberships.filter(role__in=roles).values_list("user", flat=True))


def read(user: Any, pk: int | None = None) -> int:
    """Mark one notice of the user's as read, or all; how many were unread."""
    unread = Notice.objects.unread_by(user)
    return (unread if pk is None else unread.filter(pk=pk)).update(read_at=timezone.now())


def forget_old() -> int:
    """Delete notices of more than two months ago; how many."""
    return Notice.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()[0]


# --- e-mail -----------------------------------------------------------------------------------


def to_be_mailed() -> Any:
    """Notices for people who have an address; none where the installation sends no mail."""
    if not settings.EMAIL_HOST:
        return Notice.objects.none()
    return Notice.objects.filter(
        mailed_at=None, read_at=None, created_at__gt=timezone.now() - MAILED_WITHIN
    ).exclude(user__email="")


def mail_due() -> int:
    """Send what is to be mailed, each once at most; how many were sent."""
    n = 0
    for notice in to_be_mailed().select_related("user", "project").order_by("pk")[:100]:
        with transaction.atomic():
            # Claimed and sent together: a server that refuses it leaves it to the next time.
            mine = Notice.objects.filter(pk=notice.pk, mailed_at=None)
            if not mine.update(mailed_at=timezone.now()):
                continue
            _mail(notice)
        n += 1
    return n


def _mail(notice: Notice) -> None:
    subject = f"{notice.project}: {notice}"
    where = settings.PREFLOOP_ADDRESS.rstrip("/") + notice.address
    text = "\n\n".join(part for part in (str(notice), notice.words, where) if part)
    text += "\n\n" + _("You get this because you have an account there and gave this address.")
    send_mail(" ".join(subject.split()), text, None, [notice.user.email])
