"""A run's steps: what it reports, when it measures, and checkpoints that survive a kill."""

import contextlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from training.ml import ranks
from training.ml.adapting import load_network, optimizer_name, save_network
from training.ml.batches import parts_of
from training.ml.config import Recipe, RowsRecipe
from training.ml.data import Row, longest_first
from training.ml.evaluation import log_loss, share_right
from training.ml.loading import device, number_format
from training.ml.methods import IN_4_BITS
from training.ml.peaks import held_now
from training.ml.settings import MOST_STEPS, texts_in_a_row, token_budget

COMPLETE = "complete"
"""A checkpoint without this file was cut short by a kill and is not resumed from."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a recipe tells the one who called it. A receiver that raises ends the run."""

    step: int
    n_steps: int
    split: str = "train"
    """train: a mean over the step's pairs; test, validation: over all pairs of that side."""
    values: dict[str, float] = field(default_factory=dict)
    """loss, of pairs also accuracy and margin; in training also learning_rate and grad_norm, the
    gradient's length before it is shortened. Empty: only "I am still here"."""
    cost: dict[str, float] = field(default_factory=dict)
    """What a training step took: tokens (padding not counted), seconds, memory (bytes held)."""
    checkpoint: Path | None = None
    """A checkpoint of this step has just been written here."""
    notes: tuple[str, ...] = ()
    """What people should read of this step, a line each."""


OnStep = Callable[[StepReport], None]
PAIR_LOGS = {"accuracy": "accuracy", "margin": "margin"}
"""What a point of the curves holds beside the loss, and what the trainer calls it in its log."""


def n_steps(recipe: Recipe, n_train: int) -> int:
    """Steps of the whole run, as the trainer counts them.

    Raises: ValueError for more than MOST_STEPS.
    """
    if recipe.max_steps:
        return recipe.max_steps
    batches = math.ceil(n_train / recipe.batch_size)
    found = math.ceil(recipe.epochs * math.ceil(batches / recipe.gradient_accumulation))
    if found > MOST_STEPS:
        raise ValueError(f"epochs: {found:,} steps are more than {MOST_STEPS:,}; set max_steps")
    return found


def every(asked: int, total: int) -> int:
    """Steps between two measurements or checkpoints; 0 asked means ten in the whole run."""
    return asked or max(1, total // 10)


def measured_together(recipe: Recipe, rows: Sequence[Row]) -> list[list[Row]]:
    """Held-out rows that pass through the model together, the longest first: if memory runs out at
    all, it does so at once."""
    parts = parts_of(
        [row.n_tokens for row in rows],
        most_rows=recipe.batch_size,
        most_tokens=token_budget(recipe),
        each=texts_in_a_row(recipe),
    )
    return [[rows[at] for at in part] for part in parts]


def trainer_settings(recipe: Recipe, folder: Path, n_train: int) -> dict[str, Any]:
    """What every trainer is told: the recipe in transformers' words, no reports to the outside.

    Raises: ValueError for a method or number format that cannot be held in shares, where it is to.
    """
    if ranks.in_shares():
        if recipe.method in (*IN_4_BITS, "galore"):
            raise ValueError(f"method: {recipe.method} cannot be shared by FSDP")
        if number_format(recipe.dtype) != torch.float32:
            raise ValueError("dtype: what FSDP shares is kept in float32")
    total = n_steps(recipe, n_train)
    return {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "learning_rate": recipe.learning_rate,
        "optim": optimizer_name(recipe),
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": math.ceil(recipe.warmup_share * total),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": number_format(recipe.dtype) == torch.bfloat16,
        "use_cpu": device().type == "cpu",
        "dataloader_pin_memory": device().type != "cpu",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number ends the run, see below
        "save_strategy": "steps",
        "save_steps": every(recipe.checkpoint_every, total),
        # Two: the older one stands until the newer one is complete.
        "save_total_limit": 2,
        "eval_strategy": "no",  # ReportSteps measures, pair by pair
        "report_to": "none",
        "include_num_input_tokens_seen": "non_padding",
        "disable_tqdm": True,
    }


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None. What a kill left half-written is removed."""
    found = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in found:
        if path not in whole:
            shutil.rmtree(path)
    return whole[-1] if whole else None


def resume_point(folder: Path) -> str | None:
    """What the trainer is to go on from, in every process the same: the newest whole checkpoint, or
    nothing."""
    newest = newest_checkpoint(folder) if ranks.is_first() else None
    name = ranks.from_first(newest.name if newest else None)
    return str(folder / "checkpoints" / name) if name else None


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Say nothing that nobody here can act on.

    TRL 1.16 uses names that transformers 5.23 has renamed; PEFT warns that PiSSA changes the base
    in memory, which we undo when we save; each checkpoint of whole weights would draw a bar.
    """
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            warnings.filterwarnings("ignore", message="PiSSA changes the base", module="peft")
            # The base is an adapter's folder, merged: its words are those of the base beneath.
            warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def pair_summary(margins: Sequence[float]) -> dict[str, float]:
    """A point of the curves from the margins of all test pairs."""
    return {
        "loss": log_loss(margins),
        "accuracy": float(share_right(margins)["value"]),
        "margin": sum(margins) / len(margins),
    }


class ReportSteps(TrainerCallback, Generic[Row]):  # type: ignore[misc]
    """Passes every step on, measures the held-out rows longest first, seals checkpoints, and keeps
    the weights that did best on validation rows."""

    def __init__(
        self,
        recipe: Recipe,
        total: int,
        test: Sequence[Row],
        numbers: Callable[[Sequence[Row]], list[float]],
        on_step: OnStep,
        *,
        logged: Mapping[str, str] = PAIR_LOGS,
        summary: Callable[[Sequence[float]], dict[str, float]] = pair_summary,
        validation: Sequence[Row] = (),
        folder: Path | None = None,
    ) -> None:
        """Args:
        numbers: one for each row of a batch under the model as it is now: margins of pairs, say.
        logged: as PAIR_LOGS.
        summary: the point of the curves that the numbers of all test rows give.
        validation: rows to choose the weights by; the test rows are then measured once, at the end.
        folder: of the run, where the best weights are kept; wanted with validation rows.
        """
        self.recipe, self.total, self.test = recipe, total, longest_first(test)
        self.numbers, self.on_step = numbers, on_step
        self.logged, self.summary = logged, summary
        self.validation, self.folder = longest_first(validation), folder
        self.last: tuple[int, list[float]] = (-1, [])
        """The newest measurement: its step, and the numbers of the test rows."""
        self.rows: list[Row] = []
        """The rows that are measured now, or were last: of test or validation."""
        self.began = time.perf_counter()
        """When the step began, moved on by what was measured meanwhile."""
        self.n_tokens = 0
        """Those of all steps before this one."""
        self.reached = 0
        """Steps of the run so far."""
        self.best_step: int | None = None
        """The step whose weights are kept, once the run has ended with validation rows."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reached = state.global_step
        if state.global_step > 0:
            load_network(kwargs["model"], self.recipe, _checkpoint(args, state))
            self._forget_after(state.global_step)
        if state.global_step == 0:  # also shows at once whether the longest rows fit into memory
            self._forget_after(-1)
            self._measure_now(0, kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()
        self.n_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reached = step = state.global_step
        if step % every(self.recipe.eval_every, self.total) == 0 or step == self.total:
            began = time.perf_counter()
            self._measure_now(step, kwargs["model"])
            self.began += time.perf_counter() - began
            if self._is_worn_out():
                control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:  # the summary at the end
            return
        _refuse_nan(logs["loss"], state.global_step)
        values = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm")}
        values |= {name: logs[theirs] for name, theirs in self.logged.items()}
        cost: dict[str, float] = {
            "tokens": state.num_input_tokens_seen - self.n_tokens,
            "seconds": time.perf_counter() - self.began,
        }
        if (memory := held_now()) is not None:
            cost["memory"] = memory
        self.on_step(
            StepReport(step=state.global_step, n_steps=self.total, values=values, cost=cost)
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = _checkpoint(args, state)
        if ranks.is_first():
            save_network(kwargs["model"], self.recipe, path)
        ranks.wait()  # each process has a file of its own in it
        if ranks.is_first():
            seal(path)
        self.on_step(StepReport(step=state.global_step, n_steps=self.total, checkpoint=path))

    def choose_best(self, model: Any) -> None:
        """Put the best weights back into the model, where validation rows chose some."""
        measured = self._measured()
        if measured:
            self.best_step = min(measured, key=lambda step: measured[step])
            saved = {}
            if ranks.is_first():
                saved = load_file(self._place("best.safetensors"), device=str(device()))
            for name, parameter in _trained(model).items():
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device())
                ranks.put_back(parameter.data, saved.get(name, empty))

    def measured_at_end(self, model: Any) -> list[float]:
        """The numbers of the test rows under the model as it is, measured unless they have just
        been."""
        if self.best_step is not None:
            return self.measure(self.reached, model)
        return self.measured_at(self.reached, model)

    def measured_at(self, step: int, model: Any) -> list[float]:
        """The numbers of the test rows after this step, measured unless they have just been."""
        return self.last[1] if self.last[0] == step else self.measure(step, model)

    def measure(self, step: int, model: Any) -> list[float]:
        """The numbers of all test rows, reported as one point; in the order of `self.test`."""
        found = self._numbers_of(self.test, "test", step, model)
        self.last = (step, found)
        return found

    def _measure_now(self, step: int, model: Any) -> None:
        if not self.validation:
            self.measure(step, model)
            return
        found = self._numbers_of(self.validation, "validation", step, model)
        measured = self._measured()
        loss = self.summary(found)["loss"]
        if loss < min(measured.values(), default=math.inf):
            weights = {name: ranks.whole(p.data).clone() for name, p in _trained(model).items()}
            if ranks.is_first():
                save_file(weights, self._place("best.safetensors"))
        self._keep_measured(measured | {step: loss})

    def _numbers_of(self, rows: list[Row], split: str, step: int, model: Any) -> list[float]:
        self.rows = rows
        if not rows:
            return []
        was_training = model.training
        model.eval()
        found: list[float] = []
        for part in measured_together(self.recipe, rows):
            found += self.numbers(part)
            self.on_step(StepReport(step=step, n_steps=self.total, split=split))
        model.train(was_training)
        _refuse_nan(sum(found), step)
        values = self.summary(found)
        self.on_step(StepReport(step=step, n_steps=self.total, split=split, values=values))
        return found

    def _is_worn_out(self) -> bool:
        """Whether as many measurements as `early_stopping` allows brought no lower loss."""
        measured = self._measured()
        if not measured or not isinstance(self.recipe, RowsRecipe):
            return False
        patience = self.recipe.early_stopping
        if not patience:
            return False
        best = min(measured, key=lambda step: measured[step])
        return sum(step > best for step in measured) >= patience

    def _measured(self) -> dict[int, float]:
        """Loss on the validation rows after each step that it was measured at."""
        found: dict[str, float] = {}
        if self.validation and ranks.is_first() and self._place("best.json").exists():
            found = json.loads(self._place("best.json").read_text())
        found = ranks.from_first(found) if self.validation else found
        return {int(step): loss for step, loss in found.items()}

    def _forget_after(self, step: int) -> None:
        """What was measured past the checkpoint that a run goes on from is measured again."""
        if self.validation:
            measured = self._measured()
            self._keep_measured({at: loss for at, loss in measured.items() if at <= step})

    def _keep_measured(self, measured: dict[int, float]) -> None:
        """In one move: a kill in the middle leaves what was there before."""
        if not ranks.is_first():
            return
        unfinished = self._place("best.json.unfinished")
        unfinished.write_text(json.dumps(measured))
        unfinished.replace(self._place("best.json"))

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name


def _trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole, once all of it is on the disk."""
    for path in checkpoint.rglob("*"):
        if path.is_dir():
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    (checkpoint / COMPLETE).touch()


def _refuse_nan(value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is not a number at step {step}: lower learning_rate, or use float32"
        )
