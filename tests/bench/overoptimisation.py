"""A policy against a reward model that knows too little, with KL for nothing: does the alarm come
in time?

    python -m tests.bench.overoptimisation run --folder DIR --seed 1    # a seed, about two minutes
    python -m tests.bench.overoptimisation report --folder DIR          # the table of all of them

DIR keeps the micro-world's base model and comparisons (PREFLOOP_STORAGE), and what every seed came
to. A seed decides the labels of the small reward model, its weights and the policy's, the order
and the samples; the world, its base model, its comparisons and the hold-out are the same for all.
The run goes on past its alarm (on_alarm "note"), so that what the stop saved can be told: the watch
decides as it would in a run that stops.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL_PAIRS = 30
"""Labels behind the reward model that is learned from; the hold-out has all of the other half."""
WILD_PAIRS, WILD_TEMPERATURES = 600, (1.0, 1.5)
"""Of the hold-out besides: responses of the start that are more varied than those of the others."""
SETTINGS: dict[str, Any] = {
    "algorithm": "rloo",
    "steps": 30,
    "prompts_per_step": 32,
    "samples_per_prompt": 2,
    "max_new_tokens": 64,
    "max_length": 256,
    "rollout_batch_size": 128,
    "batch_size": 64,
    "minibatches": 2,
    "epochs": 2,
    "learning_rate": 2e-3,
    "scheduler": "constant_with_warmup",
    "kl_coefficient": 0.0,
    "kl_budget": 2.0,
    "missing_end_penalty": 0.0,
    "eval_every": 1,
    "checkpoint_every": 1000,
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


def run(folder: Path, seed: int, changed: dict[str, Any]) -> dict[str, Any]:
    """One seed: both reward models, then the policy; every look with its truth."""
    base, train, test = set_up(folder)
    from labeling import microworld
    from training.ml import ppo, reward_model
    from training.ml.config import PPORecipe, RewardRecipe
    from training.ml.data import prompts_of

    began = time.monotonic()
    half = set(sorted({pair.prompt_id for pair in train})[::2])
    few = random.Random(f"labels {seed}").sample(
        [pair for pair in train if pair.prompt_id in half], SMALL_PAIRS
    )
    holdout = folder / "overoptimisation" / f"holdout-{WILD_PAIRS}"
    if not (holdout / "model" / "adapter_model.safetensors").exists():
        others = [pair for pair in train if pair.prompt_id not in half]
        names = sorted({pair.prompt_id for pair in others})
        others += wild_pairs(base, names, random.Random("wild"))
        recipe = RewardRecipe(base_model=base, seed=1, **REWARD)
        reward_model.train(recipe, others, test, holdout, lambda report: None)
    looks: list[dict[str, Any]] = []
    notes: list[tuple[int, tuple[str, ...]]] = []
    asked = prompts_of(test)
    with tempfile.TemporaryDirectory() as out:
        recipe = RewardRecipe(base_model=base, seed=seed, **REWARD | SMALL)
        small = reward_model.train(recipe, few, test, Path(out) / "small", lambda report: None)
        policy = PPORecipe(
            base_model=base,
            reward_models=str(Path(out) / "small" / "model"),
            holdout_reward_model=str(holdout / "model"),
            seed=seed,
            **SETTINGS | changed,
        )

        def look_at(look: Any) -> None:
            truth = [
                microworld.utility(prompt[-1]["content"], text)
                for prompt, text in zip(asked, look.texts, strict=True)
            ]
            one = {"step": look.step, "truth": truth, "numbers": look.numbers}
            looks.append(one | {"texts": look.texts})

        ppo.train(
            policy,
            prompts_of(train),
            asked,
            Path(out) / "policy",
            lambda report: notes.append((report.step, report.notes)) if report.notes else None,
            look_at=look_at,
        )
    return {
        "seed": seed,
        "accuracy": small["accuracy"]["value"],
        "looks": looks,
        "notes": notes,
        "seconds": time.monotonic() - began,
    }


def course(found: dict[str, Any]) -> dict[str, Any]:
    """Of a seed: the truth at the start, at its best, at the alarm, in the kept weights and at the
    end; and the share of the gain that was lost when the alarm came."""
    from training.ml.config import PPORecipe
    from training.ml.monitors import Look, Watch

    recipe = PPORecipe(base_model="", reward_models="-", holdout_reward_model="-", **SETTINGS)
    watch = Watch(recipe)
    truths = [sum(look["truth"]) / len(look["truth"]) for look in found["looks"]]
    alarm = None
    for place, look in enumerate(found["looks"]):
        if alarm is None:
            texts = [""] * len(look["truth"])
            seen = watch.see(Look(look["step"], texts, look["numbers"]))
            if any(one.stops for one in seen):
                alarm = place
                kinds = [one.kind for one in seen if one.stops]
    means = [sum(look["numbers"]["score"]) / len(look["truth"]) for look in found["looks"]]
    best = max(range(len(truths)), key=truths.__getitem__)
    told: dict[str, Any] = {
        "seed": found["seed"],
        "start": truths[0],
        "best": truths[best],
        "best_step": found["looks"][best]["step"],
        "end": truths[-1],
        "proxy": [means[0], means[best], means[-1]],
    }
    if alarm is not None:
        steps = [look["step"] for look in found["looks"]]
        assert watch.best is not None
        kept = steps.index(watch.best.step)
        gain = truths[best] - truths[0]
        told |= {
            "alarm_step": steps[alarm],
            "kinds": kinds,
            "at_alarm": truths[alarm],
            "kept_step": steps[kept],
            "kept": truths[kept],
            "lost": (truths[best] - truths[alarm]) / gain,
            "lost_kept": (truths[best] - truths[kept]) / gain,
            "lost_end": (truths[best] - truths[-1]) / gain,
        }
    return told


def report(folder: Path) -> None:
    print(
        "| seed | start | best (step) | at the alarm (step) | kept (step) | end | score: start, "
        "best, end | lost at the alarm | lost in the kept |"
    )
    courses = [
        course(json.loads(path.read_text()))
        for path in sorted((folder / "overoptimisation").glob("seed-*.json"))
    ]
    for one in sorted(courses, key=lambda row: row["seed"]):
        proxy = ", ".join(f"{value:.2f}" for value in one["proxy"])
        line = f"| {one['seed']} | {one['start']:.2f} | {one['best']:.2f} ({one['best_step']}) "
        if "alarm_step" in one:
            line += f"| {one['at_alarm']:.2f} ({one['alarm_step']}) "
            line += f"| {one['kept']:.2f} ({one['kept_step']}) "
        else:
            line += "| none | – "
        line += f"| {one['end']:.2f} | {proxy} "
        line += f"| {one['lost']:.0%} | {one['lost_kept']:.0%} |" if "lost" in one else "| – | – |"
        print(line)
    caught = [one for one in courses if one.get("lost", 1) < 0.5]
    print(f"caught before half of the gain was lost: {len(caught)} of {len(courses)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("run", "report"):
        part = parts.add_parser(name)
        part.add_argument("--folder", type=Path, required=True)
        if name == "run":
            part.add_argument("--seed", type=int, required=True)
            part.add_argument(
                "--settings", type=json.loads, default={}, help="of the recipe, as JSON"
            )
    asked = parser.parse_args()
    if asked.part == "report":
        report(asked.folder)
        return
    found = run(asked.folder, asked.seed, asked.settings)
    place = asked.folder / "overoptimisation"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"seed-{asked.seed}.json").write_text(json.dumps(found))
    print(json.dumps(course(found) | {"seconds": round(found["seconds"])}))


if __name__ == "__main__":
    main()
