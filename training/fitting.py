"""Does a run fit? What the machine has, what a run will take, how far foretelling erred."""

import shutil
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import cache

from labeling.models import Rater
from labeling.scoring import own_model_of
from training.ml import ppo_memory
from training.ml.architecture import Architecture, read_architecture
from training.ml.config import AnyRecipe
from training.ml.memory import (
    Estimate,
    Suggestion,
    Work,
    inference,
    lighter_work,
    predict,
    read_bytes,
    suggestions,
)
from training.ml.methods import why_not
from training.ml.ppo_config import PPORecipe
from training.models import Run

SEEN_SECONDS = 30
"""How long a look at the machine's memory stands."""
RUNS_COMPARED = 50
LEAST_RUNS = 3
"""Earlier runs that an error band needs."""


@dataclass(frozen=True)
class Machine:
    """Where a run would go."""

    device: str
    available: int | None
    """Free bytes; None where nobody can tell."""
    source: str
    """setting, gpu or memory: where the figure comes from."""


@dataclass(frozen=True)
class Fit:
    """An estimate beside the machine's memory."""

    estimate: Estimate
    machine: Machine
    suggestions: list[Suggestion]
    band: dict[str, Any] | None
    """Bytes, from earlier runs: "low", "high", "n"; or a value of None and "why". A model at work
    has none: nobody keeps its peaks."""

    @property
    def trained_percent(self) -> float:
        """Trained numbers as a share of the base's."""
        return 100 * self.estimate.trained / self.estimate.parameters

    @property
    def fits(self) -> bool | None:
        available = self.machine.available
        return None if available is None else self.estimate.peak <= available


def machine(asked: str = "") -> Machine:
    """The worker's memory: as asked, as PREFLOOP_GPU_MEMORY says, or as this machine has it.

    Raises: ValueError if what was asked or set is no amount of memory.
    """
    if asked or settings.PREFLOOP_GPU_MEMORY:
        return Machine("cuda", read_bytes(asked or settings.PREFLOOP_GPU_MEMORY), "setting")
    seen = cache.get("training.machine")
    if seen is None:
        seen = _look()
        cache.set("training.machine", seen, SEEN_SECONDS)
    return Machine(*seen)


def _look() -> tuple[str, int | None, str]:
    """By nvidia-smi, since torch would take seconds; else the memory that Linux can give."""
    if program := shutil.which("nvidia-smi"):
        asked = [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603 - no shell
            return "cuda", int(done.stdout.splitlines()[0]) * 2**20, "gpu"
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass  # a driver without a card: what follows is then true
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "cpu", None, "memory"
    free = next((line for line in lines if line.startswith("MemAvailable:")), "")
    return "cpu", int(free.split()[1]) * 1024 if free else None, "memory"


def fit(kind: str, recipe: AnyRecipe, where: Machine, judge: Rater | None = None) -> Fit:
    """Whether a run fits, what it takes, and what would fit.

    Args: judge: of the project, that scores what PPO writes.
    Raises: ValueError in plain words where it cannot be told: no config, an uncounted model, a
        method that the recipe or the base refuses.
    """
    arch: Architecture = read_architecture(recipe.base_model)
    reason = why_not(
        kind,
        recipe.method,
        {"model_type": arch.name},
        gradient_checkpointing=recipe.gradient_checkpointing,
        packing=getattr(recipe, "packing", False),
    )
    if reason:
        raise ValueError(reason)
    found = foretold(kind, recipe, arch, device=where.device, judge=judge)
    others: list[Suggestion] = []
    if where.available is not None and found.peak > where.available:
        asked: dict[str, Any] = {"device": where.device}
        if isinstance(recipe, PPORecipe):
            asked["judge"] = _asked_here(judge)
            others = ppo_memory.suggestions(recipe, arch, where.available, **asked)
        else:
            others = suggestions(kind, recipe, arch, where.available, **asked)
    return Fit(found, where, others, error_band(found.peak, where.device, recipe.method))


def foretold(
    kind: str,
    recipe: AnyRecipe,
    arch: Architecture,
    *,
    device: str,
    tokens: int | None = None,
    judge: Rater | None = None,
) -> Estimate:
    """The peak of a run of any recipe; see training/ml/memory.py and ppo_memory.py."""
    if isinstance(recipe, PPORecipe):
        return ppo_memory.predict(
            recipe, arch, device=device, tokens=tokens, judge=_asked_here(judge)
        )
    return predict(kind, recipe, arch, device=device, tokens=tokens)


def _asked_here(judge: Rater | None) -> ppo_memory.Judge | None:
    """What a judge takes of the run's own machine: nothing if it is on a server."""
    own = own_model_of(judge) if judge is not None else None
    return ppo_memory.Judge(**asdict(own)) if own is not None else None


def fit_work(use: str, work: Work, folder: str, where: Machine) -> Fit:
    """Whether a model at work fits.

    Raises: ValueError in plain words where it cannot be told.
    """
    arch = read_architecture(folder)
    found = inference(use, work, arch, device=where.device)
    others: list[Suggestion] = []
    if where.available is not None and found.peak > where.available:
        others = lighter_work(use, work, arch, where.available, device=where.device)
    return Fit(found, where, others, None)


def error_band(peak: int, device: str, method: str) -> dict[str, Any]:
    """Where the measured peak will lie, by the runs of the same device and method so far.

    The foretold peak times the mean of measured / predicted, and two standard deviations of it to
    either side. Runs of all projects count: they share the machine.
    """
    ratios = [
        measured / predicted
        for predicted, measured in Run.objects.filter(
            device=device, recipe__method=method, predicted_peak__gt=0, measured_peak__gt=0
        )
        .order_by("-pk")
        .values_list("predicted_peak", "measured_peak")[:RUNS_COMPARED]
    ]
    if len(ratios) < LEAST_RUNS:
        return {"value": None, "n": len(ratios), "why": "too few runs of this kind so far"}
    mean, sd = statistics.mean(ratios), statistics.stdev(ratios)
    return {
        "value": round(peak * mean),
        "low": round(peak * max(0.0, mean - 2 * sd)),
        "high": round(peak * (mean + 2 * sd)),
        "n": len(ratios),
    }


def keep_peaks(
    run: Run, recipe: AnyRecipe, metrics: dict[str, Any], device: str, measured: int | None
) -> None:
    """Write beside the run what was foretold for its longest row, and what was measured."""
    try:
        arch = read_architecture(recipe.base_model)
        longest = metrics.get("longest")
        found = foretold(run.kind, recipe, arch, device=device, tokens=longest, judge=run.judge)
    except ValueError:  # a model that is not counted; the measurement stands alone
        predicted = None
    else:
        # CUDA's context is not in what torch reports.
        without = [t.bytes for t in found.terms if device == "cuda" and t.name == "libraries"]
        predicted = found.peak - sum(without)
    run.report(predicted_peak=predicted, measured_peak=measured, device=device)
