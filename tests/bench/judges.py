"""How many questions a judge on this machine answers in a second: a table.

    python -m tests.bench.judges [--blocks 5] [--grid]
    python -m tests.bench.judges --shape qwen2.5-0.5b    # about 10 minutes a block

A question is one comparison in one order. "one at a time" is what the libraries offer: `generate`
for the rationale, then a forward pass over the whole text for the answer; in mode "direct" that
pass alone. "engine" is `LocalEngine.answer` over all questions. Both read the same texts with the
same weights, in float32 on a CPU.

The two take turns in short blocks, and the ratio is taken within a block, because other work on
the machine comes and goes. Questions are counted per second of the clock and per second of
processor time, which other work disturbs less. The model is random, some fifty million weights from
a config, in the proportions of the large one: more than a processor's cache holds, as with every
model in use, so that writing one token at a time waits for memory. Its head can only write whole
words, because a trained model's text also is the same tokens when it is read again. The other shape
is that of the smallest model that is commonly asked for a judgement.

Where there is a GPU, the same with a model of 8 billion parameters in bfloat16, whose weights are
drawn on the GPU: speed does not depend on them.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from judges.ml.asking import Reply, Request
from judges.ml.config import Exemplar, JudgeRecipe
from judges.ml.engine import LocalEngine
from judges.ml.modes import requests_for
from judges.ml.questions import Sample, plain_text, tidy_written, with_written
from judges.ml.wording import Wording

N_RATIONALE = JudgeRecipe(mode="rationale").max_rationale_tokens
SMALL = {"hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 12}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 2}
QWEN = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
QWEN |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936}
"""Qwen2.5-0.5B's, 494 M weights."""
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LARGE |= {"num_attention_heads": 32, "num_key_value_heads": 8}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True)
class Block:
    """One turn of each side: questions per second of the clock and of processor time."""

    alone: tuple[float, float]
    engine: tuple[float, float]
    difference: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions per second of a judge.")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--comparisons", type=int, default=64, help="asked by the engine per block")
    parser.add_argument("--alone", type=int, default=12, help="questions one at a time per block")
    parser.add_argument("--batch-tokens", type=int, default=0)
    parser.add_argument("--read-tokens", type=int, default=0)
    parser.add_argument("--grid", action="store_true", help="also other sizes of batches")
    parser.add_argument("--shape", choices=("small", "qwen2.5-0.5b"), default="small")
    options = parser.parse_args()
    torch.manual_seed(1)
    model = small_model() if options.shape == "small" else qwen_model()
    engine = local_engine(model, options.batch_tokens)
    if options.read_tokens:
        engine.read_tokens = options.read_tokens
    print(
        f"{n_millions(engine.model):.1f} M parameters, {engine.model.device}, "
        f"{engine.model.dtype}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    table(engine, options)
    if options.grid:
        for batch_tokens in (1_000, 8_192, 32_768, 131_072):
            engine.batch_tokens = batch_tokens
            print(f"\nbatches of {batch_tokens:,} tokens")
            table(engine, options)
    if torch.cuda.is_available():
        del engine
        engine = local_engine(large_model(), options.batch_tokens)
        print(f"\n{n_millions(engine.model):,.0f} M parameters, {torch.cuda.get_device_name()}")
        table(engine, options)


def table(engine: LocalEngine, options: argparse.Namespace) -> None:
    """One line for each mode and number of exemplars."""
    print(
        "| mode | exemplars | tokens | one at a time, 1/s | engine, 1/s | ratio by the clock "
        "| ratio of processor time | least, most | largest difference, nats |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for mode in ("rationale", "direct"):
        for n_exemplars in (0, 3):
            line(engine, mode, n_exemplars, options)


def line(engine: LocalEngine, mode: Any, n_exemplars: int, options: argparse.Namespace) -> None:
    numbers = random.Random(f"{mode} {n_exemplars}")
    recipe = JudgeRecipe(
        mode=mode,
        preamble=words(numbers, 130),
        exemplars=tuple(exemplar(numbers) for _ in range(n_exemplars)),
        max_rationale_tokens=N_RATIONALE,
    )
    samples = [sample(numbers) for _ in range(options.comparisons)]
    requests = [request for one in samples for request in requests_for(recipe, one, ())]
    n_tokens = statistics.mean(len(engine.wording.asked(0, one).ids) for one in requests)
    # Short and long ones in equal measure: every k-th by length.
    by_length = sorted(range(len(requests)), key=lambda place: len(requests[place].task))
    n_alone = min(options.alone, len(requests))
    places = [by_length[(2 * k + 1) * len(by_length) // (2 * n_alone)] for k in range(n_alone)]
    some = [requests[place] for place in places]
    with torch.inference_mode():
        list(engine.answer(requests[:4]))  # first uses of a kernel
        list(one_at_a_time(engine, some[:1]))
    blocks = [block(engine, requests, places) for _ in range(options.blocks)]
    clock = [one.engine[0] / one.alone[0] for one in blocks]
    processor = [one.engine[1] / one.alone[1] for one in blocks]
    print(
        f"| {mode} | {n_exemplars} | {n_tokens:,.0f} "
        f"| {statistics.median(one.alone[0] for one in blocks):.2f} "
        f"| {statistics.median(one.engine[0] for one in blocks):.1f} "
        f"| {statistics.median(clock):.1f} | {statistics.median(processor):.1f} "
        f"| {min(processor):.1f}, {max(processor):.1f} "
        f"| {max(one.difference for one in blocks):.1e} |",
        flush=True,
    )


def block(engine: LocalEngine, requests: Sequence[Request], places: Sequence[int]) -> Block:
    """Questions at `places` one at a time, then all of them by the engine."""
    began = now(engine)
    alone = list(one_at_a_time(engine, [requests[place] for place in places]))
    between = now(engine)
    replies = dict(pair for batch in engine.answer(requests) for pair in batch)
    ended = now(engine)
    engine._shared = None  # every block reads the preamble anew
    return Block(
        alone=rates(began, between, len(alone)),
        engine=rates(between, ended, len(requests)),
        difference=max(
            difference(one, replies[place]) for one, place in zip(alone, places, strict=True)
        ),
    )


@torch.inference_mode()
def one_at_a_time(
    engine: LocalEngine, requests: Sequence[Request]
) -> Iterator[tuple[str, list[float]]]:
    """(the whole text, the answers' log-probabilities), by `generate` and a second forward pass."""
    model, wording = engine.model, engine.wording
    for request in requests:
        text = plain_text(request)
        if request.write is None:
            whole = text + request.ending
        else:
            ids = torch.tensor([wording.tokens(text)], device=model.device)
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=request.write.max_tokens,
                pad_token_id=0,
            )
            said = wording.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            rationale = tidy_written(said, request.write.stops, wording.control)
            whole = with_written(text, rationale, request.ending)
        ids = torch.tensor([wording.tokens(whole)], device=model.device)
        logp = model(ids).logits[0, -1].float().log_softmax(-1)
        spelled = wording.spelled(request.ending, request.answers)
        yield (
            whole,
            [
                logp[torch.tensor([tokens[0] for tokens in answer], device=logp.device)]
                .logsumexp(0)
                .item()
                for answer in spelled.of
            ],
        )


def difference(alone: tuple[str, list[float]], reply: Reply) -> float:
    """Between the two sides' log-probabilities; nothing where their rationales part (bfloat16)."""
    whole, logps = alone
    [said] = reply.said
    if said.text != whole:
        return float("nan")
    return max(abs(a - b) for a, b in zip(logps, said.logps, strict=True))


def now(engine: LocalEngine) -> tuple[float, float]:
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def rates(began: tuple[float, float], ended: tuple[float, float], n: int) -> tuple[float, float]:
    clock, processor = (end - start for start, end in zip(began, ended, strict=True))
    return n / clock, n / processor


def vocabulary() -> list[str]:
    """4,000 words of two or three syllables, each one token with the space before it."""
    numbers = random.Random(0)
    made: dict[str, None] = {}
    while len(made) < 3_600:
        made["".join(numbers.choices(SYLLABLES, k=numbers.choice((2, 3))))] = None
    return list(made)


WORDS = vocabulary()


def tokenizer() -> PreTrainedTokenizerFast:
    """Words are single tokens; whatever else stands in a question goes byte by byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", *alphabet]
    merges: list[tuple[str, str]] = []
    known = set(tokens)
    fixed = "A good response is better which one explain in or two sentences Rationale Preferred"
    for word in [*fixed.split(), "Response", "USER", "RESPONSE", "END", "===", *WORDS]:
        left = "Ġ"
        for letter in word:
            if left + letter not in known:
                merges.append((left, letter))
                known.add(left + letter)
                tokens.append(left + letter)
            left += letter
    bpe = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def small_model() -> Any:
    config = LlamaConfig(
        **SMALL,
        vocab_size=len(tokenizer()),
        max_position_embeddings=4096,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.1,
    )
    return only_words(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def qwen_model() -> Any:
    config = Qwen2Config(
        **QWEN,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.1,
    )
    return only_words(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def large_model() -> Any:
    """The shape of an 8 billion Llama; its weights never stand in the machine's own memory."""
    config = LlamaConfig(
        **LARGE,
        vocab_size=128_256,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        eos_token_id=0,
        bos_token_id=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return only_words(drawn_on(model, torch.device("cuda")).eval())


def drawn_on(model: Any, device: torch.device) -> Any:
    """A model without memory, given random weights on the device."""
    model.to_empty(device=device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(std=0.02)
    # What is no parameter (the frequencies of the positions) is computed, not drawn.
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)
    return model


def only_words(model: Any) -> Any:
    """Let the head say whole words alone."""
    spelled = tokenizer()
    whole = [spelled.convert_tokens_to_ids(f"Ġ{word}") for word in WORDS]
    keep = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    keep[whole] = True
    with torch.no_grad():
        model.lm_head.weight[~keep.to(model.device)] = 0
    return model


def local_engine(model: Any, batch_tokens: int) -> LocalEngine:
    wording = Wording(
        tokenizer(),
        eos_ids=frozenset({0}),
        max_context=model.config.max_position_embeddings,
        use_chat=False,
    )
    return LocalEngine(model, wording, batch_tokens)


def words(numbers: random.Random, n: int) -> str:
    return " " + " ".join(numbers.choices(WORDS, k=n))


def sample(numbers: random.Random) -> Sample:
    """A dialogue of one to three turns and two responses, lengths as in people's preferences."""
    turns = numbers.choice((1, 1, 3))
    prompt = [
        {"role": ("user", "assistant")[n % 2], "content": words(numbers, length(numbers, 50))}
        for n in range(turns)
    ]
    a, b = (
        [{"role": "assistant", "content": words(numbers, length(numbers, 70))}] for _ in range(2)
    )
    return Sample(prompt, a, b)


def exemplar(numbers: random.Random) -> Exemplar:
    one = sample(numbers)
    return Exemplar(
        prompt=one.prompt,
        first=one.a,
        second=one.b,
        answer=numbers.choice(("1", "2")),
        rationale=words(numbers, 30),
    )


def length(numbers: random.Random, median: int) -> int:
    """Log-normal, as lengths of texts are."""
    return max(5, min(6 * median, round(median * numbers.lognormvariate(0, 0.7))))


def n_millions(model: Any) -> float:
    return sum(weight.numel() for weight in model.parameters()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
