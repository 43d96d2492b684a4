"""What programs may send us about judges, and what they are told."""

from dataclasses import replace
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from judges.certificates import MOST_JUDGES
from judges.figures import progress_of
from judges.forms import GRID_MODES, JudgeForm
from judges.laboratory import EPSILON, MOST, MOST_CELLS, USUAL
from judges.making import NotPossible, check_members, checked_place, exemplars_of_gold
from judges.ml.config import JudgeRecipe, recipe_from, recipe_values
from judges.models import (
    Calibration,
    Certificate,
    CertificateStage,
    ChosenJudge,
    Experiment,
    Judge,
    JudgeRun,
    JudgeServer,
    JudgeVersion,
    PromptVersion,
    RoutingPolicy,
    RoutingRun,
)
from judges.selection import OFFERED, Which, which_of
from labeling.serializers.jobs import JOB_FIELDS
from labeling.serializers.values import ObjectField, identifier

MOST_EXEMPLARS = 100


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


class NewJudgeSerializer(serializers.Serializer):
    """A judge, or with the name of one a version of it: the same settings are the same version."""

    name = serializers.CharField(max_length=100)
    model = serializers.CharField(
        max_length=500,
        required=False,
        allow_blank=True,
        default="",
        help_text="As on the page; a jury has none.",
    )
    server = serializers.SlugRelatedField(
        slug_field="name",
        queryset=JudgeServer.objects.all(),
        required=False,
        allow_null=True,
        default=None,
        help_text="The name of an allowed server; null: a worker of ours.",
    )
    prompt = serializers.CharField(
        max_length=100,
        required=False,
        allow_blank=True,
        default="",
        help_text="What the words of the question are called; empty: as the judge.",
    )
    recipe = ObjectField(
        required=False, default=dict, help_text="What differs from the usual settings."
    )
    exemplars = serializers.ListField(
        child=identifier(),
        required=False,
        default=list,
        max_length=MOST_EXEMPLARS,
        help_text="Numbers of comparisons with a reference answer, which the judge is shown.",
    )

    def validate_recipe(self, given: dict[str, Any]) -> JudgeRecipe:
        usual = recipe_values(JudgeRecipe())
        for name, value in given.items():
            if name == "exemplars":
                raise serializers.ValidationError(
                    "Exemplars are named beside the recipe, by the numbers of their comparisons."
                )
            if name in usual and not _is_like(value, usual[name]):
                raise serializers.ValidationError(f"{name} is none of its kind.")
            _check_as_on_the_page(name, value)
        MEMBERS.run_validation(given.get("members", []))
        aspects = [
            text
            for row in given.get("aspects", [])
            if isinstance(row, dict)
            for text in row.values()
        ]
        if not all(isinstance(text, str) for text in [*given.get("principles", []), *aspects]):
            raise serializers.ValidationError("Principles and aspects are texts.")
        try:
            recipe = recipe_from(given)
        except (AttributeError, TypeError, ValueError) as error:
            raise serializers.ValidationError(str(error)) from None
        try:
            check_members(self.context["project"], recipe.members)
        except NotPossible as error:
            raise serializers.ValidationError(str(error)) from None
        return recipe

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        project, recipe = self.context["project"], given["recipe"]
        try:
            model, server = checked_place(
                project, self.context["user"], recipe.mode, given["model"], given["server"]
            )
            shown = exemplars_of_gold(
                project, given["exemplars"], mode=recipe.mode, ties=recipe.ties
            )
        except NotPossible as error:
            raise serializers.ValidationError({error.field: str(error)}) from None
        recipe = replace(recipe, exemplars=shown)
        return given | {"model": model, "server": server, "recipe": recipe}


MEMBERS = serializers.ListField(child=identifier(), max_length=MOST_CELLS)


def _check_as_on_the_page(name: str, value: Any) -> None:
    """Hold a number or a text to the bounds of the judge's form.

    Raises: ValidationError.
    """
    field = JudgeForm.base_fields.get(name)
    if type(field) in (forms.IntegerField, forms.FloatField, forms.CharField):
        try:
            field.clean(value)
        except ValidationError as error:
            raise serializers.ValidationError(f"{name}: {error.messages[0]}") from None


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a JSON value is of the kind of another; whole numbers are numbers too."""
    if isinstance(usual, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(usual)


class JudgeRunSerializer(serializers.ModelSerializer):
    version = serializers.IntegerField(source="version_id", read_only=True)
    judge = serializers.CharField(source="version.judge.name", read_only=True)
    select = serializers.SerializerMethodField(help_text="Which comparisons.")
    workers = serializers.IntegerField(
        source="workers_wanted", read_only=True, help_text="How many workers may share the run."
    )
    result = ObjectField(read_only=True)

    class Meta:
        model = JudgeRun
        fields = [
            *JOB_FIELDS,
            "judge",
            "version",
            "select",
            "limit",
            "most_tokens",
            "most_cost",
            "workers",
            "counts",
            "result",
        ]
        read_only_fields = fields

    def get_select(self, run: JudgeRun) -> str:
        return which_of(run.selection).value


class RunWorkerSerializer(serializers.Serializer):
    """A process that shares, or shared, a run."""

    name = serializers.CharField(help_text="Its machine and process.")
    joined_at = serializers.DateTimeField()
    left_at = serializers.DateTimeField(allow_null=True)
    loading = serializers.BooleanField(help_text="The model is being loaded.")
    judged = serializers.IntegerField()
    problem = serializers.CharField(help_text="Why it left before the run was done.")


class ProgressSerializer(serializers.Serializer):
    """What a run has come to so far: `result`, of this moment, and how fast it goes on."""

    questions = serializers.IntegerField()
    parsed = serializers.IntegerField()
    unparsed = serializers.IntegerField()
    unparsed_share = serializers.FloatField(allow_null=True)
    unparsed_low = serializers.FloatField(allow_null=True)
    unparsed_high = serializers.FloatField(allow_null=True)
    position_consistency = serializers.FloatField(allow_null=True)
    position_consistency_low = serializers.FloatField(allow_null=True)
    position_consistency_high = serializers.FloatField(allow_null=True)
    first_shown_twice = serializers.IntegerField()
    second_shown_twice = serializers.IntegerField()
    first_place_share = serializers.FloatField(
        allow_null=True, help_text="Of those that named one place twice, the first place's share."
    )
    first_place_low = serializers.FloatField(allow_null=True)
    first_place_high = serializers.FloatField(allow_null=True)
    position_bias_p = serializers.FloatField(
        allow_null=True, help_text="Exact binomial test of that share against one half."
    )
    mean_answer_mass = serializers.FloatField(allow_null=True)
    did_not_fit = serializers.IntegerField()
    prompts_cut = serializers.IntegerField()
    exemplars_left_out = serializers.IntegerField()
    out_of_memory = serializers.IntegerField(
        help_text="How often memory ran out and a batch was made smaller."
    )
    retried = serializers.IntegerField(help_text="Requests to a server that were sent again.")
    rate_limited = serializers.IntegerField(help_text="Waits for a server's rate limit.")
    lost_answers = serializers.IntegerField(
        help_text="Answers that may have to be paid for, and never came."
    )
    bounded_answers = serializers.IntegerField(
        help_text="Answers that a server did not name: they have the most that they can have."
    )
    tokens = serializers.IntegerField()
    tokens_written = serializers.IntegerField()
    cost = serializers.FloatField(allow_null=True)
    seconds = serializers.FloatField(help_text="Computing time of all workers together.")
    per_minute = serializers.FloatField(allow_null=True)
    seconds_left = serializers.FloatField(allow_null=True)
    workers = RunWorkerSerializer(many=True)


class OneJudgeRunSerializer(JudgeRunSerializer):
    """A run with its progress."""

    progress = serializers.SerializerMethodField()

    class Meta(JudgeRunSerializer.Meta):
        fields = [*JudgeRunSerializer.Meta.fields, "progress"]
        read_only_fields = fields

    @extend_schema_field(ProgressSerializer)
    def get_progress(self, run: JudgeRun) -> dict[str, Any]:
        return ProgressSerializer(progress_of(run)).data


class ResumeSerializer(serializers.Serializer):
    """Other limits to go on with; what is left out stays as it was."""

    most_tokens = serializers.IntegerField(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        allow_null=True,
        default=None,
        help_text="The run pauses before it would read and write more tokens than this.",
    )
    most_cost = serializers.FloatField(
        min_value=0,
        required=False,
        allow_null=True,
        default=None,
        help_text="The run pauses before it would cost more, in its server's currency.",
    )


class LaunchSerializer(ResumeSerializer):
    version = identifier(help_text="A version of a judge of this project.")
    limit = serializers.IntegerField(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        allow_null=True,
        default=None,
        help_text="How many comparisons at most.",
    )
    select = serializers.ChoiceField(
        choices=OFFERED, default=Which.ALL, help_text="Which comparisons."
    )
    workers = serializers.IntegerField(
        min_value=1, max_value=100, default=1, help_text="How many workers may share the run."
    )

    def validate_version(self, pk: int) -> Any:
        versions = JudgeVersion.objects.select_related("judge").filter(
            judge__project=self.context["project"]
        )
        version = versions.filter(pk=pk).first()
        if version is None:
            raise serializers.ValidationError("The project has no such version of a judge.")
        return version


class ExperimentSerializer(serializers.ModelSerializer):
    n_comparisons = serializers.SerializerMethodField()
    versions = serializers.SerializerMethodField()

    class Meta:
        model = Experiment
        fields = [*JOB_FIELDS, "name", "n_comparisons", "versions"]
        read_only_fields = fields

    def get_n_comparisons(self, experiment: Experiment) -> int:
        return len(experiment.selection.get("comparisons", []))

    def get_versions(self, experiment: Experiment) -> list[int]:
        return [cell.version_id for cell in experiment.cells.all()]


class ExperimentResultSerializer(ExperimentSerializer):
    result = ObjectField(read_only=True)

    class Meta(ExperimentSerializer.Meta):
        fields = [*ExperimentSerializer.Meta.fields, "result"]
        read_only_fields = fields


class NewExperimentSerializer(serializers.Serializer):
    name = serializers.CharField(max_length=100)
    versions = serializers.ListField(
        child=identifier(),
        min_length=1,
        max_length=MOST_CELLS,
        help_text="Versions of judges of this project.",
    )
    modes = serializers.ListField(
        child=serializers.ChoiceField(choices=[mode for mode, _words in GRID_MODES]),
        required=False,
        default=list,
        max_length=len(GRID_MODES),
        help_text="Each makes a version of each judge; empty: as each judge is.",
    )
    prompts = serializers.ListField(
        child=identifier(),
        required=False,
        default=list,
        max_length=MOST_CELLS,
        help_text="Prompt versions of this project; empty: as each judge is.",
    )
    most = serializers.IntegerField(
        min_value=1,
        max_value=MOST,
        default=USUAL,
        help_text="Labeled comparisons, at most.",
    )
    epsilon = serializers.FloatField(
        min_value=0, max_value=0.5, default=EPSILON, help_text="The alt-test's ε."
    )

    def validate_versions(self, keys: list[int]) -> list[JudgeVersion]:
        rows = JudgeVersion.objects.select_related("judge__project").filter(
            judge__project=self.context["project"]
        )
        return _all_of(rows, keys, "The project has no such version of a judge.")

    def validate_prompts(self, keys: list[int]) -> list[PromptVersion]:
        rows = PromptVersion.objects.filter(project=self.context["project"])
        return _all_of(rows, keys, "The project has no such prompt.")


class UseSerializer(serializers.Serializer):
    version = identifier(help_text="A version in this experiment.")
    method = serializers.ChoiceField(
        choices=["", *Calibration.Method.values],
        default="",
        help_text="How its probabilities are corrected; empty: not at all.",
    )

    def validate_version(self, pk: int) -> JudgeVersion:
        versions = JudgeVersion.objects.filter(cells__experiment=self.context["experiment"])
        version = versions.select_related("judge__project", "rater").filter(pk=pk).first()
        if version is None:
            raise serializers.ValidationError("The experiment has no such version.")
        return version


class ChosenJudgeSerializer(serializers.ModelSerializer):
    """The project's judge, and the number of the calibration that corrects it."""

    version = serializers.IntegerField(source="version_id", read_only=True)
    calibration = serializers.IntegerField(
        source="calibration.number", read_only=True, allow_null=True, default=None
    )

    class Meta:
        model = ChosenJudge
        fields = ["version", "calibration", "chosen_at"]
        read_only_fields = fields


def _all_of(rows: Any, keys: list[int], missing: str) -> list[Any]:
    found = rows.in_bulk(keys)
    if len(found) < len(set(keys)):
        raise serializers.ValidationError(missing)
    return [found[key] for key in dict.fromkeys(keys)]


class RoutingPolicySerializer(serializers.ModelSerializer):
    """What a lead wants of judges that decide alone."""

    versions = serializers.ListField(
        child=identifier(),
        required=False,
        max_length=MOST_JUDGES,
        help_text="Versions that decide, one after the other; empty: the project's judge.",
    )

    class Meta:
        model = RoutingPolicy
        fields = [
            "alpha",
            "delta",
            "starts",
            "purpose",
            "versions",
            "cost_per_label",
            "currency",
        ]

    def validate_versions(self, keys: list[int]) -> list[int]:
        found = JudgeVersion.objects.filter(judge__project=self.context["project"], pk__in=keys)
        if found.count() < len(keys):
            raise serializers.ValidationError("No such versions, or one is named twice.")
        return keys


class RoutingRequestSerializer(RoutingPolicySerializer):
    """What to do, and a policy to keep before that."""

    kind = serializers.ChoiceField(
        choices=[
            RoutingRun.Kind.COUNT.value,
            RoutingRun.Kind.ISSUE.value,
            RoutingRun.Kind.ROUTE.value,
        ],
        help_text="Look at the audit stream, test for a certificate, or route again.",
    )

    class Meta(RoutingPolicySerializer.Meta):
        fields = [*RoutingPolicySerializer.Meta.fields, "kind"]


class RoutingSerializer(serializers.Serializer):
    """The policy that was looked at, and what a test would come to: see docs/routing.md."""

    policy = RoutingPolicySerializer(read_only=True)
    outlook = ObjectField(read_only=True, allow_null=True)


class RoutingRunSerializer(serializers.ModelSerializer):
    class Meta:
        model = RoutingRun
        fields = [*JOB_FIELDS, "kind"]
        read_only_fields = fields


class CertificateStageSerializer(serializers.ModelSerializer):
    version = serializers.IntegerField(source="version_id", read_only=True)
    judge = serializers.CharField(source="version", read_only=True)

    class Meta:
        model = CertificateStage
        fields = ["version", "judge", "threshold", "n", "errors", "bound", "n_decided"]
        read_only_fields = fields


class CertificateSerializer(serializers.ModelSerializer):
    stages = CertificateStageSerializer(many=True, read_only=True)

    class Meta:
        model = Certificate
        fields = [
            "id",
            "number",
            "status",
            "alpha",
            "delta",
            "level",
            "starts",
            "n_labels",
            "n_comparisons",
            "n_decided",
            "stages",
            "audit_n",
            "audit_errors",
            "issued_at",
            "revoked_at",
            "reason",
            "note",
        ]
        read_only_fields = fields


class RevokeSerializer(serializers.Serializer):
    note = serializers.CharField(max_length=500, required=False, allow_blank=True, default="")
