"""Rollouts: responses of a policy in training, as tokens, sampled in batches by length.

A batch holds keys and values of what it has read, the output layer sees one position of each row,
and a row that has ended leaves the batch, so nothing is computed for it any more. Which token a row
draws depends on its own uniform numbers alone: batches may be cut in any way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Positions by which the room for keys and values grows, in place of a copy at every token."""
ENDED = 1 / 8
"""Share of a batch's rows that must have ended before the others are moved together."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and the response that was sampled to it."""

    prompt_ids: list[int]
    response_ids: list[int]
    """Up to the first end token, that included; never empty."""
    finished: bool
    """Whether there is an end token."""

    @property
    def n_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def up_to_end(prompt_ids: list[int], tokens: Sequence[int], ends: Sequence[int]) -> Rollout:
    """The rollout of tokens that may go on behind their end: what stands there is no response."""
    for place, token in enumerate(tokens):
        if token in ends:
            return Rollout(prompt_ids, list(tokens[: place + 1]), True)
    return Rollout(prompt_ids, list(tokens), False)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's, and those the model's settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *named] if i is not None})


def roll_out(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    ends: Sequence[int],
    pad_id: int,
    seed: int,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """One response to each prompt, in the order of the prompts, drawn from the whole distribution.

    Args:
        model: a causal language model, with whatever adapter is active now, in eval mode.
        seed: the same seed gives the same responses.
        on_batch: called after each batch.
    """
    where = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    # One number for each token that may come, on the CPU: the same on every machine.
    draws = torch.rand(len(prompts), max_new_tokens, generator=draw, dtype=torch.float64).to(where)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
    found: dict[int, Rollout] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        tokens = _respond(
            model, [prompts[p] for p in places], draws[places], temperature, ends, pad_id
        )
        for place, row in zip(places, tokens.tolist(), strict=True):
            found[place] = up_to_end(prompts[place], row, ends)
        on_batch()
    return [found[place] for place in range(len(prompts))]


@torch.no_grad()
def _respond(
    model: Any,
    prompts: list[list[int]],
    draws: Tensor,
    temperature: float,
    ends: Sequence[int],
    pad_id: int,
) -> Tensor:
    """(rows, most new tokens): what each row draws up to its end; behind it, what is to be cut."""
    where = draws.device
    body, head = body_and_head(model)
    longest = max(map(len, prompts))
    # A prompt that is answered several times is read once.
    once = {tuple(prompt): at for at, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    which = torch.tensor([once[tuple(prompt)] for prompt in prompts], device=where)
    ids = torch.full((len(once), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(once), longest), dtype=torch.long)
    for row, prompt in enumerate(once):  # on the left, so that all responses begin together
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(where), mask.to(where)
    padded = bool((mask == 0).any())
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = _cache(model)
    made = torch.full(draws.shape, ends[0], dtype=torch.long, device=where)
    rows = torch.arange(len(prompts), device=where)  # which row of `made` stands where in the batch
    stops = torch.tensor(list(ends), device=where)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=where)
    for step in range(draws.shape[1]):
        hidden = body(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if step == 0 and len(once) < len(prompts):
            cache.batch_select_indices(which)
            hidden, places, mask = hidden[which], places[which], mask[which]
        drawn = _draw(head(hidden[:, -1]), draws[rows, step], temperature)  # (rows left,)
        made[rows, step] = drawn
        ended = ended | torch.isin(drawn, stops)
        share = float(ended.float().mean())
        if share == 1:
            break
        ids, places = drawn[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if share >= ENDED:
            kept = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, ids, places = rows[kept], ids[kept], places[kept]
            mask, ended = mask[kept], ended[kept]
    return made


def _draw(logits: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """The token at which the summed probabilities pass each row's number in [0, 1)."""
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)  # (rows, words)
    found = torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)


def body_and_head(model: Any) -> tuple[Any, Any]:
    """The layers that make hidden states and the one that makes logits of them.

    Adapters of the LoRA family sit inside the layers, so they act here too.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(causal, causal.base_model_prefix), causal.get_output_embeddings()


def _cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = _Room()
    return cache


class _Room(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, (rows, heads, positions, width), in a room larger than they are.

    The library's own copies all of them for every new token.
    """

    keys: Tensor
    values: Tensor
    room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = 0 if self.room is None else self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            self.room = (
                _enlarged(self.keys if start else None, key_states, end + BLOCK),
                _enlarged(self.values if start else None, value_states, end + BLOCK),
            )
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.room is not None:
            end = self.keys.shape[-2]
            self.room = (self.room[0][indices], self.room[1][indices])
            self.keys, self.values = (room[:, :, :end] for room in self.room)


def _enlarged(held: Tensor | None, new: Tensor, positions: int) -> Tensor:
    room = new.new_empty((*new.shape[:2], positions, new.shape[3]))
    if held is not None:
        room[:, :, : held.shape[2]] = held
    return room
