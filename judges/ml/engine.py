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

from judges.ml.config import JudgeRecipe, Messages, ModelUnusable
from judges.ml.questions import ANSWERS, Question, ask, stop_marks, tidy_rationale, verdict_text

STOP_EVERY = 8  # tokens between two looks at whether a rationale has come to its end


@dataclass(frozen=True)
class Sample:
    """A prompt with responses A and B."""

    prompt: Messages
    a: Messages
    b: Messages


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the judge made of one question."""

    text: str
    """Exactly what the model read before its answer token, its own rationale included."""
    rationale: str
    logp_first: float
    logp_second: float
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Both orders of one sample, or the problem that kept it from being asked."""

    ab: Answer | None = None
    ba: Answer | None = None
    n_tokens_cut: int = 0
    """Tokens of the prompt's oldest turns that were left out to fit the context."""
    problem: str = ""
    seconds: float = 0.0
    """Its share of the time of its batch."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A judge's model in memory, with all that follows from model and recipe."""

    model: Any
    tokenizer: Any
    recipe: JudgeRecipe
    device: torch.device
    max_context: int
    first_ids: tuple[int, ...]
    second_ids: tuple[int, ...]
    eos_ids: frozenset[int]
    control: tuple[str, ...]
    reads_last_logits_only: bool
    """Its forward pass can leave out the logits of all positions but the last."""


@dataclass(frozen=True)
class _Asked:
    """A sample whose two questions fit the context."""

    index: int
    texts: tuple[str, str]  # rendered questions, A first and B first
    ids: tuple[list[int], list[int]]
    n_tokens_cut: int = 0


def load_engine(model: str, recipe: JudgeRecipe, device: str = "") -> Engine:
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
    return Engine(
        model=loaded,
        tokenizer=tokenizer,
        recipe=recipe,
        device=where,
        max_context=_max_context(loaded, tokenizer, recipe),
        first_ids=answer_ids(tokenizer, recipe.ending, ANSWERS[0]),
        second_ids=answer_ids(tokenizer, recipe.ending, ANSWERS[1]),
        eos_ids=_eos_ids(loaded, tokenizer),
        control=control_marks(tokenizer),
        reads_last_logits_only="logits_to_keep" in inspect.signature(loaded.forward).parameters,
    )


def judge_in_batches(
    engine: Engine, samples: Sequence[Sample], batch_tokens: int = 0
) -> Iterator[list[tuple[int, Outcome]]]:
    """Both orders of every sample, batch by batch: (place in `samples`, outcome).

    Longest questions come first, so that memory that does not suffice shows at once. Both orders
    of a sample are in one batch.

    Args:
        batch_tokens: about how many tokens one batch may hold, padding and rationale included;
            0 chooses 8,192 on a CPU and 32,768 on a GPU.
    """
    budget = batch_tokens or (8192 if engine.device.type == "cpu" else 32768)
    asked, refused = [], []
    for index, sample in enumerate(samples):
        fitting = _fit(engine, index, sample)
        if isinstance(fitting, _Asked):
            asked.append(fitting)
        else:
            refused.append((index, fitting))
    if refused:
        yield refused
    asked.sort(key=lambda one: -max(map(len, one.ids)))
    start = 0
    while start < len(asked):
        room = max(map(len, asked[start].ids)) + _reserve(engine)
        size = max(1, budget // (2 * room))
        batch = asked[start : start + size]
        start += size
        began = time.perf_counter()
        answers = _answer(
            engine,
            [text for one in batch for text in one.texts],
            [ids for one in batch for ids in one.ids],
        )
        seconds = (time.perf_counter() - began) / len(batch)
        yield [
            (
                one.index,
                Outcome(
                    ab=answers[2 * row],
                    ba=answers[2 * row + 1],
                    n_tokens_cut=one.n_tokens_cut,
                    seconds=seconds,
                ),
            )
            for row, one in enumerate(batch)
        ]


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


def rendered(engine: Engine, question: Question) -> str:
    """The question as the model reads it: through its chat template, or as plain text."""
    if not _uses_chat(engine):
        return question.text()
    turn = [{"role": "user", "content": question.task}]
    text: str = engine.tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text + question.lead


def _uses_chat(engine: Engine) -> bool:
    return engine.recipe.chat == "auto" and bool(engine.tokenizer.chat_template)


def _fit(engine: Engine, index: int, sample: Sample) -> _Asked | Outcome:
    """Both questions of a sample, the prompt's oldest turns left out as far as needed."""
    prompt = [dict(message) for message in sample.prompt]
    asked = _ask_both(engine, index, sample, prompt)
    full_length = max(map(len, asked.ids))
    room = engine.max_context - _reserve(engine)
    if full_length <= room:
        return asked
    while max(map(len, asked.ids)) > room and len(prompt) > 1:
        # A system message says what the whole conversation is about: it goes last but one.
        oldest = next((i for i, turn in enumerate(prompt[:-1]) if turn["role"] != "system"), 0)
        del prompt[oldest]
        asked = _ask_both(engine, index, sample, prompt)
    if max(map(len, asked.ids)) > room:
        # The last turn alone is too long: keep as much of its end as fits.
        words = prompt[0]["content"] if prompt else ""
        keep = [{**turn, "content": "…"} for turn in prompt]
        asked = _ask_both(engine, index, sample, keep)
        if max(map(len, asked.ids)) > room:
            return Outcome(
                problem="The two responses do not fit the model's context of "
                f"{engine.max_context} tokens."
            )
        low, high = 0, len(words)
        while high - low > 1:
            middle = (low + high) // 2
            keep[0]["content"] = "…" + words[len(words) - middle :]
            attempt = _ask_both(engine, index, sample, keep)
            if max(map(len, attempt.ids)) <= room:
                low, asked = middle, attempt
            else:
                high = middle
    n_cut = full_length - max(map(len, asked.ids))
    return _Asked(asked.index, asked.texts, asked.ids, n_cut)


def _ask_both(engine: Engine, index: int, sample: Sample, prompt: Messages) -> _Asked:
    questions = [
        ask(engine.recipe, prompt, first, second, engine.control)
        for first, second in ((sample.a, sample.b), (sample.b, sample.a))
    ]
    ab, ba = (rendered(engine, question) for question in questions)
    if engine.recipe.mode == "direct":
        ab, ba = (verdict_text(engine.recipe, text) for text in (ab, ba))
    return _Asked(index, (ab, ba), (_tokens(engine, ab), _tokens(engine, ba)))


def _reserve(engine: Engine) -> int:
    """Tokens that a question needs after its text: the rationale and the ending."""
    if engine.recipe.mode == "direct":
        return 0
    ending = engine.tokenizer(f"\n{engine.recipe.ending}", add_special_tokens=False)["input_ids"]
    return engine.recipe.max_rationale_tokens + len(ending) + 1


def _tokens(engine: Engine, text: str) -> list[int]:
    # A chat template writes the mark of the text's beginning itself.
    ids: list[int] = engine.tokenizer(text, add_special_tokens=not _uses_chat(engine))["input_ids"]
    while ids and ids[-1] in engine.eos_ids and not _uses_chat(engine):
        ids.pop()  # some tokenizers close every text; the judge is to go on
    return ids


@torch.inference_mode()
def _answer(engine: Engine, texts: list[str], ids: list[list[int]]) -> list[Answer]:
    """One batch: rationales if the mode has them, then the answer's log-probabilities."""
    recipe = engine.recipe
    if recipe.mode == "direct":
        logits = _read(engine, ids).logits[:, -1]
        return _answers(engine, logits, texts, [""] * len(texts), ids)
    written, cache, n_padding = _write_rationales(engine, ids)
    rationales, full_texts, full_ids = [], [], []
    for text, tokens in zip(texts, written, strict=True):
        words = engine.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        rationale = tidy_rationale(recipe, words, engine.control)
        whole = verdict_text(recipe, text, rationale)
        whole_ids = _tokens(engine, whole)
        while rationale and len(whole_ids) > engine.max_context:
            # Broken characters take more tokens when read again than when they were written.
            rationale = rationale[: len(rationale) * 3 // 4].rstrip()
            whole = verdict_text(recipe, text, rationale)
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
    return _answers(engine, logits, full_texts, rationales, full_ids)


def _answers(
    engine: Engine,
    logits: torch.Tensor,  # (rows, vocabulary), of the last position alone
    texts: list[str],
    rationales: list[str],
    ids: list[list[int]],
) -> list[Answer]:
    logits = logits.float()
    normaliser = logits.logsumexp(-1)  # (rows,)
    both = []
    for spellings in (engine.first_ids, engine.second_ids):
        index = torch.tensor(spellings, device=logits.device)
        logp = logits.index_select(-1, index).logsumexp(-1) - normaliser
        # Rounding may leave it a hair above 0; an impossible token must stay a finite number.
        both.append(logp.clamp(min=-1e4, max=0.0).tolist())
    return [
        Answer(
            text=text, rationale=rationale, logp_first=first, logp_second=second, n_tokens=len(row)
        )
        for text, rationale, first, second, row in zip(
            texts, rationales, both[0], both[1], ids, strict=True
        )
    ]


def _read(engine: Engine, ids: list[list[int]]) -> Any:
    """One forward pass over left-padded rows; logits of the last position where the model can."""
    tokens, mask = _left_padded(ids, engine.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return _forward(engine, tokens, mask, positions, None)


def _write_rationales(
    engine: Engine, ids: list[list[int]]
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
    for step in range(engine.recipe.max_rationale_tokens):
        output = _forward(engine, tokens, mask, positions, cache)
        cache = output.past_key_values
        chosen = output.logits[:, -1].argmax(-1)  # (rows,)
        for row, token in enumerate(chosen.tolist()):
            ended[row] = ended[row] or token in engine.eos_ids
            if not ended[row]:
                written[row].append(token)
        if step % STOP_EVERY == STOP_EVERY - 1:
            for row, so_far in enumerate(written):
                ended[row] = ended[row] or _has_stopped(engine, so_far)
        if all(ended):
            break
        tokens = chosen[:, None]
        # An ended row goes on in its slots; what it reads there is masked when the text is read on.
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = positions[:, -1:] + 1
    return written, cache, n_padding


def _has_stopped(engine: Engine, tokens: list[int]) -> bool:
    words = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    return any(stop in words for stop in stop_marks(engine.recipe))


def _read_on(
    engine: Engine,
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
    engine: Engine, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
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
