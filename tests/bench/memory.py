"""Predicted and measured peak memory of training runs on this machine.

    python -m tests.bench.memory [--set third] [--json] [--only NAME]

Every line is a process of its own that makes two steps of a recipe on a model made from a config
(20 to 60 million parameters, random weights), with rows of a given length; or that lets the model
write, score, or be asked. On a CPU, "measured" is the process's largest resident set less the one
before the model was loaded; on a GPU it is max_memory_reserved, and the prediction is shown without
CUDA's context, which that does not hold.

The rules of training/ml/memory.py were found on the first set. The second and the third were
written down before any of them was measured: what the second showed to be missing went into the
rules of training, and the third confirmed these. It showed what those of writing missed; the fourth
was written down then, and measured after they were mended. The fifth holds budgets of tokens and
every way to ask a reference; the sixth shapes of models that no set before had, at work and in
training, all weights among what is trained, and thoughts. Both too were written down first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "llama-34m": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 8192,
    },
    "qwen2-51m": {
        "model_type": "qwen2",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "neox-29m": {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "vocab_size": 10240,
    },
    "llama-gqa-26m": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 7,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 16384,
    },
    "gpt2-25m": {
        "model_type": "gpt2",
        "n_embd": 448,
        "n_layer": 6,
        "n_head": 7,
        "vocab_size": 20000,
    },
    "neox-narrow-25m": {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "vocab_size": 30000,
    },
    "qwen2-wide-69m": {
        "model_type": "qwen2",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 64000,
        "tie_word_embeddings": True,
    },
    "mistral-30m": {
        "model_type": "mistral",
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 14,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "vocab_size": 24000,
        "sliding_window": None,
    },
    "gpt2-wide-45m": {
        "model_type": "gpt2",
        "n_embd": 640,
        "n_layer": 4,
        "n_head": 10,
        "vocab_size": 36000,
    },
    "llama-deep-36m": {
        "model_type": "llama",
        "hidden_size": 448,
        "intermediate_size": 1280,
        "num_hidden_layers": 12,
        "num_attention_heads": 7,
        "vocab_size": 6000,
    },
    "qwen3-25m": {
        "model_type": "qwen3",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 9,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 96,
        "vocab_size": 24000,
        "tie_word_embeddings": True,
    },
    "gemma-32m": {
        "model_type": "gemma",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 48000,
    },
    "phi-35m": {
        "model_type": "phi",
        "hidden_size": 448,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 7,
        "vocab_size": 18000,
    },
}

FIRST: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-34m", "reward", {"batch_size": 4, "max_length": 256}),
    ("llama-34m", "reward", {"batch_size": 8, "max_length": 256}),
    ("llama-34m", "reward", {"batch_size": 4, "max_length": 512}),
    (
        "llama-34m",
        "reward",
        {"batch_size": 8, "max_length": 256, "gradient_checkpointing": True},
    ),
    ("llama-34m", "reward", {"batch_size": 4, "max_length": 256, "method": "qlora"}),
    ("llama-34m", "reward", {"batch_size": 4, "max_length": 256, "dtype": "bfloat16"}),
    ("llama-34m", "reward", {"batch_size": 4, "max_length": 256, "lora_rank": 128}),
    ("llama-34m", "reward", {"batch_size": 1, "max_length": 128}),
    ("llama-34m", "dpo", {"batch_size": 4, "max_length": 256}),
    ("llama-34m", "dpo", {"batch_size": 2, "max_length": 256, "method": "qlora"}),
    (
        "llama-34m",
        "dpo",
        {"batch_size": 4, "max_length": 256, "gradient_checkpointing": True},
    ),
    ("qwen2-51m", "dpo", {"batch_size": 2, "max_length": 256}),
    ("qwen2-51m", "reward", {"batch_size": 4, "max_length": 256}),
    ("neox-29m", "reward", {"batch_size": 4, "max_length": 256}),
    ("neox-29m", "dpo", {"batch_size": 2, "max_length": 256}),
]
CHECKPOINTING = {"gradient_checkpointing": True}
SECOND: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-gqa-26m", "reward", {"batch_size": 6, "max_length": 192}),
    ("llama-gqa-26m", "reward", {"batch_size": 3, "max_length": 256, "method": "full"}),
    ("llama-gqa-26m", "dpo", {"batch_size": 3, "max_length": 320, "method": "dora"}),
    ("llama-gqa-26m", "dpo", {"batch_size": 2, "max_length": 192, "method": "full"}),
    ("llama-gqa-26m", "sft", {"batch_size": 8, "max_length": 256}),
    ("llama-gqa-26m", "sft", {"batch_size": 4, "max_length": 256, "method": "galore"}),
    ("llama-gqa-26m", "pretrain", {"batch_size": 3, "max_length": 512, "method": "qlora"}),
    ("gpt2-25m", "reward", {"batch_size": 4, "max_length": 256}),
    ("gpt2-25m", "sft", {"batch_size": 4, "max_length": 256, "method": "full"}),
    ("gpt2-25m", "dpo", {"batch_size": 2, "max_length": 256, "method": "ia3"}),
    ("neox-narrow-25m", "reward", {"batch_size": 8, "max_length": 256, "method": "head"}),
    ("neox-narrow-25m", "sft", {"batch_size": 4, "max_length": 384, "method": "prefix"}),
    ("qwen2-wide-69m", "dpo", {"batch_size": 2, "max_length": 256, "method": "prompt"}),
    ("qwen2-wide-69m", "reward", {"batch_size": 8, "max_length": 384, **CHECKPOINTING}),
    ("qwen2-wide-69m", "sft", {"batch_size": 2, "max_length": 512, "method": "pissa"}),
    (
        "qwen2-wide-69m",
        "dpo",
        {"batch_size": 2, "max_length": 256, "method": "rslora", "lora_rank": 64},
    ),
    ("llama-gqa-26m", "write", {"rows": 16, "tokens": 256}),
    ("qwen2-wide-69m", "score", {"rows": 16, "tokens": 384}),
    ("neox-narrow-25m", "ask", {"rows": 32, "tokens": 512}),
]
THIRD: list[tuple[str, str, dict[str, Any]]] = [
    ("mistral-30m", "reward", {"batch_size": 4, "max_length": 320}),
    ("mistral-30m", "dpo", {"batch_size": 2, "max_length": 256, "method": "qlora"}),
    ("mistral-30m", "sft", {"batch_size": 4, "max_length": 256, "method": "ia3"}),
    ("mistral-30m", "dpo", {"batch_size": 3, "max_length": 256, "method": "prefix"}),
    ("mistral-30m", "reward", {"batch_size": 3, "max_length": 256, "method": "dora"}),
    ("gpt2-wide-45m", "sft", {"batch_size": 3, "max_length": 256}),
    ("gpt2-wide-45m", "reward", {"batch_size": 4, "max_length": 320, "method": "full"}),
    ("gpt2-wide-45m", "dpo", {"batch_size": 2, "max_length": 192, **CHECKPOINTING}),
    ("llama-deep-36m", "reward", {"batch_size": 4, "max_length": 256, "method": "galore"}),
    ("llama-deep-36m", "dpo", {"batch_size": 2, "max_length": 256, "method": "pissa"}),
    ("llama-deep-36m", "pretrain", {"batch_size": 4, "max_length": 256, "method": "full"}),
    ("llama-deep-36m", "sft", {"batch_size": 4, "max_length": 320, "method": "ptuning"}),
    ("neox-narrow-25m", "reward", {"batch_size": 4, "max_length": 256, "method": "ia3"}),
    ("neox-narrow-25m", "sft", {"batch_size": 4, "max_length": 256, "dtype": "bfloat16"}),
    ("qwen2-wide-69m", "reward", {"batch_size": 4, "max_length": 256, "dtype": "bfloat16"}),
    ("qwen2-wide-69m", "reward", {"batch_size": 6, "max_length": 256, "method": "head"}),
    ("mistral-30m", "write", {"rows": 24, "tokens": 384}),
    ("gpt2-wide-45m", "write", {"rows": 8, "tokens": 320}),
    ("llama-deep-36m", "score", {"rows": 12, "tokens": 512}),
    ("llama-deep-36m", "ask", {"rows": 24, "tokens": 384}),
]
FOURTH: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-34m", "write", {"rows": 32, "tokens": 256}),
    ("qwen2-51m", "write", {"rows": 12, "tokens": 512}),
    ("neox-29m", "write", {"rows": 20, "tokens": 384}),
    ("qwen2-wide-69m", "write", {"rows": 48, "tokens": 128}),
    ("mistral-30m", "score", {"rows": 20, "tokens": 256}),
    ("gpt2-25m", "score", {"rows": 10, "tokens": 512}),
    ("qwen2-51m", "ask", {"rows": 16, "tokens": 512}),
    ("mistral-30m", "ask", {"rows": 40, "tokens": 256}),
]
LIVE = {"precompute_reference": False}
FIFTH: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-34m", "reward", {"batch_size": 8, "max_length": 256, "batch_tokens": 2048}),
    ("gpt2-25m", "dpo", {"batch_size": 6, "max_length": 192, "batch_tokens": 1536}),
    ("qwen2-51m", "sft", {"batch_size": 8, "max_length": 256, "batch_tokens": 1024}),
    ("llama-34m", "pretrain", {"batch_size": 8, "max_length": 256, "batch_tokens": 1536}),
    ("mistral-30m", "dpo", {"batch_size": 3, "max_length": 256, **LIVE}),
    ("neox-29m", "dpo", {"batch_size": 2, "max_length": 256, "method": "full"}),
    ("neox-29m", "dpo", {"batch_size": 2, "max_length": 256, "method": "full", **LIVE}),
    ("llama-gqa-26m", "dpo", {"batch_size": 3, "max_length": 256, "method": "pissa", **LIVE}),
    ("llama-gqa-26m", "dpo", {"batch_size": 6, "max_length": 256, "loss": "kto", **LIVE}),
]
SIXTH: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen3-25m", "pretrain", {"batch_size": 3, "max_length": 320, "method": "full"}),
    ("neox-narrow-25m", "pretrain", {"batch_size": 4, "max_length": 256, "method": "full"}),
    ("gemma-32m", "pretrain", {"batch_size": 4, "max_length": 256}),
    ("gemma-32m", "sft", {"batch_size": 3, "max_length": 384}),
    ("qwen3-25m", "sft", {"batch_size": 2, "max_length": 256, "method": "full"}),
    ("phi-35m", "dpo", {"batch_size": 6, "max_length": 192, "loss": "kto"}),
    ("qwen3-25m", "dpo", {"batch_size": 4, "max_length": 256, "loss": "kto", **LIVE}),
    ("phi-35m", "reward", {"batch_size": 4, "max_length": 320}),
    ("qwen3-25m", "ask", {"rows": 24, "tokens": 384}),
    ("gemma-32m", "ask", {"rows": 20, "tokens": 512}),
    ("phi-35m", "ask", {"rows": 12, "tokens": 640}),
    ("qwen3-25m", "ask", {"rows": 16, "tokens": 384, "new_tokens": 128}),
    ("qwen3-25m", "write", {"rows": 20, "tokens": 320}),
    ("gemma-32m", "write", {"rows": 10, "tokens": 512}),
    ("phi-35m", "write", {"rows": 16, "tokens": 384}),
    ("gemma-32m", "score", {"rows": 16, "tokens": 320}),
    ("qwen3-25m", "score", {"rows": 12, "tokens": 512}),
    ("gpt2-25m", "quiet_star", {"batch_size": 2, "max_length": 64}),
    ("llama-gqa-26m", "quiet_star", {"batch_size": 3, "max_length": 96, "thought_length": 6}),
]
SETS = {
    "first": FIRST,
    "second": SECOND,
    "third": THIRD,
    "fourth": FOURTH,
    "fifth": FIFTH,
    "sixth": SIXTH,
}


def save_model(folder: Path, config: dict[str, Any]) -> None:
    """Random weights of a config, with a tokenizer whose digits are a token each."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.training.tiny import save_tiny_model

    save_tiny_model(folder)
    torch.manual_seed(0)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoConfig.for_model(
        config["model_type"],
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **settings,
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)


def pairs_of(tokenizer: Any, n: int, length: int) -> list[Any]:
    """Pairs whose chosen side has `length` tokens and whose rejected side a few less."""
    from training.ml.data import Pair, tokenize_pair

    def pair(i: int, digits: int) -> Pair:
        return Pair(
            prompt=[{"role": "user", "content": "0" * 8}],
            chosen=[{"role": "assistant", "content": str(i % 9 + 1) * digits}],
            rejected=[{"role": "assistant", "content": str(i % 9 + 1) * (digits - 16)}],
            prompt_id=str(i),
        )

    spare = tokenize_pair(pair(0, 32), tokenizer).n_tokens - 32
    return [pair(i, length - spare) for i in range(n)]


def child(folder: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What two steps of a recipe took, or a model at work; with the trained numbers of a recipe."""
    from training.ml.loading import load_tokenizer
    from training.ml.peaks import Peak, give_memory_back

    tokenizer = load_tokenizer(folder)
    if kind in ("write", "score", "ask"):
        work = {"write": write, "score": score, "ask": ask}[kind]
        import judges.ml.engine  # noqa: F401 - libraries are in memory before the count begins
        import training.ml.reward_model  # noqa: F401

        give_memory_back()
        peak = Peak()
        work(folder, tokenizer, **settings)
        return {"measured": peak.bytes(), "device": peak.device}

    from training.ml import dpo, quiet_star, reward_model, sft
    from training.ml.config import ON_TEXTS, make_recipe

    chosen = settings | {"base_model": folder, "max_steps": 2}
    recipe = make_recipe(kind, chosen | ({"text": "digits.txt"} if kind in ON_TEXTS else {}))
    train: Any = {
        "reward": reward_model.train,
        "dpo": dpo.train,
        "sft": sft.train,
        "pretrain": sft.pretrain,
        "quiet_star": quiet_star.train,
    }[kind]
    rows: Any = pairs_of(tokenizer, 3 * recipe.batch_size, recipe.max_length)
    test = rows[: recipe.batch_size]
    if kind in ON_TEXTS:
        # One text whose pieces are all of full length: of a shorter one left over at its end a step
        # would be made, and the second of two steps is the one that has optimizer's averages.
        piece = recipe.max_length - 1  # each begins with the last token of the one before
        digits = "".join(str(n % 10) for n in range(3 * recipe.batch_size * piece))
        rows, test = [digits], [digits[: recipe.batch_size * piece]]
    give_memory_back()
    peak = Peak()
    with tempfile.TemporaryDirectory() as out:
        metrics = train(recipe, rows, test, Path(out), lambda report: None)
    return {
        "measured": peak.bytes(),
        "device": peak.device,
        "trained": metrics["trained_parameters"],
    }


def conversations(tokenizer: Any, rows: int, tokens: int) -> list[list[dict[str, str]]]:
    """So many conversations of so many tokens, no two beginning alike."""
    from training.ml.data import chat_tokens

    def one(i: int, digits: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": (f"{i:04d}" * digits)[:digits]}]

    spare = len(chat_tokens(tokenizer, one(0, 32), open_answer=True)) - 32
    return [one(i, tokens - spare) for i in range(rows)]


def write(folder: str, tokenizer: Any, rows: int, tokens: int) -> None:
    """Half of the tokens are read, half are written; by a second batch too, for which the table of
    words that the first one's logits came from is in memory."""
    from training.ml.generation import sample
    from training.ml.loading import load_policy

    model, _tokenizer = load_policy(folder)
    prompts = conversations(tokenizer, rows, tokens // 2)
    # Prompts are of unlike length, as a rule: one that is shorter, and attention needs its mask.
    prompts[0] = conversations(tokenizer, 1, tokens // 2 - 8)[0]
    sample(model, tokenizer, 2 * prompts, max_new_tokens=tokens // 2, batch_size=rows)


def score(folder: str, tokenizer: Any, rows: int, tokens: int) -> None:
    from training.ml import reward_model
    from training.ml.loading import load_scorer

    model = load_scorer(folder).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    texts = conversations(tokenizer, rows, tokens - 4)
    reward_model.score(model, tokenizer, texts, batch_size=rows)


def ask(folder: str, tokenizer: Any, rows: int, tokens: int, new_tokens: int = 0) -> None:
    """As a judge that reads verdict tokens asks; one that gives reasons writes them first."""
    from judges.ml.asking import Request, Writing
    from judges.ml.config import JudgeRecipe
    from judges.ml.engine import load_engine

    engine = load_engine(folder, JudgeRecipe(), batch_tokens=rows * tokens)
    requests = [
        Request(
            task=texts[0]["content"],
            ending="Verdict: ",
            answers=("1", "2"),
            write=Writing(max_tokens=new_tokens) if new_tokens else None,
        )
        for texts in conversations(tokenizer, rows, tokens - new_tokens - 16)
    ]
    replies = [reply for batch in engine.answer(requests) for _place, reply in batch]
    assert [reply.n_tokens_written for reply in replies] == [new_tokens] * rows


def foretold(folder: Path, kind: str, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """What training/ml/memory.py says, without what the measurement does not hold."""
    from training.ml.architecture import read_architecture
    from training.ml.config import ON_TEXTS, make_recipe
    from training.ml.memory import Work, inference, predict

    arch = read_architecture(folder)
    if kind in ("write", "score", "ask"):
        new = settings["tokens"] // 2 if kind == "write" else 0
        work = Work(**{"new_tokens": new} | settings)
        found = inference(kind, work, arch, device=device)
    else:
        chosen = settings | {"base_model": str(folder)}
        recipe = make_recipe(kind, chosen | ({"text": "digits.txt"} if kind in ON_TEXTS else {}))
        found = predict(kind, recipe, arch, device=device)
    terms = {term.name: term.bytes for term in found.terms}
    if device == "cuda":
        terms.pop("libraries")
    elif (
        "weights" in terms
        and settings.get("dtype") != "bfloat16"  # converted, and so read
        and (kind in ("reward", "score") or not arch.tied)
    ):
        terms["weights"] -= arch.vocabulary * arch.hidden * 4
    return {
        "predicted": sum(terms.values()),
        "foretold_trained": found.trained,
        "moment": found.moment,
        "parameters": arch.weights,
        "terms": terms,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", choices=[*SETS, "all"], default="all", dest="chosen")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="models or recipes with this in their name")
    parser.add_argument("--lines", default="", metavar="1-5", help="of the set, from 1 on")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        folder, kind, settings = asked.child
        print(json.dumps(child(folder, kind, json.loads(settings))))
        return
    began = time.monotonic()
    runs = [run for name, found in SETS.items() if asked.chosen in (name, "all") for run in found]
    if asked.lines:
        first, _to, last = asked.lines.partition("-")
        runs = runs[int(first) - 1 : int(last or first)]
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for model, kind, settings in runs:
            words = ", ".join(f"{key} {value}" for key, value in settings.items())
            if asked.only not in f"{model} {kind} {words}":
                continue
            folder = Path(root) / model
            if not folder.exists():
                save_model(folder, MODELS[model])
            command = [sys.executable, "-m", "tests.bench.memory", "--child"]
            done = subprocess.run(
                [*command, str(folder), kind, json.dumps(settings)],
                capture_output=True,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            found |= foretold(folder, kind, settings, found["device"])
            error = found["predicted"] / found["measured"] - 1
            rows.append({"model": model, "recipe": kind, "settings": words, **found})
            print(
                f"| {model} | {kind} | {words} | {found['predicted'] / 2**20:.0f} "
                f"| {found['measured'] / 2**20:.0f} | {error:+.0%} |",
                file=sys.stderr if asked.json else sys.stdout,
                flush=True,
            )
            if asked.only:
                print({name: n >> 20 for name, n in found["terms"].items()}, file=sys.stderr)
    errors = sorted(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    within = sum(error <= 0.2 for error in errors)
    if asked.json:
        print(json.dumps({"rows": rows, "within_20": within, "worst": errors[-1]}))
    else:
        seconds = time.monotonic() - began
        print(f"{within} of {len(rows)} within 20 %, worst {errors[-1]:.0%}; {seconds:.0f} seconds")


if __name__ == "__main__":
    main()
