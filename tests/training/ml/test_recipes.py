"""Options of the recipes on pairs: what they change, and what they leave as it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from judges.ml.config import JudgeRecipe
from judges.ml.loading import load_model as load_answering
from judges.ml.questions import Sample
from judges.ml.reward import load_reward_model as load_judge
from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model, sft
from training.ml.config import POLICY_LOSSES, RECIPES, make_recipe
from training.ml.data import (
    Pair,
    chat_tokens,
    kept_apart,
    prompt_of,
    rated,
    to_singles,
    tokenize_pairs,
)
from training.ml.evaluation import length_correlations
from training.ml.loading import (
    load_causal,
    load_policy,
    load_reward_model,
    load_scorer,
    load_tokenizer,
    longest_allowed,
)
from training.ml.methods import METHODS
from training.ml.objectives import why_not_base, why_not_labels
from training.ml.steps import n_steps

PAIRS = polite_pairs(32)
SMALL = {
    "max_steps": 3,
    "batch_size": 4,
    "dtype": "float32",
    "lora_rank": 4,
    "eval_every": 3,
    "checkpoint_every": 3,
}
LLAMA = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


def train(kind: str, base: str, folder: Path, pairs=PAIRS, on_step=lambda report: None, **chosen):
    recipe = RECIPES[kind](**SMALL | {"base_model": base} | chosen)
    run = reward_model.train if kind == "reward" else dpo.train
    return run(recipe, pairs[:24], PAIRS[24:], folder, on_step)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def graded(pairs: list[Pair]) -> list[Pair]:
    return [replace(pair, strength=float(1 + at % 3)) for at, pair in enumerate(pairs)]


# Labels


def test_a_rating_is_the_mean_signed_strength_of_a_responses_pairs():
    prompt = [{"role": "user", "content": "?"}]
    a, b, c = ([{"role": "assistant", "content": text}] for text in "abc")
    pairs = [
        Pair(prompt, a, b, strength=3),
        Pair(prompt, a, c, strength=1.5),
        Pair(prompt, c, b),
        Pair(prompt, b, c, strength=0),
    ]

    assert [pair.ratings for pair in rated(pairs)] == [
        (0.75, -0.5), (0.75, -0.25), (-0.25, -0.5), (-0.5, -0.25),
    ]  # fmt: skip
    assert rated([Pair(prompt, a, b)]) == []
    honest = [Pair(prompt, a, b, aspects={"honest": -0.5}), Pair(prompt, b, c, strength=1)]
    assert [pair.ratings for pair in rated(honest, "honest")] == [(-0.5, 0.5)]


def test_a_single_response_is_good_if_it_is_more_often_the_better_one():
    prompt = [{"role": "user", "content": "?"}]
    a, b, c = ([{"role": "assistant", "content": text}] for text in "abc")
    pairs = [
        Pair(prompt, a, b, weight=3.0),
        Pair(prompt, b, c, prob=0.8),
        Pair(prompt, c, a, prob=0.5),
    ]

    found = {s.response[0]["content"]: (s.desirable, s.weight) for s in to_singles(pairs)}

    assert found == {"a": (True, 2.0), "b": (False, 2.0), "c": (False, 1.0)}
    assert to_singles([Pair(prompt, a, b, prob=0.5)]) == []


def test_validation_takes_whole_prompts_and_the_same_for_the_same_seed():
    pairs = PAIRS + PAIRS
    train_side, validation = kept_apart(pairs, 0.3, 5, prompt_of)

    assert {p.prompt_id for p in train_side}.isdisjoint({p.prompt_id for p in validation})
    assert 0 < len(validation) < len(pairs) / 2
    assert kept_apart(pairs, 0.3, 5, prompt_of) == (train_side, validation)
    assert kept_apart(pairs, 0.0, 5, prompt_of) == (pairs, [])
    with pytest.raises(ValueError, match=r"leaves nothing for validation"):
        kept_apart(PAIRS[:1], 0.1, 0, prompt_of)


@pytest.mark.parametrize(
    ("kind", "chosen", "soft", "graded", "reason"),
    [
        ("reward", {"loss": "margin"}, 3, 9, "loss: a margin wants hard labels"),
        ("reward", {"loss": "margin"}, 0, 0, "loss: a margin wants answers with a strength"),
        ("reward", {"loss": "margin", "soft_labels": "certainty"}, 3, 9, ""),
        ("reward", {"loss": "scaled"}, 3, 9, ""),
        ("reward", {"loss": "ratings"}, 0, 0, "loss: this loss wants answers with a strength"),
        ("reward", {"loss": "ratings", "rating_of": "honest"}, 0, 0, ""),
        (
            "reward",
            {"loss": "ratings", "rating_of": "kind"},
            0,
            0,
            "rating_of: no pair here has an answer to the aspect 'kind'; answered were honest",
        ),
        ("dpo", {"loss": "simpo"}, 1, 0, "loss: SimPO with a margin wants hard labels"),
        ("dpo", {"loss": "simpo", "simpo_gamma": 0}, 1, 0, ""),
        ("dpo", {"loss": "kto"}, 1, 0, ""),
        ("sft", {"imitate": "demonstrations"}, 0, 0, "imitate: no rater’s better answer"),
    ],
)
def test_labels_that_do_not_suit_a_loss_are_refused_with_the_reason(
    kind, chosen, soft, graded, reason
):
    recipe = make_recipe(kind, {"base_model": "m", **chosen})

    found = why_not_labels(recipe, {"soft": soft, "graded": graded, "aspect honest": 4})

    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_worker_refuses_labels_that_do_not_suit_too(tiny_model, tmp_path):
    soft = [replace(pair, prob=0.8, strength=1.0) for pair in PAIRS]
    with pytest.raises(ValueError, match="a margin wants hard labels"):
        train("reward", tiny_model, tmp_path, soft, loss="margin")


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ("reward", {"loss": "best"}, "loss is 'best'; it must be one of pairs, margin"),
        ("reward", {"loss": "margin", "label_smoothing": 0.1}, "which a margin does not go with"),
        ("reward", {"loss": "ratings", "length_debias": True}, "length_debias changes labels"),
        ("reward", {"members": 0}, "members must lie between 1 and 16"),
        ("reward", {"early_stopping": 2}, "set validation_share too"),
        ("dpo", {"loss": "kto", "label_smoothing": 0.1}, "KTO learns single responses"),
        ("dpo", {"loss": "simpo", "label_smoothing": 0.1}, "SimPO's margin does not go with"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing must lie in \[0, 0.5\)"),
        ("dpo", {"rope_factor": 1.0}, "rope_factor must lie above 1"),
        ("sft", {"max_steps": 2**31 - 1}, "max_steps must be at most 10,000,000"),
        ("sft", {"epochs": 1e9}, "epochs must be at most 10,000"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_by_name(kind, chosen, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(kind, {"base_model": "m", **chosen})


def test_what_can_choose_no_weights_is_said_by_its_own_name(tiny_model, tmp_path):
    ties = [replace(pair, prob=0.5) for pair in PAIRS]
    with pytest.raises(ValueError, match="validation pairs are ties"):
        train("dpo", tiny_model, tmp_path / "ties", ties, validation_share=0.5)
    with pytest.raises(ValueError, match=r"leaves nothing for validation of .* drawn by chance"):
        train("dpo", tiny_model, tmp_path / "few", PAIRS[:2], validation_share=1e-6)
    with pytest.raises(ValueError, match="steps are more than 10,000,000; set max_steps"):
        n_steps(make_recipe("dpo", {"base_model": "m", "epochs": 10_000}), 100_000)


# Reward models


@pytest.mark.parametrize("chosen", [{"loss": "ratings"}, {"length_debias": True}])
def test_ratings_and_what_length_leaves_teach_what_was_preferred(tiny_model, tmp_path, chosen):
    metrics = train(
        "reward", tiny_model, tmp_path, graded(PAIRS), max_steps=6, learning_rate=3e-3, **chosen
    )

    assert metrics["accuracy"]["value"] == 1.0
    assert (metrics["length_slope"] is None) == ("length_debias" not in chosen)


def test_an_ensemble_is_one_model_whose_reward_is_the_mean_of_its_members(
    tiny_model, untouched, tmp_path
):
    reports = []
    settings = {"members": 2, "seed": 7, "max_steps": 2, "eval_every": 2}
    metrics = train("reward", tiny_model, tmp_path, on_step=reports.append, **settings)
    alone = train("reward", tiny_model, tmp_path / "alone", **settings | {"members": 1, "seed": 8})

    model, tokenizer = load_reward_model(tmp_path / "model", dtype="float32")
    texts = [p.prompt + p.chosen for p in PAIRS[24:]] + [p.prompt + p.rejected for p in PAIRS[24:]]
    each = torch.tensor(reward_model.score_members(model, tokenizer, texts, dtype="float32"))
    judge = load_judge(str(tmp_path / "model"), JudgeRecipe(mode="reward", dtype="float32"))

    gaps = each[:8] - each[8:]  # (pairs, members)
    assert gaps.mean().item() == pytest.approx(metrics["margin"], abs=1e-5)
    assert gaps.std(dim=1).mean().item() == pytest.approx(metrics["spread"], abs=1e-5)
    assert gaps[:, 1].mean().item() == pytest.approx(alone["margin"], abs=1e-5)
    assert len(metrics["member_accuracies"]) == 2
    assert reward_model.score(model, tokenizer, texts) == pytest.approx(each.mean(1).tolist())
    rows = [chat_tokens(judge.tokenizer, text) for text in texts]
    assert judge._rewards(rows) == pytest.approx(each.mean(dim=1).tolist(), abs=2e-5)
    asked = Sample(PAIRS[24].prompt, PAIRS[24].chosen, PAIRS[24].rejected)
    ((_place, outcome),) = next(judge.judge([asked]))
    assert outcome.raw["spread"] == pytest.approx(gaps[0].std().item(), abs=2e-5)
    assert outcome.score_a == pytest.approx(each[0].mean().item(), abs=2e-5)
    # One run of four steps for whoever looks on, and the base is in the folder not once.
    assert [r.step for r in reports if r.values and r.split == "train"] == [1, 2, 3, 4]
    assert {r.n_steps for r in reports} == {4}
    assert not list((tmp_path / "model").rglob("model.safetensors"))


def test_an_ensemble_that_was_cut_short_goes_on_to_the_same_members(tiny_model, tmp_path):
    settings = {"members": 2, "max_steps": 2, "checkpoint_every": 1, "eval_every": 2}
    train("reward", tiny_model, tmp_path / "whole", **settings)

    class Cancelled(Exception):
        pass

    def stop(report):
        if report.step >= 4 and report.split == "train" and report.values:
            raise Cancelled

    with pytest.raises(Cancelled):
        train("reward", tiny_model, tmp_path / "cut", on_step=stop, **settings)
    train("reward", tiny_model, tmp_path / "cut", **settings)

    for member in ("", "member-1"):
        one, other = (
            load_file(tmp_path / name / "model" / member / "adapter_model.safetensors")
            for name in ("whole", "cut")
        )
        assert same(one, other)


@pytest.mark.parametrize("method", [m for m in METHODS if m in ("full", "galore", "prefix")])
def test_an_ensemble_of_what_changes_the_base_is_refused(method):
    recipe = make_recipe("reward", {"base_model": "m", "method": method, "members": 3})

    assert why_not_base(recipe, LLAMA).startswith("members: ")
    assert why_not_base(replace(recipe, members=1), LLAMA) == ""


def test_a_head_alone_is_trained_on_features_that_are_computed_once(tiny_model, tmp_path):
    metrics = train("reward", tiny_model, tmp_path, method="head", max_steps=60, learning_rate=2e-2)

    features = load_file(tmp_path / "features.safetensors")["features"]
    assert features.shape == (32, 2, 32)  # pairs, sides, width
    model, tokenizer = load_reward_model(tmp_path / "model", dtype="float32")
    rewards = [
        torch.tensor(reward_model.score(model, tokenizer, [p.prompt + r for p, r in sides]))
        for sides in ([(p, p.chosen) for p in PAIRS[24:]], [(p, p.rejected) for p in PAIRS[24:]])
    ]
    assert (rewards[0] - rewards[1]).mean().item() == pytest.approx(metrics["margin"], abs=1e-5)
    assert metrics["accuracy"]["value"] == 1.0


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_the_best_weights_on_validation_pairs_are_kept_and_the_run_ends_early(
    tiny_model, tmp_path, kind
):
    # Labels turned round: the more a model learns of them, the worse for the validation pairs.
    own, validation = kept_apart(PAIRS[:24], 0.3, 0, prompt_of)
    names = {p.prompt_id for p in validation}
    pairs = [
        p if p.prompt_id in names else replace(p, chosen=p.rejected, rejected=p.chosen)
        for p in PAIRS[:24]
    ]
    reports = []
    metrics = train(
        kind, tiny_model, tmp_path, pairs, reports.append, max_steps=40, learning_rate=2e-3,
        validation_share=0.3, early_stopping=2, eval_every=3, warmup_share=0.0,
    )  # fmt: skip

    points = {r.step: r.values["loss"] for r in reports if r.split == "validation" and r.values}
    assert list(points) == [0, 3, 6]
    assert (metrics["best_step"], metrics["n_steps"]) == (0, 6)
    assert (metrics["n_train"], metrics["n_validation"]) == (len(own), len(validation))
    assert [r.step for r in reports if r.split == "test" and r.values] == [6]  # measured once
    start = next(r.values for r in reports if r.split == "validation" and r.values)
    assert abs(metrics["margin"]) == pytest.approx(abs(start["margin"]), abs=5e-3)


def test_length_correlation_of_rewards_with_and_without_what_the_label_explains():
    lengths = [(30.0, 10.0), (40.0, 20.0), (35.0, 5.0), (50.0, 30.0)]
    by_label = [(1.0, 0.0)] * 4  # longer responses win, and nothing but the label counts
    by_length = [(a / 10, b / 10) for a, b in lengths]

    found = length_correlations(by_label, lengths)
    assert found["reward_length_correlation"] > 0.7
    assert found["reward_length_partial"] is None  # the label tells the reward whole
    assert length_correlations(by_length, lengths)["reward_length_partial"] == pytest.approx(1.0)
    noisy = [(1.0, 0.1), (1.1, 0.0), (1.0, 0.0), (1.1, 0.1)]
    assert abs(length_correlations(noisy, lengths)["reward_length_partial"]) < 1


# Policies


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_every_loss_moves_a_policy_towards_what_was_preferred(
    tiny_model, untouched, tmp_path, loss
):
    metrics = train(
        "dpo",
        tiny_model,
        tmp_path,
        loss=loss,
        max_steps=4,
        learning_rate=4e-3,
        eval_every=4,
        checkpoint_every=4,
    )

    assert metrics["chosen_logp_change"] - metrics["rejected_logp_change"] > 1
    assert metrics["n_train"] == (48 if loss == "kto" else 24)
    assert (tmp_path / "reference.safetensors").exists() == (loss not in ("simpo", "orpo"))


@pytest.mark.parametrize(("loss", "method"), [("kto", "lora"), ("ipo", "qlora"), ("hinge", "full")])
def test_the_reference_computed_before_gives_what_it_gives_live(tiny_model, tmp_path, loss, method):
    found = []
    for name, precompute in (("before", True), ("live", False)):
        reports = []
        train(
            "dpo", tiny_model, tmp_path / name, on_step=reports.append, loss=loss, method=method,
            precompute_reference=precompute, learning_rate=2e-3,
        )  # fmt: skip
        found.append([r.values["loss"] for r in reports if r.values])

    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] != found[0][-1]


def test_the_reference_is_read_from_the_run_and_asked_again_for_other_pairs(tiny_model, tmp_path):
    base, tokenizer = load_causal(tiny_model), load_tokenizer(tiny_model)
    tokens, _left_out = tokenize_pairs(PAIRS[:4], tokenizer, 256)
    recipe = make_recipe("dpo", {"base_model": tiny_model, "batch_size": 2})
    path = tmp_path / "reference.safetensors"

    def asked(n: int) -> torch.Tensor:
        rows = dpo._Pairs(recipe, tokens[:n], tokenizer.pad_token_id).asked
        return dpo.reference_logps(base, rows, tokenizer.pad_token_id, recipe, path)

    first = asked(4)
    with torch.no_grad():
        base.lm_head.weight.zero_()  # another model: were it asked, it would say other numbers

    assert torch.equal(asked(4), first)
    assert asked(3).shape == (3, 2)


def test_ktos_other_responses_answer_other_prompts(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    singles, _left_out = dpo.tokenize_singles(to_singles(PAIRS[:5]), tokenizer, 256)

    others = dpo.mismatched(singles, 100)

    # Two rows for each prompt: the next one's first response stands beside both.
    responses = [row.response_ids for row, _good in singles]
    assert others == [responses[at] for at in (2, 2, 4, 4, 6, 6, 8, 8, 0, 0)]
    for (own, _good), other in zip(singles, dpo.mismatched(singles, 50), strict=True):
        assert len(own.prompt_ids) + len(other) <= 50


@pytest.mark.parametrize("loss", ["kto", "orpo"])
def test_two_launches_with_the_same_seed_are_equal(tiny_model, tmp_path, loss):
    found = []
    for name in ("1", "2"):
        reports = []
        settings = {"loss": loss, "seed": 5, "lora_dropout": 0.2, "batch_tokens": 200}
        train("dpo", tiny_model, tmp_path / name, on_step=reports.append, **settings)
        found.append([r.values for r in reports])

    assert found[0] == found[1]
    assert same(weights(tmp_path / "1"), weights(tmp_path / "2"))


# A longer context


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_a_stretched_context_takes_longer_texts_and_is_loaded_again_stretched(
    tiny_model, tmp_path, scaling
):
    long = [{"role": "user", "content": "why " * 90}]
    pairs = [replace(p, prompt=long) for p in PAIRS[:8]] + PAIRS[8:]
    rope = {"rope_scaling": scaling, "rope_factor": 2.0, "max_length": 512}

    metrics = train("reward", tiny_model, tmp_path / "rm", pairs, max_steps=2, **rope)
    train("dpo", tiny_model, tmp_path / "dpo", pairs, max_steps=2, **rope)

    assert (metrics["max_length"], metrics["too_long_train"], metrics["n_train"]) == (512, 0, 24)
    plain = train("reward", tiny_model, tmp_path / "plain", pairs, max_steps=2, max_length=512)
    assert (plain["max_length"], plain["too_long_train"]) == (256, 8)
    model, tokenizer = load_reward_model(tmp_path / "rm" / "model")
    assert model.config.rope_parameters["rope_type"] == scaling
    judge = load_judge(str(tmp_path / "rm" / "model"), JudgeRecipe(mode="reward", dtype="float32"))
    texts = [pairs[0].prompt + pairs[0].chosen]
    rows = [chat_tokens(judge.tokenizer, text) for text in texts]
    assert judge._rewards(rows) == pytest.approx(
        reward_model.score(model, tokenizer, texts), abs=2e-5
    )
    policy, _tokenizer = load_policy(str(tmp_path / "dpo" / "model"))
    answering, _tokenizer = load_answering(
        str(tmp_path / "dpo" / "model"), JudgeRecipe(dtype="float32"), torch.device("cpu")
    )
    assert answering.config.rope_parameters == policy.config.rope_parameters
    assert policy.config.rope_parameters["factor"] == 2.0
    assert longest_allowed(str(tmp_path / "dpo" / "model"), 10_000) == 512


def test_a_policy_on_a_stretched_policy_is_stretched_too(tiny_model, tmp_path):
    recipe = make_recipe(
        "sft",
        {
            "base_model": tiny_model, "max_steps": 2, "dtype": "float32",
            "rope_scaling": "linear", "learning_rate": 1e-2, "warmup_share": 0.0,
        },
    )  # fmt: skip
    sft.train(recipe, PAIRS[:4], PAIRS[4:6], tmp_path / "sft", lambda report: None)
    first = str(tmp_path / "sft" / "model")

    metrics = train("dpo", first, tmp_path / "dpo", max_steps=1, max_length=10_000)

    assert metrics["max_length"] == 512
    last = str(tmp_path / "dpo" / "model")
    assert longest_allowed(last, 10_000) == 512
    policy, tokenizer = load_policy(last, dtype="float32")
    assert policy.config.rope_parameters["rope_type"] == "linear"
    # What it learned by heart is still there: the adapter lies on the first one, not on its base.
    tokens, _left_out = tokenize_pairs(PAIRS[24:], tokenizer, 512)
    now = dpo.pair_logps(policy.eval(), tokenizer, tokens, "float32")
    then = dpo.pair_logps(load_causal(first, dtype="float32").eval(), tokenizer, tokens, "float32")
    change = sum(a - b for (a, _), (b, _) in zip(now, then, strict=True)) / len(tokens)
    assert change == pytest.approx(metrics["chosen_logp_change"], abs=1e-3)
    with pytest.raises(ValueError, match=r"rope_scaling: the positions of .* are scaled already"):
        train("dpo", first, tmp_path / "twice", rope_scaling="yarn")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LLAMA, ""),
        ({"model_type": "gpt2"}, "rope_scaling: the base (gpt2) has no rotary positions"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}},
            "rope_scaling: the base's positions are scaled already",
        ),
        (
            {"model_type": "gemma3", "rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "rope_scaling: the base has a rule of its own for each kind of layer",
        ),
    ],
)
def test_a_context_is_not_stretched_where_the_base_cannot_be(config, reason):
    recipe = make_recipe("dpo", {"base_model": "m", "rope_scaling": "yarn"})

    assert why_not_base(recipe, config).startswith(reason)
    assert bool(why_not_base(recipe, config)) == bool(reason)
    assert why_not_base(replace(recipe, rope_scaling="none"), config) == ""


def test_what_a_run_leaves_says_how_its_positions_were_scaled(tiny_model, tmp_path):
    train("dpo", tiny_model, tmp_path, max_steps=1, rope_scaling="linear", rope_factor=3.0)

    made = json.loads((tmp_path / "model" / "made_by.json").read_text())
    assert made == {"method": "lora", "rope": ["linear", 3.0]}
    assert load_scorer(tiny_model).config.rope_parameters["rope_type"] == "default"
