"""The state of the installation for administrators: workers, queues, disk, versions, failures."""

import shutil
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from labeling.jobs import Job, active_by_kind, job_models
from labeling.models import Worker
from labeling.workers import class_queues, versions

N_FAILURES = 10
ENDED_BADLY = [Job.Status.FAILED, Job.Status.LOST]


@login_required
@never_cache
@require_safe
def status(request: HttpRequest) -> HttpResponse:
    """htmx gets the figures alone, every some seconds."""
    if not request.user.is_superuser:
        raise PermissionDenied(_("Administrators alone see the state of the installation."))
    present = set(Worker.objects.present().values_list("pk", flat=True))
    workers = list(Worker.objects.all())
    for worker in workers:
        worker.is_present = worker.pk in present
    disk = shutil.disk_usage(settings.PREFLOOP_STORAGE)
    served = {queue for worker in workers if worker.is_present for queue in worker.queues}
    context = {
        "workers": workers,
        "unserved": sorted({"web", "gpu", "sweep", *class_queues()} - served),
        "jobs": jobs_by_kind(),
        "failures": last_failures(),
        "disk_free": disk.free,
        "disk_total": disk.total,
        "disk_is_short": disk.free < 5 * 2**30,
        "versions": versions(),
        "now": timezone.now(),
    }
    template = "labeling/status.html#figures" if request.htmx else "labeling/status.html"
    return render(request, template, context)


def jobs_by_kind() -> list[dict[str, Any]]:
    """Of every kind of job that waits or runs: how many, and since when the oldest waits."""
    return [
        {"kind": model._meta.verbose_name, **figures}
        for model, figures in active_by_kind()
        if figures["queued"] or figures["running"]
    ]


def last_failures() -> list[Any]:
    """The newest jobs of all kinds that failed or lost their worker, newest first."""
    found: list[Job] = []
    for model in job_models():
        bad = model.objects.filter(status__in=ENDED_BADLY, finished_at__isnull=False)
        found += bad.order_by("-finished_at")[:N_FAILURES]
    last = sorted(found, key=lambda job: job.finished_at, reverse=True)[:N_FAILURES]
    for job in last:
        job.of_kind = job._meta.verbose_name  # templates see no name with an underscore
    return last
