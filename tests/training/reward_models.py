"""Reward models without training: random adapters and heads, so that every weight counts."""

from pathlib import Path

import torch

from training.ml.adapting import adapted, save_model
from training.ml.config import RewardRecipe
from training.ml.loading import load_scorer, load_tokenizer


def save_reward_model(base: str, folder: Path, *, seed: int = 0, method: str = "lora") -> str:
    """A reward model's folder, as a run leaves it."""
    recipe = RewardRecipe(base_model=base, method=method, lora_rank=4, dtype="float32")
    torch.manual_seed(seed)
    model = adapted(load_scorer(base, method=method, dtype="float32"), recipe, task="SEQ_CLS")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            parameter.data = 0.3 * torch.randn_like(parameter.data.float())
        elif parameter.requires_grad:
            parameter.data = 1 + 0.1 * torch.randn_like(parameter.data.float())
    save_model(model, recipe, folder)
    load_tokenizer(base).save_pretrained(folder / "model")
    return str(folder / "model")
