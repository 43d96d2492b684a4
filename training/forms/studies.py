"""A study of the labels behind a run, as a person asks for it."""

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from training.models import Study
from training.studies import MOST_SEEDS, REFERENCES


class StudyForm(forms.Form):
    """A study of the labels behind a run."""

    kind = forms.ChoiceField(
        label=_lazy("Question"),
        choices=[
            (Study.Kind.CURVE, _lazy("Would more labels help? Trains on parts of them")),
            (Study.Kind.LABELS, _lazy("Which labels teach best? Makes them in four ways")),
        ],
    )
    reference = forms.ChoiceField(
        label=_lazy("Ways are held against"), choices=REFERENCES.items(), required=False
    )
    n_seeds = forms.IntegerField(
        label=_lazy("Seeds"),
        min_value=1,
        max_value=MOST_SEEDS,
        initial=3,
        help_text=_lazy("Each part or way is trained so many times."),
    )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("kind") == Study.Kind.LABELS and not cleaned.get("reference"):
            self.add_error("reference", _("Choose what the ways are held against."))
        return cleaned
