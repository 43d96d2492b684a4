"""Held-out pairs under a trained model: its rewards, or how far it moved log-probabilities."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from training.ml.config import AnyRecipe, DPORecipe
from training.ml.data import (
    Messages,
    Pair,
    TokenPair,
    chat_tokens,
    tokenize_pairs,
)
from training.ml.dpo import implicit_rewards, pair_logps
from training.ml.generation import sample
from training.ml.loading import (
    adapter_base,
    is_learned_prompt,
    load_causal,
    load_policy,
    load_reward_model,
    load_tokenizer,
    longest_allowed,
    made_by,
    rope_of,
)
from training.ml.peaks import give_memory_back
from training.ml.reward_model import score_members

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ScoredPair:
    """A pair with a number for either side: a reward; of a policy the implicit one."""

    pair: Pair
    chosen: float
    rejected: float
    spread: float | None = None
    """Of an ensemble the standard deviation of the margin over its members."""
    moved: tuple[float, float] | None = None
    """Of a policy log π/π_base of both, in nats."""


def fitting(pairs: Sequence[Pair], tokenizer: Any, max_length: int) -> list[tuple[Pair, TokenPair]]:
    """The pairs that the recipe could train on, with their tokens, longest first."""
    kept = [
        (pair, tokens)
        for pair in pairs
        for tokens in tokenize_pairs([pair], tokenizer, max_length)[0]
    ]
    return sorted(kept, key=lambda both: both[1].n_tokens, reverse=True)


def rewards(
    folder: str | Path,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    batch_size: int,
    dtype: str = "auto",
    on_progress: OnProgress = lambda done, total: None,
) -> list[ScoredPair]:
    """The rewards that a saved reward model gives both responses of each pair, longest first; pairs
    that are too long or without text are left out.

    Raises: ModelMissing.
    """
    model, tokenizer = load_reward_model(folder, dtype=dtype)
    limit = longest_allowed(str(folder), max_length)
    kept = fitting(pairs, tokenizer, limit)
    found = []
    for start in range(0, len(kept), batch_size):
        part = [pair for pair, _tokens in kept[start : start + batch_size]]
        sides = [pair.prompt + side for pair in part for side in (pair.chosen, pair.rejected)]
        numbers = score_members(model, tokenizer, sides, batch_size=2 * batch_size, dtype=dtype)
        found += [
            ScoredPair(pair, fmean(chosen), fmean(rejected), _spread(chosen, rejected))
            for pair, chosen, rejected in zip(part, numbers[::2], numbers[1::2], strict=True)
        ]
        on_progress(start + len(part), len(kept))
    return found


def _spread(chosen: Sequence[float], rejected: Sequence[float]) -> float | None:
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    return stdev(margins) if len(margins) > 1 else None


@dataclass(frozen=True)
class Written:
    """What a policy and its base answer to a prompt that neither was trained on here."""

    prompt: Messages
    policy: str
    base: str


def against_base(
    folder: str | Path,
    base: str,
    recipe: AnyRecipe,
    pairs: Sequence[Pair],
    prompts: Sequence[Messages],
    *,
    new_tokens: int,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[list[ScoredPair], list[Written]]:
    """How far a saved policy moved the pairs' responses from its base, and what both of them write.

    The implicit reward of a response is that of the run's loss, or without one log π/π_base.

    Policy and base are loaded one after the other, so that one model is in memory at a time; a base
    that a QLoRA run held in 4 bits is held so again.

    Raises: ModelMissing.
    """
    tokenizer = load_tokenizer(str(folder))
    kept = fitting(pairs, tokenizer, longest_allowed(str(folder), recipe.max_length))
    batch_size = recipe.batch_size
    room = longest_allowed(str(folder), 1 << 20) - new_tokens
    asked = [p for p in prompts if len(chat_tokens(tokenizer, p, open_answer=True)) <= room]
    total = 2 * (len(kept) + len(asked))
    done = 0
    logps: list[list[tuple[float, float]]] = []
    texts: list[list[str]] = []
    for model in _policy_then_base(str(folder), base, recipe.dtype):
        now: list[tuple[float, float]] = []
        for start in range(0, len(kept), batch_size):
            tokens = [row for _pair, row in kept[start : start + batch_size]]
            now += pair_logps(model, tokenizer, tokens, recipe.dtype)
            done += len(tokens)
            on_progress(done, total)
        logps.append(now)
        said: list[str] = []
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            said += sample(
                model,
                tokenizer,
                part,
                max_new_tokens=new_tokens,
                seed=recipe.seed + start,
                batch_size=batch_size,
            )
            done += len(part)
            on_progress(done, total)
        texts.append(said)
        del model
        give_memory_back()
    scored = [
        ScoredPair(pair, *worth, moved=(now[0] - then[0], now[1] - then[1]))
        for (pair, _tokens), now, then, worth in zip(
            kept, *logps, _implicit([tokens for _pair, tokens in kept], *logps, recipe), strict=True
        )
    ]
    return scored, [Written(*row) for row in zip(asked, *texts, strict=True)]


def _implicit(
    pairs: Sequence[TokenPair],
    now: Sequence[tuple[float, float]],
    then: Sequence[tuple[float, float]],
    recipe: AnyRecipe,
) -> list[list[float]]:
    """Implicit rewards of both responses, from their log-probabilities under policy and base."""
    logps, before = torch.tensor(now), torch.tensor(then)
    if not isinstance(recipe, DPORecipe):
        return (logps - before).tolist()
    n_tokens = torch.tensor([(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs])
    return implicit_rewards(recipe, logps, before, n_tokens).tolist()


def _policy_then_base(folder: str, base: str, dtype: str) -> Iterator[Any]:
    yield load_policy(folder, dtype=dtype)[0]
    if adapter_base(base) is not None:  # what it was made by, and with, is written beside it
        yield load_causal(base, dtype=dtype).eval()
        return
    is_adapter = adapter_base(folder) is not None and not is_learned_prompt(folder)
    method = made_by(folder) if is_adapter else "lora"
    yield load_causal(base, method=method, dtype=dtype, rope=rope_of(folder)).eval()
