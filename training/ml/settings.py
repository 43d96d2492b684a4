"""What recipes have in common: their settings, what these may be, and what makes no sense.

The texts beside the fields are the help that the launch form and the `train` command show.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.ml.ppo_config import PPORecipe

MOST_MEMBERS = 16
MOST_STEPS, MOST_EPOCHS = 10_000_000, 10_000
"""Beyond these nobody means it: the order of all steps is drawn before the first."""


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
    "loftq": gettext_noop("LoftQ: base in 4 bits, starts at what they lose"),
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
ROPE_SCALINGS = {
    "none": gettext_noop("as the model is"),
    "linear": gettext_noop("linear: positions closer together"),
    "yarn": gettext_noop("YaRN: fine differences kept"),
}


def names_in(text: str) -> list[str]:
    """The names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def explained(default: Any, text: str, choices: Mapping[str, str] | None = None) -> Any:
    """A setting with its help and, where it is one of some, what it may be."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every recipe decides: how the base is adapted, the steps, the seed."""

    base_model: str
    """Hub id or local folder of the model that the run begins with."""
    method: str = explained(
        "lora",
        gettext_noop(
            "LoRA trains small matrices beside frozen weights; QLoRA holds those in 4 bits (NF4, "
            "double quantisation) and needs about a third of the memory. docs/training.md says "
            "what the others do."
        ),
    )
    lora_rank: int = explained(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = explained(
        32,
        gettext_noop(
            "Scale of the adapters: what they learned counts alpha / rank times, in rsLoRA "
            "alpha / √rank."
        ),
    )
    lora_dropout: float = explained(
        0.0,
        gettext_noop(
            "Share of the adapters' inputs that is hidden while training, against over-fitting."
        ),
    )
    target_modules: str = explained(
        "all-linear",
        gettext_noop(
            "Layers that are adapted: all-linear, names as q_proj,v_proj, or patterns as "
            "layers.1?.*.q_proj or mlp.*"
        ),
    )
    virtual_tokens: int = explained(
        20,
        gettext_noop(
            "Length of the learned prompt; longer learns more and leaves less of the context."
        ),
    )
    galore_rank: int = explained(
        128,
        gettext_noop(
            "Directions of each weight's gradient that the optimizer keeps: fewer need less memory."
        ),
    )
    galore_gap: int = explained(
        200, gettext_noop("Steps after which GaLore looks for these directions anew.")
    )
    train_norms: bool = explained(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = explained("auto", gettext_noop("Number format of the base; adapters are float32."))
    learning_rate: float = explained(
        2e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    scheduler: str = explained("linear", gettext_noop("How the step size falls."))
    warmup_share: float = explained(
        0.05, gettext_noop("Share of the steps in which the step size rises.")
    )
    weight_decay: float = explained(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = explained(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    epochs: float = explained(1.0, gettext_noop("Passes over the training pairs."))
    max_steps: int = explained(0, gettext_noop("Stop after so many steps; 0: by epochs."))
    batch_size: int = explained(8, gettext_noop("Pairs held in memory at once."))
    gradient_accumulation: int = explained(1, gettext_noop("Batches summed up before one step."))
    max_length: int = explained(
        1024,
        gettext_noop(
            "Conversations of more tokens, or beyond the model's context, are left out and counted."
        ),
    )
    gradient_checkpointing: bool = explained(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    rope_scaling: str = explained(
        "none",
        gettext_noop("A longer context than the base was made for, by scaling its positions."),
        ROPE_SCALINGS,
    )
    rope_factor: float = explained(2.0, gettext_noop("How many times the context is stretched."))
    eval_every: int = explained(
        0, gettext_noop("Steps between measurements on test pairs; 0: ten in a run.")
    )
    checkpoint_every: int = explained(
        0, gettext_noop("Steps between checkpoints; 0: ten in a run.")
    )
    seed: int = explained(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OnRows(Shared):
    """What recipes decide besides that learn from rows fixed beforehand: which of them share a
    step, and by which of them the best weights are chosen."""

    batch_tokens: int = explained(
        0,
        gettext_noop(
            "Tokens held in memory at once, padding included, however many rows that are; 0: "
            "batch_size rows. A step learns the same rows either way."
        ),
    )
    group_by_length: bool = explained(
        True, gettext_noop("Rows of like length share a step, so that less padding is computed.")
    )
    validation_share: float = explained(
        0.0,
        gettext_noop(
            "Share of the training prompts kept apart to choose the best weights by; what is held "
            "out as test chooses nothing."
        ),
    )
    early_stopping: int = explained(
        0,
        gettext_noop(
            "Measurements without a lower loss on the validation rows after which the run ends; "
            "0: never. The best weights are kept."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rows(self)


@dataclass(frozen=True, kw_only=True)
class OnPairs(OnRows):
    """What recipes on pairs decide besides."""

    label_smoothing: float = explained(
        0.0, gettext_noop("Share of the labels taken to be wrong, below 0.5; 0 trusts them all.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError("label_smoothing must lie in [0, 0.5)")


def check_choices(recipe: "Shared | PPORecipe") -> None:
    """Raises: ValueError naming the first setting that is none of its choices."""
    for name, choices in (("method", METHODS), ("dtype", DTYPES), ("scheduler", SCHEDULERS)):
        if getattr(recipe, name) not in choices:
            raise ValueError(
                f"{name} is {getattr(recipe, name)!r}; it must be one of {', '.join(choices)}"
            )
    for setting in fields(recipe):
        allowed, value = setting.metadata.get("choices"), getattr(recipe, setting.name)
        if allowed and value not in allowed:
            raise ValueError(f"{setting.name} is {value!r}; it must be one of {', '.join(allowed)}")


def check(recipe: Shared) -> None:
    """Raises: ValueError naming the first setting that makes no sense."""
    check_choices(recipe)
    if not 1 < recipe.rope_factor <= 64:
        raise ValueError("rope_factor must lie above 1, up to 64")
    at_least_one = ("lora_rank", "lora_alpha", "virtual_tokens", "galore_rank", "galore_gap")
    for name in (*at_least_one, "batch_size", "gradient_accumulation", "max_length"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be at least 1")
    most_allowed = {"lora_rank": 4096, "virtual_tokens": 4096, "seed": 2**32 - 1}
    counts = ("batch_size", "gradient_accumulation", "max_length")
    most_allowed |= dict.fromkeys(counts, 2**31 - 1)
    for name, most in most_allowed.items():
        if getattr(recipe, name) > most:
            raise ValueError(f"{name} must be at most {most}")
    for name in ("max_steps", "eval_every", "checkpoint_every", "seed", "weight_decay"):
        if getattr(recipe, name) < 0:
            raise ValueError(f"{name} must not be negative")
    for name in ("galore_rank", "galore_gap", "seed"):
        if getattr(recipe, name) >= 2**31:  # columns of the database hold no more
            raise ValueError(f"{name} must be below {2**31}")
    if recipe.max_steps > MOST_STEPS:
        raise ValueError(f"max_steps must be at most {MOST_STEPS:,}")
    if recipe.epochs > MOST_EPOCHS:
        raise ValueError(f"epochs must be at most {MOST_EPOCHS:,}")
    for name in ("learning_rate", "epochs", "max_grad_norm"):
        if getattr(recipe, name) <= 0:
            raise ValueError(f"{name} must be above 0")
    for name in ("lora_dropout", "warmup_share"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1)")
    if not targets(recipe):
        raise ValueError("target_modules names no layer; write all-linear or names of layers")


def check_rows(recipe: OnRows) -> None:
    """Raises: ValueError naming the first setting of how rows are used that makes no sense."""
    if not 0 <= recipe.validation_share < 1:
        raise ValueError("validation_share must lie in [0, 1)")
    for name in ("batch_tokens", "early_stopping"):
        if not 0 <= getattr(recipe, name) < 2**31:
            raise ValueError(f"{name} must lie between 0 and {2**31 - 1}")
    if recipe.early_stopping and not recipe.validation_share:
        raise ValueError(
            "early_stopping chooses by validation rows: set validation_share too, such as 0.1"
        )


def targets(recipe: "Shared | PPORecipe") -> str | list[str]:
    """The layers that are adapted: "all-linear" or a list of names and patterns, see is_target."""
    names = names_in(recipe.target_modules)
    return "all-linear" if names == ["all-linear"] else names


def texts_in_a_row(recipe: Shared) -> int:
    """Texts that pass through the model for a row that is learned: a pair's two responses, or
    KTO's response and the one to another prompt; else one."""
    return 2 if isinstance(recipe, OnPairs) else 1


def token_budget(recipe: Shared) -> int:
    """Tokens that pass through the model together, or 0 where rows are counted."""
    return recipe.batch_tokens if isinstance(recipe, OnRows) else 0


def is_target(layer: str, wanted: str | list[str]) -> bool:
    """Whether a layer, by its path such as layers.3.self_attn.q_proj, is among the targets.

    A name or a pattern (* for anything, ? for a character, [ab] for one of some) stands for every
    layer whose path ends like it: "q_proj", "mlp.*", "layers.[0-3].*".
    """
    if isinstance(wanted, str):
        return True
    return any(fnmatchcase(f".{layer}", f"*.{end}") for end in wanted)
