"""Losses: numbers worked by hand, their properties, and TRL's own trainers on the same pairs."""

import math
import random

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model
from training.ml.adapting import adapted
from training.ml.config import DPORecipe, RewardRecipe
from training.ml.data import Pair, tokenize_pair
from training.ml.loading import load_causal, load_scorer, load_tokenizer
from training.ml.losses import (
    centring,
    kto_baseline,
    kto_loss,
    length_slope,
    odds_ratio_loss,
    rating_loss,
    smoothed,
    soft_pair_loss,
    strength_margin,
)
from training.ml.steps import quiet_trainer

RECIPES = {"reward": (reward_model, RewardRecipe), "dpo": (dpo, DPORecipe)}


def loss(delta: float, prob: float, weight: float = 1.0, margin: float = 0.0) -> float:
    return soft_pair_loss(*map(torch.tensor, (delta, prob, weight, margin))).item()


def policy_loss(logps, *, prob=1.0, n_tokens=(1, 1), **settings) -> float:
    """What a step of the recipe pays for one pair, the reference at 0."""
    recipe = DPORecipe(base_model="m", **settings)
    found = dpo.pair_losses(
        recipe,
        torch.tensor([logps]),
        torch.zeros(1, 2),
        torch.tensor([n_tokens]),
        torch.tensor([prob]),
    )
    return found.item()


def reward_loss(chosen: float, rejected: float, *, prob=1.0, weight=1.0, strength=0.0, **settings):
    columns = {"prob": prob, "weight": weight, "strength": strength, "length": 0.0}
    labels = {name: torch.tensor([value]) for name, value in columns.items()}
    labels["ratings"] = torch.tensor([[0.5, -1.0]])
    recipe = RewardRecipe(base_model="m", **settings)
    rewards = torch.tensor([chosen]), torch.tensor([rejected])
    return reward_model.pair_losses(recipe, *rewards, labels).item()


def test_the_reward_models_loss_is_the_cross_entropy_worked_by_hand():
    assert loss(1.0, 0.7) == pytest.approx(0.613262, abs=1e-6)
    assert loss(1.0, 1.0, margin=0.5) == pytest.approx(0.474077, abs=1e-6)
    assert loss(1.0, 0.7, weight=2.0) == pytest.approx(2 * 0.613262, abs=1e-6)
    assert reward_loss(0.6, -0.4, prob=0.7) == pytest.approx(0.613262, abs=1e-6)
    assert reward_loss(0.6, -0.4, strength=1.5, loss="margin") == pytest.approx(0.474077, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "scaled", "strength": 3.0}, 3 * 0.313262),
        ({"label_smoothing": 0.3}, 0.613262),
        ({"prob": 0.85, "soft_labels": "certainty"}, 0.7 * 0.313262),
        ({"prob": 0.5, "soft_labels": "certainty"}, 0.0),
        ({"center_rewards": 0.01}, 0.313262 + 0.01 * 0.2**2),
        ({"loss": "ratings"}, (0.1**2 + 0.6**2) / 2),
    ],
)
def test_every_option_of_a_reward_model_reaches_its_loss(options, expected):
    assert reward_loss(0.6, -0.4, **options) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.620957),
        ({"loss": "hinge"}, 0.85),
        ({"label_smoothing": 0.1}, 0.635957),
        ({"prob": 0.9}, 0.635957),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.602207),
        ({"loss": "ipo"}, 12.25),
        # −log σ(0.15 + 0.01 · (30 − 10))
        ({"loss": "length", "n_tokens": (30, 10)}, math.log1p(math.exp(-0.35))),
    ],
)
def test_every_loss_of_a_policy_is_the_number_worked_by_hand(options, expected):
    assert policy_loss((1.0, -0.5), beta=0.1, **options) == pytest.approx(expected, abs=1e-6)


def test_losses_of_means_over_tokens_are_the_numbers_worked_by_hand():
    simpo = policy_loss((-1.0, -3.2), n_tokens=(2, 4), loss="simpo", beta=2.0, simpo_gamma=1.0)
    orpo = policy_loss((-1.0, -3.2), n_tokens=(2, 4), loss="orpo", orpo_weight=1.0)
    ipo = policy_loss((2.0, -2.0), n_tokens=(2, 4), loss="ipo", beta=0.1)

    assert simpo == pytest.approx(0.913015, abs=1e-6)
    assert orpo == pytest.approx(0.5 + 0.424833, abs=1e-6)
    assert odds_ratio_loss(torch.tensor(-0.5), torch.tensor(-0.8)) == pytest.approx(0.424833, 1e-5)
    assert ipo == pytest.approx(12.25, abs=1e-5)


def test_kto_pays_for_good_responses_below_the_baseline_and_bad_ones_above_it():
    u, good = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([1.0, 0.0, 0.0])
    baseline = kto_baseline(torch.tensor([3.0, -1.0]), beta=0.1)

    assert baseline.item() == pytest.approx(0.1)
    assert kto_baseline(torch.tensor([-3.0, -1.0]), beta=0.1).item() == 0.0
    # 1 − σ(0.1 − 0.1), 1 − σ(0.1 − 0.1), 1 − σ(0.1 + 0.2)
    assert kto_loss(u, baseline, 0.1, good).tolist() == pytest.approx(
        [0.5, 0.5, 0.425557], abs=1e-6
    )


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "length", "orpo", "robust"])
def test_a_soft_label_costs_the_mean_of_both_hard_ones(name):
    settings = {"loss": name, "beta": 0.3, "n_tokens": (5, 9)}
    one, other = (
        policy_loss((-4.0, -9.0), **settings),
        policy_loss((-4.0, -9.0), prob=0.0, **settings),
    )

    assert policy_loss((-4.0, -9.0), prob=0.7, **settings) == pytest.approx(0.7 * one + 0.3 * other)


def test_the_least_value_of_the_soft_loss_is_at_the_logit_of_the_label():
    delta = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    for prob in (0.5, 0.7, 0.95):
        values = soft_pair_loss(delta, torch.tensor(prob), torch.tensor(1.0))
        best = delta[values.argmin()].item()
        assert best == pytest.approx(torch.logit(torch.tensor(prob)).item(), abs=1e-3)


def test_with_hard_labels_and_equal_weights_it_is_the_usual_loss_to_the_last_bit():
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10

    found = soft_pair_loss(delta, torch.ones(1000), torch.ones(1000))

    assert torch.equal(found, -logsigmoid(delta))


def test_margins_smoothing_centring_and_ratings_by_hand():
    strengths = torch.tensor([1.0, 2.0, 3.0])
    assert strength_margin(strengths, 3.0).tolist() == [1.0, 2.0, 3.0]
    assert strength_margin(strengths, 1.0).tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert smoothed(torch.tensor([1.0, 0.5, 0.0]), 0.1).tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert centring(torch.tensor(2.0), torch.tensor(-1.5)).item() == 0.25
    both = rating_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([[0.5, -0.5]]))
    assert both.tolist() == [0.25]


def test_the_slope_of_length_is_found_again_and_none_where_length_says_nothing():
    draw = random.Random(0)
    lengths = [draw.gauss(0, 100) for _pair in range(4000)]
    probs = [float(draw.random() < 1 / (1 + math.exp(-0.01 * x))) for x in lengths]

    assert length_slope(lengths, probs, [1.0] * 4000) == pytest.approx(0.01, rel=0.1)
    assert length_slope([5.0, -5.0], [0.5, 0.5], [1.0, 1.0]) == pytest.approx(0, abs=1e-9)
    assert length_slope([0.0, 0.0], [1.0, 1.0], [1.0, 1.0]) == 0.0
    assert math.isfinite(length_slope([5.0, 9.0], [1.0, 1.0], [1.0, 1.0]))  # length tells all


class Listen(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])


class StockDPO(DPOTrainer):
    def _prepare_dataset(self, dataset, *args):
        return dataset


@quiet_trainer()
def stock_losses(kind: str, recipe, pairs: list[Pair], folder) -> list[float]:
    """TRL's own trainer: three steps on all pairs, from the same weights."""
    tokenizer = load_tokenizer(recipe.base_model)
    tokens = [tokenize_pair(pair, tokenizer) for pair in pairs]
    set_seed(recipe.seed)
    load = load_scorer if kind == "reward" else load_causal
    model = adapted(
        load(recipe.base_model, dtype="float32"),
        recipe,
        task="SEQ_CLS" if kind == "reward" else "CAUSAL_LM",
    )
    heard = Listen()
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(pairs),
        "max_steps": 3,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": 1,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_length": None,
        "dataloader_pin_memory": False,
    }
    if kind == "reward":
        rows = [
            {
                "chosen_ids": p.prompt_ids + p.chosen_ids,
                "rejected_ids": p.prompt_ids + p.rejected_ids,
            }
            for p in tokens
        ]
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**settings, center_rewards_coefficient=0.01),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[heard],
        )
    else:
        rows = [
            {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
            for p in tokens
        ]
        trainer = StockDPO(
            model=model,
            args=DPOConfig(**settings, beta=0.1),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[heard],
        )
    trainer.train()
    return heard.losses


def our_losses(kind: str, recipe, pairs: list[Pair], folder) -> list[float]:
    reports = []
    RECIPES[kind][0].train(recipe, pairs, [], folder, reports.append)
    return [r.values["loss"] for r in reports if r.values and r.split == "train"]


@pytest.mark.parametrize("kind", RECIPES)
def test_on_hard_labels_our_recipes_step_as_trls_own_trainers(kind, tiny_model, tmp_path):
    pairs = polite_pairs(6)
    settings = {"center_rewards": 0.01} if kind == "reward" else {}
    recipe = RECIPES[kind][1](
        base_model=tiny_model,
        max_steps=3,
        batch_size=6,
        dtype="float32",
        learning_rate=5e-3,
        **settings,
    )

    ours = our_losses(kind, recipe, pairs, tmp_path / "ours")

    assert ours == pytest.approx(stock_losses(kind, recipe, pairs, tmp_path / "stock"), abs=2e-5)
    assert ours[0] - ours[-1] > 1e-3


@pytest.mark.parametrize("kind", RECIPES)
def test_labels_and_weights_reach_the_loss_of_a_run(kind, tiny_model, tmp_path):
    pairs = polite_pairs(4)
    weighted = [Pair(p.prompt, p.chosen, p.rejected, prob=0.5, weight=3.0) for p in pairs]
    recipe = RECIPES[kind][1](base_model=tiny_model, max_steps=1, batch_size=4, dtype="float32")

    (plain,) = our_losses(kind, recipe, pairs, tmp_path / "1")
    (soft,) = our_losses(kind, recipe, weighted, tmp_path / "2")

    assert soft >= 3 * 0.693147 - 1e-5  # −log ½ is the least that a tie costs
    assert soft > 2 * plain
