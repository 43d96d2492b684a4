"""What programs may send us about training, and what they are told."""

import math
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from labeling.serializers.jobs import JOB_FIELDS
from labeling.serializers.values import MessagesField, ObjectField
from training.arenas import MOST_MODELS as MOST_MEETING
from training.comparing import best_of
from training.dataset_settings import LABELS, make_settings
from training.ml.merge_recipe import MERGES, MOST_MODELS
from training.ml.settings import TRACKERS
from training.model_files import NUMBERS
from training.models import (
    Arena,
    Dataset,
    DatasetDraft,
    Merge,
    ModelExport,
    ModelReport,
    ModelVersion,
    Round,
    Run,
    SideBySide,
    Study,
    Sweep,
)
from training.playground import LONGEST_PROMPT
from training.registry import clean_tags
from training.rounds import LEAST_SHARE, MOST_SHARE, WAY_OF, WAYS, round_rows
from training.studies import MOST_SEEDS, REFERENCES
from training.sweeps import MOST_RUNS

LARGEST_SETTING = 2**31 - 1


class DatasetSerializer(serializers.ModelSerializer):
    filters = ObjectField(read_only=True)
    counts = ObjectField(read_only=True)
    raters = serializers.ListField(child=ObjectField(), read_only=True)

    class Meta:
        model = Dataset
        fields = [
            *("id", "sha256", "body_sha256", "redacted_at", "filters", "counts", "raters"),
            *("for_study", "created_at"),
        ]
        read_only_fields = fields


class OneDatasetSerializer(DatasetSerializer):
    preview = ObjectField(read_only=True)

    class Meta(DatasetSerializer.Meta):
        fields = [*DatasetSerializer.Meta.fields, "preview"]
        read_only_fields = fields


class DraftSerializer(serializers.ModelSerializer):
    filters = ObjectField(read_only=True)
    preview = ObjectField(read_only=True, source="result")
    dataset = serializers.CharField(
        source="dataset.sha256", allow_null=True, default=None, read_only=True
    )

    class Meta:
        model = DatasetDraft
        fields = [*JOB_FIELDS, "filters", "freezing", "preview", "dataset"]
        read_only_fields = fields


class BuildSerializer(serializers.Serializer):
    settings = ObjectField(
        required=False, default=dict, help_text="See docs/datasets.md for their names."
    )
    preview = serializers.BooleanField(
        default=False, help_text="Compute the preview alone, and freeze nothing."
    )

    def validate_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            return make_settings(settings).as_json()
        except ValueError as error:
            raise serializers.ValidationError(str(error)[:500]) from None


class RunSerializer(serializers.ModelSerializer):
    dataset = serializers.CharField(
        source="dataset.sha256",
        allow_null=True,
        default=None,
        read_only=True,
        help_text="Its SHA-256; null for a run on raw text, and until the labels are frozen.",
    )
    model = serializers.SerializerMethodField(help_text="The model it left, by name.")
    recipe = ObjectField(read_only=True)
    metrics = ObjectField(read_only=True)

    class Meta:
        model = Run
        fields = [
            *JOB_FIELDS,
            "kind",
            "base_model",
            "recipe",
            "seed",
            "dataset",
            "text_sha256",
            "code_version",
            "metrics",
            "model",
            "cause",
            "sweep",
            "report_to",
            "queue",
        ]
        read_only_fields = fields

    def get_model(self, run: Run) -> str | None:
        version = getattr(run, "model_version", None)
        return version.name if version else None


class ModelSerializer(serializers.ModelSerializer):
    base = serializers.CharField(source="base.name", allow_null=True, read_only=True)
    run = serializers.IntegerField(source="run_id", allow_null=True, read_only=True)
    merge = serializers.IntegerField(source="merge_id", allow_null=True, read_only=True)
    tags = serializers.ListField(child=serializers.CharField(), read_only=True)

    class Meta:
        model = ModelVersion
        fields = ["id", "name", "kind", "base", "run", "merge", "tags", "notes", "created_at"]
        read_only_fields = fields


class DescribeSerializer(serializers.Serializer):
    tags = serializers.ListField(
        child=serializers.CharField(max_length=40), max_length=20, required=False
    )
    notes = serializers.CharField(max_length=10_000, allow_blank=True, required=False)

    def validate_tags(self, tags: list[str]) -> list[str]:
        if any("," in tag for tag in tags):
            raise serializers.ValidationError("A tag has no comma.")
        return clean_tags(",".join(tags))


class DeleteSerializer(serializers.Serializer):
    models = serializers.ListField(
        child=serializers.CharField(max_length=100),
        max_length=1_000,
        help_text="Names of all models that go: the model, and each that was made from it.",
    )
    judges = serializers.ListField(
        child=serializers.CharField(max_length=200),
        max_length=1_000,
        required=False,
        default=list,
        help_text="Names of the project's judges that ask one of these models: they stay with all "
        "they said, and cannot be asked again.",
    )
    checkpoints = serializers.IntegerField(
        read_only=True, help_text="How many went, of the runs that made these models."
    )


class MergePartSerializer(serializers.Serializer):
    model = serializers.CharField(source="model.name", read_only=True)
    weight = serializers.FloatField(read_only=True)


class MergeSerializer(serializers.ModelSerializer):
    parts = MergePartSerializer(many=True, read_only=True)
    base = serializers.CharField(source="base.name", allow_null=True, default=None, read_only=True)
    settings = ObjectField(source="recipe", read_only=True)
    result = ObjectField(read_only=True)
    model = serializers.SerializerMethodField(help_text="The model it left, by name.")

    class Meta:
        model = Merge
        fields = [*JOB_FIELDS, "name", "method", "parts", "base", "settings", "result", "model"]
        read_only_fields = fields

    def get_model(self, merge: Merge) -> str | None:
        version = getattr(merge, "model_version", None)
        return version.name if version else None


class StartMergeSerializer(serializers.Serializer):
    name = serializers.SlugField(max_length=100, help_text="Of the new model.")
    method = serializers.ChoiceField(choices=list(MERGES.items()))
    models = serializers.ListField(
        child=serializers.CharField(max_length=200),
        min_length=1,
        max_length=MOST_MODELS,
        help_text="Models of the project, or folders under models/.",
    )
    base = serializers.CharField(max_length=200, default="", allow_blank=True)
    weights = serializers.ListField(
        child=serializers.FloatField(min_value=-1e6, max_value=1e6),
        max_length=MOST_MODELS,
        required=False,
        default=list,
        help_text="One for each model; none: all 1.",
    )
    settings = ObjectField(
        required=False, default=dict, help_text="See docs/models.md for their names."
    )

    def validate_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        for name, value in settings.items():
            if not isinstance(value, (str, int, float)) or len(str(value)) > 500:
                raise serializers.ValidationError(f"{name[:50]}: a text or a number.")
        return settings


class SideBySideSerializer(serializers.ModelSerializer):
    prompt = MessagesField()
    sampling = ObjectField(read_only=True)
    result = ObjectField(read_only=True, help_text="Of each side: tokens, seconds, why it ended.")
    comparison = serializers.IntegerField(
        source="comparison_id",
        allow_null=True,
        read_only=True,
        help_text="What people were given of it.",
    )

    class Meta:
        model = SideBySide
        fields = [
            *JOB_FIELDS,
            "prompt",
            "model_a",
            "model_b",
            "sampling",
            "text_a",
            "text_b",
            "result",
            "comparison",
        ]
        read_only_fields = fields


class AskSerializer(serializers.Serializer):
    text = serializers.CharField(max_length=LONGEST_PROMPT, help_text="What both are asked.")
    model_a = serializers.CharField(
        max_length=200, help_text="A model of the project that writes, or a folder under models/."
    )
    model_b = serializers.CharField(max_length=200)
    temperature = serializers.FloatField(min_value=0, max_value=5, default=0.7)
    seed = serializers.IntegerField(min_value=0, max_value=LARGEST_SETTING, default=0)
    max_new_tokens = serializers.IntegerField(min_value=1, max_value=4096, default=128)


class ExportSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="model.name", read_only=True)
    result = ObjectField(read_only=True, help_text="Bytes, tensors and seconds of a written file.")

    class Meta:
        model = ModelExport
        fields = [*JOB_FIELDS, "model", "numbers", "result"]
        read_only_fields = fields


class StartExportSerializer(serializers.Serializer):
    numbers = serializers.ChoiceField(choices=list(NUMBERS.items()), default="float16")


class LeftOutSerializer(serializers.Serializer):
    model = serializers.CharField()
    reason = serializers.CharField()


class ServingSerializer(serializers.Serializer):
    command = serializers.CharField(
        allow_blank=True, help_text="Serves the model with vLLM; empty where it cannot."
    )
    left_out = LeftOutSerializer(many=True, help_text="Adapters that vLLM does not take.")


class StartSerializer(serializers.Serializer):
    kind = serializers.ChoiceField(choices=Run.Kind.choices)
    base_model = serializers.CharField(
        max_length=200, help_text="A model of this project, a folder under models/, or a hub id."
    )
    dataset = serializers.CharField(
        max_length=64,
        default="",
        allow_blank=True,
        help_text="SHA-256 of a frozen dataset; empty: the worker freezes the labels of now.",
    )
    labels = serializers.ChoiceField(choices=list(LABELS.items()), default="mixed")
    test_share = serializers.FloatField(min_value=0.01, max_value=0.9, default=0.1)
    report_to = serializers.ChoiceField(
        choices=list(TRACKERS.items()),
        default="",
        allow_blank=True,
        help_text="Where its numbers go besides its page; the worker needs that package.",
    )
    settings = ObjectField(
        required=False,
        default=dict,
        help_text="Of the recipe; see the launch page for their names. Continued pre-training "
        "wants `text`, the name of a file under texts/.",
    )

    def validate_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        for name, value in settings.items():
            if not isinstance(value, (str, int, float)) or len(str(value)) > 500:
                raise serializers.ValidationError(f"{name[:50]}: a text, a number, true or false.")
            try:
                number = float(value)
            except ValueError:
                continue
            except OverflowError:
                number = math.inf
            if not abs(number) <= LARGEST_SETTING:
                raise serializers.ValidationError(f"{name[:50]}: this number is too large.")
        if "base_model" in settings:
            raise serializers.ValidationError("base_model stands beside the settings.")
        return settings


class ModelReportSerializer(serializers.ModelSerializer):
    model = serializers.CharField(source="model.name", read_only=True)
    result = ObjectField(read_only=True, help_text="The figures; empty until the job has ended.")

    class Meta:
        model = ModelReport
        fields = [*JOB_FIELDS, "model", "result"]
        read_only_fields = fields


class CardSerializer(serializers.Serializer):
    card = serializers.CharField(help_text="Markdown.")


class StudySerializer(serializers.ModelSerializer):
    run = serializers.IntegerField(source="run_id", read_only=True)
    options = ObjectField(read_only=True)
    result = ObjectField(read_only=True, help_text="The figures; empty until the job has ended.")

    class Meta:
        model = Study
        fields = [*JOB_FIELDS, "kind", "run", "options", "result"]
        read_only_fields = fields


class StartStudySerializer(serializers.Serializer):
    kind = serializers.ChoiceField(choices=Study.Kind.choices)
    reference = serializers.ChoiceField(
        choices=list(REFERENCES.items()),
        default="",
        allow_blank=True,
        help_text="What the ways of making labels are held against.",
    )
    n_seeds = serializers.IntegerField(min_value=1, max_value=MOST_SEEDS, default=1)


class SweepSerializer(serializers.ModelSerializer):
    grid = ObjectField(read_only=True)
    runs = serializers.PrimaryKeyRelatedField(many=True, read_only=True)

    class Meta:
        model = Sweep
        fields = ["id", "kind", "grid", "runs", "created_at"]
        read_only_fields = fields


class OneSweepSerializer(SweepSerializer):
    runs = RunSerializer(many=True, read_only=True)
    best = serializers.SerializerMethodField(
        help_text="Of the runs that have ended, the best by what was held out; null before two."
    )

    class Meta(SweepSerializer.Meta):
        fields = [*SweepSerializer.Meta.fields, "best"]
        read_only_fields = fields

    @extend_schema_field(ObjectField(allow_null=True))
    def get_best(self, sweep: Sweep) -> dict[str, Any] | None:
        best = best_of(list(sweep.runs.all()))
        if best is None:
            return None
        return {
            "run": best.run.pk,
            "measure": best.measure,
            "figure": best.figure,
            "n_compared": best.n_compared,
            "n_overlapping": best.n_overlapping,
        }


class StartSweepSerializer(StartSerializer):
    grid = ObjectField(
        help_text="Settings of the recipe with some values each, such as "
        '{"learning_rate": [0.0001, 0.0002]}; at most 12 combinations.'
    )

    def validate_grid(self, grid: dict[str, Any]) -> dict[str, Any]:
        for name, values in grid.items():
            if not isinstance(values, list) or not 1 <= len(values) <= MOST_RUNS:
                raise serializers.ValidationError(
                    f"{name[:50]}: a list of 1 to {MOST_RUNS} values."
                )
            for value in values:
                self.validate_settings({name: value})
        return grid


class RoundSerializer(serializers.ModelSerializer):
    options = ObjectField(read_only=True, help_text="The settings, whole.")
    result = ObjectField(
        read_only=True, help_text="What was sampled, left out and chosen; empty until the end."
    )
    reward_run = serializers.IntegerField(source="reward_run_id", allow_null=True, read_only=True)
    policy_run = serializers.IntegerField(source="policy_run_id", allow_null=True, read_only=True)

    class Meta:
        model = Round
        fields = [
            *JOB_FIELDS,
            "number",
            "purpose",
            "options",
            "result",
            "reward_run",
            "policy_run",
            "then",
        ]
        read_only_fields = fields


class OneRoundSerializer(RoundSerializer):
    progress = serializers.SerializerMethodField(
        help_text="Pairs and labels, the figures of what was trained, and what to do next."
    )

    class Meta(RoundSerializer.Meta):
        fields = [*RoundSerializer.Meta.fields, "progress"]
        read_only_fields = fields

    @extend_schema_field(ObjectField())
    def get_progress(self, round_: Round) -> dict[str, Any]:
        row = next(row for row in round_rows(round_.project) if row.round.pk == round_.pk)
        return {
            "n_pairs": row.n_pairs,
            "n_at_random": row.n_random,
            "n_done": row.n_done,
            "n_labels": row.n_labels,
            "n_verdicts": row.n_verdicts,
            "seconds_of_people": row.seconds,
            "accuracy": row.accuracy,
            "gain": row.gain,
            "advice": row.advice.word if row.advice else "",
            "advice_text": row.advice.text if row.advice else "",
        }


class StartRoundSerializer(serializers.Serializer):
    """Settings of a round; what is left out is as in the project's next round by one click."""

    purpose = serializers.ChoiceField(choices=list(WAY_OF), required=False)
    models = serializers.ListField(
        child=serializers.CharField(max_length=100), min_length=1, max_length=20, required=False
    )
    scorer = serializers.CharField(max_length=100, allow_blank=True, required=False)
    way = serializers.ChoiceField(choices=list(WAYS.items()), allow_blank=True, required=False)
    n_labels = serializers.IntegerField(min_value=1, max_value=100_000, required=False)
    people = serializers.IntegerField(
        min_value=0,
        max_value=100,
        required=False,
        help_text="Who judge each pair; 0: as many as the project's settings want.",
    )
    n_prompts = serializers.IntegerField(min_value=1, max_value=1_000_000, required=False)
    responses = serializers.IntegerField(min_value=1, max_value=64, required=False)
    temperature = serializers.FloatField(min_value=0, max_value=10, required=False)
    max_new_tokens = serializers.IntegerField(min_value=1, max_value=100_000, required=False)
    random_share = serializers.FloatField(
        min_value=LEAST_SHARE, max_value=MOST_SHARE, required=False
    )
    alike = serializers.FloatField(min_value=0.1, max_value=1, required=False)
    seed = serializers.IntegerField(min_value=0, max_value=LARGEST_SETTING, required=False)


class ResumeRunSerializer(serializers.Serializer):
    judge_tokens = serializers.IntegerField(
        required=False, min_value=0, help_text="That the judge's server may be asked for; 0: all."
    )
    judge_cost = serializers.FloatField(
        required=False, min_value=0, help_text="What the judge may cost; 0: no limit."
    )


class TrainRoundSerializer(serializers.Serializer):
    kind = serializers.ChoiceField(choices=["reward", "dpo", "ppo"])


class ArenaSerializer(serializers.ModelSerializer):
    options = ObjectField(read_only=True, help_text="The settings, whole.")
    result = ObjectField(read_only=True, help_text="Counts; empty until the end.")
    round = serializers.IntegerField(source="round_id", allow_null=True, read_only=True)

    class Meta:
        model = Arena
        fields = [*JOB_FIELDS, "options", "result", "round"]
        read_only_fields = fields


class StartArenaSerializer(serializers.Serializer):
    models = serializers.ListField(
        child=serializers.CharField(max_length=100), min_length=2, max_length=MOST_MEETING
    )
    n_pairs = serializers.IntegerField(
        min_value=1,
        max_value=10_000,
        default=100,
        help_text="Comparisons of each two models, those of earlier arenas among them.",
    )
    temperature = serializers.FloatField(min_value=0, max_value=10, default=0.8)
    max_new_tokens = serializers.IntegerField(min_value=1, max_value=100_000, default=128)
    seed = serializers.IntegerField(min_value=0, max_value=LARGEST_SETTING, default=0)
