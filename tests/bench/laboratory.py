"""Do the laboratory's intervals hold what they promise? A synthetic judge whose truth is known.

    python -m tests.bench.laboratory --draws 500

People and judges answer comparisons whose every property is set here: how far the judge follows
what people like, how sure it is of itself, how it leans to places, to length and to its own family,
how often it cannot be read. The truth of each figure comes from `--population` comparisons, by a
line of arithmetic of its own; then `--draws` samples of `--prompts` prompts go through the
laboratory's own functions, and it is counted how often an interval holds the truth.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from labeling.shares import clopper_pearson

SEED = 20_261_121
RATE = 0.95


@dataclass(frozen=True)
class Judge:
    """How a synthetic judge is made. Its logit of "A is better", with A shown first:
    sureness · what people feel + noise + length + family + lean."""

    sureness: float = 2.6
    """1 would be calibrated; above, it is surer than it may be."""
    noise: float = 0.8
    lean: float = 0.35
    """Mean of b, in nats: to the response shown first."""
    lean_spread: float = 0.5
    length: float = 0.4
    own_family: float = 0.5
    unparsed: float = 0.04


BIASED = Judge()
CAREFUL = Judge(
    sureness=1.0, noise=0.3, lean=0.0, lean_spread=0.3, length=0.0, own_family=0.0, unparsed=0.0
)
"""It leans to nothing; its equal in distribution is drawn too, to count false alarms."""
N_PEOPLE = 5


@dataclass(frozen=True)
class World:
    """One draw of people, and of what three judges said; every array is (comparisons, …)."""

    prompt: np.ndarray
    length: np.ndarray
    own: np.ndarray  # 1: A is of the judge's family, −1: B is, 0: neither
    votes: np.ndarray  # (comparisons, people): 1 for A, 0 for B
    clone: np.ndarray  # answers of a judge that is one more person
    judges: list[dict[str, np.ndarray]]


def draw(rng: np.random.Generator, n_prompts: int, per_prompt: int) -> World:
    n = n_prompts * per_prompt
    prompt = np.repeat(np.arange(n_prompts), per_prompt)
    # What people feel: some prompts have clearer answers than others, on all their comparisons.
    clearness = rng.lognormal(0, 0.5, n_prompts)[prompt]
    length = rng.normal(0, 120, n)
    feeling = clearness * rng.normal(0, 1.3, n) + 0.3 * np.tanh(length / 100)
    votes = (rng.random((n, N_PEOPLE + 1)) < _sigmoid(feeling)[:, None]).astype(int)
    own = rng.choice([-1, 0, 1], n, p=[0.3, 0.4, 0.3])
    judges = []
    for judge in (BIASED, CAREFUL, CAREFUL):
        z = judge.sureness * feeling + rng.normal(0, judge.noise, n)
        z = z + judge.length * np.tanh(length / 100) + judge.own_family * own
        b = rng.normal(judge.lean, judge.lean_spread, n)
        ab, ba = z + b, z - b
        judges.append(
            {
                "ab": ab,
                "ba": ba,
                "prob_a": (_sigmoid(ab) + _sigmoid(ba)) / 2,
                "unparsed": rng.random(n) < judge.unparsed,
                "mass": rng.beta(30, 2, n),
                "seconds": rng.lognormal(0, 0.6, n) * clearness,
            }
        )
    return World(prompt, length, own, votes[:, :N_PEOPLE], votes[:, N_PEOPLE], judges)


def as_labeled(world: World) -> Any:
    from judges.quality import Labeled
    from labeling.agreement import A, B, Votes

    n = len(world.prompt)
    majority = np.where(world.votes.mean(axis=1) > 0.5, A, B)
    item, rater = (part.ravel() for part in np.indices(world.votes.shape))
    one_length = np.full(n, 500)
    people = Votes(
        raters=[f"person-{k}" for k in range(N_PEOPLE)],
        is_judge=np.zeros(N_PEOPLE, dtype=bool),
        n_comparisons=n,
        item=item,
        prompt=world.prompt[item],
        rater=rater,
        choice=np.where(world.votes.ravel() == 1, A, B),
        shown_first=np.full(n * N_PEOPLE, -1),
        prob_a_ab=np.full(n * N_PEOPLE, np.nan),
        prob_a_ba=np.full(n * N_PEOPLE, np.nan),
        length_a=one_length[item],
        length_b=one_length[item],
    )
    return Labeled(
        comparison=np.arange(n),
        prompt=world.prompt,
        reference=majority,
        length_a=one_length + np.round(world.length / 2).astype(int),
        length_b=one_length - np.round(world.length / 2).astype(int),
        source_a=np.where(world.own == 1, "own-7b", "other"),
        source_b=np.where(world.own == -1, "own-7b", "other"),
        people=people,
    )


def as_answers(judge: dict[str, np.ndarray]) -> Any:
    from judges.quality import Answers
    from labeling.agreement import UNPARSED, A, B

    n = len(judge["ab"])
    choice = np.where(judge["prob_a"] > 0.5, A, B)
    return Answers(
        place=np.arange(n),
        choice=np.where(judge["unparsed"], UNPARSED, choice),
        prob_a=judge["prob_a"],
        logit_ab=judge["ab"],
        logit_ba=judge["ba"],
        mass=judge["mass"],
        seconds=judge["seconds"],
        cost=np.full(n, np.nan),
    )


def clone_answers(world: World) -> Any:
    from judges.quality import Answers
    from labeling.agreement import A, B

    n = len(world.clone)
    z = np.where(world.clone == 1, 1.0, -1.0)
    return Answers(
        place=np.arange(n),
        choice=np.where(world.clone == 1, A, B),
        prob_a=_sigmoid(z),
        logit_ab=z,
        logit_ba=z,
        mass=np.ones(n),
        seconds=np.ones(n),
        cost=np.full(n, np.nan),
    )


def truths(world: World) -> dict[str, float]:
    """What every figure of the first judge is in the population, by plain arithmetic."""
    judge, careful = world.judges[0], world.judges[1]
    h = world.votes.mean(axis=1) > 0.5
    read = ~judge["unparsed"]
    p = np.clip(judge["prob_a"], 1e-6, 1 - 1e-6)
    says_a = p > 0.5
    right = (says_a == h) & read
    careful_right = (careful["prob_a"] > 0.5) == h
    same = (judge["ab"] > 0) == (judge["ba"] > 0)
    to_first = np.concatenate([judge["ab"][read] > 0, judge["ba"][read] < 0])
    long = (np.abs(2 * np.round(world.length / 2)) > 30) & read
    a_longer = world.length > 0
    mine = (world.own != 0) & read
    own_is_a = world.own == 1
    others = world.votes.sum(axis=1, keepdims=True) - world.votes
    untied = others != (N_PEOPLE - 1) / 2
    agrees = ((others > (N_PEOPLE - 1) / 2) == (world.votes == 1))[untied]
    found = {
        "alignment": right.mean(),
        "ceiling": agrees.mean(),
        "consistency": same[read].mean(),
        "shown first": to_first.mean(),
        "mean b": BIASED.lean,
        "unparsed": BIASED.unparsed,
        "length, judge − people": (says_a == a_longer)[long].mean() - (h == a_longer)[long].mean(),
        "own family, judge − people": (says_a == own_is_a)[mine].mean()
        - (h == own_is_a)[mine].mean(),
        "answer mass": 30 / 32,
        "seconds per right label": judge["seconds"].mean() / right.mean(),
        "difference of two judges": right.mean() - careful_right.mean(),
    }
    z = np.log(p) - np.log1p(-p)

    def loss(t: float) -> float:
        return float(np.mean(np.logaddexp(0, z[read] / t) - h[read] * z[read] / t))

    t = minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    for name, q in (("before", p[read]), ("after temperature", _sigmoid(z[read] / t))):
        found |= {
            f"ECE {name}": _ece(q, h[read]),
            f"Brier {name}": ((q - h[read]) ** 2).mean(),
            f"log-loss {name}": -np.log(np.where(h[read], q, 1 - q)).mean(),
        }
    return {name: float(value) for name, value in found.items()}


def _ece(p: np.ndarray, h: np.ndarray, n_bins: int = 10) -> float:
    sure, right = np.maximum(p, 1 - p), (p > 0.5) == h
    order = np.argsort(sure)
    parts = zip(
        np.array_split(sure[order], n_bins), np.array_split(right[order], n_bins), strict=True
    )
    return float(np.mean([abs(r.mean() - s.mean()) for s, r in parts]))


def estimates(world: World) -> tuple[dict[str, dict[str, Any]], dict[str, bool]]:
    """The laboratory's figures of the first judge, and which false alarms it raised."""
    from judges import quality

    labeled = as_labeled(world)
    cells = [as_answers(judge) for judge in world.judges]
    got = quality.judge_figures(labeled, cells[0], "lab/own-7b")
    [against_careful, _other, equals] = quality.differences(labeled, cells)
    before, after = got["calibration"]["before"], got["calibration"]["temperature"]
    figures = {
        "alignment": got["alignment"]["decided"],
        "ceiling": quality.ceiling(labeled)["without_ties"],
        "consistency": got["consistency"],
        "shown first": got["position"],
        "mean b": got["bias"],
        "unparsed": got["unparsed"],
        "length, judge − people": got["length"],
        "own family, judge − people": got["self"],
        "answer mass": got["mass"],
        "seconds per right label": got["seconds_per_correct"],
        "difference of two judges": against_careful,
        "ECE before": before["ece"],
        "Brier before": before["brier"],
        "log-loss before": before["log_loss"],
        "ECE after temperature": after["ece"],
        "Brier after temperature": after["brier"],
        "log-loss after temperature": after["log_loss"],
    }
    careful = quality.position_preference(quality.as_votes(labeled, cells[1]))
    alt = quality.alt_test(labeled, clone_answers(world), epsilon=0.0)
    alarms = {
        "position test of a judge that does not lean": careful["p_value"] < 1 - RATE,
        "difference of two equal judges": equals["p_value"] < 1 - RATE,
        "one of three differences, corrected": equals["p_corrected"] < 1 - RATE,
        "alt-test: a person's double beats somebody (ε = 0)": alt["n_beaten"] > 0,
    }
    return figures, alarms


def coverage(
    n_draws: int, n_prompts: int, per_prompt: int, population: int, seed: int = SEED
) -> dict[str, Any]:
    """{"rows": [{"what", "truth", "mean", "width", "held", "draws"}], "alarms": [{"what", "raised",
    "draws"}], "seed"}."""
    rng = np.random.default_rng(seed)
    known = truths(draw(rng, population // per_prompt, per_prompt))
    held = dict.fromkeys(known, 0)
    sums = {name: np.zeros(2) for name in known}
    n_of = dict.fromkeys(known, 0)
    raised: dict[str, int] = {}
    for _ in range(n_draws):
        figures, alarms = estimates(draw(rng, n_prompts, per_prompt))
        for name, truth in known.items():
            figure = figures[name]
            if figure["low"] is None:
                continue
            n_of[name] += 1
            held[name] += figure["low"] <= truth <= figure["high"]
            sums[name] += figure["value"], figure["high"] - figure["low"]
        for name, alarm in alarms.items():
            raised[name] = raised.get(name, 0) + bool(alarm)
    rows = [
        {
            "what": name,
            "truth": truth,
            "mean": sums[name][0] / n_of[name],
            "width": sums[name][1] / n_of[name],
            "held": held[name],
            "draws": n_of[name],
        }
        for name, truth in known.items()
    ]
    return {
        "rows": rows,
        "alarms": [{"what": k, "raised": v, "draws": n_draws} for k, v in raised.items()],
        "seed": seed,
    }


def too_few(held: int, draws: int, rows: int) -> bool:
    """Whether so few of so many can be no luck, with one chance in a hundred over all rows."""
    return bool(binom.cdf(held, draws, RATE) < 0.01 / rows)


def too_many(raised: int, draws: int, rows: int) -> bool:
    return bool(binom.sf(raised - 1, draws, 1 - RATE) < 0.01 / rows)


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--per-prompt", type=int, default=2)
    parser.add_argument("--population", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    began = time.monotonic()
    got = coverage(given.draws, given.prompts, given.per_prompt, given.population, given.seed)
    if given.json:
        print(json.dumps(got))
        return
    print(
        f"seed {given.seed}; {given.draws} draws of {given.prompts} prompts with "
        f"{given.per_prompt} comparisons each; truth from {given.population:,} comparisons"
    )
    print("\n| figure | truth | mean | mean width | interval holds the truth | |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    bad = 0
    for row in got["rows"]:
        low, high = clopper_pearson(row["held"], row["draws"])
        wrong = too_few(row["held"], row["draws"], len(got["rows"]))
        bad += wrong
        print(
            f"| {row['what']} | {row['truth']:.4f} | {row['mean']:.4f} | {row['width']:.4f} | "
            f"{row['held']}/{row['draws']} = {row['held'] / row['draws']:.3f} "
            f"[{low:.3f}, {high:.3f}] | {'TOO FEW' if wrong else ''} |"
        )
    print("\n| false alarm, at most 5 % | raised | |")
    print("| --- | ---: | --- |")
    for row in got["alarms"]:
        low, high = clopper_pearson(row["raised"], row["draws"])
        wrong = too_many(row["raised"], row["draws"], len(got["alarms"]))
        bad += wrong
        print(
            f"| {row['what']} | {row['raised']}/{row['draws']} = "
            f"{row['raised'] / row['draws']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{'TOO MANY' if wrong else ''} |"
        )
    print(f"\n{time.monotonic() - began:.0f} s")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
