"""Predicted and measured peak memory of training runs on this machine.

    python -m tests.bench.memory [--json] [--only NAME]

Every line is a process of its own that makes two steps of a recipe on a model made from a config
(20 to 60 million parameters, random weights), with pairs of a given length. On a CPU, "measured" is
the process's largest resident set less the one before the model was loaded; on a GPU it is
max_memory_reserved, and the prediction is shown without CUDA's context, which that does not hold.
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
}

RUNS: list[tuple[str, str, dict[str, Any]]] = [
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
    """Two steps of a recipe; what was predicted from the config and what was measured."""
    from training.ml import dpo, reward_model
    from training.ml.config import make_recipe
    from training.ml.loading import load_tokenizer
    from training.ml.memory import predict, read_architecture
    from training.ml.peaks import Peak, give_memory_back

    recipe = make_recipe(kind, settings | {"base_model": folder, "max_steps": 2})
    pairs = pairs_of(load_tokenizer(folder), 3 * recipe.batch_size, recipe.max_length)
    train = reward_model.train if kind == "reward" else dpo.train
    give_memory_back()
    peak = Peak()
    with tempfile.TemporaryDirectory() as out:
        train(recipe, pairs, pairs[: recipe.batch_size], Path(out), lambda report: None)
    arch = read_architecture(folder)
    found = predict(kind, recipe, arch, device=peak.device)
    terms = {term.name: term.bytes for term in found.terms}
    if peak.device == "cuda":
        terms.pop("libraries")
    return {
        "predicted": sum(terms.values()),
        "measured": peak.bytes(),
        "moment": found.moment,
        "parameters": arch.weights,
        "device": peak.device,
        "terms": terms,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="models or recipes with this in their name")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        folder, kind, settings = asked.child
        print(json.dumps(child(folder, kind, json.loads(settings))))
        return
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name, config in MODELS.items():
            save_model(Path(root) / name, config)
        for model, kind, settings in RUNS:
            words = ", ".join(f"{key} {value}" for key, value in settings.items())
            if asked.only not in f"{model} {kind} {words}":
                continue
            command = [sys.executable, "-m", "tests.bench.memory", "--child"]
            done = subprocess.run(
                [*command, str(Path(root) / model), kind, json.dumps(settings)],
                capture_output=True,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
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
