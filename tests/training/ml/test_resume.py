"""A run that was killed and went on ends with the weights of a run that was left in peace."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from django.conf import settings
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model
from training.ml.config import DPORecipe, RewardRecipe
from training.ml.steps import resume_point

PAIRS = polite_pairs(32)
# Two epochs of six batches: the kill falls into the second, past a checkpoint.
SETTINGS = {
    "batch_size": 2,
    "gradient_accumulation": 2,
    "epochs": 2,
    "lora_dropout": 0.1,
    "dtype": "float32",
    "checkpoint_every": 3,
    "seed": 11,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_resumes_to_the_same_weights_and_metrics(tiny_model, tmp_path):
    recipe = RewardRecipe(base_model=tiny_model, **SETTINGS)
    unbroken = reward_model.train(
        recipe, PAIRS[:24], PAIRS[24:], tmp_path / "whole", lambda report: None
    )
    program = f"""
        import time
        from pathlib import Path
        from tests.training.tiny import polite_pairs
        from training.ml import reward_model
        from training.ml.config import RewardRecipe

        def on_step(report):
            if report.step == 8 and report.split == "train":
                print("at step 8", flush=True)
                time.sleep(60)

        pairs = polite_pairs(32)
        recipe = RewardRecipe(base_model={tiny_model!r}, **{SETTINGS!r})
        reward_model.train(recipe, pairs[:24], pairs[24:], Path({str(tmp_path / "cut")!r}), on_step)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=settings.BASE_DIR,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert child.stdout is not None
    assert any("at step 8" in line for line in child.stdout)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert Path(resume_point(tmp_path / "cut") or "").name == "checkpoint-6"

    reports = []
    resumed = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "cut", reports.append)

    assert [r.step for r in reports if r.split == "train" and r.values] == [7, 8, 9, 10, 11, 12]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    for name in ("accuracy", "log_loss", "margin"):
        assert resumed[name] == unbroken[name]


class Cancelled(Exception):
    pass


def stop_at(step: int):
    def on_step(report):
        if report.step >= step:
            raise Cancelled

    return on_step


def test_a_cancelled_dpo_run_resumes_to_the_same_weights(tiny_model, tmp_path):
    recipe = DPORecipe(base_model=tiny_model, **SETTINGS)
    dpo.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "whole", lambda report: None)

    for step in (2, 7):  # before the first checkpoint, and past the second one
        folder = tmp_path / f"cut at {step}"
        with pytest.raises(Cancelled):
            dpo.train(recipe, PAIRS[:24], PAIRS[24:], folder, stop_at(step))
        dpo.train(recipe, PAIRS[:24], PAIRS[24:], folder, lambda report: None)

        assert same(weights(tmp_path / "whole"), weights(folder))


def test_a_cancelled_run_over_a_4_bit_base_resumes_to_the_same_weights(tiny_model, tmp_path):
    recipe = RewardRecipe(base_model=tiny_model, method="qlora", **SETTINGS)
    reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "whole", lambda report: None)

    with pytest.raises(Cancelled):
        reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "cut", stop_at(7))
    reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "cut", lambda report: None)

    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_checkpoint_cut_short_by_a_kill_is_passed_over_and_removed(tiny_model, tmp_path):
    recipe = RewardRecipe(base_model=tiny_model, **SETTINGS)
    reward_model.train(recipe, PAIRS[:24], [], tmp_path, lambda report: None)
    half_written = tmp_path / "checkpoints" / "checkpoint-99"
    half_written.mkdir()
    (half_written / "adapter_model.safetensors").write_bytes(b"half")

    assert Path(resume_point(tmp_path) or "").name == "checkpoint-12"
    assert not half_written.exists()


def test_a_finished_run_called_again_trains_no_further(tiny_model, tmp_path):
    recipe = RewardRecipe(base_model=tiny_model, **SETTINGS)
    first = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path, lambda report: None)
    before = weights(tmp_path)

    reports = []
    again = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path, reports.append)

    assert [r for r in reports if r.split == "train" and r.values] == []
    assert same(before, weights(tmp_path))
    assert again["accuracy"] == first["accuracy"]
