"""PPO on one base against four separate models: time, memory, and the truth of the micro-world.

    python -m tests.bench.ppo speed --folder DIR     # a plain loop over `generate`, the same work
    python -m tests.bench.ppo speed --words 32000    # a larger model and its words, longer prompts
    python -m tests.bench.ppo memory                 # peaks of child processes
    python -m tests.bench.ppo planner                # foretold beside measured, child processes
    python -m tests.bench.ppo world --folder DIR --seed 101    # true utility: start, DPO, PPO

DIR keeps the micro-world's models and runs (PREFLOOP_STORAGE), one folder for all seeds. What is
plain about the plain loop: a model for each role, the library's `generate` on batches in the order
of the prompts, padded rows, the library's adapters and optimizer. Equations, batch sizes, passes
and prompts are the same, and its logits too are those of the responses alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LARGE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "vocab_size": 32000,
}
"""270 million parameters."""
MEDIUM = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""3 million parameters beside its words."""
LONGER: dict[str, Any] = {
    "prompts_per_step": 16,
    "max_new_tokens": 32,
    "rollout_batch_size": 16,
    "batch_size": 8,
    "minibatches": 2,
}
"""Random weights hardly ever end a response, so the prompts alone differ in length."""
WORLD: dict[str, Any] = {
    "steps": 24,
    "prompts_per_step": 128,
    "max_new_tokens": 64,
    "max_length": 256,
    "rollout_batch_size": 128,
    "batch_size": 32,
    "minibatches": 8,
    "epochs": 2,
    "learning_rate": 2e-3,
    "critic_learning_rate": 4e-3,
    "critic_warmup": 1,
    "kl_coefficient": 0.05,
    "kl_target": 8.0,
    "eval_every": 1000,
    "checkpoint_every": 1000,
}
"""Chosen on seed 7 among five settings."""


# ---- A plain loop with four models --------------------------------------------------------------


def plain_loop(recipe: Any, prompts: list[Any]) -> dict[str, Any]:
    """PPO, RLOO or GRPO as one writes it down first; the latter two without a critic.

    Returns: seconds_in and response_tokens, as ppo.train.
    """
    import torch
    from transformers import GenerationConfig

    from training.ml.data import chat_tokens
    from training.ml.generation import _pad_left
    from training.ml.loading import adapter_config, load_causal, load_reward_model, load_scorer
    from training.ml.policy_gradients import (
        gae,
        grpo_advantages,
        kl_estimate,
        policy_loss,
        rloo_advantages,
        token_rewards,
        value_loss,
        whiten,
    )
    from training.ml.ppo import Prompt, _Clock, drawn_prompts

    torch.manual_seed(0)
    settings = {"method": recipe.method, "dtype": recipe.dtype}
    from peft import get_peft_model

    policy = load_causal(recipe.base_model, **settings)
    policy = get_peft_model(policy, adapter_config(policy, recipe, task="CAUSAL_LM")).eval()
    reference = load_causal(recipe.base_model, **settings).eval()
    with_critic = recipe.algorithm == "ppo"
    if with_critic:
        critic = load_scorer(recipe.base_model, **settings)
        critic = get_peft_model(critic, adapter_config(critic, recipe, task="SEQ_CLS")).eval()
    reward, tokenizer = load_reward_model(recipe.reward_models, dtype=recipe.dtype)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        for model, rate in (
            (policy, recipe.learning_rate),
            *([(critic, recipe.critic_learning_rate)] if with_critic else []),
        )
    ]
    drawing = GenerationConfig(
        max_new_tokens=recipe.max_new_tokens, do_sample=True, top_k=0, top_p=1.0,
        temperature=recipe.temperature, pad_token_id=pad, eos_token_id=end,
    )  # fmt: skip
    asked = [Prompt(p, chat_tokens(tokenizer, p, open_answer=True)) for p in prompts]

    def logps(model: Any, ids: Any, mask: Any, n: int) -> Any:
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=n + 1
        ).logits
        told = (logits[:, :-1].float() / recipe.temperature).log_softmax(-1)
        return told.gather(-1, ids[:, -n:, None]).squeeze(-1)

    def values(ids: Any, mask: Any, n: int) -> Any:
        inner = critic.get_base_model()
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = inner.model(input_ids=ids, attention_mask=mask, position_ids=places)
        return inner.score(hidden.last_hidden_state).squeeze(-1)[:, -n - 1 : -1].float()

    clock = _Clock()
    for step in range(1, recipe.steps + 1):
        chosen = drawn_prompts(asked, recipe, step)
        read = []
        for at in range(0, len(chosen), recipe.rollout_batch_size):
            part = [prompt.ids for prompt in chosen[at : at + recipe.rollout_batch_size]]
            with clock("generation"), torch.no_grad():
                ids, mask = _pad_left(part, pad)
                made = policy.generate(
                    input_ids=ids, attention_mask=mask, generation_config=drawing
                )
            with clock("scoring"), torch.no_grad():
                n = made.shape[1] - ids.shape[1]
                response = made[:, ids.shape[1] :]
                real = ((response == end).cumsum(1) - (response == end).long() == 0).long()
                mask = torch.cat([mask, real], dim=1)
                old, then = logps(policy, made, mask, n), logps(reference, made, mask, n)
                scores = reward(input_ids=made, attention_mask=mask).logits[:, 0].float()
                kl = kl_estimate(old, then, recipe.kl) * real
                if with_critic:
                    then_values = values(made, mask, n)
                    paid = token_rewards(scores, kl, real.float(), recipe.kl_coefficient)
                    told, returns = gae(
                        paid, then_values, real.float(), gamma=recipe.gamma, lam=recipe.gae_lambda
                    )
                else:
                    groups = (scores - recipe.kl_coefficient * kl.sum(1)).view(
                        -1, recipe.samples_per_prompt
                    )
                    by = rloo_advantages if recipe.algorithm == "rloo" else grpo_advantages
                    told = by(groups).view(-1, 1) * real
                    then_values = returns = torch.zeros_like(told)
            clock.n_tokens += int(real.sum())
            for row in range(len(made)):
                read.append([t[row] for t in (made, mask, real, old, then_values, told, returns)])
        with clock("update"):
            for _epoch in range(recipe.epochs):
                order = torch.randperm(len(read))
                for rows in order.chunk(recipe.minibatches):
                    for some in rows.split(recipe.batch_size):
                        widths = {read[row][0].shape for row in some}
                        for width in widths:  # batches of one padding go together
                            same = [read[row] for row in some if read[row][0].shape == width]
                            made, mask, real, old, then_values, told, returns = (
                                torch.stack(column) for column in zip(*same, strict=True)
                            )
                            weights = real / real.sum()
                            n = real.shape[1]
                            white = whiten(told, real.float()) if with_critic else told
                            policy_loss(
                                logps(policy, made, mask, n), old, white, weights, clip=recipe.clip
                            ).backward()
                            if with_critic:
                                value_loss(
                                    values(made, mask, n), then_values, returns, weights,
                                    clip=recipe.value_clip,
                                ).backward()  # fmt: skip
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
    return {"seconds_in": clock.seconds, "response_tokens": clock.n_tokens}


# ---- Speed --------------------------------------------------------------------------------------


def rates(found: dict[str, Any]) -> str:
    seconds, n = found["seconds_in"], found["response_tokens"]
    total = sum(seconds.values())
    shares = " | ".join(f"{seconds[k]:.1f} ({seconds[k] / total:.0%})" for k in seconds)
    return f"{n} | {shares} | {n / total:.0f}"


def times_as_fast(ours: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of ours, by those of the plain loop: of each kind of work, and of all."""
    each = []
    for found in (ours, plain):
        seconds = found["seconds_in"]
        each.append(
            {
                kind: s / found["response_tokens"]
                for kind, s in (seconds | {"all": sum(seconds.values())}).items()
            }
        )
    return {kind: each[1][kind] / each[0][kind] for kind in each[0]}


def speed(asked: argparse.Namespace) -> None:
    """Both loops in turn, after a step of each that is not counted: what is done once is done."""
    import random

    from labeling import microworld
    from tests.bench.memory import save_model
    from tests.training.reward_models import save_reward_model
    from training.ml import ppo
    from training.ml.ppo import PPORecipe

    changed = {"steps": asked.steps, "kl_target": 0.0, "critic_warmup": 0}
    if asked.algorithm != "ppo":
        n = WORLD["prompts_per_step"] // asked.samples
        changed |= {"algorithm": asked.algorithm, "samples_per_prompt": asked.samples,
                    "prompts_per_step": n}  # fmt: skip
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as made:
        if asked.words:
            base = Path(made) / "base"
            save_model(base, MEDIUM | {"vocab_size": asked.words})
            reward = save_reward_model(str(base), Path(made) / "reward")
            texts = ["7" * rng.randint(16, 160) for _ in range(512)]
            n = LONGER["prompts_per_step"]
            changed |= LONGER | {"prompts_per_step": n // changed.get("samples_per_prompt", 1)}
        else:  # the micro-world's, as `world` or a demo has made them
            reward = str(
                next(
                    path.parent
                    for path in sorted(asked.folder.glob("runs/*/model/adapter_config.json"))
                    if json.loads(path.read_text())["task_type"] == "SEQ_CLS"
                )
            )
            settings = json.loads((Path(reward) / "adapter_config.json").read_text())
            base = settings["base_model_name_or_path"]
            texts = microworld.sample_prompts(512, rng)
        recipe = PPORecipe(base_model=str(base), reward_models=reward, **WORLD | changed)
        prompts = [[{"role": "user", "content": text}] for text in texts]

        def ours(recipe: Any, prompts: list[Any]) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as out:
                return ppo.train(recipe, prompts, [], Path(out), lambda report: None)

        for loop in (ours, plain_loop):
            loop(replace(recipe, steps=1), prompts)
        print("| loop | tokens | generation s | scoring s | update s | tokens/s |")
        times = []
        for _round in range(asked.rounds):
            pair = [loop(recipe, prompts) for loop in (ours, plain_loop)]
            times.append(times_as_fast(*pair))
            for name, found in zip(("one base", "plain"), pair, strict=True):
                print(f"| {name} | {rates(found)} |", flush=True)
        for kind in times[0]:
            each = sorted(found[kind] for found in times)
            print(f"{kind}: {statistics.median(each):.2f} times as fast, {each[0]:.2f} to "
                  f"{each[-1]:.2f} in {len(each)} rounds", flush=True)  # fmt: skip


# ---- Memory -------------------------------------------------------------------------------------


def memory_child(kind: str, base: str, reward: str, settings: dict[str, Any]) -> dict[str, Any]:
    from training.ml import ppo
    from training.ml.peaks import Peak, give_memory_back
    from training.ml.ppo import PPORecipe

    scores = ask_judge(settings.pop("judge")) if "judge" in settings else None
    recipe = PPORecipe(base_model=base, reward_models=reward, **settings)
    prompts = [[{"role": "user", "content": f"{i} " * 8}] for i in range(16)]
    give_memory_back()
    peak = Peak()
    began = time.monotonic()
    if kind == "shared":
        with tempfile.TemporaryDirectory() as out:
            found = ppo.train(recipe, prompts, [], Path(out), lambda report: None, reward=scores)
    else:
        found = plain_loop(recipe, prompts)
    longest = found.get("longest")
    return {"peak": peak.bytes(), "seconds": time.monotonic() - began, "longest": longest}


def ask_judge(folder: str) -> Callable[[Sequence[Any], Sequence[str]], list[float]]:
    """A judge that is loaded when it is first asked, as judge_scores.py does it."""
    from judges.ml.config import JudgeRecipe
    from judges.ml.engine import load_engine
    from judges.ml.modes import judge
    from judges.ml.questions import Lone

    recipe = JudgeRecipe(mode="score", chat="never", min_answer_mass=0.0)
    engines: list[Any] = []

    def scores(prompts: Sequence[Any], texts: Sequence[str]) -> list[float]:
        if not engines:
            engines.append(load_engine(folder, recipe, "cpu"))
        said = [[{"role": "assistant", "content": text}] for text in texts]
        asked = [Lone(*pair) for pair in zip(prompts, said, strict=True)]
        found = dict(one for batch in judge(engines[0], recipe, asked) for one in batch)
        return [found[place].score_a or 0.0 for place in range(len(asked))]

    return scores


def words_of_a_question(folder: Path) -> tuple[int, int]:
    """Tokens of what a judge is told before the prompt and after the response."""
    from transformers import AutoTokenizer

    from judges.ml.config import JudgeRecipe

    recipe = JudgeRecipe(mode="score")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lead, words = recipe.score_preamble, f"{recipe.score_request} {recipe.score_ending}"
    return len(tokenizer(lead)["input_ids"]), len(tokenizer(words)["input_ids"])


def memory() -> None:
    from tests.bench.memory import save_model
    from tests.training.reward_models import save_reward_model

    settings = {
        "steps": 1, "prompts_per_step": 8, "max_new_tokens": 32, "batch_size": 4,
        "minibatches": 2, "epochs": 1, "rollout_batch_size": 8, "dtype": "float32",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        base = Path(root) / "base"
        save_model(base, LARGE)
        for method in ("lora", "qlora"):
            reward = save_reward_model(str(base), Path(root) / method, method=method)
            found = {}
            for kind in ("separate", "shared"):
                found[kind] = child(kind, base, reward, settings | {"method": method})
                mib, seconds = found[kind]["peak"] / 2**20, found[kind]["seconds"]
                print(f"| {method} | {kind} | {mib:.0f} MiB | {seconds:.0f} s |", flush=True)
            print(
                f"{method}: {found['shared']['peak'] / found['separate']['peak']:.3f}", flush=True
            )


PLANNED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("one layer of a large model", {"num_hidden_layers": 1}, {"batch_size": 8}),
    ("4 layers", {"num_hidden_layers": 4}, {"batch_size": 8}),
    ("4 layers, long responses", {"num_hidden_layers": 4}, {"max_new_tokens": 160}),
    ("4 layers, RLOO", {"num_hidden_layers": 4}, {"algorithm": "rloo", "samples_per_prompt": 2}),
    ("4 layers, checkpointing", {"num_hidden_layers": 4}, {"gradient_checkpointing": True}),
    ("4 layers, in 4 bits", {"num_hidden_layers": 4}, {"method": "qlora"}),
    ("4 layers, a judge of 4 layers here", {"num_hidden_layers": 4}, {"judge": 4}),
    ("2 layers, a judge of 8 layers here", {"num_hidden_layers": 2}, {"judge": 8}),
    ("8 layers, rank 64", {"num_hidden_layers": 8, "hidden_size": 512}, {"lora_rank": 64}),
]
"""Models by what differs from LARGE, and recipes."""


def planner(first: int) -> None:
    """What is foretold of the peak beside what a child process takes, from this row on."""
    from tests.bench.memory import save_model
    from tests.training.reward_models import save_reward_model
    from training.ml.architecture import read_architecture
    from training.ml.ppo_config import PPORecipe
    from training.ml.ppo_memory import Judge, predict

    common = {
        "steps": 1, "prompts_per_step": 8, "max_new_tokens": 64, "batch_size": 4,
        "minibatches": 1, "epochs": 1, "rollout_batch_size": 16, "dtype": "float32",
    }  # fmt: skip
    print("| model and recipe | foretold MiB | measured MiB | error | moment |")
    for words, shape, changed in PLANNED[first:]:
        with tempfile.TemporaryDirectory() as root:
            base = Path(root) / "base"
            save_model(base, LARGE | shape)
            settings = common | changed
            method = str(settings.get("method", "lora"))
            reward = save_reward_model(str(base), Path(root) / "reward", method=method)
            judge = None
            if layers := settings.get("judge"):
                # Tied: of rows that are only looked up, a CPU reads those that are needed.
                asked = LARGE | {"num_hidden_layers": layers, "tie_word_embeddings": True}
                save_model(Path(root) / "judge", asked)
                settings |= {"judge": str(Path(root) / "judge")}
                judge = Judge(settings["judge"], "auto", False, 0, *words_of_a_question(base))
            found = child("shared", base, reward, settings)
            settings.pop("judge", None)
            recipe = PPORecipe(base_model=str(base), reward_models=reward, **settings)
            arch = read_architecture(base)
            told = predict(recipe, arch, device="cpu", tokens=found["longest"], judge=judge)
            foretold, measured = told.peak / 2**20, found["peak"] / 2**20
            error = foretold / measured - 1
            print(f"| {words} | {foretold:.0f} | {measured:.0f} | {error:+.1%} | {told.moment} |",
                  flush=True)  # fmt: skip


def child(kind: str, base: Path, reward: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own says of a run in it."""
    asked = [sys.executable, "-m", "tests.bench.ppo", "child", kind, str(base), reward]
    done = subprocess.run(
        [*asked, json.dumps(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- The truth ----------------------------------------------------------------------------------


def world(folder: Path, seed: int, changed: dict[str, Any]) -> dict[str, Any]:
    """Base, comparisons, reward model and DPO by the demo's own stages, then PPO; all by one seed.

    Returns: {"start", "dpo", "ppo"}: true utility, KL to the start, seconds; and differences.
    """
    os.environ |= {"PREFLOOP_STORAGE": str(folder), "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from config import demo
    from labeling.storage import storage_path
    from training.datasets import load_pairs
    from training.ml import ppo
    from training.ml.ppo import PPORecipe

    settings = demo.DemoSettings(project=f"world-{seed}", seed=seed)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        began = time.monotonic()
        found = work()
        seconds[name] = round(time.monotonic() - began, 1)
        return found

    def silent(*_told: Any) -> None:
        return

    base = timed("base", lambda: demo.base_model(settings, silent))
    file = timed("comparisons", lambda: demo.comparisons_file(settings, base, silent))
    project = demo.imported(settings, file, silent)
    runs = {
        kind: timed(kind, lambda kind=kind: demo.trained(settings, project, kind, base, silent))
        for kind in ("reward", "dpo")
    }
    folders = {kind: storage_path(run.folder) / "model" for kind, run in runs.items()}
    train, test = load_pairs(runs["reward"].dataset)
    asked, held_out = (
        sorted({pair.prompt[-1]["content"] for pair in pairs}) for pairs in (train, test)
    )
    recipe = PPORecipe(
        base_model=str(storage_path("models") / base),
        reward_models=str(folders["reward"]),
        seed=seed,
        **WORLD | changed,
    )
    curve: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as out:
        metrics = timed(
            "ppo",
            lambda: ppo.train(
                recipe,
                [[{"role": "user", "content": text}] for text in asked],
                [[{"role": "user", "content": text}] for text in held_out],
                Path(out),
                lambda report: curve.append(report.values) if report.split == "train" else None,
            ),
        )
        places = {
            "start": recipe.base_model,
            "dpo": str(folders["dpo"]),
            "ppo": str(Path(out) / "model"),
        }
        found = {name: policy_truth(place, places["start"], held_out, settings)
                 for name, place in places.items()}  # fmt: skip
    figures = {
        name: demo._bootstrap_mean(truth["utilities"], seed) | {"kl": truth["kl"]}
        for name, truth in found.items()
    }
    for name, other in (("ppo", "start"), ("ppo", "dpo"), ("dpo", "start")):
        difference = found[name]["utilities"] - found[other]["utilities"]
        figures[f"{name} minus {other}"] = demo._bootstrap_mean(difference, seed)
    figures |= best_of_n_truth(places["start"], str(folders["reward"]), held_out, settings)
    steps = [values for values in curve if values][:: max(1, recipe.steps // 8)]
    return {"seed": seed, "figures": figures, "seconds": seconds,
            "seconds_in": metrics["seconds_in"], "proxy": metrics["gain"],
            "curve": [{k: round(v[k], 3) for k in ("score", "kl", "length", "finished", "entropy",
             "kl_coefficient", "approx_kl")} for v in steps]}  # fmt: skip


def best_of_n_truth(
    start: str, reward: str, prompts: list[str], settings: Any
) -> dict[str, dict[str, float]]:
    """True utility of the start's best of n by the reward model, from 16 responses a prompt."""
    from labeling import microworld
    from training.ml.best_of_n import expected_best, kl_of_best, ranked_responses
    from training.ml.loading import load_policy, load_reward_model
    from training.ml.reward_model import score

    scorer, theirs = load_reward_model(reward)
    ranked = ranked_responses(
        *load_policy(start),
        [[{"role": "user", "content": text}] for text in prompts],
        lambda asked, texts: score(
            scorer,
            theirs,
            [[*p, {"role": "assistant", "content": t}] for p, t in zip(asked, texts, strict=True)],
            batch_size=128,
        ),
        n=16,
        max_new_tokens=64,
        temperature=settings.temperature,
        seed=settings.seed,
        batch_size=256,
    )
    truths = [
        [microworld.utility(prompt, text) for text in found.responses]
        for prompt, found in zip(prompts, ranked, strict=True)
    ]
    return {
        f"best of {n}": {
            "value": sum(
                expected_best(found.scores, truth, n)
                for found, truth in zip(ranked, truths, strict=True)
            )
            / len(truths),
            "kl": kl_of_best(n),
        }
        for n in (1, 4, 16)
    }


def policy_truth(place: str, start: str, prompts: list[str], settings: Any) -> dict[str, Any]:
    """Mean true utility of each prompt, sampled as the demo does; and the KL to the start at
    temperature 1, in nats a response."""
    import numpy as np

    from config import demo
    from labeling import microworld
    from training.ml.data import chat_tokens
    from training.ml.loading import load_policy
    from training.ml.logprobs import response_logps
    from training.ml.rollouts import end_ids, roll_out

    asked = [prompt for prompt in prompts for _ in range(settings.samples_per_prompt)]
    texts = demo.sample_responses(
        Path(place), asked, settings.seed + 1, settings.temperature, lambda done, total: None
    )
    values = [microworld.utility(p, r) for p, r in zip(asked, texts, strict=True)]
    policy, tokenizer = load_policy(place)
    rows = [
        chat_tokens(tokenizer, [{"role": "user", "content": text}], open_answer=True)
        for text in prompts
    ]
    rollouts = roll_out(
        policy, rows, max_new_tokens=64, temperature=1.0, ends=end_ids(policy, tokenizer),
        pad_id=tokenizer.pad_token_id, seed=settings.seed, batch_size=256,
    )  # fmt: skip
    told = [
        response_logps(
            model, rows, [rollout.response_ids for rollout in rollouts], tokenizer.pad_token_id
        )
        for model in (policy, load_policy(start)[0])
    ]
    return {
        "utilities": np.array(values).reshape(len(prompts), -1).mean(axis=1),
        "kl": float((told[0] - told[1]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    asked_speed = parts.add_parser("speed")
    asked_speed.add_argument("--folder", type=Path, default=Path("storage"))
    asked_speed.add_argument("--steps", type=int, default=4)
    asked_speed.add_argument("--rounds", type=int, default=5)
    asked_speed.add_argument("--algorithm", choices=("ppo", "rloo", "grpo"), default="ppo")
    asked_speed.add_argument("--samples", type=int, default=4, help="to a prompt, without a critic")
    asked_speed.add_argument(
        "--words", type=int, default=0, help="a larger model, of random weights"
    )
    parts.add_parser("memory")
    parts.add_parser("planner").add_argument("--first", type=int, default=0)
    asked_world = parts.add_parser("world")
    asked_world.add_argument("--folder", type=Path, required=True)
    asked_world.add_argument("--seed", type=int, default=7)
    asked_world.add_argument(
        "--settings", type=json.loads, default={}, help="of the recipe, as JSON"
    )
    child = parts.add_parser("child")
    for name in ("kind", "base", "reward"):
        child.add_argument(name)
    child.add_argument("settings", type=json.loads)
    asked = parser.parse_args()
    if asked.part == "speed":
        speed(asked)
    elif asked.part == "memory":
        memory()
    elif asked.part == "planner":
        planner(asked.first)
    elif asked.part == "world":
        print(json.dumps(world(asked.folder, asked.seed, asked.settings), indent=1))
    else:
        print(json.dumps(memory_child(asked.kind, asked.base, asked.reward, asked.settings)))


if __name__ == "__main__":
    main()
