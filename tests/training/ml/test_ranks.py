"""Several processes that share each step against one that does all of it, with gloo on the CPU."""

import json
import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import dpo, ranks, reward_model, sft
from training.ml.config import DPORecipe, RewardRecipe, SFTRecipe
from training.ml.steps import trainer_settings

PAIRS = polite_pairs(36)
TRAIN = {
    "reward": (reward_model.train, RewardRecipe),
    "dpo": (dpo.train, DPORecipe),
    "sft": (sft.train, SFTRecipe),
}
# Three parts a step, the last step of an epoch one: they never come out even among two processes.
SETTINGS = {
    "batch_size": 2,
    "gradient_accumulation": 3,
    "max_steps": 20,
    "dtype": "float32",
    "learning_rate": 5e-3,
    "checkpoint_every": 10,
    "eval_every": 10,
    "seed": 7,
}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def trained(kind: str, base: str, folder: Path, **changes) -> tuple[list, dict]:
    """The reports of a run that have numbers, and what it is worth at its end."""
    train, recipe_class = TRAIN[kind]
    recipe = recipe_class(base_model=base, **SETTINGS | changes)
    reports = []

    def on_step(report):
        if report.values:
            reports.append((report.step, report.split, report.values, report.cost.get("tokens")))

    metrics = train(recipe, PAIRS[:29], PAIRS[29:], folder, on_step)
    return reports, metrics


def by_two(kind: str, base: str, folder: Path, env=(), **changes) -> tuple[list, dict]:
    """The same by two processes, forked as accelerate's launcher would start them: what the first
    one reports. The second one must report nothing that is kept, and write nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **dict(env)}
            ranks.meet()
            found = trained(kind, base, folder, **changes)
            (folder / f"{rank}.json").write_text(json.dumps(found))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0]
    assert len(first[0]) == len(second[0])
    return first[0], first[1]


def assert_same(one, two) -> None:
    (reports, metrics), (shared, shared_metrics) = one, two
    assert [(step, split, tokens) for step, split, _v, tokens in reports] == [
        (step, split, tokens) for step, split, _v, tokens in shared
    ]
    for (step, split, values, _t), (_s, _p, others, _o) in zip(reports, shared, strict=True):
        norm, other_norm = (each.pop("grad_norm", 0.0) for each in (values, others))
        assert others == pytest.approx(values, rel=0, abs=1e-5), (step, split)
        assert other_norm == pytest.approx(norm, rel=1e-5, abs=1e-5), (step, split)
    kept = {n: v for n, v in metrics.items() if isinstance(v, float) and n != "seconds"}
    assert {n: shared_metrics[n] for n in kept} == pytest.approx(kept, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_steps"), [("reward", 20), ("dpo", 20), ("sft", 6)])
def test_two_processes_find_the_losses_of_one_at_the_same_batch(
    tiny_model, tmp_path, kind, n_steps
):
    one = trained(kind, tiny_model, tmp_path / "one", max_steps=n_steps)

    two = by_two(kind, tiny_model, tmp_path / "two", max_steps=n_steps)

    assert_same(one, two)
    assert sum(split == "train" for _step, split, _values, _tokens in one[0]) == n_steps
    weights, shared = (
        load_file(tmp_path / n / "model" / "adapter_model.safetensors") for n in ("one", "two")
    )
    assert weights.keys() == shared.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(shared[name], weight, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_two_processes_that_hold_shares_of_the_weights_find_the_losses_of_one(tiny_model, tmp_path):
    changes = {"method": "full", "learning_rate": 1e-3, "max_steps": 8}
    one = trained("reward", tiny_model, tmp_path / "one", **changes)

    two = by_two("reward", tiny_model, tmp_path / "two", env=FSDP, **changes)

    assert_same(one, two)
    weights, shared = (
        load_file(tmp_path / n / "model" / "model.safetensors") for n in ("one", "two")
    )
    assert weights.keys() == shared.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(shared[name], weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed divides steps by itself"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "write fsdp_version: 2"),
        (FSDP | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "write fsdp_state_dict_type: FULL"),
    ],
)
def test_ways_of_sharing_that_would_change_the_numbers_or_the_checkpoints_are_refused(
    monkeypatch, env, words
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=words):
        ranks.meet()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"method": "qlora"}, "method: qlora"), ({"dtype": "bfloat16"}, "dtype:")],
)
def test_what_fsdp_cannot_hold_in_shares_is_refused(monkeypatch, tmp_path, changes, words):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    recipe = RewardRecipe(base_model="any", **{"dtype": "float32"} | changes)

    with pytest.raises(ValueError, match=words):
        trainer_settings(recipe, tmp_path, 8)


def test_a_part_goes_to_one_process_and_no_part_to_none(monkeypatch):
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 3)

    def shares(n_parts: int, *, evenly: bool) -> list[list]:
        found = []
        for rank in range(3):
            monkeypatch.setattr(ranks.dist, "get_rank", lambda rank=rank: rank)
            found.append(ranks.share_of(range(n_parts), evenly=evenly))
        return found

    for n_parts in range(1, 8):
        for evenly in (False, True):
            found = shares(n_parts, evenly=evenly)
            counted = sorted(part for mine in found for part, counts in mine if counts)
            assert counted == list(range(n_parts))
            assert len({len(mine) for mine in found}) == 1 or not evenly
