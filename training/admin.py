"""Training in Django's administration: to look things up."""

from django.contrib import admin

from training.models import (
    Arena,
    Checkpoint,
    Dataset,
    DatasetDraft,
    ModelReport,
    ModelVersion,
    Round,
    Run,
    RunRewardModel,
    Study,
    Sweep,
)


@admin.register(Dataset)
class DatasetAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "created_at"]


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "status", "base_model", "created_at"]
    list_filter = ["status", "kind"]
    raw_id_fields = ["project", "dataset", "sweep", "created_by"]


@admin.register(RunRewardModel)
class RunRewardModelAdmin(admin.ModelAdmin):
    list_display = ["__str__", "place", "holds_out"]
    raw_id_fields = ["run", "model"]


@admin.register(Sweep)
class SweepAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "kind", "created_at"]
    raw_id_fields = ["project", "created_by"]


@admin.register(Checkpoint)
class CheckpointAdmin(admin.ModelAdmin):
    list_display = ["__str__", "path"]
    raw_id_fields = ["run"]


@admin.register(ModelVersion)
class ModelVersionAdmin(admin.ModelAdmin):
    list_display = ["name", "kind", "project", "created_at"]
    raw_id_fields = ["project", "base", "run"]


@admin.register(DatasetDraft)
class DatasetDraftAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "status", "freezing", "created_at"]
    list_filter = ["status"]
    raw_id_fields = ["project", "dataset", "created_by"]


@admin.register(ModelReport)
class ModelReportAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "status", "created_at"]
    list_filter = ["status"]
    raw_id_fields = ["project", "model"]


@admin.register(Study)
class StudyAdmin(admin.ModelAdmin):
    list_display = ["__str__", "kind", "project", "status", "created_at"]
    list_filter = ["status", "kind"]
    raw_id_fields = ["project", "run", "created_by"]


@admin.register(Round)
class RoundAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "purpose", "status", "created_at"]
    list_filter = ["status", "purpose"]
    raw_id_fields = ["project", "reward_run", "policy_run", "created_by"]


@admin.register(Arena)
class ArenaAdmin(admin.ModelAdmin):
    list_display = ["__str__", "project", "status", "created_at"]
    list_filter = ["status"]
    raw_id_fields = ["project", "round", "created_by", "comparisons"]
