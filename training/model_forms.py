"""What a person may send us about models: a merge, tags and notes, a prompt for the playground."""

from collections.abc import Iterator
from typing import Any

from django import forms
from django.core.validators import validate_slug
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Project
from training.merges import make_merge_recipe, mergeable_models, why_no_worker
from training.ml.merge_recipe import (
    ABOUT,
    DTYPES,
    MERGEKIT_METHODS,
    MERGES,
    MOST_MODELS,
    NEEDS_BASE,
    SETTINGS,
    SIGNS,
)
from training.playground import LONGEST_PROMPT, writers
from training.registry import clean_tags

LARGEST = 2**31 - 1
SHOWN_AT_FIRST = 3
"""Places for models in an empty form; the others are folded away."""


class MergeForm(forms.Form):
    """Every setting of a merge; those that the chosen method does not read are not asked for."""

    name = forms.CharField(
        label=_lazy("Name"),
        max_length=100,
        validators=[validate_slug],
        help_text=_lazy("Of the new model: letters, digits, hyphens."),
    )
    method = forms.ChoiceField(
        label=_lazy("Method"), widget=forms.RadioSelect, choices=list(MERGES.items())
    )
    base = forms.ChoiceField(
        label=_lazy("Base"),
        required=False,
        help_text=_lazy("What the models began with; adapters know theirs."),
    )
    t = forms.FloatField(
        label="t",
        min_value=0,
        max_value=1,
        help_text=_lazy("0 is the first model, 1 the second."),
    )
    density = forms.FloatField(
        label=_lazy("Density"),
        min_value=0,
        max_value=1,
        help_text=_lazy("Share of the changes that is kept."),
    )
    sign = forms.ChoiceField(
        label=_lazy("Sign elected"),
        choices=list(SIGNS.items()),
        help_text=_lazy("How the models vote on the direction of each number."),
    )
    scale = forms.FloatField(
        label=_lazy("Scale"),
        help_text=_lazy("The merged change is multiplied by it; below 1 stays nearer to the base."),
    )
    seed = forms.IntegerField(
        label=_lazy("Seed"),
        min_value=0,
        max_value=LARGEST,
        help_text=_lazy("The same seed drops the same numbers."),
    )
    layers = forms.CharField(
        label=_lazy("Layers"),
        max_length=500,
        help_text=_lazy(
            "From below: 1:0-16, 2:8-24 is the first model’s layers 0 to 15, then the second’s 8 "
            "to 23."
        ),
    )
    mergekit_method = forms.ChoiceField(
        label=_lazy("Its method"), choices=[(name, name) for name in MERGEKIT_METHODS]
    )
    dtype = forms.ChoiceField(
        label=_lazy("Number format"),
        choices=list(DTYPES.items()),
        help_text=_lazy("Everything is computed in float32; this is how it is saved."),
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.project = project
        names = mergeable_models(project)
        choices = [("", "–"), *((name, name) for name in names)]
        self.fields["base"].choices = choices
        for place in range(1, MOST_MODELS + 1):
            self.fields[f"model_{place}"] = forms.ChoiceField(
                label=_("Model %(place)s") % {"place": place}, choices=choices, required=False
            )
            self.fields[f"weight_{place}"] = forms.FloatField(
                label=_("Weight %(place)s") % {"place": place},
                required=False,
            )
            self.initial.setdefault(f"weight_{place}", 1)
        for field, value in DEFAULTS.items():
            self.initial.setdefault(field, value)
        for field in self.fields:
            if field in DEFAULTS and field not in (*SETTINGS.get(self.chosen, ()), "dtype"):
                self.fields[field].required = False
        self.fields["method"].choices = [(name, _(words)) for name, words in MERGES.items()]
        self.fields["sign"].choices = [(name, _(words)) for name, words in SIGNS.items()]
        self.fields["dtype"].choices = [(name, _(words)) for name, words in DTYPES.items()]

    @property
    def chosen(self) -> str:
        """The method as it stands in the form."""
        given = self.data.get("method") if self.is_bound else self.initial.get("method")
        return given if given in MERGES else "fold"

    @property
    def methods(self) -> list[tuple[str, str, str, bool]]:
        """(value, name, what there is to say about it, whether it is chosen) of each method."""
        return [
            (m, _(MERGES[m]), f"{_(ABOUT[m])} {why_no_worker(m)}".strip(), m == self.chosen)
            for m in MERGES
        ]

    @property
    def settings(self) -> Iterator[forms.BoundField]:
        """The fields that the chosen method reads, beside the models."""
        if self.chosen in NEEDS_BASE or self.chosen == "mergekit":
            yield self["base"]
        for name in SETTINGS[self.chosen]:
            if name != "weights":
                yield self[name]
        if self.chosen != "cat":
            yield self["dtype"]

    @property
    def places(self) -> list[dict[str, Any]]:
        """The models with their weights, as many as the method takes."""
        most = {"fold": 1, "slerp": 2}.get(self.chosen, MOST_MODELS)
        weighted = "weights" in SETTINGS[self.chosen]
        return [
            {
                "number": place,
                "model": self[f"model_{place}"],
                "weight": self[f"weight_{place}"] if weighted else None,
                "folded": place > SHOWN_AT_FIRST and not self[f"model_{place}"].value(),
            }
            for place in range(1, most + 1)
        ]

    def clean(self) -> dict[str, Any]:
        """`merge`: what create_merge takes. Whatever does not fit is told at its field."""
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        method = cleaned["method"]
        chosen = [place for place in self.places if cleaned.get(f"model_{place['number']}")]
        models = [cleaned[f"model_{place['number']}"] for place in chosen]
        weights: list[float] = []
        if "weights" in SETTINGS[method]:
            given = [cleaned.get(f"weight_{place['number']}") for place in chosen]
            weights = [1.0 if weight is None else weight for weight in given]
        asks_base = method in NEEDS_BASE or method == "mergekit"
        settings = {
            name: cleaned[name] for name in (*SETTINGS[method], "dtype") if name != "weights"
        }
        if method == "cat":
            del settings["dtype"]
        merge = {
            "method": method,
            "models": models,
            "base": cleaned["base"] if asks_base else "",
            "weights": weights,
            "settings": settings,
        }
        if self.project.models.filter(name=cleaned["name"]).exists():
            self.add_error("name", _("There is a model of this name already."))
            return cleaned
        if not models:
            self.add_error("model_1", _("Choose a model."))
            return cleaned
        if reason := why_no_worker(method):
            self.add_error("method", reason)
            return cleaned
        try:
            make_merge_recipe(self.project, **merge)
        except (ValueError, OSError) as error:
            self._refuse(str(error))
            return cleaned
        return cleaned | {"merge": merge}

    def _refuse(self, text: str) -> None:
        field, colon, rest = text.partition(": ")
        place = {"models": "model_1", "weights": "weight_1"}.get(field, field)
        rest = rest[:1].upper() + rest[1:] + "."
        self.add_error(place if colon and place in self.fields else None, rest if colon else text)


DEFAULTS = {
    "t": 0.5,
    "density": 0.5,
    "sign": "total",
    "scale": 1.0,
    "seed": 0,
    "layers": "",
    "mergekit_method": "model_stock",
    "dtype": "base",
}


class DescribeForm(forms.Form):
    tags = forms.CharField(
        label=_lazy("Tags"),
        required=False,
        max_length=900,
        help_text=_lazy("Words with commas between."),
    )
    notes = forms.CharField(
        label=_lazy("Notes"),
        required=False,
        max_length=10_000,
        widget=forms.Textarea(attrs={"rows": 3}),
    )

    def clean_tags(self) -> list[str]:
        try:
            return clean_tags(self.cleaned_data["tags"])
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None


class PlaygroundForm(forms.Form):
    """A prompt and two models."""

    text = forms.CharField(
        label=_lazy("Prompt"),
        max_length=LONGEST_PROMPT,
        widget=forms.Textarea(attrs={"rows": 4}),
    )
    model_a = forms.ChoiceField(label=_lazy("Model A"))
    model_b = forms.ChoiceField(label=_lazy("Model B"))
    temperature = forms.FloatField(
        label=_lazy("Temperature"),
        min_value=0,
        max_value=5,
        initial=0.7,
        help_text=_lazy("0 takes the likeliest word each time."),
    )
    seed = forms.IntegerField(
        label=_lazy("Seed"),
        min_value=0,
        max_value=LARGEST,
        initial=0,
        help_text=_lazy("Both models draw with it; the same seed gives the same answer."),
    )
    max_new_tokens = forms.IntegerField(
        label=_lazy("Tokens, at most"), min_value=1, max_value=4096, initial=128
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = writers(project)
        for place, field in enumerate(("model_a", "model_b")):
            self.fields[field].choices = [(name, name) for name in names]
            if len(names) > 1:
                self.initial.setdefault(field, names[place])

    @property
    def limits(self) -> list[forms.BoundField]:
        return [self["temperature"], self["seed"], self["max_new_tokens"]]
