"""Second factors in Django's administration: who lost theirs asks an administrator to delete it."""

from typing import Any

from allauth.mfa.models import Authenticator
from django.contrib import admin
from django.utils.translation import gettext_noop

from config.sign_in import FACTORS
from labeling.changes import note_event

admin.site.unregister(Authenticator)


@admin.register(Authenticator)
class AuthenticatorAdmin(admin.ModelAdmin):
    """To look at and to delete. Its secret is not shown: whoever has it, is that person."""

    list_display = ["user", "type", "created_at", "last_used_at"]
    list_filter = ["type"]
    list_select_related = ["user"]
    fields = ["user", "type", "created_at", "last_used_at"]

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        return False

    def delete_model(self, request: Any, obj: Any) -> None:
        kind = FACTORS[obj.type]
        note_event(request.user, gettext_noop("turn off second factor"), obj.user, kind=kind)
        super().delete_model(request, obj)

    def delete_queryset(self, request: Any, queryset: Any) -> None:
        for authenticator in queryset:
            self.delete_model(request, authenticator)
