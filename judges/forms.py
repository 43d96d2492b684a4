"""What a person may send us about judges."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from django import forms
from django.db.models import Max, Min
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from judges.claims import servers_of
from judges.laboratory import MOST as MOST_LABELED
from judges.laboratory import USUAL
from judges.making import NotPossible, checked_place, exemplars_of_gold, possible_members
from judges.ml.config import (
    BASE,
    DETAILED,
    PAIR_FRAME,
    PAIR_MODES,
    SCORE_FRAME,
    Aspect,
    Exemplar,
    JudgeRecipe,
    recipe_from,
)
from judges.models import (
    Calibration,
    Experiment,
    JudgeServer,
    JudgeVersion,
    PromptVersion,
    RoutingPolicy,
)
from judges.prompts import with_words
from judges.selection import OFFERED, Which, selection_of
from labeling.forms.lines import LinesField
from labeling.models import Comparison, Project

MOST = 2**31 - 1

# Settings of the recipe that the form has a field of the same name for; the rest stays as it was.
RECIPE_FIELDS = (
    "mode",
    "preamble",
    "principles",
    "principles_shown",
    "show_reference",
    "rationale_request",
    "ending",
    "ties",
    "tie_answer",
    "tie_request",
    "score_preamble",
    "score_request",
    "score_ending",
    "n_samples",
    "temperature",
    "max_rationale_tokens",
    "min_answer_mass",
    "max_context",
    "chat",
    "dtype",
    "load_in_4bit",
)


MODE_CHOICES = [
    ("rationale", _lazy("Explain first, then answer")),
    ("direct", _lazy("Answer at once (faster)")),
    ("sampled", _lazy("Explain several times, and take the mean (slower)")),
    ("score", _lazy("Rate each response alone from 1 to 10")),
    ("reward", _lazy("Reward model: a number for each response")),
    ("jury", _lazy("Jury: the mean of several judges")),
]
GRID_MODES = MODE_CHOICES[:4]
"""What the same language model can be asked in."""


class JudgeForm(forms.Form):
    """Make a judge, or with `version` change one: the change becomes a version of its own."""

    # Legend, one sentence, the fields below it, and those that few people need.
    FIELDSETS = (
        (
            _lazy("How it judges"),
            _lazy("Every verdict is a probability that A is better, from both orders."),
            ("name", "mode", "ties", "n_samples", "temperature", "members"),
            ("max_rationale_tokens", "min_answer_mass"),
        ),
        (
            _lazy("The model"),
            _lazy("Where the answers come from."),
            ("server", "model"),
            ("chat", "dtype", "load_in_4bit", "max_context"),
        ),
        (
            _lazy("The question"),
            _lazy(
                "What the judge reads around the two responses. Words are kept as versions of a "
                "prompt, which other judges may share."
            ),
            (
                "prompt_name",
                "preamble_kind",
                "preamble",
                "score_preamble",
                "principles",
                "principles_shown",
                "ask_aspects",
                "show_reference",
                "exemplars",
                "keep_exemplars",
            ),
            (
                "rationale_request",
                "ending",
                "tie_request",
                "tie_answer",
                "score_request",
                "score_ending",
            ),
        ),
    )

    name = forms.CharField(
        max_length=100, help_text=_lazy("How the judge is called on every page.")
    )
    mode = forms.ChoiceField(
        label=_lazy("Verdict"),
        choices=MODE_CHOICES,
    )
    ties = forms.BooleanField(required=False, label=_lazy("It may say that neither is better"))
    n_samples = forms.IntegerField(
        required=False, label=_lazy("Rationales in either order"), min_value=2, max_value=64
    )
    temperature = forms.FloatField(
        required=False,
        label=_lazy("Temperature at which they are drawn"),
        min_value=0.01,
        max_value=5,
        widget=forms.NumberInput(attrs={"step": "0.05"}),
    )
    members = forms.ModelMultipleChoiceField(
        JudgeVersion.objects.none(),
        required=False,
        label=_lazy("Members"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_lazy("Their verdicts are used where they have some; else they are asked."),
    )
    max_rationale_tokens = forms.IntegerField(
        label=_lazy("Longest rationale, in tokens"), min_value=1, max_value=4096
    )
    min_answer_mass = forms.FloatField(
        label=_lazy("Least answer mass"),
        min_value=0,
        max_value=1,
        widget=forms.NumberInput(attrs={"step": "0.05"}),
        help_text=_lazy("With less probability on its answers together a verdict is unparsed."),
    )
    server = forms.ModelChoiceField(
        JudgeServer.objects.all(),
        required=False,
        label=_lazy("Where it runs"),
        empty_label=_lazy("In a worker of ours"),
        help_text=_lazy(
            "A server is sent what is judged, and knows models by names of its own. Administrators "
            "say which servers there are."
        ),
    )
    model = forms.CharField(
        label=_lazy("Model"),
        max_length=500,
        required=False,
        widget=forms.TextInput(attrs={"list": "stored-models", "spellcheck": "false"}),
        help_text=_lazy(
            "A model that was trained here, a name in the storage's models folder, a folder of "
            "this machine, or a hub id such as <code>Qwen/Qwen2.5-0.5B-Instruct</code>. Weights "
            "are read as safetensors only."
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
    max_context = forms.IntegerField(
        label=_lazy("Context, in tokens"),
        min_value=0,
        help_text=_lazy(
            "0 is all that the model can read. A prompt that is too long loses its oldest "
            "turns; responses are never cut."
        ),
    )
    prompt_name = forms.CharField(
        required=False,
        max_length=100,
        label=_lazy("Name of the prompt"),
        help_text=_lazy(
            "Changed words become its next version; another name, a prompt of its own."
        ),
    )
    preamble_kind = forms.ChoiceField(
        required=False,
        label=_lazy("What a good response is"),
        choices=[
            ("base", _lazy("In a sentence: helpful, honest and harmless")),
            ("detailed", _lazy("In detail, as annotators are told")),
            ("guidelines", _lazy("The project's guidelines")),
            ("own", _lazy("Words of its own")),
        ],
    )
    preamble = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 7}),
        strip=False,
        label=_lazy("Preamble"),
        help_text=_lazy("Stands before every question: what makes a response better."),
    )
    score_preamble = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 7}),
        strip=False,
        label=_lazy("Preamble of a score"),
        help_text=_lazy("Stands before every question about one response alone."),
    )
    principles = LinesField(
        most=100,
        longest=1000,
        label=_lazy("Principles"),
        help_text=_lazy("A constitution, a line each. Few judges need one."),
    )
    principles_shown = forms.ChoiceField(
        required=False,
        label=_lazy("Of the principles"),
        choices=[
            ("all", _lazy("All of them stand before every question")),
            ("one", _lazy("One stands after each comparison, drawn by its content")),
        ],
    )
    ask_aspects = forms.BooleanField(
        required=False, label=_lazy("Ask the project's aspect questions too")
    )
    show_reference = forms.BooleanField(
        required=False,
        label=_lazy("Show the reference answer"),
        help_text=_lazy("Where a comparison's metadata has a <code>reference</code>."),
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
    ending = forms.CharField(
        label=_lazy("Ending"),
        max_length=100,
        help_text=_lazy('The next token after it is the answer, "1" or "2".'),
    )
    tie_request = forms.CharField(required=False, label=_lazy("How a tie is said"), max_length=500)
    tie_answer = forms.CharField(required=False, label=_lazy("Answer for a tie"), max_length=20)
    score_request = forms.CharField(
        required=False, label=_lazy("Request for a score"), max_length=500
    )
    score_ending = forms.CharField(
        required=False, label=_lazy("Ending before a score"), max_length=100
    )

    def __init__(
        self,
        *args: Any,
        project: Project,
        user: Any,
        version: JudgeVersion | None = None,
        prompt: PromptVersion | None = None,
        **kwargs: Any,
    ) -> None:
        """`prompt`: whose words the form begins with; without one, those of `version`."""
        self.project, self.user = project, user
        self.base = recipe_from(version.recipe) if version else _first_recipe(project)
        if prompt is None and version is not None:
            prompt = version.prompt
        elif prompt is not None:
            self.base = recipe_from(with_words(version.recipe if version else {}, prompt.words))
        initial = {name: getattr(self.base, name) for name in RECIPE_FIELDS}
        initial |= {
            "principles": list(self.base.principles),
            "keep_exemplars": True,
            "ask_aspects": bool(self.base.aspects),
            "members": self.base.members,
            "model": version.model if version else "",
            "server": version.server_id if version else None,
            "prompt_name": prompt.name if prompt else "",
            "preamble_kind": _kind_of(self.base, project),
        }
        super().__init__(*args, initial=initial, label_suffix="", **kwargs)
        if version is not None:
            del self.fields["name"]
        self.fields["members"].queryset = possible_members(project)
        if not project.guidelines.strip():
            kinds = self.fields["preamble_kind"].choices
            self.fields["preamble_kind"].choices = [k for k in kinds if k[0] != "guidelines"]
        if not JudgeServer.objects.exists():
            del self.fields["server"]
        if not project.aspects:
            del self.fields["ask_aspects"]
        if self.base.exemplars:
            n = len(self.base.exemplars)
            self.fields["keep_exemplars"].label = ngettext(
                "Keep the %(n)s exemplar it has", "Keep the %(n)s exemplars it has", n
            ) % {"n": n}
        else:
            del self.fields["keep_exemplars"]

    def fieldsets(
        self,
    ) -> Iterator[tuple[str, str, list[forms.BoundField], list[forms.BoundField]]]:
        """(legend, sentence, fields, fields that few people need) for the page."""
        for legend, sentence, names, more in self.FIELDSETS:
            yield (
                legend,
                sentence,
                [self[name] for name in names if name in self.fields],
                [self[name] for name in more if name in self.fields],
            )

    def clean_name(self) -> str:
        name = self.cleaned_data["name"]
        if self.project.judges.filter(name=name).exists():
            raise forms.ValidationError(_("The project has a judge of this name."))
        return name

    def clean_preamble(self) -> str:
        return self.cleaned_data["preamble"].replace("\r\n", "\n")

    def clean_score_preamble(self) -> str:
        return self.cleaned_data["score_preamble"].replace("\r\n", "\n")

    def clean_exemplars(self) -> tuple[Exemplar, ...]:
        """The named comparisons as exemplars."""
        numbers = [int(number) for number in re.findall(r"\d+", self.cleaned_data["exemplars"])]
        if re.sub(r"[\d,;\s]", "", self.cleaned_data["exemplars"]):
            raise forms.ValidationError(_("Write numbers with commas between them."))
        mode = self.cleaned_data.get("mode", self.base.mode)
        try:
            return exemplars_of_gold(
                self.project, numbers, mode=mode, ties=self.cleaned_data["ties"]
            )
        except NotPossible as error:
            raise forms.ValidationError(str(error)) from error

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        mode = values.get("mode")
        if mode and "model" in values:
            try:
                values["model"], values["server"] = checked_place(
                    self.project, self.user, mode, values["model"], values.get("server")
                )
            except NotPossible as error:
                self.add_error(error.field, str(error))
        if self.errors:
            return values
        # A field that was not sent stays as it was; a box that is not ticked is not sent.
        boxes = [
            name for name in RECIPE_FIELDS if isinstance(self.fields[name], forms.BooleanField)
        ]
        sent = [name for name in RECIPE_FIELDS if name in self.data or name in boxes]
        changes = {name: values[name] for name in sent if values[name] is not None}
        if "principles" in changes:
            changes["principles"] = tuple(changes["principles"])
        kind = values["preamble_kind"] or "own"
        if kind != "own":
            changes |= _preambles(kind, self.project)
        if mode not in PAIR_MODES:
            changes["ties"] = False
        kept = self.base.exemplars if values.get("keep_exemplars") else ()
        aspects = self.project.aspects if values.get("ask_aspects") else []
        changes |= {
            "exemplars": kept + values["exemplars"],
            "aspects": tuple(Aspect(name=a["name"], question=a["question"]) for a in aspects),
            "members": tuple(member.pk for member in values["members"]) if mode == "jury" else (),
        }
        try:
            self.recipe = replace(self.base, **changes)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error
        return values


class LaunchForm(forms.Form):
    """What a run is to judge; the names of the cleaned values are those of runs.new_run."""

    version = forms.ModelChoiceField(JudgeVersion.objects.none(), widget=forms.HiddenInput)
    which = forms.ChoiceField(label=_lazy("Which comparisons"), choices=OFFERED, required=False)
    limit = forms.IntegerField(label=_lazy("At most"), required=False, min_value=1, max_value=MOST)
    most_tokens = forms.IntegerField(
        label=_lazy("Pause before more tokens than"), required=False, min_value=1, max_value=MOST
    )
    most_cost = forms.FloatField(
        label=_lazy("Pause before a cost of more than"), required=False, min_value=0
    )
    workers = forms.IntegerField(
        label=_lazy("Workers that share it"), required=False, min_value=1, max_value=100
    )

    def __init__(
        self, *args: Any, versions: Any, newest: JudgeVersion | None = None, **kwargs: Any
    ) -> None:
        initial = {"version": newest, "which": Which.ALL, "workers": 1}
        super().__init__(*args, initial=initial, label_suffix="", **kwargs)
        self.fields["version"].queryset = versions
        if newest is not None and not servers_of(newest):
            del self.fields["most_cost"]  # a model in our own worker has no price

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        values["selection"] = selection_of(values.pop("which", "") or Which.ALL)
        values["workers"] = values.get("workers") or 1
        return values


class ResumeForm(forms.Form):
    """The limits with which a stopped run goes on; empty is as it was."""

    most_tokens = forms.IntegerField(
        label=_lazy("Pause before more tokens than"), required=False, min_value=1, max_value=MOST
    )
    most_cost = forms.FloatField(
        label=_lazy("Pause before a cost of more than"), required=False, min_value=0
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)


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
        place = random.randint(ends["first"], ends["last"])  # noqa: S311 - chance, not a secret
        return comparisons.filter(pk__gte=place).order_by("pk").first()


class ExperimentForm(forms.Form):
    """Which judges to hold against people: versions, and variants of them to be made."""

    name = forms.CharField(max_length=100, label=_lazy("Name"))
    versions = forms.ModelMultipleChoiceField(
        JudgeVersion.objects.none(),
        label=_lazy("Judges"),
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": _lazy("Choose at least one judge.")},
    )
    modes = forms.MultipleChoiceField(
        required=False,
        label=_lazy("In these modes"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_lazy("None: as each judge is. Every one makes a version of each judge."),
    )
    prompts = forms.ModelMultipleChoiceField(
        PromptVersion.objects.none(),
        required=False,
        label=_lazy("With these prompts"),
        widget=forms.CheckboxSelectMultiple,
        help_text=_lazy("None: as each judge is."),
    )
    most = forms.IntegerField(
        label=_lazy("Labeled comparisons"),
        min_value=1,
        max_value=MOST_LABELED,
        initial=USUAL,
        help_text=_lazy(
            "At most; drawn at random from those whose answer people know. 500 allow isotonic "
            "calibration."
        ),
    )
    epsilon = forms.TypedChoiceField(
        label=_lazy("The people who labeled are"),
        coerce=float,
        initial="0.15",
        choices=[
            ("0.2", _lazy("experts (ε = 0.2)")),
            ("0.15", _lazy("trained raters (ε = 0.15)")),
            ("0.1", _lazy("a crowd (ε = 0.1)")),
        ],
        help_text=_lazy("For the alt-test: how much a judge may be behind, for being cheaper."),
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        versions = JudgeVersion.objects.filter(judge__project=project)
        self.fields["versions"].queryset = versions.select_related("judge").order_by(
            "judge__name", "-number"
        )
        self.fields["modes"].choices = GRID_MODES
        prompts = PromptVersion.objects.filter(project=project)
        self.fields["prompts"].queryset = prompts
        if not prompts.exists():
            del self.fields["prompts"]

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        values.setdefault("prompts", [])
        return values


class UseForm(forms.Form):
    """Which judge of an experiment to use, and how its probabilities are corrected."""

    version = forms.ModelChoiceField(JudgeVersion.objects.none())
    method = forms.ChoiceField(
        required=False, choices=[("", ""), *((m.value, m.label) for m in Calibration.Method)]
    )

    def __init__(self, *args: Any, experiment: Experiment, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = JudgeVersion.objects.filter(cells__experiment=experiment)
        self.fields["version"].queryset = versions.select_related("judge__project", "rater")


class PromptDifferenceForm(forms.Form):
    """Which version a prompt is held against."""

    against = forms.ModelChoiceField(PromptVersion.objects.none(), required=False)

    def __init__(self, *args: Any, others: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["against"].queryset = others


def _first_recipe(project: Project) -> JudgeRecipe:
    """A new judge is asked by the project's own guidelines, if there are any."""
    kind = "guidelines" if project.guidelines.strip() else "base"
    return JudgeRecipe(**_preambles(kind, project))


def _preambles(kind: str, project: Project) -> dict[str, str]:
    """The preambles of a kind: what a good response is, and what stands below."""
    if kind == "guidelines":
        good = project.guidelines.replace("\r\n", "\n").strip() + "\n\n"
    else:
        good = {"base": BASE, "detailed": DETAILED}[kind] + " "
    return {"preamble": good + PAIR_FRAME, "score_preamble": good + SCORE_FRAME}


def _kind_of(recipe: JudgeRecipe, project: Project) -> str:
    kinds = ["base", "detailed"] + (["guidelines"] if project.guidelines.strip() else [])
    for kind in kinds:
        words = _preambles(kind, project)
        if (recipe.preamble, recipe.score_preamble) == (words["preamble"], words["score_preamble"]):
            return kind
    return "own"


class RoutingForm(forms.ModelForm):
    """What judges may do alone. Shares are given in per cent, as the page speaks of them."""

    JUDGES = ("judge_1", "judge_2", "judge_3")

    alpha = forms.FloatField(
        label=_lazy("Errors allowed (%)"),
        min_value=1,
        max_value=50,
        help_text=_lazy(
            "Of what the AI decides alone, people would say otherwise at most so often."
        ),
        widget=forms.NumberInput(attrs={"type": "range", "step": "1"}),
    )
    delta = forms.FloatField(
        label=_lazy("Risk of a false promise (%)"),
        min_value=1,
        max_value=40,
        help_text=_lazy("Over all tests of this project together."),
        widget=forms.NumberInput(attrs={"type": "range", "step": "1"}),
    )

    class Meta:
        model = RoutingPolicy
        fields = ["alpha", "delta", "purpose", "cost_per_label", "currency", "starts"]
        labels = {
            "purpose": _lazy("What the labels are for"),
            "cost_per_label": _lazy("A person's label costs"),
            "currency": _lazy("Currency"),
            "starts": _lazy("Starts of the test"),
        }
        help_texts = {
            "purpose": _lazy("The order in which people get what is left to them."),
            "starts": _lazy(
                "More than one helps a judge that errs most where it is surest, and costs labels."
            ),
        }

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("alpha", "delta"):
            self.initial[name] = round(100 * getattr(self.instance, name), 2)
        versions = JudgeVersion.objects.filter(judge__project=project).select_related("judge")
        chosen = list(self.instance.versions or [])
        words = [
            (_lazy("Judge"), _lazy("The project’s judge")),
            (_lazy("What it leaves goes to"), _lazy("people")),
            (_lazy("What that leaves goes to"), _lazy("people")),
        ]
        for k, (name, (label, nobody)) in enumerate(zip(self.JUDGES, words, strict=True)):
            self.fields[name] = forms.ModelChoiceField(
                versions, label=label, required=False, empty_label=nobody
            )
            self.initial[name] = chosen[k] if k < len(chosen) else None

    def clean_alpha(self) -> float:
        return float(self.cleaned_data["alpha"]) / 100

    def clean_delta(self) -> float:
        return float(self.cleaned_data["delta"]) / 100

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        judges = [given.get(name) for name in self.JUDGES]
        if any(later and not earlier for earlier, later in itertools.pairwise(judges)):
            self.add_error("judge_1", _("Name the first judge too."))
        named = [judge.pk for judge in judges if judge]
        if len(set(named)) < len(named):
            self.add_error("judge_2", _("Each judge once."))
        self.instance.versions = named
        return given

    def policy(self) -> dict[str, Any]:
        """What is kept."""
        return {name: self.cleaned_data[name] for name in self.Meta.fields} | {
            "versions": self.instance.versions
        }
