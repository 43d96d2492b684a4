"""What a person is told."""

from typing import Any, Self

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _lazy

from labeling.models.projects import Project


class NoticeQuerySet(models.QuerySet):
    def unread_by(self, user: Any) -> Self:
        return self.filter(user=user.pk, read_at=None)


class Notice(models.Model):
    """One person is told of something that happened: see labeling/notices.py."""

    class Kind(models.TextChoices):
        FINISHED = "finished", _lazy("Finished")
        FAILED = "failed", _lazy("Failed")
        LOST = "lost", _lazy("Lost its worker")
        PAUSED = "paused", _lazy("Paused")
        COMPLETED = "completed", _lazy("All labels are given")
        REVOKED = "revoked", _lazy("Certificate revoked")
        ALARM = "alarm", _lazy("Alarm")

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="notices", db_index=False
    )
    project = models.ForeignKey(Project, models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=10, choices=Kind)
    about = models.CharField(max_length=200, blank=True)  # the job's or certificate's name
    words = models.TextField(blank=True)  # why, as it stands on the page
    address = models.CharField(max_length=500)  # of that page, without the host
    created_at = models.DateTimeField(auto_now_add=True)
    read_at = models.DateTimeField(null=True, blank=True)
    mailed_at = models.DateTimeField(null=True, blank=True)

    objects = NoticeQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["user", "-id"], name="notices_of_person"),
            # Asked for by every page that a person opens.
            models.Index(fields=["user"], name="notices_unread", condition=models.Q(read_at=None)),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.about or self.project}"
