"""GaLore: AdamW on a few directions of each weight's gradient, all weights trained."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SCALE = 0.25
"""α of the paper (section 5.1): how far a step in the kept directions goes."""


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW whose two averages are kept for a projected gradient of `rank` directions.

    A weight of m × n with m ≥ n keeps averages of m × rank (else rank × n) and the projection,
    rank × n. Groups without "rank" are plain AdamW.

    The package galore-torch does the same, but keeps the projection as an object of a class of its
    own, which a checkpoint can only give back by running a pickle's code; here all state is
    tensors, so a run resumes from plain numbers.

    Source: Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank
    Projection", algorithm 2, arXiv:2403.03507.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Args: groups: each with "params", and with "rank" and "gap" (steps between two looks
        for the directions) where its weights, all matrices, are projected."""
        super().__init__(
            groups, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        n_before = int(state["step"]) if state else 0
        if "rank" in group:
            if n_before % group["gap"] == 0:
                state["directions"] = directions(gradient, group["rank"])
            gradient = project(gradient, state["directions"])
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] = torch.tensor(float(n_before + 1))
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        n = n_before + 1
        unbias = (1 - beta2**n) ** 0.5 / (1 - beta1**n)
        change = mean / square.sqrt().add_(group["eps"]) * unbias
        if "rank" in group:
            change = SCALE * project_back(change, state["directions"], parameter.shape)
        parameter.add_(change, alpha=-group["lr"])
        if group["weight_decay"] > 0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def directions(gradient: Tensor, rank: int) -> Tensor:
    """The main singular vectors of the shorter side: (rank, n) for m ≥ n, else (m, rank)."""
    left, _sizes, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    tall = gradient.shape[0] >= gradient.shape[1]
    found: Tensor = (right[:rank] if tall else left[:, :rank]).to(gradient.dtype).contiguous()
    return found


def project(gradient: Tensor, kept: Tensor) -> Tensor:
    """The gradient in the kept directions: (m, rank) for m ≥ n, else (rank, n)."""
    if gradient.shape[0] >= gradient.shape[1]:
        return gradient @ kept.T
    return kept.T @ gradient


def project_back(change: Tensor, kept: Tensor, shape: torch.Size) -> Tensor:
    """A change in the kept directions as one of the whole weight, (m, n)."""
    return change @ kept if shape[0] >= shape[1] else kept @ change
