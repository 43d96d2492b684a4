"""What a person may send us: the launch form of a run."""

import math
from dataclasses import MISSING, fields
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.forms import check_model_name
from labeling.models import Project
from training.dataset_settings import LABELS, settings_of_now
from training.datasets import plan, refuse_too_few
from training.ml.config import DTYPES, METHODS, RECIPES, SCHEDULERS, make_recipe
from training.runs import check_base, known_models, named_model

MAIN = ("method", "beta", "learning_rate", "epochs", "batch_size", "max_length", "seed")
"""Settings that stand in the open; the others are folded away."""
CHOICES = {"method": METHODS, "dtype": DTYPES, "scheduler": SCHEDULERS}
LARGEST = 2**31 - 1
"""What an integer column of the database holds at most."""
NAMES = {
    "lora_rank": _lazy("LoRA rank"),
    "lora_alpha": _lazy("LoRA alpha"),
    "lora_dropout": _lazy("LoRA dropout"),
    "dtype": _lazy("Number format"),
    "max_grad_norm": _lazy("Longest gradient"),
    "eval_every": _lazy("Measure every … steps"),
    "checkpoint_every": _lazy("Checkpoint every … steps"),
    "method": _lazy("Method"),
    "target_modules": _lazy("Target modules"),
    "train_norms": _lazy("Train norms"),
    "learning_rate": _lazy("Learning rate"),
    "scheduler": _lazy("Scheduler"),
    "warmup_share": _lazy("Warmup share"),
    "weight_decay": _lazy("Weight decay"),
    "epochs": _lazy("Epochs"),
    "max_steps": _lazy("Max steps"),
    "batch_size": _lazy("Batch size"),
    "gradient_accumulation": _lazy("Gradient accumulation"),
    "max_length": _lazy("Max length"),
    "gradient_checkpointing": _lazy("Gradient checkpointing"),
    "center_rewards": _lazy("Center rewards"),
    "seed": _lazy("Seed"),
    "beta": _lazy("Beta"),
}


class LaunchForm(forms.Form):
    """Labels, base model and every setting of one recipe, looked at before a worker is woken."""

    labels = forms.ChoiceField(
        choices=list(LABELS.items()),
        initial="mixed",
        help_text=_lazy(
            "A comparison becomes a pair where one response has the most votes. AI judges "
            "count only where no person answered."
        ),
    )
    test_share = forms.FloatField(
        min_value=0.01,
        max_value=0.9,
        initial=0.1,
        widget=forms.NumberInput(attrs={"step": "any"}),
        help_text=_lazy("Share of the prompts kept for measuring. No prompt is on both sides."),
    )
    base_model = forms.CharField(
        max_length=500,
        widget=forms.TextInput(attrs={"list": "known-models", "autocomplete": "off"}),
        help_text=_lazy("A model of this project, a folder on the worker, or a hub id."),
    )

    def __init__(self, *args: Any, project: Project, kind: str, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.project, self.kind, self.user = project, kind, user
        self.known_models = known_models(project, kind)
        if self.known_models:
            self.fields["base_model"].initial = self.known_models[0]
        for setting in fields(RECIPES[kind]):
            if setting.default is not MISSING:
                self.fields[setting.name] = _field(setting)

    def clean_base_model(self) -> str:
        check_model_name(self.cleaned_data["base_model"], self.user)
        return str(self.cleaned_data["base_model"])

    def main_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in MAIN if name in self.fields]

    def more_fields(self) -> list[forms.BoundField]:
        main = {*MAIN, "labels", "test_share", "base_model"}
        return [field for field in self if field.name not in main]

    @property
    def more_has_errors(self) -> bool:
        return any(field.errors for field in self.more_fields())

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        settings = {
            f.name: cleaned[f.name] for f in fields(RECIPES[self.kind]) if f.name in cleaned
        }
        folder = named_model(self.project, cleaned["base_model"])
        try:
            recipe = make_recipe(self.kind, settings | {"base_model": folder})
            check_base(folder, recipe)
        except ValueError as error:
            self._refuse(str(error))
        cleaned["recipe_settings"] = {
            name: value for name, value in settings.items() if name != "base_model"
        }
        try:
            refuse_too_few(self.preview()["counts"], cleaned["labels"])
        except ValueError as error:
            self.add_error("labels", str(error)[:1].upper() + str(error)[1:] + ".")
        return cleaned

    def preview(self) -> dict[str, Any]:
        """Counts of the dataset that these settings would give, and what is wrong with it.

        Settings that are missing or make no sense are taken at their defaults.
        """
        labels = self["labels"].value() if self["labels"].value() in LABELS else "mixed"
        share = _number(self["test_share"].value(), 0.1)
        seed = int(_number(self["seed"].value(), 0))
        share = share if 0 < share < 1 else 0.1
        made = plan(self.project, settings_of_now(labels, share, min(max(seed, 0), LARGEST)))
        try:
            refuse_too_few(made.counts, labels)
            problem = ""
        except ValueError as error:
            problem = str(error)[:1].upper() + str(error)[1:] + "."
        return {"counts": made.counts, "raters": made.raters, "problem": problem}

    def _refuse(self, text: str) -> None:
        """Put an error to the field whose name it begins with."""
        name = text.replace(":", " ").split(" ", 1)[0]
        if name in self.fields:
            text = text.removeprefix(name).lstrip(": ")
            self.add_error(name, text[:1].upper() + text[1:] + ".")
        else:
            self.add_error(None, text[:1].upper() + text[1:] + ".")


def _field(setting: Any) -> forms.Field:
    common = {
        "initial": setting.default,
        "help_text": _(setting.metadata["help"]),
        "label": NAMES[setting.name],
    }
    if setting.name in CHOICES:
        return forms.ChoiceField(
            choices=[(value, _(words)) for value, words in CHOICES[setting.name].items()], **common
        )
    if setting.type is bool:
        return forms.BooleanField(required=False, **common)
    if setting.type is int:
        return forms.IntegerField(min_value=0, max_value=LARGEST, **common)
    if setting.type is float:
        return forms.FloatField(
            min_value=0, widget=forms.NumberInput(attrs={"step": "any"}), **common
        )
    return forms.CharField(max_length=500, **common)


def _number(value: Any, otherwise: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if math.isfinite(number) else otherwise
