"""A person's data: whose, and that it is to be erased."""

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy


class PersonForm(forms.Form):
    """Whose data is looked at."""

    name = forms.CharField(
        label=_lazy("User name, or name of an imported rater"), max_length=200, strip=False
    )


class EraseForm(forms.Form):
    """What cannot be taken back is asked for twice."""

    keep_reasons = forms.BooleanField(
        required=False,
        label=_lazy("Keep the reasons in free text"),
        help_text=_lazy("They may tell who wrote them."),
    )
    confirmed = forms.CharField(
        label=_lazy("Type the name to erase it"),
        max_length=200,
        strip=False,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    def __init__(self, *args, name: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.name = name

    def clean_confirmed(self) -> str:
        if self.cleaned_data["confirmed"] != self.name:
            raise forms.ValidationError(_("This is not the name above: nothing was erased."))
        return self.name
