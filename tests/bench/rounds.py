"""How many random labels is a label worth that was chosen?

    python -m tests.bench.rounds --out FILE [--seeds 5] [--first-seed 1] [--minutes 9] [--table]

Three rounds in the micro-world. Each round samples four responses to each of 540 prompts and has
some of the pairs labeled: by the majority of the world's five raters as in the demo, with --labels
soft by the share of their votes, with --votes 1 by one of them, drawn at random, or with --votes 0
by the truth. Then a reward model is trained from the base on all labels so far. Arms differ in
which pairs are asked about:

    random 200 | … | 1000    so many a round, uniformly
    i_optimal 200 | 1000     a tenth uniformly; the rest by the product's own choice for reward
                             models (training/ml/selection.py), on what the last layer of the model
                             of the round before reads; in the first round, on the base's
    d_optimal 200            the same, the rest D-optimal
    near_tie 200             the same, the rest where the model cannot tell, two of a prompt at most
    bald 200                 the same, the rest by the disagreement of --members

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
RECIPES: dict[str, dict[str, Any]] = {
    "head": {
        "method": "head",
        "learning_rate": 3e-3,
        "epochs": 60,
        "batch_size": 64,
        "weight_decay": 3.0,
    },
    "lora": DemoSettings().reward,
}
PROB_A = {"a": 1.0, "b": 0.0, "tie": 0.5}
N_TEST = 8  # responses to each held-out prompt
ARMS = {
    "random 200": ("random", 200),
    "random 400": ("random", 400),
    "random 600": ("random", 600),
    "random 1000": ("random", 1000),
    "i_optimal 200": ("i_optimal", 200),
    "i_optimal 1000": ("i_optimal", 1000),
    "d_optimal 200": ("d_optimal", 200),
    "near_tie 200": ("near_tie", 200),
    "bald 200": ("bald", 200),
}


SETTING = ("votes", "labels_by", "recipe", "k", "members")
"""What rows of a table have in common."""


@dataclass(frozen=True)
class Candidate:
    """Two responses to a prompt, and a label that is only looked at once it is paid for."""

    prompt: str
    a: str
    b: str
    prob_a: float
    """1, ½ for a tie, or 0; or the share of the votes."""

    def pair(self) -> Pair:
        chosen, rejected = (self.a, self.b) if self.prob_a >= 0.5 else (self.b, self.a)
        return Pair(
            prompt=_said("user", self.prompt),
            chosen=_said("assistant", chosen),
            rejected=_said("assistant", rejected),
            prompt_id=self.prompt,
            prob=max(self.prob_a, 1 - self.prob_a),
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
    recipe: str


def _said(role: str, text: str) -> Messages:
    return [{"role": role, "content": text}]


def world_of(
    seed: int, base: Path, k: int, alike: float, votes: int, labels: str, recipe: str
) -> World:
    rng = random.Random(f"rounds {seed}")
    prompts = microworld.prompts()
    rng.shuffle(prompts)
    half = len(prompts) // 2
    pools = []
    for _ in range(ROUNDS):
        pool = [
            candidate
            for prompt in prompts[:half]
            for candidate in _candidates(prompt, k, alike, votes, labels, rng)
        ]
        rng.shuffle(pool)
        pools.append(pool)
    test = [
        (prompt, [microworld.sample_response(prompt, rng) for _ in range(N_TEST)])
        for prompt in prompts[half:]
    ]
    return World(seed, base, pools, test, recipe)


def _candidates(
    prompt: str, k: int, alike: float, votes: int, labels: str, rng: random.Random
) -> list[Candidate]:
    """Pairs of k responses that are not nearly the same, each with the label it would get."""
    texts: list[str] = []
    for _ in range(k):
        text = microworld.sample_response(prompt, rng)
        if all(jaccard(shingles(text), shingles(other)) < alike for other in texts):
            texts.append(text)
    found = []
    for place, b in enumerate(texts):
        for a in texts[:place]:
            gap = microworld.utility(prompt, a) - microworld.utility(prompt, b)
            given = [vote.choice for vote in microworld.votes(gap, rng, n=votes)]
            truth = "a" if gap > 0 else "b" if gap < 0 else "tie"
            decided = given if given and labels == "soft" else [microworld.majority(given)]
            sides = [PROB_A[choice] for choice in (decided if votes else [truth])]
            found.append(Candidate(prompt, a, b, sum(sides) / len(sides)))
    return found


def carry_out(world: World, way: str, n: int, members: int) -> list[dict[str, Any]]:
    """Three rounds, and what the reward model is worth after each."""
    labels: list[Candidate] = []
    folder: Path | None = None
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number, pool in enumerate(world.pools):
            labels += choose(world, way, n, pool, labels, folder, number)
            folder = Path(place) / str(number)
            began = time.monotonic()
            _train(world, labels, folder, members)
            found = measured(world, folder / "model")
            rows.append(
                {
                    "round": number + 1,
                    "labels": len(labels),
                    "ties": sum(c.prob_a == 0.5 for c in labels) / len(labels),
                    "seconds": round(time.monotonic() - began, 1),
                    **found,
                }
            )
    return rows


def choose(
    world: World,
    way: str,
    n: int,
    pool: list[Candidate],
    labels: list[Candidate],
    folder: Path | None,
    number: int,
) -> list[Candidate]:
    """The candidates that a round asks about."""
    if way == "random":
        return pool[:n]
    read = _read(world.base, folder, [*pool, *labels])
    candidates, labeled = (
        selection.Read(read.gaps[:, part], read.features[part], read.is_trained)
        for part in (slice(len(pool)), slice(len(pool), None))
    )
    if way == "bald" and folder is None:
        way = "i_optimal"
    probs, _scores = selection.design(way, n, candidates, labeled, prompts=[c.prompt for c in pool])
    taken = selection.draw(probs, seed=1000 * world.seed + number)
    return [pool[place] for place in taken.places]


def _read(base: Path, folder: Path | None, candidates: list[Candidate]) -> selection.Read:
    """The candidates under the reward model of the round before, or the base's last layer."""
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
    rewards, features = seen.rewards[:, rows], seen.features[rows]
    return selection.Read(
        rewards[:, ::2] - rewards[:, 1::2], features[::2] - features[1::2], folder is not None
    )


def _train(world: World, labels: list[Candidate], folder: Path, members: int) -> None:
    from training.ml import reward_model

    never = 10**6
    recipe = RewardRecipe(
        base_model=str(world.base),
        seed=world.seed,
        members=members,
        eval_every=never,
        checkpoint_every=never,
        **RECIPES[world.recipe],
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
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--k", type=int, default=4, help="responses to a prompt")
    parser.add_argument("--alike", type=float, default=0.9)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after these")
    parser.add_argument("--votes", type=int, default=5, help="people who make one label; 0: truth")
    parser.add_argument(
        "--labels", dest="labels_by", choices=("majority", "soft"), default="majority"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="head")
    parser.add_argument("--table", action="store_true", help="print what the file holds")
    asked = parser.parse_args()
    began = time.monotonic()
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    rows = [{"labels_by": "majority"} | json.loads(line) for line in lines]
    if not asked.table:
        warnings.filterwarnings("ignore")
        base = storage_path("models") / base_model(DemoSettings(), lambda what, done, total: None)
        setting = tuple(getattr(asked, name) for name in SETTING)
        done = {(row["seed"], row["arm"], *(row[name] for name in SETTING)) for row in rows}
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            todo = [arm for arm in asked.arms if (seed, arm, *setting) not in done]
            world = (
                world_of(
                    seed, base, asked.k, asked.alike, asked.votes, asked.labels_by, asked.recipe
                )
                if todo
                else None
            )
            for arm in todo:
                if world is None or time.monotonic() - began > 60 * asked.minutes:
                    print("time is up: run the same line again")
                    return
                way, n = ARMS[arm]
                found = carry_out(world, way, n, asked.members)
                for row in found:
                    row |= {
                        "seed": seed,
                        "arm": arm,
                        **dict(zip(SETTING, setting, strict=True)),
                        "pool": len(world.pools[0]),
                    }
                    rows.append(row)
                    with asked.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    table(rows)


def table(rows: list[dict[str, Any]]) -> None:
    """Every arm by round, and each against random labels, paired by seed."""
    for setting in sorted({tuple(row[name] for name in SETTING) for row in rows}):
        some = [row for row in rows if tuple(row[name] for name in SETTING) == setting]
        at = {(r["arm"], r["round"], r["seed"]): r for r in some}
        arms = [arm for arm in ARMS if any(r["arm"] == arm for r in some)]
        words = ", ".join(f"{name} {v}" for name, v in zip(SETTING, setting, strict=True))
        print(f"\n{words}; {some[0]['pool']} candidates a round")
        for figure in ("accuracy", "utility"):
            print(
                f"{figure:>16}  " + "  ".join(f"{'round ' + str(n + 1):>9}" for n in range(ROUNDS))
            )
            for arm in arms:
                seeds = sorted({r["seed"] for r in some if r["arm"] == arm})
                means = [np.mean([at[arm, n + 1, s][figure] for s in seeds]) for n in range(ROUNDS)]
                print(
                    f"{arm:>16}  " + "  ".join(f"{m:9.4f}" for m in means) + f"  {len(seeds)} seeds"
                )
        for arm in arms:
            for other in ("random 200", "random 400", "random 600", "random 1000"):
                if arm.startswith("random") or other not in arms:
                    continue
                for n in range(1, ROUNDS + 1):
                    seeds = [s for (a, r, s) in at if a == arm and r == n and (other, n, s) in at]
                    words = [f"{arm} against {other}, round {n}"]
                    for figure in ("accuracy", "utility"):
                        gaps = [at[arm, n, s][figure] - at[other, n, s][figure] for s in seeds]
                        found = over_seeds(gaps)
                        words.append(f"{figure} {found['value']:+.4f}")
                        if found.get("low") is not None:
                            words.append(f"[{found['low']:+.4f}, {found['high']:+.4f}]")
                    print("  ".join(words))
            if not arm.startswith("random"):
                print(f"{arm}: worth {worth(some, arm):.0f} random labels after three rounds")


def worth(rows: list[dict[str, Any]], arm: str) -> float:
    """How many random labels reach the mean accuracy of an arm's last round: read off the line
    through the random arms' means, made to rise (isotonic), cut at both ends."""
    from sklearn.isotonic import IsotonicRegression

    by_n: dict[int, list[float]] = {}
    for row in rows:
        if row["arm"].startswith("random"):
            by_n.setdefault(row["labels"], []).append(row["accuracy"])
    ns = np.array(sorted(by_n))
    means = np.array([np.mean(by_n[n]) for n in ns])
    weights = [len(by_n[n]) for n in ns]
    rising = IsotonicRegression().fit(np.log(ns), means, sample_weight=weights)
    fine = np.exp(np.linspace(np.log(ns[0]), np.log(ns[-1]), 2_000))
    target = np.mean([r["accuracy"] for r in rows if r["arm"] == arm and r["round"] == ROUNDS])
    reached = fine[rising.predict(np.log(fine)) >= target]
    return float(reached[0]) if len(reached) else float(ns[-1])


if __name__ == "__main__":
    main()
