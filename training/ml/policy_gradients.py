"""The equations of PPO, RLOO and GRPO: tensors in, tensors out, no model.

What is told per token has the shape (rows, tokens): a row is a response, its tokens stand at the
left, and `mask` is 1 where one was generated, the end token included. Whatever stands where the
mask is 0 changes no result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.ml.ppo_config import COMBINED, KLS


def kl_estimate(logp: Tensor, reference_logp: Tensor, kind: str) -> Tensor:
    """KL(π‖π_ref) of each token, told from the one that was drawn.

    With ρ = log π − log π_ref: k1 = ρ and k3 = e^{−ρ} − 1 + ρ are unbiased,
    k3 is never negative; k2 = ρ²/2 is biased, with
    little variance. ρ = 0.5 gives 0.5, 0.125, 0.106531.

    Raises: ValueError for another kind.
    Source: Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = logp - reference_logp
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl is {kind!r}; it must be one of {', '.join(KLS)}")


def next_kl_coefficient(
    coefficient: float, kl: float, *, target: float, horizon: float, n: int
) -> float:
    """The coefficient after `n` responses whose mean KL (nats a response) was `kl`.

    β ← β·(1 + clip(KL / target − 1, ±0.2)·n / horizon): after about `horizon` responses a KL that
    stays too high has raised it by a fifth.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * n / horizon)


def combined_scores(scores: Tensor, how: str, uncertainty_weight: float = 1.0) -> Tensor:
    """One score a response from those of several reward models, (models, rows) to (rows,).

    mean; worst: the least of them (WCO); uncertainty: mean − λ·variance over the models (UWO). The
    models ought to be on one scale, mean 0 and standard deviation 1 on the reference's responses.

    Raises: ValueError for another way.
    Source: Coste et al. 2024, arXiv:2310.02743, eq. 3 to 5.
    """
    if how == "mean":
        return scores.mean(dim=0)
    if how == "worst":
        return scores.min(dim=0).values
    if how == "uncertainty":
        return scores.mean(dim=0) - uncertainty_weight * scores.var(dim=0, correction=0)
    raise ValueError(f"combine is {how!r}; it must be one of {', '.join(COMBINED)}")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """R_t = −β·k(t), and the score on the last token of each response: (rows, tokens)."""
    last = mask.sum(dim=1).long() - 1
    rewards = -coefficient * kl * mask
    return rewards.index_put((torch.arange(len(last), device=mask.device), last), scores, True)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) by generalised advantage estimation, all (rows, tokens).

    δ_t = R_t + γ·V_{t+1} − V_t; A_t = δ_t + γλ·A_{t+1}; returns = A + V. Behind the end V is 0.
    R = [0, 0, 1], V = [.5, .6, .7], γ = 1, λ = .95 gives A = [.46575, .385, .3].

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    ahead = next_value = torch.zeros_like(values[:, 0])
    for at in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, at] + gamma * next_value - values[:, at]
        ahead = (delta + gamma * lam * ahead) * mask[:, at]
        next_value = values[:, at]
        advantages[:, at] = ahead
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the tokens there are, 0 elsewhere.

    Source: Huang et al. 2024, arXiv:2403.17031, details 16 and 17.
    """
    real = values[mask.bool()]
    return (values - real.mean()) * torch.rsqrt(real.var(correction=0) + 1e-8) * mask


def rloo_advantages(scores: Tensor) -> Tensor:
    """Each response's score minus the mean of the others to its prompt: (prompts, k), k ≥ 2.

    [1, 0, 0, 1] gives ±0.666667. Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 9.
    """
    k = scores.shape[1]
    return (scores - scores.mean(dim=1, keepdim=True)) * k / (k - 1)


def grpo_advantages(scores: Tensor, *, by_spread: bool = True) -> Tensor:
    """Each response's score against its prompt's group: (s − mean) / (sd + 1e-4), (prompts, k).

    [1, 0, 0, 1] gives ±0.865875. Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2.

    Args: by_spread: False leaves s − mean, as Dr. GRPO does (Liu et al. 2025, arXiv:2503.20783).
    """
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True) + 1e-4) if by_spread else centred


def loss_weights(mask: Tensor, weighting: str, longest: int) -> Tensor:
    """What each token counts in a loss that is a weighted sum: (rows, tokens).

    tokens: all alike, summing to 1 (PPO); responses: every response alike, whatever its length
    (GRPO); sums: 1 / rows, so a response counts by its length, as the gradient of its whole
    log-probability does (RLOO); constant: 1 / (rows·longest) (Dr. GRPO). They are made for all
    responses of a step of the optimizer at once, so that it does not matter how these are divided
    to fit into memory.
    """
    rows = len(mask)
    if weighting == "tokens":
        return mask / mask.sum()
    if weighting == "responses":
        return mask / (mask.sum(dim=1, keepdim=True) * rows)
    if weighting == "sums":
        return mask / rows
    if weighting == "constant":
        return mask / (rows * longest)
    raise ValueError(f"no weighting {weighting!r}")


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, weights: Tensor, *, clip: float
) -> Tensor:
    """−Σ w·min(r·A, clip(r, 1 ± ε)·A) with r = π / π_old, over tokens of any shape.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = torch.exp(logp - old_logp)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -(weights * torch.minimum(ratio * advantages, bounded * advantages)).sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float
) -> Tensor:
    """½ Σ w·max((V − R)², (clip(V, V_old ± ε) − R)²); ε = 0 does not clip.

    Source: Schulman et al. 2017's own code; Huang et al. 2024, arXiv:2403.17031, detail 19.
    """
    errors = (values - returns).square()
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - returns).square())
    return (weights * errors).sum() / 2


def update_metrics(
    logp: Tensor, old_logp: Tensor, entropy: Tensor, mask: Tensor, *, clip: float
) -> dict[str, float]:
    """How far an update has moved the policy, over generated tokens alone, in float64.

    Returns: approx_kl, mean of (r − 1) − log r, which is k3 of the old policy against the new;
        clip_fraction; ratio and ratio_var; entropy (nats a token, before this step).
    """
    real = mask.bool()
    log_ratio = (logp.double() - old_logp.double())[real]
    ratio = log_ratio.exp()
    return {
        "approx_kl": float((ratio - 1 - log_ratio).mean()),
        "clip_fraction": float(((ratio - 1).abs() > clip).double().mean()),
        "ratio": float(ratio.mean()),
        "ratio_var": float(ratio.var(correction=0)),
        "entropy": float(entropy.double()[real].mean()),
    }


def rollout_metrics(
    logp: Tensor, reference_logp: Tensor, mask: Tensor, scores: Tensor, finished: Sequence[bool]
) -> dict[str, float]:
    """What the policy was like before an update, in float64.

    Returns: score, mean and score_sd, before KL and penalties; kl, mean over responses of the sum
        of ρ (k1); kl_k3, the same of k3; length, mean tokens; finished, share that came to an end.
    """
    real = mask.double()
    log_ratio = (logp.double() - reference_logp.double()).masked_fill(~mask.bool(), 0.0)
    k3 = (torch.expm1(-log_ratio) + log_ratio) * real
    return {
        "score": float(scores.double().mean()),
        "score_sd": float(scores.double().std()) if len(scores) > 1 else 0.0,
        "kl": float(log_ratio.sum(dim=1).mean()),
        "kl_k3": float(k3.sum(dim=1).mean()),
        "length": float(real.sum(dim=1).mean()),
        "finished": sum(finished) / len(finished),
    }


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over generated tokens: 1 is a critic that knows."""
    real = mask.bool()
    known, told = returns.double()[real], values.double()[real]
    spread = known.var(correction=0)
    return float(1 - (known - told).var(correction=0) / spread) if spread > 0 else 0.0
