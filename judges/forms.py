"""What a person may send us about judges."""

import random
import re
from typing import Any

from django import forms
from django.db.models import Max, Min
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from judges.ml.config import PREAMBLE, Exemplar, JudgeRecipe, recipe_from
from judges.models import JudgeServer, JudgeVersion
from labeling.forms import check_model_name
from labeling.models import Choice, Comparison, Project

# Settings of the recipe that the form has a field for; the rest stays as it was.
RECIPE_FIELDS = (
    "mode",
    "preamble",
    "rationale_request",
    "ending",
    "max_rationale_tokens",
    "min_answer_mass",
    "max_context",
    "chat",
    "dtype",
    "load_in_4bit",
)


class JudgeForm(forms.Form):
    """Make a judge, or with `version` change one: the change becomes a version of its own."""

    name = forms.CharField(
        max_length=100, help_text=_lazy("How the judge is called on every page.")
    )
    server = forms.ModelChoiceField(
        JudgeServer.objects.all(),
        required=False,
        label=_lazy("Where the model runs"),
        empty_label=_lazy("In a worker of ours"),
        help_text=_lazy("Servers are allowed by administrators. They are sent what is judged."),
    )
    model = forms.CharField(
        max_length=500,
        widget=forms.TextInput(attrs={"list": "stored-models", "spellcheck": "false"}),
        help_text=_lazy(
            "A name in the storage's models folder, a folder on the worker's machine, or a hub id "
            "such as <code>Qwen/Qwen2.5-0.5B-Instruct</code>. Weights are read as safetensors "
            "only. On a server: the name by which it knows the model."
        ),
    )
    mode = forms.ChoiceField(
        label=_lazy("How it judges"),
        choices=[
            ("rationale", _lazy("Explain first, then answer")),
            ("direct", _lazy("Answer at once (faster)")),
        ],
    )
    preamble = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 7}),
        strip=False,
        help_text=_lazy("Stands before every question: what makes a response better."),
    )
    exemplars = forms.CharField(
        required=False,
        label=_lazy("Exemplars"),
        help_text=_lazy(
            "Numbers of comparisons with a reference answer, to be shown before the question "
            "with that answer: <code>12, 40</code>. Few judges need any."
        ),
    )
    keep_exemplars = forms.BooleanField(required=False, label=_lazy("Keep the exemplars it has"))
    rationale_request = forms.CharField(label=_lazy("Request for the rationale"), max_length=500)
    max_rationale_tokens = forms.IntegerField(
        label=_lazy("Longest rationale, in tokens"), min_value=1, max_value=4096
    )
    ending = forms.CharField(
        max_length=100,
        help_text=_lazy('The next token after it is the answer, "1" or "2".'),
    )
    min_answer_mass = forms.FloatField(
        label=_lazy("Least answer mass"),
        min_value=0,
        max_value=1,
        widget=forms.NumberInput(attrs={"step": "0.05"}),
        help_text=_lazy("With less probability on the two answers together a verdict is unparsed."),
    )
    max_context = forms.IntegerField(
        label=_lazy("Context, in tokens"),
        min_value=0,
        help_text=_lazy(
            "0 is all that the model can read. A prompt that is too long loses its oldest "
            "turns; responses are never cut."
        ),
    )
    chat = forms.ChoiceField(
        label=_lazy("Chat template"),
        choices=[("auto", _lazy("Use the model's, if it has one")), ("never", _lazy("Plain text"))],
    )
    dtype = forms.ChoiceField(
        label=_lazy("Weights"),
        choices=[
            ("auto", _lazy("Chosen by the machine")),
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
            ("float16", "float16"),
        ],
    )
    load_in_4bit = forms.BooleanField(
        required=False,
        label=_lazy("Load in 4 bits"),
        help_text=_lazy("NF4: about a quarter of the memory."),
    )

    def __init__(
        self,
        *args: Any,
        project: Project,
        user: Any,
        version: JudgeVersion | None = None,
        **kwargs: Any,
    ) -> None:
        self.project, self.user = project, user
        self.base = recipe_from(version.recipe) if version else _first_recipe(project)
        initial = {name: getattr(self.base, name) for name in RECIPE_FIELDS}
        initial |= {"keep_exemplars": True}
        if version is not None:
            initial |= {"model": version.model, "server": version.server_id}
        super().__init__(*args, initial=initial, label_suffix="", **kwargs)
        if version is not None:
            del self.fields["name"]
        if not JudgeServer.objects.exists():
            del self.fields["server"]
        if self.base.exemplars:
            n = len(self.base.exemplars)
            self.fields["keep_exemplars"].label = ngettext(
                "Keep the %(n)s exemplar it has", "Keep the %(n)s exemplars it has", n
            ) % {"n": n}
        else:
            del self.fields["keep_exemplars"]

    def main_fields(self) -> list[forms.BoundField]:
        """What everybody should look at; `more_fields` are the others."""
        names = ("name", "server", "model", "mode", "preamble")
        return [self[name] for name in names if name in self.fields]

    def more_fields(self) -> list[forms.BoundField]:
        main = {field.name for field in self.main_fields()}
        return [self[name] for name in self.fields if name not in main]

    def clean_name(self) -> str:
        name = self.cleaned_data["name"]
        if self.project.judges.filter(name=name).exists():
            raise forms.ValidationError(_("The project has a judge of this name."))
        return name

    def clean_model(self) -> str:
        if not self.cleaned_data.get("server"):  # a server's names are its own
            check_model_name(self.cleaned_data["model"], self.user)
        return self.cleaned_data["model"]

    def clean_preamble(self) -> str:
        return self.cleaned_data["preamble"].replace("\r\n", "\n")

    def clean_exemplars(self) -> tuple[Exemplar, ...]:
        """The named comparisons as exemplars; every other one shows its better response second."""
        numbers = [int(number) for number in re.findall(r"\d+", self.cleaned_data["exemplars"])]
        if re.sub(r"[\d,;\s]", "", self.cleaned_data["exemplars"]):
            raise forms.ValidationError(_("Write numbers with commas between them."))
        known = (
            Comparison.objects.filter(
                project=self.project, pk__in=numbers, gold__in=[Choice.A, Choice.B]
            )
            .select_related("prompt", "response_a", "response_b")
            .in_bulk()
        )
        missing = [str(number) for number in numbers if number not in known]
        if missing:
            raise forms.ValidationError(
                _("No comparison of this project with a reference answer: %(numbers)s.")
                % {"numbers": ", ".join(missing)}
            )
        exemplars = []
        for place, number in enumerate(dict.fromkeys(numbers)):
            row = known[number]
            better, worse = row.response_a, row.response_b
            if row.gold == Choice.B:
                better, worse = worse, better
            first, second = (worse, better) if place % 2 else (better, worse)
            exemplars.append(
                Exemplar(
                    prompt=row.prompt.messages,
                    first=first.messages,
                    second=second.messages,
                    answer="2" if place % 2 else "1",
                )
            )
        return tuple(exemplars)

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        if not self.errors:
            exemplars = values["exemplars"]
            if values.get("keep_exemplars"):
                exemplars = self.base.exemplars + exemplars
            settings = {name: values[name] for name in RECIPE_FIELDS}
            try:
                self.recipe = recipe_from(
                    {"fence": self.base.fence, **settings, "exemplars": exemplars}
                )
            except ValueError as error:
                raise forms.ValidationError(str(error)) from error
        return values


class LaunchForm(forms.Form):
    version = forms.ModelChoiceField(JudgeVersion.objects.none())
    limit = forms.IntegerField(required=False, min_value=1)

    def __init__(self, *args: Any, versions: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["version"].queryset = versions


class TrialForm(forms.Form):
    """Which comparison to try a judge on; empty draws one at random."""

    version = forms.ModelChoiceField(JudgeVersion.objects.none())
    comparison = forms.IntegerField(required=False, min_value=1)

    def __init__(self, *args: Any, project: Project, versions: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        self.fields["version"].queryset = versions

    def clean_comparison(self) -> Comparison:
        number = self.cleaned_data["comparison"]
        comparisons = self.project.comparisons.all()
        if number is not None:
            comparison = comparisons.filter(pk=number).first()
            if comparison is None:
                raise forms.ValidationError(
                    _("The project has no comparison number %(number)s.") % {"number": number}
                )
            return comparison
        ends = comparisons.aggregate(first=Min("pk"), last=Max("pk"))
        if ends["first"] is None:
            raise forms.ValidationError(_("The project has no comparisons yet."))
        # Any will do, and sorting a million rows at random to draw one would take its time.
        place = random.randint(ends["first"], ends["last"])  # noqa: S311
        return comparisons.filter(pk__gte=place).order_by("pk").first()


def _first_recipe(project: Project) -> JudgeRecipe:
    """A new judge is asked by the project's own guidelines, if there are any."""
    if not project.guidelines.strip():
        return JudgeRecipe()
    guidelines = project.guidelines.replace("\r\n", "\n").strip()
    _good, sections = PREAMBLE.split(". ", 1)
    return JudgeRecipe(preamble=f"{guidelines}\n\n{sections}")
