"""A run that was killed and went on ends with the weights of a run that was left in peace."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import dpo, quiet_star, reward_model, sft
from training.ml.config import DPORecipe, PretrainRecipe, RewardRecipe, SFTRecipe
from training.ml.quiet_star_config import QuietStarRecipe
from training.ml.steps import resume_point

PAIRS = polite_pairs(32)
TEXTS = [pair.chosen[0]["content"] for pair in PAIRS]
# Two epochs of six batches.
SETTINGS = {
    "batch_size": 2,
    "gradient_accumulation": 2,
    "epochs": 2,
    "lora_dropout": 0.1,
    "dtype": "float32",
    "checkpoint_every": 3,
    "seed": 11,
}
N_STEPS = 12
FROM_TEXT = {"text": "polite.txt"}
SHORT = {"thought_length": 1, "true_tokens": 1}
TRAIN = {
    "reward": (reward_model.train, RewardRecipe, {}, PAIRS),
    "dpo": (dpo.train, DPORecipe, {}, PAIRS),
    "sft": (sft.train, SFTRecipe, {}, PAIRS),
    "pretrain": (sft.pretrain, PretrainRecipe, FROM_TEXT | {"packing": False}, TEXTS),
    "quiet_star": (quiet_star.train, QuietStarRecipe, FROM_TEXT | SHORT, TEXTS),
}
SEED = int(os.environ.get("PREFLOOP_TEST_SEED") or random.SystemRandom().randrange(10**6))
"""Of the moments at which processes are killed; a failing test prints it."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the adapter, and of what a model that thinks has beside it."""
    files = sorted((folder / "model").glob("*.safetensors"))
    assert files
    return {f"{f.name} {name}": one for f in files for name, one in load_file(f).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def killed_in(step: int, moment: str, train, recipe, rows, folder: Path) -> None:
    """A forked process that trains, and ends by SIGKILL when it reports this moment of a step.

    Forked, because a process that has imported torch already dies in its work, not in its imports.
    """

    def on_step(report):
        moments = {
            "step": report.split == "train" and report.values,
            "checkpoint": report.checkpoint,
            "measurement": report.split == "test",
        }
        if report.step >= step and moments[moment]:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        try:
            train(recipe, rows[:24], rows[24:], folder, on_step)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(TRAIN))
def test_a_run_killed_at_a_random_step_resumes_to_the_same_weights_and_metrics(
    tiny_model, tmp_path, kind
):
    train, recipe_class, more, rows = TRAIN[kind]
    recipe = recipe_class(base_model=tiny_model, **SETTINGS, **more)
    unbroken = train(recipe, rows[:24], rows[24:], tmp_path / "whole", lambda report: None)
    chance = random.Random(f"{SEED} {kind}")
    step, moment = chance.randint(1, N_STEPS), chance.choice(["step", "checkpoint", "measurement"])
    print(f"PREFLOOP_TEST_SEED={SEED}: {kind} is killed in step {step}, at its {moment}")

    killed_in(step, moment, train, recipe, rows, tmp_path / "cut")
    went_on_from = resume_point(tmp_path / "cut")
    reports = []
    resumed = train(recipe, rows[:24], rows[24:], tmp_path / "cut", reports.append)

    first = int(went_on_from.rsplit("-", 1)[1]) + 1 if went_on_from else 1
    steps = [r.step for r in reports if r.split == "train" and r.values]
    assert steps == list(range(first, N_STEPS + 1))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    del resumed["seconds"], unbroken["seconds"]
    assert resumed == unbroken


class Cancelled(Exception):
    pass


def stop_at(step: int):
    def on_step(report):
        if report.step >= step:
            raise Cancelled

    return on_step


def test_a_cancelled_run_over_a_4_bit_base_resumes_to_the_same_weights(tiny_model, tmp_path):
    recipe = RewardRecipe(base_model=tiny_model, method="qlora", **SETTINGS)
    reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "whole", lambda report: None)

    with pytest.raises(Cancelled):
        reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "cut", stop_at(7))
    reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "cut", lambda report: None)

    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_finished_run_called_again_trains_no_further_and_passes_over_what_a_kill_cut_short(
    tiny_model, tmp_path
):
    recipe = RewardRecipe(base_model=tiny_model, **SETTINGS)
    first = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path, lambda report: None)
    before = weights(tmp_path)
    half_written = tmp_path / "checkpoints" / "checkpoint-99"
    half_written.mkdir()
    (half_written / "adapter_model.safetensors").write_bytes(b"half")
    assert Path(resume_point(tmp_path) or "").name == "checkpoint-12"
    assert not half_written.exists()

    reports = []
    again = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path, reports.append)

    assert [r for r in reports if r.split == "train" and r.values] == []
    assert same(before, weights(tmp_path))
    assert again["accuracy"] == first["accuracy"]
