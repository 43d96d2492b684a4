"""Log-probabilities of responses under a causal model, without keeping the full logits."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.ml.batches import passes_of

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


def response_batch(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int
) -> dict[str, Tensor]:
    """Conversations as tensors: ids and mask, (rows, longest); starts of the responses, (rows,)."""
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    ids, mask = pad_right(rows, pad_id)
    return {"ids": ids, "mask": mask, "starts": torch.tensor([len(prompt) for prompt in prompts])}


def response_logps(
    model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int
) -> Tensor:
    """Sum of log-probabilities (nats) of each response's tokens after its prompt: (rows,).

    Gradients are not kept.
    """
    where = next(model.parameters()).device
    batch = response_batch(prompts, responses, pad_id)
    with torch.no_grad():
        sums, _outputs = batch_logps(model, {name: t.to(where) for name, t in batch.items()})
    return sums


def batch_logps(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
    """response_logps of a response_batch on the model's device, with gradients where they are
    asked for; and what the model's forward pass gave beside (without logits worth reading).

    The head is applied to the positions of response tokens alone, `CHUNK` of them at once, and
    again on the way back: logits of all positions never exist together. Rows pass in one or two
    passes, as batches.passes_of says; a model with experts balances them over all rows, in one.
    """
    lengths = batch["mask"].sum(dim=1).tolist()
    passes = passes_of(lengths)
    if len(passes) == 1 or getattr(
        getattr(model, "module", model).config, "output_router_logits", False
    ):
        return _pass_logps(model, batch)
    sums = torch.zeros(len(lengths), device=batch["ids"].device)
    for rows in passes:
        own = {name: batch[name][rows] for name in ("ids", "mask", "starts")}
        own |= {name: own[name][:, : lengths[rows[0]]] for name in ("ids", "mask")}
        found, outputs = _pass_logps(model, own)
        sums = sums.index_put((torch.tensor(rows, device=sums.device),), found)
    return sums, outputs


def _pass_logps(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
    ids, mask, starts = batch["ids"], batch["mask"], batch["starts"]
    causal = model
    while hasattr(causal, "module"):  # around a model on several devices
        causal = causal.module
    causal = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
    head = causal.get_output_embeddings()
    places = torch.arange(1, ids.shape[1], device=ids.device)
    # (rows, tokens - 1): the token at t + 1, told from t
    scored = mask[:, 1:].bool() & (places[None, :] >= starts[:, None])
    hidden, outputs = _hidden_states(model, head, ids, mask)
    hidden, wanted = hidden[:, :-1][scored], ids[:, 1:][scored]  # (response tokens, width)
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)

    def of(states: Tensor, words: Tensor) -> Tensor:
        logits = head(states).float()
        if cap:
            logits = cap * torch.tanh(logits / cap)
        return torch.log_softmax(logits, dim=-1).gather(-1, words[:, None]).squeeze(-1)

    per_token = torch.cat(
        [
            checkpoint(of, hidden[i : i + CHUNK], wanted[i : i + CHUNK], use_reentrant=False)
            if torch.is_grad_enabled()
            else of(hidden[i : i + CHUNK], wanted[i : i + CHUNK])
            for i in range(0, len(wanted), CHUNK)
        ]
    )
    row_of = scored.nonzero()[:, 0]
    sums = torch.zeros(len(ids), device=ids.device).index_add(0, row_of, per_token)
    return sums, outputs


def _hidden_states(model: Any, head: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    """What the head is given, (rows, tokens, width), from a forward pass of the whole model; and
    what that gave.

    Of the whole, because the vectors of a learned prompt are put before the text there; the head
    itself sees one position of each row, so that the logits of the others never exist.
    """
    seen: list[Tensor] = []

    def keep(_head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(given[0])
        return (given[0][:, :1],)

    handle = head.register_forward_pre_hook(keep)
    try:
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return seen[0][:, -ids.shape[1] :], outputs  # without the positions of a learned prompt
