"""What a step learns is its rows, however they are divided; and little of it is padding."""

import random

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model, sft
from training.ml.batches import parts_of, passes_of, steps_of, useful_share
from training.ml.config import RECIPES
from training.ml.data import Pair, tokenize_pairs
from training.ml.loading import load_causal, load_scorer, load_tokenizer
from training.ml.logprobs import batch_logps

TRAIN = {"reward": reward_model.train, "dpo": dpo.train, "sft": sft.train}
DRAW = random.Random(0)
LENGTHS = [DRAW.randint(10, 900) for _row in range(500)]


def uneven(n: int) -> list[Pair]:
    """Pairs whose prompts are of very different lengths."""
    return [
        Pair([{"role": "user", "content": "why " * (1 + 7 * (at % 5))}], p.chosen, p.rejected)
        for at, p in enumerate(polite_pairs(n))
    ]


@pytest.mark.parametrize("by_length", [True, False])
def test_every_pass_holds_each_row_once_in_an_order_of_its_seed(by_length):
    steps = steps_of(LENGTHS, 8, 126, 3, by_length=by_length)

    assert len(steps) == 126
    for epoch in (steps[:63], steps[63:]):
        assert sorted(at for step in epoch for at in step) == list(range(500))
    assert steps[:63] != steps[63:]
    assert steps == steps_of(LENGTHS, 8, 126, 3, by_length=by_length)
    assert steps != steps_of(LENGTHS, 8, 126, 4, by_length=by_length)
    assert steps[:20] == steps_of(LENGTHS, 8, 20, 3, by_length=by_length)


def test_steps_by_length_compute_little_padding():
    shares = {}
    for by_length in (True, False):
        steps = steps_of(LENGTHS, 8, 63, 0, by_length=by_length)
        shares[by_length] = useful_share([[length] for length in LENGTHS], steps)

    assert shares[True] > 0.9
    assert shares[False] < 0.8
    assert useful_share([[3], [1]], [[0, 1]]) == 4 / 6


def test_parts_keep_to_the_budget_longest_first_and_lose_no_row():
    parts = parts_of(LENGTHS, most_rows=8, most_tokens=2000, each=2)

    assert sorted(at for part in parts for at in part) == list(range(500))
    for part in parts:
        longest = max(LENGTHS[at] for at in part)
        assert 2 * len(part) * longest <= 2000 or len(part) == 1
    longest_of_part = [LENGTHS[part[0]] for part in parts]
    assert longest_of_part == sorted(longest_of_part, reverse=True)
    assert [len(part) for part in parts_of(LENGTHS[:20], most_rows=8)] == [8, 8, 4]


def test_a_second_pass_is_made_where_it_saves_enough_padding():
    assert passes_of([900, 100, 880, 90, 120]) == [[0, 2], [4, 1, 3]]
    assert passes_of([90, 10, 88, 9, 12]) == [[0, 2, 4, 1, 3]]  # too little to be worth a pass
    assert passes_of([900, 850, 880]) == [[0, 2, 1]]
    assert (passes_of([5]), passes_of([])) == ([[0]], [])
    assert useful_share([[900, 100]] * 4, [[0, 1, 2, 3]]) == 1.0


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_two_passes_give_the_numbers_and_gradients_of_one(kind, tiny_model, monkeypatch):
    model, tokenizer = load_causal(tiny_model, dtype="float32"), load_tokenizer(tiny_model)
    if kind == "reward":
        model = load_scorer(tiny_model, dtype="float32")
        model.config.pad_token_id = tokenizer.pad_token_id
    pairs, _left_out = tokenize_pairs(uneven(10), tokenizer, 256)
    found = []
    for saved in (10**9, 1):
        monkeypatch.setattr("training.ml.batches.SAVED_POSITIONS", saved)
        model.zero_grad()
        if kind == "reward":
            recipe = RECIPES[kind](base_model=tiny_model, dtype="float32")
            rewards_of, batch_of = reward_model._whole_model(recipe, tokenizer)
            numbers = rewards_of(model, batch_of(pairs))
        else:
            numbers = batch_logps(model, dpo._pair_batch(pairs, tokenizer.pad_token_id))[0]
        numbers.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([numbers.detach(), *gradients])

    assert len(passes_of([p.n_tokens for p in pairs])) == 2
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-6


@pytest.mark.parametrize("kind", TRAIN)
def test_a_step_is_the_same_however_it_is_divided(kind, tiny_model, tmp_path):
    pairs, found = uneven(10), []
    for name, settings in {
        "whole": {"batch_size": 5},
        "by tokens": {"batch_size": 1, "gradient_accumulation": 5, "batch_tokens": 150},
        "computed twice": {"batch_size": 5, "gradient_checkpointing": True},
    }.items():
        recipe = RECIPES[kind](
            base_model=tiny_model,
            max_steps=2,
            dtype="float32",
            lora_rank=2,
            checkpoint_every=2,
            **settings,
        )
        reports = []
        TRAIN[kind](recipe, pairs, [], tmp_path / name, reports.append)
        losses = [r.values["loss"] for r in reports if r.values]
        found.append((losses, load_file(tmp_path / name / "model" / "adapter_model.safetensors")))

    (losses, weights), *others = found
    for other_losses, other_weights in others:
        assert other_losses == pytest.approx(losses, abs=1e-5)
        for name, tensor in weights.items():
            # Adam's first steps go by the sign: where a gradient is nearly 0, rounding decides.
            assert torch.allclose(tensor, other_weights[name], atol=1e-3), name
