"""Raters, as programs see them."""

from rest_framework import serializers

from labeling.models import Rater


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
