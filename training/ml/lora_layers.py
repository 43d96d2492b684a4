"""LoRA in float32 with a step of its own for the way back: the same sums in a third of the passes.

The library multiplies and adds the adapter's part over the whole output, and again on the way back;
here the products of matrices add it themselves. Layers in 4 bits or 16, with a bias of their own in
the adapter, or of another kind (DoRA) stay with the library.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor


class QuickLinear(Linear):  # type: ignore[misc]
    """A layer of the library's that is quick where it can be. Two adapters at once it leaves to the
    library, and any words that come with the input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.base_layer
        if args or kwargs or self.merged or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or not active:
            return base(x)  # type: ignore[no-any-return]
        role = active[0]
        down, up = self.lora_A[role], self.lora_B[role]
        weights = (base.weight, down.weight, up.weight)
        if (
            len(active) > 1
            or role in self.lora_variant
            or up.bias is not None
            or any(weight.dtype != torch.float32 for weight in (x, *weights))
            or base.weight.requires_grad
        ):
            return super().forward(x)  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        given = (rows, base.bias, *weights, self.scaling[role])
        told: Tensor = _Adapted.apply(*given)  # type: ignore[no-untyped-call]
        return told.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, base: Tensor, down: Tensor, up: Tensor, by: float
    ) -> Tensor:
        small = x @ down.t()  # (tokens, rank)
        told = x @ base.t() if bias is None else torch.addmm(bias, x, base.t())
        ctx.save_for_backward(x, small, base, down, up)
        ctx.by = by
        return told.addmm_(small, up.t(), alpha=by)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, small, base, down, up = ctx.saved_tensors
        (grad,) = given
        back = (grad @ up).mul_(ctx.by)  # (tokens, rank)
        to_x = (grad @ base).addmm_(back, down) if ctx.needs_input_grad[0] else None
        to_down, to_up = back.t() @ x, (grad.t() @ small).mul_(ctx.by)
        return to_x, None, None, to_down, to_up, None


def quicken(model: torch.nn.Module) -> None:
    """Let every LoRA layer of the library's over a plain linear layer be quick. Without dropout."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear:
            module.__class__ = QuickLinear
