"""What padding costs, and what each way to avoid it gains: useful tokens a second of the forward
and backward passes of a reward model, on pairs of hh-rlhf (../shared/data, both halves mixed).

    python -m tests.bench.padding [--steps 24] [--rounds 3]

Steps of eight pairs, of like length as the recipes form them, pass through the model
- padded: as 16 rows, each as long as the longest;
- in groups: rows of like length together, each group as long as its own longest (the recipes' way);
- in one row: without padding, one text behind another, positions anew for each, attention kept
  within each text by a mask (block-diagonal). On a GPU with flash attention no mask is needed; on a
  CPU every text is multiplied with every other one first.
Rounds of all take turns. The rewards of the three ways are compared first.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.memory import save_model
from training.ml.adapting import adapted
from training.ml.batches import steps_of
from training.ml.config import RewardRecipe
from training.ml.data import Pair, tokenize_pairs
from training.ml.loading import load_scorer, load_tokenizer
from training.ml.logprobs import pad_right

MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 512},
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
}


def mixed_pairs(n: int) -> list[Pair]:
    from tests.real_pairs import hh_rlhf

    shared = Path(os.environ.get("PREFLOOP_SHARED", "../shared")) / "data"
    pairs = [
        pair for half in ("harmless", "helpful") for pair in hh_rlhf(shared, half, "train")[:n]
    ]
    random.Random(0).shuffle(pairs)
    return pairs


def groups(rows: list[list[int]], most: int) -> list[list[int]]:
    """Places of rows in up to `most` groups of like length, with the least padding."""
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
    best: dict[tuple[int, int], tuple[int, list[list[int]]]] = {(0, 0): (0, [])}
    for k in range(1, most + 1):
        for end in range(1, len(order) + 1):
            found = [
                (
                    best[k - 1, start][0] + (end - start) * len(rows[order[start]]),
                    [*best[k - 1, start][1], order[start:end]],
                )
                for start in range(end)
                if (k - 1, start) in best
            ]
            if found:
                best[k, end] = min(found, key=lambda one: one[0])
    return min((best[k, len(order)] for k in range(1, most + 1)), key=lambda one: one[0])[1]


def padded(model: Any, rows: list[list[int]]) -> Tensor:
    ids, mask = pad_right(rows, 0)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.squeeze(-1)


def in_groups(model: Any, rows: list[list[int]], most: int) -> Tensor:
    found = torch.zeros(len(rows))
    for places in groups(rows, most):
        found = found.index_put((torch.tensor(places),), padded(model, [rows[at] for at in places]))
    return found


def in_one_row(model: Any, rows: list[list[int]]) -> Tensor:
    lengths = [len(row) for row in rows]
    ids = torch.tensor([[token for row in rows for token in row]])
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    whose = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    allowed = (whose[:, None] == whose[None, :]).tril()[None, None]  # (1, 1, tokens, tokens)
    whole = model.get_base_model()
    body = getattr(whole, whole.base_model_prefix)
    hidden = body(
        input_ids=ids, position_ids=places, attention_mask=allowed, use_cache=False
    ).last_hidden_state[0]
    last = hidden[torch.tensor(lengths).cumsum(0) - 1]
    return whole.score(last).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=[*MODELS], action="append")
    asked = parser.parse_args()
    for name in asked.model or MODELS:
        with tempfile.TemporaryDirectory() as place:
            save_model(Path(place), MODELS[name])
            tokenizer = load_tokenizer(place)
            recipe = RewardRecipe(base_model=place, dtype="float32")
            torch.manual_seed(0)
            base = load_scorer(place, dtype="float32")
            base.config.pad_token_id = 0
            model = adapted(base, recipe, task="SEQ_CLS").eval()
        # Bytes are four times as many as words' pieces: texts are cut to a quarter of theirs.
        pairs, _left_out = tokenize_pairs(mixed_pairs(1200), tokenizer, 2048)
        texts = [
            [(p.prompt_ids + side)[::4] for side in (p.chosen_ids, p.rejected_ids)] for p in pairs
        ]
        lengths = [max(map(len, sides)) for sides in texts]
        steps = steps_of(lengths, 8, asked.steps, 0, by_length=True)
        rows_of = [[row for at in step for row in texts[at]] for step in steps]
        ways = {
            "padded": padded,
            "2 groups": lambda m, rows: in_groups(m, rows, 2),
            "4 groups": lambda m, rows: in_groups(m, rows, 4),
            "one row": in_one_row,
        }
        with torch.no_grad():
            one = {way: run(model, rows_of[0]) for way, run in ways.items()}
        apart = {way: float((found - one["padded"]).abs().max()) for way, found in one.items()}
        useful = sum(len(row) for rows in rows_of for row in rows)
        computed = {
            "padded": sum(len(rows) * max(map(len, rows)) for rows in rows_of),
            "one row": useful,
        }
        for most in (2, 4):
            computed[f"{most} groups"] = sum(
                len(group) * max(len(rows[at]) for at in group)
                for rows in rows_of
                for group in groups(rows, most)
            )
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _round in range(asked.rounds):
            for way, run in ways.items():
                began = time.perf_counter()
                for rows in rows_of:
                    run(model, rows).sum().backward()
                rates[way].append(useful / (time.perf_counter() - began))
        for way, found in rates.items():
            gain = statistics.median(a / b for a, b in zip(found, rates["padded"], strict=True))
            print(
                f"| {name} | {way} | {useful / computed[way]:.0%} | "
                f"{statistics.median(found):,.0f} | {gain:.2f} | {apart[way]:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
