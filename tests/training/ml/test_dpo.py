import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import dpo
from training.ml.config import DPORecipe
from training.ml.data import tokenize_pair
from training.ml.loading import load_causal, load_policy, load_tokenizer
from training.ml.logprobs import response_logps

PAIRS = polite_pairs(32)


def train(folder: Path, base: str, **settings):
    recipe = DPORecipe(
        **{"base_model": base, "max_steps": 4, "batch_size": 4, "dtype": "float32"} | settings
    )
    reports = []
    metrics = dpo.train(recipe, PAIRS[:24], PAIRS[24:], folder, reports.append)
    return metrics, reports


def test_log_probabilities_of_responses_equal_those_from_the_full_logits(tiny_model):
    model, tokenizer = load_causal(tiny_model), load_tokenizer(tiny_model)
    pairs = [tokenize_pair(pair, tokenizer) for pair in PAIRS[:3]]

    found = response_logps(
        model,
        [pair.prompt_ids for pair in pairs],
        [pair.chosen_ids for pair in pairs],
        tokenizer.pad_token_id,
    )

    for pair, logp in zip(pairs, found, strict=True):
        ids = torch.tensor([pair.prompt_ids + pair.chosen_ids])
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(pair.prompt_ids)
        by_hand = sum(logps[at - 1, ids[0, at]] for at in range(start, ids.shape[1]))
        assert logp.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_before_the_first_step_policy_and_reference_are_one(tiny_model, tmp_path):
    _metrics, reports = train(tmp_path, tiny_model, warmup_share=0.5)

    start = next(report for report in reports if report.split == "test" and report.values)
    first = next(report for report in reports if report.split == "train")
    assert (start.step, start.values["margin"]) == (0, 0.0)
    assert start.values["loss"] == pytest.approx(math.log(2))
    assert first.values["loss"] == pytest.approx(math.log(2))
    assert start.values["accuracy"] == 0.5  # all ties, each counting half


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_policy_moves_towards_the_chosen_responses(tiny_model, untouched, tmp_path, method):
    metrics, _reports = train(tmp_path, tiny_model, method=method, max_steps=10, learning_rate=1e-3)

    assert metrics["accuracy"]["value"] == 1.0
    assert metrics["margin"] == pytest.approx(
        0.1 * (metrics["chosen_logp_change"] - metrics["rejected_logp_change"]), rel=1e-4
    )
    assert metrics["chosen_logp_change"] > metrics["rejected_logp_change"]
    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert sum("norm" in name for name in weights) == 5


def test_a_saved_policy_reloads_to_the_measured_log_probabilities(tiny_model, tmp_path):
    metrics, _reports = train(tmp_path, tiny_model)
    policy, tokenizer = load_policy(str(tmp_path / "model"), dtype="float32")
    base = load_causal(tiny_model, dtype="float32")
    pairs = [tokenize_pair(pair, tokenizer) for pair in PAIRS[24:]]

    changes = []
    for model, sign in ((policy, 1), (base, -1)):
        logps = response_logps(
            model,
            [pair.prompt_ids for pair in pairs],
            [pair.chosen_ids for pair in pairs],
            tokenizer.pad_token_id,
        )
        changes.append(sign * logps.mean().item())

    assert sum(changes) == pytest.approx(metrics["chosen_logp_change"], abs=1e-4)


def test_a_trained_policy_can_be_the_base_of_the_next_run(tiny_model, tmp_path):
    train(tmp_path / "first", tiny_model, learning_rate=1e-3)

    _metrics, reports = train(tmp_path / "second", str(tmp_path / "first" / "model"))

    assert reports[-1].step == 4
    with pytest.raises(
        ValueError, match="is an adapter: merge it into its base before using QLoRA"
    ):
        train(tmp_path / "third", str(tmp_path / "first" / "model"), method="qlora")
