"""The launch form of a run: what is learned from, the base and every setting of its recipe."""

import math
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Project
from labeling.scoring import raters_that_rate
from labeling.storage import check_model_name
from training.dataset_settings import LABELS, settings_of_now
from training.datasets import plan, refuse_too_few
from training.ml.config import IMITATE, ON_TEXTS, RECIPES, make_recipe, settings_of
from training.ml.methods import BESIDE, SETTINGS, other_settings, why_not
from training.ml.objectives import why_not_labels
from training.ml.ppo_config import PPORecipe
from training.ml.settings import DTYPES, METHODS, SCHEDULERS, TRACKERS, names_in
from training.models import Dataset, ModelVersion, Run
from training.runs import check_base, known_models, named_model, with_folders
from training.sweeps import can_be_swept, combinations, read_grid
from training.texts import known_texts, text_path

MAIN = (
    "imitate",
    "loss",
    "algorithm",
    "steps",
    "prompts_per_step",
    "samples_per_prompt",
    "max_new_tokens",
    "kl_coefficient",
    "kl_target",
    "on_alarm",
    "kl_budget",
    "method",
    "beta",
    "thought_length",
    "n_thoughts",
    "true_tokens",
    "learning_rate",
    "epochs",
    "batch_size",
    "max_length",
    "seed",
)
"""Settings that stand in the open; the others are folded away."""
REWARDING = ("reward_models", "holdout_reward_model")
"""Settings of PPO that name models of the project."""
CHOICES = {"method": METHODS, "dtype": DTYPES, "scheduler": SCHEDULERS, "imitate": IMITATE}
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
    "virtual_tokens": _lazy("Virtual tokens"),
    "galore_rank": _lazy("GaLore rank"),
    "galore_gap": _lazy("GaLore gap"),
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
    "imitate": _lazy("Imitate"),
    "prompt_loss_weight": _lazy("Prompt loss weight"),
    "packing": _lazy("Packing"),
    "neftune_alpha": _lazy("NEFTune alpha"),
    "loss": _lazy("Loss"),
    "margin_size": _lazy("Margin"),
    "rating_of": _lazy("Ratings of"),
    "soft_labels": _lazy("Soft labels"),
    "label_smoothing": _lazy("Label smoothing"),
    "length_debias": _lazy("Length explained first"),
    "members": _lazy("Members of an ensemble"),
    "simpo_gamma": _lazy("SimPO gamma"),
    "orpo_weight": _lazy("ORPO weight"),
    "length_charge": _lazy("Charge for length"),
    "kto_desirable": _lazy("KTO weight of good responses"),
    "kto_undesirable": _lazy("KTO weight of bad responses"),
    "precompute_reference": _lazy("Reference computed once"),
    "batch_tokens": _lazy("Tokens at once"),
    "group_by_length": _lazy("Group by length"),
    "rope_scaling": _lazy("RoPE scaling"),
    "rope_factor": _lazy("RoPE factor"),
    "validation_share": _lazy("Validation share"),
    "early_stopping": _lazy("Early stopping"),
    "reward_models": _lazy("Reward models"),
    "holdout_reward_model": _lazy("Hold-out reward model"),
    "judge": _lazy("Judge of the project"),
    "judge_tokens": _lazy("Tokens for the judge"),
    "judge_cost": _lazy("Money for the judge"),
    "judge_model": _lazy("Language model as judge"),
    "judge_guidelines": _lazy("What the judge looks at"),
    "algorithm": _lazy("Algorithm"),
    "combine": _lazy("Several reward models as one"),
    "uncertainty_weight": _lazy("Weight of uncertainty"),
    "generation": _lazy("Responses are written by"),
    "steps": _lazy("Steps"),
    "prompts_per_step": _lazy("Prompts a step"),
    "samples_per_prompt": _lazy("Responses to a prompt"),
    "max_new_tokens": _lazy("Longest response"),
    "temperature": _lazy("Temperature"),
    "critic_learning_rate": _lazy("Learning rate of the critic"),
    "critic_warmup": _lazy("Warm-up of the critic"),
    "minibatches": _lazy("Minibatches"),
    "rollout_batch_size": _lazy("Batch size of sampling"),
    "kl": _lazy("Estimate of KL"),
    "kl_coefficient": _lazy("Price of KL"),
    "kl_target": _lazy("Target of KL"),
    "kl_horizon": _lazy("Horizon of the price"),
    "kl_budget": _lazy("Budget of KL"),
    "gamma": _lazy("Gamma"),
    "gae_lambda": _lazy("GAE lambda"),
    "whiten_advantages": _lazy("Whiten advantages"),
    "clip": _lazy("Clip"),
    "value_clip": _lazy("Clip of values"),
    "stop_kl": _lazy("KL that ends a step"),
    "reward_scaling": _lazy("Scale of the scores"),
    "reward_clip": _lazy("Clip of scores"),
    "missing_end_penalty": _lazy("Penalty for a missing end"),
    "on_alarm": _lazy("On an alarm"),
    "doubt": _lazy("Doubt of unlikely language"),
    "test_prompts": _lazy("Test prompts"),
    "thought_length": _lazy("Thought length"),
    "n_thoughts": _lazy("Thoughts after a token"),
    "true_tokens": _lazy("True tokens told"),
    "policy_weight": _lazy("Weight of REINFORCE"),
    "plain_weight": _lazy("Weight without thoughts"),
    "only_helpful": _lazy("Helpful thoughts alone"),
    "start_like": _lazy("Start mark begins as"),
    "end_like": _lazy("End mark begins as"),
    "mark_speed": _lazy("Speed of the marks"),
    "first_mixing": _lazy("First mixing weight"),
}


DATASETS_OFFERED = 50
COUNTED_AT_ONCE = 50_000
"""Comparisons of a project whose labels of now a page counts: about five seconds."""
SWEPT_AT_ONCE = 3
"""Settings that the grid of the form has room for."""


class RewardModels(forms.MultipleChoiceField):
    """Names of reward models, as a recipe holds them: one text with commas."""

    def clean(self, value: Any) -> str:
        return ", ".join(super().clean(value))

    def prepare_value(self, value: Any) -> Any:
        """An earlier run's text as the names in it."""
        return names_in(value) if isinstance(value, str) else value


class LaunchForm(forms.Form):
    """What is learned from, the base model and every setting of one recipe, looked at before a
    worker is woken."""

    dataset = forms.ModelChoiceField(
        queryset=Dataset.objects.none(),
        to_field_name="sha256",
        required=False,
        empty_label=_lazy("The labels of now"),
        help_text=_lazy(
            "One that was built and frozen before, or the labels of now as chosen below."
        ),
    )
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
        help_text=_lazy("Share of the prompts kept for measuring. No prompt is on both sides."),
    )
    text = forms.ChoiceField(
        help_text=_lazy(
            "A .txt file, in which blank lines divide texts, or a .jsonl file with a “text” in "
            "each line; in the folder texts/ of the storage."
        ),
    )
    base_model = forms.CharField(
        max_length=500,
        widget=forms.TextInput(attrs={"list": "known-models", "autocomplete": "off"}),
        help_text=_lazy("A model of this project, a folder on the worker, or a hub id."),
    )
    report_to = forms.ChoiceField(required=False, label=_lazy("Numbers go to"))

    def __init__(self, *args: Any, project: Project, kind: str, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, label_suffix="", **kwargs)
        there = {name: words for name, words in TRACKERS.items() if find_spec(name)}
        self.fields["report_to"].choices = [("", _("this page alone")), *there.items()]
        if missing := [name for name in TRACKERS if name not in there]:
            self.fields["report_to"].help_text = _(
                "Others can be chosen once they are installed: pip install %(packages)s"
            ) % {"packages": " ".join(missing)}
        swept = [("", "–"), *((name, NAMES.get(name, name)) for name in can_be_swept(kind))]
        for row in range(1, SWEPT_AT_ONCE + 1):
            self.fields[f"sweep_setting_{row}"] = forms.ChoiceField(
                required=False, choices=swept, label=_("Setting")
            )
            self.fields[f"sweep_values_{row}"] = forms.CharField(
                required=False, max_length=200, label=_("Values, with commas between")
            )
        self.project, self.kind, self.user = project, kind, user
        listed = project.datasets.listed().order_by("-pk")
        newest = listed.values_list("pk", flat=True)[:DATASETS_OFFERED]
        offered = project.datasets.filter(pk__in=list(newest)).order_by("-pk")
        self.fields["dataset"].queryset = offered
        self.fields["dataset"].label_from_instance = dataset_in_words
        if kind in ON_TEXTS:
            del self.fields["dataset"], self.fields["labels"]
            self.fields["text"].choices = [(name, name) for name in known_texts()]
            self.fields["test_share"].help_text = _("Share of the texts kept for measuring.")
        else:
            del self.fields["text"]
        self.known_models = known_models(project, kind)
        if self.known_models:
            self.fields["base_model"].initial = self.known_models[0]
        for setting in settings_of(kind):
            if setting.metadata:
                self.fields[setting.name] = _field(setting)
        if kind == Run.Kind.PPO:
            self._offer_reward_models()
        self.fields["method"].widget.attrs |= {
            "hx-post": "",  # to this page
            "hx-target": "#method-settings",
            "hx-swap": "outerHTML",
        }
        if self.is_bound:
            self.data = self.data.copy()
            for name in self._not_shown():
                default = self.fields[name].initial
                self.data[name] = "on" if default is True else str(default)

    def _offer_reward_models(self) -> None:
        """The project's reward models to learn from and to hold out, and the methods that go with
        them on one base."""
        names = [
            model.name for model in self.project.models.filter(kind=ModelVersion.Kind.REWARD)
        ]  # newest first
        texts = {name: self.fields[name].help_text for name in REWARDING}
        labels = {name: NAMES[name] for name in REWARDING}
        if not names:
            texts["reward_models"] = _("This project has no reward model yet: train one first.")
        self.fields["reward_models"] = RewardModels(
            choices=[(name, name) for name in names],
            widget=forms.CheckboxSelectMultiple,
            initial=names[:1],
            required=False,  # a judge may do
            help_text=texts["reward_models"],
            label=labels["reward_models"],
        )
        self.fields["holdout_reward_model"] = forms.ChoiceField(
            choices=[("", _("none")), *((name, name) for name in names)],
            required=False,
            initial="".join(names[1:2]),
            help_text=texts["holdout_reward_model"],
            label=labels["holdout_reward_model"],
        )
        kinds = (ModelVersion.Kind.BASE, ModelVersion.Kind.POLICY)
        writers = self.project.models.filter(kind__in=kinds)
        self.fields["judge_model"] = forms.ChoiceField(
            choices=[("", _("none")), *((model.name, model.name) for model in writers)],
            required=False,
            help_text=self.fields["judge_model"].help_text,
            label=NAMES["judge_model"],
        )
        self.fields["judge_guidelines"].required = False
        self.fields["judge"] = forms.ChoiceField(
            choices=[("", _("none")), *((r.name, r.name) for r in raters_that_rate(self.project))],
            required=False,
            help_text=self.fields["judge"].help_text,
            label=NAMES["judge"],
        )
        self.fields["method"].choices = [(name, _(METHODS[name])) for name in BESIDE]

    def clean_base_model(self) -> str:
        check_model_name(self.project, self.cleaned_data["base_model"], self.user)
        return str(self.cleaned_data["base_model"])

    def data_fields(self) -> list[forms.BoundField]:
        """What is learned from what: the first card of the form."""
        names = ("base_model", *REWARDING, "judge", "text", "dataset", "labels", "test_share")
        return [self[name] for name in names if name in self.fields]

    def main_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in MAIN if name in self.fields]

    def method_fields(self) -> list[forms.BoundField]:
        """The settings of the chosen method."""
        return [self[name] for name in SETTINGS[self.chosen_method] if name in self.fields]

    @property
    def method_problem(self) -> str:
        """Why the recipe cannot take the chosen method, whatever the base; empty if it can."""
        reason = why_not(self.kind, self.chosen_method, {})
        return reason and reason[:1].upper() + reason[1:] + "."

    def more_fields(self) -> list[forms.BoundField]:
        others = {*MAIN, *SETTINGS[self.chosen_method], *other_settings(self.chosen_method)}
        others |= {field.name for field in self.data_fields()}
        others |= {field.name for row in self.sweep_rows() for field in row}
        return [field for field in self if field.name not in others]

    def sweep_rows(self) -> list[tuple[forms.BoundField, forms.BoundField]]:
        """(setting, values) of the grid."""
        return [
            (self[f"sweep_setting_{row}"], self[f"sweep_values_{row}"])
            for row in range(1, SWEPT_AT_ONCE + 1)
        ]

    @property
    def sweep_is_open(self) -> bool:
        """Whether the grid is filled in, or in error: then it is not folded away."""
        return any(field.errors or field.value() for row in self.sweep_rows() for field in row)

    @property
    def chosen_method(self) -> str:
        value = self["method"].value()
        return value if value in SETTINGS else "lora"

    def _not_shown(self) -> set[str]:
        """Settings that the sender did not see: without JavaScript the page still shows those of
        the method that was chosen before. They keep their defaults."""
        shown = self.data.get("settings_of", "")
        hidden = other_settings(self.chosen_method) | (
            other_settings(shown) if shown in SETTINGS else set()
        )
        return hidden & self.fields.keys()

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
        recipe = None
        try:
            recipe = make_recipe(self.kind, settings | {"base_model": folder})
            check_base(folder, recipe)
            if isinstance(recipe, PPORecipe):
                with_folders(self.project, recipe)
        except ValueError as error:
            refuse(self, str(error))
        cleaned["recipe_settings"] = {
            name: value for name, value in settings.items() if name != "base_model"
        }
        if "sweep" in self.data:
            self._clean_sweep(cleaned, settings | {"base_model": folder})
        if self.kind in ON_TEXTS:
            return cleaned
        found = self.preview()
        if cleaned["dataset"] is None and found["problem"]:
            self.add_error("labels", found["problem"])
        elif recipe and not found.get("uncounted"):
            if reason := why_not_labels(recipe, found["counts"]):
                refuse(self, reason)
            for swept in cleaned.get("swept", []):
                if (other := why_not_labels(swept, found["counts"])) and other != reason:
                    self.add_error("sweep_values_1", other[:1].upper() + other[1:] + ".")
                    break
        return cleaned

    def _clean_sweep(self, cleaned: dict[str, Any], settings: dict[str, Any]) -> None:
        """The grid, every combination of it possible; what is wrong stands beside its values."""
        filled = {
            cleaned[setting.name]: (values.name, cleaned[values.name])
            for setting, values in self.sweep_rows()
            if cleaned[setting.name]
        }
        try:
            grid = read_grid({name: text for name, (_field, text) in filled.items()})
            recipes = [make_recipe(self.kind, settings | c) for c in combinations(self.kind, grid)]
            for recipe in recipes:
                check_base(recipe.base_model, recipe)
        except ValueError as error:
            text = str(error)
            about = filled.get(text.replace(":", " ").split(" ", 1)[0])
            place = about[0] if about else "sweep_values_1"
            self.add_error(place, text[:1].upper() + text[1:] + ".")
        else:
            cleaned |= {"grid": grid, "swept": recipes}

    def preview(self) -> dict[str, Any]:
        """Counts of the dataset that these settings would give, and what is wrong with it.

        Settings that are missing or make no sense are taken at their defaults. Of a file of text,
        nothing but its size: a worker reads it.
        """
        if self.kind in ON_TEXTS:
            return self._text_preview()
        frozen = (
            self.fields["dataset"].queryset.filter(sha256=self["dataset"].value() or "").first()
        )
        if frozen is not None:
            return {"counts": frozen.counts, "raters": frozen.raters, "problem": ""}
        n = self.project.comparisons.count()
        if n > COUNTED_AT_ONCE:
            return {"counts": {}, "raters": [], "problem": "", "uncounted": n}
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

    def _text_preview(self) -> dict[str, Any]:
        found: dict[str, Any] = {"counts": {}, "raters": [], "problem": ""}
        names = [name for name, _words in self.fields["text"].choices]
        if not names:
            found["problem"] = _("There is no file of text yet: put one into texts/.")
            return found
        asked = self["text"].value()
        chosen = asked if asked in names else names[0]
        return found | {"text": chosen, "n_bytes": text_path(chosen).stat().st_size}


def refuse(form: forms.Form, text: str) -> None:
    """Put an error to the field whose name it begins with."""
    name = text.replace(":", " ").split(" ", 1)[0]
    if name in form.fields:
        text = text.removeprefix(name).lstrip(": ")
        form.add_error(name, text[:1].upper() + text[1:] + ".")
    else:
        form.add_error(None, text[:1].upper() + text[1:] + ".")


def dataset_in_words(dataset: Dataset) -> str:
    """A frozen dataset as a choice of a form."""
    words = _("%(sha256)s · %(labels)s, %(aggregate)s · %(n)s pairs · %(day)s")
    if dataset.of_ratings:
        words = _("%(sha256)s · %(labels)s, %(aggregate)s · %(n)s single judgements · %(day)s")
    return words % {
        "sha256": dataset.sha256[:12],
        "labels": dataset.filters["labels"],
        "aggregate": dataset.filters["aggregate"],
        "n": dataset.n_rows,
        "day": f"{dataset.created_at:%Y-%m-%d}",
    }


def _field(setting: Any) -> forms.Field:
    common = {
        "initial": setting.default,
        "help_text": _(setting.metadata["help"]),
        "label": NAMES[setting.name],
    }
    if choices := setting.metadata["choices"] or CHOICES.get(setting.name):
        return forms.ChoiceField(
            choices=[(value, _(words)) for value, words in choices.items()], **common
        )
    if setting.type is bool:
        return forms.BooleanField(required=False, **common)
    if setting.type is int:
        return forms.IntegerField(min_value=0, max_value=LARGEST, **common)
    if setting.type is float:
        return forms.FloatField(min_value=0, **common)
    return forms.CharField(max_length=500, **common)


def _number(value: Any, otherwise: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if math.isfinite(number) else otherwise
