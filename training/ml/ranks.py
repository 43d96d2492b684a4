"""Several processes that train one model: which of them this is, and what they tell each other.

`accelerate launch` starts them and numbers them in the environment. Each holds all rows, and the
model or its share of it; the parts of a step are divided among them. The first alone reports and
writes files. Where there is one process, nothing here does anything.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

BUCKET = 2**23
"""Numbers that are summed over the processes in one message: few messages, little extra memory."""


def in_shares() -> bool:
    """Whether the launcher was told that each process holds a share of the weights (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def meet() -> None:
    """Find the other processes, if there are any; each then has its own GPU.

    Raises: ValueError for a way of sharing under which the numbers would be others, or no
        checkpoint whole.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ValueError("DeepSpeed divides steps by itself: let the processes share by FSDP")
    if in_shares() and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("FSDP of version 1 is not supported: write fsdp_version: 2")
    n = int(os.environ.get("WORLD_SIZE", "1"))
    several_machines = int(os.environ.get("LOCAL_WORLD_SIZE", n)) < n
    whole_checkpoints = os.environ.get("FSDP_STATE_DICT_TYPE") == "FULL_STATE_DICT"
    if in_shares() and several_machines and not whole_checkpoints:
        raise ValueError(
            "FSDP over several machines: write fsdp_state_dict_type: FULL_STATE_DICT; a checkpoint "
            "in shares would lie in parts on all of them, and no run could go on from it"
        )
    if n > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def is_first_of_machine() -> bool:
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def wait() -> None:
    """Until all processes have come here."""
    if count() > 1:
        dist.barrier()


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_of(parts: Sequence[T], *, evenly: bool) -> list[tuple[T, float]]:
    """This process's parts of a step, and how much each counts: all of it.

    Args: evenly: every process gets as many, some of them once more for nothing: what is held in
        shares is gathered at every pass, in which all processes have to take part.
    """
    n = count()
    mine = [(part, 1.0) for part in parts[dist.get_rank() :: n]] if n > 1 else []
    if n == 1:
        return [(part, 1.0) for part in parts]
    if evenly and len(mine) < -(-len(parts) // n):
        mine.append((parts[-1], 0.0))  # the shortest
    return mine


def add_up(total: float, sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """A number and named numbers, each summed over the processes."""
    if count() == 1:
        return total, dict(sums)
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, (total, dict(sums)))
    added: dict[str, float] = {}
    for _total, each in found:
        for name, value in each.items():
            added[name] = added.get(name, 0.0) + value
    return sum(one for one, _sums in found), added


def add_gradients(model: Any) -> None:
    """Sum every gradient over the processes, of weights that each holds whole.

    A weight that no part of the step touched, in no process, stays without one.
    """
    if count() == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return
    touched = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
    dist.all_reduce(touched)
    waiting: list[Tensor] = []
    for parameter, n in zip(trained, touched.tolist(), strict=True):
        if not n:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if waiting and (
            waiting[0].dtype != parameter.grad.dtype
            or sum(grad.numel() for grad in waiting) + parameter.grad.numel() > BUCKET
        ):
            _add_together(waiting)
            waiting = []
        waiting.append(parameter.grad)
    if waiting:
        _add_together(waiting)


def _add_together(gradients: list[Tensor]) -> None:
    together = torch.cat([grad.reshape(-1) for grad in gradients])
    dist.all_reduce(together)
    sizes = [grad.numel() for grad in gradients]
    for grad, found in zip(gradients, torch.split(together, sizes), strict=True):
        grad.copy_(found.view_as(grad))


def is_sharded(model: Any) -> bool:
    """Whether each process holds a share of the weights alone (FSDP)."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A weight of which this process may hold a share. All processes call it together."""
    if isinstance(tensor, DTensor):
        gathered: Tensor = tensor.full_tensor()
        return gathered
    return tensor


def whole_weights(model: Any) -> dict[str, Tensor] | None:
    """All weights of a sharded model, in main memory; None if every process has them anyway."""
    if not is_sharded(model):
        return None
    return {name: whole(value).cpu() for name, value in model.state_dict().items()}


@torch.no_grad()
def put_back(tensor: Tensor, values: Tensor) -> None:
    """Overwrite a weight, or this process's share of it, with the first process's `values`, which
    are given where they were kept and empty elsewhere. All processes call it together."""
    if count() > 1:
        dist.broadcast(values, src=0)
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values, tensor.device_mesh, tensor.placements)
    tensor.copy_(values)
