"""Whoever judges in a project: people and judges."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _lazy

from labeling.models.projects import Project


class Rater(models.Model):
    """Whoever judges in a project: a person, or one version of a judge."""

    class Kind(models.TextChoices):
        PERSON = "person", _lazy("Person")
        JUDGE = "judge", _lazy("AI judge")

    project = models.ForeignKey(Project, models.CASCADE, related_name="raters")
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.PERSON)
    name = models.CharField(max_length=200)
    # Made by an import. Files answer in the name of such raters alone, never for a person with an
    # account here or for a judge of this project.
    imported = models.BooleanField(default=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="raters"
    )
    # Since when the probabilities of this judge's answers, old and new, are corrected by a fitted
    # calibration; empty for others.
    calibrated_at = models.DateTimeField(null=True, blank=True)
    # Paused by a lead: gets no work, and what they held is back in the queue.
    paused_at = models.DateTimeField(null=True, blank=True)
    # When the rater was let to real work, or failed the qualification; both empty: not yet.
    qualified_at = models.DateTimeField(null=True, blank=True)
    disqualified_at = models.DateTimeField(null=True, blank=True)
    label_limit = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text=_lazy("Most labels of this rater; empty: as the project says."),
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "kind", "name"], name="rater_name_per_project"
            ),
            models.UniqueConstraint(fields=["project", "user"], name="one_rater_per_person"),
        ]

    def __str__(self) -> str:
        return self.name
