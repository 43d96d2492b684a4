"""Quiet-STaR, experimental: a policy that thinks after every token of raw text, and learns which
thoughts make the text behind them likelier (Zelikman et al. 2024, arXiv:2403.09629).

    model, tokenizer, thoughts, length = load_thinking(folder)
    written = write_on(model, tokenizer, thoughts, length, "2+3=", max_new_tokens=8)

A text of n + 1 tokens is read as n columns that stand side by side. Column j holds, from above:
token j of the text, the mark that starts a thought, the thought, the mark that ends it, and the
true tokens j + 1, j + 2, … behind it. One attention mask keeps the columns apart, so all thoughts
are drawn at once, and read at once. Of what is saved the model itself is an ordinary one, as it is
with thoughts off; marks and mixing head lie beside it.

All randomness of a step comes from the recipe's seed and the step's number.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, TrainerCallback, set_seed

from training.ml.adapting import adapted, optimizer_of, optimizer_words, save_model, save_start
from training.ml.batches import parts_of, steps_of
from training.ml.data import TokenExample, longest_first, storable, text_pieces
from training.ml.evaluation import ratio_figure, token_metrics
from training.ml.loading import (
    device,
    load_causal,
    load_policy,
    load_tokenizer,
    longest_allowed,
    n_parameters,
    number_format,
    train_in_float32,
    without_dropout,
)
from training.ml.logprobs import CHUNK, pad_right
from training.ml.loop import Batch, StepTrainer
from training.ml.quiet_star_config import QuietStarRecipe
from training.ml.steps import (
    OnStep,
    ReportSteps,
    StepReport,
    n_steps,
    quiet_trainer,
    resume_point,
    trainer_settings,
)

THOUGHTS = "thoughts.safetensors"
"""Beside a saved model: its two marks and its mixing head, with the length of a thought."""
LOGGED = {
    "thought_loss": "thought_loss",
    "thought_benefit": "thought_benefit",
    "mixing_weight": "mixing_weight",
    "thought_reward": "thought_reward",
}
SHOWN = 10
"""Tokens, and places of texts, that a run lists where thoughts help most."""
FEWEST = 5
"""Times that a token must stand in either half of the held-out texts to be listed."""
CONTEXT_CHARS = 80


# The formulas -------------------------------------------------------------------------------------


def thought_mask(n: int, blocks: int) -> Tensor:
    """Which place may look at which, (blocks · n, blocks · n), true where the row's place sees the
    column's: a text sees itself up to each token; what stands below token j sees the text up to j
    and its own column down to itself, and nothing of other columns.

    Place k · n + j is line k of column j. Source: figure 3 of the paper, in which the same places
    form a diagonal.
    """
    line = torch.arange(blocks).repeat_interleave(n)
    column = torch.arange(n).repeat(blocks)
    text = (line[None] == 0) & (column[None] <= column[:, None])
    own = (line[None] > 0) & (column[None] == column[:, None]) & (line[None] <= line[:, None])
    return text | own


def mixed_logps(plain: Tensor, thinking: Tensor, weight: Tensor) -> Tensor:
    """Log-probabilities of the next token with both views of it mixed:
    log p_talk = (1 − w) · log p_plain + w · log p_thought − log Z.

    From logits, whose own normalisers go into Z; w = 0 gives the plain model's to the bit. With
    Z the mixture is a distribution, as in the authors' code, which mixes what the head is given.

    Args: plain, thinking: logits, (…, vocabulary); weight: w, (…, 1), in [0, 1].
    Source: section 4.3 and algorithm 1. The paper's w is the share of the plain model there, and
        ours, as in its code, that of the thought.
    """
    return torch.log_softmax((1 - weight) * plain + weight * thinking, dim=-1)


def thought_rewards(logps: Tensor) -> Tensor:
    """What each thought is worth: r = log p_talk(true tokens | thought) minus the mean of the same
    over all thoughts of that place.

    Args: logps: nats, (thoughts, …). Returns: the same shape; over the thoughts it sums to 0.
    Source: section 4.4, algorithm 1.
    """
    return logps - logps.mean(dim=0, keepdim=True)


def reinforce_losses(rewards: Tensor, thought_logps: Tensor, *, only_helpful: bool) -> Tensor:
    """−r · log p(thought | the text before it), of every thought; with `only_helpful` 0 where r is
    not above 0. No gradient flows through r.

    Source: section 4.4, algorithm 1: −r · 1[r > 0] · log p; Williams 1992.
    """
    rewards = rewards.clamp(min=0) if only_helpful else rewards
    return -rewards.detach() * thought_logps


# The model that thinks ----------------------------------------------------------------------------


class Thoughts(torch.nn.Module):
    """What thinking adds to a causal model: two marks, and the head that weighs a thought by what
    the model makes of a place without and with it, three layers with ReLU (section 4.3)."""

    def __init__(self, hidden: int, *, speed: float = 1.0, first_mixing: float = 0.1) -> None:
        super().__init__()
        self.speed = speed
        # Kept smaller and scaled up where they are used: Adam moves them that much faster.
        self.marks = torch.nn.Parameter(torch.zeros(2, hidden))
        self.mixing = torch.nn.Sequential(
            torch.nn.Linear(2 * hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 1),
        )
        last: Any = self.mixing[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, math.log(first_mixing / (1 - first_mixing)))

    def mark(self, which: int) -> Tensor:
        """The embedding of the mark before (0) or behind (1) a thought, (width,)."""
        return self.marks[which] * self.speed

    def weigh(self, plain: Tensor, thinking: Tensor) -> Tensor:
        """Mixing weights in (0, 1) from hidden states (…, width) without and with a thought:
        (…, 1)."""
        both = torch.cat([plain, thinking], dim=-1).to(self.marks.dtype)
        return torch.sigmoid(self.mixing(both))


def new_thoughts(recipe: QuietStarRecipe, model: Any, tokenizer: Any) -> Thoughts:
    """Marks that start out as the words the recipe names, and a mixing head drawn anew."""
    table = _causal(model).get_input_embeddings()
    made = Thoughts(
        table.weight.shape[1], speed=recipe.mark_speed, first_mixing=recipe.first_mixing
    )
    made.to(table.weight.device)
    with torch.no_grad():
        for which, words in enumerate((recipe.start_like, recipe.end_like)):
            ids = tokenizer(words, add_special_tokens=False)["input_ids"]
            vectors = table(torch.tensor(ids, device=table.weight.device))
            made.marks[which] = vectors.float().mean(dim=0) / recipe.mark_speed
    return made


@dataclass
class Columns:
    """What the model makes of a text and its thoughts, hidden states of (rows, n, width)."""

    plain: Tensor
    """Of the text alone."""
    thinking: list[Tensor]
    """Of the places that a thought's tokens are told from."""
    talking: list[Tensor]
    """Of the places that the true tokens are told from: the mark behind the thought first."""


def draw_thoughts(
    model: Any, thoughts: Thoughts, ids: Tensor, length: int, draw: Callable[[Tensor], Tensor]
) -> Tensor:
    """A thought after every token of every text, token by token for all places at once.

    Args: ids: (rows, n); draw: logits (rows, n, vocabulary) to token ids (rows, n).
    Returns: (rows, length, n).
    """
    causal = _causal(model)
    body, table = _body(causal), causal.get_input_embeddings()
    n = ids.shape[1]
    mask = _additive(thought_mask(n, length + 1), table.weight)
    places = torch.arange(n, device=ids.device)[None]
    cache = DynamicCache()
    drawn: list[Tensor] = []
    with torch.no_grad(), _evaluating(model):
        line = table(ids)
        for k in range(length + 1):
            hidden = body(
                inputs_embeds=line,
                attention_mask=mask[:, :, k * n : (k + 1) * n, : (k + 1) * n],
                position_ids=places + k,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            if k == 0:
                line = thoughts.mark(0).to(line.dtype).expand_as(line)
                continue
            drawn.append(draw(_logits(causal, hidden)))
            line = table(drawn[-1])
    return torch.stack(drawn, dim=1)


def read_columns(
    model: Any, thoughts: Thoughts, ids: Tensor, drawn: Tensor, true_tokens: int
) -> Columns:
    """One pass over texts, thoughts and the true tokens behind them, with gradients.

    Args: ids: (rows, n + 1), the last token is only told; drawn: (rows, length, n), of as many
        thoughts a row as fit: rows of ids are repeated for them by the caller.
    """
    causal = _causal(model)
    table = causal.get_input_embeddings()
    rows, n, length = ids.shape[0], ids.shape[1] - 1, drawn.shape[1]
    text = table(ids)
    beyond = torch.cat([text, text[:, -1:].expand(-1, true_tokens, -1)], dim=1)
    start, end = (thoughts.mark(w).to(text.dtype).expand(rows, n, -1) for w in (0, 1))
    lines = [
        text[:, :n],
        start,
        *(table(drawn[:, k]) for k in range(length)),
        end,
        *(beyond[:, m : m + n] for m in range(1, true_tokens)),
    ]
    places = torch.arange(n, device=ids.device)
    hidden = _body(causal)(
        inputs_embeds=torch.cat(lines, dim=1),
        attention_mask=_additive(thought_mask(n, len(lines)), table.weight),
        position_ids=torch.cat([places + k for k in range(len(lines))])[None],
        use_cache=False,
    ).last_hidden_state
    found = list(hidden.split(n, dim=1))
    return Columns(found[0], found[1 : length + 1], found[length + 2 :])


def told_logps(
    causal: Any,
    thoughts: Thoughts | None,
    plain: Tensor,
    thinking: Tensor | None,
    wanted: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (nats) of the wanted tokens, without thoughts or mixed with them, and the
    mixing weights; both (positions,).

    Args: plain, thinking: hidden states, (positions, width), the second None without thoughts.
    The head sees `CHUNK` positions at once, and again on the way back.
    """

    def of(plain: Tensor, thinking: Tensor | None, words: Tensor) -> tuple[Tensor, Tensor]:
        if thoughts is None or thinking is None:
            logps = torch.log_softmax(_logits(causal, plain), dim=-1)
            weight = torch.zeros(len(plain), 1, device=plain.device)
        else:
            weight = thoughts.weigh(plain, thinking)
            logps = mixed_logps(_logits(causal, plain), _logits(causal, thinking), weight)
        return logps.gather(-1, words[:, None]).squeeze(-1), weight.squeeze(-1)

    found = []
    for i in range(0, len(wanted), CHUNK):
        part = (plain[i : i + CHUNK], None if thinking is None else thinking[i : i + CHUNK])
        words = wanted[i : i + CHUNK]
        if torch.is_grad_enabled():
            found.append(checkpoint(of, *part, words, use_reentrant=False))
        else:
            found.append(of(*part, words))
    logps, weights = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(weights)


def step_loss(
    recipe: QuietStarRecipe,
    model: Any,
    thoughts: Thoughts,
    batch: Batch,
    draw: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a part of a step, and what the curves show of it; both weighted sums over the
    part's tokens: Σ weight · [plain_weight · NLL + NLL with thoughts + policy_weight · REINFORCE].

    NLL with thoughts is the mean over thoughts and over the true tokens that each has to tell.
    The NLL without them is part of the authors' code, not of algorithm 1.

    Args: batch: ids and mask, (rows, n + 1); weight of each row's tokens, (rows,).
    """
    causal = _causal(model)
    ids, mask = (batch[name].repeat(recipe.n_thoughts, 1) for name in ("ids", "mask"))
    n = ids.shape[1] - 1
    drawn = draw_thoughts(model, thoughts, ids[:, :n], recipe.thought_length, draw)
    columns = read_columns(model, thoughts, ids, drawn, recipe.true_tokens)
    shape = (recipe.n_thoughts, len(batch["ids"]), n)
    there = mask[:, 1:].bool()  # (thoughts · rows, n): column j has a token j + 1 to tell
    weight = batch["weight"][:, None].expand(-1, n) * there.view(shape)[0]  # (rows, n)

    once = there.view(shape)[0]
    plain = columns.plain.view(*shape, -1)[0]  # the same for all thoughts of a text
    plain_logps = _spread(
        told_logps(causal, None, plain[once], None, batch["ids"][:, 1:][once])[0], once
    )
    thought_logps = torch.zeros(there.shape, device=ids.device)
    for k, hidden in enumerate(columns.thinking):
        told = told_logps(causal, None, hidden[there], None, drawn[:, k][there])[0]
        thought_logps = thought_logps + _spread(told, there)
    talk_logps = torch.zeros(there.shape, device=ids.device)
    n_told = torch.zeros(there.shape, device=ids.device)
    for m, hidden in enumerate(columns.talking[:n]):  # further on, no text has a token
        has = torch.zeros_like(there)
        has[:, : n - m] = there[:, m:]
        at, column = has.nonzero(as_tuple=True)
        told, mixing = told_logps(
            causal, thoughts, columns.plain[at, column + m], hidden[has], ids[at, column + m + 1]
        )
        talk_logps = talk_logps + _spread(told, has)
        n_told = n_told + has
        if m == 0:
            first_logps, first_mixing = _spread(told, has), _spread(mixing, has)
    rewards = thought_rewards(talk_logps.detach().view(shape))
    policy = reinforce_losses(
        rewards, thought_logps.view(shape), only_helpful=recipe.only_helpful
    ).mean(dim=0)
    talk = -(talk_logps / n_told.clamp(min=1)).view(shape).mean(dim=0)
    losses = recipe.plain_weight * -plain_logps + talk + recipe.policy_weight * policy

    def shown(values: Tensor) -> Tensor:
        return (weight * values.detach()).sum()

    with_thoughts = -first_logps.view(shape).mean(dim=0)
    return (weight * losses).sum(), {
        "loss": shown(-plain_logps),
        "thought_loss": shown(with_thoughts),
        "thought_benefit": shown(-plain_logps - with_thoughts),
        "mixing_weight": shown(first_mixing.view(shape).mean(dim=0)),
        "thought_reward": shown(rewards.clamp(min=0).mean(dim=0)),
    }


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """Values of the true places of a mask, 0 at the others."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(
        where, values
    )


@dataclass(frozen=True)
class Told:
    """A text's tokens but the first, each as the model tells it; nats."""

    ids: list[int]
    """The whole text."""
    without: list[float]
    """−log-probability of each token with thoughts off."""
    with_thoughts: list[float]
    mixing: list[float]
    thoughts: list[list[int]]
    """After each token but the last: the likeliest thought, token by token."""


def told(
    model: Any, thoughts: Thoughts, rows: Sequence[list[int]], length: int, pad_id: int
) -> list[Told]:
    """What the model makes of texts with thoughts off and on: after every token the likeliest
    thought, and with it the next one."""
    where = next(model.parameters()).device
    ids, mask = (t.to(where) for t in pad_right(rows, pad_id))
    n = ids.shape[1] - 1
    with torch.no_grad(), _evaluating(model):
        drawn = draw_thoughts(model, thoughts, ids[:, :n], length, lambda x: x.argmax(dim=-1))
        columns = read_columns(model, thoughts, ids, drawn, 1)
        there = mask[:, 1:].bool()
        plain, wanted = columns.plain[there], ids[:, 1:][there]
        causal = _causal(model)
        without, _zero = told_logps(causal, None, plain, None, wanted)
        with_thoughts, mixing = told_logps(
            causal, thoughts, plain, columns.talking[0][there], wanted
        )
    plain_side, with_side, mixing_side = (
        _spread(values, there).tolist() for values in (-without, -with_thoughts, mixing)
    )
    found = []
    for at, row in enumerate(rows):
        n = len(row) - 1
        told = Told(
            ids=row,
            without=plain_side[at][:n],
            with_thoughts=with_side[at][:n],
            mixing=mixing_side[at][:n],
            thoughts=drawn[at].T.tolist()[:n],
        )
        found.append(told)
    return found


@dataclass(frozen=True)
class Written:
    """A text written on with thoughts, token by token."""

    text: str
    """What was written, without what stood before it."""
    ids: list[int]
    logps: list[float]
    """Log-probability of each token with its thought mixed in, nats."""
    mixing: list[float]
    thoughts: list[list[int]]
    """Before each token."""


def write_on(
    model: Any,
    tokenizer: Any,
    thoughts: Thoughts,
    length: int,
    text: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Written:
    """Write a text on with thoughts on: before each token the likeliest thought, as `told` measures
    it, which is then forgotten. What the text itself left in the cache stays.

    Args: temperature: of the tokens; 0 takes the likeliest.
    Raises: ValueError if there is no text, or no room for it, the new tokens and a thought.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    causal = _causal(model)
    body, table = _body(causal), causal.get_input_embeddings()
    where = table.weight.device
    longest = len(ids) + max_new_tokens + length + 2
    room = getattr(causal.config.get_text_config(), "max_position_embeddings", None) or longest
    if not ids:
        raise ValueError("there is no text to write on")
    if longest > room:
        raise ValueError(f"a text of {longest} tokens with its thought exceeds the context {room}")
    cache = DynamicCache()
    chance = torch.Generator(where).manual_seed(seed)
    written = Written("", [], [], [], [])

    def read(vectors: Tensor) -> Tensor:
        """Hidden state of the last of these vectors, (n, width) to (1, width)."""
        place = cache.get_seq_length()
        hidden: Tensor = body(
            inputs_embeds=vectors[None],
            position_ids=torch.arange(place, place + len(vectors), device=where)[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[:, -1]

    def read_mark(which: int) -> Tensor:
        return read(thoughts.mark(which).to(table.weight.dtype)[None])

    with torch.no_grad(), _evaluating(model):
        new = torch.tensor(ids, device=where)
        for _ in range(max_new_tokens):
            plain = read(table(new))
            hidden, thought = read_mark(0), []
            for _ in range(length):
                thought.append(_logits(causal, hidden).argmax(dim=-1))
                hidden = read(table(thought[-1]))
            talking = read_mark(1)
            cache.crop(-(length + 2))
            weight = thoughts.weigh(plain, talking)
            logps = mixed_logps(_logits(causal, plain), _logits(causal, talking), weight)[0]
            if temperature > 0:
                new = torch.multinomial(
                    torch.softmax(logps / temperature, dim=-1), 1, generator=chance
                )
            else:
                new = logps.argmax()[None]
            written.ids.append(int(new))
            written.logps.append(float(logps[new]))
            written.mixing.append(float(weight))
            written.thoughts.append([int(token) for token in thought])
            if int(new) == tokenizer.eos_token_id:
                break
    return replace(written, text=storable(tokenizer.decode(written.ids, skip_special_tokens=True)))


def _causal(model: Any) -> Any:
    """The causal model itself, adapters among its layers; they are called by its own forward."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _body(causal: Any) -> Any:
    return getattr(causal, causal.base_model_prefix)


def _logits(causal: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = causal.get_output_embeddings()(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to attention scores, (1, 1, queries, keys)."""
    kind = like.dtype
    if torch.is_autocast_enabled(like.device.type):
        kind = torch.get_autocast_dtype(like.device.type)
    added = torch.zeros(mask.shape, dtype=kind, device=like.device)
    return added.masked_fill(~mask.to(like.device), torch.finfo(kind).min)[None, None]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# A run --------------------------------------------------------------------------------------------


def train(
    recipe: QuietStarRecipe,
    train: Sequence[str],
    test: Sequence[str],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a policy that thinks on raw texts; leave it in `folder`/model, an ordinary model, and
    its marks and mixing head beside it.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run.

    Returns: token_metrics of the test texts with thoughts off; thought_loss, thought_benefit (loss
        without minus with thoughts, nats a token), mixing_weight, as figures; where_thoughts_help,
        see there; n_texts, n_train, n_steps, train_tokens, max_length, trained_parameters,
        parameters, longest, optimizer, seconds.
    Raises: ModelMissing; ValueError if no text holds two tokens; whatever on_step raises.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    rope = (recipe.rope_scaling, recipe.rope_factor)
    limit = longest_allowed(recipe.base_model, recipe.max_length + recipe.blocks, rope=rope)
    limit -= recipe.blocks
    if limit < 2:
        raise ValueError(
            f"thought_length: the model's context has no room for a column of {recipe.blocks}"
        )
    sides = [
        [
            piece
            for place, text in enumerate(side)
            for piece in text_pieces(text, str(place), tokenizer, limit)
        ]
        for side in (train, test)
    ]
    if not sides[0]:
        raise ValueError(f"no training text of {len(train)} holds two tokens")
    return _train(recipe, tokenizer, sides[0], sides[1], folder, on_step) | {
        "n_texts": len(train),
        "max_length": limit,
        "too_long_train": 0,
        "too_long_test": 0,
        "empty": 0,
        "seconds": time.monotonic() - began,
    }


@quiet_trainer()
def _train(
    recipe: QuietStarRecipe,
    tokenizer: Any,
    train: Sequence[TokenExample],
    test: Sequence[TokenExample],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    rows = [_ids(piece) for piece in train]
    lengths = [len(row) for row in rows]
    total = n_steps(recipe, len(rows))
    set_seed(recipe.seed)  # the adapters and the mixing head start at random
    base = load_causal(
        recipe.base_model,
        method=recipe.method,
        dtype=recipe.dtype,
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    without_dropout(base)
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    if window and window < max(lengths) + recipe.blocks:
        raise ValueError(
            f"max_length: this model looks back {window} tokens, and a text with a thought behind "
            f"it takes {max(lengths) + recipe.blocks}"
        )
    base_nll: dict[int, list[float]] = {}
    for part in _in_parts(longest_first(test), recipe.batch_size):
        with _autocast(recipe):
            found = plain_losses(base, [_ids(piece) for piece in part], tokenizer.pad_token_id)
        base_nll |= {id(piece): losses for piece, losses in zip(part, found, strict=True)}
        on_step(StepReport(step=0, n_steps=total, split="test"))

    model = adapted(base, recipe, task="CAUSAL_LM")
    model.thoughts = thoughts = new_thoughts(recipe, base, tokenizer)
    measured: dict[int, Told] = {}

    def losses(pieces: Sequence[TokenExample]) -> list[float]:
        """−log-probability (nats) of each piece with thoughts off."""
        with _autocast(recipe):
            found = told(
                model,
                thoughts,
                [_ids(piece) for piece in pieces],
                recipe.thought_length,
                tokenizer.pad_token_id,
            )
        measured.update({id(piece): one for piece, one in zip(pieces, found, strict=True)})
        return [sum(one.without) for one in found]

    def parts(step: Sequence[int]) -> list[Batch]:
        n_tokens = sum(lengths[at] - 1 for at in step)
        found = []
        for part in parts_of([lengths[at] for at in step], most_rows=recipe.batch_size):
            ids, mask = pad_right([rows[step[at]] for at in part], tokenizer.pad_token_id)
            # The trainer divides by the step's rows; a step is the mean over its tokens.
            weight = torch.full((len(part),), len(step) / n_tokens)
            found.append({"ids": ids, "mask": mask, "weight": weight})
        return found

    chance = torch.Generator(device())

    def seed_step(_model: Any, _parts: list[Batch]) -> None:
        chance.manual_seed(recipe.seed * 1_000_003 + trainer.state.global_step)

    def draw(logits: Tensor) -> Tensor:
        flat = torch.softmax(logits.flatten(0, 1), dim=-1)
        return torch.multinomial(flat, 1, generator=chance).view(logits.shape[:2])

    report: ReportSteps[TokenExample] = ReportSteps(
        recipe,
        total,
        test,
        losses,
        on_step,
        logged=LOGGED,
        summary=lambda _found: _point([measured[id(piece)] for piece in report.rows]),
    )
    trainer = StepTrainer(
        model,
        trainer_settings(recipe, folder, len(rows)),
        steps=steps_of(
            lengths,
            recipe.batch_size * recipe.gradient_accumulation,
            total,
            recipe.seed,
            by_length=True,
        ),
        parts=parts,
        loss=lambda model, batch: step_loss(recipe, model, thoughts, batch, draw),
        prepare=seed_step,
        # First: it has to write before the other one seals the checkpoint.
        callbacks=[_KeepThoughts(thoughts), report],
        optimizer=optimizer_of(model, recipe),
    )
    train_in_float32(model)
    save_start(model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    nll = report.measured_at_end(model)
    trained, parameters = n_parameters(model)
    del model.thoughts
    save_model(model, recipe, folder)
    save_thoughts(thoughts, folder / "model", recipe)
    tokenizer.save_pretrained(folder / "model")
    held_out = [measured[id(piece)] for piece in report.test]
    units = [piece.unit for piece in report.test]
    base_losses = [base_nll[id(piece)] for piece in report.test]
    return (
        token_metrics(nll, [sum(b) for b in base_losses], [len(b) for b in base_losses], units)
        | thought_metrics(held_out, units)
        | {"where_thoughts_help": where_thoughts_help(held_out, base_losses, units, tokenizer)}
        | {
            "n_train": len(rows),
            "n_steps": total,
            "longest": max(lengths),
            "train_tokens": sum(lengths),
            "trained_parameters": trained,
            "parameters": parameters,
            "optimizer": optimizer_words(recipe),
        }
    )


def plain_losses(model: Any, rows: Sequence[list[int]], pad_id: int) -> list[list[float]]:
    """−log-probability (nats) of every token but the first of each row, under a causal model."""
    ids, mask = (t.to(next(model.parameters()).device) for t in pad_right(rows, pad_id))
    with torch.no_grad(), _evaluating(model):
        hidden = _body(_causal(model))(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        there = mask[:, 1:].bool()
        logps, _zero = told_logps(
            _causal(model), None, hidden[:, :-1][there], None, ids[:, 1:][there]
        )
    found = _spread(-logps, there).tolist()
    return [losses[: len(row) - 1] for losses, row in zip(found, rows, strict=True)]


class _KeepThoughts(TrainerCallback):  # type: ignore[misc]
    """Marks and mixing head in every checkpoint: of a model with an adapter the trainer keeps the
    adapter alone."""

    def __init__(self, thoughts: Thoughts) -> None:
        self.thoughts = thoughts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            saved = load_file(self._place(args, state), device=str(self.thoughts.marks.device))
            with torch.no_grad():
                for name, parameter in self.thoughts.named_parameters():
                    parameter.copy_(saved[name])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        save_file(self.thoughts.state_dict(), self._place(args, state))

    @staticmethod
    def _place(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / THOUGHTS


def save_thoughts(thoughts: Thoughts, place: Path, recipe: QuietStarRecipe) -> None:
    """Marks and mixing head beside a saved model."""
    about = {"thought_length": str(recipe.thought_length), "speed": repr(recipe.mark_speed)}
    save_file(
        {name: tensor.contiguous() for name, tensor in thoughts.state_dict().items()},
        place / THOUGHTS,
        metadata=about,
    )


def load_thinking(folder: str | Path, *, dtype: str = "auto") -> tuple[Any, Any, Thoughts, int]:
    """(model, tokenizer, thoughts, length of a thought) from the folder that a run left.

    Raises: ModelMissing; FileNotFoundError if the folder holds a model that does not think.
    """
    model, tokenizer = load_policy(str(folder), dtype=dtype)
    path = Path(folder) / THOUGHTS
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    saved = load_file(path)
    thoughts = Thoughts(saved["marks"].shape[1], speed=float(about["speed"]))
    thoughts.load_state_dict(saved)
    where = next(model.parameters()).device
    return model, tokenizer, thoughts.to(where).eval(), int(about["thought_length"])


# What came of it ----------------------------------------------------------------------------------


def thought_metrics(rows: Sequence[Told], units: Sequence[str]) -> dict[str, Any]:
    """thought_loss, thought_benefit and mixing_weight over all held-out tokens; texts are resampled
    whole for the 95 % intervals. Empty without rows."""
    if not rows:
        return {}
    n = [len(row.without) for row in rows]
    with_thoughts = [sum(row.with_thoughts) for row in rows]
    gains = [sum(row.without) - loss for row, loss in zip(rows, with_thoughts, strict=True)]
    return {
        "thought_loss": ratio_figure(with_thoughts, n, units),
        "thought_benefit": ratio_figure(gains, n, units),
        "mixing_weight": ratio_figure([sum(row.mixing) for row in rows], n, units),
    }


def where_thoughts_help(
    rows: Sequence[Told],
    base_losses: Sequence[Sequence[float]],
    units: Sequence[str],
    tokenizer: Any,
) -> dict[str, Any]:
    """Where among the held-out tokens thoughts help most; gains in nats a token, thoughts off minus
    thoughts on.

    Returns:
        difficulty: the gain in each fourth of the tokens by their loss under the base, the easiest
            first: {"from", "to", "gain": a figure with n tokens}.
        tokens: the tokens with the largest mean gain on one half of the texts, and their gain on
            the other half: chosen and measured on the same texts, chance would look like a gain.
            {"token", "gain"}. Empty where no token stands `FEWEST` times in either half.
        places: the single places with the largest gain, for reading: {"before", "token", "gain",
            "mixing", "thought"}; they are one observation each.
    """
    places = [(at, j) for at, row in enumerate(rows) for j in range(len(row.without))]
    gain = {(at, j): rows[at].without[j] - rows[at].with_thoughts[j] for at, j in places}

    def figure(chosen: Sequence[tuple[int, int]]) -> dict[str, Any]:
        sums: dict[str, tuple[float, int]] = {}
        for at, j in chosen:
            total, n = sums.get(units[at], (0.0, 0))
            sums[units[at]] = (total + gain[at, j], n + 1)
        found = ratio_figure(
            [t for t, _n in sums.values()], [n for _t, n in sums.values()], [*sums]
        )
        return found | {"n": len(chosen), "n_texts": len(sums)}

    by_loss = sorted(places, key=lambda place: base_losses[place[0]][place[1]])
    fourths = [by_loss[len(by_loss) * q // 4 : len(by_loss) * (q + 1) // 4] for q in range(4)]
    difficulty = [
        {
            "from": base_losses[part[0][0]][part[0][1]],
            "to": base_losses[part[-1][0]][part[-1][1]],
            "gain": figure(part),
        }
        for part in fourths
        if part
    ]
    half = {unit: n % 2 for n, unit in enumerate(dict.fromkeys(units))}
    halves: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    for at, j in places:
        token = rows[at].ids[j + 1]
        halves.setdefault(token, ([], []))[half[units[at]]].append((at, j))
    often = {t: sides for t, sides in halves.items() if min(map(len, sides)) >= FEWEST}
    means = {t: sum(gain[p] for p in sides[0]) / len(sides[0]) for t, sides in often.items()}
    best = sorted(means, key=lambda token: -means[token])[:SHOWN]
    top = sorted(places, key=lambda place: -gain[place])[:SHOWN]
    return {
        "difficulty": difficulty,
        "tokens": [
            {"token": storable(tokenizer.decode([token])), "gain": figure(often[token][1])}
            for token in best
        ],
        "places": [
            {
                "before": storable(tokenizer.decode(rows[at].ids[: j + 1])[-CONTEXT_CHARS:]),
                "token": storable(tokenizer.decode([rows[at].ids[j + 1]])),
                "gain": gain[at, j],
                "mixing": rows[at].mixing[j],
                "thought": storable(tokenizer.decode(rows[at].thoughts[j])),
            }
            for at, j in top
        ],
    }


def _point(rows: Sequence[Told]) -> dict[str, float]:
    """A point of the curves."""
    n = sum(len(row.without) for row in rows)
    without = sum(sum(row.without) for row in rows) / n
    with_thoughts = sum(sum(row.with_thoughts) for row in rows) / n
    return {
        "loss": without,
        "thought_loss": with_thoughts,
        "thought_benefit": without - with_thoughts,
        "mixing_weight": sum(sum(row.mixing) for row in rows) / n,
    }


def _ids(piece: TokenExample) -> list[int]:
    return piece.prompt_ids + piece.response_ids


def _in_parts(pieces: Sequence[TokenExample], size: int) -> Iterator[Sequence[TokenExample]]:
    for start in range(0, len(pieces), size):
        yield pieces[start : start + size]


def _autocast(recipe: QuietStarRecipe) -> Any:
    is_bf16 = number_format(recipe.dtype) == torch.bfloat16
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=is_bf16)
