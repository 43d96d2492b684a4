"""A policy against a reward model that knows too little, with KL for nothing: does the alarm come
in time?

    python -m tests.bench.overoptimisation run --folder DIR --seed 1    # a seed, about four minutes
    python -m tests.bench.overoptimisation run --folder DIR --seed 1 --healthy
    python -m tests.bench.overoptimisation report --folder DIR          # the table of all of them
    python -m tests.bench.overoptimisation report --folder DIR --healthy

DIR keeps the micro-world's base model and comparisons (PREFLOOP_STORAGE), and what every seed came
to. A seed decides the labels of the small reward model, its weights and the policy's, the order
and the samples; the world, its base model, its comparisons and the hold-out are the same for all.
The run goes on past its alarm (on_alarm "note"), so that what the stop saved can be told: the watch
decides as it would in a run that stops. A healthy run, with all labels of its half behind the
reward model and the usual price of KL, should be left alone.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

SMALL_PAIRS = 30
"""Labels behind the reward model that is learned from; the hold-out has all of the other half."""
WILD_PAIRS, WILD_TEMPERATURES = 600, (1.0, 1.5)
"""Of the hold-out besides: responses of the start that are more varied than those of the others."""
ANSWERS = 2
"""To each held-out prompt at a look; so few prompts and one answer make a noisy figure."""
SETTINGS: dict[str, Any] = {
    "algorithm": "rloo",
    "steps": 60,
    "prompts_per_step": 32,
    "samples_per_prompt": 2,
    "max_new_tokens": 64,
    "max_length": 256,
    "rollout_batch_size": 128,
    "batch_size": 64,
    "minibatches": 2,
    "epochs": 2,
    "learning_rate": 5e-4,
    "scheduler": "constant_with_warmup",
    "kl_coefficient": 0.0,
    "missing_end_penalty": 0.0,
    "eval_every": 2,
    "checkpoint_every": 10,
    "test_prompts": 1000,
    "on_alarm": "note",
}
REWARD: dict[str, Any] = {
    "max_length": 256,
    "eval_every": 1000,
    "checkpoint_every": 1000,
    "learning_rate": 2e-3,
    "epochs": 3,
    "batch_size": 16,
}
SMALL = {"epochs": 10, "batch_size": 8}
"""Over-fitted besides."""
HEALTHY = {"kl_coefficient": 0.05}
RULES: dict[str, dict[str, Any]] = {
    "careful score": {},
    "careful score, KL budget of 2": {"kl_budget": 2.0},
    "hold-out at its word, KL budget of 2": {"doubt": 0.0, "kl_budget": 2.0},
    "hold-out at its word": {"doubt": 0.0},
}
"""What decides on alarms and best weights: all are held to the same looks."""


def set_up(folder: Path) -> tuple[str, list[Any], list[Any]]:
    """(base model's folder, training pairs, test pairs) of the micro-world."""
    os.environ |= {"PREFLOOP_STORAGE": str(folder), "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from config import demo
    from labeling.storage import storage_path
    from training.ml.data import Pair

    def silent(*_told: Any) -> None:
        return

    settings = demo.DemoSettings()
    base = demo.base_model(settings, silent)
    sides: dict[str, list[Any]] = {"train": [], "test": []}
    for line in demo.comparisons_file(settings, base, silent).open(encoding="utf-8"):
        row = json.loads(line)
        choices = [vote["choice"] for vote in row["preferences"]]
        n_a, n_b = choices.count("a"), choices.count("b")
        if n_a == n_b:
            continue
        texts = (row["response_a"], row["response_b"])
        chosen, rejected = texts if n_a > n_b else reversed(texts)
        sides[row["metadata"]["split"]].append(
            Pair(
                prompt=[{"role": "user", "content": row["prompt"]}],
                chosen=[{"role": "assistant", "content": chosen}],
                rejected=[{"role": "assistant", "content": rejected}],
                prompt_id=row["prompt"],
            )
        )
    return str(storage_path("models") / base), sides["train"], sides["test"]


def wild_pairs(base: str, prompts: list[str], rng: random.Random) -> list[Any]:
    """Pairs of responses sampled at two temperatures, labeled by the world's five people."""
    from config import demo
    from labeling import microworld
    from training.ml.data import Pair

    asked = [rng.choice(prompts) for _ in range(WILD_PAIRS)]
    sides = [
        demo.sample_responses(
            Path(base), asked, rng.randrange(2**20), temperature, lambda done, total: None
        )
        for temperature in WILD_TEMPERATURES
    ]
    found = []
    for prompt, *texts in zip(asked, *sides, strict=True):
        difference = microworld.utility(prompt, texts[0]) - microworld.utility(prompt, texts[1])
        choice = microworld.majority(
            [vote.choice for vote in microworld.votes(difference, rng, n=5)]
        )
        if choice not in ("a", "b") or not all(texts):
            continue
        chosen, rejected = texts if choice == "a" else reversed(texts)
        found.append(
            Pair(
                prompt=[{"role": "user", "content": prompt}],
                chosen=[{"role": "assistant", "content": chosen}],
                rejected=[{"role": "assistant", "content": rejected}],
                prompt_id=prompt,
            )
        )
    return found


def run(folder: Path, seed: int, healthy: bool, changed: dict[str, Any]) -> dict[str, Any]:
    """One seed: both reward models, then the policy; every look with its truth."""
    base, train, test = set_up(folder)
    from labeling import microworld
    from training.ml import ppo, reward_model
    from training.ml.config import RewardRecipe
    from training.ml.data import prompts_of
    from training.ml.ppo_config import PPORecipe

    began = time.monotonic()
    half = set(sorted({pair.prompt_id for pair in train})[::2])
    labels = [pair for pair in train if pair.prompt_id in half]
    rewarding, settings = REWARD, SETTINGS | HEALTHY | changed
    if not healthy:
        labels = random.Random(f"labels {seed}").sample(labels, SMALL_PAIRS)
        rewarding, settings = REWARD | SMALL, SETTINGS | changed
    holdout = folder / "overoptimisation" / f"holdout-{WILD_PAIRS}"
    if not (holdout / "model" / "adapter_model.safetensors").exists():
        others = [pair for pair in train if pair.prompt_id not in half]
        names = sorted({pair.prompt_id for pair in others})
        others += wild_pairs(base, names, random.Random("wild"))
        recipe = RewardRecipe(base_model=base, seed=1, **REWARD)
        reward_model.train(recipe, others, test, holdout, lambda report: None)
    # Kept on the way: a run that was cut off goes on from its last checkpoint.
    out = folder / "overoptimisation" / f"parts-{'healthy' if healthy else 'seed'}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "small.json").exists():
        recipe = RewardRecipe(base_model=base, seed=seed, **rewarding)
        small = reward_model.train(recipe, labels, test, out / "small", lambda report: None)
        (out / "small.json").write_text(json.dumps(small["accuracy"]))
    asked = [prompt for prompt in prompts_of(test) for _ in range(ANSWERS)]
    policy = PPORecipe(
        base_model=base,
        reward_models=str(out / "small" / "model"),
        holdout_reward_model=str(holdout / "model"),
        seed=seed,
        **settings,
    )

    def look_at(look: Any) -> None:
        truth = [
            microworld.utility(prompt[-1]["content"], text)
            for prompt, text in zip(asked, look.texts, strict=True)
        ]
        one = {"step": look.step, "truth": truth, "numbers": look.numbers, "texts": look.texts}
        with (out / "looks.jsonl").open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(one) + "\n")
        words = [f"step {look.step}", f"truth {sum(truth) / len(truth):.2f}"]
        words += [f"{name} {look.mean(name):.2f}" for name in ("score", "careful", "kl")]
        print(*words, f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    ppo.train(
        policy, prompts_of(train), asked, out / "policy", lambda report: None, look_at=look_at
    )
    lines = (out / "looks.jsonl").read_text(encoding="utf-8").splitlines()
    looks = {look["step"]: look for look in map(json.loads, lines)}  # some were taken twice
    accuracy = json.loads((out / "small.json").read_text())["value"]
    shutil.rmtree(out)
    return {
        "seed": seed,
        "accuracy": accuracy,
        "looks": [looks[step] for step in sorted(looks)],
        "seconds": time.monotonic() - began,
    }


def course(found: dict[str, Any]) -> dict[str, Any]:
    """Of a seed: the truth at the start, at its best look and at the end, the score at the same
    three; and by each of the RULES what its alarm came to."""
    truths = [sum(look["truth"]) / len(look["truth"]) for look in found["looks"]]
    scores = [sum(look["numbers"]["score"]) / len(look["truth"]) for look in found["looks"]]
    best = max(range(len(truths)), key=truths.__getitem__)
    return {
        "seed": found["seed"],
        "start": truths[0],
        "best": truths[best],
        "best_step": found["looks"][best]["step"],
        "end": truths[-1],
        "scores": [scores[0], scores[best], scores[-1]],
        "by": {name: heeded(found["looks"], truths, rule) for name, rule in RULES.items()},
    }


def heeded(
    looks: list[dict[str, Any]], truths: list[float], rule: dict[str, Any]
) -> dict[str, Any]:
    """The first alarm: kinds (none: the run went to its end), its step, the step of the weights
    that are kept, the truth at both, and the share that each lacks of the gain from the start to
    the best look."""
    from training.ml.monitors import Look, Watch
    from training.ml.ppo_config import PPORecipe

    watch = Watch(PPORecipe(base_model="", reward_models="-", **SETTINGS | rule))
    for look in looks:
        texts = [""] * len(look["truth"])
        seen = watch.see(Look(look["step"], texts, dict(look["numbers"])))
        if stops := [one.kind for one in seen if one.stops]:
            break
    assert watch.best is not None
    truth_at = {one["step"]: truth for one, truth in zip(looks, truths, strict=True)}
    truth, kept = truth_at[look["step"]], truth_at[watch.best.step]
    best, gain = max(truths), max(truths) - truths[0]
    return {
        "kinds": stops,
        "step": look["step"],
        "truth": truth,
        "lost": (best - truth) / gain,
        "kept_step": watch.best.step,
        "kept": kept,
        "lost_kept": (best - kept) / gain,
    }


def report(folder: Path, healthy: bool) -> None:
    print(
        "| seed | start | best (step) | end | score: start, best, end | at the alarm (step) | "
        "kept (step) | lost at the alarm | lost in the kept |"
    )
    kind = "healthy" if healthy else "seed"
    courses = [
        course(json.loads(path.read_text()))
        for path in (folder / "overoptimisation").glob(f"{kind}-*.json")
    ]
    for one in sorted(courses, key=lambda row: row["seed"]):
        by = one["by"][next(iter(RULES))]
        cells = [str(one["seed"]), f"{one['start']:.2f}", f"{one['best']:.2f} ({one['best_step']})"]
        cells += [f"{one['end']:.2f}", ", ".join(f"{value:.2f}" for value in one["scores"])]
        cells += [f"{by['truth']:.2f} ({by['step']})" if by["kinds"] else "none"]
        cells += [f"{by['kept']:.2f} ({by['kept_step']})"]
        cells += [f"{by['lost']:.0%}" if by["kinds"] else "–", f"{by['lost_kept']:.0%}"]
        print(f"| {' | '.join(cells)} |")
    for name in RULES if courses else ():
        found = [one["by"][name] for one in courses]
        stopped = [one for one in found if one["kinds"]]
        at_alarm = sum(one["lost"] < 0.5 for one in stopped)
        unseen = sum(one["lost"] >= 0.5 for one in found if not one["kinds"])
        kept = [one["lost_kept"] for one in found]
        kinds = sorted({kind for one in stopped for kind in one["kinds"]})
        print(
            f"{name}: {len(stopped)} alarms in {len(found)} runs ({', '.join(kinds)}); less than "
            f"half of the gain lost at the alarm in {at_alarm}, no alarm but half of it lost at "
            f"the end in {unseen}; less than half lost in the kept weights in "
            f"{sum(lost < 0.5 for lost in kept)}, which lack {sum(kept) / len(kept):.0%} in mean"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("run", "report"):
        part = parts.add_parser(name)
        part.add_argument("--folder", type=Path, required=True)
        part.add_argument("--healthy", action="store_true")
        if name == "run":
            part.add_argument("--seed", type=int, required=True)
            part.add_argument(
                "--settings", type=json.loads, default={}, help="of the recipe, as JSON"
            )
    asked = parser.parse_args()
    if asked.part == "report":
        report(asked.folder, asked.healthy)
        return
    found = run(asked.folder, asked.seed, asked.healthy, asked.settings)
    place = asked.folder / "overoptimisation"
    place.mkdir(parents=True, exist_ok=True)
    kind = "healthy" if asked.healthy else "seed"
    (place / f"{kind}-{asked.seed}.json").write_text(json.dumps(found))
    print(json.dumps(course(found) | {"seconds": round(found["seconds"])}))


if __name__ == "__main__":
    main()
