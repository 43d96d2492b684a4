"""Log-probabilities of responses under a causal model, without keeping the full logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Positions whose logits exist at once: 512 × 150,000 words in float32 are 0.3 GB."""


def pad_right(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, padded behind, and the mask of what is real: (rows, longest)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


def response_logps(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int
) -> Tensor:
    """Sum of log-probabilities (nats) of each response's tokens after its prompt: (rows,).

    Gradients are not kept. The head is applied to the positions of response tokens alone.
    """
    where = next(model.parameters()).device
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = (tensor.to(where) for tensor in pad_right(rows, pad_id))
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    scored = mask[:, 1:].bool()  # (rows, tokens - 1): the token at t + 1, told from t
    starts = torch.tensor([len(prompt) for prompt in prompts], device=where)
    places = torch.arange(1, ids.shape[1], device=where)
    scored = scored & (places[None, :] >= starts[:, None])
    with torch.no_grad():
        hidden = _hidden_states(model, head, ids, mask)
        hidden, wanted = hidden[:, :-1][scored], ids[:, 1:][scored]  # (response tokens, width)
        parts = [
            torch.log_softmax(head(hidden[i : i + CHUNK]).float(), dim=-1)
            .gather(-1, wanted[i : i + CHUNK, None])
            .squeeze(-1)
            for i in range(0, len(wanted), CHUNK)
        ]
    per_token = torch.cat(parts)
    row_of = scored.nonzero()[:, 0]
    return torch.zeros(len(rows), device=where).index_add(0, row_of, per_token)


def _hidden_states(model: Any, head: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """What the head is given, (rows, tokens, width), from a forward pass of the whole model.

    Of the whole, because the vectors of a learned prompt are put before the text there; the head
    itself sees one position of each row, so that the logits of the others never exist.
    """
    seen: list[Tensor] = []

    def keep(_head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(given[0])
        return (given[0][:, :1],)

    handle = head.register_forward_pre_hook(keep)
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return seen[0][:, -ids.shape[1] :]  # without the positions of a learned prompt
