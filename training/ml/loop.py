"""The training loop on steps that are divided into parts beforehand: transformers' trainer for the
recipes on pairs; supervised fine-tuning takes the same steps through TRL's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from training.ml import ranks

Batch = dict[str, Tensor]
LossOf = Callable[[Any, Batch], tuple[Tensor, dict[str, Tensor]]]
"""(model, part of a step) to the sum of its rows' losses, and sums of what the curves show."""


class StepTrainer(Trainer):  # type: ignore[misc]
    """A step is a list of rows; it passes through the model part by part, and its loss is the sum
    over all rows divided by their number, however they are divided.

    The trainer sees each step as one batch of one long epoch. So a resumed run skips whole steps,
    and no sampler has a state.
    """

    def __init__(
        self,
        model: Any,
        settings: dict[str, Any],
        *,
        steps: Sequence[Sequence[int]],
        parts: Callable[[Sequence[int]], list[Batch]],
        loss: LossOf,
        callbacks: Sequence[TrainerCallback],
        optimizer: torch.optim.Optimizer | None = None,
        prepare: Callable[[Any, list[Batch]], None] = lambda model, parts: None,
    ) -> None:
        """Args:
        settings: of TrainingArguments, as steps.trainer_settings gives them.
        parts: the rows at these places as parts; each row has a "weight".
        prepare: called with all parts of a step before its first loss.
        """
        self.steps, self.parts, self.loss, self.prepare = steps, parts, loss, prepare
        self.values: dict[str, float] = {}
        super().__init__(
            model=model,
            args=TrainingArguments(
                **settings
                | {
                    **of_whole_steps(len(steps)),
                    "label_names": [],
                    # The other kind loses the gradient of adapters below a frozen embedding.
                    "gradient_checkpointing_kwargs": {"use_reentrant": False},
                }
            ),
            train_dataset=_Places(steps),
            callbacks=list(callbacks),
            optimizers=(optimizer, None),
        )
        self.remove_callback(PrinterCallback)  # standard output belongs to the caller

    def get_train_dataloader(self) -> Any:
        return one_step_at_a_time(self, self.parts)

    def training_step(
        self, model: Any, inputs: dict[str, list[Batch]], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of one step; returns its loss."""
        model = self.model  # not what wraps it among several processes: see `learn`
        model.train()
        parts: list[Batch] = self._prepare_inputs(inputs)["parts"]
        n_rows = sum(len(part["weight"]) for part in parts)
        self.prepare(model, parts)
        whole, self.values = learn(self, model, parts, self.loss, n_rows)
        return whole

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs = logs | self.values
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # nobody reads it, and it would look for the tokens of one batch

    def _track_num_input_tokens(self, inputs: dict[str, list[Batch]]) -> None:
        """Tokens without padding, of all parts of the step."""
        self.state.num_input_tokens_seen += sum(
            int(tensor.sum())
            for part in inputs["parts"]
            for name, tensor in part.items()
            if name.endswith("mask")
        )


def of_whole_steps(n_steps: int) -> dict[str, Any]:
    """Settings of a trainer that sees each step as one batch of one long epoch."""
    return {
        "per_device_train_batch_size": 1,  # one step
        "gradient_accumulation_steps": 1,  # its parts are summed up in `learn`
        "num_train_epochs": 1,
        "max_steps": n_steps,
        "remove_unused_columns": False,
    }


def one_step_at_a_time(trainer: Trainer, parts: Callable[[Any], list[Batch]]) -> Any:
    """The loader of a trainer whose dataset's rows are steps, in their order.

    Not prepared by accelerate, which would give every process steps of its own: all take the same
    one, and `learn` divides its parts.
    """
    return DataLoader(
        trainer.train_dataset,
        batch_size=1,
        collate_fn=lambda steps: {"parts": parts(steps[0])},
        pin_memory=trainer.args.dataloader_pin_memory,
    )


def learn(
    trainer: Trainer, model: Any, parts: Sequence[Batch], loss: LossOf, whole: Tensor | float
) -> tuple[Tensor, dict[str, float]]:
    """Gradients of one step from its parts; its loss, and what the curves show, both divided by
    `whole`: the step's rows, or the weights of its tokens.

    Several processes share the parts. Their gradients are summed once, when all parts are done,
    and not by what wraps the model for it, which wants as many passes of every process; of a model
    that is held in shares, FSDP sums them itself, and takes their mean.
    """
    sharded = ranks.is_sharded(model)
    mean_of = ranks.count() if sharded else 1
    total = torch.zeros((), device=trainer.args.device)
    sums: dict[str, Tensor] = {}
    for part, counts in ranks.share_of(parts, evenly=sharded):
        with trainer.compute_loss_context_manager():
            found, values = loss(model, part)
        trainer.accelerator.backward(found * (counts * mean_of) / whole)
        total += counts * found.detach() / whole
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + counts * value.detach() / whole
    if ranks.count() > 1 and not sharded:
        ranks.add_gradients(model)
    mine = {name: float(value) for name, value in sums.items()}
    if ranks.count() == 1:
        return total, mine
    everybodys, shown = ranks.add_up(float(total), mine)
    return torch.full_like(total, everybodys), shown


class _Places(Dataset[Sequence[int]]):
    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, at: int) -> Sequence[int]:
        return self.steps[at]
