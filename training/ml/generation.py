"""Responses from a policy: batched sampling, the same for the same seed."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from training.ml.data import Messages, chat_tokens, words_of


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[str]:
    """One response to each prompt, in the order of the prompts.

    Prompts of like length share a batch, padded on the left, so that every response begins in the
    same column. Only the last position's logits exist. At temperature 0 the likeliest token is
    taken; above it, tokens are drawn from the whole distribution (no top-k, no top-p), and the
    global random state is left as it was.

    Raises: ValueError if a prompt and its response would not fit the model's context.
    """
    rows = [chat_tokens(tokenizer, prompt, open_answer=True) for prompt in prompts]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    learned_prompt = _n_virtual_tokens(model)
    longest = max(map(len, rows), default=0) + learned_prompt
    if room is not None and longest + max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context "
            f"of {room}"
        )
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        top_p=1.0 if temperature > 0 else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    where = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    responses = [""] * len(rows)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        start = 0
        while start < len(order):
            places = order[start : start + batch_size]
            if learned_prompt:
                # PEFT counts the padding between the learned prompt and the text as text, so only
                # rows of one length share a batch.
                places = [p for p in places if len(rows[p]) == len(rows[places[0]])]
            start += len(places)
            ids, mask = _pad_left([rows[place] for place in places], tokenizer.pad_token_id)
            made = model.generate(
                input_ids=ids.to(where), attention_mask=mask.to(where), generation_config=settings
            )
            for place, tokens in zip(places, made[:, ids.shape[1] :], strict=True):
                responses[place] = words_of(tokenizer, tokens)
    model.train(was_training)
    return responses


def _n_virtual_tokens(model: Any) -> int:
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "num_virtual_tokens", None) or 0


def _pad_left(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    return ids, mask
