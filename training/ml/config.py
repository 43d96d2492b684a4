"""Recipes: one frozen dataclass each, stored whole with its run, so that the run can be repeated.

The texts beside the fields are the help that the launch form and the `train` command show.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any


def gettext_noop(text: str) -> str:
    """Marks a text for the catalogue under the name that `makemessages` looks for: the launch form
    translates it, and this package stays free of Django."""
    return text


METHODS = {
    "lora": "LoRA",
    "qlora": gettext_noop("QLoRA: base in 4 bits"),
    "dora": gettext_noop("DoRA: length and direction apart"),
    "rslora": gettext_noop("rsLoRA: scale for high ranks"),
    "pissa": gettext_noop("PiSSA: starts at the main directions"),
    "ia3": gettext_noop("(IA)³: one factor for each output"),
    "prompt": gettext_noop("Prompt tuning: learned words in front"),
    "prefix": gettext_noop("Prefix tuning: learned keys and values"),
    "ptuning": gettext_noop("P-tuning: learned words from a small network"),
    "galore": gettext_noop("GaLore: all weights, small optimizer"),
    "full": gettext_noop("Full: all weights"),
    "head": gettext_noop("Head only: base frozen"),
}
"""What is trained; `training.ml.methods` says what fits which recipe and base."""
DTYPES = {
    "auto": gettext_noop("bfloat16 on a GPU, else float32"),
    "float32": "float32",
    "bfloat16": "bfloat16",
}
SCHEDULERS = {
    "linear": gettext_noop("linear to zero"),
    "cosine": gettext_noop("cosine to zero"),
    "constant_with_warmup": gettext_noop("constant"),
}
TRACKERS = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "trackio": "Trackio"}
"""Where a run's numbers may go besides its page, by the name of the package: `ml/trackers.py`."""
IMITATE = {
    "chosen": gettext_noop("Every chosen response"),
    "unbeaten": gettext_noop("Chosen responses that no other one was preferred to"),
    "demonstrations": gettext_noop("Better answers that raters wrote"),
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class RewardRecipe:
    """Everything that decides a reward-model run."""

    base_model: str
    """Hub id or local folder of a causal language model; its head is replaced by a score."""
    method: str = _setting(
        "lora",
        gettext_noop(
            "LoRA trains small matrices beside frozen weights; QLoRA holds those in 4 bits (NF4, "
            "double quantisation) and needs about a third of the memory. docs/training.md says "
            "what the others do."
        ),
    )
    lora_rank: int = _setting(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = _setting(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: float = _setting(
        0.0, gettext_noop("Share of adapter inputs dropped while training.")
    )
    target_modules: str = _setting(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    virtual_tokens: int = _setting(
        20,
        gettext_noop(
            "Length of the learned prompt; longer learns more and leaves less of the context."
        ),
    )
    galore_rank: int = _setting(
        128,
        gettext_noop(
            "Directions of each weight's gradient that the optimizer keeps: fewer need less memory."
        ),
    )
    galore_gap: int = _setting(
        200, gettext_noop("Steps after which GaLore looks for these directions anew.")
    )
    train_norms: bool = _setting(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = _setting(
        "auto", gettext_noop("Number format of the base; adapters and head are float32.")
    )
    learning_rate: float = _setting(
        2e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    scheduler: str = _setting("linear", gettext_noop("How the step size falls."))
    warmup_share: float = _setting(
        0.05, gettext_noop("Share of the steps in which the step size rises.")
    )
    weight_decay: float = _setting(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = _setting(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    epochs: float = _setting(
        1.0, gettext_noop("Passes over the training pairs; reward models over-fit soon.")
    )
    max_steps: int = _setting(0, gettext_noop("Stop after so many steps; 0: by epochs."))
    batch_size: int = _setting(8, gettext_noop("Pairs held in memory at once."))
    gradient_accumulation: int = _setting(1, gettext_noop("Batches summed up before one step."))
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Conversations of more tokens, or beyond the model's context, are left out and counted."
        ),
    )
    gradient_checkpointing: bool = _setting(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    center_rewards: float = _setting(
        0.0,
        gettext_noop("Weight of (r1 + r2)², which centres the rewards; 0.01 is usual, 0 is off."),
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test pairs; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class DPORecipe:
    """Everything that decides a DPO run."""

    base_model: str
    """Where the policy starts and, with the adapter off, the reference model."""
    beta: float = _setting(
        0.1,
        gettext_noop(
            "Pull towards the reference model; larger stays closer (Rafailov et al. 2023, eq. 7)."
        ),
    )
    method: str = _setting(
        "lora",
        gettext_noop(
            "LoRA trains small matrices beside frozen weights; QLoRA holds those in 4 bits (NF4, "
            "double quantisation) and needs about a third of the memory. docs/training.md says "
            "what the others do."
        ),
    )
    lora_rank: int = _setting(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = _setting(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: float = _setting(
        0.0, gettext_noop("Share of adapter inputs dropped while training.")
    )
    target_modules: str = _setting(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    virtual_tokens: int = _setting(
        20,
        gettext_noop(
            "Length of the learned prompt; longer learns more and leaves less of the context."
        ),
    )
    galore_rank: int = _setting(
        128,
        gettext_noop(
            "Directions of each weight's gradient that the optimizer keeps: fewer need less memory."
        ),
    )
    galore_gap: int = _setting(
        200, gettext_noop("Steps after which GaLore looks for these directions anew.")
    )
    train_norms: bool = _setting(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = _setting("auto", gettext_noop("Number format of the base; adapters are float32."))
    learning_rate: float = _setting(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    scheduler: str = _setting("linear", gettext_noop("How the step size falls."))
    warmup_share: float = _setting(
        0.05, gettext_noop("Share of the steps in which the step size rises.")
    )
    weight_decay: float = _setting(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = _setting(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    epochs: float = _setting(1.0, gettext_noop("Passes over the training pairs."))
    max_steps: int = _setting(0, gettext_noop("Stop after so many steps; 0: by epochs."))
    batch_size: int = _setting(8, gettext_noop("Pairs held in memory at once."))
    gradient_accumulation: int = _setting(1, gettext_noop("Batches summed up before one step."))
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Conversations of more tokens, or beyond the model's context, are left out and counted."
        ),
    )
    gradient_checkpointing: bool = _setting(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test pairs; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)
        if self.beta <= 0:
            raise ValueError("beta must be above 0")


@dataclass(frozen=True, kw_only=True)
class SFTRecipe:
    """Everything that decides a run of supervised fine-tuning: which responses to imitate, how."""

    base_model: str
    """Where the policy starts."""
    imitate: str = _setting(
        "chosen",
        gettext_noop(
            "Which responses are learned by heart. Each is learned once, however many pairs it won."
        ),
    )
    prompt_loss_weight: float = _setting(
        0.0,
        gettext_noop(
            "Weight of the prompt's tokens in the loss: 0 learns the responses alone, 1 the "
            "prompts just as much."
        ),
    )
    packing: bool = _setting(
        False,
        gettext_noop(
            "Several short conversations in one row of max_length tokens, kept apart: less padding."
        ),
    )
    neftune_alpha: float = _setting(
        0.0,
        gettext_noop(
            "Noise on the embeddings while training, 5 to 15 is usual, 0 is off (NEFTune, Jain et "
            "al. 2023)."
        ),
    )
    method: str = _setting(
        "lora",
        gettext_noop(
            "LoRA trains small matrices beside frozen weights; QLoRA holds those in 4 bits (NF4, "
            "double quantisation) and needs about a third of the memory. docs/training.md says "
            "what the others do."
        ),
    )
    lora_rank: int = _setting(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = _setting(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: float = _setting(
        0.0, gettext_noop("Share of adapter inputs dropped while training.")
    )
    target_modules: str = _setting(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    virtual_tokens: int = _setting(
        20,
        gettext_noop(
            "Length of the learned prompt; longer learns more and leaves less of the context."
        ),
    )
    galore_rank: int = _setting(
        128,
        gettext_noop(
            "Directions of each weight's gradient that the optimizer keeps: fewer need less memory."
        ),
    )
    galore_gap: int = _setting(
        200, gettext_noop("Steps after which GaLore looks for these directions anew.")
    )
    train_norms: bool = _setting(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = _setting("auto", gettext_noop("Number format of the base; adapters are float32."))
    learning_rate: float = _setting(
        2e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    scheduler: str = _setting("linear", gettext_noop("How the step size falls."))
    warmup_share: float = _setting(
        0.05, gettext_noop("Share of the steps in which the step size rises.")
    )
    weight_decay: float = _setting(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = _setting(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    epochs: float = _setting(1.0, gettext_noop("Passes over the responses."))
    max_steps: int = _setting(0, gettext_noop("Stop after so many steps; 0: by epochs."))
    batch_size: int = _setting(
        8,
        gettext_noop("Conversations held in memory at once; with packing, rows of them."),
    )
    gradient_accumulation: int = _setting(1, gettext_noop("Batches summed up before one step."))
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Conversations of more tokens, or beyond the model's context, are left out and counted."
        ),
    )
    gradient_checkpointing: bool = _setting(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test responses; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)
        if self.imitate not in IMITATE:
            raise ValueError(f"imitate is {self.imitate!r}; it must be one of {', '.join(IMITATE)}")
        if not 0 <= self.prompt_loss_weight <= 1:
            raise ValueError("prompt_loss_weight must lie in [0, 1]")
        if not 0 <= self.neftune_alpha < math.inf:
            raise ValueError("neftune_alpha must not be negative")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Everything that decides a run of continued pre-training: raw text of a domain, every token of
    it learned, before supervised fine-tuning."""

    base_model: str
    """Where the policy starts."""
    text: str
    """Name of a .txt or .jsonl file."""
    test_share: float = 0.1
    """Share of the texts kept for measuring."""
    packing: bool = _setting(
        True,
        gettext_noop(
            "Several short pieces of text in one row of max_length tokens, kept apart: less "
            "padding."
        ),
    )
    method: str = _setting(
        "lora",
        gettext_noop(
            "LoRA trains small matrices beside frozen weights; QLoRA holds those in 4 bits (NF4, "
            "double quantisation) and needs about a third of the memory. docs/training.md says "
            "what the others do."
        ),
    )
    lora_rank: int = _setting(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = _setting(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: float = _setting(
        0.0, gettext_noop("Share of adapter inputs dropped while training.")
    )
    target_modules: str = _setting(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    virtual_tokens: int = _setting(
        20,
        gettext_noop(
            "Length of the learned prompt; longer learns more and leaves less of the context."
        ),
    )
    galore_rank: int = _setting(
        128,
        gettext_noop(
            "Directions of each weight's gradient that the optimizer keeps: fewer need less memory."
        ),
    )
    galore_gap: int = _setting(
        200, gettext_noop("Steps after which GaLore looks for these directions anew.")
    )
    train_norms: bool = _setting(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = _setting("auto", gettext_noop("Number format of the base; adapters are float32."))
    learning_rate: float = _setting(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    scheduler: str = _setting("linear", gettext_noop("How the step size falls."))
    warmup_share: float = _setting(
        0.05, gettext_noop("Share of the steps in which the step size rises.")
    )
    weight_decay: float = _setting(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = _setting(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    epochs: float = _setting(1.0, gettext_noop("Passes over the texts."))
    max_steps: int = _setting(0, gettext_noop("Stop after so many steps; 0: by epochs."))
    batch_size: int = _setting(
        8, gettext_noop("Pieces of text held in memory at once; with packing, rows of them.")
    )
    gradient_accumulation: int = _setting(1, gettext_noop("Batches summed up before one step."))
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Texts of more tokens, or beyond the model's context, become several pieces; nothing "
            "of them is lost."
        ),
    )
    gradient_checkpointing: bool = _setting(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test texts; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.test_share < 1:
            raise ValueError("test_share must lie between 0 and 1")
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token is told from another")


Recipe = RewardRecipe | DPORecipe | SFTRecipe | PretrainRecipe
RECIPES: dict[str, type[Recipe]] = {
    "reward": RewardRecipe,
    "dpo": DPORecipe,
    "sft": SFTRecipe,
    "pretrain": PretrainRecipe,
}


def check(recipe: Recipe) -> None:
    """Raises: ValueError naming the first setting that makes no sense."""
    for name, choices in (("method", METHODS), ("dtype", DTYPES), ("scheduler", SCHEDULERS)):
        if getattr(recipe, name) not in choices:
            raise ValueError(
                f"{name} is {getattr(recipe, name)!r}; it must be one of {', '.join(choices)}"
            )
    at_least_one = ("lora_rank", "lora_alpha", "virtual_tokens", "galore_rank", "galore_gap")
    for name in (*at_least_one, "batch_size", "gradient_accumulation", "max_length"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    most_allowed = {"lora_rank": 4096, "virtual_tokens": 4096, "seed": 2**32 - 1}
    for name, most in most_allowed.items():
        if getattr(recipe, name) > most:
            raise ValueError(f"{name} must be at most {most}")
    for name in ("max_steps", "eval_every", "checkpoint_every", "seed", "weight_decay"):
        if getattr(recipe, name) < 0:
            raise ValueError(f"{name} must not be negative")
    for name in ("max_steps", "galore_rank", "galore_gap", "seed"):
        if getattr(recipe, name) >= 2**31:  # columns of the database hold no more
            raise ValueError(f"{name} must be below {2**31}")
    for name in ("learning_rate", "epochs", "max_grad_norm"):
        if getattr(recipe, name) <= 0:
            raise ValueError(f"{name} must be above 0")
    for name in ("lora_dropout", "warmup_share"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1)")
    if not targets(recipe):
        raise ValueError("target_modules names no layer; write all-linear or names of layers")


def targets(recipe: Recipe) -> str | list[str]:
    """The layers that get adapters, as PEFT wants them: "all-linear" or a list of names."""
    names = [name.strip() for name in recipe.target_modules.split(",") if name.strip()]
    return "all-linear" if names == ["all-linear"] else names


def make_recipe(kind: str, settings: Mapping[str, Any]) -> Recipe:
    """A recipe from settings that may be text, as a form or a command line gives them.

    Raises: ValueError for an unknown recipe or setting, or a value that does not fit.
    """
    if kind not in RECIPES:
        raise ValueError(f"unknown recipe {kind!r}; there are {', '.join(RECIPES)}")
    known = {field.name: field for field in fields(RECIPES[kind])}
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{kind} has no setting {name!r}; it has {', '.join(known)}")
        values[name] = _typed(name, value, known[name].type)
    for name, setting in known.items():
        if setting.default is MISSING and not values.get(name):
            raise ValueError(f"{kind} wants {name}")
    return RECIPES[kind](**values)


def _typed(name: str, value: Any, kind: Any) -> Any:
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return text in ("true", "1", "yes", "on")
    try:
        return kind(value)
    except (TypeError, ValueError):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what}, not {value!r}") from None
