import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from tests.training.tiny import SENTENCES, polite_pairs
from training.ml import dpo, sft
from training.ml.batches import steps_of
from training.ml.config import DPORecipe, PretrainRecipe, SFTRecipe, make_recipe
from training.ml.data import (
    Pair,
    TokenExample,
    longest_first,
    text_pieces,
    to_imitate,
    tokenize_examples,
)
from training.ml.evaluation import token_metrics
from training.ml.loading import adapter_config, load_causal, load_policy, load_tokenizer
from training.ml.logprobs import response_logps
from training.ml.methods import why_not
from training.ml.steps import trainer_settings

PAIRS = polite_pairs(36)
QUICK = {"max_steps": 4, "batch_size": 4, "dtype": "float32"}


def train(folder: Path, base: str, on_step=None, **settings):
    recipe = SFTRecipe(**{"base_model": base} | QUICK | settings)
    reports = []
    metrics = sft.train(recipe, PAIRS[:24], PAIRS[24:], folder, on_step or reports.append)
    return metrics, [report for report in reports if report.values]


def losses(reports, split: str = "train") -> list[float]:
    return [report.values["loss"] for report in reports if report.split == split]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def tokens_of(pairs, base: str):
    examples, _left_out = to_imitate(pairs, "chosen")
    return tokenize_examples(examples, load_tokenizer(base), 256)[0]


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_mean_over_tokens_worked_by_hand(
    tiny_model, tmp_path, prompt_weight
):
    _metrics, reports = train(
        tmp_path, tiny_model, batch_size=24, max_steps=1, prompt_loss_weight=prompt_weight
    )

    model, total, whole = load_causal(tiny_model, dtype="float32"), 0.0, 0.0
    for example in tokens_of(PAIRS[:24], tiny_model):
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        for at in range(1, ids.shape[1]):
            weight = prompt_weight if at < len(example.prompt_ids) else 1.0
            total -= weight * logps[at - 1, ids[0, at]].item()
            whole += weight
    assert losses(reports) == [pytest.approx(total / whole, rel=1e-5)]


@pytest.mark.parametrize(("prompt_weight", "responses_only"), [(0.0, True), (1.0, False)])
def test_with_weights_of_0_and_1_a_run_is_one_of_the_stock_trainer(
    tiny_model, tmp_path, prompt_weight, responses_only
):
    settings = {"gradient_accumulation": 2, "max_steps": 3, "learning_rate": 1e-3}
    _metrics, reports = train(
        tmp_path / "ours", tiny_model, prompt_loss_weight=prompt_weight, **settings
    )

    recipe = SFTRecipe(**{"base_model": tiny_model} | QUICK | settings)
    examples = tokens_of(PAIRS[:24], tiny_model)
    steps = steps_of([e.n_tokens for e in examples], 8, 3, recipe.seed, by_length=True)
    rows = [
        {
            "input_ids": e.prompt_ids + e.response_ids,
            "completion_mask": [0] * len(e.prompt_ids) + [1] * len(e.response_ids),
        }
        for e in (examples[at] for step in steps for at in step)
    ]
    found = []

    class Listen(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            found.extend([logs["loss"]] if "loss" in logs else [])

    set_seed(recipe.seed)
    base = load_causal(tiny_model, dtype="float32")
    stock = SFTTrainer(
        model=base,
        peft_config=adapter_config(base, recipe, task="CAUSAL_LM"),
        args=SFTConfig(
            completion_only_loss=responses_only,
            max_length=None,
            train_sampling_strategy="sequential",
            **trainer_settings(recipe, tmp_path / "stock", 24),
        ),
        processing_class=load_tokenizer(tiny_model),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Listen()],
    )
    stock.train()

    assert losses(reports) == pytest.approx(found, rel=1e-6)
    assert found[2] < found[0]


def test_packed_conversations_give_the_loss_that_they_give_alone(tiny_model, tmp_path):
    settings = {"batch_size": 24, "max_steps": 1, "max_length": 200}
    _metrics, alone = train(tmp_path / "alone", tiny_model, **settings)
    _metrics, packed = train(tmp_path / "packed", tiny_model, packing=True, **settings)

    assert losses(packed) == pytest.approx(losses(alone), rel=1e-5)


def test_packing_fills_rows_without_cutting_anything():
    examples = [TokenExample([0] * n, [1] * n, str(n)) for n in (1, 5, 4, 2, 3, 3)]

    rows = sft.pack(examples, 12)

    assert [[e.n_tokens for e in row] for row in rows] == [[10, 2], [8, 4], [6, 6]]
    assert longest_first(examples) == longest_first([e for row in rows for e in row])


def test_a_model_that_would_mix_up_packed_conversations_is_refused(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2)
    tokenizer.save_pretrained(tmp_path / "bloom")
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")

    with pytest.raises(ValueError, match="packing: this model mixes up what is packed"):
        train(tmp_path / "run", str(tmp_path / "bloom"), packing=True)


# A run --------------------------------------------------------------------------------------------


def test_the_policy_learns_its_base_stays_and_the_saved_one_gives_the_measured_loss(
    tiny_model, untouched, tmp_path
):
    metrics, reports = train(tmp_path, tiny_model, max_steps=8, learning_rate=3e-3)

    assert metrics["change"]["high"] < 0
    assert metrics["loss"]["n"] == metrics["n"] == 12
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(metrics["loss"]["value"]))
    assert (metrics["n_train"], metrics["n_steps"]) == (24, 8)
    assert losses(reports, "test")[0] == pytest.approx(metrics["base_loss"]["value"])
    assert losses(reports, "test")[-1] == pytest.approx(metrics["loss"]["value"])

    policy, tokenizer = load_policy(str(tmp_path / "model"), dtype="float32")
    test = tokens_of(PAIRS[24:], tiny_model)
    prompts, responses = [e.prompt_ids for e in test], [e.response_ids for e in test]
    for model, name in ((policy, "loss"), (load_causal(tiny_model, dtype="float32"), "base_loss")):
        nll = -response_logps(model, prompts, responses, tokenizer.pad_token_id).sum().item()
        assert nll / metrics["test_tokens"] == pytest.approx(metrics[name]["value"], rel=1e-4)

    recipe = DPORecipe(base_model=str(tmp_path / "model"), **QUICK | {"max_steps": 1})
    after = dpo.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path / "dpo", lambda report: None)
    assert after["n"] == 12


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
def test_the_best_weights_on_what_was_kept_apart_stay_and_the_run_ends_early(
    tiny_model, tmp_path, kind
):
    settings = QUICK | {"max_steps": 20, "validation_share": 0.3, "early_stopping": 2}
    settings |= {"eval_every": 2, "learning_rate": 10, "warmup_share": 0.0}  # far too fast
    reports = []
    if kind == "sft":
        recipe = SFTRecipe(base_model=tiny_model, **settings)
        metrics = sft.train(recipe, PAIRS[:24], PAIRS[24:], tmp_path, reports.append)
    else:
        recipe = PretrainRecipe(base_model=tiny_model, text="domain.txt", **settings)
        texts = [f"{sentence} {i}." for i in range(8) for sentence in SENTENCES]
        metrics = sft.pretrain(recipe, texts[:16], texts[16:], tmp_path, reports.append)
        assert metrics["n_texts"] + metrics["n_validation"] == 16  # a text is one piece here

    points = {r.step: r.values["loss"] for r in reports if r.split == "validation" and r.values}
    assert list(points) == [0, 2, 4]
    assert points[0] < min(points[2], points[4])
    assert (metrics["best_step"], metrics["n_steps"]) == (0, 4)
    assert 0 < metrics["n_validation"] < metrics["n_train"]
    assert [r.step for r in reports if r.split == "test" and r.values] == [4]  # measured once
    assert metrics["change"]["value"] == pytest.approx(0, abs=1e-6)  # no step did any good


def test_a_learned_prompt_takes_no_packed_rows(tiny_model, tmp_path):
    assert "turn packing off" in why_not("sft", "prefix", {}, packing=True)
    with pytest.raises(ValueError, match="packing: a learned prompt stands before a row"):
        train(tmp_path, tiny_model, method="prompt", packing=True)


class Cancelled(Exception):
    pass


def stop_at(step: int):
    def on_step(report):
        if report.step >= step:
            raise Cancelled

    return on_step


def test_a_cancelled_run_resumes_to_the_same_weights_and_numbers(tiny_model, tmp_path):
    settings = {
        "max_steps": 6,
        "checkpoint_every": 2,
        "lora_dropout": 0.1,
        "neftune_alpha": 5,
        "prompt_loss_weight": 0.1,
        "gradient_accumulation": 2,
        "packing": True,
        "max_length": 120,
        "batch_size": 2,
    }
    whole, reports = train(tmp_path / "whole", tiny_model, **settings)
    with pytest.raises(Cancelled):
        train(tmp_path / "cut", tiny_model, stop_at(5), **settings)
    resumed, later = train(tmp_path / "cut", tiny_model, **settings)

    assert [r.step for r in later if r.split == "train"] == [5, 6]
    assert losses(later) == losses(reports)[4:]
    del whole["seconds"], resumed["seconds"]
    assert resumed == whole
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_noise_on_the_embeddings_changes_the_training_and_no_measurement(tiny_model, tmp_path):
    _metrics, plain = train(tmp_path / "plain", tiny_model, max_steps=1)
    _metrics, noisy = train(tmp_path / "noisy", tiny_model, max_steps=1, neftune_alpha=20)

    assert losses(plain) != losses(noisy)
    assert losses(plain, "test")[0] == losses(noisy, "test")[0]


def test_too_long_conversations_are_left_out_and_counted(tiny_model, tmp_path):
    long = Pair(PAIRS[0].prompt, [{"role": "assistant", "content": "x" * 300}], PAIRS[0].rejected)
    recipe = SFTRecipe(base_model=tiny_model, **QUICK | {"max_steps": 1})

    metrics = sft.train(recipe, [*PAIRS[:8], long], [long], tmp_path, lambda report: None)

    assert (metrics["n_train"], metrics["too_long_train"], metrics["too_long_test"]) == (8, 1, 1)
    assert metrics["why"] == "all that was held out (1) was left out: too long or empty"


def test_each_response_is_imitated_once_and_the_rest_is_counted():
    def pair(chosen: str, rejected: str, **more) -> Pair:
        sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return Pair([{"role": "user", "content": "Q"}], *sides, **more)

    pairs = [
        pair("good", "bad", weight=1.0),
        pair("good", "worse", weight=3.0),
        pair("bad", "worse"),
        pair("bad", "tied", prob=0.5),
        pair("written", "good", demonstration=True),
    ]

    def found(imitate: str):
        examples, left_out = to_imitate(pairs, imitate)
        return [(e.response[0]["content"], e.weight) for e in examples], left_out

    assert found("chosen") == (
        [("good", 3.0), ("bad", 1.0), ("written", 1.0)],
        {"ties": 1, "other": 0, "repeated": 1},
    )
    assert found("unbeaten") == ([("written", 1.0)], {"ties": 1, "other": 3, "repeated": 0})
    assert found("demonstrations") == found("unbeaten")


def test_a_run_with_nothing_to_imitate_says_so(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="imitate: none of the 24 training pairs holds"):
        train(tmp_path, tiny_model, imitate="demonstrations")


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("sft", {"imitate": "all"}, "imitate is 'all'; it must be one of chosen, unbeaten"),
        ("sft", {"prompt_loss_weight": 1.1}, r"prompt_loss_weight must lie in \[0, 1\]"),
        ("sft", {"neftune_alpha": -1}, "neftune_alpha must not be negative"),
        ("pretrain", {}, "pretrain wants text"),
        ("pretrain", {"text": "a.txt", "test_share": 1}, "test_share must lie between 0 and 1"),
        ("pretrain", {"text": "a.txt", "max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(kind, given, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(kind, {"base_model": "m", **given})


# Raw text -----------------------------------------------------------------------------------------


def test_the_pieces_of_a_text_tell_every_token_but_the_first_exactly_once(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    text = " ".join(SENTENCES) + " <end> stays as it is written"

    pieces = list(text_pieces(text, "0", tokenizer, 10))

    assert max(piece.n_tokens for piece in pieces) == 10
    told = [token for piece in pieces for token in piece.response_ids]
    assert tokenizer.decode(pieces[0].prompt_ids + told) == text + "<end>"
    assert told.count(tokenizer.eos_token_id) == 1
    for before, after in pairwise(pieces):
        assert after.prompt_ids == before.response_ids[-1:]


def test_continued_pre_training_learns_the_texts(tiny_model, untouched, tmp_path):
    texts = [f"{sentence} {i}." for i in range(8) for sentence in SENTENCES]
    recipe = PretrainRecipe(
        base_model=tiny_model, text="domain.txt", learning_rate=3e-3, **QUICK | {"max_steps": 8}
    )

    metrics = sft.pretrain(recipe, texts[:12], texts[12:], tmp_path, lambda report: None)

    assert metrics["change"]["high"] < 0
    assert (metrics["n_texts"], metrics["loss"]["n"], metrics["too_long_train"]) == (12, 12, 0)


def test_a_file_without_a_text_is_refused_in_words(tiny_model, tmp_path):
    recipe = PretrainRecipe(base_model=tiny_model, text="empty.txt")
    with pytest.raises(ValueError, match="no training text of 0 holds two tokens"):
        sft.pretrain(recipe, [], [], tmp_path, lambda report: None)


def test_held_out_loss_is_a_mean_over_tokens_and_its_interval_draws_prompts_whole():
    nll, base, tokens = [2.0, 9.0, 1.0], [4.0, 9.0, 2.0], [2, 3, 1]

    few = token_metrics(nll, base, tokens, ["a", "b", "a"])
    many = token_metrics(nll * 10, base * 10, tokens * 10, [str(i // 3) for i in range(30)])

    assert few["loss"] == {"value": 2.0, "low": None, "high": None, "n": 2}
    assert few["change"]["value"] == pytest.approx(-0.5)
    assert few["base_perplexity"]["value"] == pytest.approx(math.exp(2.5))
    # Ten prompts that are alike: nothing varies, however they are drawn.
    assert (many["loss"]["low"], many["loss"]["high"]) == (2.0, 2.0)
    assert json.loads(json.dumps(many)) == many
