"""A million votes of 500 raters: how long agreement and the rater models take, and in what memory.

    python -m tests.bench.raters [--votes 1000000] [--raters 500] [--seed 7] [--recovery]

Made-up votes on comparisons with five votes each, four comparisons to a prompt: raters of known
accuracy and known leaning to what stands first, three of them AI judges, some far busier than
others. Each step runs in a process of its own, on the processors it is given (`taskset -c 0,1`),
and prints its seconds and the most memory it held (the libraries and the votes in it).

`--recovery` instead asks how well known raters are found again, seeds printed: crowds of known
accuracy and leaning, where the model is right; and the raters of the micro-world, where it is wrong
in a known way (a hard comparison is hard for everybody, and near ties are called ties).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

PER_COMPARISON, PER_PROMPT = 5, 4


def made_up_votes(n_votes: int, n_raters: int, seed: int) -> tuple[Any, np.ndarray]:
    """The votes as `labeling.votes` would give them, and the truth of every comparison."""
    from labeling.agreement import Votes

    rng = np.random.default_rng(seed)
    n_items = n_votes // PER_COMPARISON
    truth = rng.choice(3, size=n_items, p=[0.42, 0.42, 0.16])
    accuracy = rng.uniform(0.5, 0.95, n_raters)
    leaning = rng.uniform(0, 0.3, n_raters)  # how often the first place is taken unread
    busy = rng.lognormal(0, 0.7, n_raters)
    # Raters by their business, different ones on each comparison: one of five groups for each vote.
    groups = np.array_split(rng.permutation(n_raters), PER_COMPARISON)
    rater = np.column_stack(
        [rng.choice(g, size=n_items, p=busy[g] / busy[g].sum()) for g in groups]
    ).ravel()
    item = np.repeat(np.arange(n_items), PER_COMPARISON)
    n = len(item)
    first = rng.integers(0, 2, n)
    wrong = (truth[item] + rng.integers(1, 3, n)) % 3
    choice = np.where(rng.random(n) < accuracy[rater], truth[item], wrong)
    choice = np.where(rng.random(n) < leaning[rater], first, choice)
    is_judge = np.zeros(n_raters, dtype=bool)
    is_judge[:3] = True
    lengths = rng.integers(50, 900, (2, n_items))
    nothing = np.full(n, np.nan)
    votes = Votes(
        raters=[f"rater {i}" for i in range(n_raters)],
        is_judge=is_judge,
        n_comparisons=n_items,
        item=item,
        prompt=item // PER_PROMPT,
        rater=rater,
        choice=choice,
        shown_first=first,
        prob_a_ab=nothing,
        prob_a_ba=nothing,
        length_a=lengths[0][item],
        length_b=lengths[1][item],
        strength=np.where(choice < 2, rng.integers(1, 4, n), 0),
        seconds=rng.lognormal(3, 0.6, n),
        at=1_750_000_000 + np.sort(rng.uniform(0, 30 * 86_400, n)),
        comparisons=np.arange(n_items),
        rater_keys=np.arange(n_raters),
    )
    return votes, truth


def agreement(votes: Any, truth: np.ndarray) -> str:
    from labeling.agreement import agreement_report
    from labeling.models import AgreementReport

    report = agreement_report(votes, AgreementReport.MOST_RATERS)
    return f"alpha {report['krippendorff_alpha']['value']:.4f}"


def scales(votes: Any, truth: np.ndarray) -> str:
    from labeling.agreement_scales import scale_figures

    return f"ordinal alpha {scale_figures(votes)['ordinal_alpha']['value']:.4f}"


def weighed(votes: Any, truth: np.ndarray) -> str:
    from labeling.rater_models import Answers, dawid_skene

    answers = Answers.of(votes.item, votes.rater, votes.choice, votes.shown_first)
    fit = dawid_skene(answers)
    again = dawid_skene(answers, start=fit.parameters)
    share = (fit.posteriors.argmax(axis=1) == truth).mean()
    return f"{fit.n_steps} steps, {share:.4f} right; from its own end {again.n_steps} steps more"


def raters(votes: Any, truth: np.ndarray) -> str:
    from labeling.truth import truth_figures

    figures, _fit = truth_figures(votes)
    return f"{len(figures['raters'])} raters, {figures['n_overturned']:,} majorities overturned"


def time_and_topics(votes: Any, truth: np.ndarray) -> str:
    from labeling.agreement_time import agreement_over_time
    from labeling.disputes import disputed_topics

    changes = agreement_over_time(votes)["changes"]
    topics = {f"topic {i}": range(i, len(truth), 40) for i in range(40)}
    rows = disputed_topics(votes, topics, "topic")["rows"]
    return f"{len(changes)} changes, {len(rows)} topics"


STEPS = {
    "agreement": agreement,
    "other scales": scales,
    "Dawid and Skene, twice": weighed,
    "all figures of raters": raters,
    "time and topics": time_and_topics,
}


def step(name: str, n_votes: int, n_raters: int, seed: int) -> dict[str, Any]:
    """One step, in this process."""
    votes, truth = made_up_votes(n_votes, n_raters, seed)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.perf_counter(), time.process_time()
    words = STEPS[name](votes, truth)
    return {
        "step": name,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - used,
        "votes_mb": held / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "words": words,
    }


# --- recovery of what is known ---------------------------------------------------------------


def recovered(rows: list[dict[str, Any]], key: str, known: np.ndarray) -> str:
    """How far off the estimates are on average, and how often the interval holds what is known."""
    told = [i for i, row in enumerate(rows) if row[key]["value"] is not None]
    values = np.array([rows[i][key]["value"] for i in told])
    inside = [rows[i][key]["low"] <= known[i] <= rows[i][key]["high"] for i in told]
    off = values - known[told]
    return (
        f"{key:<12} off by {off.mean():+.4f}, typically {np.sqrt((off**2).mean()):.4f}; "
        f"interval holds the truth for {np.mean(inside):.1%} of {len(told)}"
    )


def in_words(checked: dict[str, Any]) -> str:
    """What `misfit` found."""
    if checked["value"] is None:
        return "misfit not to be seen"
    return f"misfit {checked['value']:.3f}, p = {checked['p_value']:.3f}"


def crowd_of_known_raters(per_item: int, seed: int) -> None:
    """Made-up votes whose every rater follows a table of errors."""
    from labeling.rater_models import (
        Answers,
        majority,
        misfit,
        reliabilities,
        too_alike,
        weighed,
    )

    rng = np.random.default_rng(seed)
    n_items, n_raters, prior = 40_000, 200, np.array([0.42, 0.42, 0.16])
    truth = rng.choice(3, size=n_items, p=prior)
    accuracy, leaning = rng.uniform(0.5, 0.95, n_raters), rng.uniform(0, 0.3, n_raters)
    rater = rng.permuted(np.tile(np.arange(n_raters), (n_items, 1)), axis=1)[:, :per_item].ravel()
    item = np.repeat(np.arange(n_items), per_item)
    first = rng.integers(0, 2, len(item))
    wrong = (truth[item] + rng.integers(1, 3, len(item))) % 3
    label = np.where(rng.random(len(item)) < accuracy[rater], truth[item], wrong)
    label = np.where(rng.random(len(item)) < leaning[rater], first, label)
    answers = Answers.of(item, rater, label, first)
    fit, _possible = weighed(answers)
    checked = misfit(answers, fit)
    rows = reliabilities(answers, fit, None, checked)
    right = (1 - leaning) * accuracy + leaning * prior[0]
    print(
        f"{per_item} votes an item, {n_raters} raters, seed {seed}: "
        f"{(fit.posteriors.argmax(axis=1) == truth).mean():.4f} right, "
        f"majority {(majority(answers) == truth).mean():.4f}, {fit.n_steps} steps; "
        f"{in_words(checked)}; pairs too alike {len(too_alike(answers, fit))}"
    )
    print("   ", recovered(rows, "reliability", right))
    print("   ", recovered(rows, "side", leaning))  # wrong answers lean to neither place


def raters_who_err_together(kind: str, strength: float, n_items: int, seed: int) -> None:
    """Made-up votes for sides whose errors have a common cause, five raters an item.

    Args: kind: "hard": on a share `strength` of the items everybody's accuracy falls to near one
        half; "copies": three of five raters say, with the probability `strength`, what one of them
        said of the item, and not what they would say themselves.
    """
    from labeling.rater_models import Answers, misfit, reliabilities, too_alike, weighed

    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n_items)
    if kind == "hard":
        accuracy = rng.uniform(0.75, 0.95, 20)
        rater = rng.permuted(np.tile(np.arange(20), (n_items, 1)), axis=1)[:, :5]
        is_hard = (rng.random(n_items) < strength)[:, None]
        chance = np.where(is_hard, 0.5 + 0.3 * (accuracy[rater] - 0.5), accuracy[rater])
        known = strength * (0.5 + 0.3 * (accuracy - 0.5)) + (1 - strength) * accuracy
        label = np.where(rng.random((n_items, 5)) < chance, truth[:, None], 1 - truth[:, None])
    else:
        known = np.array([0.75, 0.75, 0.75, 0.85, 0.9])
        rater = np.tile(np.arange(5), (n_items, 1))
        right = rng.random((n_items, 5)) < known
        copied = rng.random((n_items, 5)) < np.array([strength] * 3 + [0, 0])
        right = np.where(copied, (rng.random(n_items) < 0.75)[:, None], right)
        label = np.where(right, truth[:, None], 1 - truth[:, None])
    n = rater.size
    item = np.repeat(np.arange(n_items), 5)
    answers = Answers.of(item, rater.ravel(), label.ravel(), rng.integers(0, 2, n))
    fit, _possible = weighed(answers)
    checked = misfit(answers, fit)
    plain = reliabilities(answers, fit)
    alike = too_alike(answers, fit)
    widened = reliabilities(answers, fit, None, checked, bool(alike))
    off = np.array([row["reliability"]["value"] for row in plain]) - known
    print(
        f"{kind:<7} {strength:.1f} {n_items:>6} items, seed {seed}: {in_words(checked)}; pairs too "
        f"alike {len(alike)}; off by "
        f"{off.mean():+.3f}, at most {np.abs(off).max():.3f}; interval holds: plain "
        f"{holds(plain, known)}, as printed {holds(widened, known)}"
    )


def holds(rows: list[dict[str, Any]], known: np.ndarray) -> str:
    """How many of the reliabilities' intervals that are printed hold what is known."""
    told = [
        figure["low"] <= right <= figure["high"]
        for figure, right in zip((row["reliability"] for row in rows), known, strict=True)
        if figure["low"] is not None
    ]
    return f"{sum(told)} of {len(told)}" if told else "none printed"


def micro_world(n_items: int, seeds: range, labels: tuple[str, ...]) -> None:
    """The micro-world's raters; what is known of them is the mean over the comparisons drawn.

    Args: labels: those of ("a", "b", "tie") that count. No comparison of it is a tie in truth.
    """
    import random

    from labeling import microworld
    from labeling.rater_models import Answers, misfit, reliabilities, too_alike, weighed

    people = microworld.RATERS
    names = [rater.name for rater in people]
    figures = np.zeros((len(people), 2, 2))  # known and found: reliability, side
    inside, plain = np.zeros((len(people), 2)), np.zeros(len(people))
    right, n_seen, n_alike, misfits = 0.0, 0, 0, []
    for seed in seeds:
        rng = random.Random(seed)
        gaps: list[float] = []
        while len(gaps) < n_items:
            prompt = microworld.sample_prompts(1, rng)[0]
            a, b = (microworld.sample_response(prompt, rng) for _ in range(2))
            gap = microworld.utility(prompt, a) - microworld.utility(prompt, b)
            gaps += [gap] if gap else []
        rows = [
            (i, names.index(vote.rater), labels.index(vote.choice), "ab".index(vote.shown_first))
            for i, gap in enumerate(gaps)
            for vote in microworld.votes(gap, rng, n=4)
            if vote.choice in labels
        ]
        answers = Answers.of(*zip(*rows, strict=True), n_items=n_items)
        fit, _possible = weighed(answers)
        checked = misfit(answers, fit)
        misfits.append(checked["value"])
        n_seen += checked["p_value"] < 0.01
        right += float((fit.posteriors.argmax(axis=1) == (np.array(gaps) < 0)).mean())
        n_alike += bool(too_alike(answers, fit))
        found, before = reliabilities(answers, fit, None, checked), reliabilities(answers, fit)
        for i, (person, row) in enumerate(zip(people, found, strict=True)):
            ahead, behind = (
                np.array([person.probabilities(sign * abs(gap)) for gap in gaps])[:, : len(labels)]
                for sign in (1, -1)
            )
            ahead, behind = ahead.mean(axis=0), behind.mean(axis=0)
            ahead, behind = ahead / ahead.sum(), behind / behind.sum()
            known = ((ahead[0] + behind[1]) / 2, behind[0] - ahead[1])
            for k, key in enumerate(("reliability", "side")):
                figures[i, k] += (known[k], row[key]["value"])
                inside[i, k] += row[key]["low"] <= known[k] <= row[key]["high"]
            figure = before[i]["reliability"]
            plain[i] += figure["low"] <= known[0] <= figure["high"]
    figures, inside, plain = figures / len(seeds), inside / len(seeds), plain / len(seeds)
    print(
        f"Micro-world, {n_items} comparisons of 4 votes, labels {', '.join(labels)}, seeds "
        f"{seeds.start} to {seeds.stop - 1}: {right / len(seeds):.4f} right; misfit "
        f"{min(misfits):.3f} to {max(misfits):.3f}, seen in {n_seen} of {len(seeds)}; "
        f"pairs too alike in {n_alike}"
    )
    for i, name in enumerate(names):
        (right_known, right_found), (side_known, side_found) = figures[i]
        print(
            f"    {name:<8} right: known {right_known:.3f}, found {right_found:.3f}, in the "
            f"interval {inside[i, 0]:.0%} (not widened: {plain[i]:.0%});   leaning: known "
            f"{side_known:+.3f}, found {side_found:+.3f}, in the interval {inside[i, 1]:.0%}"
        )


def recovery() -> None:
    for per_item in (2, 3, 5):
        for seed in (1, 2):
            crowd_of_known_raters(per_item, seed)
    for labels in (("a", "b", "tie"), ("a", "b")):
        micro_world(1_000, range(1, 21), labels)
        micro_world(8_000, range(1, 6), labels)
    for n_items in (1_000, 10_000):
        for seed in (1, 2):
            for strength in (0.1, 0.2, 0.4):
                raters_who_err_together("hard", strength, n_items, seed)
            for strength in (0.3, 0.6, 0.9):
                raters_who_err_together("copies", strength, n_items, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--raters", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--recovery", action="store_true")
    asked = parser.parse_args()
    if asked.recovery:
        recovery()
        return
    if asked.step:
        print(json.dumps(step(asked.step, asked.votes, asked.raters, asked.seed)))
        return
    print(f"{asked.votes:,} votes of {asked.raters} raters, seed {asked.seed}")
    for name in STEPS:
        command = [
            sys.executable,
            "-m",
            "tests.bench.raters",
            "--step",
            name,
            "--votes",
            str(asked.votes),
        ]
        command += ["--raters", str(asked.raters), "--seed", str(asked.seed)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(
            f"{row['step']:<24} {row['seconds']:6.1f} s ({row['cpu']:.1f} s of processor)   "
            f"{row['peak_mb']:6.0f} MB   {row['words']}"
        )


if __name__ == "__main__":
    main()
