"""The recipe of PPO, RLOO, GRPO and online DPO, and what its settings may be."""

import math
from dataclasses import dataclass
from typing import ClassVar

from training.ml.settings import check_choices, explained, gettext_noop, names_in, targets

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
    FALLS: gettext_noop("the careful score falls while the score rises"),
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
GENERATIONS = {
    "own": gettext_noop("this process, in batches"),
    "vllm": gettext_noop("the vLLM server that an administrator has named, handed the weights"),
}


@dataclass(frozen=True, kw_only=True)
class PPORecipe:
    """Everything that decides a run of PPO, RLOO, GRPO or online DPO."""

    base_model: str
    """Where the policy starts, and what it is held near: a base, or the folder of an adapter."""
    reward_models: str = explained(
        "",
        gettext_noop("What scores the responses; several reward models guard against gaps of one."),
    )
    algorithm: str = explained(
        "ppo",
        gettext_noop("How a token's worth is told. RLOO and GRPO need no critic."),
        ALGORITHMS,
    )
    combine: str = explained(
        "mean",
        gettext_noop(
            "One score of several reward models: mean, worst, or uncertainty: mean less their "
            "variance (Coste et al. 2024)."
        ),
        COMBINED,
    )
    uncertainty_weight: float = explained(
        1.0, gettext_noop("Weight of the variance under uncertainty.")
    )
    judge_model: str = explained(
        "",
        gettext_noop(
            "A language model of the project that rates every response from 1 to 9, beside the "
            "reward models or instead of them (direct RLAIF)."
        ),
    )
    judge_guidelines: str = explained(
        "", gettext_noop("What it is told to look at, in a sentence or two.")
    )
    judge: str = explained(
        "",
        gettext_noop(
            "A judge of the project that rates each response by itself, on a server or here, with "
            "its own words; beside the reward models or instead of them (direct RLAIF)."
        ),
    )
    judge_tokens: int = explained(
        0, gettext_noop("Tokens that the judge's server may be asked for; 0: no limit.")
    )
    judge_cost: float = explained(
        0.0, gettext_noop("What the judge may cost, in its server's currency; 0: no limit.")
    )
    holdout_reward_model: str = explained(
        "",
        gettext_noop(
            "A reward model of another seed, or better of other labels, that the policy never "
            "learns from: it watches for rewards that rise in name alone."
        ),
    )
    method: str = explained("lora", gettext_noop("LoRA, or a kin of it; QLoRA: base in 4 bits."))
    lora_rank: int = explained(
        16, gettext_noop("Width of the adapters: higher learns more and costs more memory.")
    )
    lora_alpha: int = explained(
        32, gettext_noop("Scale of the adapters; their effect is alpha / rank.")
    )
    lora_dropout: ClassVar[float] = 0.0
    """Not to be set: the policy that learns must be the one that sampled."""
    rope_scaling: ClassVar[str] = "none"
    """Not to be set: the positions are those of the start."""
    target_modules: str = explained(
        "all-linear",
        gettext_noop("Layers that get adapters: all-linear, or names such as q_proj,v_proj."),
    )
    train_norms: bool = explained(True, gettext_noop("Train the norm layers too, kept in float32."))
    dtype: str = explained("auto", gettext_noop("Number format of the base; adapters are float32."))
    generation: str = explained(
        "own", gettext_noop("Who writes the responses while it learns."), GENERATIONS
    )
    steps: int = explained(100, gettext_noop("Rounds of sampling and learning."))
    prompts_per_step: int = explained(64, gettext_noop("Prompts that each round answers."))
    samples_per_prompt: int = explained(
        1, gettext_noop("Responses to each of them; RLOO and GRPO compare at least two.")
    )
    max_new_tokens: int = explained(128, gettext_noop("Longest response, in tokens."))
    temperature: float = explained(
        1.0, gettext_noop("Of sampling, and of every log-probability of the run.")
    )
    max_length: int = explained(
        1024,
        gettext_noop(
            "Prompts that leave no room for a response within this, or within the model's context, "
            "are left out and counted."
        ),
    )
    learning_rate: float = explained(5e-5, gettext_noop("Highest step size of the policy."))
    critic_learning_rate: float = explained(1e-4, gettext_noop("Highest step size of the critic."))
    scheduler: str = explained("linear", gettext_noop("How the step sizes fall."))
    warmup_share: float = explained(
        0.05, gettext_noop("Share of the steps in which the step sizes rise.")
    )
    weight_decay: float = explained(0.0, gettext_noop("Pull of the trained weights towards zero."))
    max_grad_norm: float = explained(
        1.0, gettext_noop("Gradients longer than this are shortened to it.")
    )
    critic_warmup: int = explained(
        0, gettext_noop("First rounds in which the critic alone learns.")
    )
    epochs: int = explained(2, gettext_noop("Passes over the responses of a round."))
    minibatches: int = explained(4, gettext_noop("Steps of the optimizer in a pass."))
    batch_size: int = explained(
        8, gettext_noop("Responses in memory at once while learning; any number, same gradient.")
    )
    rollout_batch_size: int = explained(
        64, gettext_noop("Responses in memory at once while sampling and scoring.")
    )
    kl: str = explained(
        "k1", gettext_noop("Estimate of the KL to the start: k1, k2 or k3 (Schulman 2020)."), KLS
    )
    kl_coefficient: float = explained(
        0.05, gettext_noop("Price of a nat of KL to the start, in units of the reward.")
    )
    kl_target: float = explained(
        0.0,
        gettext_noop("KL of a response, in nats, that the price is adapted to; 0: price is fixed."),
    )
    kl_horizon: float = explained(
        1000.0, gettext_noop("Responses in which an adapted price moves by a fifth.")
    )
    gamma: float = explained(1.0, gettext_noop("Worth of a reward one token later."))
    gae_lambda: float = explained(
        0.95, gettext_noop("Trust in the rewards that came (1) or in the critic (0).")
    )
    whiten_advantages: bool = explained(
        True, gettext_noop("Bring PPO's advantages to mean 0 and deviation 1.")
    )
    clip: float = explained(
        0.2, gettext_noop("Most that a token's probability may gain by one round, as a ratio − 1.")
    )
    value_clip: float = explained(
        0.2, gettext_noop("The same for the critic's values; 0 does not clip.")
    )
    stop_kl: float = explained(
        0.0,
        gettext_noop(
            "No further pass once a token's KL to the round's start exceeds this; 0: off."
        ),
    )
    reward_scaling: str = explained(
        "reference", gettext_noop("Scale of the scores, for each reward model."), SCALINGS
    )
    reward_clip: float = explained(
        0.0, gettext_noop("Scores beyond ± this count as this; 0 does not clip.")
    )
    missing_end_penalty: float = explained(
        1.0, gettext_noop("Taken from the score of a response that does not come to an end.")
    )
    on_alarm: str = explained(
        "stop",
        gettext_noop(
            "What follows when the careful score falls while the score rises, the hold-out does "
            "not rise with it, KL exceeds its budget, or responses repeat themselves."
        ),
        ON_ALARM,
    )
    kl_budget: float = explained(
        0.0,
        gettext_noop(
            "KL of a response on test prompts, in nats, that is an alarm; 0: any may be. Give one "
            "where the price of KL is near zero: 2 is a beginning."
        ),
    )
    doubt: float = explained(
        0.05,
        gettext_noop(
            "Share of the start's responses that hold so unlikely a token. One that holds a less "
            "likely token is language that reward models know too little of: the careful score "
            "counts it as one of this worst share of the start's. 0: every score is taken at its "
            "word, as those of functions are."
        ),
    )
    test_prompts: int = explained(
        256, gettext_noop("Test prompts that are answered at every measurement, at most.")
    )
    gradient_checkpointing: bool = explained(
        False, gettext_noop("Less memory, about a quarter slower.")
    )
    eval_every: int = explained(
        0, gettext_noop("Steps between measurements on test prompts; 0: ten in a run.")
    )
    checkpoint_every: int = explained(
        0, gettext_noop("Steps between checkpoints; 0: ten in a run.")
    )
    seed: int = explained(0, gettext_noop("Same seed, same numbers: order, new weights, samples."))

    def __post_init__(self) -> None:
        check_choices(self)
        counted = ["lora_rank", "lora_alpha", "steps", "prompts_per_step", "samples_per_prompt"]
        counted += ["max_new_tokens", "max_length", "epochs", "minibatches", "batch_size"]
        counted += ["test_prompts"]
        for name in (*counted, "rollout_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
            if getattr(self, name) >= 2**31:
                raise ValueError(f"{name} must be at most {2**31 - 1}")
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
        amounts += ["judge_tokens", "judge_cost"]
        for name in (*amounts, "eval_every", "checkpoint_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")
        if not 0 <= self.doubt < 1:
            raise ValueError("doubt must lie in [0, 1)")
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
        if self.generation == "vllm" and self.method == "dora":
            raise ValueError("generation: a vLLM server takes no adapters of DoRA")
        if self.generation == "vllm" and self.train_norms:
            raise ValueError(
                "generation: a vLLM server takes adapters of LoRA alone; set train_norms=false"
            )
        if self.judge and self.judge_model:
            raise ValueError("judge_model: name a judge of the project or a model, not both")

    @property
    def folders(self) -> list[str]:
        """The reward models' folders, or their names in a project."""
        return names_in(self.reward_models)
