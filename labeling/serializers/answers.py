"""What was answered: preferences, flags and decisions, for leads and for their raters."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from labeling.models import Choice, Decision, Flag, Preference, Rater
from labeling.scales import by_place
from labeling.serializers.values import SAID, identifier


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
