"""Do the statistics keep what they promise? Simulations with known truth, a table per section.

    python -m tests.bench.statistics [--only ppi stopping ratings million routing raters] [--seed 1]

Each section is a function that prints its table; each takes less than two minutes on one core.
A new section is a function here and a line in `SECTIONS`.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

from labeling.estimation import active_inference, prediction_powered, win_rate
from labeling.intervals import RESAMPLES
from labeling.ratings import (
    Games,
    elo,
    pairs_of,
    percentile_interval,
    rating_table,
    resampled_strengths,
    sandwich_interval,
    strengths,
)
from labeling.stopping import log_capital


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in options.only:
        begin = time.monotonic()
        print(f"\n{name}: {(SECTIONS[name].__doc__ or '').splitlines()[0]}", flush=True)
        SECTIONS[name](options.seed)
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)


# Win rates ----------------------------------------------------------------------------------------


def comparisons(rng: np.random.Generator, n_prompts: int) -> tuple[np.ndarray, ...]:
    """(answers, verdicts, prompts) of 1 to 3 comparisons a prompt; the judge flatters A by 0.08."""
    prompt = np.repeat(np.arange(n_prompts), rng.integers(1, 4, n_prompts))
    easy = rng.normal(0.8, 0.8, n_prompts)[prompt]  # a prompt suits A or B
    chance = 1 / (1 + np.exp(-easy - rng.normal(0, 0.6, len(prompt))))
    answer = (rng.random(len(prompt)) < chance).astype(float)
    answer[rng.random(len(prompt)) < 0.15] = 0.5  # ties
    verdict = np.clip(chance + 0.08 + rng.normal(0, 0.15, len(prompt)), 0, 1)
    return answer, verdict, prompt


def true_rate() -> float:
    return float(comparisons(np.random.default_rng(99), 1_000_000)[0].mean())


def coverage_of_win_rates(seed: int) -> None:
    """Intervals of 95 % for the win rate of A over B; 2,000 draws of 2,000 prompts.

    random: one prompt in eight has people's labels, drawn at random. routed: each comparison is
    labelled with a probability that grows with the judge's doubt, recorded. naive: the mean of
    the labels (and of labels where there are any, verdicts elsewhere) as if nothing had been
    routed.
    """
    rng = np.random.default_rng(seed)
    truth = true_rate()
    rows: dict[str, list[tuple[float, float, float, float]]] = {}

    def keep(name: str, figure: dict) -> None:
        rows.setdefault(name, []).append(
            (figure["value"], figure["low"], figure["high"], figure.get("factor") or np.nan)
        )

    for _ in range(2_000):
        answer, verdict, prompt = comparisons(rng, 2_000)
        drawn = rng.random(2_000)[prompt] < 1 / 8
        keep("random: people alone", win_rate(answer[drawn], prompt[drawn]))
        keep("random: judge alone", win_rate(verdict, prompt))
        keep(
            "random: PPI++",
            prediction_powered(
                answer[drawn], verdict[drawn], prompt[drawn], verdict[~drawn], prompt[~drawn]
            ),
        )
        doubt = (verdict * (1 - verdict)) ** 1.5
        probability = np.clip(0.15 * doubt / doubt.mean(), 0.03, 1)
        asked = rng.random(len(answer)) < probability
        labelled = np.where(asked, answer, np.nan)
        keep("routed: active inference", active_inference(labelled, verdict, probability, prompt))
        keep("routed: naive, labels alone", win_rate(answer[asked], prompt[asked]))
        keep(
            "routed: naive, labels else verdicts",
            win_rate(np.where(asked, answer, verdict), prompt),
        )
        keep(
            "routed: naive, PPI++",
            prediction_powered(
                answer[asked], verdict[asked], prompt[asked], verdict[~asked], prompt[~asked]
            ),
        )
    print(f"true win rate {truth:.4f}")
    print(f"{'estimate':<38} {'bias':>8} {'width':>7} {'covers':>7} {'a label is worth':>17}")
    for name, found in rows.items():
        value, low, high, factor = np.array(found).T
        covers = ((low <= truth) & (truth <= high)).mean()
        worth = f"{np.mean(factor):>17.2f}" if not np.isnan(factor).any() else f"{'–':>17}"
        bias, width = value.mean() - truth, (high - low).mean()
        print(f"{name:<38} {bias:>+8.4f} {width:>7.4f} {covers:>7.1%} {worth}")


def error_of_the_stop_rule(seed: int) -> None:
    """A is as good as B, and a lead looks 50 times: how often is one of them called better?

    5,000 runs of 2,000 answers, a look every 40. Below, with A better: labels until it is decided.
    """
    rng = np.random.default_rng(seed)
    looks = np.arange(39, 2_000, 40)
    bound = math.log(20)
    print(f"{'answers':<22} {'stop rule':>10} {'95 % interval':>14} {'at the last look alone':>23}")
    for name, tie in (("A or B", 0.0), ("with 30 % ties", 0.3)):
        stopped = naive = last = 0
        for _ in range(10):
            answers = (rng.random((500, 2_000)) < 0.5).astype(float)
            answers[rng.random(answers.shape) < tie] = 0.5
            ever = (log_capital(answers, 0.5)[:, looks] >= bound).any(axis=1)
            n = np.arange(1, 2_001)
            mean = np.cumsum(answers, axis=1) / n
            error = np.sqrt(np.maximum(np.cumsum(answers**2, axis=1) / n - mean**2, 1e-9) / n)
            outside = (np.abs(mean - 0.5) > 1.96 * error)[:, looks]
            stopped += ever.sum()
            naive += outside.any(axis=1).sum()
            last += outside[:, -1].sum()
        print(f"{name:<22} {stopped / 5000:>10.2%} {naive / 5000:>14.2%} {last / 5000:>23.2%}")
    print(f"\n{'true win rate':<22} {'decided':>10} {'median labels':>14} {'wrong side':>11}")
    for rate in (0.55, 0.6, 0.7):
        answers = (rng.random((500, 2_000)) < rate).astype(float)
        ever = log_capital(answers, 0.5) >= bound
        at = np.where(ever.any(axis=1), ever.argmax(axis=1) + 1, 2_001)
        below = np.take_along_axis(
            np.cumsum(answers, axis=1) / np.arange(1, 2_001), np.minimum(at, 2_000)[:, None] - 1, 1
        )
        wrong = (ever.any(axis=1) & (below[:, 0] < 0.5)).mean()
        shown = f"{np.median(at):,.0f}" if np.median(at) <= 2_000 else "> 2,000"
        print(f"{rate:<22} {ever.any(axis=1).mean():>10.1%} {shown:>14} {wrong:>11.2%}")


# Ratings ------------------------------------------------------------------------------------------


def clustered_games(rng: np.random.Generator, n_prompts: int, strength: np.ndarray) -> Games:
    """Eight comparisons a prompt, on which some sources are better than elsewhere; ties."""
    n = len(strength)
    prompt = np.repeat(np.arange(n_prompts), 8)
    first = rng.integers(n, size=len(prompt))
    second = (first + rng.integers(1, n, size=len(prompt))) % n
    suits = rng.normal(0, 1.5, (n_prompts, n))
    d = (strength + suits)[prompt, first] - (strength + suits)[prompt, second]
    parts = np.stack([np.exp(d / 2), np.full(len(prompt), 0.6), np.exp(-d / 2)])
    outcome = (rng.random(len(prompt)) > np.cumsum(parts / parts.sum(axis=0), axis=0)).sum(axis=0)
    results = [(outcome == k).astype(float) for k in range(3)]
    return Games([f"m{k}" for k in range(n)], prompt, first, second, *results)


def coverage_of_ratings(seed: int) -> None:
    """Intervals of 95 % for the ratings of 8 sources, 8 comparisons a prompt, 500 draws.

    The truth is what the model fits to a million prompts: on each prompt other sources shine, so
    ratings are of the average prompt. "rows" is the sandwich with each comparison on its own.
    """
    rng = np.random.default_rng(seed)
    strength = np.linspace(-0.9, 0.9, 8)
    whole = elo(strengths(pairs_of(clustered_games(rng, 1_000_000, strength))).log_strength)
    print(f"{'prompts':>8} {'method':<22} {'width, points':>14} {'covers':>8}")
    for n_prompts in (60, 300):
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for _ in range(500):
            games = clustered_games(rng, n_prompts, strength)
            pairs = pairs_of(games)
            rated = strengths(pairs)
            found.setdefault("sandwich by prompt", []).append(sandwich_interval(rated))
            drawn = resampled_strengths(pairs, rated, 400)
            found.setdefault("bootstrap by prompt", []).append(percentile_interval(drawn))
            alone = Games(
                games.sources, np.arange(len(games)), games.first, games.second,
                games.wins, games.ties, games.losses,
            )  # fmt: skip
            found.setdefault("sandwich by rows", []).append(
                sandwich_interval(strengths(pairs_of(alone)))
            )
        for name, intervals in found.items():
            low, high = np.array(intervals).transpose(1, 0, 2)
            covers = ((low <= whole) & (whole <= high)).mean()
            print(f"{n_prompts:>8} {name:<22} {(high - low).mean():>14.0f} {covers:>8.1%}")


def a_million_votes(seed: int) -> None:
    """A leaderboard of a million votes of 500 raters: seconds and memory of one process."""
    for n_sources in (20, 100):
        subprocess.run(
            [sys.executable, "-m", "tests.bench.statistics", "--leaderboard", str(n_sources),
             str(seed)],
            check=True,
        )  # fmt: skip


def leaderboard_of_a_million(n_sources: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_comparisons, n_prompts = 200_000, 80_000
    strength = rng.normal(0, 0.6, n_sources)
    lean = rng.normal(0, 0.2, 500)
    first = rng.integers(n_sources, size=n_comparisons)
    second = (first + rng.integers(1, n_sources, size=n_comparisons)) % n_sources
    prompt = rng.integers(n_prompts, size=n_comparisons)
    comparison = np.repeat(np.arange(n_comparisons), 5)  # five votes each
    rater = rng.integers(500, size=len(comparison))
    d = (strength[first] - strength[second])[comparison] + lean[rater]
    tie = rng.random(len(comparison)) < 0.2
    won = ~tie & (rng.random(len(comparison)) < 1 / (1 + np.exp(-d)))
    begin = time.monotonic()
    counts = [np.bincount(comparison, kind) for kind in (won, tie, ~tie & ~won)]
    games = Games([f"m{k}" for k in range(n_sources)], prompt, first, second, *counts)
    length = np.tanh(rng.normal(size=(n_comparisons, 1)))
    style = np.full((n_comparisons, 4), np.nan)
    style[:50_000] = rng.normal(size=(50_000, 4))
    (part,) = rating_table(games, features={"length": length, "style": style})
    seconds = time.monotonic() - begin
    # Not ru_maxrss, which a child inherits from the process that made it.
    status = Path("/proc/self/status").read_text()
    megabytes = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(
        f"{part['n']:,} votes on {part['n_comparisons']:,} comparisons of {n_sources} sources, "
        f"{part['n_prompts']:,} prompts, {RESAMPLES:,} resamples; raw, at equal length, and at "
        f"equal style (50,000 comparisons): {seconds:.1f} s, peak {megabytes:,.0f} MB"
    )


def guarantee_of_routing(seed: int) -> None:
    """Does a certificate keep its promise? See tests/bench/routing.py."""
    subprocess.run([sys.executable, "-m", "tests.bench.routing", "--seed", str(seed)], check=True)


def recovery_of_raters(seed: int) -> None:
    """Are known raters found again in a made-up crowd? See tests/bench/raters.py."""
    program = [sys.executable, "-m", "tests.bench.raters", "--recovery", "--seed", str(seed)]
    subprocess.run(program, check=True)


SECTIONS: dict[str, Callable[[int], None]] = {
    "ppi": coverage_of_win_rates,
    "stopping": error_of_the_stop_rule,
    "ratings": coverage_of_ratings,
    "million": a_million_votes,
    "routing": guarantee_of_routing,
    "raters": recovery_of_raters,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--leaderboard"]:
        leaderboard_of_a_million(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
