"""Projects, and who may do what in them."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _lazy


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
