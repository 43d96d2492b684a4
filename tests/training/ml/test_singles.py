"""Judgements of single responses: what is measured of them, and what recipes learn from them."""

import math

import pytest
import torch

from training.ml import dpo, reward_model
from training.ml.config import make_recipe
from training.ml.data import Single
from training.ml.evaluation import auc, rating_metrics, single_metrics
from training.ml.loading import load_reward_model
from training.ml.losses import kto_loss, rating_loss, single_rating_loss
from training.ml.objectives import why_not_labels

POLITE, RUDE = "Gladly, here it is.", "No."


def singles(n: int) -> list[Single]:
    """Single responses to prompts of their own: polite ones are good, every fourth is rude."""
    found = []
    for number in range(n):
        is_good = number % 4 != 0
        found.append(
            Single(
                prompt=[{"role": "user", "content": f"Question {number}?"}],
                response=[{"role": "assistant", "content": POLITE if is_good else RUDE}],
                good=float(is_good),
                rating=0.8 if is_good else -0.6,
                weight=1.0,
                prompt_id=f"p{number}",
                name=f"r{number}",
            )
        )
    return found


def recipe(kind: str, base: str, **settings):
    small = {"method": "lora", "lora_rank": 4, "batch_size": 8, "max_steps": 24, "seed": 1}
    small |= {"learning_rate": 1e-2, "max_length": 128, "eval_every": 24, "checkpoint_every": 24}
    # Rude responses are the shorter ones: by length, steps would hold one kind alone.
    small |= {"group_by_length": False}
    return make_recipe(kind, {"base_model": base, **small, **settings})


# Figures


def test_the_auc_counts_pairs_of_good_and_bad_and_equal_scores_half():
    # Of the four pairs three are right and one is equal: 3.5 / 4; the neutral one is left out.
    found = auc([2.0, 1.0, 1.0, 0.0, 9.0], [1, 1, 0, 0, 0.5], list("abcde"))
    assert (found["value"], found["n"]) == (0.875, 4)
    assert auc([1.0, 2.0], [1, 1], list("ab"))["value"] is None


def test_the_auc_is_turned_round_with_the_scores_and_has_an_interval():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, generator=generator).tolist()
    good = [float(score + noise > 0) for score, noise in zip(scores, scores[::-1], strict=True)]
    units = [f"p{n // 2}" for n in range(60)]
    up = auc(scores, good, units)
    down = auc([-score for score in scores], good, units)
    assert up["value"] + down["value"] == pytest.approx(1.0)
    assert up["low"] < up["value"] < up["high"]


def test_single_metrics_say_how_often_a_response_moved_to_the_right_side():
    found = single_metrics(
        [0.4, -0.2, -0.1, 0.3], [1.0, 1.0, 0.0, 0.5], list("abcd"), [10, 20, 30, 40]
    )
    assert (found["n"], found["n_good"], found["n_bad"]) == (3, 2, 1)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["auc"]["value"] == 0.5
    assert found["margin"] == pytest.approx(0.1 + 0.1)
    assert found["majority"] == pytest.approx(2 / 3)
    assert single_metrics([], [], [], [], n_left_out=2)["why"].startswith("all 2 held-out")


def test_rating_metrics_hold_the_error_against_that_of_the_mean():
    ratings = [-1.0, 0.0, 1.0, 1.0]
    same = rating_metrics(
        ratings, ratings, [0.0, 0.5, 1.0, 1.0], list("abcd"), [1, 2, 3, 4], usual=0.25
    )
    assert (same["correlation"]["value"], same["error"]["value"]) == (pytest.approx(1.0), 0.0)
    assert same["usual_error"]["value"] == pytest.approx(math.sqrt((1.5625 + 0.0625 + 1.125) / 4))
    flat = rating_metrics([0.2] * 4, ratings, [0.0, 0.5, 1.0, 1.0], list("abcd"), [1] * 4, usual=0)
    assert flat["correlation"]["value"] is None
    assert flat["auc"]["value"] == 0.5


# Losses


def test_ktos_loss_of_a_soft_label_lies_between_both_and_weights_balance_the_kinds():
    with_weights = make_recipe(
        "dpo", {"base_model": "x", "loss": "kto", "kto_undesirable": 3.0, "beta": 0.5}
    )
    u, z = torch.tensor([0.7, 0.7, 0.7]), torch.tensor(0.1)
    found = dpo.single_losses(with_weights, u, z, torch.tensor([1.0, 0.0, 0.75]))
    up = kto_loss(u[:1], z, 0.5, torch.ones(1))
    down = kto_loss(u[:1], z, 0.5, torch.zeros(1))
    assert torch.allclose(found, torch.cat([up, 3 * down, 0.75 * up + 0.25 * 3 * down]))


def test_both_responses_of_a_pair_weigh_what_they_weigh_alone():
    rewards, ratings = torch.tensor([[0.5, -2.0]]), torch.tensor([[1.0, -0.5]])
    alone = single_rating_loss(rewards, ratings).sum(dim=1)
    assert torch.equal(alone, rating_loss(rewards[:, 0], rewards[:, 1], ratings))


# Which recipe takes which rows


@pytest.mark.parametrize(
    ("kind", "chosen", "reason"),
    [
        ("dpo", {"loss": "kto"}, ""),
        ("dpo", {"loss": "sigmoid"}, "choose kto, or a dataset of pairs"),
        ("reward", {"loss": "ratings"}, ""),
        ("reward", {"loss": "pairs"}, "choose ratings, or a dataset of pairs"),
        ("reward", {"loss": "ratings", "rating_of": "honest"}, "the dataset decides"),
        ("reward", {"loss": "ratings", "center_rewards": 0.1}, "center_rewards"),
        ("sft", {}, "choose a dataset of pairs"),
    ],
)
def test_what_does_not_fit_single_judgements_is_refused_in_one_line(kind, chosen, reason):
    made = make_recipe(kind, {"base_model": "x", **chosen})
    found = why_not_labels(made, {"singles": 9, "good": 5, "bad": 4})
    assert (found == "") == (reason == "")
    assert reason in found
    assert "\n" not in found


def test_kto_wants_both_kinds():
    kto = make_recipe("dpo", {"base_model": "x", "loss": "kto"})
    assert "none here is bad" in why_not_labels(kto, {"singles": 9, "good": 9, "bad": 0})


# Recipes


def test_kto_learns_from_responses_that_have_no_other_beside_them(tiny_model, tmp_path):
    rows = [*singles(32), Single(singles(1)[0].prompt, singles(1)[0].response, 0.5)]
    reports = []
    kto = recipe("dpo", tiny_model, loss="kto", kto_undesirable=3.0, validation_share=0.2)
    found = dpo.train(kto, rows, singles(12)[1:9], tmp_path, reports.append)

    assert found["of"] == "singles"
    assert (found["n"], found["n_good"], found["n_bad"]) == (8, 6, 2)
    assert found["n_neutral"] == 1
    assert found["auc"]["value"] == 1.0
    assert found["good_logp_change"] > 0 > found["bad_logp_change"]
    assert found["margin"] > 0
    measured = [r.values for r in reports if r.split == "validation" and r.values]
    assert measured[-1]["loss"] < measured[0]["loss"]


@pytest.mark.parametrize(("method", "learning_rate"), [("lora", 3e-3), ("head", 2e-2)])
def test_a_reward_model_learns_ratings_of_single_responses(
    tiny_model, tmp_path, method, learning_rate
):
    ratings = recipe(
        "reward",
        tiny_model,
        loss="ratings",
        method=method,
        max_steps=50,
        learning_rate=learning_rate,
    )
    reports = []
    found = reward_model.train(ratings, singles(32), singles(12), tmp_path, reports.append)

    assert (found["of"], found["n"], found["n_unrated"]) == ("ratings", 12, 0)
    assert found["correlation"]["value"] > 0.6
    assert found["error"]["value"] < found["usual_error"]["value"]
    assert found["auc"]["value"] > 0.9
    measured = [r.values for r in reports if r.split == "test" and r.values]
    assert measured[-1]["error"] < measured[0]["error"]
    model, tokenizer = load_reward_model(tmp_path / "model")
    told = [single.prompt + single.response for single in singles(2)]
    rude, polite = reward_model.score(model, tokenizer, told)
    assert rude < polite


def test_an_ensemble_of_ratings_has_a_spread(tiny_model, tmp_path):
    two = recipe("reward", tiny_model, loss="ratings", members=2, max_steps=3)
    found = reward_model.train(two, singles(16), singles(4), tmp_path, lambda report: None)
    assert found["spread"] > 0


def test_a_loss_on_pairs_refuses_single_judgements_when_called_by_itself(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="choose kto"):
        dpo.train(recipe("dpo", tiny_model), singles(8), singles(2), tmp_path, lambda r: None)
