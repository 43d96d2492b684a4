"""How the tensors of several models become one: the formulas, on one tensor.

Every method works on changes ΔW, what a model learned beside its base, never on the matrices A and
B of adapters by themselves: (B₁ + B₂)(A₁ + A₂) holds the cross terms B₁A₂ and B₂A₁, which nobody
learned.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.ml.merge_recipe import MergeRecipe


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢθᵢ / Σ wᵢ.

    Source: model soups, Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """
    return weighted_sum(tensors, [w / sum(weights) for w in weights])


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢτᵢ of changes: task arithmetic, before it is added to θ₀.

    Source: Ilharco et al. 2023, arXiv:2212.04089, section 2; a negative weight forgets.
    """
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """[sin((1−t)Ω)·v₀ + sin(tΩ)·v₁] / sin Ω, Ω the angle between them.

    The angle is that of the normalised tensors, read as one long vector each; it is applied to the
    tensors as they are. A straight line where |cos Ω| is above 0.9995 or a tensor is all zeros.
    (1,0,0) and (0,2,0) at t = 0.25 give (0.923880, 0.765367, 0).

    Source: Shoemake 1985, section 3.3; the rule is mergekit's (slerp.py).
    """
    length = first.norm() * second.norm()
    cosine = float((first * second).sum() / length) if length > 0 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    near, far = math.sin((1 - t) * angle), math.sin(t * angle)
    return (near * first + far * second) / math.sin(angle)


def trim(change: Tensor, density: float) -> Tensor:
    """The change with the share `density` of its numbers that is largest in size; zero elsewhere.

    Numbers as large as the smallest one kept are kept too.
    Source: TIES, Yadav et al. 2023, arXiv:2306.01708, section 4, step 1; here by tensor.
    """
    n_kept = max(1, int(density * change.numel()))
    if n_kept >= change.numel():
        return change
    sizes = change.abs().flatten()
    least = sizes.kthvalue(sizes.numel() - n_kept + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def drop(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each number kept with probability `density` and divided by it, zero otherwise: so the
    expected change stays what it is.

    Source: DARE, Yu et al. 2024, arXiv:2311.03099, eq. 1 and 2; their drop rate is 1 − density.
    """
    kept = torch.rand(change.shape, generator=generator) < density
    return torch.where(kept, change / density, 0.0)


def agreeing_mean(changes: Sequence[Tensor], weights: Sequence[float], sign: str) -> Tensor:
    """For each number: the sign that the models elect, and the weighted mean of those that bear it.

    Args: sign: "total" elects by Σ wᵢτᵢ, as the paper does; "count" by how many weigh on either
        side. Where the election is even, the mean of those above zero for "count", zero for
        "total".
    Source: TIES, Yadav et al. 2023, arXiv:2306.01708, section 4, steps 2 and 3; zeros take no part.
    """
    voices = changes if sign == "total" else [change.sign() for change in changes]
    elected = weighted_sum(voices, weights).sign()
    if sign == "count":
        elected = torch.where(elected == 0, 1.0, elected)
    total, weight_of = torch.zeros_like(elected), torch.zeros_like(elected)
    for change, weight in zip(changes, weights, strict=True):
        agrees = (change.sign() == elected) & (change != 0)
        total += torch.where(agrees, weight * change, 0.0)
        weight_of += torch.where(agrees, weight, 0.0)
    return torch.where(weight_of > 0, total / weight_of.clamp(min=1e-12), 0.0)


def merged_change(recipe: MergeRecipe, name: str, changes: Sequence[Tensor]) -> Tensor:
    """What the recipe makes of the changes of one tensor, before it is added to the base.

    Args: name: of the tensor; DARE draws anew for each, so that their order decides nothing.
    """
    weights = recipe.shares
    if recipe.method == "fold":
        return changes[0]
    if recipe.method == "linear":
        return linear(changes, weights)
    if recipe.method == "slerp":
        return slerp(changes[0], changes[1], recipe.t)
    if recipe.method.startswith("dare"):
        drawn = [_generator(recipe.seed, name, place) for place in range(len(changes))]
        changes = [drop(c, recipe.density, g) for c, g in zip(changes, drawn, strict=True)]
    elif recipe.method == "ties":
        changes = [trim(change, recipe.density) for change in changes]
    if recipe.method == "task_arithmetic":
        return recipe.scale * weighted_sum(changes, weights)
    if recipe.method == "dare_linear":
        return recipe.scale * linear(changes, weights)
    return recipe.scale * agreeing_mean(changes, weights, recipe.sign)


def _generator(seed: int, name: str, place: int) -> torch.Generator:
    words = f"{seed} {place} {name}".encode()
    number = 0
    for byte in words:  # the same on every machine, unlike hash()
        number = (number * 257 + byte) % (2**61 - 1)
    return torch.Generator().manual_seed(number)
