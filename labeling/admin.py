"""Labeling in Django's administration: to look things up, and to mend what no page mends."""

from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.utils.translation import gettext_noop

from labeling.changes import note_event
from labeling.models import (
    Assignment,
    Comparison,
    ImportJob,
    Preference,
    Project,
    Rater,
    Rating,
)
from labeling.raters import delete_rater


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    """Members are not here: a role changes on their page alone, which writes it down."""

    list_display = ["name", "slug", "labels_per_comparison", "created_at"]


@admin.register(Rater)
class RaterAdmin(admin.ModelAdmin):
    list_display = ["name", "kind", "project", "user"]
    list_filter = ["kind", "project"]
    raw_id_fields = ["user"]
    search_fields = ["name"]

    def delete_model(self, request, obj):
        delete_rater(obj)

    def delete_queryset(self, request, queryset):
        for rater in queryset:
            delete_rater(rater)


class LookOnly(admin.ModelAdmin):
    """Rows that `labeling/places.py` keeps in step with each other: to look at."""

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    def has_delete_permission(self, request, obj=None):
        return False


@admin.register(Comparison)
class ComparisonAdmin(admin.ModelAdmin):
    list_display = ["pk", "external_id", "project", "labels_wanted", "open_places", "priority"]
    list_filter = ["project"]
    raw_id_fields = ["prompt", "response_a", "response_b"]
    search_fields = ["external_id"]
    # Kept in step with the assignments by labeling/places.py alone.
    readonly_fields = ["labels_wanted", "open_places", "purpose", "content_hash"]


@admin.register(Preference)
class PreferenceAdmin(LookOnly):
    list_display = ["comparison", "rater", "choice", "strength", "created_at", "superseded_at"]
    raw_id_fields = ["comparison", "rater"]
    list_select_related = ["comparison", "rater"]


@admin.register(Rating)
class RatingAdmin(LookOnly):
    list_display = ["response", "rater", "aspect", "desirable", "value", "created_at"]
    raw_id_fields = ["response", "rater"]
    list_select_related = ["response", "rater"]


@admin.register(Assignment)
class AssignmentAdmin(LookOnly):
    list_display = ["comparison", "rater", "state", "leased_at", "expires_at"]
    list_filter = ["state"]
    raw_id_fields = ["comparison", "rater"]
    list_select_related = ["comparison", "rater"]


@admin.register(ImportJob)
class ImportJobAdmin(admin.ModelAdmin):
    list_display = ["filename", "project", "status", "created_at", "finished_at"]
    list_filter = ["status"]


admin.site.unregister(get_user_model())


@admin.register(get_user_model())
class AccountAdmin(UserAdmin):
    """Accounts. Who made an administrator, or closed an account, stands in the history."""

    RIGHTS = ("is_active", "is_staff", "is_superuser")

    def save_model(self, request: Any, obj: Any, form: Any, change: bool) -> None:
        before = get_user_model().objects.filter(pk=obj.pk).values(*self.RIGHTS).first() or {}
        super().save_model(request, obj, form, change)
        changed = {name: getattr(obj, name) for name in self.RIGHTS}
        changed = {name: value for name, value in changed.items() if before.get(name) != value}
        if changed:
            note_event(request.user, gettext_noop("change account"), obj, **changed)

    def delete_model(self, request: Any, obj: Any) -> None:
        note_event(request.user, gettext_noop("change account"), obj, deleted=True)
        super().delete_model(request, obj)

    def delete_queryset(self, request: Any, queryset: Any) -> None:
        for account in queryset:
            self.delete_model(request, account)

    def user_change_password(self, request: Any, id: str, form_url: str = "") -> Any:
        response = super().user_change_password(request, id, form_url)
        if response.status_code == 302:
            account = self.get_object(request, id)
            note_event(request.user, gettext_noop("change password"), account)
        return response
