"""Does guaranteed routing keep its guarantee? Synthetic judges whose every error is known.

    python -m tests.bench.routing --draws 2000

For each judge a population of `--population` comparisons is made once, with what people would say
of each. Then `--draws` random audit samples of `--labels` comparisons are drawn from it, and each
chooses a threshold: by `judges.guarantee`, and naively (the lowest threshold at which the sample's
own share of errors is α or less). A draw breaks the promise if, of **all** comparisons of the
population that the judge would then decide alone, more than a share α are errors.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from judges.guarantee import (
    GRID,
    Cell,
    cascade,
    contradicted,
    fixed_sequence,
    level_of_test,
)
from labeling.shares import clopper_pearson

SEED = 20_261_121
AT_ONCE = 50  # labels that arrive between two looks


@dataclass(frozen=True)
class Population:
    """Every comparison's place in the grid (see `judges.guarantee.Cell`), and who errs on it."""

    place: np.ndarray
    wrong: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    def risks(self) -> np.ndarray:
        """(grid,) the share of errors among all comparisons with this confidence or more."""
        n, wrong = self.counts(np.arange(len(self)))
        return wrong / np.maximum(n, 1)

    def counts(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(grid,) twice: how many of the chosen reach each threshold, and the errors of them."""
        size = len(GRID) + 1
        n = np.bincount(self.place[chosen], minlength=size)
        wrong = np.bincount(self.place[chosen], self.wrong[chosen], minlength=size)
        return n[:-1].cumsum(), wrong[:-1].cumsum().astype(int)


def places(confidence: np.ndarray) -> np.ndarray:
    """The first threshold of the grid that each confidence reaches."""
    rising = -np.array(GRID)
    return np.searchsorted(rising, -confidence, side="left")


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def judged(feeling: np.ndarray, logit: np.ndarray, rng: np.random.Generator) -> Population:
    """People say A with the odds of their feeling; the judge has this logit for A."""
    said = rng.random(len(feeling)) < _sigmoid(feeling)
    confidence = _sigmoid(np.abs(logit))
    return Population(places(confidence), (logit > 0) != said)


def well_calibrated(rng: np.random.Generator, n: int) -> Population:
    feeling = rng.normal(0, 4, n)
    return judged(feeling, feeling, rng)


def over_confident(rng: np.random.Generator, n: int) -> Population:
    feeling = rng.normal(0, 3, n)
    return judged(feeling, 3 * feeling + rng.normal(0, 1, n), rng)


def under_confident(rng: np.random.Generator, n: int) -> Population:
    feeling = rng.normal(0, 3, n)
    return judged(feeling, feeling / 4, rng)


def saturated(rng: np.random.Generator, n: int) -> Population:
    """Says 0.999 of nearly everything."""
    feeling = rng.normal(0, 6, n)
    logit = np.sign(feeling) * rng.choice([6.9, 4.0], n, p=[0.9, 0.1])
    return judged(feeling, logit, rng)


def worst_where_surest(rng: np.random.Generator, n: int) -> Population:
    """Taken in by a kind of response: there it is certain, and mostly wrong."""
    feeling = rng.normal(0, 6, n)
    fooled = rng.random(n) < 0.03
    logit = np.where(fooled, -9 * np.sign(feeling), np.clip(feeling, -4, 4))
    return judged(feeling, logit, rng)


def of_no_use(rng: np.random.Generator, n: int) -> Population:
    return judged(rng.normal(0, 2, n), rng.normal(0, 3, n), rng)


def just_too_bad(rng: np.random.Generator, n: int) -> Population:
    """Wrong on 10.5 %, whatever it says of itself: the hardest case for α = 0.1."""
    return Population(places(rng.uniform(0.5, 1, n)), rng.random(n) < 0.105)


def wrong_by_prompt(rng: np.random.Generator, n: int) -> Population:
    """Eight comparisons a prompt, and on a prompt it is right on all or wrong on all."""
    prompts = -(-n // 8)
    wrong = rng.random(prompts) < 0.105
    sure = rng.uniform(0.5, 1, prompts)
    return Population(np.repeat(places(sure), 8)[:n], np.repeat(wrong, 8)[:n])


JUDGES: dict[str, Callable[[np.random.Generator, int], Population]] = {
    "well calibrated": well_calibrated,
    "over-confident": over_confident,
    "under-confident": under_confident,
    "says 0.999 of nearly everything": saturated,
    "worst where it is surest": worst_where_surest,
    "of no use": of_no_use,
    "wrong on 10.5 % everywhere": just_too_bad,
    "wrong on 10.5 % of prompts, 8 each": wrong_by_prompt,
}


def naive(n: np.ndarray, errors: np.ndarray, alpha: float) -> int | None:
    """The lowest threshold at which the sample's own share of errors is α or less."""
    fits = np.flatnonzero((n > 0) & (errors <= alpha * n))
    return int(fits[-1]) if len(fits) else None


def one_judge(
    rng: np.random.Generator,
    population: Population,
    draws: int,
    labels: int,
    alpha: float,
    delta: float,
) -> dict[str, dict[str, Any]]:
    """How often each rule breaks its promise, how often it abstains, what it lets the judge do."""
    risks = population.risks()
    covered = population.counts(np.arange(len(population)))[0] / len(population)
    rules: dict[str, list[int | None]] = {"guaranteed": [], "three starts": [], "naive": []}
    for _draw in range(draws):
        n, errors = population.counts(rng.choice(len(population), labels, replace=False))
        counts = list(zip(n.tolist(), errors.tolist(), strict=True))
        rules["guaranteed"].append(fixed_sequence(counts, alpha, delta).place)
        rules["three starts"].append(fixed_sequence(counts, alpha, delta, starts=3).place)
        rules["naive"].append(naive(n, errors, alpha))
    return {name: summary(chosen, risks, covered, alpha) for name, chosen in rules.items()}


def summary(
    chosen: list[int | None], risks: np.ndarray, covered: np.ndarray, alpha: float
) -> dict[str, Any]:
    broken = sum(place is not None and risks[place] > alpha for place in chosen)
    return {
        "broken": int(broken),
        "abstains": sum(place is None for place in chosen),
        "coverage": float(np.mean([0 if p is None else covered[p] for p in chosen])),
        "draws": len(chosen),
    }


def two_judges(
    rng: np.random.Generator, size: int, draws: int, labels: int, alpha: float, delta: float
) -> dict[str, Any]:
    """A cascade: an over-confident judge, then a better one, on half of the labels each."""
    feeling = rng.normal(0, 4, size)
    said = rng.random(size) < _sigmoid(feeling)
    # The first knows about half of the comparisons nothing, and says so.
    knows = rng.random(size) < 0.5
    logits = [
        np.where(knows, 3 * feeling, 0) + rng.normal(0, 0.3, size),
        2 * feeling + rng.normal(0, 0.5, size),
    ]
    place = np.column_stack([places(_sigmoid(np.abs(z))) for z in logits])
    wrong = np.column_stack([(z > 0) != said for z in logits])
    kinds, kind = np.unique(place, axis=0, return_inverse=True)
    in_all = np.bincount(kind)
    broken, coverage, n_second = 0, [], 0
    for _draw in range(draws):
        sample = rng.choice(size, labels, replace=False)
        n = [np.bincount(kind[sample[k::2]], minlength=len(kinds)) for k in (0, 1)]
        errors = [
            np.bincount(kind[sample[k::2]], wrong[sample[k::2], k], minlength=len(kinds))
            for k in (0, 1)
        ]
        cells = [
            Cell(
                tuple(kinds[i].tolist()),
                int(in_all[i]),
                0,
                (int(n[0][i]), int(n[1][i])),
                (int(errors[0][i]), int(errors[1][i])),
            )
            for i in range(len(kinds))
        ]
        left, is_broken, decided = np.ones(size, dtype=bool), False, 0
        for k, stage in enumerate(cascade(cells, 2, alpha, delta)):
            if stage.test.place is None:
                continue
            own = left & (place[:, k] <= stage.test.place)
            is_broken |= bool(own.any() and wrong[own, k].mean() > alpha)
            n_second += k
            decided += int(own.sum())
            left &= ~own
        broken += is_broken
        coverage.append(decided / size)
    return {
        "broken": broken,
        "draws": draws,
        "coverage": float(np.mean(coverage)),
        "second_decides": n_second,
    }


def looking_again(
    rng: np.random.Generator,
    population: Population,
    draws: int,
    looks: int,
    alpha: float,
    delta: float,
) -> dict[str, int]:
    """A lead who tests after every `AT_ONCE` labels and takes the first certificate there is:
    draws in which it was false, with δ spent over the tests and with all of it each time."""
    risks, broken = population.risks(), {"spent": 0, "all of it each time": 0}
    for _draw in range(draws):
        sample = rng.choice(len(population), looks * AT_ONCE, replace=False)
        first: dict[str, int] = {}
        for t in range(1, looks + 1):
            n, errors = population.counts(sample[: t * AT_ONCE])
            counts = list(zip(n.tolist(), errors.tolist(), strict=True))
            levels = {"spent": level_of_test(delta, t), "all of it each time": delta}
            for name, level in levels.items():
                place = fixed_sequence(counts, alpha, level).place if name not in first else None
                if place is not None:
                    first[name] = place
        for name, place in first.items():
            broken[name] += bool(risks[place] > alpha)
    return broken


def audited(
    rng: np.random.Generator, rate: float, draws: int, most: int, alpha: float, delta: float
) -> dict[str, Any]:
    """After a certificate errors come at this rate: how often, and after how many labels of the
    running audit, it is revoked. It is looked at after every label."""
    after = []
    for _draw in range(draws):
        errors = np.cumsum(rng.random(most) < rate)
        looked = (i + 1 for i in range(most) if contradicted(int(errors[i]), i + 1, alpha, delta))
        after.append(next(looked, None))
    revoked = [n for n in after if n is not None]
    return {
        "rate": rate,
        "revoked": len(revoked),
        "draws": draws,
        "labels": float(np.median(revoked)) if revoked else None,
        "labels_95": float(np.quantile(revoked, 0.95)) if revoked else None,
    }


def shifted(
    rng: np.random.Generator, size: int, draws: int, labels: int, alpha: float, delta: float
) -> dict[str, Any]:
    """Certified on comparisons with clear answers, used on others that only look as clear to the
    judge: how many wrong labels stand before the running audit revokes the certificate, if one
    certified comparison in ten is labeled by people, and how many would stand without it."""
    before = well_calibrated(rng, size)
    after = judged(rng.normal(0, 1, size), rng.normal(0, 4, size), rng)
    most, n_labels, wrong_rate = 500, [], []
    for _draw in range(draws):
        n, errors = before.counts(rng.choice(size, labels, replace=False))
        place = fixed_sequence(
            list(zip(n.tolist(), errors.tolist(), strict=True)), alpha, delta
        ).place
        if place is None:
            continue
        certified = after.wrong[after.place <= place]
        wrong_rate.append(float(certified.mean()))
        errors_since = np.cumsum(rng.choice(certified, most, replace=False))
        looked = (
            i + 1 for i in range(most) if contradicted(int(errors_since[i]), i + 1, alpha, delta)
        )
        n_labels.append(next(looked, None))
    revoked = [n for n in n_labels if n is not None]
    return {
        "certified": len(n_labels),
        "revoked": len(revoked),
        "errors": float(np.mean(wrong_rate)),
        "labels": float(np.median(revoked)),
        "decided_until_then": float(np.median(revoked)) * 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--population", type=int, default=20_000)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    alpha, delta = args.alpha, args.delta
    found: dict[str, Any] = {"seed": args.seed, "judges": {}}
    for k, (name, make) in enumerate(JUDGES.items()):
        rng = np.random.default_rng([args.seed, k])
        population = make(rng, args.population)
        found["judges"][name] = one_judge(rng, population, args.draws, args.labels, alpha, delta)
    rng = np.random.default_rng([args.seed, 100])
    found["cascade"] = two_judges(
        rng, args.population, args.draws // 4, 2 * args.labels, alpha, delta
    )
    rng = np.random.default_rng([args.seed, 101])
    found["looking"] = {
        "draws": args.draws // 4,
        **looking_again(rng, just_too_bad(rng, args.population), args.draws // 4, 20, alpha, delta),
    }
    rng = np.random.default_rng([args.seed, 102])
    found["audit"] = [
        audited(rng, rate, args.draws // 4, 500, alpha, delta)
        for rate in (alpha / 2, alpha, 1.5 * alpha, 2 * alpha, 3 * alpha, 5 * alpha)
    ]
    rng = np.random.default_rng([args.seed, 103])
    found["shift"] = shifted(rng, args.population, args.draws // 4, args.labels, alpha, delta)
    found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found, indent=1) if args.json else table(found, args))


def table(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Everything as Markdown. A promise is kept if the share broken is not above δ by more than
    luck: its exact 95 % interval stands beside it."""
    lines = [
        f"α = {args.alpha:g}, δ = {args.delta:g}, {args.labels} audit labels of "
        f"{args.population:,} comparisons, seed {found['seed']}, {found['seconds']} s",
        "",
        "| judge | rule | promise broken | abstains | judge decides |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, rules in found["judges"].items():
        for rule, row in rules.items():
            lines.append(
                f"| {name} | {rule} | {_share(row['broken'], row['draws'])} "
                f"| {row['abstains'] / row['draws']:.3f} | {row['coverage']:.3f} |"
            )
    row = found["cascade"]
    lines += [
        "",
        f"Cascade of two judges, {2 * args.labels} labels: promise broken "
        f"{_share(row['broken'], row['draws'])}, decided {row['coverage']:.3f}; the second decided "
        f"something in {row['second_decides']} of {row['draws']}.",
    ]
    row = found["looking"]
    lines += [
        "",
        f"Tested after every {AT_ONCE} labels, 20 times, the first certificate taken (judge wrong "
        f"on 10.5 %): false with δ spent {_share(row['spent'], row['draws'])}, with all of δ each "
        f"time {_share(row['all of it each time'], row['draws'])}.",
        "",
        "| errors after the certificate | revoked within 500 labels | labels until then | 95 % |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for row in found["audit"]:
        labels = "–" if row["labels"] is None else f"{row['labels']:.0f}"
        most = "–" if row["labels_95"] is None else f"{row['labels_95']:.0f}"
        lines.append(
            f"| {row['rate']:.2f} | {_share(row['revoked'], row['draws'])} | {labels} | {most} |"
        )
    row = found["shift"]
    lines += [
        "",
        f"Shift: certified on clear comparisons {row['certified']} times, then used where "
        f"{row['errors']:.3f} of what it decides is wrong. Revoked "
        f"{_share(row['revoked'], row['certified'])}, after {row['labels']:.0f} labels (median): "
        f"some {row['decided_until_then']:.0f} decisions where one in ten is audited.",
    ]
    return "\n".join(lines)


def _share(k: int, n: int) -> str:
    low, high = clopper_pearson(k, n)
    return f"{k}/{n} = {k / n:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
