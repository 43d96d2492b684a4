"""Layers of Llama's shape in fewer operations, where what they read is kept in `Rows`.

One token of each text is little work: what a layer does beside its products (norms, positions,
sums) then costs a fifth of the time, most of it for results that are written out and read again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LIKE_LLAMA = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
"""In transformers, layers that differ in nothing but biases and windows."""


def shorten(model: nn.Module, cache: type, attend: Callable[..., Any]) -> None:
    """Have the model's layers, where they are Llama's, take the short way when they get a cache of
    this type, and go on as before with any other."""
    for layer in model.modules():
        if type(layer).__name__ in LIKE_LLAMA and "forward" not in vars(layer):
            layer.forward = partial(_forward, layer, cache, attend, layer.forward)


def lengthen(model: nn.Module) -> None:
    """Undo `shorten`."""
    for layer in model.modules():
        if type(layer).__name__ in LIKE_LLAMA and isinstance(vars(layer).get("forward"), partial):
            del layer.forward


def _forward(
    layer: Any,
    cache: type,
    attend: Callable[..., Any],
    forward: Callable[..., torch.Tensor],
    hidden: torch.Tensor,  # (rows, tokens, width)
    *,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    position_embeddings: Any = None,
    **options: Any,
) -> torch.Tensor:
    """What the layer's own `forward` gives; `hidden` itself is changed."""
    if not isinstance(past_key_values, cache):
        return forward(
            hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
            **options,
        )
    own = layer.self_attn
    read = _norm(layer.input_layernorm, hidden)
    shape = (*read.shape[:-1], -1, own.head_dim)
    query = own.q_proj(read).view(shape).transpose(1, 2)
    key = own.k_proj(read).view(shape).transpose(1, 2)
    value = own.v_proj(read).view(shape).transpose(1, 2)
    n_heads = query.shape[1]
    turned = _turn(torch.cat([query, key], dim=1), *position_embeddings)
    keys, values = past_key_values.update(turned[:, n_heads:], value, own.layer_idx)
    window = getattr(own, "sliding_window", None)
    seen, _ = attend(
        own,
        turned[:, :n_heads],
        keys,
        values,
        attention_mask,
        scaling=own.scaling,
        sliding_window=window,
    )
    hidden += own.o_proj(seen.reshape(*shape[:-2], -1))
    hidden += layer.mlp(_norm(layer.post_attention_layernorm, hidden))
    return hidden


def _norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Root mean square normalisation. Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4."""
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves of a head against each other. Su et al. 2021, arXiv:2104.09864.

    Args:
        heads: (rows, heads, tokens, dim)
        cos, sin: (rows, tokens, dim), both halves the same.
    """
    half = heads.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None, :, :half]
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin)
    return turned
