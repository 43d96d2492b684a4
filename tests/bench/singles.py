"""Do judgements of single responses teach what they should? In the micro-world, where it is known.

    python -m tests.bench.singles kto     [--seeds 3] [--prompts 900]   # true utility of a policy
    python -m tests.bench.singles ratings [--seeds 3] [--prompts 900]   # a reward model on pairs

One response to each prompt, so that no two can be held against each other, and three raters who see
it. A rater's thumb is up where the utility, with the rater's noise, is above that of a middling
response; a rating is the same on five steps. `kto` trains a policy on the thumbs (majority,
the rarer kind weighted up) and tells the true utility of what it writes to held-out prompts beside
that of its start. `ratings` trains a reward model on the mean ratings, and holds it against pairs
of responses to held-out prompts, which it never saw in training.
"""

import argparse
import json
import os
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

from config.demo import DemoSettings, base_model, sample_responses  # noqa: E402
from labeling import microworld  # noqa: E402
from labeling.storage import storage_path  # noqa: E402
from training.ml.config import DPORecipe, RewardRecipe  # noqa: E402
from training.ml.data import Pair, Single  # noqa: E402
from training.study_figures import over_seeds  # noqa: E402

NOISE = 1.0
RATERS = 3
NEVER = 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kto", "ratings"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=900)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.filterwarnings("ignore")
    base = storage_path("models") / base_model(DemoSettings(), lambda what, done, total: None)
    rows = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        row = (kto if asked.what == "kto" else ratings)(base, seed, asked.prompts)
        rows.append(row)
        print(json.dumps({"seed": seed} | row), flush=True)
    if len(rows) > 1:
        print(json.dumps({"gain": over_seeds([row["gain"] for row in rows])}))


def kto(base: Path, seed: int, n: int) -> dict[str, Any]:
    """True utility of the start and of the policy that thumbs taught, on held-out prompts."""
    from training.ml import dpo

    train, test, held_out = _world(seed, n)
    good = sum(single.good > 0.5 for single in train)
    bad = sum(single.good < 0.5 for single in train)
    weights = {"kto_undesirable": max(1.0, good / bad), "kto_desirable": max(1.0, bad / good)}
    recipe = DPORecipe(
        base_model=str(base),
        loss="kto",
        seed=seed,
        eval_every=NEVER,
        checkpoint_every=NEVER,
        **DemoSettings().dpo | {"epochs": 3} | weights,
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = dpo.train(recipe, train, test, Path(folder), lambda report: None)
        after = _utility(Path(folder) / "model", held_out, seed)
    before = _utility(base, held_out, seed)
    return {
        "good": good,
        "bad": bad,
        "auc": metrics["auc"]["value"],
        "start": before,
        "kto": after,
        "gain": after - before,
    }


def ratings(base: Path, seed: int, n: int) -> dict[str, Any]:
    """Accuracy on true pairs of the reward model that ratings taught, and of the longer one."""
    from training.ml import reward_model
    from training.ml.loading import load_reward_model

    train, test, held_out = _world(seed, n)
    recipe = RewardRecipe(
        base_model=str(base),
        loss="ratings",
        seed=seed,
        eval_every=NEVER,
        checkpoint_every=NEVER,
        **DemoSettings().reward,
    )
    rng = random.Random(f"pairs {seed}")
    pairs = [pair for prompt in held_out if (pair := _pair(prompt, rng))]
    with tempfile.TemporaryDirectory() as folder:
        metrics = reward_model.train(recipe, train, test, Path(folder), lambda report: None)
        model, tokenizer = load_reward_model(Path(folder) / "model")
        sides = [pair.prompt + side for pair in pairs for side in (pair.chosen, pair.rejected)]
        scores = reward_model.score(model, tokenizer, sides)
    right = [a > b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    longer = [len(p.chosen[0]["content"]) > len(p.rejected[0]["content"]) for p in pairs]
    accuracy = sum(right) / len(right)
    return {
        "pairs": len(pairs),
        "correlation": metrics["correlation"]["value"],
        "error": metrics["error"]["value"],
        "usual_error": metrics["usual_error"]["value"],
        "accuracy": accuracy,
        "longer": sum(longer) / len(longer),
        "gain": accuracy - 0.5,
    }


def _world(seed: int, n: int) -> tuple[list[Single], list[Single], list[str]]:
    """Training and test rows, and prompts that nobody rated."""
    rng = random.Random(f"singles {seed}")
    prompts = microworld.prompts()
    rng.shuffle(prompts)
    half = len(prompts) // 2
    values = []
    for prompt in prompts[:half]:
        values.append(microworld.utility(prompt, microworld.sample_response(prompt, rng)))
    middling = sorted(values)[len(values) // 2]
    rows = [_single(rng.choice(prompts[:half]), middling, rng) for _ in range(n)]
    kept = len(rows) * 9 // 10
    return rows[:kept], rows[kept:], prompts[half:]


def _single(prompt: str, middling: float, rng: random.Random) -> Single:
    text = microworld.sample_response(prompt, rng)
    seen = [
        microworld.utility(prompt, text) - middling + rng.gauss(0, NOISE) for _ in range(RATERS)
    ]
    thumbs = sum(value > 0 for value in seen)
    steps = [max(-1.0, min(1.0, round(value) / 2)) for value in seen]
    return Single(
        prompt=[{"role": "user", "content": prompt}],
        response=[{"role": "assistant", "content": text}],
        good=float(thumbs > RATERS / 2),
        rating=sum(steps) / RATERS,
        prompt_id=prompt,
    )


def _pair(prompt: str, rng: random.Random) -> Pair | None:
    a, b = microworld.sample_response(prompt, rng), microworld.sample_response(prompt, rng)
    gap = microworld.utility(prompt, a) - microworld.utility(prompt, b)
    chosen, rejected = (a, b) if gap > 0 else (b, a)
    if not gap:
        return None
    return Pair(
        prompt=[{"role": "user", "content": prompt}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
    )


def _utility(folder: Path, prompts: list[str], seed: int) -> float:
    texts = sample_responses(folder, prompts, seed, 1.0, lambda done, total: None)
    return sum(microworld.utility(*row) for row in zip(prompts, texts, strict=True)) / len(prompts)


if __name__ == "__main__":
    main()
