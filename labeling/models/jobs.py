"""What workers do for a project, and the workers."""

from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone

from labeling.jobs import Job
from labeling.models.projects import Project


class ImportJob(Job):
    """A file on its way into a project, and the report of what became of its lines."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="imports")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    filename = models.CharField(max_length=255)
    path = models.CharField(max_length=500)  # under PREFLOOP_STORAGE
    format = models.CharField(max_length=40, default="auto")
    # {"rater", "kind"} of labels that name nobody, and "labels_per_comparison" if not the project's
    options = models.JSONField(default=dict)
    result = models.JSONField(default=dict)  # what `import_comparisons --json` prints

    PAGE = "labeling:import_job"

    def __str__(self) -> str:
        return f"import of {self.filename}"

    def enqueue(self) -> None:
        from labeling.tasks import run_import

        run_import.delay_on_commit(self.pk)


class AgreementReport(Job):
    """The agreement figures of a project at one moment, computed by a worker and kept."""

    MOST_RATERS = 150  # people whose pairs are kept, those with the most votes

    project = models.ForeignKey(Project, models.CASCADE, related_name="agreement_reports")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    result = models.JSONField(default=dict)  # what `agreement --json` prints
    # What the figures rest on, so that the page can say what has changed since: how many current
    # preferences there were, and the newest of them.
    n_preferences = models.PositiveIntegerField(default=0)
    last_preference = models.PositiveBigIntegerField(default=0)
    # Of all that the figures rest on: while it is the same, they are taken over, not computed anew.
    fingerprint = models.CharField(max_length=64, blank=True)
    # Where the next fit of the rater model begins: {"prior": […], "raters": {key: table}}.
    parameters = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"agreement in {self.project}"

    @property
    def address(self) -> str:
        return reverse("labeling:agreement", args=[self.project.slug])

    @property
    def tells_of_success(self) -> bool:
        return self.created_by_id is not None

    def enqueue(self) -> None:
        from labeling.tasks import run_agreement

        run_agreement.delay_on_commit(self.pk)


class Leaderboard(Job):
    """The ratings of a project's sources at one moment, computed by a worker and kept."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="leaderboards")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    result = models.JSONField(default=dict)  # what `leaderboard --json` prints
    # What it rests on, as in AgreementReport.
    n_preferences = models.PositiveIntegerField(default=0)
    last_preference = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"leaderboard of {self.project}"

    @property
    def address(self) -> str:
        return reverse("labeling:leaderboard", args=[self.project.slug])

    @property
    def tells_of_success(self) -> bool:
        return self.created_by_id is not None

    def enqueue(self) -> None:
        from labeling.tasks import run_leaderboard

        run_leaderboard.delay_on_commit(self.pk)


class WorkerQuerySet(models.QuerySet):
    def present(self) -> Self:
        """Workers that were heard of within three reports."""
        limit = timezone.now() - timedelta(seconds=3 * settings.PREFLOOP_HEARTBEAT_SECONDS)
        return self.filter(heartbeat_at__gte=limit)


class Worker(models.Model):
    """A Celery process, on whichever machine: written by itself, see labeling/workers.py."""

    name = models.CharField(max_length=200, unique=True)  # host:pid
    queues = models.JSONField(default=list)
    versions = models.JSONField(default=dict)  # {package: version}
    gpus = models.JSONField(default=list)  # see labeling.workers.gpus
    disk_free = models.BigIntegerField()  # bytes, where its storage is
    disk_total = models.BigIntegerField()
    started_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField()

    objects = WorkerQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
