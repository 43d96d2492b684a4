"""Reading and writing for every causal language model: nothing shared, nothing read on.

For models whose memory cannot be cut off and taken up again in the middle of a row: sliding
windows, recurrent states, attention of their own kind.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""Of logits, (rows, vocabulary), and the step: the next tokens, (rows,)."""


def read_whole(model: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits after each row of tokens, (rows, vocabulary), in one forward pass."""
    logits: torch.Tensor = _forward(model, *_left_padded(ids, model.device), None).logits[:, -1]
    return logits


def write_plainly(
    model: Any, ids: Sequence[Sequence[int]], choose: Choose, all_ended: Callable[[list[int]], bool]
) -> None:
    """Write after each row until `all_ended` says so of the tokens just chosen."""
    tokens, mask = _left_padded(ids, model.device)
    caches = "past_key_values" in inspect.signature(model.forward).parameters
    cache, step = None, 0
    while True:
        output = _forward(model, tokens, mask, cache)
        chosen = choose(output.logits[:, -1], step)
        step += 1
        if all_ended(chosen.tolist()):
            return
        # An ended row goes on in its slots; nobody looks at what it writes there.
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if caches:
            cache, tokens = output.past_key_values, chosen[:, None]
        else:
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)


def _forward(model: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
    """A pass over `tokens`, the last columns of `mask`."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    options: dict[str, Any] = {"position_ids": positions, "past_key_values": cache}
    options["logits_to_keep"] = 1  # (rows, 1, vocabulary) instead of one row for every token
    known = inspect.signature(model.forward).parameters
    options = {name: value for name, value in options.items() if name in known}
    return model(input_ids=tokens, attention_mask=mask, **options)


def _left_padded(
    ids: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (rows, longest), padding on the left."""
    width = max(map(len, ids))
    tokens = [[row[0]] * (width - len(row)) + list(row) for row in ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
