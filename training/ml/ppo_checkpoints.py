"""What a run of PPO keeps on disk: checkpoints, its best weights, and which alarms were heard."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from training.ml.ppo_learner import Learner
from training.ml.roles import POLICY, Roles
from training.ml.steps import seal

BEST = "best.safetensors"
"""The policy's weights at the best look."""
HEARD = "heard-{step}"
"""An empty file: somebody knows of the alarm that paused the run at this step."""


@dataclass
class State:
    """What changes in a run beside the weights. Random states and the place in the data are not
    among it: both are told from the step's number."""

    step: int = 0
    kl_coefficient: float = 0.0
    scale: list[tuple[float, float]] = field(default_factory=list)
    """Mean and deviation of each scorer on the start's responses."""
    holdout_scale: list[tuple[float, float]] = field(default_factory=list)
    """The same of the hold-out, on the start's responses to the test prompts."""
    watch: dict[str, Any] = field(default_factory=dict)
    """See monitors.Watch."""
    stopped: dict[str, Any] = field(default_factory=dict)
    """The alarm that stopped the run: resumed, it takes no further step."""
    paused: dict[str, Any] = field(default_factory=dict)
    """The alarm that paused it: resumed, it goes on if somebody has heard of that."""


def save_checkpoint(folder: Path, learner: Learner, state: State) -> Path:
    """Weights and optimizers as safetensors, the rest as JSON; the one before the last one goes."""
    path = folder / "checkpoints" / f"checkpoint-{state.step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    tensors = {}
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.roles.trained(role).items():
            tensors[f"{role}/{name}"] = parameter.data.contiguous()
            for part, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{role}/{name}/{part}"] = value.contiguous()
    save_file(tensors, path / "learner.safetensors")
    (path / "state.json").write_text(json.dumps(asdict(state)))
    if (folder / BEST).exists():
        shutil.copyfile(folder / BEST, path / BEST)
    seal(path)
    for older in sorted(path.parent.glob("checkpoint-*"), key=_number)[:-2]:
        shutil.rmtree(older)
    return path


def load_checkpoint(path: Path, learner: Learner) -> State:
    """Put a checkpoint's weights and optimizers into their places; its state comes back."""
    tensors = load_file(path / "learner.safetensors")
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.roles.trained(role).items():
            parameter.data.copy_(tensors[f"{role}/{name}"])
            parts = ("step", "exp_avg", "exp_avg_sq")  # absent while a role has not learned yet
            known = {part: tensors.get(f"{role}/{name}/{part}") for part in parts}
            if all(value is not None for value in known.values()):
                optimizer.state[parameter] = {
                    part: value.to(parameter.device)
                    for part, value in known.items()
                    if value is not None
                }
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    for name in ("scale", "holdout_scale"):
        state[name] = [(mean, deviation) for mean, deviation in state[name]]
    if (path / BEST).exists():  # what was best after this step: it may have been replaced since
        shutil.copyfile(path / BEST, path.parents[1] / BEST)
    return State(**state)


def heard(folder: Path, alarm: dict[str, Any]) -> None:
    """Somebody knows of the alarm that paused this run: called again, `train` goes on."""
    (folder / HEARD.format(**alarm)).touch()


def save_best(folder: Path, roles: Roles) -> None:
    """The policy's weights of now as the best so far, in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{BEST}"
    weights = {name: p.data.contiguous() for name, p in roles.trained(POLICY).items()}
    save_file(weights, unfinished)
    unfinished.replace(folder / BEST)


def load_best(folder: Path, roles: Roles) -> None:
    saved = load_file(folder / BEST)
    for name, parameter in roles.trained(POLICY).items():
        parameter.data.copy_(saved[name])


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])
