"""What workers do for a program: imports, agreement reports, leaderboards and exports."""

from typing import Any

from rest_framework import serializers

from labeling.export import AGGREGATES, FORMATS, LABELS
from labeling.imports.forms import FORM_NAMES
from labeling.imports.interchange import BadRow
from labeling.imports.rated import scale_of
from labeling.models import AgreementReport, ImportJob, Leaderboard
from labeling.serializers.values import ObjectField


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
