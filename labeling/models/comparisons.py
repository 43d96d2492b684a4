"""A prompt with two responses, waiting to be judged; what becomes of it besides answers."""

import random
from typing import Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.utils.translation import gettext_lazy as _lazy

from labeling.models.projects import Project
from labeling.models.raters import Rater
from labeling.models.texts import Prompt, Response, ResponseSet


class Choice(models.TextChoices):
    A = "a", _lazy("A is better")
    B = "b", _lazy("B is better")
    TIE = "tie", _lazy("Equally good")
    BOTH_BAD = "both_bad", _lazy("Both are bad")
    UNPARSED = "unparsed", _lazy("No readable verdict")  # judges only: counted, never dropped


def random_key() -> float:
    """A place in the project's random order, drawn once per comparison."""
    return random.random()  # noqa: S311 - an order, not a secret


class ComparisonQuerySet(models.QuerySet):
    def work(self) -> Self:
        """What people are asked to judge; qualification, training and check sets left out."""
        return self.filter(purpose=Comparison.Purpose.WORK)

    def of_sets(self) -> Self:
        """Training, qualification and check sets.

        With a literal, because SQLite uses the partial index "comparison_sets" for nothing else:
        with a parameter it would read a million comparisons to find a handful.
        """
        is_set = RawSQL("NOT (labeling_comparison.purpose = 'work')", (), models.BooleanField())
        return self.filter(is_set)

    def not_given_to(self, rater: Rater) -> Self:
        """Comparisons that this rater was never given and has not judged.

        An assignment that ran out or was given back may come to the same rater again
        (`given_before`); a skipped one does not.
        """
        from labeling.models.answers import Assignment, Preference  # they point at comparisons

        given = Assignment.objects.filter(
            rater=rater, comparison=models.OuterRef("pk"), repeats=None
        )
        judged = Preference.objects.current().filter(rater=rater, comparison=models.OuterRef("pk"))
        seen = given.exclude(state=Assignment.State.EXPIRED)
        return self.filter(~models.Exists(seen), ~models.Exists(judged)).annotate(
            given_before=models.Exists(given)
        )

    def open_to(self, rater: Rater) -> Self:
        """Those of the rater's project with a free place, and new to this rater."""
        return self.not_given_to(rater).filter(project=rater.project_id, open_places__gt=0)

    def in_queue_order(self) -> Self:
        """By priority, then nearest to completion, then the project's random order from its end.

        From the end, because the random audit stream takes the comparisons from its beginning.
        """
        return self.order_by("-priority", "open_places", "-random_key")


class Comparison(models.Model):
    """A prompt with responses A and B, waiting to be judged. A and B are names, never places."""

    class Purpose(models.TextChoices):
        WORK = "work", _lazy("Work")
        # The others have a known answer, want no labels, and every rater may be given them.
        TRAINING = "training", _lazy("Training of raters")
        QUALIFICATION = "qualification", _lazy("Qualification of raters")
        CHECK = "check", _lazy("Gold, mixed into the work")

    # No index of its own: "comparison_of_project" begins with it.
    project = models.ForeignKey(Project, models.CASCADE, related_name="comparisons", db_index=False)
    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="comparisons")
    response_a = models.ForeignKey(Response, models.CASCADE, related_name="+")
    response_b = models.ForeignKey(Response, models.CASCADE, related_name="+")
    response_set = models.ForeignKey(
        ResponseSet, models.CASCADE, null=True, blank=True, related_name="comparisons"
    )
    content_hash = models.CharField(max_length=64)
    external_id = models.CharField(max_length=200, blank=True)
    gold = models.CharField(
        max_length=10, blank=True, choices=[c for c in Choice.choices if c[0] != Choice.UNPARSED]
    )
    purpose = models.CharField(max_length=15, choices=Purpose, default=Purpose.WORK)
    metadata = models.JSONField(default=dict, blank=True)
    # Names of models and vendors that its texts contain: they could tell a rater who answered.
    leaks = models.JSONField(default=list, blank=True)
    labels_wanted = models.PositiveSmallIntegerField(default=1)
    # Labels that are still wanted and that nobody holds. Kept beside the rows it follows from (a
    # place that comes back is counted from them, see labeling/places.py) because the
    # queue must find the next comparison in the same time at ten thousand rows and at a million;
    # being unsigned, the database itself refuses to give out one place too many.
    open_places = models.PositiveSmallIntegerField(default=1)
    priority = models.SmallIntegerField(default=0)
    random_key = models.FloatField(default=random_key)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ComparisonQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "content_hash"], name="comparison_once_per_project"
            ),
            models.CheckConstraint(
                condition=Q(purpose="work") | (~Q(gold="") & Q(open_places=0)),
                name="sets_have_a_known_answer_and_no_places",
            ),
        ]
        indexes = [
            models.Index(
                F("project"),
                F("priority").desc(),
                F("open_places"),
                F("random_key").desc(),
                name="comparison_queue",
                condition=Q(open_places__gt=0),
            ),
            models.Index(
                fields=["project", "random_key"],
                name="comparison_audit",
                condition=Q(open_places__gt=0),
            ),
            models.Index(
                fields=["project", "purpose", "random_key"],
                name="comparison_sets",
                condition=~Q(purpose="work"),
            ),
            models.Index(fields=["project", "external_id"], name="comparison_external_id"),
            # Pages of a lead's list begin after a key.
            models.Index(fields=["project", "id"], name="comparison_of_project"),
        ]

    def __str__(self) -> str:
        return self.external_id or f"comparison {self.pk}"


class Flag(models.Model):
    """A rater's remark that something is wrong with a comparison itself."""

    class Kind(models.TextChoices):
        UNSAFE = "unsafe", _lazy("Unsafe content")
        PRIVATE = "private", _lazy("Private data")
        BROKEN = "broken", _lazy("Broken text")
        LANGUAGE = "language", _lazy("Another language")

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="flags")
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="flags")
    kind = models.CharField(max_length=10, choices=Kind)
    note = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "rater", "kind"], name="flagged_once_per_rater_and_kind"
            )
        ]

    def __str__(self) -> str:
        return f"{self.comparison}: {self.get_kind_display()}"


class Decision(models.Model):
    """A lead's decision on a comparison: overrides the votes for training, never for agreement."""

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="decisions")
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    choice = models.CharField(
        max_length=10, choices=[c for c in Choice.choices if c[0] != Choice.UNPARSED]
    )
    strength = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(3)]
    )
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    superseded_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison"],
                condition=Q(superseded_at=None),
                name="one_current_decision_per_comparison",
            )
        ]

    def __str__(self) -> str:
        return f"{self.comparison}: {self.choice}"


class JudgeRequest(models.Model):
    """Comparisons that a judge is to answer before people: see labeling/judge_requests.py."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="judge_requests")
    comparisons = models.JSONField()  # keys
    created_at = models.DateTimeField(auto_now_add=True)
    # Once the judges' app has seen to it; what it did stands in `outcome`.
    taken_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{len(self.comparisons)} comparisons for the judge of {self.project}"
