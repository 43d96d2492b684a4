"""How much a rater labels, and which comparisons raters are tried with."""

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Choice, Comparison


class LabelLimitForm(forms.Form):
    label_limit = forms.IntegerField(
        required=False, min_value=1, max_value=2_000_000_000, label=_lazy("Most labels")
    )


class SetForm(forms.Form):
    """Which comparisons go into a set of known answers."""

    IDS, GOLD, UNANIMOUS = "ids", "gold", "unanimous"

    purpose = forms.ChoiceField(
        label=_lazy("Put into"),
        choices=(
            (Comparison.Purpose.CHECK, _lazy("Gold, mixed into the work")),
            (Comparison.Purpose.QUALIFICATION, _lazy("Qualification")),
            (Comparison.Purpose.TRAINING, _lazy("Training")),
        ),
    )
    source = forms.ChoiceField(
        label=_lazy("Which comparisons"),
        choices=(
            (UNANIMOUS, _lazy("Those on which people agree")),
            (GOLD, _lazy("Those whose answer came with the file")),
            (IDS, _lazy("These ids")),
        ),
    )
    n = forms.IntegerField(
        required=False, min_value=1, max_value=1_000, initial=20, label=_lazy("At most")
    )
    at_least = forms.IntegerField(
        required=False,
        min_value=2,
        max_value=100,
        initial=3,
        label=_lazy("People who all gave one answer"),
        help_text=_lazy("For “people agree”: that answer becomes the known one."),
    )
    ids = forms.CharField(
        required=False,
        max_length=100_000,
        widget=forms.Textarea(attrs={"rows": 3}),
        label=_lazy("Ids"),
        help_text=_lazy(
            "For “these ids”: of the file, or the numbers that our pages show, one per line."
        ),
    )
    gold = forms.ChoiceField(
        required=False,
        label=_lazy("Known answer"),
        choices=[
            ("", _lazy("as each has it")),
            *((c, label) for c, label in Choice.choices if c != Choice.UNPARSED),
        ],
        help_text=_lazy("For “these ids”."),
    )

    def clean(self):
        cleaned = super().clean()
        cleaned["n"] = cleaned.get("n") or self.fields["n"].initial
        cleaned["at_least"] = cleaned.get("at_least") or self.fields["at_least"].initial
        lines = (line.strip() for line in cleaned.get("ids", "").splitlines())
        ids = cleaned["ids"] = list(dict.fromkeys(line for line in lines if line))
        if cleaned.get("source") == self.IDS and not ids:
            self.add_error("ids", _("Give at least one id."))
        if len(ids) > 1_000:
            self.add_error("ids", _("Give at most 1,000 ids at a time."))
        return cleaned
