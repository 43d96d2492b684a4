import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model
from training.ml.config import DPORecipe, RewardRecipe
from training.ml.data import Pair
from training.ml.losses import soft_pair_loss

RECIPES = {"reward": (reward_model, RewardRecipe), "dpo": (dpo, DPORecipe)}


def loss(delta: float, prob: float, weight: float = 1.0) -> float:
    return soft_pair_loss(*map(torch.tensor, (delta, prob, weight))).item()


def test_the_loss_is_the_cross_entropy_worked_by_hand():
    assert loss(1.0, 0.7) == pytest.approx(0.613262, abs=1e-6)
    assert loss(0.1 * 1.5, 0.9) == pytest.approx(0.635957, abs=1e-6)  # cDPO, label noise 0.1
    assert loss(0.1 * 1.5, 1.0) == pytest.approx(0.620957, abs=1e-6)
    assert loss(1.0, 0.7, weight=2.0) == pytest.approx(2 * 0.613262, abs=1e-6)


def test_its_least_value_is_at_the_logit_of_the_label():
    delta = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    for prob in (0.5, 0.7, 0.95):
        values = soft_pair_loss(delta, torch.tensor(prob), torch.tensor(1.0))
        best = delta[values.argmin()].item()
        assert best == pytest.approx(torch.logit(torch.tensor(prob)).item(), abs=1e-3)


def test_with_hard_labels_and_equal_weights_it_is_the_usual_loss_to_the_last_bit():
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10

    found = soft_pair_loss(delta, torch.ones(1000), torch.ones(1000))

    assert torch.equal(found, -logsigmoid(delta))


def first_losses(kind: str, pairs: list[Pair], base: str, folder, steps: int = 3) -> list[float]:
    module, make = RECIPES[kind]
    recipe = make(base_model=base, max_steps=steps, batch_size=4, dtype="float32")
    reports = []
    module.train(recipe, pairs, [], folder, reports.append)
    return [r.values["loss"] for r in reports if r.values and r.split == "train"]


@pytest.mark.parametrize("kind", RECIPES)
def test_on_hard_labels_our_trainer_steps_as_trls_own(kind, tiny_model, tmp_path, monkeypatch):
    pairs = polite_pairs(12)
    ours = first_losses(kind, pairs, tiny_model, tmp_path / "ours")

    module, _recipe = RECIPES[kind]
    of_trl = module._Trainer.__mro__[1].compute_loss

    def stock(self, model, inputs, *args, **kwargs):
        tokens = {name: value for name, value in inputs.items() if name not in ("prob", "weight")}
        return of_trl(self, model, tokens, *args, **kwargs)

    monkeypatch.setattr(module._Trainer, "compute_loss", stock)
    theirs = first_losses(kind, pairs, tiny_model, tmp_path / "theirs")

    assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours[0] != ours[-1]


@pytest.mark.parametrize("kind", RECIPES)
def test_labels_and_weights_reach_the_loss_of_a_run(kind, tiny_model, tmp_path):
    pairs = polite_pairs(4)
    weighted = [Pair(p.prompt, p.chosen, p.rejected, prob=0.5, weight=3.0) for p in pairs]

    (plain,) = first_losses(kind, pairs, tiny_model, tmp_path / "1", steps=1)
    (soft,) = first_losses(kind, weighted, tiny_model, tmp_path / "2", steps=1)

    assert soft >= 3 * 0.693147 - 1e-5  # −log ½ is the least that a tie costs
    assert soft > 2 * plain
