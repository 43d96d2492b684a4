"""Put questions to a causal language model on this machine: log-probabilities and texts out.

One question costs one reading of its text. In mode "rationale" the judge first writes, greedily;
the ending is then appended and the text read on from where it is already in the key/value cache.
The numbers are those of the whole text (question, rationale, ending) read at once, in one piece.
"""

import inspect
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from judges.ml.asking import Reply, Request, Said, Writing
from judges.ml.config import JudgeRecipe, ModelUnusable
from judges.ml.questions import plain_text, tidy_written, with_written

STOP_EVERY = 8  # tokens between two looks at whether a rationale has come to its end


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """A judge's model in memory, with all that follows from model and recipe."""

    model: Any
    tokenizer: Any
    recipe: JudgeRecipe
    device: torch.device
    max_context: int
    batch_tokens: int
    eos_ids: frozenset[int]
    control: tuple[str, ...]
    reads_last_logits_only: bool
    """Its forward pass can leave out the logits of all positions but the last."""

    def excess(self, request: Request) -> int:
        return len(self._ids(request)) + self._reserve(request) - self.max_context

    def answer(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
        """Longest questions first, so that memory that does not suffice shows at once."""
        for writes in (True, False):
            places = [i for i, one in enumerate(requests) if (one.write is not None) is writes]
            for batch in self._answer_alike([requests[i] for i in places]):
                yield [(places[i], reply) for i, reply in batch]

    def _answer_alike(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
        budget = self.batch_tokens or (8192 if self.device.type == "cpu" else 32768)
        ids = [self._ids(request) for request in requests]
        order = sorted(range(0, len(requests), 2), key=lambda i: -max(map(len, ids[i : i + 2])))
        start = 0
        while start < len(order):
            first = order[start]
            room = max(map(len, ids[first : first + 2])) + self._reserve(requests[first])
            size = max(1, budget // (2 * room))
            places = [
                place
                for i in order[start : start + size]
                for place in (i, i + 1)
                if place < len(requests)
            ]
            start += size
            began = time.perf_counter()
            said = _answer(self, [requests[p] for p in places], [ids[p] for p in places])
            seconds = (time.perf_counter() - began) / len(places)
            yield [
                (place, Reply(said=(one,), n_tokens_read=n_tokens, seconds=seconds))
                for place, (one, n_tokens) in zip(places, said, strict=True)
            ]

    def _ids(self, request: Request) -> list[int]:
        text = rendered(self, request)
        return _tokens(self, text if request.write else text + request.ending)

    def _reserve(self, request: Request) -> int:
        if request.write is None:
            return 0
        ending = self.tokenizer(request.ending, add_special_tokens=False)["input_ids"]
        return request.write.max_tokens + len(ending) + 1


def load_engine(
    model: str, recipe: JudgeRecipe, device: str = "", batch_tokens: int = 0
) -> LocalEngine:
    """The judge's model in memory.

    Args:
        model: hub id or local folder. Weights are read as safetensors; code that comes with a model
            is never run.
        device: "cpu", "cuda", …; empty is the GPU if there is one.
    Raises: ModelUnusable when the folder is missing or is no causal language model.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if _is_path(model) and not Path(model).expanduser().is_dir():
        raise ModelUnusable(f"there is no model folder {model}")
    name = str(Path(model).expanduser()) if _is_path(model) else model
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
    options["dtype"] = _dtype(recipe, where)
    if recipe.load_in_4bit:
        compute = torch.float32 if options["dtype"] == "auto" else options["dtype"]
        if where.type == "cuda" and options["dtype"] == "auto":
            compute = torch.bfloat16
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        options["device_map"] = {"": where}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelUnusable(f"the model {model} could not be loaded: {reason}") from error
    if not recipe.load_in_4bit:
        loaded = loaded.to(where)
    for module in loaded.modules():
        # On processors with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first forward
        # pass, rounds their scales to bfloat16 and fails on layers narrower than 64: the plain path
        # gives the same numbers on every processor.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    loaded.eval()
    return LocalEngine(
        model=loaded,
        tokenizer=tokenizer,
        recipe=recipe,
        device=where,
        max_context=_max_context(loaded, tokenizer, recipe),
        batch_tokens=batch_tokens,
        eos_ids=_eos_ids(loaded, tokenizer),
        control=control_marks(tokenizer),
        reads_last_logits_only="logits_to_keep" in inspect.signature(loaded.forward).parameters,
    )


def answer_ids(tokenizer: Any, ending: str, answer: str) -> tuple[int, ...]:
    """Tokens that spell the answer after the ending, with and without a space before it.

    Raises: ModelUnusable if the tokenizer has no single token for it.
    """
    vocabulary = tokenizer.get_vocab()
    # As it stands in byte-level (Ġ) and in sentencepiece (▁) vocabularies.
    ids = {vocabulary[name] for name in (answer, f"Ġ{answer}", f"▁{answer}") if name in vocabulary}
    before = tokenizer(ending, add_special_tokens=False)["input_ids"]
    for spelling in (answer, f" {answer}"):
        after = tokenizer(ending + spelling, add_special_tokens=False)["input_ids"]
        if len(after) == len(before) + 1 and after[:-1] == before:
            ids.add(after[-1])
    if not ids:
        raise ModelUnusable(f'the tokenizer of this model has no single token for "{answer}"')
    return tuple(sorted(ids))


def control_marks(tokenizer: Any) -> tuple[str, ...]:
    """Strings that this tokenizer reads as something other than text: ends of turns and the like.

    Added tokens that are plain runs of spaces or words are left out.
    """
    marks = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or set(token.content) & set("<>[]|"):
            marks.add(token.content)
    return tuple(sorted(mark for mark in marks if len(mark) > 1))


def rendered(engine: LocalEngine, request: Request) -> str:
    """The question as the model reads it: through its chat template, or as plain text."""
    if not _uses_chat(engine):
        return plain_text(request)
    turn = [{"role": "user", "content": request.task}]
    text: str = engine.tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text + request.lead


def _uses_chat(engine: LocalEngine) -> bool:
    return engine.recipe.chat == "auto" and bool(engine.tokenizer.chat_template)


def _tokens(engine: LocalEngine, text: str) -> list[int]:
    # A chat template writes the mark of the text's beginning itself.
    ids: list[int] = engine.tokenizer(text, add_special_tokens=not _uses_chat(engine))["input_ids"]
    while ids and ids[-1] in engine.eos_ids and not _uses_chat(engine):
        ids.pop()  # some tokenizers close every text; the judge is to go on
    return ids


@torch.inference_mode()
def _answer(
    engine: LocalEngine, requests: list[Request], ids: list[list[int]]
) -> list[tuple[Said, int]]:
    """One batch, in which all write or none does: what was said, and how many tokens were read."""
    texts = [rendered(engine, request) for request in requests]
    write = requests[0].write
    if write is None:
        texts = [text + one.ending for text, one in zip(texts, requests, strict=True)]
        logits = _read(engine, ids).logits[:, -1]
        return _answers(engine, requests, logits, texts, [""] * len(texts), ids)
    written, cache, n_padding = _write_rationales(engine, write, ids)
    rationales, full_texts, full_ids = [], [], []
    for request, text, tokens in zip(requests, texts, written, strict=True):
        words = engine.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        rationale = tidy_written(words, write.stops, engine.control)
        whole = with_written(text, rationale, request.ending)
        whole_ids = _tokens(engine, whole)
        while rationale and len(whole_ids) > engine.max_context:
            # Broken characters take more tokens when read again than when they were written.
            rationale = rationale[: len(rationale) * 3 // 4].rstrip()
            whole = with_written(text, rationale, request.ending)
            whole_ids = _tokens(engine, whole)
        rationales.append(rationale)
        full_texts.append(whole)
        full_ids.append(whole_ids)
    if not _is_plain_cache(cache):
        # Sliding windows and recurrent states cannot be taken up in the middle of a row.
        logits = _read(engine, full_ids).logits[:, -1]
    else:
        in_cache = [row + tokens for row, tokens in zip(ids, written, strict=True)]
        logits = _read_on(engine, cache, n_padding, in_cache, full_ids)
    return _answers(engine, requests, logits, full_texts, rationales, full_ids)


def _answers(
    engine: LocalEngine,
    requests: list[Request],
    logits: torch.Tensor,  # (rows, vocabulary), of the last position alone
    texts: list[str],
    rationales: list[str],
    ids: list[list[int]],
) -> list[tuple[Said, int]]:
    logp = logits.float().log_softmax(-1)
    found = []
    for request, row, text, rationale, tokens in zip(
        requests, logp, texts, rationales, ids, strict=True
    ):
        logps = []
        for answer in request.answers:
            spellings = answer_ids(engine.tokenizer, request.ending.strip(), answer)
            one = row[torch.tensor(spellings, device=row.device)].logsumexp(-1)
            # Rounding may leave it a hair above 0; an impossible token must stay finite.
            logps.append(float(one.clamp(min=-1e4, max=0.0)))
        said = Said(logps=tuple(logps), text=text, rationale=rationale)
        found.append((said, len(tokens)))
    return found


def _read(engine: LocalEngine, ids: list[list[int]]) -> Any:
    """One forward pass over left-padded rows; logits of the last position where the model can."""
    tokens, mask = _left_padded(ids, engine.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return _forward(engine, tokens, mask, positions, None)


def _write_rationales(
    engine: LocalEngine, write: Writing, ids: list[list[int]]
) -> tuple[list[list[int]], Any, list[int]]:
    """Greedy rationales.

    Returns: the tokens that each row wrote, without its end mark; the cache, which may lack the
    last of them; and how many slots of padding each row has in it.
    """
    tokens, mask = _left_padded(ids, engine.device)
    width = tokens.shape[1]
    n_padding = [width - len(row) for row in ids]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in ids]
    ended = [False] * len(ids)
    cache = None
    for step in range(write.max_tokens):
        output = _forward(engine, tokens, mask, positions, cache)
        cache = output.past_key_values
        chosen = output.logits[:, -1].argmax(-1)  # (rows,)
        for row, token in enumerate(chosen.tolist()):
            ended[row] = ended[row] or token in engine.eos_ids
            if not ended[row]:
                written[row].append(token)
        if step % STOP_EVERY == STOP_EVERY - 1:
            for row, so_far in enumerate(written):
                ended[row] = ended[row] or _has_stopped(engine, write, so_far)
        if all(ended):
            break
        tokens = chosen[:, None]
        # An ended row goes on in its slots; what it reads there is masked when the text is read on.
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = positions[:, -1:] + 1
    return written, cache, n_padding


def _has_stopped(engine: LocalEngine, write: Writing, tokens: list[int]) -> bool:
    words = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    return any(stop in words for stop in write.stops)


def _read_on(
    engine: LocalEngine,
    cache: Any,
    n_padding: list[int],
    in_cache: list[list[int]],
    ids: list[list[int]],
) -> torch.Tensor:
    """Logits after each row of `ids`, (rows, vocabulary), reading only what the cache lacks.

    A row keeps of the cache what its text has in common with what was read and written, token by
    token; the slots after that are masked, and the rest of the text follows at its own positions.
    """
    n_slots = cache.get_seq_length()
    rest, start = [], []
    mask = torch.zeros((len(ids), n_slots), dtype=torch.long)
    for row, (old, new) in enumerate(zip(in_cache, ids, strict=True)):
        # At least the last token is read: its logits are what we want.
        limit = min(len(old), len(new) - 1, n_slots - n_padding[row])
        common = next((i for i in range(limit) if old[i] != new[i]), limit)
        mask[row, n_padding[row] : n_padding[row] + common] = 1
        rest.append(new[common:])
        start.append(common)
    tokens, rest_mask = _left_padded(rest, engine.device)
    mask = torch.cat([mask.to(engine.device), rest_mask], dim=1)
    positions = (rest_mask.cumsum(-1) - 1).clamp(min=0)
    positions = positions + torch.tensor(start, device=engine.device)[:, None]
    logits: torch.Tensor = _forward(engine, tokens, mask, positions, cache).logits[:, -1]
    return logits


def _forward(
    engine: LocalEngine,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Any,
) -> Any:
    options: dict[str, Any] = {"use_cache": True}
    if engine.reads_last_logits_only:
        options["logits_to_keep"] = 1  # (rows, 1, vocabulary) instead of one row for every token
    return engine.model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        **options,
    )


def _left_padded(ids: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (rows, longest), padding on the left."""
    width = max(map(len, ids))
    tokens = torch.tensor([[row[0]] * (width - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
    return tokens, mask


def _is_plain_cache(cache: Any) -> bool:
    """Whether every layer keeps keys and values of all tokens in their order."""
    layers: list[Any] = getattr(cache, "layers", [])
    return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _is_path(model: str) -> bool:
    """A hub id is `owner/name` or `name`; everything else is a folder."""
    return model.startswith((os.sep, ".", "~")) or model.count("/") > 1 or Path(model).is_dir()


def _dtype(recipe: JudgeRecipe, device: torch.device) -> Any:
    if recipe.dtype != "auto":
        return getattr(torch, recipe.dtype)
    return torch.float32 if device.type == "cpu" else "auto"


def _max_context(model: Any, tokenizer: Any, recipe: JudgeRecipe) -> int:
    """Tokens that model, tokenizer and recipe all allow."""
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        recipe.max_context,
    ]
    # Tokenizers without a limit say 1e30.
    known = [int(limit) for limit in limits if limit and limit < 1e9]
    return min(known, default=10**9)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ids: set[Any] = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        eos: Any = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [eos])
    return frozenset(token for token in ids if token is not None)
