"""What a person may send us about rounds and arenas."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Project
from training.arenas import MOST_MODELS, ArenaSettings
from training.models import Round
from training.playground import writers
from training.rounds import LEAST_SHARE, MOST_SHARE, WAYS, RoundSettings, scorers

LARGEST = 2**31 - 1


class RoundForm(forms.Form):
    """Every setting of a round; its defaults are the project's next round."""

    purpose = forms.ChoiceField(
        label=_lazy("Purpose"),
        choices=Round.Purpose.choices,
        help_text=_lazy("Decides which pairs are worth a label."),
    )
    models = forms.MultipleChoiceField(
        label=_lazy("Who answers"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_lazy("The first one is what a new policy is held against later."),
    )
    scorer = forms.ChoiceField(
        label=_lazy("Reward model"),
        required=False,
        help_text=_lazy("Reads the candidates, to see what a label of each would tell."),
    )
    n_labels = forms.IntegerField(label=_lazy("Pairs"), min_value=1, max_value=100_000)
    people = forms.IntegerField(
        label=_lazy("People for each pair"),
        min_value=0,
        max_value=100,
        help_text=_lazy("0: as many as the project’s settings want. Chosen pairs are hard ones."),
    )
    n_prompts = forms.IntegerField(
        label=_lazy("Prompts"),
        min_value=1,
        max_value=1_000_000,
        help_text=_lazy("At most; drawn from those on the training side."),
    )
    responses = forms.IntegerField(
        label=_lazy("Responses"),
        min_value=1,
        max_value=64,
        help_text=_lazy("Of each model to each prompt."),
    )
    way = forms.ChoiceField(
        label=_lazy("Chosen are"),
        required=False,
        choices=[("", _lazy("As suits the purpose")), *WAYS.items()],
    )
    random_share = forms.FloatField(
        label=_lazy("Random share"),
        min_value=LEAST_SHARE,
        max_value=MOST_SHARE,
        help_text=_lazy("Of the pairs, drawn uniformly from all candidates: 0.1 at least."),
    )
    temperature = forms.FloatField(label=_lazy("Temperature"), min_value=0, max_value=10)
    max_new_tokens = forms.IntegerField(
        label=_lazy("Most new tokens"), min_value=1, max_value=100_000
    )
    alike = forms.FloatField(
        label=_lazy("Alike from"),
        min_value=0.1,
        max_value=1,
        help_text=_lazy("Responses to a prompt that share this much of their words count as one."),
    )
    seed = forms.IntegerField(label=_lazy("Seed"), min_value=0, max_value=LARGEST)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["models"].choices = [(name, name) for name in writers(project)]
        self.fields["scorer"].choices = [
            ("", _lazy("None yet: by what is alike")),
            *((name, name) for name in scorers(project)),
        ]

    def numbers(self) -> list[Any]:
        """Every field but the boxes of the models."""
        return [self[name] for name in self.fields if name != "models"]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        if not self.errors:
            # The one that stood first stays first: a browser sends boxes in the page's order.
            first = [n for n in self.initial.get("models", ()) if n in values["models"]]
            rest = [n for n in values["models"] if n not in first]
            try:
                values["settings"] = RoundSettings(
                    **{**values, "models": (*first, *rest)},
                )
            except ValueError as error:
                raise forms.ValidationError(str(error)) from None
        return values


class ArenaForm(forms.Form):
    """Which models meet, and how often."""

    models = forms.MultipleChoiceField(label=_lazy("Models"), widget=forms.CheckboxSelectMultiple)
    n_pairs = forms.IntegerField(
        label=_lazy("Comparisons of each two"),
        min_value=1,
        max_value=10_000,
        initial=100,
        help_text=_lazy("Those that earlier arenas made count."),
    )
    temperature = forms.FloatField(
        label=_lazy("Temperature"), min_value=0, max_value=10, initial=0.8
    )
    max_new_tokens = forms.IntegerField(
        label=_lazy("Most new tokens"), min_value=1, max_value=100_000, initial=128
    )
    seed = forms.IntegerField(label=_lazy("Seed"), min_value=0, max_value=LARGEST, initial=0)

    limits = ("n_pairs", "temperature", "max_new_tokens", "seed")

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        self.fields["models"].choices = [(name, name) for name in writers(project)]
        self.fields["models"].help_text = _lazy("Two to %(n)s.") % {"n": MOST_MODELS}

    def limit_fields(self) -> list[Any]:
        return [self[name] for name in self.limits]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        if not self.errors:
            try:
                values["settings"] = ArenaSettings(**{**values, "models": tuple(values["models"])})
            except ValueError as error:
                raise forms.ValidationError(str(error)) from None
        return values
