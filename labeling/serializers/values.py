"""Kinds of values that many requests and answers hold: messages, objects, keys, choices."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from labeling.imports.interchange import BadRow, check_storable
from labeling.models import Choice
from labeling.scales import PLACES

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
