"""Judges in Django's administration: to look things up. Verdicts are never changed by hand."""

from django.contrib import admin

from judges.models import Judge, JudgeRun, JudgeTrial, JudgeVersion, Verdict


class JudgeVersionInline(admin.TabularInline):
    model = JudgeVersion
    fields = ["number", "model", "rater", "created_at"]
    readonly_fields = fields
    can_delete = False
    extra = 0

    def has_add_permission(self, request, obj=None):
        return False  # a version comes with its rater: see judges.judging.judge_version


@admin.register(Judge)
class JudgeAdmin(admin.ModelAdmin):
    list_display = ["name", "project", "created_at"]
    list_filter = ["project"]
    inlines = [JudgeVersionInline]


@admin.register(JudgeVersion)
class JudgeVersionAdmin(admin.ModelAdmin):
    list_display = ["__str__", "model", "rater", "created_at"]
    list_select_related = ["judge", "rater"]
    readonly_fields = ["judge", "number", "model", "server", "recipe", "rater", "created_by"]


@admin.register(JudgeRun)
class JudgeRunAdmin(admin.ModelAdmin):
    list_display = ["__str__", "status", "n_done", "n_total", "started_at", "finished_at", "worker"]
    list_filter = ["status"]
    list_select_related = ["version__judge"]
    raw_id_fields = ["version", "created_by"]


@admin.register(JudgeTrial)
class JudgeTrialAdmin(admin.ModelAdmin):
    list_display = ["__str__", "status", "created_at"]
    list_select_related = ["version__judge", "comparison"]
    raw_id_fields = ["version", "comparison", "created_by"]


@admin.register(Verdict)
class VerdictAdmin(admin.ModelAdmin):
    list_display = ["comparison", "version", "prob_a", "parsed", "problem", "created_at"]
    list_filter = ["parsed"]
    list_select_related = ["comparison", "version__judge"]
    show_full_result_count = False

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False
