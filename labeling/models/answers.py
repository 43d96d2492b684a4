"""What raters are given, and what they answer: preferences, ratings, rankings, repeats."""

from typing import Self

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from labeling.models.comparisons import Choice, Comparison
from labeling.models.projects import Project
from labeling.models.raters import Rater
from labeling.models.texts import Response, ResponseSet


class Assignment(models.Model):
    """A comparison in the hands of a person: one place of it, held until `expires_at`."""

    class State(models.TextChoices):
        LEASED = "leased"
        ANSWERED = "answered"
        SKIPPED = "skipped"
        EXPIRED = "expired"  # ran out, or was given back unread

    class Stream(models.TextChoices):
        """How the comparison came to the rater."""

        QUEUE = "queue"
        AUDIT = "audit"  # the random audit stream
        TRAINING = "training"
        QUALIFICATION = "qualification"
        CHECK = "check"
        REPEAT = "repeat"  # an earlier pair of their own, sides exchanged

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="assignments")
    # "assignment_of_rater" begins with it; of two indexes SQLite would choose the wrong one.
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="assignments", db_index=False)
    state = models.CharField(max_length=10, choices=State, default=State.LEASED)
    stream = models.CharField(max_length=15, choices=Stream, default=Stream.QUEUE)
    shown_first = models.CharField(max_length=1, choices=[("a", "A"), ("b", "B")])
    # The earlier answer that this one repeats; the repeat's own answer is a RepeatAnswer.
    repeats = models.ForeignKey(
        "Preference", models.CASCADE, null=True, blank=True, related_name="repeats"
    )
    skip_reason = models.CharField(max_length=500, blank=True)
    # The page's own number of the answer: the same one sent again is the same answer.
    answer_key = models.CharField(max_length=64, blank=True)
    leased_at = models.DateTimeField(default=timezone.now)
    closed_at = models.DateTimeField(null=True, blank=True)  # answered or skipped
    expires_at = models.DateTimeField()
    # The probability with which the random design put this comparison into the stream it came
    # from: see labeling/assignment.py.
    inclusion_probability = models.FloatField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "rater"],
                condition=Q(repeats=None),
                name="assigned_once_per_rater",
            ),
            models.UniqueConstraint(
                fields=["comparison", "rater"],
                condition=~Q(repeats=None),
                name="repeated_once_per_rater",
            ),
        ]
        indexes = [
            models.Index(
                fields=["expires_at"], name="assignment_expiry", condition=Q(state="leased")
            ),
            models.Index(fields=["rater", "state", "closed_at"], name="assignment_of_rater"),
        ]

    def __str__(self) -> str:
        return f"{self.comparison} for {self.rater}: {self.state}"


class PreferenceQuerySet(models.QuerySet):
    def current(self) -> Self:
        """Each rater's present answer: earlier versions and withdrawn ones left out."""
        return self.filter(superseded_at=None)

    def of_judges(self) -> Self:
        return self.filter(rater__kind=Rater.Kind.JUDGE)


class Preference(models.Model):
    """One rater's choice on one comparison. An edit adds a row and keeps the earlier one."""

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="preferences")
    # No index of its own: "preference_of_rater" begins with it.
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="preferences", db_index=False)
    choice = models.CharField(max_length=10, choices=Choice)
    strength = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(3)]
    )
    # A judge's probability that A is better: over both orders; A shown first; B shown first.
    prob_a = models.FloatField(null=True, blank=True)
    prob_a_ab = models.FloatField(null=True, blank=True)
    prob_a_ba = models.FloatField(null=True, blank=True)
    rationale = models.TextField(blank=True)
    tags = models.JSONField(default=list, blank=True)
    aspects = models.JSONField(default=dict, blank=True)  # {"honest": "a" | "b" | "tie", …}
    ranking = models.ForeignKey(
        "Ranking", models.SET_NULL, null=True, blank=True, related_name="preferences"
    )
    seconds = models.FloatField(null=True, blank=True)
    shown_first = models.CharField(max_length=1, blank=True, choices=[("a", "A"), ("b", "B")])
    inclusion_probability = models.FloatField(null=True, blank=True)
    audit = models.BooleanField(default=False)
    # Of a judge: a live certificate lets this answer stand without a person's. Set and taken back
    # by judges/routing.py.
    certified = models.BooleanField(default=False)
    created_at = models.DateTimeField(db_default=Now())
    superseded_at = models.DateTimeField(null=True, blank=True)

    objects = PreferenceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "rater"],
                condition=Q(superseded_at=None),
                name="one_current_preference_per_rater",
            ),
            models.CheckConstraint(
                condition=Q(choice__in=Choice.values), name="preference_choice_is_known"
            ),
            models.CheckConstraint(
                condition=Q(strength=None) | Q(strength__range=(1, 3)), name="strength_from_1_to_3"
            ),
        ]
        indexes = [
            models.Index(fields=["rater", "-created_at"], name="preference_of_rater"),
            # Few of many, and asked for by themselves: see judges/audit.py and judges/routing.py.
            models.Index(fields=["id"], name="preference_audit", condition=Q(audit=True)),
            models.Index(
                fields=["rater"], name="preference_certified", condition=Q(certified=True)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rater}: {self.choice}"


class RatingQuerySet(models.QuerySet):
    def current(self) -> Self:
        """Each rater's present rating of a response: earlier versions left out."""
        return self.filter(superseded_at=None)

    def of_project(self, project: Project) -> Self:
        return self.filter(response__prompt__project=project)


class Rating(models.Model):
    """One rater's judgement of ONE response by itself: good or bad, or a value on a scale.

    An edit adds a row and keeps the earlier one.
    """

    response = models.ForeignKey(Response, models.CASCADE, related_name="ratings")
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="ratings")
    aspect = models.CharField(max_length=100, blank=True)  # what was rated; empty: the whole
    desirable = models.BooleanField(null=True, blank=True)  # a thumb up or down
    # A value on a scale, and the ends of that scale, the worst and the best.
    value = models.FloatField(null=True, blank=True)
    low = models.FloatField(null=True, blank=True)
    high = models.FloatField(null=True, blank=True)
    rationale = models.TextField(blank=True)
    external_id = models.CharField(max_length=200, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())  # when the rater gave it
    superseded_at = models.DateTimeField(null=True, blank=True)

    objects = RatingQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["response", "rater", "aspect"],
                condition=Q(superseded_at=None),
                name="one_current_rating_per_rater",
            ),
            models.CheckConstraint(
                condition=Q(value__isnull=False) | Q(desirable__isnull=False),
                name="rating_says_something",
            ),
            models.CheckConstraint(
                condition=Q(value=None, low=None, high=None)
                | Q(
                    value__isnull=False,
                    low__isnull=False,
                    high__isnull=False,
                    low__lt=F("high"),
                    value__gte=F("low"),
                    value__lte=F("high"),
                ),
                name="rating_lies_on_its_scale",
            ),
        ]

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.rater}: {self.value:g} of {self.low:g} to {self.high:g}"
        return f"{self.rater}: {'good' if self.desirable else 'bad'}"


class RepeatAnswer(models.Model):
    """The answer to a repeat. Apart from preferences, so that nobody counts twice."""

    assignment = models.OneToOneField(Assignment, models.CASCADE, related_name="repeat_answer")
    choice = models.CharField(max_length=10, choices=Choice)
    strength = models.PositiveSmallIntegerField(null=True, blank=True)
    rationale = models.TextField(blank=True)
    tags = models.JSONField(default=list, blank=True)
    aspects = models.JSONField(default=dict, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.assignment.rater} again: {self.choice}"


class Ranking(models.Model):
    """One rater's order of a response set, kept beside the preferences that it implies."""

    response_set = models.ForeignKey(ResponseSet, models.CASCADE, related_name="rankings")
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="rankings")
    order = models.JSONField()  # [[response id, …], …]: best first; equals share a place
    rationale = models.TextField(blank=True)
    seconds = models.FloatField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    superseded_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["response_set", "rater"],
                condition=Q(superseded_at=None),
                name="one_current_ranking_per_rater",
            )
        ]

    def __str__(self) -> str:
        return f"{self.rater}: {self.order}"
