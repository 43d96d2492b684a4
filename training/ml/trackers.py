"""A run's numbers in other programs: TensorBoard, Weights & Biases, Trackio.

All three write files below one folder and reach for no network, unless they are told that they may.
They get what the run's page gets, held-out measurements among it, under train/… and test/….
"""

import os
from pathlib import Path
from typing import Any, Protocol

from training.ml.settings import TRACKERS
from training.ml.steps import StepReport


class Tracker(Protocol):
    """What takes a run's reports."""

    def log(self, report: StepReport) -> None: ...

    def close(self) -> None: ...


def open_tracker(
    package: str,
    *,
    folder: Path,
    project: str,
    name: str,
    settings: dict[str, Any],
    online: bool = False,
) -> Tracker:
    """The tracker that this package provides, for one attempt of a run.

    Args:
        folder: for its files; made if it is not there.
        name: of the run; a resumed run has the name that it had.
        settings: of the recipe, shown beside the curves.
    Raises: ModuleNotFoundError if the package is not installed; ValueError for an unknown one.
    """
    if package not in TRACKERS:
        raise ValueError(f"report_to is {package!r}; it must be one of {', '.join(TRACKERS)}")
    folder.mkdir(parents=True, exist_ok=True)
    if package == "tensorboard":
        return _TensorBoard(folder / project / name)
    if package == "wandb":
        return _WandB(folder, project, name, settings, online)
    return _Trackio(folder, project, name, settings, online)


def named(report: StepReport) -> dict[str, float]:
    """The numbers of a report under the names that all trackers show."""
    found = {f"{report.split}/{name}": value for name, value in report.values.items()}
    if report.cost.get("seconds"):
        found["train/tokens_per_second"] = report.cost["tokens"] / report.cost["seconds"]
    if "memory" in report.cost:
        found["train/memory"] = report.cost["memory"]
    return found


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        import tensorboard  # noqa: F401 - torch's own message does not name the package
        from torch.utils import tensorboard as written

        self.make, self.folder = written.SummaryWriter, folder
        self.writer: Any = None

    def log(self, report: StepReport) -> None:
        if self.writer is None:
            # What an earlier attempt wrote of this step and those after it is not drawn any more.
            self.writer = self.make(str(self.folder), purge_step=report.step)  # type: ignore[no-untyped-call]
        for name, value in named(report).items():
            self.writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _WandB:
    def __init__(
        self, folder: Path, project: str, name: str, settings: dict[str, Any], online: bool
    ) -> None:
        # Before the import: it reads them once.
        os.environ["WANDB_MODE"] = "online" if online else "offline"
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        self.run = wandb.init(
            project=project,
            name=name,
            id=f"{project}-{name}",
            resume="allow",
            dir=str(folder),
            config=settings,
            save_code=False,
        )
        # A resumed run reports some steps again, which W&B's own count of steps forbids.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, report: StepReport) -> None:
        self.run.log({"step": report.step, **named(report)})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(
        self, folder: Path, project: str, name: str, settings: dict[str, Any], online: bool
    ) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)
        if not online:  # it would send to the server or Space that these name
            for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
                os.environ.pop(variable, None)
        import trackio

        self.trackio = trackio
        trackio.init(
            project=project,
            name=name,
            config=settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,  # a run's own numbers are enough
            auto_log_cpu=False,
        )

    def log(self, report: StepReport) -> None:
        self.trackio.log(named(report), step=report.step)

    def close(self) -> None:
        self.trackio.finish()
