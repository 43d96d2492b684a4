"""A program's token: its name, what it may do, for how long."""

from django import forms
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import ApiToken


class TokenForm(forms.Form):
    """A key for a program of one's own."""

    name = forms.CharField(
        max_length=100,
        label=_lazy("Name"),
        help_text=_lazy("What it is for, so that you know it again."),
    )
    scopes = forms.MultipleChoiceField(
        choices=ApiToken.Scope.choices,
        widget=forms.CheckboxSelectMultiple,
        label=_lazy("It may"),
        help_text=_lazy("Never more than you may yourself in a project."),
    )
    days = forms.ChoiceField(
        choices=[(7, _lazy("a week")), (90, _lazy("three months")), (365, _lazy("a year"))],
        initial=90,
        label=_lazy("Valid for"),
    )
