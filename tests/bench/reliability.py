"""Do labels that know how reliable raters are teach a reward model more than majorities do?

    python -m tests.bench.reliability [--crowd thirds|guessers] [--seeds 10] [--first-seed 1]
                                      [--pairs 400] [--truth] [--json]

The micro-world knows the truth, so each reward model is held against it, on pairs of prompts that
no label was given for. One seed draws everything anew but the base: prompts, responses, which
raters see which pair, their votes, the held-out pairs, the new score head and the order of
training. The votes then become labels in several ways, and each way trains one reward model with
the same settings, seed and responses:

    majority     the most frequent answer as a hard label; ties and divided votes are left out
    shares       soft label: the share of votes, a tie one half
    dawid-skene  soft label: Dawid and Skene's posterior, which weighs raters by their errors
    weighted     its likelier answer as a hard label, weighed by |2q − 1|
    truth        the better response itself: what any labels could give at best (with --truth)

Three votes a pair, by raters drawn at random from twelve. Two crowds, both of unequal reliability:
"thirds" are careful, hasty (four answers of ten unread) and guessing (nine of ten unread, leaning
to what stands first) in equal parts; of "guessers" three are careful and nine guess. The recipe is
the demo's. What was tried besides, and what came out: docs/benchmarks.md.
"""

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

from config.demo import DemoSettings, base_model  # noqa: E402
from labeling import microworld  # noqa: E402
from labeling.rater_models import Answers, dawid_skene  # noqa: E402
from labeling.storage import storage_path  # noqa: E402
from training.ml.config import RewardRecipe  # noqa: E402
from training.ml.data import Pair  # noqa: E402
from training.study_figures import over_seeds  # noqa: E402


def _raters(kind: str, n: int, **habits: float) -> list[microworld.SimulatedRater]:
    return [microworld.SimulatedRater(f"{kind}-{i}", ties=0.1, **habits) for i in range(n)]


CROWDS = {
    "thirds": [
        *_raters("careful", 4, temperature=0.8),
        *_raters("hasty", 4, temperature=1.2, side_bias=0.3, careless=0.4),
        *_raters("guessing", 4, temperature=1.2, side_bias=0.8, careless=0.9),
    ],
    "guessers": [
        *_raters("careful", 3, temperature=0.8),
        *_raters("guessing", 9, temperature=1.2, side_bias=0.8, careless=0.9),
    ],
}
VOTES = 3
N_TEST = 500
ARMS = ("majority", "shares", "dawid-skene", "weighted")
CODES = {"a": 0, "b": 1, "tie": 2}


def one_seed(
    seed: int, n_pairs: int, base: Path, crowd: str, arms: tuple[str, ...] = ARMS
) -> dict[str, Any]:
    """The accuracy of every arm on held-out truth, and how right its labels were."""
    rng = random.Random(f"reliability {seed}")
    prompts = microworld.prompts()
    rng.shuffle(prompts)
    half = len(prompts) // 2
    train = [_responses(rng.choice(prompts[:half]), rng) for _ in range(n_pairs)]
    test = [_responses(rng.choice(prompts[half:]), rng) for _ in range(N_TEST)]
    labels = _labels(train, CROWDS[crowd], rng)
    held_out = [_pair(*row, prob_a=float(row[3] > 0)) for row in test]
    found: dict[str, Any] = {"seed": seed}
    truth = np.array([row[3] for row in train]) > 0
    for arm in arms:
        began = time.monotonic()
        probs, weights = labels[arm]
        pairs = [
            _pair(*row, prob_a=float(p), weight=float(w))
            for row, p, w in zip(train, probs, weights, strict=True)
            if w > 0
        ]
        decided = (weights > 0) & (probs != 0.5)
        right = (probs > 0.5)[decided] == truth[decided]
        metrics = _train(base, pairs, held_out, seed)
        found[arm] = {
            "accuracy": metrics["accuracy"]["value"],
            "log_loss": metrics["log_loss"],
            "pairs": len(pairs),
            "labels_right": float(right.mean()),
            "seconds": time.monotonic() - began,
        }
    return found


def _responses(prompt: str, rng: random.Random) -> tuple[str, str, str, float]:
    """Two responses to a prompt that differ in utility, and by how much the first is better."""
    while True:
        a, b = microworld.sample_response(prompt, rng), microworld.sample_response(prompt, rng)
        difference = microworld.utility(prompt, a) - microworld.utility(prompt, b)
        if difference:
            return prompt, a, b, difference


def _labels(
    rows: list[tuple[str, str, str, float]],
    crowd: list[microworld.SimulatedRater],
    rng: random.Random,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each arm (pairs,) the probability that A is better, and the weight; 0 is left out."""
    names = {rater.name: place for place, rater in enumerate(crowd)}
    votes = [microworld.votes(row[3], rng, raters=crowd, n=VOTES) for row in rows]
    flat = [(item, vote) for item, given in enumerate(votes) for vote in given]
    fit = dawid_skene(
        Answers.of(
            [item for item, _vote in flat],
            [names[vote.rater] for _item, vote in flat],
            [CODES[vote.choice] for _item, vote in flat],
            [CODES[vote.shown_first] for _item, vote in flat],
            n_items=len(rows),
            n_raters=len(crowd),
            n_classes=3,
        )
    )
    posterior = fit.posteriors[:, 0] + fit.posteriors[:, 2] / 2
    value = {"a": 1.0, "b": 0.0, "tie": 0.5}
    majority = np.array([value[microworld.majority([v.choice for v in vs])] for vs in votes])
    ones = np.ones(len(rows))
    return {
        "majority": (majority, (majority != 0.5).astype(float)),
        "shares": (np.array([np.mean([value[v.choice] for v in vs]) for vs in votes]), ones),
        "dawid-skene": (posterior, ones),
        "weighted": ((posterior > 0.5).astype(float), np.abs(2 * posterior - 1)),
        "truth": ((np.array([row[3] for row in rows]) > 0).astype(float), ones),
    }


def _pair(
    prompt: str, a: str, b: str, difference: float, *, prob_a: float, weight: float = 1.0
) -> Pair:
    chosen, rejected = (a, b) if prob_a >= 0.5 else (b, a)
    return Pair(
        prompt=[{"role": "user", "content": prompt}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
        prompt_id=prompt,
        prob=max(prob_a, 1 - prob_a),
        weight=weight,
    )


def _train(base: Path, train: list[Pair], test: list[Pair], seed: int) -> dict[str, Any]:
    from training.ml import reward_model

    never = 10**6
    recipe = RewardRecipe(
        base_model=str(base),
        seed=seed,
        eval_every=never,
        checkpoint_every=never,
        **DemoSettings().reward,
    )
    with tempfile.TemporaryDirectory() as folder:
        return reward_model.train(recipe, train, test, Path(folder), lambda report: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crowd", choices=CROWDS, default="thirds")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))
    warnings.filterwarnings("ignore")
    arms = (*ARMS, "truth") if asked.truth else ARMS
    base = storage_path("models") / base_model(DemoSettings(), lambda what, done, total: None)
    print(
        f"{asked.crowd}: {asked.pairs} pairs, {VOTES} votes each of "
        f"{len(CROWDS[asked.crowd])} raters; {N_TEST} held-out pairs"
    )
    print(f"{'seed':>4}  " + "  ".join(f"{arm:>11}" for arm in arms) + "  labels right     seconds")
    rows = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        row = one_seed(seed, asked.pairs, base, asked.crowd, arms)
        rows.append(row)
        right = f"{row['majority']['labels_right']:.3f} → {row['dawid-skene']['labels_right']:.3f}"
        seconds = sum(row[arm]["seconds"] for arm in arms)
        accuracies = "  ".join(f"{row[arm]['accuracy']:11.3f}" for arm in arms)
        print(f"{seed:>4}  {accuracies}  {right}  {seconds:7.1f}", flush=True)
    if len(rows) < 2:
        return
    print("\nagainst majority, paired by seed")
    summary = {}
    for arm in arms[1:]:
        for figure in ("accuracy", "log_loss"):
            found = over_seeds([row[arm][figure] - row["majority"][figure] for row in rows])
            summary[f"{arm} {figure}"] = found
            interval = f"[{found['low']:+.4f}, {found['high']:+.4f}]"
            print(f"{arm:>11}  {figure:<9} {found['value']:+.4f} {interval}")
    if asked.json:
        print(json.dumps({"rows": rows, "paired": summary}))


if __name__ == "__main__":
    main()
