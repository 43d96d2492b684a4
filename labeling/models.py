"""People compare responses: projects, prompts, responses, comparisons, raters, preferences."""

import hashlib
import json
import random
from typing import Any, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from labeling.jobs import Job

Messages = list[dict[str, str]]
"""A conversation: [{"role": "user" | "assistant" | "system", "content": text}, …]."""


class Choice(models.TextChoices):
    A = "a", "A is better"
    B = "b", "B is better"
    TIE = "tie", "Equally good"
    BOTH_BAD = "both_bad", "Both are bad"
    UNPARSED = "unparsed", "No readable verdict"  # judges only: counted, never dropped


def random_key() -> float:
    """A place in the project's random order, drawn once per comparison."""
    return random.random()  # noqa: S311 - an order, not a secret


def content_hash(*parts: Any) -> str:
    """SHA-256 of JSON values: equal content, equal hash."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def message_text(messages: Messages) -> str:
    """The words of a conversation, without roles."""
    return "\n\n".join(message["content"] for message in messages)


class Project(models.Model):
    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=200)
    guidelines = models.TextField(
        blank=True,
        help_text="What makes a response better. Markdown; raters see it while they label.",
    )
    labels_per_comparison = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How many people should judge each comparison.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """What a person may do in a project."""

    class Role(models.TextChoices):
        OWNER = "owner", "Owner"
        LEAD = "lead", "Lead"
        RATER = "rater", "Rater"
        VIEWER = "viewer", "Viewer"

    project = models.ForeignKey(Project, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "user"], name="one_membership_per_person")
        ]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.project}"


class Prompt(models.Model):
    """What a model was asked."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="prompts")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "content_hash"], name="prompt_once_per_project"
            )
        ]

    def __str__(self) -> str:
        return message_text(self.messages)[:80]


class Response(models.Model):
    """What a model answered. `source` names the model and is never shown to raters."""

    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="responses")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64)
    source = models.CharField(max_length=200, blank=True)
    n_chars = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["prompt", "content_hash", "source"],
                name="response_once_per_prompt_and_source",
            )
        ]

    def __str__(self) -> str:
        return message_text(self.messages)[:80]


class ComparisonQuerySet(models.QuerySet):
    def open_to(self, rater: "Rater") -> Self:
        """Comparisons of the rater's project with a free place that this rater has not been given.

        An assignment that ran out may come back to the same rater; a skipped one does not.
        """
        seen = Assignment.objects.filter(rater=rater, comparison=models.OuterRef("pk")).exclude(
            state=Assignment.State.EXPIRED
        )
        judged = Preference.objects.current().filter(rater=rater, comparison=models.OuterRef("pk"))
        return self.filter(
            ~models.Exists(seen),
            ~models.Exists(judged),
            project=rater.project_id,
            open_places__gt=0,
        )

    def in_queue_order(self) -> Self:
        """By priority, then nearest to completion, then the project's random order."""
        return self.order_by("-priority", "open_places", "random_key")


class Comparison(models.Model):
    """A prompt with responses A and B, waiting to be judged. A and B are names, never places."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="comparisons")
    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="comparisons")
    response_a = models.ForeignKey(Response, models.CASCADE, related_name="+")
    response_b = models.ForeignKey(Response, models.CASCADE, related_name="+")
    content_hash = models.CharField(max_length=64)
    external_id = models.CharField(max_length=200, blank=True)
    gold = models.CharField(
        max_length=10, blank=True, choices=[c for c in Choice.choices if c[0] != Choice.UNPARSED]
    )
    metadata = models.JSONField(default=dict, blank=True)
    labels_wanted = models.PositiveSmallIntegerField(default=1)
    # Labels that are still wanted and that nobody holds. Kept beside the rows it follows from (a
    # place that comes back is counted from them, see labeling/assignment.py) because the
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
            )
        ]
        indexes = [
            models.Index(
                F("project"),
                F("priority").desc(),
                "open_places",
                "random_key",
                name="comparison_queue",
                condition=Q(open_places__gt=0),
            ),
            models.Index(fields=["project", "external_id"], name="comparison_external_id"),
        ]

    def __str__(self) -> str:
        return self.external_id or f"comparison {self.pk}"


class Rater(models.Model):
    """Whoever judges in a project: a person, or one version of a judge."""

    class Kind(models.TextChoices):
        PERSON = "person", "Person"
        JUDGE = "judge", "AI judge"

    project = models.ForeignKey(Project, models.CASCADE, related_name="raters")
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.PERSON)
    name = models.CharField(max_length=200)
    # Made by an import. Files answer in the name of such raters alone, never for a person with an
    # account here or for a judge of this project.
    imported = models.BooleanField(default=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="raters"
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


class Assignment(models.Model):
    """A comparison in the hands of a person: one place of it, held until `expires_at`."""

    class State(models.TextChoices):
        LEASED = "leased"
        ANSWERED = "answered"
        SKIPPED = "skipped"
        EXPIRED = "expired"

    comparison = models.ForeignKey(Comparison, models.CASCADE, related_name="assignments")
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="assignments")
    state = models.CharField(max_length=10, choices=State, default=State.LEASED)
    shown_first = models.CharField(max_length=1, choices=[("a", "A"), ("b", "B")])
    skip_reason = models.CharField(max_length=500, blank=True)
    leased_at = models.DateTimeField(default=timezone.now)
    closed_at = models.DateTimeField(null=True, blank=True)  # answered or skipped
    expires_at = models.DateTimeField()
    # The probability with which the design gave this comparison to a person, and whether the random
    # audit stream did; empty where the queue followed no random design.
    inclusion_probability = models.FloatField(null=True, blank=True)
    audit = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["comparison", "rater"], name="assigned_once_per_rater")
        ]
        indexes = [
            models.Index(
                fields=["expires_at"], name="assignment_expiry", condition=Q(state="leased")
            ),
            models.Index(fields=["rater", "state"], name="assignment_of_rater"),
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
    rater = models.ForeignKey(Rater, models.CASCADE, related_name="preferences")
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
    seconds = models.FloatField(null=True, blank=True)
    shown_first = models.CharField(max_length=1, blank=True, choices=[("a", "A"), ("b", "B")])
    inclusion_probability = models.FloatField(null=True, blank=True)
    audit = models.BooleanField(default=False)
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
        indexes = [models.Index(fields=["rater", "-created_at"], name="preference_of_rater")]

    def __str__(self) -> str:
        return f"{self.rater}: {self.choice}"


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

    def __str__(self) -> str:
        return f"import of {self.filename}"

    def enqueue(self) -> None:
        from labeling.tasks import run_import

        run_import.delay_on_commit(self.pk)


class AgreementReport(Job):
    """The agreement figures of a project at one moment, computed by a worker and kept."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="agreement_reports")
    result = models.JSONField(default=dict)  # what `agreement --json` prints
    # What the figures rest on, so that the page can say what has changed since: how many current
    # preferences there were, and the newest of them.
    n_preferences = models.PositiveIntegerField(default=0)
    last_preference = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"agreement in {self.project}"

    def enqueue(self) -> None:
        from labeling.tasks import run_agreement

        run_agreement.delay_on_commit(self.pk)
