"""Which changes the history and the log of the whole installation show."""

from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.utils.translation import gettext_lazy as _lazy


class HistoryForm(forms.Form):
    """Whose changes, and those before which one."""

    by = forms.ModelChoiceField(
        get_user_model().objects.none(),
        required=False,
        label=_lazy("Person"),
        empty_label=_lazy("Anybody"),
        to_field_name="username",
    )
    before = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)

    def __init__(self, *args, people: Any, **kwargs):
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["by"].queryset = people


class AuditForm(forms.Form):
    """What of the installation's history is shown: of a kind, of a person."""

    KINDS = {
        "signing in": (
            _lazy("Signing in"),
            [
                *("sign in", "fail to sign in", "lock sign-in", "change password"),
                *("turn on second factor", "turn off second factor", "renew second factor"),
                *("connect sign-in", "disconnect sign-in"),
            ],
        ),
        "access": (
            _lazy("Roles, accounts and tokens"),
            [
                *("change role", "invite", "revoke invitation", "make token", "revoke token"),
                *("change account", "make webhook", "change webhook", "rotate keys"),
            ],
        ),
        "out": (
            _lazy("Downloads and personal data"),
            ["download", "export model", "export rater", "erase rater"],
        ),
    }

    what = forms.ChoiceField(
        label=_lazy("What"),
        required=False,
        choices=[("", _lazy("Everything")), *((kind, words) for kind, (words, _) in KINDS.items())],
    )
    by = forms.CharField(label=_lazy("Person"), required=False, max_length=150)
    before = forms.IntegerField(required=False, min_value=1, widget=forms.HiddenInput)
