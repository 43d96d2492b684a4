"""Losses on pairs with soft labels and weights, and how those reach a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.ml.data import TokenPair

LABEL_COLUMNS = ("prob", "weight")


def soft_pair_loss(delta: Tensor, prob: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of each pair with a soft label: w · [−q log σ(Δ) − (1 − q) log σ(−Δ)].

    With q = 1 and w = 1 it is the usual −log σ(Δ). Its least value is at Δ = logit q, so a pair
    that votes are split on is pulled to a small difference; a tie (q = ½) is pulled together.

    Args (all (pairs,)): delta: chosen minus rejected, of rewards or of β·(log π/π_ref); prob: q,
        the probability that the chosen response is the better one; weight: w.
    Source: cDPO, Mitchell 2023, "A note on DPO with noisy preferences", eq. 3, with a q of its own
        for each pair.
    """
    return weight * (-prob * logsigmoid(delta) - (1 - prob) * logsigmoid(-delta))


def label_columns(pair: TokenPair) -> dict[str, float]:
    """What a row of a trainer's dataset holds beside the tokens."""
    return {"prob": pair.prob, "weight": pair.weight}


def add_labels(batch: dict[str, Any], examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The batch with the labels of its rows, each (pairs,)."""
    for name in LABEL_COLUMNS:
        batch[name] = torch.tensor([row[name] for row in examples], dtype=torch.float32)
    return batch
