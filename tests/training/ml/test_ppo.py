import copy
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.reward_models import save_reward_model
from tests.training.tiny import save_tiny_model
from training.ml import ppo, ppo_learner, ppo_memory, ppo_scores, ratings
from training.ml.architecture import read_architecture
from training.ml.loading import load_policy, load_reward_model, load_tokenizer
from training.ml.ppo_config import PPORecipe
from training.ml.ppo_learner import Learner, read_rollouts, told_advantages
from training.ml.roles import CRITIC, POLICY, Roles
from training.ml.rollouts import Rollout

PROMPTS = [[{"role": "user", "content": f"Tell me about place {i}."}] for i in range(20)]
SMALL = {
    "dtype": "float32",
    "lora_rank": 4,
    "steps": 4,
    "prompts_per_step": 6,
    "max_new_tokens": 8,
    "minibatches": 2,
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "eval_every": 2,
    "checkpoint_every": 2,
}


def share_of_letters(_prompts, texts) -> list[float]:
    return [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in texts]


@pytest.fixture(scope="module")
def reward_model(tiny_model, tmp_path_factory) -> str:
    return save_reward_model(tiny_model, tmp_path_factory.mktemp("reward"), seed=1)


@pytest.fixture(scope="module")
def decided_model(tmp_path_factory) -> str:
    """The tiny model with ten times the logits: its words differ enough to be moved."""
    folder = save_tiny_model(tmp_path_factory.mktemp("decided") / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# ---- The gradient -------------------------------------------------------------------------------


def by_hand(roles: Roles, recipe: PPORecipe, rollouts, old, reference, values, scores):
    """Gradients of policy and critic in float64, row by row without padding, from full logits."""
    model = copy.deepcopy(roles.model).double()
    head = copy.deepcopy(roles.heads[CRITIC]).double()
    n_tokens = sum(len(r.response_ids) for r in rollouts)
    told = []
    for row, rollout in enumerate(rollouts):
        n = len(rollout.response_ids)
        paid = [
            -recipe.kl_coefficient * (math.exp(reference[row][t] - old[row][t]) - 1)
            - recipe.kl_coefficient * (old[row][t] - reference[row][t])
            for t in range(n)
        ]
        paid[-1] += scores[row]
        v = [*values[row][:n], 0.0]
        deltas = [paid[t] + recipe.gamma * v[t + 1] - v[t] for t in range(n)]
        decay = recipe.gamma * recipe.gae_lambda
        told.append([sum(decay ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)])
    flat = torch.tensor([a for row in told for a in row], dtype=torch.float64)
    mean, sd = flat.mean(), (flat.var(correction=0) + 1e-8).sqrt()
    losses = {POLICY: 0.0, CRITIC: 0.0}
    for role in losses:
        model.set_adapter(role)
        for row, rollout in enumerate(rollouts):
            start = len(rollout.prompt_ids)
            ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
            outputs = model(input_ids=ids, output_hidden_states=True)
            for t, advantage in enumerate(told[row]):
                at = start + t
                if role == POLICY:
                    logits = outputs.logits[0, at - 1] / recipe.temperature
                    logp = logits[ids[0, at]] - logits.logsumexp(-1)
                    ratio = (logp - old[row][t]).exp()
                    white = (advantage - mean) / sd
                    kept = torch.minimum(ratio * white, ratio.clamp(0.8, 1.2) * white)
                    losses[role] = losses[role] - kept / n_tokens
                else:
                    value = head(outputs.hidden_states[-1][0, at - 1])[0]
                    target = advantage + values[row][t]
                    near = values[row][t] + (value - values[row][t]).clamp(-0.2, 0.2)
                    error = torch.maximum((value - target) ** 2, (near - target) ** 2)
                    losses[role] = losses[role] + error / 2 / n_tokens
        losses[role].backward()
    found = {f"head.{n}": p.grad for n, p in head.named_parameters()}
    return found | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_gradient_is_that_of_a_reference_in_float64(tiny_model, reward_model, batch_size):
    recipe = PPORecipe(
        base_model=tiny_model, reward_models=reward_model, dtype="float32", lora_rank=4,
        temperature=0.8, kl="k3", kl_coefficient=0.3, gamma=0.95, gae_lambda=0.9, epochs=1,
        minibatches=1, batch_size=batch_size, max_grad_norm=1e9, max_new_tokens=8,
    )  # fmt: skip
    torch.manual_seed(2)
    roles = Roles(recipe, [reward_model], critic=True)
    for parameter in roles.trained(POLICY).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    rollouts = [
        Rollout([40 + row] * (2 + row), [50 + row + t for t in range(length)], row % 2 == 0)
        for row, length in enumerate([6, 1, 4, 8, 3])
    ]
    read = read_rollouts(roles, rollouts, recipe, pad_id=0)
    # As after some steps: the policy is no longer the one that sampled, nor the critic.
    read = dataclasses.replace(
        read,
        logp=read.logp + 0.3 * torch.randn_like(read.logp) * read.mask,
        values=read.values + 0.3 * torch.randn_like(read.values) * read.mask,
    )
    scores = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    expected = by_hand(
        roles, recipe, rollouts,
        *(part.double().tolist() for part in (read.logp, read.reference_logp, read.values)),
        scores.tolist(),
    )  # fmt: skip

    sums: dict[str, torch.Tensor] = {}
    for role in (POLICY, CRITIC):
        for name, parameter in roles.trained(role).items():
            parameter.requires_grad_(True)
            parameter.register_hook(
                lambda grad, name=name: sums.update({name: sums.get(name, 0) + grad})
            )
    advantages, returns = told_advantages(recipe, scores, read, recipe.kl_coefficient)
    Learner(recipe, roles).update(read, advantages, returns, kl_coefficient=0.3, step=1, pad_id=0)

    assert {name for name in expected if "lora" in name} <= sums.keys()
    assert sums.keys() <= expected.keys()
    for name, gradient in sums.items():
        scale = expected[name].abs().max()
        assert scale > 0
        assert (gradient.double() - expected[name]).abs().max() < 2e-4 * scale + 1e-9, name


# ---- Runs ---------------------------------------------------------------------------------------


class Cancelled(Exception):
    pass


def test_a_broken_run_resumes_to_the_same_weights_and_numbers(
    tiny_model, reward_model, untouched, tmp_path
):
    recipe = PPORecipe(
        base_model=tiny_model, reward_models=reward_model, kl_target=1.0, kl_horizon=20.0, **SMALL
    )
    whole = []
    unbroken = ppo.train(recipe, PROMPTS[:14], PROMPTS[14:], tmp_path / "whole", whole.append)

    cut = []

    def stop(report):
        cut.append(report)
        if report.step == 3 and report.values:
            raise Cancelled

    with pytest.raises(Cancelled):
        ppo.train(recipe, PROMPTS[:14], PROMPTS[14:], tmp_path / "cut", stop)
    resumed = []
    metrics = ppo.train(recipe, PROMPTS[:14], PROMPTS[14:], tmp_path / "cut", resumed.append)

    assert [r.step for r in resumed if r.split == "train" and r.values] == [3, 4]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    critics = [
        load_file(tmp_path / name / "checkpoints" / "checkpoint-4" / "learner.safetensors")
        for name in ("whole", "cut")
    ]
    assert same(*critics)
    assert any(name.startswith("critic/head") for name in critics[0])
    for name in ("score", "score_start", "gain", "kl", "kl_coefficient"):
        assert metrics[name] == unbroken[name]
    assert metrics["kl_coefficient"] != recipe.kl_coefficient
    assert metrics["shared"] == 1
    values = {(r.step, r.split): r.values for r in whole if r.values}
    for report in resumed:
        if report.values:
            assert report.values == values[report.step, report.split]
    left = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()}
    assert left == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "online_dpo"])
def test_a_reward_that_is_easy_to_raise_is_raised_within_the_kl_budget(
    decided_model, tmp_path, algorithm
):
    settings = SMALL | {
        "steps": 8 if algorithm == "ppo" else 6,
        "prompts_per_step": 32 if algorithm == "ppo" else 8,
        "samples_per_prompt": 1 if algorithm == "ppo" else 4,
        "batch_size": 32,
        "learning_rate": 3e-2 if algorithm == "ppo" else 1e-2,
        "critic_learning_rate": 1e-2,
        "eval_every": 16,
        "checkpoint_every": 16,
        "missing_end_penalty": 0.0,
        "kl_coefficient": 0.1 if algorithm == "online_dpo" else 0.02,
    }
    recipe = PPORecipe(base_model=decided_model, algorithm=algorithm, **settings)
    reports = []

    metrics = ppo.train(recipe, PROMPTS, PROMPTS, tmp_path, reports.append, reward=share_of_letters)

    assert metrics["gain"]["low"] > 0.3  # in deviations of the start's scores
    assert 0 < metrics["kl"] < 30
    first, *_others, last = [r.values for r in reports if r.split == "train" and r.values]
    assert first["kl"] == pytest.approx(0, abs=1e-4)  # the policy is its start
    assert last["score"] > first["score"]
    policy, tokenizer = load_policy(str(tmp_path / "model"), dtype="float32")
    assert policy.dtype == torch.float32
    assert tokenizer.eos_token_id == 1


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo"])
def test_algorithms_without_a_critic_train_the_adapter_alone(
    tiny_model, untouched, tmp_path, algorithm
):
    recipe = PPORecipe(
        base_model=tiny_model, algorithm=algorithm, **SMALL | {"samples_per_prompt": 3, "steps": 1}
    )
    metrics = ppo.train(recipe, PROMPTS, [], tmp_path, lambda report: None, reward=share_of_letters)

    found = weights(tmp_path)
    assert all(found[name].abs().max() > 0 for name in found if "lora_B" in name)
    assert metrics["why"] == "no test prompts"
    state = load_file(tmp_path / "checkpoints" / "checkpoint-1" / "learner.safetensors")
    assert {name.split("/")[0] for name in state} == {POLICY}


def test_a_base_in_4_bits_serves_all_roles_and_checkpointing_changes_no_number(
    tiny_model, tmp_path
):
    folder = save_reward_model(tiny_model, tmp_path, seed=4, method="qlora")
    found = []
    for checkpointing in (False, True):
        recipe = PPORecipe(
            base_model=tiny_model, reward_models=folder, method="qlora",
            gradient_checkpointing=checkpointing, **SMALL | {"steps": 1},
        )  # fmt: skip
        out = tmp_path / f"run {checkpointing}"
        metrics = ppo.train(recipe, PROMPTS[:8], [], out, lambda report: None)
        assert metrics["shared"] == 1
        found.append(weights(out))
    assert same(*found)
    assert json.loads((out / "model" / "made_by.json").read_text()) == {"method": "qlora"}


def test_several_scorers_are_each_brought_to_one_scale(tiny_model, reward_model):
    raw = torch.tensor([[1.0, 2.0, 3.0], [100.0, 300.0, 200.0]])
    recipe = PPORecipe(base_model=tiny_model, combine="worst", reward_clip=0.5)
    scale = ppo_scores.reference_scale(recipe, raw)
    assert scale == [(2.0, 1.0), (200.0, 100.0)]
    assert ppo_scores.one_score(recipe, raw, scale).tolist() == [-0.5, 0.0, 0.0]
    assert ppo_scores.penalised(recipe, torch.tensor([0.5, 0.5]), [True, False]).tolist() == [
        0.5,
        -0.5,
    ]

    batch = PPORecipe(base_model=tiny_model, reward_scaling="batch")
    found = ppo_scores.one_score(batch, raw[:1], ppo_scores.reference_scale(batch, raw[:1]))
    assert found.tolist() == [1.0, 2.0, 3.0]  # deviation 1 already, and the mean stays


def test_online_dpo_learns_from_the_best_and_the_worst_response_to_a_prompt():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.3, 0.3, -2.0, -1.0, -1.5])
    assert ppo_scores.best_and_worst(scores, 3) == [1, 0, 7, 6]


def test_members_of_an_ensemble_share_the_base_and_are_scored_apart(tiny_model, tmp_path):
    first = Path(save_reward_model(tiny_model, tmp_path / "1", seed=1))
    second = Path(save_reward_model(tiny_model, tmp_path / "2", seed=2))
    shutil.copytree(second, first / "member-1")
    (first / "made_by.json").write_text(json.dumps({"method": "lora", "members": 2}))
    talks = [[{"role": "user", "content": "Why?"}]] * 2
    texts = ["Because.", "I do not know."]
    recipe = PPORecipe(base_model=tiny_model, reward_models=str(first), dtype="float32")
    scorer, tokenizer = ppo_scores.Scorer(recipe, recipe.folders), load_tokenizer(tiny_model)
    assert len(scorer.shared) == 2
    roles = Roles(recipe, scorer.shared, critic=False)

    shared = scorer.scores(roles, tokenizer, talks, texts)
    scorer.shared, scorer.others = [], [load_reward_model(first, dtype="float32")]
    beside = scorer.scores(roles, tokenizer, talks, texts)

    assert shared.shape == (2, 2)
    assert torch.allclose(shared, beside, atol=1e-5)
    assert not torch.allclose(shared[0], shared[1])


def test_rows_to_one_prompt_share_what_they_begin_with_but_their_last_token():
    prompts = [["a"], ["b"], ["b"], ["b"], ["c"], ["c"]]
    rows = [[1, 2, 3], [1, 2, 4, 5], [1, 2, 6], [1, 2, 4, 7], [1, 2], [1, 2]]
    assert ppo_scores.shared_beginnings(prompts, rows) == [0, 2, 2, 2, 1, 1]


def test_every_pass_over_the_prompts_has_each_of_them_once():
    recipe = PPORecipe(base_model="", prompts_per_step=5, samples_per_prompt=2)
    prompts = [ppo.Prompt([], [i]) for i in range(10)]
    steps = [[p.ids[0] for p in ppo.drawn_prompts(prompts, recipe, step)] for step in (1, 2, 3, 4)]
    assert all(row[::2] == row[1::2] for row in steps)
    assert sorted(steps[0][::2] + steps[1][::2]) == list(range(10))
    assert sorted(steps[2][::2] + steps[3][::2]) == list(range(10))
    assert steps[0] + steps[1] != steps[2] + steps[3]


def test_step_sizes_rise_and_fall_and_are_never_zero():
    recipe = PPORecipe(base_model="", steps=10, warmup_share=0.2)
    found = [ppo_learner.rate_factor(recipe, step) for step in range(1, 11)]
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert found[-1] == pytest.approx(1 / 8)
    assert found[2:] == sorted(found[2:], reverse=True)


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"algorithm": "reinforce"}, "algorithm is 'reinforce'"),
        ({"algorithm": "rloo"}, "samples_per_prompt must be at least 2"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"gae_lambda": 1.5}, r"gae_lambda must lie in \[0, 1\]"),
        ({"prompts_per_step": 2}, "minibatches: 2 responses a step cannot be 4 of them"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(chosen, why):
    with pytest.raises(ValueError, match=why):
        PPORecipe(base_model="", **chosen)


def test_without_anything_that_scores_a_run_does_not_start(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="nothing scores the responses"):
        ppo.train(PPORecipe(base_model=tiny_model), PROMPTS, [], tmp_path, lambda report: None)


def test_what_is_foretold_of_memory_counts_the_roles_as_they_are(
    tiny_model, reward_model, tmp_path
):
    recipe = PPORecipe(base_model=tiny_model, reward_models=reward_model, **SMALL | {"steps": 1})
    metrics = ppo.train(recipe, PROMPTS[:8], [], tmp_path, lambda report: None)
    arch = read_architecture(tiny_model)
    found = {term.name: term.bytes for term in ppo_memory.predict(recipe, arch).terms}
    alone = dataclasses.replace(recipe, algorithm="rloo", samples_per_prompt=2)
    without = {term.name: term.bytes for term in ppo_memory.predict(alone, arch).terms}

    assert found["trained"] == 4 * metrics["trained_parameters"]
    assert found["frozen"] == 4 * ppo_memory.adapter_numbers(reward_model)
    assert found["trained"] - without["trained"] == found["frozen"] + 4  # the critic, and its bias
    assert "beside" not in found
    in_4_bits = dataclasses.replace(recipe, method="qlora")
    beside = {term.name: term.bytes for term in ppo_memory.predict(in_4_bits, arch).terms}
    assert beside["beside"] > found["frozen"]  # it was trained on the base in full
    assert beside["weights"] < found["weights"]
    # A policy that goes on from an adapter holds a frozen copy of it as its reference.
    further = dataclasses.replace(recipe, base_model=str(tmp_path / "model"))
    again = {term.name: term.bytes for term in ppo_memory.predict(further, arch).terms}
    assert again["frozen"] - found["frozen"] == 4 * ppo_memory.adapter_numbers(further.base_model)


def test_suggestions_fit_and_say_what_they_give_up(tiny_model):
    recipe = PPORecipe(base_model=tiny_model, dtype="float32", max_length=256)
    arch = read_architecture(tiny_model)
    peak = ppo_memory.predict(recipe, arch, device="cpu").peak
    found = ppo_memory.suggestions(recipe, arch, peak - 1, device="cpu")

    assert found[0].settings == {"batch_size": 4, "rollout_batch_size": 32}
    assert found[0].same_result
    assert all(suggestion.peak < peak for suggestion in found)
    assert [s.same_result for s in found] == [True, False, False]
    assert "algorithm" in found[1].settings


KILL_SEED = int(os.environ.get("PREFLOOP_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of the moments at which processes are killed; a failing test prints it."""


def killed_at(moment: float, run) -> bool:
    """A forked process that trains and dies by SIGKILL: at its so many-th report where `moment` is
    whole, else after so many seconds, whatever it does then. Whether it had not ended by then."""
    reports = 0

    def on_step(report):
        nonlocal reports
        reports += 1
        if reports == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    if not (pid := os.fork()):
        try:
            run(on_step)
        finally:
            os._exit(0)
    if moment != int(moment):
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)  # a process that has ended waits for us, and feels nothing
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tiny_model, reward_model, tmp_path):
    """In a rollout, in scoring, between minibatches, in a look, while a checkpoint is written."""
    watching = save_reward_model(tiny_model, tmp_path / "watching", seed=5)
    recipe = PPORecipe(
        base_model=tiny_model, reward_models=reward_model, holdout_reward_model=watching,
        on_alarm="note", kl_budget=1e-6, **SMALL | {"checkpoint_every": 1, "eval_every": 1},
    )  # fmt: skip
    reports = []

    def run(folder, on_step):
        return ppo.train(recipe, PROMPTS[:14], PROMPTS[14:], tmp_path / folder, on_step)

    began = time.monotonic()
    unbroken = run("whole", reports.append)
    seconds = time.monotonic() - began
    chance = random.Random(KILL_SEED)
    moments = [chance.randint(2, len(reports) // 2), chance.uniform(0.2, 0.8) * seconds]
    print(f"PREFLOOP_TEST_SEED={KILL_SEED}: killed at {moments}")
    assert killed_at(moments[0], lambda on_step: run("cut", on_step))
    killed_at(moments[1], lambda on_step: run("cut", on_step))
    resumed = run("cut", lambda report: None)

    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    session = ("seconds", "seconds_in", "response_tokens", "longest")
    assert {k: v for k, v in resumed.items() if k not in session} == {
        k: v for k, v in unbroken.items() if k not in session
    }
    best = [load_file(tmp_path / name / "best.safetensors") for name in ("whole", "cut")]
    assert same(*best)


def test_a_judge_rates_by_the_digits_it_would_say(tiny_model, tmp_path):
    rater = ratings.Rater(tiny_model, "Be calm.", dtype="float32", batch_size=2)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    texts = ["A calm place.", "No.", "A calm place."]
    found = rater.ratings(prompts, texts)

    row = rater._asked(PROMPTS[1], "No.")
    with torch.no_grad():
        probs = rater.model(input_ids=torch.tensor([row])).logits[0, -1].softmax(-1)
    each = [float(probs[tokens].sum()) for tokens in rater.digits]
    by_hand = sum(g * p for g, p in zip(range(1, 10), each, strict=True)) / sum(each)
    assert found[1] == pytest.approx((by_hand - 5) / 4, abs=1e-5)
    assert found[0] == pytest.approx(found[2], abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-6)

    recipe = PPORecipe(
        base_model=tiny_model, judge_model=tiny_model, algorithm="rloo",
        **SMALL | {"steps": 1, "samples_per_prompt": 2},
    )  # fmt: skip
    metrics = ppo.train(recipe, PROMPTS[:8], [], tmp_path, lambda report: None)
    assert metrics["n_steps"] == 1
    assert all(w.abs().max() > 0 for name, w in weights(tmp_path).items() if "lora_B" in name)
