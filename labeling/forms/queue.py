"""A lead's list of comparisons: which, in what order, and what becomes of them."""

from urllib.parse import urlencode

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Choice, Comparison, Flag, Project, Rater
from labeling.scales import ANSWERS


class FilterForm(forms.Form):
    """Which comparisons a lead looks at; lives in the address. Every field may be empty."""

    text = forms.CharField(
        required=False,
        max_length=200,
        label=_lazy("Words"),
        widget=forms.TextInput(attrs={"placeholder": _lazy("of prompt, responses or id")}),
    )
    state = forms.ChoiceField(
        required=False,
        label=_lazy("State"),
        choices=[
            ("", _lazy("Any")),
            ("open", _lazy("Open")),
            ("held", _lazy("Held now")),
            ("done", _lazy("Done")),
            ("skipped", _lazy("Skipped by somebody")),
        ],
    )
    disagreement = forms.ChoiceField(
        required=False,
        label=_lazy("Disagreement"),
        choices=[
            ("", _lazy("Any")),
            ("people", _lazy("People differ")),
            ("all", _lazy("Raters differ")),
        ],
    )
    decision = forms.ChoiceField(
        required=False,
        label=_lazy("Decision"),
        choices=[("", _lazy("Any")), ("no", _lazy("None yet")), ("yes", _lazy("Decided"))],
    )
    flag = forms.ChoiceField(
        required=False,
        label=_lazy("Flag"),
        choices=[
            ("", _lazy("Any or none")),
            ("unresolved", _lazy("Unresolved")),
            *((kind, _lazy("Unresolved: %s") % label) for kind, label in Flag.Kind.choices),
            ("resolved", _lazy("Resolved")),
            ("any", _lazy("Flagged at all")),
        ],
    )
    judge = forms.ChoiceField(
        required=False,
        label=_lazy("Judge and people"),
        choices=[
            ("", _lazy("Any")),
            ("differs", _lazy("A judge differs")),
            ("agrees", _lazy("Judges agree")),
        ],
    )
    purpose = forms.ChoiceField(
        required=False,
        label=_lazy("Purpose"),
        choices=[
            ("", _lazy("Any")),
            ("work", _lazy("Work")),
            ("training", _lazy("Training")),
            ("qualification", _lazy("Qualification")),
            ("check", _lazy("Check")),
            ("gold", _lazy("With a known answer")),
        ],
    )
    leak = forms.ChoiceField(
        required=False,
        label=_lazy("Model named in text"),
        choices=[("", _lazy("Any")), ("yes", _lazy("Yes")), ("no", _lazy("No"))],
    )
    rater = forms.ModelChoiceField(
        Rater.objects.none(), required=False, label=_lazy("Judged by"), empty_label=_lazy("Anybody")
    )
    tag = forms.CharField(
        required=False,
        max_length=100,
        label=_lazy("Tag"),
        widget=forms.TextInput(attrs={"list": "tags"}),
    )
    length_min = forms.FloatField(
        required=False, min_value=0, max_value=100, label=_lazy("Lengths differ by at least, %")
    )
    length_max = forms.FloatField(
        required=False, min_value=0, max_value=100, label=_lazy("Lengths differ by at most, %")
    )

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["rater"].queryset = project.raters.order_by("kind", "name")

    @property
    def query(self) -> str:
        """The filters that are set, for a link."""
        return urlencode(
            {
                name: value.pk if isinstance(value, Rater) else value
                for name, value in self.cleaned_data.items()
                if value not in ("", None)
            }
        )


class BulkForm(forms.Form):
    """A change to the comparisons that are ticked, or to all that the filter lets through."""

    ACTIONS = ("priority", "labels_wanted", "purpose", "gold", "take_out", "put_back")
    NO_GOLD = "none"

    action = forms.ChoiceField(choices=[(name, name) for name in ACTIONS])
    scope = forms.ChoiceField(
        label=_lazy("Change"),
        choices=[("ticked", _lazy("the ticked")), ("filter", _lazy("all in this filter"))],
        initial="ticked",
    )
    priority = forms.IntegerField(
        required=False, min_value=-1000, max_value=1000, label=_lazy("Priority")
    )
    labels_wanted = forms.IntegerField(
        required=False, min_value=1, max_value=100, label=_lazy("Labels wanted")
    )
    purpose = forms.ChoiceField(
        required=False, choices=[("", "–"), *Comparison.Purpose.choices], label=_lazy("Purpose")
    )
    gold = forms.ChoiceField(required=False, label=_lazy("Known answer"))
    note = forms.CharField(required=False, max_length=500, label=_lazy("Note"))
    comparisons = forms.TypedMultipleChoiceField(coerce=int, required=False)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fields["gold"].choices = [
            ("", "–"),
            *(choice for choice in Choice.choices if choice[0] != Choice.UNPARSED),
            (self.NO_GOLD, _("Not known")),
        ]
        ticked = self.data.getlist("comparisons") if self.is_bound else []
        self.fields["comparisons"].choices = [
            (pk, pk) for pk in ticked if pk.isdecimal() and len(pk) < 19
        ]

    def clean(self):
        cleaned = super().clean()
        action = cleaned.get("action")
        if action in ("priority", "labels_wanted", "purpose", "gold") and action not in self.errors:
            value = cleaned.get(action)
            if value in ("", None):
                self.add_error(action, _("Say which value to set."))
        if cleaned.get("scope") == "ticked" and not cleaned.get("comparisons"):
            self.add_error("comparisons", _("Tick comparisons first."))
        return cleaned


class DecisionForm(forms.Form):
    """A lead's decision: the same answers that raters have."""

    answer = forms.ChoiceField(choices=[(value, value) for value in ANSWERS])
    note = forms.CharField(required=False, max_length=2_000)

    def clean(self):
        cleaned = super().clean()
        if "answer" in cleaned:
            cleaned["choice"], cleaned["strength"] = ANSWERS[cleaned["answer"]]
        return cleaned
