"""Where do thoughts help? Quiet-STaR on text that needs computation, and on the micro-world.

    python -m tests.bench.quiet_star [--seeds 5] [--steps 300] [--world chains|micro|both]

**chains** are lines such as `3fghfg=7`: three fixed permutations of the digits, applied from left
to right. Half of the lines show the working behind the sign, as some text does: `3fghfg=:8250=7`. A
small model is pre-trained on both kinds, so it can write the working where a text does; then
Quiet-STaR trains on lines that leave it out, its marks beginning as `:` and `=`. **micro** is
dialogue of the micro-world (labeling/microworld.py).

Each line of the tables is a class of tokens: its loss without and with thoughts on held-out texts,
and what thoughts gain, each the mean over seeds with a 95 % interval of Student's t. A seed draws
texts, model and thoughts anew. For comparison: the same number of steps of plain training on the
same texts (`plain`), and Quiet-STaR with REINFORCE off (`no REINFORCE`).
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from labeling import microworld
from training.ml import quiet_star, tiny_model
from training.ml.config import make_recipe
from training.ml.data import text_pieces
from training.ml.loading import load_causal, load_tokenizer
from training.ml.logprobs import pad_right

LINKS = 5
FUNCTIONS = {"f": (3, 8, 6, 1, 9, 0, 5, 2, 7, 4), "g": (7, 4, 1, 9, 2, 8, 0, 6, 5, 3),
             "h": (5, 2, 9, 4, 7, 6, 3, 1, 0, 8)}  # fmt: skip
N_TEST = 300
RECIPE: dict[str, Any] = {
    "method": "full",
    "dtype": "float32",
    "batch_size": 16,
    "learning_rate": 5e-4,
    "eval_every": 10_000,
    "checkpoint_every": 10_000,
    "max_length": 128,
    "text": "bench.txt",
}
Class = Callable[[str, int], str]
"""Text, and where a token of it begins, to the token's class."""


def chain_line(draw: random.Random, *, working: bool) -> str:
    """`3fghfg=7`, or with what stands between: `3fghfg=:8250=7`."""
    value = draw.randrange(10)
    names = [draw.choice("fgh") for _ in range(LINKS)]
    between = []
    for name in names:
        between.append(FUNCTIONS[name][between[-1] if between else value])
    middle = ":" + "".join(map(str, between[:-1])) + "=" if working else ""
    return f"{value}{''.join(names)}={middle}{between[-1]}"


def chain_class(text: str, place: int) -> str:
    if place >= len(text):
        return "end of line"
    if place > text.index("="):
        return "the answer"
    return "sign" if text[place] == "=" else "function"


def micro_class(text: str, place: int) -> str:
    """By who speaks: the answer begins behind its mark."""
    answer = text.find("<|assistant|>")
    return "question" if answer < 0 or place <= answer else "answer"


def plain_training(
    model: Any, rows: Sequence[list[int]], *, steps: int, batch: int, rate: float, seed: int
) -> Any:
    """AdamW on the mean loss over the tokens of a step; the rate rises and falls linearly, as in
    the recipe. Returns the model."""
    draw = random.Random(f"plain {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        now = min((step + 1) / (0.05 * steps), (steps - step) / (0.95 * steps))
        optimizer.param_groups[0]["lr"] = rate * now
        ids, mask = pad_right(draw.sample(list(rows), batch), 0)
        loss = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def ids_of(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids as the recipe divides texts, each in one piece."""
    pieces = (next(text_pieces(text, "", tokenizer, 10_000)) for text in texts)
    return [piece.prompt_ids + piece.response_ids for piece in pieces]


def new_base(
    folder: Path, texts: Sequence[str], *, vocabulary: int, hidden: int, steps: int, seed: int
) -> None:
    """A Llama of two layers, trained on texts in the ordinary way, in the folder."""
    torch.manual_seed(seed)
    tokenizer = tiny_model.train_tokenizer(texts, folder, vocabulary=vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 4,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = plain_training(
        LlamaForCausalLM(config), ids_of(texts, tokenizer), steps=steps, batch=64, rate=3e-3,
        seed=seed,
    )  # fmt: skip
    model.save_pretrained(folder)


def chains(seed: int, folder: Path, steps: int) -> tuple[list[str], list[str], dict[str, Any]]:
    """(training texts, test texts, settings), and a base model in the folder."""
    draw = random.Random(f"chains {seed}")
    shown = [chain_line(draw, working=n % 2 == 0) for n in range(20_000)]
    new_base(folder, shown, vocabulary=261, hidden=64, steps=steps, seed=seed)
    texts = list(dict.fromkeys(chain_line(draw, working=False) for _ in range(6_000)))
    settings = {
        "thought_length": LINKS - 1, "true_tokens": 2, "start_like": ":", "end_like": "=",
        "batch_size": 32,
    }  # fmt: skip
    return texts[N_TEST:], texts[:N_TEST], settings


def dialogue(draw: random.Random) -> str:
    """A dialogue as the demo's base model learns it: prompt, response, reaction."""
    prompt = draw.choice(microworld.prompts())
    response = microworld.sample_response(prompt, draw)
    reaction = microworld.sample_reaction(prompt, response, draw)
    return f"{prompt}<|assistant|>{response}<|end|>{reaction}"


def micro(seed: int, folder: Path, steps: int) -> tuple[list[str], list[str], dict[str, Any]]:
    """As chains, of dialogues."""
    draw = random.Random(f"micro {seed}")
    texts = list(dict.fromkeys(dialogue(draw) for _ in range(6_000)))
    new_base(folder, texts[N_TEST:], vocabulary=1024, hidden=64, steps=steps, seed=seed)
    return texts[N_TEST:], texts[:N_TEST], {"thought_length": 3, "batch_size": 8}


def classes_of(texts: Sequence[str], tokenizer: Any, class_of: Class) -> list[list[str]]:
    """The class of every token but the first of each text, as the recipe divides it."""
    found = []
    for text, ids in zip(texts, ids_of(texts, tokenizer), strict=True):
        place, own = 0, []
        for token in ids:
            own.append(class_of(text, place))
            place += len(tokenizer.decode([token]))
        found.append(own[1:])
    return found


def by_class(rows: Sequence[Sequence[float]], classes: Sequence[Sequence[str]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for values, names in zip(rows, classes, strict=True):
        for value, name in zip(values, names, strict=True):
            sums.setdefault(name, []).append(value)
            sums.setdefault("all", []).append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}


def told_by_class(
    model: Any, tokenizer: Any, thoughts: Any, length: int, texts: Sequence[str], class_of: Class
) -> dict[str, Any]:
    rows = ids_of(texts, tokenizer)
    told = [
        one
        for start in range(0, len(rows), 32)
        for one in quiet_star.told(
            model, thoughts, rows[start : start + 32], length, tokenizer.pad_token_id
        )
    ]
    classes = classes_of(texts, tokenizer, class_of)
    sides = {
        "without": [one.without for one in told],
        "with": [one.with_thoughts for one in told],
        "mixing": [one.mixing for one in told],
    }
    found = {name: by_class(side, classes) for name, side in sides.items()}
    found["gain"] = {name: found["without"][name] - found["with"][name] for name in found["with"]}
    places = [(at, j) for at, names in enumerate(classes) for j, _name in enumerate(names)]
    best = max(places, key=lambda p: told[p[0]].without[p[1]] - told[p[0]].with_thoughts[p[1]])
    at, j = best
    found["best"] = (
        f"{tokenizer.decode(rows[at][: j + 1])!r} thought "
        f"{tokenizer.decode(told[at].thoughts[j])!r} next {tokenizer.decode([rows[at][j + 1]])!r}"
    )
    return found


def plain_by_class(
    model: Any, tokenizer: Any, texts: Sequence[str], class_of: Class
) -> dict[str, float]:
    rows = ids_of(texts, tokenizer)
    losses = [
        one
        for start in range(0, len(rows), 32)
        for one in quiet_star.plain_losses(model, rows[start : start + 32], tokenizer.pad_token_id)
    ]
    return by_class(losses, classes_of(texts, tokenizer, class_of))


def figure(values: Sequence[float]) -> str:
    """Mean over seeds and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def world(name: str, seeds: int, steps: int, base_steps: int) -> None:
    make, class_of = {"chains": (chains, chain_class), "micro": (micro, micro_class)}[name]
    arms: dict[str, list[dict[str, Any]]] = {"Quiet-STaR": [], "no REINFORCE": [], "before": []}
    plain: list[dict[str, float]] = []
    base_losses: list[dict[str, float]] = []
    for seed in range(seeds):
        print(f"{name}, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "base").mkdir()
            began = time.monotonic()
            base = str(folder / "base")
            train, test, chosen = make(seed, folder / "base", base_steps)
            shared = RECIPE | chosen | {"base_model": base, "seed": seed, "max_steps": steps}
            model, tokenizer = load_causal(base, dtype="float32"), load_tokenizer(base)
            base_losses.append(plain_by_class(model, tokenizer, test, class_of))
            print(f"  base: {base_losses[-1]}, {time.monotonic() - began:.0f} s", flush=True)
            for arm, more in (("Quiet-STaR", {}), ("no REINFORCE", {"policy_weight": 0.0})):
                began = time.monotonic()
                recipe = make_recipe("quiet_star", shared | more)
                quiet_star.train(recipe, train, test[:20], folder / arm, lambda report: None)
                thinking = quiet_star.load_thinking(folder / arm / "model", dtype="float32")
                arms[arm].append(told_by_class(*thinking, test, class_of))
                last = arms[arm][-1]
                print(
                    f"  {arm}: {last['without']} off, {last['with']} on, "
                    f"{time.monotonic() - began:.0f} s; {last['best']}",
                    flush=True,
                )
            untrained = quiet_star.new_thoughts(recipe, model, tokenizer)
            arms["before"].append(
                told_by_class(model, tokenizer, untrained, recipe.thought_length, test, class_of)
            )
            model = plain_training(
                model, ids_of(train, tokenizer), steps=steps, batch=recipe.batch_size,
                rate=recipe.learning_rate, seed=seed,
            )  # fmt: skip
            plain.append(plain_by_class(model, tokenizer, test, class_of))
    print(f"\n{name}: {seeds} seeds, {steps} steps, {N_TEST} held-out texts; nats a token\n")
    heads = (
        "Tokens", "base", "plain training", "thoughts off", "thoughts on", "gain",
        "mixing weight", "gain, no REINFORCE", "gain before training",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("| --- |" + " ---: |" * 8)
    quiet = arms["Quiet-STaR"]
    for tokens in quiet[0]["with"]:
        cells = [
            [one[tokens] for one in base_losses],
            [one[tokens] for one in plain],
            [one["without"][tokens] for one in quiet],
            [one["with"][tokens] for one in quiet],
            [one["gain"][tokens] for one in quiet],
            [one["mixing"][tokens] for one in quiet],
            [one["gain"][tokens] for one in arms["no REINFORCE"]],
            [one["gain"][tokens] for one in arms["before"]],
        ]
        print(f"| {tokens} | " + " | ".join(map(figure, cells)) + " |")
    print(flush=True)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument("--steps", type=int, default=300)
    asked.add_argument("--base-steps", type=int, default=600)
    asked.add_argument("--world", choices=("chains", "micro", "both"), default="both")
    options = asked.parse_args()
    for one in ("chains", "micro") if options.world == "both" else (options.world,):
        world(one, options.seeds, options.steps, options.base_steps)
