"""Our reward and DPO recipes beside TRL's stock trainers: useful tokens a second, and what is
learned.

    python -m tests.bench.training --base FOLDER [--recipe reward|dpo] [--pairs 480] [--rounds 3]
    python -m tests.bench.training --world FOLDER [--pairs 1600]
    python -m tests.bench.training --base ENCODER --data ukp --recipe reward --pairs 960 --rounds 1
    python -m tests.bench.training --large [--config '{…}']      # a CUDA machine

The same model, adapter, pairs of hh-rlhf (../shared/data, both halves mixed), pairs a step and
steps; tokens that are no padding over the seconds of the steps, the first left out. Rounds of both
take turns, so that what else the machine does falls on both. Ours asks the reference before the
first step: the seconds of that count.

From 480 such pairs a small model learns next to nothing, so equal accuracy says little there.
--world takes the micro-world of `make demo` instead (its model, kept under FOLDER, and its people's
labels), where both kinds are learned well and what a policy writes has a true utility; --data ukp
takes UKPConvArg1 strict with one debate held out, for an encoder that is pre-trained.

--large makes a model of 8 billion parameters from its config, random weights, and trains it by
QLoRA: peak memory, tokens a second, and the share of the card's own bfloat16 rate.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from training.ml import dpo, reward_model
from training.ml.adapting import adapted
from training.ml.batches import steps_of
from training.ml.config import DPORecipe, RewardRecipe, make_recipe
from training.ml.data import Pair, TokenPair, tokenize_pairs
from training.ml.evaluation import share_right
from training.ml.loading import load_causal, load_scorer, load_tokenizer
from training.ml.steps import StepReport, quiet_trainer

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
RESAMPLES = 2000
DEBATE = "pro-choice-vs-pro-life"
"""Held out of UKPConvArg1."""


def n_tokens(pair: TokenPair) -> int:
    """Tokens of both conversations."""
    return 2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


class Clock(TrainerCallback):
    """When each step of a stock trainer was logged."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.at.append(time.perf_counter())


class Counting:
    """Notes the tokens of every batch that a stock trainer is given."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.useful = [*getattr(self, "useful", []), int(inputs["attention_mask"].sum())]
        self.padded = [*getattr(self, "padded", []), inputs["attention_mask"].numel()]
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]


class StockReward(Counting, RewardTrainer):
    pass


class StockDPO(Counting, DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokens already


@quiet_trainer()
def stock(
    recipe: RewardRecipe | DPORecipe, tokens: list[TokenPair], folder: Path
) -> dict[str, Any]:
    """TRL's trainer as it comes, told what the recipe says."""
    is_reward = isinstance(recipe, RewardRecipe)
    tokenizer = load_tokenizer(recipe.base_model)
    set_seed(recipe.seed)
    load = load_scorer if is_reward else load_causal
    base = load(recipe.base_model, method=recipe.method, dtype=recipe.dtype)
    model = adapted(base, recipe, task="SEQ_CLS" if is_reward else "CAUSAL_LM")
    clock = Clock()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe.batch_size,
        "max_steps": recipe.max_steps,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": max(1, round(recipe.warmup_share * recipe.max_steps)),
        "lr_scheduler_type": recipe.scheduler,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "seed": recipe.seed,
    }
    if is_reward:
        rows = [
            {
                "chosen_ids": p.prompt_ids + p.chosen_ids,
                "rejected_ids": p.prompt_ids + p.rejected_ids,
            }
            for p in tokens
        ]
        trainer: Any = StockReward(
            model=model,
            args=RewardConfig(**settings),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
    else:
        rows = [
            {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
            for p in tokens
        ]
        trainer = StockDPO(
            model=model,
            args=DPOConfig(**settings, beta=recipe.beta),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
    trainer.train()
    seconds = clock.at[-1] - clock.at[0]
    return {
        "tokens_per_second": sum(trainer.useful[1:]) / seconds,
        "useful": sum(trainer.useful) / sum(trainer.padded),
        "seconds": seconds,
        "model": trainer.model,
    }


def ours(
    recipe: RewardRecipe | DPORecipe, pairs: Sequence[Pair], tokens: list[TokenPair], folder: Path
) -> dict[str, Any]:
    """Our recipe, what it does before the first step included."""
    tokenizer = load_tokenizer(recipe.base_model)
    before = 0.0
    if isinstance(recipe, DPORecipe):
        base = load_causal(recipe.base_model, method=recipe.method, dtype=recipe.dtype)
        rows = dpo._Pairs(recipe, tokens, tokenizer.pad_token_id)
        began = time.perf_counter()
        dpo.reference_logps(
            base, rows.asked, tokenizer.pad_token_id, recipe, folder / "reference.safetensors"
        )
        before = time.perf_counter() - began
        del base
    at: list[float] = []

    def on_step(report: StepReport) -> None:
        if report.split == "train" and report.values:
            at.append(time.perf_counter())

    train = reward_model.train if isinstance(recipe, RewardRecipe) else dpo.train
    metrics = train(recipe, pairs, [], folder, on_step)  # type: ignore[operator]
    steps = steps_of(
        [pair.n_tokens for pair in tokens], recipe.batch_size, recipe.max_steps, recipe.seed,
        by_length=recipe.group_by_length,
    )  # fmt: skip
    useful = sum(n_tokens(tokens[place]) for step in steps[1:] for place in step)
    # The share of the reference's pass that belongs to the steps that were timed.
    seconds = at[-1] - at[0] + before * (len(steps) - 1) / len(steps)
    return {
        "tokens_per_second": useful / seconds,
        "useful": metrics["useful_tokens"],
        "seconds": seconds,
        "folder": folder / "model",
    }


def right(recipe: RewardRecipe | DPORecipe, model: Any, tokens: Sequence[TokenPair]) -> list[float]:
    """Margins of the held-out pairs, by our own measurement for both."""
    tokenizer = load_tokenizer(recipe.base_model)
    model.eval()
    found: list[float] = []
    if isinstance(recipe, RewardRecipe):
        rewards_of, batch_of = reward_model._whole_model(recipe, tokenizer)
    start = None if isinstance(recipe, RewardRecipe) else load_causal(recipe.base_model).eval()
    where = next(model.parameters()).device
    for first in range(0, len(tokens), 8):
        part = tokens[first : first + 8]
        with torch.no_grad():
            if isinstance(recipe, RewardRecipe):
                batch = {name: tensor.to(where) for name, tensor in batch_of(part).items()}
                chosen, rejected = rewards_of(model, batch).chunk(2)
                found += (chosen - rejected).tolist()
            else:
                now = dpo.pair_logps(model, tokenizer, part, recipe.dtype)
                then = dpo.pair_logps(start, tokenizer, part, recipe.dtype)
                found += [a - c - (b - d) for (a, b), (c, d) in zip(now, then, strict=True)]
    return found


def mean_gap(one: Any, other: Any) -> dict[str, float]:
    """Mean of one less that of the other on the same pairs or prompts, with the 95 % interval of a
    bootstrap over them."""
    gaps = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    draw = np.random.default_rng(0)
    means = gaps[draw.integers(0, len(gaps), (RESAMPLES, len(gaps)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(gaps.mean()), "low": float(low), "high": float(high)}


def sides(data: str) -> dict[str, list[Pair]]:
    """ "train" and "test" pairs: both halves of hh-rlhf, mixed; or UKPConvArg1 strict."""
    from tests.bench import realdata_reward
    from tests.real_pairs import hh_rlhf

    found: dict[str, list[Pair]] = {}
    if data == "ukp":
        found["train"], found["test"], _known = realdata_reward.sides("ukp", DEBATE)
    else:
        shared = Path(os.environ.get("PREFLOOP_SHARED", "../shared")) / "data"
        for split in ("train", "test"):
            halves = [hh_rlhf(shared, half, split) for half in ("harmless", "helpful")]
            found[split] = [pair for half in halves for pair in half]
    for pairs in found.values():
        random.Random(0).shuffle(pairs)
    return found


def utilities(model: Any, base: str, prompts: Sequence[str]) -> list[float]:
    """True utility of what a policy writes to each prompt of the micro-world, the mean of two."""
    from labeling import microworld
    from training.ml.generation import sample

    asked = [[{"role": "user", "content": prompt}] for prompt in prompts for _two in "ab"]
    texts = sample(
        model.eval(), load_tokenizer(base), asked, max_new_tokens=96, temperature=0.7, seed=0
    )
    each = [microworld.utility(p[0]["content"], t) for p, t in zip(asked, texts, strict=True)]
    return [statistics.fmean(each[at : at + 2]) for at in range(0, len(each), 2)]


def compare(
    kind: str, asked: argparse.Namespace, sides: dict[str, list[Pair]], prompts: Sequence[str]
) -> dict[str, Any]:
    """Rounds of both in turn.

    Args: prompts: of the micro-world that policies write to, none for other data.
    """
    settings = {
        "base_model": asked.base,
        "batch_size": asked.batch,
        "max_length": asked.max_length,
        "max_steps": asked.pairs // asked.batch,
        "learning_rate": 1e-3 if kind == "reward" else 5e-4,
        "checkpoint_every": 10**6,
        **dict(pair.split("=", 1) for pair in asked.set),
    }
    tokenizer = load_tokenizer(asked.base)
    held_out, _left_out = tokenize_pairs(sides["test"], tokenizer, asked.max_length)
    pairs = []
    for pair in sides["train"]:
        if len(pairs) < asked.pairs and tokenize_pairs([pair], tokenizer, asked.max_length)[0]:
            pairs.append(pair)
    tokens, _left_out = tokenize_pairs(pairs, tokenizer, asked.max_length)
    rates: dict[str, list[float]] = {"ours": [], "stock": []}
    margins: dict[str, list[float]] = {"ours": [], "stock": []}
    shares: dict[str, float] = {}
    worth: dict[str, list[float]] = {"ours": [], "stock": []}
    for round_ in range(asked.rounds):
        recipe: Any = make_recipe(kind, settings | {"seed": round_})
        for name in ("stock", "ours") if round_ % 2 else ("ours", "stock"):
            with tempfile.TemporaryDirectory() as out:
                if name == "ours":
                    found = ours(recipe, pairs, tokens, Path(out))
                    model = _loaded(recipe, found["folder"])
                else:
                    found = stock(recipe, tokens, Path(out))
                    model = found["model"]
                rates[name].append(found["tokens_per_second"])
                shares[name] = found["useful"]
                margins[name] += right(recipe, model, held_out)
                if kind == "dpo" and prompts:
                    worth[name] += utilities(model, asked.base, prompts)
    gap = mean_gap(*(np.array(margins[name]) > 0 for name in ("ours", "stock")))
    written = {}
    if worth["ours"]:
        start = utilities(load_causal(asked.base), asked.base, prompts)
        written = {
            "utility": {"start": statistics.fmean(start)}
            | {name: statistics.fmean(found) for name, found in worth.items()},
            "utility_difference": mean_gap(worth["ours"], worth["stock"]),
        }
    ratios = [a / b for a, b in zip(rates["ours"], rates["stock"], strict=True)]
    return {
        "recipe": kind,
        "pairs": len(pairs),
        "lengths": [int(q) for q in np.quantile([p.n_tokens for p in tokens], [0.1, 0.5, 0.9])],
        "tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "rounds": rates,
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "useful_share": shares,
        "accuracy": {name: share_right(found) for name, found in margins.items()},
        "accuracy_difference": gap,
        **written,
    }


def _loaded(recipe: RewardRecipe | DPORecipe, folder: Path) -> Any:
    if isinstance(recipe, RewardRecipe):
        from training.ml.loading import load_reward_model

        return load_reward_model(folder, dtype=recipe.dtype)[0]
    return load_causal(str(folder), dtype=recipe.dtype)


# A large model on a GPU ---------------------------------------------------------------------------


def bf16_rate(size: int = 8192, rounds: int = 50) -> float:
    """Operations a second of the card's own matrix product in bfloat16."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _m in range(2))
    for _warm in range(5):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _round in range(rounds):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * rounds / (time.perf_counter() - began)


def save_large(folder: Path, config: dict[str, Any]) -> int:
    """Random weights of a config in bfloat16, with a tokenizer of bytes; returns their number."""
    from tests.training.tiny import save_tiny_model

    save_tiny_model(folder)
    rest = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(
        config["model_type"], pad_token_id=0, eos_token_id=1, bos_token_id=None, **rest
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return parameters


def large(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """QLoRA of both recipes and of the stock trainers on a large model; lengths as hh-rlhf has
    them, drawn where its files are not at hand."""
    rate = bf16_rate()
    draw = random.Random(0)
    found = []
    with tempfile.TemporaryDirectory() as place:
        parameters = save_large(Path(place), json.loads(asked.config) if asked.config else LLAMA_8B)
        tokenizer = load_tokenizer(place)
        spare = len(tokenizer("User: \n\nAssistant: ")["input_ids"])
        pairs = []
        for n in range(asked.batch * asked.steps):
            own = min(asked.max_length - spare, max(24, int(draw.lognormvariate(5.3, 0.8))))
            texts = [
                str(n % 9) * (own // 2),
                *(str(draw.randint(1, 9)) * (own // 2) for _s in "cr"),
            ]
            turns = [
                {"role": r, "content": t}
                for r, t in zip(("user", "assistant", "assistant"), texts, strict=True)
            ]
            pairs.append(Pair([turns[0]], [turns[1]], [turns[2]], prompt_id=str(n)))
        tokens, _left_out = tokenize_pairs(pairs, tokenizer, asked.max_length)
        for kind in ("reward", "dpo"):
            for name in ("ours", "stock"):
                settings = {
                    "base_model": place,
                    "method": "qlora",
                    "batch_size": asked.batch,
                    "max_length": asked.max_length,
                    "max_steps": len(tokens) // asked.batch,
                    "gradient_checkpointing": True,
                    "checkpoint_every": 10**6,
                }
                recipe: Any = make_recipe(kind, settings)
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                with tempfile.TemporaryDirectory() as out:
                    if name == "ours":
                        one = ours(recipe, pairs, tokens, Path(out))
                    else:
                        one = stock(recipe, tokens, Path(out))
                        del one["model"]
                per_second = one["tokens_per_second"]
                found.append(
                    {
                        "recipe": kind,
                        "who": name,
                        "parameters": parameters,
                        "tokens_per_second": per_second,
                        "peak_gib": torch.cuda.max_memory_reserved() / 2**30,
                        # Forward, and back through frozen weights: 2 operations a weight and token
                        # each. What checkpointing computes again is not counted as useful.
                        "share_of_bf16_rate": 4 * parameters * per_second / rate,
                        "bf16_rate": rate,
                        "useful_share": one["useful"],
                    }
                )
                print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", help="folder of the model to train")
    parser.add_argument("--world", help="folder where the micro-world's model and pairs are kept")
    parser.add_argument("--data", choices=["hh-rlhf", "ukp"], default="hh-rlhf")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--recipe", choices=["reward", "dpo"], action="append")
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--config", default="", help="--large: a config.json as text")
    parser.add_argument("--steps", type=int, default=20, help="--large: steps of each run")
    asked = parser.parse_args()
    if asked.large:
        large(asked)
        return
    prompts: list[str] = []
    if asked.world:
        from tests.bench.overoptimisation import set_up

        asked.base, *pairs = set_up(Path(asked.world).resolve())
        found = dict(zip(("train", "test"), pairs, strict=True))
        prompts = sorted({pair.prompt_id for pair in found["test"]})
    elif asked.base:
        found = sides(asked.data)
    else:
        parser.error("--base names the model to train; tests.bench.dialogue_base makes one")
    for kind in asked.recipe or ["reward", "dpo"]:
        print(json.dumps(compare(kind, asked, found, prompts), indent=1), flush=True)


if __name__ == "__main__":
    main()
