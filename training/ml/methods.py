"""Ways to adapt a base model: what each one trains, which settings it has, and where it fits.

No torch in here: forms, commands and the API ask before a worker is woken.
"""

from collections.abc import Mapping
from typing import Any

from training.ml.config import Recipe
from training.ml.settings import METHODS

LORA = ("lora", "qlora", "dora", "rslora", "pissa", "loftq")
"""Small matrices beside frozen weights."""
PROMPTS = ("prompt", "prefix", "ptuning")
"""Vectors before a text, all weights of the base frozen."""
WHOLE = ("full", "galore")
"""Every weight is trained; the run leaves a whole model."""
IN_4_BITS = ("qlora", "loftq")
SCORERS = ("reward",)
"""Recipes that make a model with a score head; all others make one that writes."""
BESIDE = ("lora", "qlora", "rslora", "dora")
"""Ways to adapt that leave the base as it is and can stand beside each other on it."""

_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "train_norms")
SETTINGS = {
    "lora": _LORA,
    "qlora": _LORA,
    "dora": _LORA,
    "rslora": _LORA,
    "pissa": _LORA,
    "loftq": _LORA,
    "ia3": ("target_modules", "train_norms"),
    "prompt": ("virtual_tokens",),
    "prefix": ("virtual_tokens",),
    "ptuning": ("virtual_tokens",),
    "galore": ("galore_rank", "galore_gap", "target_modules"),
    "full": (),
    "head": (),
}
"""The settings that a method reads beside those of every run."""

ENCODERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert",
    "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
"""Model types that read a text in both directions, and so write none."""


def other_settings(method: str) -> set[str]:
    """Settings that only other methods read."""
    return {name for names in SETTINGS.values() for name in names} - {*SETTINGS[method]}


def virtual_tokens(recipe: Recipe) -> int:
    """Places of the model's context that a learned prompt takes."""
    return recipe.virtual_tokens if recipe.method in PROMPTS else 0


def needs_reference_copy(method: str) -> bool:
    """Whether the model that a run starts from is held in memory a second time as reference.

    Elsewhere it is the policy with its adapter off. Where all weights move there is no adapter; and
    PiSSA takes its matrices out of the base, which without them is another model. (LoftQ's without
    them is the base in 4 bits, which is QLoRA's reference too.)
    """
    return method in WHOLE or method == "pissa"


def why_not(
    kind: str,
    method: str,
    config: Mapping[str, Any],
    *,
    gradient_checkpointing: bool = False,
    packing: bool = False,
) -> str:
    """Why a recipe cannot train this base by this method, in a sentence; empty if it can.

    Args: config: of the base, as its config.json has it; empty if it is not at hand.
    """
    name = METHODS[method].split(":")[0]
    if kind in SCORERS and method in ("prompt", "ptuning"):
        return (
            f"{name} puts vectors in the place of word ids, by which a reward model finds the last "
            "word of a text: it would be read off the padding; choose prefix tuning"
        )
    if kind not in SCORERS and method == "head":
        return "only a reward model has a head of its own to train; choose another method"
    if kind == "ppo" and method not in BESIDE:
        return (
            "the roles of PPO stand beside each other on one base that stays as it is; choose "
            "LoRA, QLoRA, rsLoRA or DoRA"
        )
    model_type = str(config.get("model_type", ""))
    if kind not in SCORERS and model_type in ENCODERS:
        return f"the base is an encoder ({model_type}), which writes no text"
    if kind not in SCORERS and _is_scorer(config):
        return "the base is a reward model, which writes no text"
    if method == "prefix" and model_type in ENCODERS:
        return (
            f"{name} fills the cache of a model that reads from left to right; the base is an "
            f"encoder ({model_type}) and has none"
        )
    if method == "prefix" and gradient_checkpointing:
        return f"{name} needs the cache that gradient checkpointing turns off"
    if method in PROMPTS and packing:
        return (
            f"{name} puts its vectors before a row, so packed texts would share them; turn packing "
            "off"
        )
    if kind == "quiet_star" and method in PROMPTS:
        return (
            f"{name} puts its vectors before a text by the model's own way in, and the columns of "
            "Quiet-STaR go around it; choose LoRA"
        )
    if config.get("quantization_config") and method not in ("lora", "rslora", *PROMPTS, "head"):
        return (
            f"{name} needs the base's weights as they are, and this base is stored quantised; "
            "choose LoRA"
        )
    return ""


def _is_scorer(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")
