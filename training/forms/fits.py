"""What a model is to be used for, asked before it is known whether it fits."""

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Project
from labeling.storage import check_model_name
from training.forms.launch import LARGEST, refuse
from training.ml.memory import USES, make_work
from training.ml.settings import DTYPES
from training.models import Run
from training.runs import known_models


class WorkForm(forms.Form):
    """A model at work: what it does, with how much at once."""

    use = forms.ChoiceField(label=_lazy("What"), choices=[])
    model = forms.CharField(
        label=_lazy("Model"),
        max_length=500,
        widget=forms.TextInput(attrs={"list": "known-models", "autocomplete": "off"}),
        help_text=_lazy("A model of this project, a folder on the worker, or a hub id."),
    )
    rows = forms.IntegerField(
        label=_lazy("Texts at once"), min_value=1, max_value=LARGEST, initial=16
    )
    tokens = forms.IntegerField(
        label=_lazy("Tokens of each"),
        min_value=1,
        max_value=LARGEST,
        initial=1024,
        help_text=_lazy("The longest, with what is written."),
    )
    new_tokens = forms.IntegerField(
        label=_lazy("Of them written"), min_value=0, max_value=LARGEST, initial=256
    )
    dtype = forms.ChoiceField(label=_lazy("Number format"), choices=[])
    in_4_bits = forms.BooleanField(
        label=_lazy("In 4 bits"),
        required=False,
        help_text=_lazy("The linear layers alone; tables of words and heads stay as they are."),
    )

    def __init__(self, *args: Any, project: Project, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.project, self.user = project, user
        uses = {use: _(words) for use, words in USES.items()}
        self.fields["use"].choices = [(u, text[:1].upper() + text[1:]) for u, text in uses.items()]
        self.fields["dtype"].choices = [(dtype, _(words)) for dtype, words in DTYPES.items()]
        self.known_models = known_models(project, Run.Kind.DPO)

    def clean_model(self) -> str:
        check_model_name(self.project, self.cleaned_data["model"], self.user)
        return str(self.cleaned_data["model"])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            names = ("rows", "tokens", "new_tokens", "dtype", "in_4_bits")
            try:
                cleaned["work"] = make_work({name: cleaned[name] for name in names})
            except ValueError as error:
                refuse(self, str(error))
        return cleaned
