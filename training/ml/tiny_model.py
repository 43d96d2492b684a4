"""A small language model from nothing: a byte-level BPE tokenizer and a Llama of a few layers.

Made for worlds whose language is small (see labeling.microworld): some minutes on two cores give a
model that writes it well. What comes out is an ordinary folder for transformers, with a chat
template, so every recipe and every judge takes it like any other model.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
# The person's turn has no mark of its own: it begins the text, and follows an answer's <|end|>.
# So what a person says to an answer is what the model foresees at that answer's last token, which
# is where a reward model reads: a small base brings something to start from.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'system' %}{{ '<|system|>' + message['content'] + '<|user|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Text:
    """A text to learn from: the loss is over `learned` alone, `read` only stands before it."""

    read: str
    learned: str


@dataclass(frozen=True, kw_only=True)
class TinyRecipe:
    """Everything that decides a small model."""

    vocabulary: int = 1024
    """Most tokens of the tokenizer, the 256 bytes and the special ones among them."""
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 1024
    """Most positions the model may be given; rotary, so it costs nothing."""
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    """AdamW, for embeddings, norms and the output."""
    muon_learning_rate: float = 0.02
    """Muon, for the matrices of the layers; orthogonalised steps learn a small model in about half
    the tokens (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; it falls linearly to zero over the last half."""
    seed: int = 0


def train_tokenizer(texts: Sequence[str], folder: Path, *, vocabulary: int = 1024) -> Any:
    """Learn a byte-level BPE from texts and save it with its chat template in `folder`.

    Every string survives encode and decode, since the 256 bytes are in the vocabulary.
    Returns: the tokenizer, a PreTrainedTokenizerFast.
    """
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special[2:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def pretrain(
    recipe: TinyRecipe,
    texts: Sequence[Text],
    folder: Path,
    *,
    start: Path | None = None,
    vocabulary_texts: Sequence[str] = (),
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, float]:
    """Train a small causal model on texts and save it in `folder` as safetensors.

    Args:
        start: a folder made by this function to go on from with its tokenizer and its width, and
            with new layers on top up to the recipe's number; without it tokenizer and model are
            made here from the texts.
        vocabulary_texts: more texts for the tokenizer alone, such as what a model that goes on
            from this one will read.
        on_step: told (step, steps, loss in nats per learned token) after each step.
    Returns: final loss (mean over the last tenth of the steps, nats per token), parameters, tokens
        learned from, seconds.
    Raises: ValueError on no texts, or fewer layers than the start has.
    """
    if not texts:
        raise ValueError("a model cannot be trained on no texts")
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    if start is None:
        tokenizer = train_tokenizer(
            [*(text.read + text.learned for text in texts), *vocabulary_texts],
            folder,
            vocabulary=recipe.vocabulary,
        )
        model = _new_model(recipe, tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
        with _no_bars():
            model = _grown(
                AutoModelForCausalLM.from_pretrained(
                    start, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                ),
                recipe.layers,
            )
        tokenizer.save_pretrained(folder)
    rows = [_tokens(tokenizer, text) for text in texts]
    batches = _batches(rows, recipe, tokenizer.pad_token_id)
    optimizers, schedulers = _optimizers(model, recipe)
    losses: list[float] = []
    n_tokens = 0
    model.train()
    for step in range(1, recipe.steps + 1):
        ids, labels = next(batches)  # (batch, tokens) each
        # Only the positions that are learned from go through the output matrix.
        states = model.model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long())
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(states.last_hidden_state[:, :-1][wanted])  # (learned, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        n_tokens += int(wanted.sum())
        on_step(step, recipe.steps, losses[-1])
    with _no_bars():
        model.save_pretrained(folder, safe_serialization=True)
    last = losses[-max(1, recipe.steps // 10) :]
    return {
        "loss": sum(last) / len(last),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "tokens": float(n_tokens),
        "seconds": time.monotonic() - began,
    }


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Reading and writing a megabyte needs no progress bar."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _new_model(recipe: TinyRecipe, tokenizer: Any) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 11 // 4,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _grown(model: Any, layers: int) -> Any:
    """The model with new layers on top that change nothing yet: they write zeros into the stream.

    As depth up-scaling does with trained layers (Kim et al. 2023, arXiv:2312.15166).
    """
    trained = model.config.num_hidden_layers
    if layers < trained:
        raise ValueError(f"the start has {trained} layers, the recipe wants {layers}")
    if layers == trained:
        return model
    config = LlamaConfig(**{**model.config.to_dict(), "num_hidden_layers": layers})
    grown = LlamaForCausalLM(config)
    grown.load_state_dict(model.state_dict(), strict=False)
    for layer in grown.model.layers[trained:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return grown


def _tokens(tokenizer: Any, text: Text) -> tuple[list[int], list[int]]:
    """Token ids of a text, and its labels: -100 where a token begins in what is only read."""
    encoded = tokenizer(
        text.read + text.learned, add_special_tokens=False, return_offsets_mapping=True
    )
    ids = list(encoded["input_ids"])
    border = len(text.read)
    labels = [
        token if begin >= border else -100
        for token, (begin, _) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids, labels


def _batches(
    rows: list[tuple[list[int], list[int]]], recipe: TinyRecipe, pad: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end; texts of like length stand together, so that little is padding."""
    rng = random.Random(recipe.seed)  # noqa: S311 - an order, not a secret
    while True:
        order = list(range(len(rows)))
        rng.shuffle(order)
        window = recipe.batch_size * 16
        batches = []
        for begin in range(0, len(order), window):
            part = sorted(order[begin : begin + window], key=lambda i: len(rows[i][0]))
            batches += [
                part[i : i + recipe.batch_size] for i in range(0, len(part), recipe.batch_size)
            ]
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(rows[i][0]) for i in batch)
            ids = torch.full((len(batch), width), pad)
            labels = torch.full((len(batch), width), -100)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i][0])] = torch.tensor(rows[i][0])
                labels[place, : len(rows[i][1])] = torch.tensor(rows[i][1])
            yield ids, labels


def _optimizers(model: Any, recipe: TinyRecipe) -> tuple[list[Any], list[Any]]:
    """Muon for the matrices of the layers, AdamW for everything else, one schedule for both."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers: list[Any] = [
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    warmup = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 1.0, 2 * (recipe.steps - step) / recipe.steps)

    return optimizers, [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
