"""People compare responses: projects, prompts, responses, comparisons, raters, preferences."""

import hashlib
import json
import random
from datetime import timedelta
from typing import Any, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _lazy

from labeling.jobs import Job

Messages = list[dict[str, str]]
"""A conversation: [{"role": "user" | "assistant" | "system", "content": text}, …]."""


class Choice(models.TextChoices):
    A = "a", _lazy("A is better")
    B = "b", _lazy("B is better")
    TIE = "tie", _lazy("Equally good")
    BOTH_BAD = "both_bad", _lazy("Both are bad")
    UNPARSED = "unparsed", _lazy("No readable verdict")  # judges only: counted, never dropped


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


def default_tags() -> list[str]:
    """Reasons that fit most projects; a lead changes them."""
    return ["accurate", "complete", "clear", "concise", "follows instructions", "safe"]


class Project(models.Model):
    class Scale(models.TextChoices):
        SEVEN = "seven", _lazy("Seven steps: much, clearly or slightly better, or equal")
        THREE = "three", _lazy("Three answers: left, right or equal")
        TWO = "two", _lazy("Two answers: left or right")

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=200)
    guidelines = models.TextField(
        blank=True,
        help_text=_lazy("What makes a response better. Markdown; raters see it while they label."),
    )
    labels_per_comparison = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text=_lazy("How many people should judge each comparison."),
    )

    # While a worker lets comparisons that want so many labels want the number above.
    changing_from = models.PositiveSmallIntegerField(null=True, blank=True, editable=False)

    # The labeling page
    scale = models.CharField(
        max_length=10,
        choices=Scale,
        default=Scale.SEVEN,
        help_text=_lazy("What a rater chooses from."),
    )
    tags = models.JSONField(
        default=default_tags, blank=True, help_text=_lazy("Reasons that a rater picks with a key.")
    )
    # [{"name": "honest", "question": "Which response is more honest?"}, …]
    aspects = models.JSONField(
        default=list, blank=True, help_text=_lazy("Questions that are asked besides the main one.")
    )
    better_answers = models.BooleanField(
        _lazy("Raters may write a better answer"),
        default=False,
        help_text=_lazy("Kept as a demonstration for training, and as better than both responses."),
    )
    break_after_minutes = models.PositiveSmallIntegerField(
        _lazy("Remind of a break after"),
        default=50,
        help_text=_lazy("Minutes of labeling without a pause; 0: never."),
    )

    # Who is given what
    audit_share = models.FloatField(
        _lazy("Random audit stream"),
        default=0.1,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_lazy(
            "Share of comparisons that people judge in random order, whatever the priorities "
            "are. Statistics that need random labels rest on it."
        ),
    )
    check_share = models.FloatField(
        _lazy("Gold comparisons mixed in"),
        default=0.05,
        validators=[MinValueValidator(0), MaxValueValidator(0.5)],
        help_text=_lazy(
            "How often a rater is given a comparison whose answer is known, without a hint."
        ),
    )
    repeat_share = models.FloatField(
        _lazy("Repeats with sides exchanged"),
        default=0.03,
        validators=[MinValueValidator(0), MaxValueValidator(0.5)],
        help_text=_lazy(
            "How often a rater sees a pair of their own again, to measure consistency."
        ),
    )
    qualification_pass = models.FloatField(
        _lazy("Pass mark of the qualification"),
        default=0.8,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_lazy("Share of right answers that a rater needs before real work."),
    )
    training_feedback = models.BooleanField(
        _lazy("Feedback in training"),
        default=True,
        help_text=_lazy("After each training pair the rater is told the known answer and why."),
    )
    labels_per_rater = models.PositiveIntegerField(
        _lazy("Most labels of one rater"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_lazy("Empty: no limit."),
    )
    labels_per_day = models.PositiveIntegerField(
        _lazy("Most labels of one rater in a day"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_lazy("Empty: no limit. Days begin at midnight UTC."),
    )
    completed_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    # Whether answers with `Preference.certified` stand alone: set once all answers of a certificate
    # bear the mark, and taken back with it at once. The marks go later, by a worker.
    certificate_in_force = models.BooleanField(default=False, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """What a person may do in a project."""

    class Role(models.TextChoices):
        OWNER = "owner", _lazy("Owner")
        LEAD = "lead", _lazy("Lead")
        RATER = "rater", _lazy("Rater")
        VIEWER = "viewer", _lazy("Viewer")

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
    # The rater who wrote it as a better answer: a demonstration for supervised fine-tuning.
    author = models.ForeignKey(
        "Rater", models.SET_NULL, null=True, blank=True, related_name="demonstrations"
    )
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


class ResponseSet(models.Model):
    """K responses to one prompt that are ranked at once; its comparisons are all their pairs."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="response_sets")
    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="response_sets")
    content_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "content_hash"], name="response_set_once_per_project"
            )
        ]

    def __str__(self) -> str:
        return f"set {self.pk} of responses to {self.prompt}"


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

    def not_given_to(self, rater: "Rater") -> Self:
        """Comparisons that this rater was never given and has not judged.

        An assignment that ran out or was given back may come to the same rater again
        (`given_before`); a skipped one does not.
        """
        given = Assignment.objects.filter(
            rater=rater, comparison=models.OuterRef("pk"), repeats=None
        )
        judged = Preference.objects.current().filter(rater=rater, comparison=models.OuterRef("pk"))
        seen = given.exclude(state=Assignment.State.EXPIRED)
        return self.filter(~models.Exists(seen), ~models.Exists(judged)).annotate(
            given_before=models.Exists(given)
        )

    def open_to(self, rater: "Rater") -> Self:
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


class SignInFailure(models.Model):
    """A password or a code that was wrong. Whose and from where is kept as pseudonyms, since people
    type their password into the field of the name too."""

    account = models.CharField(max_length=32)
    address = models.CharField(max_length=32)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["account", "created_at"], name="sign_in_failure_of_account"),
            models.Index(fields=["address", "created_at"], name="sign_in_failure_from_address"),
        ]

    def __str__(self) -> str:
        return f"{self.account} from {self.address}"


class Invitation(models.Model):
    """A link that makes whoever opens it a member. The link itself is shown once, not stored."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=10, choices=Membership.Role, default=Membership.Role.RATER)
    token_hash = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    uses_left = models.PositiveIntegerField(default=1)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"invitation to {self.project} as {self.role}"


class ApiToken(models.Model):
    """A program's key. Only its hash is stored; the token is shown once."""

    class Scope(models.TextChoices):
        READ = "read", _lazy("Read what its owner may see")
        LABEL = "label", _lazy("Lease comparisons and answer them")
        LEAD = "lead", _lazy("Change projects")

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12)  # its first letters, to recognise it by
    token_hash = models.CharField(max_length=64, unique=True)
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.prefix}… of {self.user}"


class IdempotentRequest(models.Model):
    """What a request with an Idempotency-Key was answered, so that its repetition is too."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    key = models.CharField(max_length=200)
    request_hash = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True)  # empty while it is being answered
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "key"], name="idempotency_key_once_per_user")
        ]

    def __str__(self) -> str:
        return self.key


class Webhook(models.Model):
    """An address that is told what happens in a project."""

    class Event(models.TextChoices):
        PREFERENCE_CREATED = "preference.created", _lazy("Preference created")
        COMPARISON_COMPLETED = "comparison.completed", _lazy("Comparison completed")
        PROJECT_COMPLETED = "project.completed", _lazy("Project completed")

    project = models.ForeignKey(Project, models.CASCADE, related_name="webhooks")
    url = models.URLField(max_length=500)
    events = models.JSONField(default=list)
    encrypted_secret = models.TextField()  # signs each delivery; see labeling/keys.py
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    disabled_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.url


class Delivery(models.Model):
    """One message to a webhook: what was sent, and how often it was tried."""

    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=30, choices=Webhook.Event)
    payload = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)
    n_tries = models.PositiveSmallIntegerField(default=0)
    next_try_at = models.DateTimeField(null=True, blank=True, default=timezone.now)
    status = models.PositiveSmallIntegerField(null=True, blank=True)  # of the last try
    error = models.CharField(max_length=500, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(
                fields=["next_try_at"],
                name="delivery_due",
                condition=Q(next_try_at__isnull=False),
            ),
            models.Index(fields=["webhook", "-created_at"], name="delivery_of_webhook"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook}"


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

    def enqueue(self) -> None:
        from labeling.tasks import run_agreement

        run_agreement.delay_on_commit(self.pk)


class Leaderboard(Job):
    """The ratings of a project's sources at one moment, computed by a worker and kept."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="leaderboards")
    result = models.JSONField(default=dict)  # what `leaderboard --json` prints
    # What it rests on, as in AgreementReport.
    n_preferences = models.PositiveIntegerField(default=0)
    last_preference = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"leaderboard of {self.project}"

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
