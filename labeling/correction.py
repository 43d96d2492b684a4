"""What a calibration does to a judge's probability.

Plain Python: pages and workers without statistics libraries apply one. `calibration.py` fits them.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

SMALLEST = 1e-6
"""Probabilities nearer to 0 or 1 than this are held for this: a single wrong verdict at exactly 1
would make every log-loss infinite."""


def corrected(parameters: Mapping[str, Any], prob_a: float) -> float:
    """The probability that A is better, after the calibration with these parameters.

    `{"temperature": T}` divides the logit by T: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    `{"x": […], "y": […]}` goes through these points in straight lines (isotonic regression). Both
    leave a half where it is, and treat A and B alike.
    Raises: ValueError for parameters of neither kind, or a probability outside [0, 1].
    """
    if not 0 <= prob_a <= 1:
        raise ValueError(f"{prob_a} is no probability")
    if "temperature" in parameters:
        temperature = float(parameters["temperature"])
        if not temperature > 0:
            raise ValueError(f"a temperature is above 0, not {temperature}")
        return 1 / (1 + math.exp(-_logit(prob_a) / temperature))
    if "x" in parameters and "y" in parameters:
        return _between(parameters["x"], parameters["y"], prob_a)
    raise ValueError(f"no calibration has the parameters {sorted(parameters)}")


def _logit(prob: float) -> float:
    prob = min(max(prob, SMALLEST), 1 - SMALLEST)
    return math.log(prob) - math.log1p(-prob)


def _between(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """The value at `at` of the straight lines through the points (x, y), x rising."""
    if at <= x[0]:
        return y[0]
    if at >= x[-1]:
        return y[-1]
    right = bisect_right(x, at)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])
