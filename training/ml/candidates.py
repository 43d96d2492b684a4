"""What a reward model sees in responses that nobody has judged: rewards, and what its last layer
reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.ml.data import Messages, chat_tokens
from training.ml.loading import (
    HEADS,
    adapter_base,
    load_reward_model,
    load_scorer,
    load_tokenizer,
    members_of,
)
from training.ml.logprobs import pad_right
from training.ml.selection import Floats


@dataclass(frozen=True)
class Seen:
    """Responses under a reward model."""

    rewards: Floats
    """(members, responses)"""
    features: Floats
    """(responses, width) what the last layer reads; of an ensemble, of all members side by side."""


def read_responses(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Seen:
    """Rewards and features of prompts with their responses, in their order.

    Args: model: as load_reward_model gives it, or load_scorer's with a head that is still random:
        its features are of use, its rewards are not.
    """
    rows = [chat_tokens(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    head = next(m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in HEADS)
    where = next(model.parameters()).device
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _head, given: seen.append(given[0]))
    members = members_of(model)
    rewards: list[list[float]] = []
    features: list[Floats] = []
    done = 0
    was_training = model.training
    model.eval()
    try:
        for member in members:
            if member is not None:
                model.set_adapter(member)
            own: list[float] = [0.0] * len(rows)
            read: list[Tensor] = [torch.empty(0)] * len(rows)
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                ids, mask = pad_right([rows[p] for p in places], tokenizer.pad_token_id)
                seen.clear()
                with torch.no_grad():
                    output = model(
                        input_ids=ids.to(where), attention_mask=mask.to(where), use_cache=False
                    )
                states = _at_the_end(seen[0].float().cpu(), mask, head)  # (rows, width)
                scores = output.logits.squeeze(-1).float().tolist()
                for place, state, score in zip(places, states, scores, strict=True):
                    own[place], read[place] = score, state
                done += len(places)
                on_progress(done, len(members) * len(rows))
            rewards.append(own)
            features.append(torch.stack(read).double().numpy() if rows else np.zeros((0, 1)))
    finally:
        handle.remove()
        model.train(was_training)
    return Seen(np.array(rewards, dtype=float), np.concatenate(features, axis=1))


def _at_the_end(states: Tensor, mask: Tensor, head: Any) -> Tensor:
    """What a reward is read from: of a decoder the state of the last token, of an encoder that of
    the first, or what the model has pooled already."""
    if states.dim() == 2:
        return states
    if not isinstance(getattr(head, "original_module", head), torch.nn.Linear):
        return states[:, 0]
    # A learned prompt stands before what the mask counts.
    last = states.shape[1] - mask.shape[1] + mask.sum(dim=1) - 1
    return states[torch.arange(len(states)), last]


def load_reader(folder: str, *, is_trained: bool) -> tuple[Any, Any]:
    """(model, tokenizer) for read_responses: a reward model; or the base of a model that writes,
    with a head that is random and the same every time.

    Raises: ModelMissing.
    """
    if is_trained:
        return load_reward_model(folder)
    while (base := adapter_base(folder)) is not None:
        folder = base
    tokenizer = load_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_scorer(folder)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
