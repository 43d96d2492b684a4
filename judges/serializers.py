"""What programs may send us about judges, and what they are told."""

from typing import Any

from rest_framework import serializers

from judges.models import Judge, JudgeRun, JudgeVersion
from labeling.serializers import JOB_FIELDS, ObjectField, identifier


class JudgeVersionSerializer(serializers.ModelSerializer):
    rater = serializers.IntegerField(source="rater_id", read_only=True)
    server = serializers.CharField(
        source="server.name",
        default=None,
        read_only=True,
        allow_null=True,
        help_text="The server that it asks; null where a worker of ours runs it.",
    )
    recipe = ObjectField(read_only=True)

    class Meta:
        model = JudgeVersion
        fields = ["id", "number", "model", "server", "recipe", "rater", "created_at"]
        read_only_fields = fields


class JudgeSerializer(serializers.ModelSerializer):
    """A judge with its versions, newest first."""

    versions = JudgeVersionSerializer(many=True, read_only=True)

    class Meta:
        model = Judge
        fields = ["id", "name", "created_at", "versions"]
        read_only_fields = fields


class JudgeRunSerializer(serializers.ModelSerializer):
    version = serializers.IntegerField(source="version_id", read_only=True)
    judge = serializers.CharField(source="version.judge.name", read_only=True)
    result = ObjectField(read_only=True)

    class Meta:
        model = JudgeRun
        fields = [*JOB_FIELDS, "judge", "version", "limit", "result"]
        read_only_fields = fields


class LaunchSerializer(serializers.Serializer):
    version = identifier(help_text="A version of a judge of this project.")
    limit = serializers.IntegerField(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        allow_null=True,
        default=None,
        help_text="How many comparisons at most.",
    )

    def validate_version(self, pk: int) -> Any:
        versions = JudgeVersion.objects.select_related("judge").filter(
            judge__project=self.context["project"]
        )
        version = versions.filter(pk=pk).first()
        if version is None:
            raise serializers.ValidationError("The project has no such version of a judge.")
        return version
