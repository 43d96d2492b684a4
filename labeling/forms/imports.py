"""A file of comparisons on its way in: the upload, and what its labels mean."""

from django import forms
from django.utils.translation import gettext_lazy as _lazy

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import FORM_NAMES
from labeling.imports.interchange import BadRow
from labeling.imports.rated import scale_of
from labeling.models import Comparison, Project, Rater


class UploadForm(forms.Form):
    file = forms.FileField(
        label=_lazy("File"),
        widget=forms.ClearableFileInput(attrs={"accept": ".jsonl,.json,.csv,.parquet,.gz"}),
    )


class ImportForm(forms.Form):
    """How an uploaded file is to be read."""

    format = forms.ChoiceField(
        choices=[("auto", _lazy("as recognised")), *((name, name) for name in FORM_NAMES)],
        label=_lazy("Form of the file"),
    )
    labels = forms.ChoiceField(
        choices=[("human", _lazy("people")), ("ai", _lazy("an AI judge"))],
        label=_lazy("Unnamed labels are by"),
        help_text=_lazy("A file may say which response is better and not who said so."),
    )
    rater = forms.CharField(max_length=189, label=_lazy("Kept under the name"))
    labels_per_comparison = forms.IntegerField(
        min_value=1,
        max_value=100,
        label=_lazy("Labels wanted per comparison"),
        help_text=_lazy("Of people; those that come with the file count."),
    )
    known_answers = forms.ChoiceField(
        choices=[
            (Comparison.Purpose.WORK, _lazy("ordinary work")),
            (Comparison.Purpose.CHECK, _lazy("checks, mixed into the work")),
            (Comparison.Purpose.QUALIFICATION, _lazy("the qualification of raters")),
            (Comparison.Purpose.TRAINING, _lazy("the training of raters")),
        ],
        label=_lazy("Rows with a known answer become"),
        help_text=_lazy("Those whose `gold` is given; a row that names its own purpose keeps it."),
    )

    scale = forms.CharField(
        required=False,
        max_length=40,
        label=_lazy("Scale of ratings"),
        help_text=_lazy("The worst and the best value, as 1-5; lines that name theirs keep it."),
    )

    def __init__(self, *args, project: Project, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial = self.start(project)

    def clean_scale(self) -> tuple[float, float] | None:
        try:
            return scale_of(self.cleaned_data["scale"].strip())
        except BadRow as problem:
            raise forms.ValidationError(str(problem)) from problem

    @staticmethod
    def start(project: Project) -> dict[str, str | int]:
        return {
            "format": "auto",
            "labels": "human",
            "rater": Labels().rater,
            "labels_per_comparison": project.labels_per_comparison,
            "known_answers": Comparison.Purpose.WORK,
            "scale": "",
        }

    @property
    def given_labels(self) -> Labels:
        """Whose the labels are that name nobody."""
        is_ai = self.cleaned_data["labels"] == "ai"
        kind = Rater.Kind.JUDGE if is_ai else Rater.Kind.PERSON
        return Labels(self.cleaned_data["rater"], kind, self.cleaned_data["scale"])
