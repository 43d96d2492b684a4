"""How many random labels is a label worth that was chosen?

    python -m tests.bench.rounds --out FILE [--seeds 5] [--first-seed 1] [--minutes 9] [--table]

Three rounds in the micro-world. Each round samples four responses to each of 540 prompts and asks
one rater of the world's five, drawn at random, about some of the pairs: a label is one vote. Then a
reward model is trained from the base on all labels so far. Arms differ in which pairs are asked
about:

    random 200 | 400 | 600   so many a round, uniformly
    chosen 200               a tenth uniformly; the rest by the product's own choice for reward
                             models (training/ml/selection.py): D-optimal on what the last layer of
                             the model of the round before reads, the first round on the base's
    bald 200                 the same, the rest by the disagreement of an ensemble

Held against the truth on 540 prompts that no label was given for, eight responses each: the share
of pairs of unequal utility that the model puts in the right order, and the true utility of the
response that it likes best. A seed draws everything anew but the base: prompts, responses, raters,
votes, heads and the order of training. All arms of a seed see the same responses, and are trained
alike. What is done is kept in the file, so a run that was stopped goes on.
"""

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

from config.demo import DemoSettings, base_model  # noqa: E402
from labeling import microworld  # noqa: E402
from labeling.storage import storage_path  # noqa: E402
from training.ml import selection  # noqa: E402
from training.ml.config import RewardRecipe  # noqa: E402
from training.ml.data import Messages, Pair  # noqa: E402
from training.near_duplicates import jaccard, shingles  # noqa: E402
from training.study_figures import over_seeds  # noqa: E402

ROUNDS = 3
RECIPE: dict[str, Any] = {"method": "head", "learning_rate": 3e-3, "epochs": 20, "batch_size": 16}
N_TEST = 8  # responses to each held-out prompt
ARMS = {
    "random 200": ("random", 200),
    "random 400": ("random", 400),
    "random 600": ("random", 600),
    "chosen 200": ("d_optimal", 200),
    "bald 200": ("bald", 200),
}


@dataclass(frozen=True)
class Candidate:
    """Two responses to a prompt, and a vote that is only looked at once it is paid for."""

    prompt: str
    a: str
    b: str
    vote: str

    def pair(self) -> Pair:
        prob_a = {"a": 1.0, "b": 0.0, "tie": 0.5}[self.vote]
        chosen, rejected = (self.a, self.b) if prob_a >= 0.5 else (self.b, self.a)
        return Pair(
            prompt=_said("user", self.prompt),
            chosen=_said("assistant", chosen),
            rejected=_said("assistant", rejected),
            prompt_id=self.prompt,
            prob=max(prob_a, 1 - prob_a),
        )

    def sides(self) -> list[Messages]:
        prompt = _said("user", self.prompt)
        return [prompt + _said("assistant", text) for text in (self.a, self.b)]


@dataclass(frozen=True)
class World:
    """What the arms of a seed have in common."""

    seed: int
    base: Path
    pools: list[list[Candidate]]
    """For each round its candidates, in random order."""
    test: list[tuple[str, list[str]]]
    """Held-out prompts with their responses."""


def _said(role: str, text: str) -> Messages:
    return [{"role": role, "content": text}]


def world_of(seed: int, base: Path, k: int, alike: float) -> World:
    rng = random.Random(f"rounds {seed}")
    prompts = microworld.prompts()
    rng.shuffle(prompts)
    half = len(prompts) // 2
    pools = []
    for _ in range(ROUNDS):
        pool = [c for prompt in prompts[:half] for c in _candidates(prompt, k, alike, rng)]
        rng.shuffle(pool)
        pools.append(pool)
    test = [
        (prompt, [microworld.sample_response(prompt, rng) for _ in range(N_TEST)])
        for prompt in prompts[half:]
    ]
    return World(seed, base, pools, test)


def _candidates(prompt: str, k: int, alike: float, rng: random.Random) -> list[Candidate]:
    """Pairs of k responses that are not nearly the same, each with the vote it would get."""
    texts: list[str] = []
    for _ in range(k):
        text = microworld.sample_response(prompt, rng)
        if all(jaccard(shingles(text), shingles(other)) < alike for other in texts):
            texts.append(text)
    found = []
    for place, b in enumerate(texts):
        for a in texts[:place]:
            gap = microworld.utility(prompt, a) - microworld.utility(prompt, b)
            rater = rng.choice(microworld.RATERS)
            found.append(Candidate(prompt, a, b, microworld.vote(rater, gap, rng).choice))
    return found


def carry_out(
    world: World, kind: str, n: int, members: int, ridge: float, every: bool
) -> list[dict[str, Any]]:
    """Three rounds; what the reward model is worth after each, or after the last alone."""
    labels: list[Candidate] = []
    folder: Path | None = None
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number, pool in enumerate(world.pools):
            labels += choose(world, kind, n, pool, labels, folder, number, ridge)
            is_last = number == ROUNDS - 1
            if kind == "random" and not (every or is_last):
                continue
            folder = Path(place) / str(number)
            began = time.monotonic()
            _train(world, labels, folder, members)
            found = measured(world, folder / "model")
            rows.append(
                {
                    "round": number + 1,
                    "labels": len(labels),
                    "ties": sum(c.vote == "tie" for c in labels) / len(labels),
                    "seconds": round(time.monotonic() - began, 1),
                    **found,
                }
            )
    return rows


def choose(
    world: World,
    kind: str,
    n: int,
    pool: list[Candidate],
    labels: list[Candidate],
    folder: Path | None,
    number: int,
    ridge: float,
) -> list[Candidate]:
    """The candidates that a round asks about."""
    if kind == "random":
        return pool[:n]
    n_best = n - selection.n_at_random(n)
    rewards, features = _read(world.base, folder, [*pool, *labels])
    gaps = rewards[:, ::2] - rewards[:, 1::2]  # (members, pairs)
    probs = selection.prob_of_gap(gaps)
    if folder is None:  # no label yet: nobody knows a probability
        probs = np.full_like(probs, 0.5)
    if kind == "bald" and folder is not None:
        order = np.argsort(-selection.bald(probs[:, : len(pool)]), kind="stable").tolist()
    else:
        phi = selection.unit_features(features[::2] - features[1::2])
        mean = probs.mean(axis=0)
        order, _gains = selection.d_optimal(
            phi[: len(pool)],
            mean[: len(pool)],
            n_best,
            labeled=phi[len(pool) :],
            labeled_probs=mean[len(pool) :],
            ridge=ridge,
        )
    design = selection.best_and_random(order, n, len(pool))
    taken = selection.draw(design, seed=1000 * world.seed + number)
    return [pool[p] for p in taken.places]


def _read(
    base: Path, folder: Path | None, candidates: list[Candidate]
) -> tuple[selection.Floats, selection.Floats]:
    """Rewards (members, sides) and features (sides, width) of both sides of each candidate."""
    from training.ml.candidates import read_responses
    from training.ml.loading import load_reward_model, load_scorer, load_tokenizer

    if folder is None:
        model, tokenizer = load_scorer(str(base)), load_tokenizer(str(base))
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model, tokenizer = load_reward_model(folder / "model")
    sides = [side for c in candidates for side in c.sides()]
    unique = {json.dumps(side): side for side in sides}  # a response stands in three pairs
    place = {key: at for at, key in enumerate(unique)}
    seen = read_responses(model, tokenizer, list(unique.values()), batch_size=128)
    rows = [place[json.dumps(side)] for side in sides]
    return seen.rewards[:, rows], seen.features[rows]


def _train(world: World, labels: list[Candidate], folder: Path, members: int) -> None:
    from training.ml import reward_model

    never = 10**6
    recipe = RewardRecipe(
        base_model=str(world.base),
        seed=world.seed,
        members=members,
        eval_every=never,
        checkpoint_every=never,
        **RECIPE,
    )
    folder.mkdir()
    pairs = [c.pair() for c in labels]
    reward_model.train(recipe, pairs, [], folder, lambda report: None)


def measured(world: World, folder: Path) -> dict[str, float]:
    """Against the truth, on prompts without labels."""
    from training.ml.loading import load_reward_model
    from training.ml.reward_model import score

    model, tokenizer = load_reward_model(folder)
    asked = [
        _said("user", prompt) + _said("assistant", text)
        for prompt, texts in world.test
        for text in texts
    ]
    rewards = np.array(score(model, tokenizer, asked, batch_size=128)).reshape(-1, N_TEST)
    truth = np.array([[microworld.utility(p, t) for t in texts] for p, texts in world.test])
    upper = np.triu_indices(N_TEST, 1)
    gap = (rewards[:, :, None] - rewards[:, None, :])[:, *upper]  # (prompts, pairs)
    true_gap = (truth[:, :, None] - truth[:, None, :])[:, *upper]
    unequal = true_gap != 0
    signed = (gap * np.sign(true_gap))[unequal]
    best = truth[np.arange(len(truth)), rewards.argmax(axis=1)]
    return {
        "accuracy": float((signed > 0).mean()),
        "log_loss": float(np.logaddexp(0, -signed).mean()),
        "utility": float(best.mean()),
        "best_possible": float(truth.max(axis=1).mean()),
        "any": float(truth.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--k", type=int, default=4, help="responses to a prompt")
    parser.add_argument("--alike", type=float, default=0.9)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--ridge", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after these")
    parser.add_argument("--tag", default="")
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    asked = parser.parse_args()
    began = time.monotonic()
    rows = [json.loads(line) for line in asked.out.open()] if asked.out.exists() else []
    if not asked.table:
        warnings.filterwarnings("ignore")
        base = storage_path("models") / base_model(DemoSettings(), lambda what, done, total: None)
        done = {(row["seed"], row["arm"], row["tag"]) for row in rows}
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            todo = [arm for arm in asked.arms if (seed, arm, asked.tag) not in done]
            world = world_of(seed, base, asked.k, asked.alike) if todo else None
            for arm in todo:
                if world is None or time.monotonic() - began > 60 * asked.minutes:
                    print("time is up: run the same line again")
                    return
                kind, n = ARMS[arm]
                found = carry_out(
                    world, kind, n, asked.members, asked.ridge, every=arm == "random 200"
                )
                for row in found:
                    row |= {"seed": seed, "arm": arm, "tag": asked.tag, "pool": len(world.pools[0])}
                    rows.append(row)
                    with asked.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    table(rows)


def table(rows: list[dict[str, Any]]) -> None:
    pass


if __name__ == "__main__":
    main()
