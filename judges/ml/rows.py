"""Keys and values of many texts at once, for models that read on from where they stopped.

What all texts of a batch begin with is read once and kept once: attention looks at it beside each
row's own tokens. A row's own tokens stand at the slot of their position, so a row can be cut off
anywhere, copied to another, or read on from, without touching its neighbours.
"""

import inspect
import logging
import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

logger = logging.getLogger(__name__)

ATTENTION = "prefloop_rows"
"""Under this name transformers finds the attention below."""

Places = slice | list[int]


class _Kept(Exception):
    """The last layer has kept its keys and values: what a model does after that is not wanted."""


APART = {"cpu": 16, "cuda": 256}
"""So many neighbouring rows look at as many slots as the longest of them. Fewer look at fewer empty
slots, in more and smaller products; on a GPU those cost more than the empty slots."""


class Rows:
    """Room for `n_rows` texts of `n_slots` tokens after what they share; filled by `read`."""

    def __init__(self, model: Any, n_rows: int, n_slots: int, shared: "Rows | None" = None) -> None:
        self.model = model
        self.device = model.device
        self.n_rows, self.n_slots = n_rows, n_slots
        self.shared = shared
        self.n_shared = shared.n_slots if shared else 0
        self.keys: dict[int, torch.Tensor] = {}  # of a layer: (rows, heads, slots + 1, dim)
        self.values: dict[int, torch.Tensor] = {}
        self.steps = torch.arange(n_slots, device=self.device)
        self.rows = torch.arange(n_rows, device=self.device)
        last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options = {"logits_to_keep": 1} if last_only else {}
        self.last_layer = model.config.get_text_config().num_hidden_layers - 1
        self.at: tuple[Any, ...] = ()
        self.seen: tuple[Any, ...] = ()
        self.apart: list[tuple[slice, int, int]] = []
        """Neighbouring rows, how many slots the longest looks at, and how many every one does."""
        self.pieces: list[tuple[int, slice, int, torch.Tensor]] = []
        """While texts are kept in one long row: of each its place, its part of that row, how many
        slots it looks at, and its mask, (tokens, shared and own slots)."""

    def read(
        self, places: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Read tokens into rows, each from its own slot on.

        Args:
            places: which rows.
            starts: the slot of each row's first new token; what stood there and after is forgotten.
        Returns: logits after the last token of each, (places, vocabulary).
        """
        begun = [one for one in zip(places, starts, tokens, strict=True) if len(one[2]) > 1]
        if begun:
            self.keep(
                [place for place, _start, _row in begun],
                [start for _place, start, _row in begun],
                [row[:-1] for _place, _start, row in begun],
            )
        first, last = min(places), max(places) + 1
        rows: Places = list(places)
        if rows == list(range(first, last)):
            rows = slice(first, last)  # a view, where a list of rows is a copy
        n_seen = [start + len(row) for start, row in zip(starts, tokens, strict=True)]
        return self._read_last(
            rows,
            torch.tensor([row[-1] for row in tokens], device=self.device),
            torch.tensor(n_seen, device=self.device) - 1,
            n_seen,
        )

    def keep(
        self, places: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> None:
        """Read tokens as `read` does, where no logits are wanted, and nothing but these tokens.

        All stand in one long row, so that none is padding; only attention takes them apart. The
        model is stopped as soon as its last layer has keys and values: that layer's attention, its
        large products and the head would tell of the next token alone.
        """
        ids: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        for place, start, row in zip(places, starts, tokens, strict=True):
            end = len(ids) + len(row)
            first, n = self.n_shared + start, len(row)
            mask = torch.full((n, first + n), -torch.inf, dtype=self.model.dtype)
            mask = mask.triu(first + 1).to(self.device)  # what stands before is seen
            self.pieces.append((place, slice(len(ids), end), start + n, mask))
            ids += row
            slots += range(start, start + n)
            rows += [place] * n
        at = torch.tensor([slots], device=self.device)
        self.at = (torch.tensor([rows], device=self.device), slice(None), at)
        try:
            self.model(
                input_ids=torch.tensor([ids], device=self.device),
                # Of four dimensions, so that it is left to us.
                attention_mask=torch.zeros((1, 1, 1, 1), device=self.device),
                position_ids=at + self.n_shared,
                past_key_values=self,
                use_cache=True,
                **self.options,
            )
        except _Kept:
            pass
        finally:
            self.pieces = []

    def step(
        self, tokens: torch.Tensor, slots: torch.Tensor, n_seen: Sequence[int]
    ) -> torch.Tensor:
        """Read one token into each of the first rows.

        Args:
            tokens: (rows,)
            slots: where they go, (rows,)
            n_seen: of each row, how many slots it looks at; its new one is among them.
        Returns: logits, (rows, vocabulary).
        """
        return self._read_last(slice(0, len(tokens)), tokens, slots, n_seen)

    def copy(self, source: int, place: int, n_slots: int) -> None:
        """Give another row the first slots of one."""
        for stored in (*self.keys.values(), *self.values.values()):
            stored[place, :, :n_slots] = stored[source, :, :n_slots]

    def drop(self, n_rows: int, places: Sequence[int]) -> list[int]:
        """Let some of the first rows go, and fill their places with the last that stay.

        Returns: which row now stands at each place.
        """
        leaving = set(places)
        staying = [place for place in range(n_rows) if place not in leaving]
        gaps = [place for place in sorted(leaving) if place < len(staying)]
        now_at = list(range(len(staying)))
        for gap in gaps:
            now_at[gap] = staying.pop()
            self.copy(now_at[gap], gap, self.n_slots)
        return now_at

    def _read_last(
        self, rows: Places, tokens: torch.Tensor, slots: torch.Tensor, n_seen: Sequence[int]
    ) -> torch.Tensor:
        """`step` for any rows."""
        n = APART.get(self.device.type, len(n_seen))
        self.apart = [
            (
                slice(first, first + n),
                max(n_seen[first : first + n]),
                min(n_seen[first : first + n]),
            )
            for first in range(0, len(n_seen), n)
        ]
        n_most = max(n_seen)
        self.at = (self.rows[rows][:, None], slice(None), slots[:, None])
        self.seen = (rows, slice(None), slice(n_most))
        visible = self.steps[:n_most] <= slots[:, None]  # (rows, slots)
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(~visible, -torch.inf)  # every token sees slot 0
        positions = (slots + self.n_shared) * (slots < self.n_slots)
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=mask[:, None, None],
            position_ids=positions[:, None],
            past_key_values=self,
            use_cache=True,
            **self.options,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    # What a model asks of its cache.

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's new keys and values, (rows, heads, tokens, dim); all of them come back."""
        if layer not in self.keys:
            # Zeros, because what is masked is still multiplied by 0.
            shape = (self.n_rows, key.shape[1], self.n_slots + 1)
            self.keys[layer] = _zeros(key, (*shape, key.shape[3]))
            self.values[layer] = _zeros(value, (*shape, value.shape[3]))
        self.keys[layer][self.at] = key.transpose(1, 2)
        self.values[layer][self.at] = value.transpose(1, 2)
        if self.pieces and layer == self.last_layer:
            raise _Kept
        own = key if self.pieces else self.keys[layer][self.seen]
        # Models hand keys on untouched, so the attention finds here what all rows share.
        own.apart = self.apart  # type: ignore[attr-defined]
        own.pieces = [  # type: ignore[attr-defined]
            (part, self.keys[layer][place, :, :n], self.values[layer][place, :, :n], mask)
            for place, part, n, mask in self.pieces
        ]
        own.shared = (  # type: ignore[attr-defined]
            (self.shared.keys[layer][:, :, :-1], self.shared.values[layer][:, :, :-1])
            if self.shared
            else None
        )
        return own, value if self.pieces else self.values[layer][self.seen]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.n_shared + self.n_slots


def _zeros(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros of the same kind. On a CPU a page of memory is taken when it is first written to: most
    rows are far shorter than the longest, and taking memory costs more time than reading it.

    Raises: torch.OutOfMemoryError
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, math.prod(shape) * like.itemsize, flags=kind)
    except OSError as error:
        raise torch.OutOfMemoryError(str(error)) from error
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (rows, heads, tokens, dim)
    key: torch.Tensor,  # (rows, key heads, slots, dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # (rows, 1, tokens, slots), added to the scores
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to a row's own tokens and to what all rows share; else as transformers has it.

    Returns: (rows, tokens, heads, dim)
    Raises: NotImplementedError for a model whose scores are changed on the way.
    """
    if not hasattr(key, "apart"):
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output
    changes = ("softcap", "s_aux", "position_bias", "sliding_window")
    if attention_mask is None or any(options.get(name) is not None for name in changes):
        raise NotImplementedError("this model's attention is not the plain one")
    n_rows, n_heads, _n_tokens, dim = query.shape
    n_key_heads = key.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    if key.pieces:  # type: ignore[attr-defined]
        return _attend_in_pieces(query, key, scale).transpose(1, 2), None
    # Heads with the same keys stand side by side: (rows, key heads, heads each, dim)
    query = query.reshape(n_rows, n_key_heads, -1, dim) * scale
    result = _attend_side_by_side(query, key, value, attention_mask.to(query.dtype))
    return result.reshape(n_rows, 1, n_heads, -1), None


def _attend_in_pieces(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of texts that stand in one long row, each to what is its own.

    Args:
        query: (1, heads, tokens, dim)
    Returns: the same shape.
    """
    n_heads, n_key_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    shared = key.shared  # type: ignore[attr-defined]
    found = []
    for part, keys, values, mask in key.pieces:  # type: ignore[attr-defined]
        if shared is not None:
            keys = torch.cat([shared[0][0], keys], dim=1)
            values = torch.cat([shared[1][0], values], dim=1)
        # Heads with the same keys stand side by side: (key heads, heads each · tokens, dim)
        result = functional.scaled_dot_product_attention(
            query[0, :, part].reshape(1, n_key_heads, -1, dim),
            keys[None],
            values[None],
            attn_mask=mask.repeat(n_heads // n_key_heads, 1),
            scale=scale,
        )
        found.append(result.reshape(1, n_heads, -1, values.shape[-1]))
    return torch.cat(found, dim=2)


def _attend_side_by_side(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention of one token in each row, rows of unlike length apart.

    In plain matrix products, which read what all rows share once for all of them.

    Returns: (rows, key heads, queries, dim)
    """
    n_rows, n_key_heads, n_queries, dim = query.shape
    shared = key.shared  # type: ignore[attr-defined]
    n_old = 0
    if shared is not None:
        # All rows' queries in one product: (key heads, rows · queries, dim)
        together = query.transpose(0, 1).reshape(n_key_heads, n_rows * n_queries, dim)
        old_scores = together @ shared[0][0].transpose(-1, -2)
        n_old = old_scores.shape[-1]
        old_scores = old_scores.view(n_key_heads, n_rows, n_queries, n_old).transpose(0, 1)
    found, old_weights = [], []
    for rows, n, n_all in key.apart:  # type: ignore[attr-defined]
        mine = query[rows].flatten(0, 1)  # (rows · key heads, queries, dim)
        scores = mine.new_empty((*mine.shape[:2], n_old + n))
        if shared is not None:
            scores[..., :n_old] = old_scores[rows].flatten(0, 1)
        keys, values = key[rows, :, :n].flatten(0, 1), value[rows, :, :n].flatten(0, 1)
        torch.bmm(mine, keys.transpose(1, 2), out=scores[..., n_old:])
        by_row = scores.view(-1, n_key_heads, n_queries, n_old + n)
        by_row[..., n_old + n_all :] += mask[rows, :, :, n_all:n]
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        found.append((weights[..., n_old:] @ values).view(-1, *query.shape[1:3], value.shape[-1]))
        old_weights.append(weights.view_as(by_row)[..., :n_old])
    own = torch.cat(found)
    if shared is None:
        return own
    weights = torch.cat(old_weights).transpose(0, 1).reshape(n_key_heads, -1, n_old)
    old = (weights @ shared[1][0]).view(n_key_heads, n_rows, n_queries, -1)
    both: torch.Tensor = own + old.transpose(0, 1)
    return both


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def bytes_per_token(model: Any) -> int:
    """Of the keys and values of all layers; as if every head had its own, where heads are not
    named."""
    config = model.config.get_text_config()
    n_heads = getattr(config, "num_attention_heads", 1)
    dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_key_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return int(2 * config.num_hidden_layers * n_key_heads * dim * model.dtype.itemsize)


def use_rows(model: Any) -> bool:
    """Make the model ready for `Rows`, if its texts can be read on from any token.

    It can if every layer keeps keys and values of all tokens, and a probe gives what the model
    gives by itself. Otherwise the model is left as it was.
    """
    before = model.config._attn_implementation
    layers = DynamicCache(config=model.config).layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        return False  # a window slides, or a state is carried on
    try:
        fits = _probe(model)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        logger.info("this model reads every text as a whole: %s", error)
        fits = False
    if not fits:
        model.set_attn_implementation(before)
    return fits


@torch.inference_mode()
def _probe(model: Any) -> bool:
    """Read a few tokens, in two rows after a shared one, and in one piece: are logits the same?"""
    size = model.config.get_text_config().vocab_size
    ids = [(7 * n + 3) % size for n in range(60)]
    whole = torch.tensor([ids], device=model.device)
    expected = model(input_ids=whole, use_cache=False).logits[0, -1].float()
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        return False
    shared = Rows(model, 1, 20)
    shared.keep([0], [0], [ids[:20]])
    rows = Rows(model, 2, 50, shared)
    rows.keep([0, 1], [0, 0], [ids[20:24], ids[20:57]])
    rows.read([0], [4], [ids[24:57]])
    found = rows.read([0, 1], [37, 37], [ids[57:]] * 2).float()
    exact = model.dtype == torch.float32 and not getattr(model, "is_loaded_in_4bit", False)
    tolerance = (1e-4 if exact else 0.1) * float(expected.abs().max())
    return float((found - expected).abs().max()) <= tolerance
