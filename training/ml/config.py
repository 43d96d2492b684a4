"""Recipes: one frozen dataclass each, stored whole with its run, so that the run can be repeated.

The texts beside the fields are the help that the launch form and the `train` command show.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar

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
IMITATE = {
    "chosen": gettext_noop("Every chosen response"),
    "unbeaten": gettext_noop("Chosen responses that no other one was preferred to"),
    "demonstrations": gettext_noop("Better answers that raters wrote"),
}


REWARD_LOSSES = {
    "pairs": gettext_noop("Pairs: soft or hard labels"),
    "margin": gettext_noop("Pairs kept apart by their strength"),
    "scaled": gettext_noop("Pairs that weigh as much as their strength"),
    "ratings": gettext_noop("Ratings of single responses, from strengths or an aspect"),
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
ALGORITHMS = {
    "ppo": gettext_noop("PPO: a critic tells each token's worth"),
    "rloo": gettext_noop("RLOO: each response against the others to its prompt"),
    "grpo": gettext_noop("GRPO: the same, divided by their spread"),
    "dr_grpo": gettext_noop("Dr. GRPO: without that division and without one by length"),
    "online_dpo": gettext_noop("Online DPO: the best response to a prompt against the worst"),
}
COMBINED = {
    "mean": gettext_noop("their mean"),
    "worst": gettext_noop("the lowest of them"),
    "uncertainty": gettext_noop("their mean less their variance"),
}
KLS = {
    "k1": gettext_noop("k1: unbiased"),
    "k2": gettext_noop("k2: little variance, biased"),
    "k3": gettext_noop("k3: unbiased, never negative"),
}
"""Estimates of a token's KL, from the one token that was drawn: ml/policy_gradients.py."""
SCALINGS = {
    "reference": gettext_noop("mean 0, deviation 1 on the start's responses"),
    "batch": gettext_noop("divided by the deviation of each step's scores"),
    "none": gettext_noop("as the reward model says"),
}
FALLS, UNCONFIRMED, TOO_FAR, REPEATS = "falls", "unconfirmed", "too_far", "repeats"
ALARMS = {
    FALLS: gettext_noop("the hold-out falls while the score rises"),
    UNCONFIRMED: gettext_noop("the hold-out does not rise with the score"),
    TOO_FAR: gettext_noop("KL exceeds its budget"),
    REPEATS: gettext_noop("responses repeat themselves"),
}
"""What stops or pauses a run of PPO: ml/monitors.py."""
ON_ALARM = {
    "stop": gettext_noop("stop, and keep the best weights"),
    "pause": gettext_noop("pause until somebody resumes the run"),
    "note": gettext_noop("note it in the log, and go on"),
}
ROPE_SCALINGS = {
    "none": gettext_noop("as the model is"),
    "linear": gettext_noop("linear: positions closer together"),
    "yarn": gettext_noop("YaRN: fine differences kept"),
}


def names_in(text: str) -> list[str]:
    """The names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _setting(default: Any, text: str, choices: Mapping[str, str] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What every recipe decides: how the base is adapted, the steps, the seed."""

    base_model: str
    """Hub id or local folder of the model that the run begins with."""
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
        32,
        gettext_noop(
            "Scale of the adapters: what they learned counts alpha / rank times, in rsLoRA "
            "alpha / √rank."
        ),
    )
    lora_dropout: float = _setting(
        0.0,
        gettext_noop(
            "Share of the adapters' inputs that is hidden while training, against over-fitting."
        ),
    )
    target_modules: str = _setting(
        "all-linear",
        gettext_noop(
            "Layers that are adapted: all-linear, names as q_proj,v_proj, or patterns as "
            "layers.1?.*.q_proj or mlp.*"
        ),
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
    rope_scaling: str = _setting(
        "none",
        gettext_noop("A longer context than the base was made for, by scaling its positions."),
        ROPE_SCALINGS,
    )
    rope_factor: float = _setting(2.0, gettext_noop("How many times the context is stretched."))
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test pairs; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, dropout."))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class _Rows(_Shared):
    """What recipes decide besides that learn from rows fixed beforehand: which of them share a
    step, and by which of them the best weights are chosen."""

    batch_tokens: int = _setting(
        0,
        gettext_noop(
            "Tokens held in memory at once, padding included, however many rows that are; 0: "
            "batch_size rows. A step learns the same rows either way."
        ),
    )
    group_by_length: bool = _setting(
        True, gettext_noop("Rows of like length share a step, so that less padding is computed.")
    )
    validation_share: float = _setting(
        0.0,
        gettext_noop(
            "Share of the training prompts kept apart to choose the best weights by; what is held "
            "out as test chooses nothing."
        ),
    )
    early_stopping: int = _setting(
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
class _Pairs(_Rows):
    """What recipes on pairs decide besides."""

    label_smoothing: float = _setting(
        0.0, gettext_noop("Share of the labels taken to be wrong, below 0.5; 0 trusts them all.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError("label_smoothing must lie in [0, 0.5)")


@dataclass(frozen=True, kw_only=True)
class RewardRecipe(_Pairs):
    """Everything that decides a reward-model run."""

    base_model: str
    """Hub id or local folder of a causal language model; its head is replaced by a score."""
    loss: str = _setting(
        "pairs",
        gettext_noop(
            "What is learned from the labels. Margins and strengths want hard labels, and answers "
            "with a strength."
        ),
        REWARD_LOSSES,
    )
    margin_size: float = _setting(
        1.0,
        gettext_noop(
            "Distance in reward that the strongest preference is to keep, weaker ones a part of it "
            "(Llama 2: 1 or 3)."
        ),
    )
    rating_of: str = _setting(
        "strength",
        gettext_noop("Ratings: from the strength of preferences, or the name of an aspect."),
    )
    soft_labels: str = _setting(
        "kept", gettext_noop("What becomes of a label that is not certain."), SOFT_LABELS
    )
    length_debias: bool = _setting(
        False,
        gettext_noop(
            "A logistic regression on length explains what it can of the labels first; the rewards "
            "learn the rest."
        ),
    )
    members: int = _setting(
        1,
        gettext_noop(
            "Reward models beside one base, each with its own seed: the mean is the reward, the "
            "spread its doubt."
        ),
    )
    dtype: str = _setting(
        "auto", gettext_noop("Number format of the base; adapters and head are float32.")
    )
    epochs: float = _setting(
        1.0, gettext_noop("Passes over the training pairs; reward models over-fit soon.")
    )
    center_rewards: float = _setting(
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
class DPORecipe(_Pairs):
    """Everything that decides a DPO run."""

    base_model: str
    """Where the policy starts and, with the adapter off, the reference model."""
    loss: str = _setting("sigmoid", gettext_noop("What is learned from the labels."), POLICY_LOSSES)
    beta: float = _setting(
        0.1,
        gettext_noop(
            "Pull towards the reference model; larger stays closer (Rafailov et al. 2023, eq. 7)."
        ),
    )
    label_smoothing: float = _setting(
        0.0,
        gettext_noop(
            "Share of the labels taken to be wrong, below 0.5: conservative DPO; with the robust "
            "loss its ε."
        ),
    )
    simpo_gamma: float = _setting(
        1.0, gettext_noop("SimPO: distance that β · mean log-probability is to keep.")
    )
    orpo_weight: float = _setting(0.1, gettext_noop("ORPO: weight of the odds beside imitation."))
    length_charge: float = _setting(
        0.01, gettext_noop("R-DPO: what a token more costs, in units of β · log-ratio.")
    )
    kto_desirable: float = _setting(1.0, gettext_noop("KTO: weight of good responses."))
    kto_undesirable: float = _setting(1.0, gettext_noop("KTO: weight of bad responses."))
    group_by_length: bool = _setting(
        False,
        gettext_noop(
            "Pairs of like length share a step: less padding, but steps that push harder at the "
            "same learning rate."
        ),
    )
    precompute_reference: bool = _setting(
        True,
        gettext_noop(
            "Ask the reference model once, before the first step, and keep its numbers with the "
            "run: less memory, and one forward pass less in each step."
        ),
    )
    learning_rate: float = _setting(
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
class SFTRecipe(_Rows):
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
    epochs: float = _setting(1.0, gettext_noop("Passes over the responses."))
    batch_size: int = _setting(
        8,
        gettext_noop("Conversations held in memory at once; with packing, rows of them."),
    )
    eval_every: int = _setting(
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
class PretrainRecipe(_Rows):
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
    learning_rate: float = _setting(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    epochs: float = _setting(1.0, gettext_noop("Passes over the texts."))
    batch_size: int = _setting(
        8, gettext_noop("Pieces of text held in memory at once; with packing, rows of them.")
    )
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Texts of more tokens, or beyond the model's context, become several pieces; nothing "
            "of them is lost."
        ),
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test texts; 0: ten in a run.")
    )
    validation_share: float = _setting(
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


@dataclass(frozen=True, kw_only=True)
class PPORecipe:
    """Everything that decides a run of PPO, RLOO, GRPO or online DPO."""

    base_model: str
    """Where the policy starts, and what it is held near: a base, or the folder of an adapter."""
    reward_models: str = _setting(
        "",
        gettext_noop("What scores the responses; several reward models guard against gaps of one."),
    )
    algorithm: str = _setting(
        "ppo",
        gettext_noop("How a token's worth is told. RLOO and GRPO need no critic."),
        ALGORITHMS,
    )
    combine: str = _setting(
        "mean",
        gettext_noop(
            "One score of several reward models: mean, worst, or uncertainty: mean less their "
            "variance (Coste et al. 2024)."
        ),
        COMBINED,
    )
    uncertainty_weight: float = _setting(
        1.0, gettext_noop("Weight of the variance under uncertainty.")
    )
    judge_model: str = _setting(
        "",
        gettext_noop(
            "A language model of the project that rates every response from 1 to 9, beside the "
            "reward models or instead of them (direct RLAIF)."
        ),
    )
    judge_guidelines: str = _setting(
        "", gettext_noop("What it is told to look at, in a sentence or two.")
    )
    holdout_reward_model: str = _setting(
        "",
        gettext_noop(
            "A reward model of another seed, or better of other labels, that the policy never "
            "learns from: it watches for rewards that rise in name alone."
        ),
    )
    method: str = _setting("lora", gettext_noop("LoRA, or a kin of it; QLoRA: base in 4 bits."))
    lora_rank: int = _setting(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = _setting(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: ClassVar[float] = 0.0
    """Not to be set: the policy that learns must be the one that sampled."""
    rope_scaling: ClassVar[str] = "none"
    """Not to be set: the positions are those of the start."""
    target_modules: str = _setting(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    train_norms: bool = _setting(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = _setting("auto", gettext_noop("Number format of the base; adapters are float32."))
    steps: int = _setting(100, gettext_noop("Rounds of sampling and learning."))
    prompts_per_step: int = _setting(64, gettext_noop("Prompts that each round answers."))
    samples_per_prompt: int = _setting(
        1, gettext_noop("Responses to each of them; RLOO and GRPO compare at least two.")
    )
    max_new_tokens: int = _setting(128, gettext_noop("Longest response, in tokens."))
    temperature: float = _setting(
        1.0, gettext_noop("Of sampling, and of every log-probability of the run.")
    )
    max_length: int = _setting(
        1024,
        gettext_noop(
            "Prompts that leave no room for a response within this, or within the model's context, "
            "are left out and counted."
        ),
    )
    learning_rate: float = _setting(5e-5, gettext_noop("Highest step size of the policy."))
    critic_learning_rate: float = _setting(1e-4, gettext_noop("Highest step size of the critic."))
    scheduler: str = _setting("linear", gettext_noop("How the step sizes fall."))
    warmup_share: float = _setting(
        0.05, gettext_noop("Share of the steps in which the step sizes rise.")
    )
    weight_decay: float = _setting(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = _setting(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    critic_warmup: int = _setting(0, gettext_noop("First rounds in which the critic alone learns."))
    epochs: int = _setting(2, gettext_noop("Passes over the responses of a round."))
    minibatches: int = _setting(4, gettext_noop("Steps of the optimizer in a pass."))
    batch_size: int = _setting(
        8, gettext_noop("Responses in memory at once while learning; any number, same gradient.")
    )
    rollout_batch_size: int = _setting(
        64, gettext_noop("Responses in memory at once while sampling and scoring.")
    )
    kl: str = _setting(
        "k1", gettext_noop("Estimate of the KL to the start: k1, k2 or k3 (Schulman 2020)."), KLS
    )
    kl_coefficient: float = _setting(
        0.05, gettext_noop("Price of a nat of KL to the start, in units of the reward.")
    )
    kl_target: float = _setting(
        0.0,
        gettext_noop("KL of a response, in nats, that the price is adapted to; 0: price is fixed."),
    )
    kl_horizon: float = _setting(
        1000.0, gettext_noop("Responses in which an adapted price moves by a fifth.")
    )
    gamma: float = _setting(1.0, gettext_noop("Worth of a reward one token later."))
    gae_lambda: float = _setting(
        0.95, gettext_noop("Trust in the rewards that came (1) or in the critic (0).")
    )
    whiten_advantages: bool = _setting(
        True, gettext_noop("Bring PPO's advantages to mean 0 and deviation 1.")
    )
    clip: float = _setting(
        0.2, gettext_noop("Most that a token's probability may gain by one round, as a ratio − 1.")
    )
    value_clip: float = _setting(
        0.2, gettext_noop("The same for the critic's values; 0 does not clip.")
    )
    stop_kl: float = _setting(
        0.0,
        gettext_noop(
            "No further pass once a token's KL to the round's start exceeds this; 0: off."
        ),
    )
    reward_scaling: str = _setting(
        "reference", gettext_noop("Scale of the scores, for each reward model."), SCALINGS
    )
    reward_clip: float = _setting(
        0.0, gettext_noop("Scores beyond ± this count as this; 0 does not clip.")
    )
    missing_end_penalty: float = _setting(
        1.0, gettext_noop("Taken from the score of a response that does not come to an end.")
    )
    on_alarm: str = _setting(
        "stop",
        gettext_noop(
            "What follows when the hold-out falls while the score rises, KL exceeds its budget, or "
            "responses repeat themselves."
        ),
        ON_ALARM,
    )
    kl_budget: float = _setting(
        0.0,
        gettext_noop("KL of a response on test prompts, in nats, that is an alarm; 0: any may be."),
    )
    test_prompts: int = _setting(
        256, gettext_noop("Test prompts that are answered at every measurement, at most.")
    )
    gradient_checkpointing: bool = _setting(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test prompts; 0: ten in a run.")
    )
    checkpoint_every: int = _setting(0, gettext_noop("Steps between checkpoints; 0: ten in a run."))
    seed: int = _setting(0, gettext_noop("Same seed, same numbers: order, new weights, samples."))

    def __post_init__(self) -> None:
        check_choices(self)
        counted = ["lora_rank", "lora_alpha", "steps", "prompts_per_step", "samples_per_prompt"]
        counted += ["max_new_tokens", "max_length", "epochs", "minibatches", "batch_size"]
        counted += ["test_prompts"]
        for name in (*counted, "rollout_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        rates = ("learning_rate", "critic_learning_rate", "temperature", "max_grad_norm")
        for name in (*rates, "kl_horizon", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0")
        amounts = [
            "kl_coefficient",
            "kl_target",
            "value_clip",
            "stop_kl",
            "reward_clip",
            "kl_budget",
        ]
        amounts += ["missing_end_penalty", "uncertainty_weight", "weight_decay", "critic_warmup"]
        for name in (*amounts, "eval_every", "checkpoint_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]")
        if not 0 <= self.warmup_share < 1:
            raise ValueError("warmup_share must lie in [0, 1)")
        if self.algorithm != "ppo" and self.samples_per_prompt < 2:
            raise ValueError(f"samples_per_prompt must be at least 2: {self.algorithm} compares")
        n_rows = self.prompts_per_step * self.samples_per_prompt
        if n_rows < self.minibatches:
            raise ValueError(
                f"minibatches: {n_rows} responses a step cannot be {self.minibatches} of them"
            )
        for name in ("lora_rank", "seed", "steps", "prompts_per_step", "samples_per_prompt"):
            if getattr(self, name) >= 2**31:  # columns of the database hold no more
                raise ValueError(f"{name} must be below {2**31}")
        if not targets(self):
            raise ValueError("target_modules names no layer; write all-linear or names of layers")

    @property
    def folders(self) -> list[str]:
        """The reward models' folders, or their names in a project."""
        return names_in(self.reward_models)


@dataclass(frozen=True, kw_only=True)
class QuietStarRecipe(_Shared):
    """Everything that decides a run of Quiet-STaR: raw text, and a thought after every token of it
    (Zelikman et al. 2024, arXiv:2403.09629). Experimental, for small models and short texts."""

    base_model: str
    """Where the policy starts."""
    text: str
    """Name of a .txt or .jsonl file."""
    test_share: float = 0.1
    """Share of the texts kept for measuring."""
    thought_length: int = _setting(
        4, gettext_noop("Tokens of a thought, its two marks not counted: each costs a whole text.")
    )
    n_thoughts: int = _setting(
        2, gettext_noop("Thoughts drawn after each token; a thought is held against their mean.")
    )
    true_tokens: int = _setting(
        2, gettext_noop("Tokens of the text that a thought has to make likelier.")
    )
    policy_weight: float = _setting(
        1.0,
        gettext_noop(
            "Weight of REINFORCE in the loss: 0 learns to use thoughts, not what to think."
        ),
    )
    plain_weight: float = _setting(
        1.0,
        gettext_noop(
            "Weight of the loss without thoughts, which keeps the model good with thoughts off."
        ),
    )
    only_helpful: bool = _setting(
        True, gettext_noop("Learn from thoughts better than the mean alone, which is steadier.")
    )
    start_like: str = _setting(
        "---", gettext_noop("Words that the mark before a thought starts out as.")
    )
    end_like: str = _setting(
        "---", gettext_noop("Words that the mark behind a thought starts out as.")
    )
    mark_speed: float = _setting(
        10.0, gettext_noop("How many times faster the two marks are learned than other weights.")
    )
    first_mixing: float = _setting(
        0.1, gettext_noop("Mixing weight of a thought before anything is learned.")
    )
    learning_rate: float = _setting(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    epochs: float = _setting(1.0, gettext_noop("Passes over the texts."))
    batch_size: int = _setting(
        8, gettext_noop("Pieces of text held in memory at once, each with all its thoughts.")
    )
    max_length: int = _setting(
        128,
        gettext_noop(
            "Texts of more tokens, or beyond the model's context, become several pieces; nothing "
            "of them is lost."
        ),
    )
    eval_every: int = _setting(
        0, gettext_noop("Steps between measurements on test texts; 0: ten in a run.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_share < 1:
            raise ValueError("test_share must lie between 0 and 1")
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token is told from another")
        for name, least, most in (
            ("thought_length", 1, 64),
            ("n_thoughts", 2, 16),
            ("true_tokens", 1, 64),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between {least} and {most}")
        for name in ("policy_weight", "plain_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")
        if not 0 < self.mark_speed < math.inf:
            raise ValueError("mark_speed must be above 0")
        if not 0 < self.first_mixing < 1:
            raise ValueError("first_mixing must lie between 0 and 1")
        for name in ("start_like", "end_like"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name some words")

    @property
    def blocks(self) -> int:
        """Places of a column: its token, the thought between its marks, true tokens behind it."""
        return self.thought_length + 2 + self.true_tokens


TextRecipe = PretrainRecipe | QuietStarRecipe
"""Recipes that read a file of raw text, and no labels."""
ON_TEXTS = ("pretrain", "quiet_star")
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
    everyones = {setting.name for setting in fields(_Pairs)} - {"base_model"}
    return [f for f in found if f.name not in everyones] + [f for f in found if f.name in everyones]


def check_choices(recipe: "_Shared | PPORecipe") -> None:
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


def check(recipe: _Shared) -> None:
    """Raises: ValueError naming the first setting that makes no sense."""
    check_choices(recipe)
    if not 1 < recipe.rope_factor <= 64:
        raise ValueError("rope_factor must lie above 1, up to 64")
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


def check_rows(recipe: _Rows) -> None:
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


def targets(recipe: _Shared | PPORecipe) -> str | list[str]:
    """The layers that are adapted: "all-linear" or a list of names and patterns, see is_target."""
    names = names_in(recipe.target_modules)
    return "all-linear" if names == ["all-linear"] else names


def texts_in_a_row(recipe: _Shared) -> int:
    """Texts that pass through the model for a row that is learned: a pair's two responses, or
    KTO's response and the one to another prompt; else one."""
    return 2 if isinstance(recipe, _Pairs) else 1


def token_budget(recipe: _Shared) -> int:
    """Tokens that pass through the model together, or 0 where rows are counted."""
    return recipe.batch_tokens if isinstance(recipe, _Rows) else 0


def is_target(layer: str, wanted: str | list[str]) -> bool:
    """Whether a layer, by its path such as layers.3.self_attn.q_proj, is among the targets.

    A name or a pattern (* for anything, ? for a character, [ab] for one of some) stands for every
    layer whose path ends like it: "q_proj", "mlp.*", "layers.[0-3].*".
    """
    if isinstance(wanted, str):
        return True
    return any(fnmatchcase(f".{layer}", f"*.{end}") for end in wanted)


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
