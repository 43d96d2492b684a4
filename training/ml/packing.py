"""Rows of tokens as one line: the layers of a model compute no padding, and no prompt twice.

What a layer does to a token, it does to that token alone; only attention looks at a row. So the
tokens of all rows pass through the layers one behind the other, a prompt that several rows begin
with among them once, and attention alone puts them side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prefloop_lines"
"""Of this attention among those of the library."""
TRIED = ([3, 5, 4, 7, 6, 8], [3, 5, 4, 6, 9], [7, 3])
"""Rows by which a model shows whether it can: of unlike lengths, two with a prompt in common."""


@dataclass(frozen=True)
class Line:
    """Rows as a model is given them in a line, and where attention finds them."""

    ids: Tensor
    """(1, tokens)"""
    places: Tensor
    """(1, tokens), the place of each in its row."""
    seats: Tensor
    """(rows · longest,), which token of the line stands at each place of the rows; behind a row's
    end any, which nothing before it looks at."""
    homes: Tensor
    """(tokens,), where among the rows each token is told what it has seen."""
    longest: int


def lay(
    rows: Sequence[list[int]], shared: Sequence[int], where: torch.device
) -> tuple[Line, list[list[int]]]:
    """The rows in a line; and of each row, which token of the line each of its own is.

    Args: shared: how many of each row's first tokens are laid once for all rows that begin so.
    """
    longest = max(map(len, rows))
    ids: list[int] = []
    places: list[int] = []
    homes: list[int] = []
    seats: list[int] = []
    seen: dict[tuple[int, ...], list[int]] = {}
    found = []
    for at, (row, n) in enumerate(zip(rows, shared, strict=True)):
        head = tuple(row[:n])
        own = list(seen.get(head, ()))
        new = range(len(own), len(row))
        own += range(len(ids), len(ids) + len(new))
        seen.setdefault(head, own[:n])
        ids += row[new.start :]
        places += new
        homes += range(at * longest + new.start, at * longest + len(row))
        seats += own + own[-1:] * (longest - len(row))
        found.append(own)
    told = (torch.tensor(numbers, device=where) for numbers in (ids, places, seats, homes))
    line_ids, line_places, line_seats, line_homes = told
    return Line(line_ids[None], line_places[None], line_seats, line_homes, longest), found


def model_inputs(line: Line) -> dict[str, Any]:
    """What a model that `packs` is called with."""
    return {
        "input_ids": line.ids,
        "position_ids": line.places,
        # A mask of four dimensions is taken as it is: without it the library would make one of all
        # tokens by all tokens. Attention in a line does not look at it.
        "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=line.ids.device),
        "line": line,
        "use_cache": False,
    }


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    line: Line | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The library's attention; where the tokens stand in a line, row by row, without padding being
    looked at. (1, heads, tokens, width) each; back come (1, tokens, heads, width)."""
    if line is None:
        told, _none = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return told, None
    rows = len(line.seats) // line.longest
    query, key, value = (
        tensor[0].transpose(0, 1).index_select(0, line.seats)
        .view(rows, line.longest, tensor.shape[1], tensor.shape[3]).transpose(1, 2)
        for tensor in (query, key, value)
    )  # fmt: skip
    window = settings.get("sliding_window")
    near = None
    if window is not None and window < line.longest:
        places = torch.arange(line.longest, device=query.device)
        back = places[:, None] - places[None, :]
        near = ((back >= 0) & (back < window))[None, None]
    seen, _none = sdpa_attention_forward(module, query, key, value, near, **settings)
    return seen.flatten(0, 1).index_select(0, line.homes)[None], None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def pack(body: Any) -> bool:
    """Let a model's layers take lines, if they can; whether they can.

    It is tried: a model whose layers look at other tokens elsewhere than in its attention, or whose
    attention is its own, says something else in a line than row by row, and stays as it was.

    Args: body: what makes hidden states, in eval mode; it takes rows as before.
    """
    config = body.config
    if config._attn_implementation != "sdpa":
        return False
    where = next(body.parameters()).device
    apart = torch.cat(
        [
            body(input_ids=torch.tensor([row], device=where), use_cache=False).last_hidden_state[0]
            for row in TRIED
        ]
    )
    line, own = lay(TRIED, (3, 3, 1), where)
    config._attn_implementation = NAME
    try:
        told = body(**model_inputs(line)).last_hidden_state[0]
        told = told[[place for row in own for place in row]]
    except (TypeError, ValueError, RuntimeError):  # it takes no line, or its mask is another
        told = torch.full_like(apart, torch.inf)
    # Rounding in bfloat16 is far below this, and what another row's tokens would add far above.
    fits = bool((told - apart).abs().max() <= 0.03 * apart.abs().max())
    if not fits:
        config._attn_implementation = "sdpa"
    return fits
