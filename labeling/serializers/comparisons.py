"""Comparisons and their responses: filtered, changed many at once, sent as rows."""

from typing import Any

from rest_framework import serializers

from labeling.models import Choice, Comparison, Flag, Response
from labeling.scales import by_letter
from labeling.serializers.values import HUMAN_CHOICES, MessagesField, ObjectField, identifier

MAX_ROWS = 1_000


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
