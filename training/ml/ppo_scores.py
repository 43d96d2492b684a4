"""What a policy's responses are worth: each scorer's numbers, and the one score of them."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor

from training.ml.data import Messages, chat_tokens
from training.ml.loading import load_reward_model, member_folders
from training.ml.policy_gradients import combined_scores
from training.ml.ppo_config import PPORecipe
from training.ml.roles import Roles, can_share, reward_role, rewards

RewardFunction = Callable[[Sequence[Messages], Sequence[str]], Sequence[float]]
"""Prompts and responses to numbers, higher being better; it may not depend on chance."""


class Scorer:
    """What scores responses: reward models on the shared base, others beside it, a function. Every
    member of an ensemble is a scorer of its own."""

    def __init__(
        self,
        recipe: PPORecipe,
        folders: Sequence[str],
        reward: RewardFunction | None = None,
        *,
        first: int = 0,
    ) -> None:
        """Args: first: the place among the roles' reward models that the shared ones begin at."""
        fits = {n: can_share(n, recipe.base_model, recipe.method) for n in folders}
        self.shared = [
            str(place)
            for name, fit in fits.items()
            if fit
            for place in (name, *member_folders(name))
        ]
        self.others = [
            load_reward_model(name, dtype=recipe.dtype) for name, fit in fits.items() if not fit
        ]
        self.reward, self.recipe, self.first = reward, recipe, first
        self.n = len(fits) + (reward is not None)

    def scores(
        self, roles: Roles, tokenizer: Any, prompts: Sequence[Messages], texts: Sequence[str]
    ) -> Tensor:
        """(scorers, rows), in float32 on the CPU.

        A conversation is read as the text it is, through the chat template: so the reward models
        learned, and so people see it.
        """
        recipe = self.recipe
        talks = [
            [*prompt, {"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found = []
        if self.shared:
            rows = [chat_tokens(tokenizer, talk) for talk in talks]
            begins = shared_beginnings(prompts, rows)
            order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
            scores = torch.zeros(len(self.shared), len(rows))
            for start in range(0, len(rows), recipe.rollout_batch_size):
                places = order[start : start + recipe.rollout_batch_size]
                part = [rows[place] for place in places]
                shared = [begins[place] for place in places]
                for model in range(len(self.shared)):
                    role = reward_role(self.first + model)
                    told = rewards(roles, role, part, tokenizer.pad_token_id, shared)
                    scores[model, places] = told.float().cpu()
            found.append(scores)
        if self.others:
            # Brings TRL, which PPO does without.
            from training.ml.reward_model import score_members

            for model, theirs in self.others:
                alone = score_members(
                    model,
                    theirs,
                    talks,
                    batch_size=recipe.rollout_batch_size,
                    dtype=recipe.dtype,
                )
                found.append(torch.tensor(alone).T)
        if self.reward is not None:
            numbers = [float(number) for number in self.reward(prompts, texts)]
            if len(numbers) != len(texts) or not all(map(math.isfinite, numbers)):
                raise ValueError("the reward function must give one number for each response")
            found.append(torch.tensor([numbers]))
        return torch.cat(found)


def shared_beginnings(prompts: Sequence[Messages], rows: Sequence[list[int]]) -> list[int]:
    """How many first tokens each row shares with the others to its prompt, which stand beside it;
    0 of a prompt that was answered once."""
    found = []
    for _prompt, group in groupby(range(len(rows)), key=lambda place: prompts[place]):
        beside = [rows[place] for place in group]
        alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*beside, strict=False))
        common = sum(1 for _ in alike) if len(beside) > 1 else 0
        found += [min(common, *(len(row) - 1 for row in beside))] * len(beside)
    return found


def reference_scale(recipe: PPORecipe, raw: Tensor) -> list[tuple[float, float]]:
    """(mean, deviation) of each scorer on responses of the reference; (0, 1) if not wanted."""
    if recipe.reward_scaling != "reference":
        return [(0.0, 1.0)] * len(raw)
    return scale_of(raw)


def scale_of(raw: Tensor) -> list[tuple[float, float]]:
    """(mean, deviation) of each scorer; (0, 1) from a single response."""
    if raw.shape[1] < 2:
        return [(0.0, 1.0)] * len(raw)
    return [(float(row.mean()), max(float(row.std()), 1e-4)) for row in raw]


def on_scale(raw: Tensor, scale: Sequence[tuple[float, float]]) -> Tensor:
    """Each scorer's numbers on its scale, (scorers, rows)."""
    means, deviations = torch.tensor(scale).unbind(dim=1)
    return (raw - means[:, None]) / deviations[:, None]


def one_score(recipe: PPORecipe, raw: Tensor, scale: Sequence[tuple[float, float]]) -> Tensor:
    """One score a response: each scorer on its scale, combined, bounded: (rows,)."""
    scores = combined_scores(on_scale(raw, scale), recipe.combine, recipe.uncertainty_weight)
    if recipe.reward_scaling == "batch" and len(scores) > 1:
        scores = scores / max(float(scores.std()), 1e-4)  # the mean stays: it is the price of KL
    return scores.clamp(-recipe.reward_clip, recipe.reward_clip) if recipe.reward_clip else scores


def penalised(recipe: PPORecipe, scores: Tensor, finished: Sequence[bool]) -> Tensor:
    missing = torch.tensor([not ended for ended in finished], dtype=scores.dtype)
    return scores - recipe.missing_end_penalty * missing


def best_and_worst(scores: Tensor, k: int) -> list[int]:
    """Rows of the best and the worst of every k responses; none of a prompt where all are alike."""
    rows = []
    for first in range(0, len(scores), k):
        group = scores[first : first + k]
        if group.max() > group.min():
            rows += [first + int(group.argmax()), first + int(group.argmin())]
    return rows
