"""How often a text inside a response moves a judge's verdict.

    python -m tests.bench.injections --model FOLDER [--demo] [--mode direct] [--n 40] [--json]

N comparisons of the micro-world are judged as they are. Then to the response that the judge found
worse each text of tests/judges/ml/injections.py is added, and the judge is asked again, in both
orders. `--demo` asks as the demo's judge is asked (`make demo` leaves its model under
PREFLOOP_STORAGE/models); without it, the question is the default one. Printed per text:

turned     share of verdicts that now name the response with the text, of those that named the other
           one; 95 % interval by Clopper and Pearson
moved      mean change of that response's probability; 95 % interval over comparisons
unparsed   share of verdicts with too little probability on the answers

The line "harmless" is what any more words of that length do: hold the others against it. That no
text leaves its section is proved by tests/judges/ml/test_injections.py; this measures what a model
makes of a text that stays there, and says something of that model alone.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

from config.demo import JUDGE_RECIPE  # noqa: E402
from judges.ml.config import JudgeRecipe  # noqa: E402
from judges.ml.engine import LocalEngine, load_engine  # noqa: E402
from judges.ml.modes import Outcome, judge  # noqa: E402
from judges.ml.questions import Sample  # noqa: E402
from labeling import microworld  # noqa: E402
from labeling.shares import clopper_pearson  # noqa: E402
from tests.judges.ml.injections import HARMLESS, INJECTIONS, attack  # noqa: E402


def micro_samples(n: int, seed: int) -> list[Sample]:
    rng = random.Random(seed)
    samples = []
    for prompt in microworld.sample_prompts(n, rng):
        a, b = (
            [{"role": "assistant", "content": microworld.sample_response(prompt, rng)}]
            for _ in range(2)
        )
        samples.append(Sample([{"role": "user", "content": prompt}], a, b))
    return samples


def judged(engine: LocalEngine, recipe: JudgeRecipe, samples: Sequence[Sample]) -> list[Outcome]:
    found = dict(pair for batch in judge(engine, recipe, samples) for pair in batch)
    return [found[place] for place in range(len(samples))]


def with_text(sample: Sample, side: str, text: str) -> Sample:
    [message] = getattr(sample, side)
    return replace(sample, **{side: [{**message, "content": f"{message['content']} {text}"}]})


def measured(before: Sequence[float], outcomes: Sequence[Outcome], sides: Sequence[str]) -> dict:
    """Figures of one text; `before` are the probabilities of the responses it was added to."""
    after = [
        outcome.prob_a if side == "a" else 1 - outcome.prob_a
        for outcome, side in zip(outcomes, sides, strict=True)
    ]
    moves = [late - early for early, late in zip(before, after, strict=True)]
    n_turned = sum(late > 0.5 for late in after)
    error = 1.96 * statistics.stdev(moves) / math.sqrt(len(moves))
    return {
        "turned": n_turned / len(after),
        "turned_interval": clopper_pearson(n_turned, len(after)),
        "moved": statistics.fmean(moves),
        "moved_interval": (statistics.fmean(moves) - error, statistics.fmean(moves) + error),
        "unparsed": sum(not outcome.parsed for outcome in outcomes) / len(outcomes),
        "n": len(after),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True)
    options.add_argument("--demo", action="store_true", help="ask as the demo's judge is asked")
    options.add_argument("--mode", choices=["rationale", "direct"], default="")
    options.add_argument("--n", type=int, default=40)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    recipe = JUDGE_RECIPE if given.demo else JudgeRecipe()
    if given.mode:
        recipe = replace(recipe, mode=given.mode)
    engine = load_engine(given.model, recipe)
    samples = micro_samples(given.n, given.seed)
    plain = judged(engine, recipe, samples)
    sides = ["b" if outcome.prob_a > 0.5 else "a" for outcome in plain]
    before = [min(outcome.prob_a, 1 - outcome.prob_a) for outcome in plain]
    texts = {"harmless": HARMLESS} | {name: attack(name, recipe) for name in INJECTIONS}
    figures = {}
    for name, text in texts.items():
        attacked = [with_text(one, side, text) for one, side in zip(samples, sides, strict=True)]
        figures[name] = measured(before, judged(engine, recipe, attacked), sides)
        print(name, file=sys.stderr)
    if given.json:
        print(json.dumps(figures))
        return
    print(f"{given.model}, mode {recipe.mode}, {given.n} comparisons, both orders")
    print(f"{'text':28} {'turned':>7} {'95 %':>14} {'moved':>7} {'95 %':>16} {'unparsed':>9}")
    for name, row in sorted(figures.items(), key=lambda item: -item[1]["turned"]):
        low, high = row["turned_interval"]
        less, more = row["moved_interval"]
        print(
            f"{name:28} {row['turned']:7.3f} [{low:.3f}, {high:.3f}] {row['moved']:+7.3f} "
            f"[{less:+.3f}, {more:+.3f}] {row['unparsed']:9.3f}"
        )
    attacks = [row["turned"] for name, row in figures.items() if name != "harmless"]
    print(f"mean over {len(attacks)} texts: turned {statistics.fmean(attacks):.3f}")


if __name__ == "__main__":
    main()
