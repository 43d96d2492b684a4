from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import reward_model
from training.ml.config import RewardRecipe
from training.ml.loading import load_reward_model

PAIRS = polite_pairs(32)


def train(folder: Path, base: str, **settings):
    recipe = RewardRecipe(
        **{"base_model": base, "max_steps": 4, "batch_size": 4, "dtype": "float32"} | settings
    )
    reports = []
    metrics = reward_model.train(recipe, PAIRS[:24], PAIRS[24:], folder, reports.append)
    return metrics, reports, load_file(folder / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_model_learns_what_was_preferred_and_says_so_with_an_interval(
    tiny_model, untouched, tmp_path, method
):
    metrics, _reports, _weights = train(
        tmp_path, tiny_model, method=method, max_steps=20, learning_rate=2e-3
    )

    assert metrics["accuracy"]["value"] == 1.0
    assert metrics["accuracy"]["n"] == 8
    assert metrics["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 8))  # exact, all of n right
    assert metrics["log_loss"] < 0.5
    assert metrics["trained_parameters"] < metrics["parameters"]


def test_head_norms_and_adapters_are_kept_in_float32_finer_than_bfloat16(tiny_model, tmp_path):
    _metrics, _reports, weights = train(tmp_path, tiny_model, method="qlora", dtype="bfloat16")

    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    norms = {name: tensor for name, tensor in weights.items() if "norm" in name}
    assert len(norms) == 5
    for name, tensor in weights.items():
        if "lora_A" in name or "norm" in name or "score" in name:
            assert not torch.equal(tensor, tensor.bfloat16().float()), f"{name} was rounded"
    assert all(not torch.equal(tensor, torch.ones_like(tensor)) for tensor in norms.values())
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_every_step_is_reported_and_the_test_pairs_are_measured_before_the_first(
    tiny_model, tmp_path
):
    metrics, reports, _weights = train(tmp_path, tiny_model, eval_every=2, checkpoint_every=2)

    points = [(report.split, report.step) for report in reports if report.values]
    assert [step for split, step in points if split == "train"] == [1, 2, 3, 4]
    assert [step for split, step in points if split == "test"] == [0, 2, 4]
    assert {report.n_steps for report in reports} == {4}
    assert [report.step for report in reports if report.checkpoint] == [2, 4]
    last = [report for report in reports if report.split == "test" and report.values][-1]
    assert last.values["accuracy"] == metrics["accuracy"]["value"]
    assert last.values["loss"] == metrics["log_loss"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny_model, tmp_path):
    _m, first_reports, first = train(tmp_path / "1", tiny_model, seed=3, lora_dropout=0.2)
    _m, again_reports, again = train(tmp_path / "2", tiny_model, seed=3, lora_dropout=0.2)
    _m, _other_reports, other = train(tmp_path / "3", tiny_model, seed=4, lora_dropout=0.2)

    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [r.values for r in first_reports] == [r.values for r in again_reports]
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_adapters_dropout_is_on_though_the_bases_is_off(tiny_model, tmp_path):
    _m, _r, without = train(tmp_path / "1", tiny_model)
    _m, _r, with_dropout = train(tmp_path / "2", tiny_model, lora_dropout=0.5)

    assert not all(torch.equal(without[name], with_dropout[name]) for name in without)


def test_a_saved_reward_model_scores_as_it_did_when_it_was_measured(tiny_model, tmp_path):
    metrics, _reports, _weights = train(tmp_path, tiny_model)

    model, tokenizer = load_reward_model(tmp_path / "model", dtype="float32")
    chosen = reward_model.score(model, tokenizer, [p.prompt + p.chosen for p in PAIRS[24:]])
    rejected = reward_model.score(model, tokenizer, [p.prompt + p.rejected for p in PAIRS[24:]])

    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(metrics["margin"], abs=1e-5)


def test_padding_changes_no_score(tiny_model, tmp_path):
    train(tmp_path, tiny_model, max_steps=1)
    model, tokenizer = load_reward_model(tmp_path / "model", dtype="float32")
    short = PAIRS[0].prompt + PAIRS[0].chosen
    long = [*PAIRS[0].prompt, {"role": "assistant", "content": "A very long answer. " * 5}]

    together = reward_model.score(model, tokenizer, [short, long])

    assert together[0] == pytest.approx(reward_model.score(model, tokenizer, [short])[0], abs=1e-5)


def test_pairs_that_are_too_long_are_counted_and_none_at_all_is_an_error(tiny_model, tmp_path):
    long = [{"role": "assistant", "content": "far too long " * 30}]
    too_long = [p.__class__(p.prompt, long, p.rejected) for p in PAIRS[:3]]
    recipe = RewardRecipe(base_model=tiny_model, max_steps=1, max_length=120)

    metrics = reward_model.train(
        recipe, PAIRS[:8] + too_long, PAIRS[8:10] + too_long[:1], tmp_path, lambda report: None
    )

    assert (metrics["n_train"], metrics["too_long_train"]) == (8, 3)
    assert (metrics["n"], metrics["too_long_test"]) == (2, 1)
    with pytest.raises(ValueError, match="no training pair of 3 fits max_length=120"):
        reward_model.train(recipe, too_long, [], tmp_path / "none", lambda report: None)


def test_a_loss_that_is_not_a_number_ends_the_run_with_advice(tiny_model, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not a number at step .*: lower learning_rate"):
        train(
            tmp_path, tiny_model, learning_rate=1e30, warmup_share=0.0, max_grad_norm=1e30,
            max_steps=6,
        )  # fmt: skip
