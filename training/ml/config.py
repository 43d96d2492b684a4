"""Recipes: one frozen dataclass each, stored whole with its run, so that the run can be repeated.

Those that learn from rows fixed beforehand stand here; PPO and Quiet-STaR have files of their own.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from training.ml.ppo_config import PPORecipe
from training.ml.quiet_star_config import QuietStarRecipe
from training.ml.settings import MOST_MEMBERS, OnPairs, OnRows, explained, gettext_noop

IMITATE = {
    "chosen": gettext_noop("Every chosen response"),
    "unbeaten": gettext_noop("Chosen responses that no other one was preferred to"),
    "demonstrations": gettext_noop("Better answers that raters wrote"),
}


REWARD_LOSSES = {
    "pairs": gettext_noop("Pairs: soft or hard labels"),
    "margin": gettext_noop("Pairs kept apart by their strength"),
    "scaled": gettext_noop("Pairs that weigh as much as their strength"),
    "ratings": gettext_noop("Ratings of single responses, or of pairs by strength or aspect"),
}
POLICY_LOSSES = {
    "sigmoid": gettext_noop("DPO: soft or hard labels"),
    "robust": gettext_noop("Robust DPO: a known share of labels is wrong"),
    "ipo": gettext_noop("IPO: a fixed distance, means over tokens"),
    "hinge": gettext_noop("Hinge: pairs apart enough teach no more"),
    "length": gettext_noop("R-DPO: responses charged for their length"),
    "simpo": gettext_noop("SimPO: no reference, with a margin"),
    "orpo": gettext_noop("ORPO: imitation and odds, no reference"),
    "kto": gettext_noop("KTO: single responses, good or bad"),
}
NO_REFERENCE = ("simpo", "orpo")
"""Losses that look at the policy alone."""
SOFT_LABELS = {
    "kept": gettext_noop("Kept: ties are pulled together"),
    "certainty": gettext_noop("As hard labels that weigh |2q − 1|: ties drop out"),
}


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(OnPairs):
    """Everything that decides a reward-model run."""

    base_model: str
    """Hub id or local folder of a causal language model; its head is replaced by a score."""
    loss: str = explained(
        "pairs",
        gettext_noop(
            "What is learned from the labels. Margins and strengths want hard labels, and answers "
            "with a strength."
        ),
        REWARD_LOSSES,
    )
    margin_size: float = explained(
        1.0,
        gettext_noop(
            "Distance in reward that the strongest preference is to keep, weaker ones a part of it "
            "(Llama 2: 1 or 3)."
        ),
    )
    rating_of: str = explained(
        "strength",
        gettext_noop("Ratings: from the strength of preferences, or the name of an aspect."),
    )
    soft_labels: str = explained(
        "kept", gettext_noop("What becomes of a label that is not certain."), SOFT_LABELS
    )
    length_debias: bool = explained(
        False,
        gettext_noop(
            "A logistic regression on length explains what it can of the labels first; the rewards "
            "learn the rest."
        ),
    )
    members: int = explained(
        1,
        gettext_noop(
            "Reward models beside one base, each with its own seed: the mean is the reward, the "
            "spread its doubt."
        ),
    )
    dtype: str = explained(
        "auto", gettext_noop("Number format of the base; adapters and head are float32.")
    )
    epochs: float = explained(
        1.0, gettext_noop("Passes over the training pairs; reward models over-fit soon.")
    )
    center_rewards: float = explained(
        0.0,
        gettext_noop("Weight of (r1 + r2)², which centres the rewards; 0.01 is usual, 0 is off."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin_size < 0 or self.center_rewards < 0:
            raise ValueError("margin_size and center_rewards must not be negative")
        if not self.rating_of:
            raise ValueError("rating_of must be strength, or the name of an aspect")
        if not 1 <= self.members <= MOST_MEMBERS:
            raise ValueError(f"members must lie between 1 and {MOST_MEMBERS}")
        if self.loss == "ratings":
            for name, unused in (("label_smoothing", 0.0), ("length_debias", False)):
                if getattr(self, name) != unused:
                    raise ValueError(f"{name} changes labels of pairs; ratings have none")
        if self.label_smoothing and self.loss == "margin":
            raise ValueError(
                "label_smoothing makes labels soft, which a margin does not go with: the best "
                "distance of a soft label is its log-odds already"
            )


@dataclass(frozen=True, kw_only=True)
class DPORecipe(OnPairs):
    """Everything that decides a DPO run."""

    base_model: str
    """Where the policy starts and, with the adapter off, the reference model."""
    loss: str = explained(
        "sigmoid", gettext_noop("What is learned from the labels."), POLICY_LOSSES
    )
    beta: float = explained(
        0.1,
        gettext_noop(
            "Pull towards the reference model; larger stays closer (Rafailov et al. 2023, eq. 7)."
        ),
    )
    label_smoothing: float = explained(
        0.0,
        gettext_noop(
            "Share of the labels taken to be wrong, below 0.5: conservative DPO; with the robust "
            "loss its ε."
        ),
    )
    simpo_gamma: float = explained(
        1.0, gettext_noop("SimPO: distance that β · mean log-probability is to keep.")
    )
    orpo_weight: float = explained(0.1, gettext_noop("ORPO: weight of the odds beside imitation."))
    length_charge: float = explained(
        0.01, gettext_noop("R-DPO: what a token more costs, in units of β · log-ratio.")
    )
    kto_desirable: float = explained(
        1.0,
        gettext_noop(
            "KTO: weight of good responses. All good ones together should weigh 1 to 4/3 times "
            "what all bad ones do."
        ),
    )
    kto_undesirable: float = explained(
        1.0,
        gettext_noop(
            "KTO: weight of bad responses. With three times as many good as bad ones, about 3."
        ),
    )
    group_by_length: bool = explained(
        False,
        gettext_noop(
            "Pairs of like length share a step: less padding, but steps that push harder at the "
            "same learning rate."
        ),
    )
    precompute_reference: bool = explained(
        True,
        gettext_noop(
            "Ask the reference model once, before the first step, and keep its numbers with the "
            "run: less memory, and one forward pass less in each step."
        ),
    )
    learning_rate: float = explained(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError("beta must be above 0")
        for name in ("simpo_gamma", "orpo_weight", "length_charge"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("kto_desirable", "kto_undesirable"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.label_smoothing and self.loss == "kto":
            raise ValueError("label_smoothing changes labels of pairs; KTO learns single responses")
        if self.label_smoothing and self.loss == "simpo" and self.simpo_gamma:
            raise ValueError(
                "label_smoothing makes labels soft, which SimPO's margin does not go with; set "
                "simpo_gamma to 0"
            )


@dataclass(frozen=True, kw_only=True)
class SFTRecipe(OnRows):
    """Everything that decides a run of supervised fine-tuning: which responses to imitate, how."""

    base_model: str
    """Where the policy starts."""
    imitate: str = explained(
        "chosen",
        gettext_noop(
            "Which responses are learned by heart. Each is learned once, however many pairs it won."
        ),
    )
    prompt_loss_weight: float = explained(
        0.0,
        gettext_noop(
            "Weight of the prompt's tokens in the loss: 0 learns the responses alone, 1 the "
            "prompts just as much."
        ),
    )
    packing: bool = explained(
        False,
        gettext_noop(
            "Several short conversations in one row of max_length tokens, kept apart: less padding."
        ),
    )
    neftune_alpha: float = explained(
        0.0,
        gettext_noop(
            "Noise on the embeddings while training, 5 to 15 is usual, 0 is off (NEFTune, Jain et "
            "al. 2023)."
        ),
    )
    epochs: float = explained(1.0, gettext_noop("Passes over the responses."))
    batch_size: int = explained(
        8,
        gettext_noop("Conversations held in memory at once; with packing, rows of them."),
    )
    eval_every: int = explained(
        0, gettext_noop("Steps between measurements on test responses; 0: ten in a run.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.imitate not in IMITATE:
            raise ValueError(f"imitate is {self.imitate!r}; it must be one of {', '.join(IMITATE)}")
        if not 0 <= self.prompt_loss_weight <= 1:
            raise ValueError("prompt_loss_weight must lie in [0, 1]")
        if not 0 <= self.neftune_alpha < math.inf:
            raise ValueError("neftune_alpha must not be negative")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(OnRows):
    """Everything that decides a run of continued pre-training: raw text of a domain, every token of
    it learned, before supervised fine-tuning."""

    base_model: str
    """Where the policy starts."""
    text: str
    """Name of a .txt or .jsonl file."""
    test_share: float = 0.1
    """Share of the texts kept for measuring."""
    packing: bool = explained(
        True,
        gettext_noop(
            "Several short pieces of text in one row of max_length tokens, kept apart: less "
            "padding."
        ),
    )
    learning_rate: float = explained(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    epochs: float = explained(1.0, gettext_noop("Passes over the texts."))
    batch_size: int = explained(
        8, gettext_noop("Pieces of text held in memory at once; with packing, rows of them.")
    )
    max_length: int = explained(
        1024,
        gettext_noop(
            "Texts of more tokens, or beyond the model's context, become several pieces; nothing "
            "of them is lost."
        ),
    )
    eval_every: int = explained(
        0, gettext_noop("Steps between measurements on test texts; 0: ten in a run.")
    )
    validation_share: float = explained(
        0.0,
        gettext_noop(
            "Share of the training texts kept apart to choose the best weights by; what is held "
            "out as test chooses nothing."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_share < 1:
            raise ValueError("test_share must lie between 0 and 1")
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token is told from another")


TextRecipe = PretrainRecipe | QuietStarRecipe
"""Recipes that read a file of raw text, and no labels."""
ON_TEXTS = ("pretrain", "quiet_star")
IN_PARTS = ("reward", "dpo", "sft", "pretrain")
"""Recipes whose steps are divided into parts, which several processes can share: ml/ranks.py."""
Recipe = RewardRecipe | DPORecipe | SFTRecipe | PretrainRecipe | QuietStarRecipe
"""Recipes that transformers' trainer carries out, and Quiet-STaR."""
AnyRecipe = Recipe | PPORecipe
RECIPES: dict[str, type[AnyRecipe]] = {
    "reward": RewardRecipe,
    "dpo": DPORecipe,
    "ppo": PPORecipe,
    "sft": SFTRecipe,
    "pretrain": PretrainRecipe,
    "quiet_star": QuietStarRecipe,
}

RowsRecipe = RewardRecipe | DPORecipe | SFTRecipe | PretrainRecipe
"""Those that learn from rows fixed beforehand."""


def settings_of(kind: str) -> list[Field[Any]]:
    """The settings of a recipe as people read them: first those that it alone has."""
    found = fields(RECIPES[kind])
    everyones = {setting.name for setting in fields(OnPairs)} - {"base_model"}
    return [f for f in found if f.name not in everyones] + [f for f in found if f.name in everyones]


def make_recipe(kind: str, settings: Mapping[str, Any]) -> AnyRecipe:
    """A recipe from settings that may be text, as a form or a command line gives them.

    Raises: ValueError for an unknown recipe or setting, or a value that does not fit.
    """
    if kind not in RECIPES:
        raise ValueError(f"unknown recipe {kind!r}; there are {', '.join(RECIPES)}")
    known = {setting.name: setting for setting in settings_of(kind)}
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{kind} has no setting {name!r}; it has {', '.join(known)}")
        values[name] = typed(name, value, known[name].type)
    for name, setting in known.items():
        if setting.default is MISSING and not values.get(name):
            raise ValueError(f"{kind} wants {name}")
    return RECIPES[kind](**values)


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting as its kind. Raises: ValueError that names the setting."""
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return text in ("true", "1", "yes", "on")
    what = "a whole number" if kind is int else "a number"
    try:
        found = kind(value)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{name} must be {what}, not {value!r}") from None
    is_cut = kind is int and isinstance(value, float) and found != value
    if is_cut or (kind is float and not math.isfinite(found)):
        raise ValueError(f"{name} must be {what}, not {value!r}")
    return found
