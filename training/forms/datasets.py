"""The builder of datasets: every setting of one."""

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Project
from training.dataset_settings import (
    AGGREGATES,
    AI_LABELS,
    KINDS,
    LABELS,
    LARGEST,
    TIES,
    WEIGHTS,
    DatasetSettings,
    make_settings,
)
from training.forms.launch import refuse


class DatasetForm(forms.Form):
    """Every setting of a dataset, in the words of DatasetSettings."""

    kind = forms.ChoiceField(
        label=_lazy("What it holds"),
        choices=list(KINDS.items()),
        help_text=_lazy(
            "Single judgements train KTO, and reward models on ratings; everything else learns "
            "from pairs."
        ),
    )
    labels = forms.ChoiceField(
        label=_lazy("Whose labels"),
        choices=list(LABELS.items()),
        help_text=_lazy("“Else” means: AI labels count only where no person answered."),
    )
    ai_labels = forms.ChoiceField(
        label=_lazy("Which AI labels"),
        choices=list(AI_LABELS.items()),
        help_text=_lazy(
            "Certified: a certificate lets the answer stand without people. Calibrated: corrected "
            "probabilities of a judge that was chosen with a calibration."
        ),
    )
    aggregate = forms.ChoiceField(
        label=_lazy("How votes become a label"),
        choices=list(AGGREGATES.items()),
        help_text=_lazy("Soft labels keep the doubt: a 2 to 1 vote trains as 67 %, not as 100 %."),
    )
    decisions = forms.BooleanField(
        label=_lazy("Decisions of leads first"),
        required=False,
        help_text=_lazy("What a lead decided stands in place of the votes."),
    )
    ties = forms.ChoiceField(label=_lazy("Ties"), choices=list(TIES.items()))
    weights = forms.ChoiceField(
        label=_lazy("Weights"),
        choices=list(WEIGHTS.items()),
        help_text=_lazy("How much a pair counts in the loss."),
    )
    least_votes = forms.IntegerField(label=_lazy("Votes, at least"), min_value=1, max_value=LARGEST)
    least_agreement = forms.FloatField(
        label=_lazy("Agreement, at least"),
        min_value=0,
        max_value=1,
        help_text=_lazy("Share of a comparison’s votes for its most frequent answer; 0: any."),
    )
    least_strength = forms.FloatField(
        label=_lazy("Strength, at least"),
        min_value=0,
        max_value=3,
        help_text=_lazy(
            "Mean of 1 slightly, 2 clearly, 3 much; votes without a strength, as those of AI "
            "judges, count 0. 0: any."
        ),
    )
    sources = forms.CharField(
        label=_lazy("Only responses of"),
        required=False,
        max_length=2000,
        help_text=_lazy("Names of models with commas between; both responses must be theirs."),
    )
    sources_excluded = forms.CharField(
        label=_lazy("No responses of"), required=False, max_length=2000
    )
    tags_excluded = forms.CharField(
        label=_lazy("Without the tags"),
        required=False,
        max_length=2000,
        help_text=_lazy("Left out if a vote bears one of them."),
    )
    flagged_excluded = forms.BooleanField(
        label=_lazy("Leave out what raters flagged"), required=False
    )
    since = forms.CharField(
        label=_lazy("Votes from"),
        required=False,
        max_length=10,
        widget=forms.TextInput(attrs={"type": "date"}),
    )
    until = forms.CharField(
        label=_lazy("Votes until"),
        required=False,
        max_length=10,
        widget=forms.TextInput(attrs={"type": "date"}),
        help_text=_lazy("The last day counts too (UTC)."),
    )
    longest_response = forms.IntegerField(
        label=_lazy("Longest response"),
        min_value=0,
        max_value=LARGEST,
        help_text=_lazy("In characters; 0: no limit."),
    )
    test_share = forms.FloatField(
        label=_lazy("Test share"),
        min_value=0.01,
        max_value=0.9,
        help_text=_lazy("Share of the prompts kept for measuring. No prompt is on both sides."),
    )
    seed = forms.IntegerField(
        label=_lazy("Seed"),
        min_value=0,
        max_value=LARGEST,
        help_text=_lazy("Same seed, same sides; keep it, and old test prompts stay unseen."),
    )
    near_duplicates = forms.FloatField(
        label=_lazy("Keep alike prompts together"),
        min_value=0,
        max_value=1,
        help_text=_lazy(
            "Prompts whose texts share this much (Jaccard index of three words in a row) are on "
            "one side; 0: do not."
        ),
    )

    aspect = forms.CharField(
        label=_lazy("Aspect that was rated"),
        required=False,
        max_length=100,
        help_text=_lazy("Of single judgements; empty: the rating of the whole."),
    )
    good_above = forms.FloatField(
        label=_lazy("Good above this part of the scale"),
        min_value=0.01,
        max_value=0.99,
        help_text=_lazy(
            "Of single judgements without a thumb: 0.5 is the middle of the scale, which itself is "
            "neither good nor bad."
        ),
    )

    LABEL_FIELDS = ("kind", "labels", "ai_labels", "aggregate", "decisions", "ties", "weights")
    SPLIT_FIELDS = ("test_share", "seed", "near_duplicates")

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        values = DatasetSettings().as_json()
        initial = {n: ", ".join(v) if isinstance(v, list) else v for n, v in values.items()}
        super().__init__(
            *args, label_suffix="", initial=initial | kwargs.pop("initial", {}), **kwargs
        )
        if project.tags:
            self.fields["tags_excluded"].help_text += " " + _("Tags here: %(tags)s.") % {
                "tags": ", ".join(project.tags)
            }

    def label_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.LABEL_FIELDS]

    def split_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.SPLIT_FIELDS]

    def filter_fields(self) -> list[forms.BoundField]:
        others = {*self.LABEL_FIELDS, *self.SPLIT_FIELDS}
        return [field for field in self if field.name not in others]

    @property
    def has_filters(self) -> bool:
        """Whether a filter is set or in error: then they are not folded away."""
        return any(
            field.errors or field.value() not in (field.initial, None, str(field.initial))
            for field in self.filter_fields()
        )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            try:
                cleaned["settings"] = make_settings(cleaned)
            except ValueError as error:
                refuse(self, str(error))
        return cleaned
