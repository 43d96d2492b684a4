"""Losses on pairs, ratings and single responses: one formula in one place, with its source.

Numbers of a batch in, one loss for each of its rows out; a recipe weighs, sums and divides them.
Labels are soft throughout: where a loss knows only a better and a worse response, `expected` takes
its mean under the label.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.ml.data import TokenPair

LABEL_COLUMNS = ("prob", "weight", "strength", "length")


# Labels -------------------------------------------------------------------------------------------


def label_columns(pairs: Sequence[TokenPair]) -> dict[str, Tensor]:
    """What a batch knows of its pairs beside the tokens, (pairs,) each: prob, weight, strength (0
    to 3; 0 where nobody said one) and length (characters of the chosen response more)."""
    return {
        "prob": torch.tensor([pair.prob for pair in pairs]),
        "weight": torch.tensor([pair.weight for pair in pairs]),
        "strength": torch.tensor([pair.strength or 0.0 for pair in pairs]),
        "length": torch.tensor([float(pair.chosen_chars - pair.rejected_chars) for pair in pairs]),
    }


def smoothed(prob: Tensor, smoothing: float) -> Tensor:
    """The label that is left if it is wrong with probability ε: q(1 − ε) + (1 − q)ε.

    Source: conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences", eq. 2.
    """
    return prob * (1 - smoothing) + (1 - prob) * smoothing


def sharpened(prob: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A soft label as a hard one that weighs |2q − 1|: a tie then weighs nothing, where the soft
    label would pull both responses together."""
    return (prob >= 0.5).to(prob), weight * (2 * prob - 1).abs()


# Reward models ------------------------------------------------------------------------------------


def soft_pair_loss(
    delta: Tensor, prob: Tensor, weight: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """Cross-entropy of each pair with a soft label:
    w · [−q log σ(Δ − m) − (1 − q) log σ(−Δ + m)].

    With q = 1, w = 1 and m = 0 it is the usual −log σ(Δ). Its least value is at Δ = m + logit q, so
    a pair that votes are split on is pulled to a small difference; a tie (q = ½) is pulled
    together. A margin therefore belongs to hard labels alone.

    Args (all (pairs,)): delta: chosen minus rejected, of rewards or of β·(log π/π_ref); prob: q,
        the probability that the chosen response is the better one; weight: w; margin: m.
    Source: cDPO, Mitchell 2023, eq. 3, with a q of its own for each pair; the margin is Touvron et
        al. 2023, arXiv:2307.09288, eq. 2.
    """
    gap = delta - margin
    return weight * (-prob * logsigmoid(gap) - (1 - prob) * logsigmoid(-gap))


def strength_margin(strength: Tensor, most: float) -> Tensor:
    """The distance that a pair of this strength (1 slightly, 2 clearly, 3 much) is to keep.

    Source: Touvron et al. 2023, arXiv:2307.09288, appendix A.3.3, table 27: 1/3, 2/3, 1 with
        `most` 1 ("small"), 1, 2, 3 with `most` 3 ("large").
    """
    return most * strength / 3


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r₁ + r₂)² of each pair, which fixes the rewards' free constant at 0.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, section 2 (with the weight 0.01).
    """
    return (chosen + rejected) ** 2


def rating_loss(chosen: Tensor, rejected: Tensor, ratings: Tensor) -> Tensor:
    """Squared error of both rewards of a pair against the responses' ratings, halved.

    Args: chosen, rejected: rewards, (pairs,); ratings: (pairs, 2).
    Source: the regression reward model of Wang et al. 2024 (HelpSteer2-Preference),
        arXiv:2410.01257.
    """
    return ((chosen - ratings[:, 0]) ** 2 + (rejected - ratings[:, 1]) ** 2) / 2


def single_rating_loss(rewards: Tensor, ratings: Tensor) -> Tensor:
    """½(r − g)² of each response by itself: of both of a pair it sums up to rating_loss."""
    return (rewards - ratings) ** 2 / 2


def length_slope(
    lengths: Sequence[float], probs: Sequence[float], weights: Sequence[float]
) -> float:
    """How much a character more speaks for a response, in nats: α of a logistic regression of the
    labels on the differences in length, without an intercept.

    A reward model that is trained on Δ + α·length keeps for Δ what length does not explain; the
    length's part is dropped when it scores. Where length tells every label, α is held back by a
    Gaussian prior on the effect of one standard deviation (sd 10).

    Args: lengths: characters of the chosen response more than of the rejected one; probs, weights:
        of the label that the chosen one is better.
    Source: a product of experts whose biased expert sees the length alone, Shen et al. 2023,
        arXiv:2310.05199, section 3; offsets in a logistic regression as in length-controlled win
        rates, Dubois et al. 2024, arXiv:2404.04475.
    """
    spread = math.sqrt(sum(x * x for x in lengths) / max(1, len(lengths)))
    if spread == 0:
        return 0.0
    x = torch.tensor(lengths, dtype=torch.float64) / spread
    q, w = (torch.tensor(values, dtype=torch.float64) for values in (probs, weights))
    alpha = 0.0
    for _round in range(50):  # Newton's steps: the log-likelihood is concave
        p = torch.sigmoid(alpha * x)
        slope = (w * (q - p) * x).sum().item() - alpha / 100
        curve = (w * p * (1 - p) * x * x).sum().item() + 1 / 100
        step = max(-1.0, min(1.0, slope / curve))
        alpha += step
        if abs(step) < 1e-10:
            break
    return alpha / spread


# Policies -----------------------------------------------------------------------------------------


def expected(
    loss: Callable[[Tensor, Tensor], Tensor], chosen: Tensor, rejected: Tensor, prob: Tensor
) -> Tensor:
    """Mean of a loss of (better, worse) under a soft label: q·ℓ(c, r) + (1 − q)·ℓ(r, c)."""
    return prob * loss(chosen, rejected) + (1 - prob) * loss(rejected, chosen)


def sigmoid_loss(d: Tensor, beta: float) -> Tensor:
    """DPO: −log σ(βd), d = log(π/π_ref) of the chosen response minus that of the rejected one.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    return -logsigmoid(beta * d)


def robust_loss(d: Tensor, beta: float, flips: float) -> Tensor:
    """[(1 − ε)·L(d) − ε·L(−d)] / (1 − 2ε) with L of DPO: unbiased where a share ε of the labels is
    turned round.

    Source: Chowdhury et al. 2024, arXiv:2403.00409, section 3.
    """
    return ((1 - flips) * sigmoid_loss(d, beta) - flips * sigmoid_loss(-d, beta)) / (1 - 2 * flips)


def hinge_loss(d: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βd). Source: SLiC-HF, Zhao et al. 2023, arXiv:2305.10425, on log-ratios."""
    return torch.relu(1 - beta * d)


def ipo_loss(d: Tensor, beta: float) -> Tensor:
    """(d − 1/(2β))², d of means over each response's tokens.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; the mean, which the paper leaves open, is
        what its authors confirmed to TRL.
    """
    return (d - 1 / (2 * beta)) ** 2


def length_regularised_loss(d: Tensor, beta: float, alpha: float, longer: Tensor) -> Tensor:
    """R-DPO: −log σ(βd + α·(|y_w| − |y_l|)): where the better response is the longer one, less of
    the label is left for the policy to explain.

    Args: longer: tokens that the better response has more than the worse.
    Source: Park et al. 2024, arXiv:2403.19159. A policy that is charged α for a token has the
        implicit reward β·log(π/π_ref) + α|y|; α > 0 makes its responses shorter.
    """
    return -logsigmoid(beta * d + alpha * longer)


def simpo_loss(d: Tensor, beta: float, gamma: float) -> Tensor:
    """−log σ(β·d − γ), d of mean log-probabilities under the policy alone: no reference.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    return -logsigmoid(beta * d - gamma)


def log_odds(mean_logp: Tensor) -> Tensor:
    """log p/(1 − p) of p = exp(mean log-probability of the tokens)."""
    # 1 − p without cancellation; at p = 1, which rounding may give, the odds stay finite.
    held = mean_logp.clamp(max=-1e-6)
    return held - torch.log(-torch.expm1(held))


def odds_ratio_loss(better: Tensor, worse: Tensor) -> Tensor:
    """−log σ(log odds_w − log odds_l) of mean log-probabilities: ORPO's second term; the first is
    −(mean log-probability) of the better response.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """
    return -logsigmoid(log_odds(better) - log_odds(worse))


def kto_loss(u: Tensor, baseline: Tensor, beta: float, desirable: Tensor) -> Tensor:
    """1 − σ(βu − z₀) of a desirable response, 1 − σ(z₀ − βu) of an undesirable one.

    Args: u: log(π/π_ref) of each response, (rows,); baseline: z₀, see kto_baseline; desirable:
        1 or 0, (rows,).
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.
    """
    sign = 2 * desirable - 1
    return 1 - torch.sigmoid(sign * (beta * u - baseline))


def kto_baseline(u_mismatched: Tensor, beta: float) -> Tensor:
    """z₀: β·max(0, mean log(π/π_ref)) of responses to other prompts of the step, without gradient.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1: an estimate of the KL divergence
        from the reference.
    """
    return (beta * u_mismatched.mean()).clamp(min=0).detach()
