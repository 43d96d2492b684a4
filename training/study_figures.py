"""What the trainings of a study come to: numbers in, numbers out.

Each training was held against the same pairs, so two of them are compared pair by pair. Intervals
are 95 %, prompts drawn whole; over seeds, Student's t: seeds are independent draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop
from scipy.stats import t as student

from labeling.calibration import mean_of
from labeling.intervals import Figure, no_interval
from labeling.shares import CONFIDENCE
from training.model_figures import difference, rightness

HARDLY = 0.01
"""A gain in accuracy of which the interval's upper end is below this is none worth labels."""

Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each arm its trainings, one a seed: {"n": training pairs, "margins": [float | None]}."""


def curve(cells: Cells, prompts: Sequence[str]) -> dict[str, Any]:
    """Accuracy and log-loss against the number of labels, and what the last doubling brought.

    Returns: {"points": [{"share", "n", "accuracy", "log_loss", "seeds"}], "gain", "gain_log_loss",
        "answer": helps | hardly | open, "n"}.
    """
    arms, prompt = _arms(cells, prompts)
    points = [
        {"share": float(name), "n": round(float(np.mean([cell["n"] for cell in cells[name]])))}
        | _figures(arm, prompt)
        for name, arm in arms.items()
    ]
    last, before = (list(arms.values())[place] for place in (-1, -2))
    gain = difference(prompt, last["right"].mean(axis=0), before["right"].mean(axis=0))
    loss = difference(prompt, last["loss"].mean(axis=0), before["loss"].mean(axis=0))
    return {
        "points": points,
        "gain": gain,
        "gain_log_loss": loss,
        "answer": _answer(gain, loss),
        "n": len(prompt),
    }


def _answer(gain: Figure, loss: Figure) -> str:
    if gain["low"] is None:
        return "open"
    if gain["low"] > 0 or (loss["high"] is not None and loss["high"] < 0 and gain["value"] > 0):
        return "helps"
    return "hardly" if gain["high"] < HARDLY else "open"


def labels(cells: Cells, prompts: Sequence[str]) -> dict[str, Any]:
    """Every way of making labels, and each against the first of them.

    Returns: {"rows": [{"arm", "n", "soft", "accuracy", "log_loss", "seeds", "against",
        "against_log_loss", "over_seeds"}], "n"}; the first row is held against nothing.
    """
    arms, prompt = _arms(cells, prompts)
    first = next(iter(arms.values()))
    rows = []
    for name, arm in arms.items():
        row = {
            "arm": name,
            "n": cells[name][0]["n"],
            "soft": cells[name][0].get("soft", 0),
            **_figures(arm, prompt),
        }
        if arm is not first:
            row["against"] = difference(
                prompt, arm["right"].mean(axis=0), first["right"].mean(axis=0)
            )
            row["against_log_loss"] = difference(
                prompt, arm["loss"].mean(axis=0), first["loss"].mean(axis=0)
            )
            row["over_seeds"] = over_seeds(arm["right"].mean(axis=1) - first["right"].mean(axis=1))
        rows.append(row)
    return {"rows": rows, "n": len(prompt)}


def over_seeds(values: Sequence[float] | np.ndarray) -> Figure:
    """The mean over seeds with its interval: mean ± t · s / √n. Source: Student 1908."""
    found = np.asarray(values, dtype=float)
    n = len(found)
    figure: Figure = {"value": float(found.mean()), "n": n}
    if n < 2:
        return figure | no_interval(gettext_noop("One seed shows no spread."))
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * found.std(ddof=1) / np.sqrt(n))
    return figure | {"low": figure["value"] - half, "high": figure["value"] + half}


def _arms(
    cells: Cells, prompts: Sequence[str]
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """For each arm "right" and "loss", (seeds, pairs); and (pairs,) their prompts. Pairs that are
    too long are so for every training, and left out."""
    margins = {
        name: np.array([cell["margins"] for cell in trained], dtype=float)  # None becomes NaN
        for name, trained in cells.items()
    }
    kept = ~np.isnan(np.concatenate(list(margins.values()))).any(axis=0)
    return {
        name: {"right": rightness(rows[:, kept]), "loss": np.logaddexp(0.0, -rows[:, kept])}
        for name, rows in margins.items()
    }, np.array(prompts)[kept]


def _figures(arm: Mapping[str, np.ndarray], prompt: np.ndarray) -> dict[str, Any]:
    return {
        "accuracy": mean_of(prompt, arm["right"].mean(axis=0)),
        "log_loss": mean_of(prompt, arm["loss"].mean(axis=0)),
        "seeds": arm["right"].mean(axis=1).tolist(),
    }
