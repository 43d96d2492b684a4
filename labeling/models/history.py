"""Who changed what, in rows that are never changed themselves."""

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q

from labeling.models.projects import Project


class ReadOnly(TypeError):
    """Rows of the history are added, and never changed or deleted."""


class ChangeQuerySet(models.QuerySet):
    """Refuses what Django's managers offer for changing rows."""

    def _refuse(self, *_arguments: Any, **_options: Any) -> Any:
        raise ReadOnly("The history is never changed.")

    update = delete = bulk_update = _raw_delete = _refuse
    update_or_create = aupdate_or_create = abulk_update = adelete = aupdate = _refuse


class Change(models.Model):
    """Who changed what, in a project or in the installation, and what it was before.

    Rows are added, never changed: see labeling/changes.py, and labeling/sealing.py for the chain of
    seals that shows what was changed behind the application's back.
    """

    project = models.ForeignKey(
        Project, models.SET_NULL, null=True, blank=True, related_name="changes"
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    action = models.CharField(max_length=60)  # "pause rater", "change settings", …
    subject = models.CharField(max_length=200)  # what it was done to, in words
    before = models.JSONField(default=dict, blank=True)
    after = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    # The keys of project and actor once more: they stay when those rows are deleted.
    project_key = models.BigIntegerField(null=True, blank=True, editable=False)
    actor_key = models.BigIntegerField(null=True, blank=True, editable=False)
    # Its place in the chain, empty until it is sealed; what it says as a salted hash; the seal.
    number = models.PositiveBigIntegerField(null=True, unique=True, editable=False)
    salt = models.CharField(max_length=32, blank=True, editable=False)
    digest = models.CharField(max_length=64, blank=True, editable=False)
    seal = models.CharField(max_length=64, blank=True, editable=False)
    # When a person's name was taken out of it: then the digest no longer follows from its words.
    redacted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = ChangeQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["project", "-created_at"], name="change_of_project"),
            models.Index(fields=["id"], name="change_unsealed", condition=Q(number=None)),
        ]

    def __str__(self) -> str:
        return f"{self.actor}: {self.action} {self.subject}"

    def save(self, *arguments: Any, **options: Any) -> None:
        if not self._state.adding:
            raise ReadOnly("The history is never changed.")
        self.project_key, self.actor_key = self.project_id, self.actor_id
        super().save(*arguments, **options)

    def delete(self, *_arguments: Any, **_options: Any) -> Any:
        raise ReadOnly("The history is never changed.")
