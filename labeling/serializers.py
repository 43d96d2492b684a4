"""What programs may send us, and what they are told."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError as NotAnAddress
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from labeling.export import AGGREGATES, FORMATS, LABELS
from labeling.imports.forms import FORM_NAMES
from labeling.imports.interchange import BadRow, check_storable
from labeling.imports.rated import scale_of
from labeling.invitations import state_of
from labeling.models import (
    AgreementReport,
    Assignment,
    Change,
    Choice,
    Comparison,
    Decision,
    Delivery,
    Flag,
    ImportJob,
    Invitation,
    Leaderboard,
    Membership,
    Preference,
    Project,
    Rater,
    Response,
    Webhook,
)
from labeling.scales import PLACES, by_letter, by_place
from labeling.webhooks import check_address, secret_of

MAX_ROWS = 1_000
LARGEST_ID = 2**63 - 1
HUMAN_CHOICES = [choice for choice in Choice.choices if choice[0] != Choice.UNPARSED]
SAID = [*PLACES, str(Choice.TIE), str(Choice.BOTH_BAD)]
"""What a rater's program says: of the places where it was shown the responses, never of A and B."""


class MessageSerializer(serializers.Serializer):
    role = serializers.ChoiceField(choices=["user", "assistant", "system"])
    content = serializers.CharField()


@extend_schema_field(MessageSerializer(many=True))
class MessagesField(serializers.ReadOnlyField):
    """A conversation, as it is stored."""


@extend_schema_field({"type": "object", "additionalProperties": True})
class ObjectField(serializers.JSONField):
    """A JSON object that a database can hold."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError("This is no object.")
        try:
            check_storable(data)
        except BadRow as problem:
            raise serializers.ValidationError(str(problem)) from None
        return super().to_internal_value(data)


def identifier(**options: Any) -> serializers.IntegerField:
    return serializers.IntegerField(min_value=1, max_value=LARGEST_ID, **options)


# --- projects and people ---------------------------------------------------------------------


class AspectSerializer(serializers.Serializer):
    name = serializers.CharField(max_length=60)
    question = serializers.CharField(max_length=300)

    def validate(self, aspect: dict[str, str]) -> dict[str, str]:
        # A PATCH leaves out fields of the project, not of what it brings.
        missing = {"name", "question"} - aspect.keys()
        if missing:
            raise serializers.ValidationError(dict.fromkeys(missing, "This field is required."))
        return aspect


class ProjectSerializer(serializers.ModelSerializer):
    """A project with all its settings, for those who see or lead it."""

    tags = serializers.ListField(
        child=serializers.CharField(max_length=60), max_length=20, required=False
    )
    aspects = serializers.ListField(child=AspectSerializer(), max_length=10, required=False)
    labels_per_rater = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True
    )
    labels_per_day = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, required=False, allow_null=True
    )
    break_after_minutes = serializers.IntegerField(min_value=0, max_value=1_440, required=False)

    class Meta:
        model = Project
        fields = [
            "slug",
            "name",
            "guidelines",
            "labels_per_comparison",
            "scale",
            "tags",
            "aspects",
            "better_answers",
            "break_after_minutes",
            "audit_share",
            "check_share",
            "repeat_share",
            "qualification_pass",
            "training_feedback",
            "labels_per_rater",
            "labels_per_day",
            "completed_at",
            "created_at",
        ]
        read_only_fields = ["completed_at", "created_at"]

    def validate_slug(self, slug: str) -> str:
        if self.instance is not None and slug != self.instance.slug:
            raise serializers.ValidationError("Addresses and scripts hold on to it: it stays.")
        if slug == "new":  # /projects/new/ is the page that makes projects
            raise serializers.ValidationError("“new” is taken by the application.")
        return slug


class RaterProjectSerializer(serializers.ModelSerializer):
    """What a rater is told of a project: not how often known answers are mixed in."""

    class Meta:
        model = Project
        fields = ["slug", "name", "guidelines", "scale", "tags", "aspects", "better_answers"]
        read_only_fields = fields


class ProjectLineSerializer(serializers.ModelSerializer):
    """One line of the list of projects."""

    class Meta:
        model = Project
        fields = ["slug", "name", "completed_at", "created_at"]
        read_only_fields = fields


class MeSerializer(serializers.Serializer):
    username = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField(), allow_null=True)
    roles = serializers.DictField(child=serializers.CharField())


class MembershipSerializer(serializers.ModelSerializer):
    username = serializers.CharField(source="user.username", max_length=150)

    class Meta:
        model = Membership
        fields = ["id", "username", "role"]

    def validate_username(self, username: str) -> str:
        user = get_user_model().objects.filter(username=username).first()
        if user is None:
            raise serializers.ValidationError("Nobody has this user name.")
        self.person = user
        return username


class InvitationSerializer(serializers.ModelSerializer):
    """A link that makes whoever opens it a member."""

    role = serializers.ChoiceField(choices=Membership.Role.choices, default=Membership.Role.RATER)
    days = serializers.IntegerField(
        min_value=1, max_value=90, default=7, write_only=True, help_text="How long it is valid."
    )
    uses = serializers.IntegerField(
        min_value=1, max_value=1_000, default=1, write_only=True, help_text="For how many people."
    )
    state = serializers.SerializerMethodField()
    created_by = serializers.CharField(
        source="created_by.username", allow_null=True, read_only=True
    )

    class Meta:
        model = Invitation
        fields = [
            "id",
            "role",
            "days",
            "uses",
            "state",
            "uses_left",
            "created_by",
            "created_at",
            "expires_at",
            "revoked_at",
        ]
        read_only_fields = ["id", "uses_left", "created_at", "expires_at", "revoked_at"]

    @extend_schema_field(serializers.ChoiceField(choices=["open", "used", "expired", "revoked"]))
    def get_state(self, invitation: Invitation) -> str:
        return state_of(invitation)


class NewInvitationSerializer(InvitationSerializer):
    """An invitation that was just made, with the link that is shown this once."""

    link = serializers.CharField(read_only=True)

    class Meta(InvitationSerializer.Meta):
        fields = [*InvitationSerializer.Meta.fields, "link"]


class RaterSerializer(serializers.ModelSerializer):
    username = serializers.CharField(source="user.username", allow_null=True, read_only=True)
    label_limit = serializers.IntegerField(
        min_value=1, max_value=2**31 - 1, allow_null=True, required=False
    )

    class Meta:
        model = Rater
        fields = [
            "id",
            "name",
            "kind",
            "imported",
            "username",
            "label_limit",
            "paused_at",
            "qualified_at",
            "disqualified_at",
            "created_at",
        ]
        read_only_fields = [name for name in fields if name != "label_limit"]


class ChangeSerializer(serializers.ModelSerializer):
    actor = serializers.CharField(source="actor.username", allow_null=True, read_only=True)
    before = ObjectField(read_only=True)
    after = ObjectField(read_only=True)

    class Meta:
        model = Change
        fields = ["id", "actor", "action", "subject", "before", "after", "created_at"]
        read_only_fields = fields


# --- comparisons and answers -----------------------------------------------------------------


class ResponseSerializer(serializers.ModelSerializer):
    messages = MessagesField()
    prompt = serializers.IntegerField(source="prompt_id", read_only=True)
    author = serializers.IntegerField(source="author_id", read_only=True, allow_null=True)

    class Meta:
        model = Response
        fields = ["id", "prompt", "messages", "source", "author", "n_chars", "created_at"]
        read_only_fields = fields


class SideSerializer(serializers.ModelSerializer):
    messages = MessagesField()

    class Meta:
        model = Response
        fields = ["id", "messages", "source"]
        read_only_fields = fields


class ComparisonSerializer(serializers.ModelSerializer):
    """A comparison with what only those who see results may know."""

    prompt = MessagesField(source="prompt.messages")
    response_a = SideSerializer(read_only=True)
    response_b = SideSerializer(read_only=True)
    response_set = serializers.IntegerField(
        source="response_set_id", read_only=True, allow_null=True
    )
    metadata = ObjectField(read_only=True)
    leaks = serializers.ListField(child=serializers.JSONField(), read_only=True)
    gold = serializers.ChoiceField(choices=["", *HUMAN_CHOICES], required=False)
    labels_wanted = serializers.IntegerField(min_value=0, max_value=100, required=False)
    priority = serializers.IntegerField(min_value=-32_768, max_value=32_767, required=False)

    class Meta:
        model = Comparison
        fields = [
            "id",
            "external_id",
            "prompt",
            "response_a",
            "response_b",
            "response_set",
            "purpose",
            "gold",
            "priority",
            "labels_wanted",
            "open_places",
            "metadata",
            "leaks",
            "created_at",
        ]
        read_only_fields = ["id", "external_id", "open_places", "created_at"]


class TextOnlySerializer(serializers.Serializer):
    messages = MessagesField()


class GivenComparisonSerializer(serializers.ModelSerializer):
    """A comparison as its rater may know it: what was shown, and nothing of where it came from.

    Its rows carry `shown_first`, the letter of the response that this rater saw on the left.
    """

    prompt = MessagesField(source="prompt.messages")
    left = serializers.SerializerMethodField()
    right = serializers.SerializerMethodField()

    class Meta:
        model = Comparison
        fields = ["id", "prompt", "left", "right"]
        read_only_fields = fields

    def get_left(self, comparison: Any) -> dict[str, Any]:
        return self._shown(comparison, "left")

    def get_right(self, comparison: Any) -> dict[str, Any]:
        return self._shown(comparison, "right")

    def _shown(self, comparison: Any, place: str) -> dict[str, Any]:
        is_a = by_letter(place, comparison.shown_first) == Choice.A
        response = comparison.response_a if is_a else comparison.response_b
        return TextOnlySerializer(response).data


class ComparisonFilter(serializers.Serializer):
    """What the queue's page filters by, and what only programs ask for."""

    state = serializers.ChoiceField(
        choices=["open", "full", "held", "done", "skipped"],
        required=False,
        help_text="open: a label is wanted that nobody holds; full: none is; held: a rater has it "
        "now; done: it has all its labels; skipped: by somebody.",
    )
    purpose = serializers.ChoiceField(
        choices=[*Comparison.Purpose.values, "gold"],
        required=False,
        help_text="gold: any with a known answer.",
    )
    external_id = serializers.CharField(max_length=200, required=False)
    disagreement = serializers.ChoiceField(
        choices=["people", "all"], required=False, help_text="People differ; or any two raters."
    )
    judge = serializers.ChoiceField(
        choices=["differs", "agrees"],
        required=False,
        help_text="A judge differs from the majority of people; or all agree with it.",
    )
    flag = serializers.ChoiceField(
        choices=["unresolved", "resolved", "any", *Flag.Kind.values],
        required=False,
        help_text="A kind means an unresolved flag of that kind.",
    )
    flagged = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="With an unresolved flag, or not."
    )
    decided = serializers.BooleanField(required=False, allow_null=True, default=None)
    leaks = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="Its texts name a model, or not."
    )
    rater = identifier(required=False, help_text="Judged by this rater of the project.")
    tag = serializers.CharField(max_length=100, required=False)
    length_min = serializers.FloatField(
        min_value=0,
        max_value=100,
        required=False,
        help_text="The lengths differ by at least so many per cent of the longer response.",
    )
    length_max = serializers.FloatField(min_value=0, max_value=100, required=False)
    text = serializers.CharField(
        max_length=200, required=False, help_text="In the prompt, a response or the id."
    )


class ChangeManySerializer(serializers.Serializer):
    """One change to many comparisons: those named, or all that a filter lets through."""

    comparisons = serializers.ListField(
        child=identifier(), min_length=1, max_length=10_000, required=False
    )
    filter = ComparisonFilter(required=False, help_text="Instead of `comparisons`.")
    priority = serializers.IntegerField(min_value=-1_000, max_value=1_000, required=False)
    labels_wanted = serializers.IntegerField(min_value=1, max_value=100, required=False)
    purpose = serializers.ChoiceField(choices=Comparison.Purpose.choices, required=False)
    gold = serializers.ChoiceField(
        choices=["", *HUMAN_CHOICES], required=False, help_text="Empty: not known."
    )
    queue = serializers.ChoiceField(
        choices=["take_out", "put_back"],
        required=False,
        help_text="Ask nobody any more (whoever holds it loses it), or as before.",
    )
    note = serializers.CharField(
        max_length=500, required=False, allow_blank=True, default="", help_text="With `take_out`."
    )

    CHANGES = ("priority", "labels_wanted", "purpose", "gold", "queue")

    def validate(self, asked: dict[str, Any]) -> dict[str, Any]:
        if ("comparisons" in asked) == ("filter" in asked):
            raise serializers.ValidationError("Give either `comparisons` or `filter`.")
        changes = [name for name in self.CHANGES if name in asked]
        if len(changes) != 1:
            raise serializers.ValidationError(f"Give one of: {', '.join(self.CHANGES)}.")
        asked["action"], asked["value"] = changes[0], asked[changes[0]]
        if changes == ["queue"]:
            asked["action"] = asked["queue"]
        return asked


class ChangedSerializer(serializers.Serializer):
    changed = serializers.IntegerField()
    left = serializers.IntegerField(help_text="Left as they are.")
    why_left = serializers.CharField(help_text="Why, or empty.")


class PreferenceFilter(serializers.Serializer):
    comparison = identifier(required=False)
    rater = identifier(required=False)
    kind = serializers.ChoiceField(choices=Rater.Kind.choices, required=False)
    choice = serializers.ChoiceField(choices=Choice.choices, required=False)
    created_after = serializers.DateTimeField(required=False)
    history = serializers.BooleanField(
        default=False, help_text="Earlier versions and withdrawn answers too."
    )


class FlagFilter(serializers.Serializer):
    comparison = identifier(required=False)
    kind = serializers.ChoiceField(choices=Flag.Kind.choices, required=False)
    resolved = serializers.BooleanField(required=False, allow_null=True, default=None)


class RowsSerializer(serializers.Serializer):
    rows = serializers.ListField(
        child=serializers.JSONField(),
        min_length=1,
        max_length=MAX_ROWS,
        help_text="Objects of the interchange form: see docs/import.md.",
    )
    labels_per_comparison = serializers.IntegerField(min_value=1, max_value=100, required=False)


class RowResultSerializer(serializers.Serializer):
    result = serializers.ChoiceField(choices=["created", "duplicate", "rejected"])
    comparison = serializers.IntegerField(allow_null=True)
    reason = serializers.CharField(help_text="Why it was rejected, else empty.")
    left_out = serializers.ListField(
        child=serializers.CharField(), help_text="Votes of the row that were not kept, and why."
    )


class StoredRowsSerializer(serializers.Serializer):
    created = serializers.IntegerField()
    duplicates = serializers.IntegerField()
    rejected = serializers.IntegerField()
    preferences = serializers.IntegerField()
    verdicts = serializers.IntegerField()
    rows = RowResultSerializer(many=True)


class PreferenceSerializer(serializers.ModelSerializer):
    comparison = serializers.IntegerField(source="comparison_id", read_only=True)
    rater = serializers.IntegerField(source="rater_id", read_only=True)
    rater_name = serializers.CharField(source="rater.name", read_only=True)
    rater_kind = serializers.ChoiceField(
        source="rater.kind", choices=Rater.Kind.choices, read_only=True
    )
    shown_first = serializers.ChoiceField(choices=["", "a", "b"], read_only=True)
    tags = serializers.ListField(child=serializers.CharField(), read_only=True)
    aspects = serializers.DictField(child=serializers.CharField(), read_only=True)

    class Meta:
        model = Preference
        fields = [
            "id",
            "comparison",
            "rater",
            "rater_name",
            "rater_kind",
            "choice",
            "strength",
            "prob_a",
            "prob_a_ab",
            "prob_a_ba",
            "rationale",
            "tags",
            "aspects",
            "seconds",
            "shown_first",
            "audit",
            "inclusion_probability",
            "created_at",
            "superseded_at",
        ]
        read_only_fields = fields


class OwnPreferenceSerializer(serializers.ModelSerializer):
    """A rater's own answer: what they said, and not by which stream they were asked."""

    comparison = serializers.IntegerField(source="comparison_id", read_only=True)
    choice = serializers.SerializerMethodField(help_text="Of the places where they were shown.")
    tags = serializers.ListField(child=serializers.CharField(), read_only=True)
    aspects = serializers.SerializerMethodField()

    class Meta:
        model = Preference
        fields = [
            "id",
            "comparison",
            "choice",
            "strength",
            "rationale",
            "tags",
            "aspects",
            "seconds",
            "created_at",
            "superseded_at",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.ChoiceField(choices=SAID))
    def get_choice(self, preference: Preference) -> str:
        return by_place(preference.choice, preference.shown_first)

    @extend_schema_field(serializers.DictField(child=serializers.CharField()))
    def get_aspects(self, preference: Preference) -> dict[str, str]:
        left = preference.shown_first
        return {name: by_place(choice, left) for name, choice in preference.aspects.items()}


class FlagSerializer(serializers.ModelSerializer):
    comparison = serializers.IntegerField(source="comparison_id", read_only=True)
    rater_name = serializers.CharField(source="rater.name", read_only=True)
    resolved_by = serializers.CharField(
        source="resolved_by.username", allow_null=True, read_only=True
    )

    class Meta:
        model = Flag
        fields = [
            "id",
            "comparison",
            "rater_name",
            "kind",
            "note",
            "created_at",
            "resolved_at",
            "resolved_by",
        ]
        read_only_fields = fields


class ResolveSerializer(serializers.Serializer):
    resolved = serializers.BooleanField()


class DecisionSerializer(serializers.ModelSerializer):
    comparison = identifier(source="comparison_id")
    decided_by = serializers.CharField(
        source="decided_by.username", allow_null=True, read_only=True
    )
    strength = serializers.IntegerField(
        min_value=1, max_value=3, required=False, allow_null=True, default=None
    )
    note = serializers.CharField(
        max_length=10_000, required=False, allow_blank=True, default="", trim_whitespace=True
    )

    class Meta:
        model = Decision
        fields = [
            "id",
            "comparison",
            "choice",
            "strength",
            "note",
            "decided_by",
            "created_at",
            "superseded_at",
        ]
        read_only_fields = ["id", "created_at", "superseded_at"]


# --- labeling --------------------------------------------------------------------------------


class WantedWorkSerializer(serializers.Serializer):
    n = serializers.IntegerField(
        min_value=1, max_value=3, default=1, help_text="Pieces of work to hold at once."
    )


class ShownSerializer(serializers.Serializer):
    messages = MessageSerializer(many=True)


class RankedSerializer(serializers.Serializer):
    id = serializers.CharField(help_text="What `order` calls it.")
    messages = MessageSerializer(many=True)


class PieceSerializer(serializers.Serializer):
    """One piece of work: a pair to compare, or a set of responses to rank."""

    assignment = serializers.IntegerField(help_text="What its answer names.")
    kind = serializers.ChoiceField(choices=["pair", "ranking"])
    prompt = MessageSerializer(many=True)
    left = ShownSerializer(allow_null=True, help_text="Of a pair: the response to show first.")
    right = ShownSerializer(allow_null=True)
    responses = RankedSerializer(many=True, help_text="Of a ranking: all responses.")
    expires_at = serializers.DateTimeField()


class WhySerializer(serializers.Serializer):
    reason = serializers.ChoiceField(
        choices=[
            "nothing",
            "done",
            "held",
            "seen",
            "limit",
            "day_limit",
            "paused",
            "disqualified",
        ]
    )
    n_open = serializers.IntegerField()
    n_held = serializers.IntegerField()
    held_until = serializers.DateTimeField(allow_null=True)


class WorkSerializer(serializers.Serializer):
    work = PieceSerializer(many=True)
    why = WhySerializer(allow_null=True, help_text="Why there is no work, where there is none.")


class JudgementSerializer(serializers.Serializer):
    """What a rater says of a pair."""

    choice = serializers.ChoiceField(choices=SAID, help_text="Which of the two is better.")
    strength = serializers.IntegerField(
        min_value=1,
        max_value=3,
        required=False,
        allow_null=True,
        default=None,
        help_text="1 slightly, 2 clearly, 3 much better; for left and right.",
    )
    rationale = serializers.CharField(
        max_length=10_000, required=False, allow_blank=True, default=""
    )
    tags = serializers.ListField(
        child=serializers.CharField(max_length=60), max_length=20, required=False, default=list
    )
    aspects = serializers.DictField(
        child=serializers.ChoiceField(choices=[*PLACES, str(Choice.TIE)]),
        required=False,
        default=dict,
    )

    def check_against(self, project: Project) -> None:
        """Raises: ValidationError for what the project does not ask."""
        answer, problems = self.validated_data, {}
        if project.scale == Project.Scale.TWO and answer["choice"] not in PLACES:
            problems["choice"] = ["This project asks for left or right alone."]
        if project.scale != Project.Scale.SEVEN and answer["strength"] is not None:
            problems["strength"] = ["This project does not ask how much better."]
        unknown = [tag for tag in answer["tags"] if tag not in project.tags]
        if unknown:
            problems["tags"] = [f"Not a tag of this project: {unknown[0]}"]
        asked = {aspect["name"] for aspect in project.aspects}
        if not answer["aspects"].keys() <= asked:
            problems["aspects"] = [f"This project asks about: {', '.join(sorted(asked)) or '–'}."]
        if answer.get("better", "").strip() and not project.better_answers:
            problems["better"] = ["This project takes no better answers."]
        if problems:
            raise serializers.ValidationError(problems)

    def judgement(self, left: str) -> dict[str, Any]:
        """What was sent, of responses instead of places; `left` is the letter shown there."""
        said = self.validated_data
        aspects = {name: by_letter(place, left) for name, place in said["aspects"].items()}
        return {**said, "choice": by_letter(said["choice"], left), "aspects": aspects}


class AnswerSerializer(JudgementSerializer):
    assignment = identifier()
    seconds = serializers.FloatField(
        min_value=0, max_value=86_400, required=False, allow_null=True, default=None
    )
    better = serializers.CharField(
        max_length=100_000,
        required=False,
        allow_blank=True,
        default="",
        help_text="A better answer of the rater's own, where the project takes them.",
    )
    next = serializers.IntegerField(
        min_value=0,
        max_value=3,
        default=0,
        help_text="Pieces of work to hold after this answer: `work` then brings them.",
    )


class FeedbackSerializer(serializers.Serializer):
    gold = serializers.ChoiceField(choices=SAID, help_text="The known answer.")
    is_right = serializers.BooleanField()


class KeptSerializer(serializers.Serializer):
    """An answer that is on disk."""

    assignment = serializers.IntegerField()
    choice = serializers.ChoiceField(choices=SAID)
    strength = serializers.IntegerField(allow_null=True)
    kept_at = serializers.DateTimeField()
    feedback = FeedbackSerializer(
        allow_null=True, help_text="In training, where the project gives it."
    )
    work = PieceSerializer(many=True)
    why = WhySerializer(allow_null=True)


class OrderSerializer(serializers.Serializer):
    """An order of the responses of a set."""

    order = serializers.ListField(
        child=serializers.ListField(
            child=serializers.CharField(max_length=20), min_length=1, max_length=20
        ),
        min_length=1,
        max_length=20,
        help_text='Ids of the responses, best first; equals share a place: [["c4"], ["07", "9b"]].',
    )
    rationale = serializers.CharField(
        max_length=10_000, required=False, allow_blank=True, default=""
    )


class RankingSerializer(OrderSerializer):
    assignment = identifier()
    seconds = serializers.FloatField(
        min_value=0, max_value=86_400, required=False, allow_null=True, default=None
    )


class KeptRankingSerializer(serializers.Serializer):
    id = serializers.IntegerField(help_text="What a revision names.")
    order = serializers.ListField(child=serializers.ListField(child=serializers.CharField()))
    kept_at = serializers.DateTimeField()


class SkipSerializer(serializers.Serializer):
    reason = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")
    flag = serializers.ChoiceField(
        choices=["", *Flag.Kind.choices], required=False, default="", allow_blank=True
    )
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class NewFlagSerializer(serializers.Serializer):
    kind = serializers.ChoiceField(choices=Flag.Kind.choices)
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")


class ReleaseSerializer(serializers.Serializer):
    assignments = serializers.ListField(
        child=identifier(), max_length=100, required=False, help_text="All that is held, if absent."
    )


class ReleasedSerializer(serializers.Serializer):
    released = serializers.IntegerField()


# --- jobs ------------------------------------------------------------------------------------


class UploadSerializer(serializers.Serializer):
    file = serializers.FileField()
    format = serializers.ChoiceField(choices=["auto", *FORM_NAMES], default="auto")
    labels = serializers.ChoiceField(
        choices=["human", "ai"],
        default="human",
        help_text="Whose labels these are where the file names nobody.",
    )
    rater = serializers.CharField(
        max_length=189, required=False, help_text="The name they are kept under."
    )
    labels_per_comparison = serializers.IntegerField(
        min_value=1, max_value=100, required=False, allow_null=True, default=None
    )
    scale = serializers.CharField(
        max_length=40,
        default="",
        allow_blank=True,
        help_text="The worst and the best value of ratings, as 1-5, where the file does not say.",
    )

    def validate_scale(self, given: str) -> tuple[float, float] | None:
        try:
            return scale_of(given.strip())
        except BadRow as problem:
            raise serializers.ValidationError(str(problem)) from problem


JOB_FIELDS = [
    "id",
    "status",
    "n_done",
    "n_total",
    "error",
    "created_at",
    "started_at",
    "finished_at",
]


class ImportSerializer(serializers.ModelSerializer):
    result = serializers.SerializerMethodField(help_text="What became of the file's lines.")

    class Meta:
        model = ImportJob
        fields = [*JOB_FIELDS, "filename", "format", "result"]
        read_only_fields = fields

    def get_result(self, job: ImportJob) -> dict[str, Any]:
        # Where the reject file lies on the server is nobody's business; `rejects/` serves it.
        return {name: value for name, value in job.result.items() if name != "reject_file"}


class ReportLineSerializer(serializers.ModelSerializer):
    class Meta:
        model = AgreementReport
        fields = [*JOB_FIELDS, "n_preferences"]
        read_only_fields = fields


class ReportSerializer(serializers.ModelSerializer):
    result = ObjectField(read_only=True)

    class Meta:
        model = AgreementReport
        fields = [*JOB_FIELDS, "n_preferences", "result"]
        read_only_fields = fields


class LeaderboardLineSerializer(serializers.ModelSerializer):
    class Meta:
        model = Leaderboard
        fields = [*JOB_FIELDS, "n_preferences"]
        read_only_fields = fields


class LeaderboardSerializer(serializers.ModelSerializer):
    result = ObjectField(read_only=True)

    class Meta:
        model = Leaderboard
        fields = [*JOB_FIELDS, "n_preferences", "result"]
        read_only_fields = fields


class ExportSerializer(serializers.Serializer):
    # Not `format`, which asks the framework for another rendering.
    form = serializers.ChoiceField(choices=list(FORMATS), default="jsonl")
    labels = serializers.ChoiceField(choices=list(LABELS), default="mixed")
    aggregate = serializers.ChoiceField(
        choices=["", *AGGREGATES],
        default="",
        allow_blank=True,
        help_text="Empty: as is usual for the form.",
    )


# --- webhooks --------------------------------------------------------------------------------


class WebhookSerializer(serializers.ModelSerializer):
    url = serializers.CharField(max_length=500)
    events = serializers.ListField(
        child=serializers.ChoiceField(choices=Webhook.Event.choices), min_length=1, max_length=3
    )
    disabled = serializers.BooleanField(required=False, write_only=True)

    class Meta:
        model = Webhook
        fields = ["id", "url", "events", "disabled", "created_at", "disabled_at"]
        read_only_fields = ["id", "created_at", "disabled_at"]

    def validate_url(self, url: str) -> str:
        try:
            check_address(url)
        except NotAnAddress as problem:
            raise serializers.ValidationError(problem.messages) from None
        return url

    def validate_events(self, events: list[str]) -> list[str]:
        return sorted(set(events))


class NewWebhookSerializer(WebhookSerializer):
    """A webhook that was just made, with the secret that is shown this once."""

    secret = serializers.SerializerMethodField()

    class Meta(WebhookSerializer.Meta):
        fields = [*WebhookSerializer.Meta.fields, "secret"]

    def get_secret(self, webhook: Webhook) -> str:
        return secret_of(webhook)


class DeliverySerializer(serializers.ModelSerializer):
    event = serializers.CharField(read_only=True)  # "test" is one that no webhook subscribes to
    payload = ObjectField(read_only=True)

    class Meta:
        model = Delivery
        fields = [
            "id",
            "event",
            "payload",
            "created_at",
            "n_tries",
            "next_try_at",
            "status",
            "error",
            "delivered_at",
        ]
        read_only_fields = fields


class AssignmentSerializer(serializers.ModelSerializer):
    """Where a piece of work stands after a skip."""

    class Meta:
        model = Assignment
        fields = ["id", "state"]
        read_only_fields = fields
