import math

import numpy as np
import pytest
import torch

from training.ml.policy_gradients import (
    combined_scores,
    explained_variance,
    gae,
    grpo_advantages,
    kl_estimate,
    loss_weights,
    next_kl_coefficient,
    policy_loss,
    rloo_advantages,
    rollout_metrics,
    token_rewards,
    update_metrics,
    value_loss,
    whiten,
)

LENGTHS = [5, 1, 3]


def tokens(seed: int, width: int = 5) -> torch.Tensor:
    """(3, width) numbers; of a wider one, the first five columns are the same."""
    draw = torch.Generator().manual_seed(seed)
    known = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    rest = 50 * torch.randn(3, width - 5, generator=draw, dtype=torch.float64)
    return torch.cat([known, rest], dim=1)


def mask(width: int = 5) -> torch.Tensor:
    return (torch.arange(width)[None] < torch.tensor(LENGTHS)[:, None]).double()


def test_the_three_estimates_of_kl_are_those_worked_by_hand():
    half, zero = torch.tensor(0.5), torch.tensor(0.0)
    found = [kl_estimate(half, zero, kind).item() for kind in ("k1", "k2", "k3")]
    assert found == pytest.approx([0.5, 0.125, 0.106531], abs=1e-6)
    with pytest.raises(ValueError, match="kl is 'k4'"):
        kl_estimate(half, zero, "k4")


def test_k1_and_k3_have_the_mean_that_the_kl_is():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.1, 0.4])
    kl = (p * (p / q).log()).sum().item()
    for kind in ("k1", "k3"):
        assert (p * kl_estimate(p.log(), q.log(), kind)).sum().item() == pytest.approx(kl)


def test_advantages_and_returns_are_those_worked_by_hand():
    advantages, returns = gae(
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 0.6, 0.7]]),
        torch.ones(1, 3),
        gamma=1.0,
        lam=0.95,
    )
    assert advantages[0].tolist() == pytest.approx([0.46575, 0.385, 0.3])
    assert returns[0].tolist() == pytest.approx([0.96575, 0.985, 1.0])


def test_group_advantages_are_those_worked_by_hand():
    scores = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    third = 0.666667
    assert rloo_advantages(scores)[0].tolist() == pytest.approx(
        [third, -third, -third, third], abs=1e-6
    )
    spread = 0.865875
    assert grpo_advantages(scores)[0].tolist() == pytest.approx(
        [spread, -spread, -spread, spread], abs=1e-6
    )
    assert grpo_advantages(scores, by_spread=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_the_score_stands_on_the_last_token_and_kl_on_each():
    paid = token_rewards(torch.tensor([1.0, 2.0, 3.0]).double(), tokens(0), mask(), 0.1)

    for row, length in enumerate(LENGTHS):
        expected = (-0.1 * tokens(0)[row, :length]).tolist()
        expected[-1] += row + 1
        assert paid[row, :length].tolist() == pytest.approx(expected)
        assert paid[row, length:].tolist() == [0.0] * (5 - length)


def test_reward_models_are_combined_by_mean_worst_case_and_uncertainty():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.5]])
    assert combined_scores(scores, "mean").tolist() == [2.0, 0.25]
    assert combined_scores(scores, "worst").tolist() == [1.0, 0.0]
    assert combined_scores(scores, "uncertainty", 0.5).tolist() == [1.5, 0.21875]
    assert combined_scores(scores[:1], "uncertainty").tolist() == [1.0, 0.0]  # of one: no variance


def test_an_adapted_coefficient_moves_by_a_bounded_share():
    up = next_kl_coefficient(0.1, 60.0, target=6.0, horizon=1000, n=100)
    down = next_kl_coefficient(0.1, 0.0, target=6.0, horizon=1000, n=100)
    near = next_kl_coefficient(0.1, 6.6, target=6.0, horizon=1000, n=100)
    assert (up, down, near) == pytest.approx((0.102, 0.098, 0.101))


def test_the_policy_loss_stops_paying_where_the_ratio_leaves_its_bounds():
    old = torch.zeros(4)
    logp = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantages, weights = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.full((4,), 0.25)

    loss = policy_loss(logp, old, advantages, weights, clip=0.2)
    loss.backward()

    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8) / 4)
    assert logp.grad.tolist() == pytest.approx([0.0, -0.5 / 4, 1.5 / 4, 0.0])


def test_the_value_loss_takes_the_worse_of_clipped_and_free():
    values = torch.tensor([1.0, 0.0])
    found = value_loss(values, torch.zeros(2), torch.tensor([2.0, 0.5]), torch.ones(2), clip=0.2)
    assert found.item() == pytest.approx(((0.2 - 2) ** 2 + 0.5**2) / 2)
    free = value_loss(values, torch.zeros(2), torch.tensor([2.0, 0.5]), torch.ones(2), clip=0)
    assert free.item() == pytest.approx((1 + 0.25) / 2)


def test_weights_say_what_a_response_counts():
    by = {
        name: loss_weights(mask(), name, 5).sum(dim=1).tolist()
        for name in ("tokens", "responses", "sums", "constant")
    }
    assert by["tokens"] == pytest.approx([5 / 9, 1 / 9, 3 / 9])
    assert by["responses"] == pytest.approx([1 / 3] * 3)
    assert by["sums"] == pytest.approx([5 / 3, 1 / 3, 1])
    assert by["constant"] == pytest.approx([1 / 3, 1 / 15, 1 / 5])


def everything(width: int, dtype: torch.dtype) -> dict[str, float]:
    """All metrics of a batch that is padded to `width` with numbers that mean nothing."""
    logp, old, reference = (-tokens(seed, width).abs().to(dtype) / 5 for seed in (1, 2, 3))
    entropy, values, returns = (tokens(seed, width).to(dtype) for seed in (4, 5, 6))
    scores = torch.tensor([1.0, -1.0, 0.5])
    return {
        **update_metrics(logp, old, entropy, mask(width), clip=0.2),
        **rollout_metrics(old, reference, mask(width), scores, [True, False, True]),
        "explained": explained_variance(values, returns, mask(width)),
    }


def test_metrics_equal_a_reference_without_padding_and_do_not_change_with_it():
    flat = [
        np.concatenate([tokens(seed)[row, :n].numpy() for row, n in enumerate(LENGTHS)])
        for seed in range(7)
    ]
    logp, old, reference = (-np.abs(flat[seed]) / 5 for seed in (1, 2, 3))
    ratio = np.exp(logp - old)
    rho = old - reference
    expected = {
        "approx_kl": np.mean(ratio - 1 - (logp - old)),
        "clip_fraction": np.mean((ratio < 0.8) | (ratio > 1.2)),
        "ratio": np.mean(ratio),
        "ratio_var": np.var(ratio),
        "entropy": np.mean(flat[4]),
        "score": 1 / 6,
        "score_sd": np.std([1.0, -1.0, 0.5], ddof=1),
        "kl": rho.sum() / 3,
        "kl_k3": (np.exp(-rho) - 1 + rho).sum() / 3,
        "length": 3.0,
        "finished": 2 / 3,
        "explained": 1 - np.var(flat[6] - flat[5]) / np.var(flat[6]),
    }

    assert everything(5, torch.float64) == pytest.approx(expected, rel=1e-12)
    assert everything(40, torch.float64) == everything(5, torch.float64)
    assert everything(40, torch.float32) == pytest.approx(expected, rel=1e-5)


def test_padding_changes_neither_advantages_nor_their_whitening():
    found = []
    for width in (5, 40):
        advantages, returns = gae(
            tokens(1, width), tokens(2, width), mask(width), gamma=0.9, lam=0.8
        )
        found.append((whiten(advantages, mask(width))[:, :5], returns[:, :5]))
        assert not returns[:, 5:].any()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    real = found[0][0][mask().bool()]
    assert real.mean().item() == pytest.approx(0, abs=1e-12)
    assert real.var(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert math.isfinite(real.sum().item())
