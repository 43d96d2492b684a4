"""How far probabilities may be taken at their word, and how they are corrected: a judge's, or those
that a reward model's margins stand for.

Throughout, `prob_a` is (n,) the probability that A is better, and `a_is_better` (n,) says what
people said: 1, or 0 for B. Which response is called A is arbitrary, so every measure and every
correction here treats A and B alike.

The libraries imported here are the extra `stats`: only workers load this module.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from labeling.correction import SMALLEST, corrected
from labeling.intervals import (
    Figure,
    bootstrap,
    divide,
    refused,
    resampled_sums,
    share_of,
    sums_by_prompt,
)
from labeling.shares import CONFIDENCE, clopper_pearson

Floats = NDArray[np.float64]
Parameters = dict[str, Any]
Fit = Callable[[Floats, Floats], Parameters]

BINS = 10
FOLDS = 5
MIN_ISOTONIC = 500
"""Below this isotonic regression follows the noise."""
TEMPERATURES = (0.02, 50.0)
"""A temperature outside would say that the judge is always right, or knows nothing."""
SEED = 20_260_211
RESAMPLES = 5_000
"""Of whole prompts behind every interval: more than the agreement page's, since few judges and
models are measured, and with 1,000 the ends of an interval are uncertain by some per cent."""


def fit_temperature(prob_a: Floats, a_is_better: Floats) -> Parameters:
    """{"temperature": T} with the least log-loss.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    Raises: ValueError where there is nothing to fit on.
    """
    _check(prob_a, a_is_better)
    logit = logits(prob_a)

    def loss(log_temperature: float) -> float:
        z = logit / np.exp(log_temperature)
        # log(1 + exp(z)) − h z: the log-loss in terms of the logit.
        return float(np.mean(np.logaddexp(0, z) - a_is_better * z))

    low, high = np.log(TEMPERATURES)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    return {"temperature": float(np.exp(best.x))}


def fit_isotonic(prob_a: Floats, a_is_better: Floats) -> Parameters:
    """{"x", "y"}: the rising step function nearest to what people said, as points.

    Every comparison enters twice, with A and B exchanged the second time, so that the correction
    treats both names alike. The steps' ends stand half a comparison away from 0 and 1: a share of
    1 in the highest of them is no certainty.

    Source: Zadrozny & Elkan 2002; sklearn.isotonic.IsotonicRegression.
    Raises: ValueError with fewer than `MIN_ISOTONIC` comparisons.
    """
    _check(prob_a, a_is_better)
    n = len(prob_a)
    if n < MIN_ISOTONIC:
        raise ValueError(f"isotonic regression wants {MIN_ISOTONIC} comparisons, there are {n}")
    both = np.concatenate([prob_a, 1 - prob_a])
    said = np.concatenate([a_is_better, 1 - a_is_better])
    end = 1 / (2 * n + 2)
    model = IsotonicRegression(y_min=end, y_max=1 - end, out_of_bounds="clip").fit(both, said)
    x, y = model.X_thresholds_, model.y_thresholds_
    # Rounding aside, the points mirror each other; so do these exactly.
    x, y = (x + 1 - x[::-1]) / 2, (y + 1 - y[::-1]) / 2
    return {"x": x.tolist(), "y": y.tolist()}


def correct(parameters: Parameters, prob_a: Floats) -> Floats:
    """(n,) `corrected` of each probability."""
    return np.array([corrected(parameters, float(prob)) for prob in prob_a])


def cross_fitted(
    fit: Fit, prob_a: Floats, a_is_better: Floats, prompt: NDArray[Any], folds: int = FOLDS
) -> Floats:
    """(n,) each probability corrected by what was fitted on the other folds of prompts.

    So no comparison's own label, nor that of another with its prompt, helps to correct it.

    Raises: ValueError with fewer prompts than folds, or where `fit` refuses.
    """
    codes = np.unique(prompt, return_inverse=True)[1]
    n_prompts = int(codes.max(initial=-1)) + 1
    if n_prompts < folds:
        raise ValueError(f"{n_prompts} prompts make no {folds} folds")
    shuffled = np.random.default_rng(SEED).permutation(n_prompts)
    fold = (shuffled % folds)[codes]
    out = np.empty(len(prob_a))
    for k in range(folds):
        own = fold == k
        out[own] = correct(fit(prob_a[~own], a_is_better[~own]), prob_a[own])
    return out


def confidence(prob_a: Floats) -> Floats:
    """(n,) the probability that the judge gives to the response it names."""
    return np.maximum(prob_a, 1 - prob_a)


def named_right(prob_a: Floats, a_is_better: Floats) -> Floats:
    """(n,) 1 where the judge names the response that people named; a half at exactly one half."""
    return np.where(prob_a == 0.5, 0.5, (prob_a > 0.5) == (a_is_better > 0.5)).astype(float)


def equal_mass_bins(values: Floats, n_bins: int = BINS) -> NDArray[np.int64]:
    """(n,) the bin of each value: as many in each as can be; equal values never part.

    A judge that says few different things fills fewer bins than `n_bins`.
    """
    if not len(values):
        return np.empty(0, dtype=np.int64)
    edges = np.quantile(values, np.arange(1, n_bins) / n_bins, method="higher")
    found = np.searchsorted(np.unique(edges), values, side="right")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def bin_sums(bins: NDArray[np.int64], right: Floats, sure: Floats) -> Floats:
    """(n, 3 × bins) what each comparison adds to its bin: 1, `right` and `sure`."""
    n_bins = int(bins.max(initial=-1)) + 1
    parts = np.zeros((len(bins), 3, n_bins))
    rows = np.arange(len(bins))
    for column, values in enumerate((np.ones(len(bins)), right, sure)):
        parts[rows, column, bins] = values
    return parts.reshape(len(bins), 3 * n_bins)


def gaps(sums: Floats) -> tuple[Floats, Floats]:
    """(…, bins) weight of each bin, and its share right minus its mean confidence; 0 if empty.

    Args:
        sums: (…, 3 × bins) sums of `bin_sums`.
    """
    n, right, sure = np.split(sums, 3, axis=-1)
    held = np.maximum(n, 1)
    return n / n.sum(axis=-1, keepdims=True), np.where(n > 0, (right - sure) / held, 0.0)


def expected_calibration_error(sums: Floats) -> Floats:
    """(…,) Σ_b n_b/n |share right_b − confidence_b|; argument as in `gaps`.

    Source: Naeini, Cooper & Hauskrecht 2015; bins of equal mass as in Nguyen & O'Connor 2015.
    """
    weight, gap = gaps(sums)
    return np.asarray((weight * np.abs(gap)).sum(axis=-1))


def brier_scores(prob_a: Floats, a_is_better: Floats) -> Floats:
    """(n,) (p − h)²; their mean is the Brier score. A judge that always says one half has 0.25."""
    return np.asarray((prob_a - a_is_better) ** 2)


def log_losses(prob_a: Floats, a_is_better: Floats) -> Floats:
    """(n,) −log of the probability given to what people said, in nats; one half has 0.693."""
    held = np.clip(prob_a, SMALLEST, 1 - SMALLEST)
    return np.asarray(-(a_is_better * np.log(held) + (1 - a_is_better) * np.log1p(-held)))


def logits(prob: Floats) -> Floats:
    held = np.clip(prob, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(held) - np.log1p(-held))


def _check(prob_a: Floats, a_is_better: Floats) -> None:
    if not len(prob_a) or len(prob_a) != len(a_is_better):
        raise ValueError(f"{len(prob_a)} probabilities and {len(a_is_better)} labels")


# Figures ------------------------------------------------------------------------------------------


def mean_of(prompt: np.ndarray, values: np.ndarray) -> Figure:
    """The mean of values, with its interval by prompt; NaN values are left out.

    Shares (0, 1, and a half for a tie) with one comparison a prompt get the exact interval, the
    sum rounded outwards at both ends: halves vary less than ones and zeros with the same mean.
    """
    kept = ~np.isnan(values)
    prompt, values = prompt[kept], values[kept]
    if not len(values):
        return refused(gettext_noop("There is nothing to take a mean of."), n=0)
    if np.isin(values, (0, 1)).all():
        return share_of(prompt, values, resamples=RESAMPLES)
    n, total = len(values), float(values.sum())
    if np.isin(values, (0, 0.5, 1)).all() and len(np.unique(prompt)) == n:
        low, high = (clopper_pearson(int(f(total)), n) for f in (np.floor, np.ceil))
        return {"value": total / n, "low": low[0], "high": high[1], "n": n}
    parts = np.column_stack([values, np.ones(n)])
    interval = ratio(parts, prompt)
    return {"value": total / n, **interval, "n": n}


def probability_figures(
    prompt: np.ndarray, prob_a: np.ndarray, a_is_better: np.ndarray
) -> dict[str, Any]:
    """{"ece", "brier", "log_loss", "bins"} of probabilities where the answer is known.

    "bins" are those of the reliability diagram, by confidence in the response that is named: each
    {"n", "confidence", "right", "low", "high"}, with the exact interval.
    """
    if not len(prob_a):
        nothing = refused(gettext_noop("No readable verdict where people chose a side."), n=0)
        return {"ece": nothing, "brier": nothing, "log_loss": nothing, "bins": []}
    return {
        "ece": calibration_error(prompt, prob_a, a_is_better),
        "brier": mean_of(prompt, brier_scores(prob_a, a_is_better)),
        "log_loss": mean_of(prompt, log_losses(prob_a, a_is_better)),
        "bins": reliability(prob_a, a_is_better),
    }


def reliability(prob_a: np.ndarray, a_is_better: np.ndarray) -> list[dict[str, Any]]:
    sure = confidence(prob_a)
    right = named_right(prob_a, a_is_better)
    bins = equal_mass_bins(sure)
    rows = []
    for code in range(int(bins.max(initial=-1)) + 1):
        own = bins == code
        exact = mean_of(np.arange(own.sum()), right[own])
        rows.append(
            {
                "n": int(own.sum()),
                "confidence": float(sure[own].mean()),
                "right": exact["value"],
                "low": exact["low"],
                "high": exact["high"],
            }
        )
    return rows


def calibration_error(prompt: np.ndarray, prob_a: np.ndarray, a_is_better: np.ndarray) -> Figure:
    """ECE over bins of equal mass by confidence, with an interval that knows the figure's own bias.

    An absolute value never falls below 0, so noise alone makes an ECE: even a perfectly calibrated
    judge shows about "by_luck" (Σ_b w_b √(2/π) s_b, with s_b the standard error of bin b's gap,
    by the bootstrap over prompts). By the triangle inequality the figure lies, on average, between
    the truth and the truth + by_luck. So the interval goes from the figure − by_luck − spread to
    the figure + spread, where spread is how far bootstrap values lie from their mean, and holds at
    least 95 %.
    """
    sure = confidence(prob_a)
    right = named_right(prob_a, a_is_better)
    bins = equal_mass_bins(sure)
    parts = bin_sums(bins, right, sure)
    whole = parts.sum(axis=0)
    value = float(expected_calibration_error(whole))
    figure: Figure = {"value": value, "n": len(prob_a), "bins": int(bins.max()) + 1}
    per_prompt = sums_by_prompt(parts, prompt)
    checked = bootstrap(per_prompt, None, expected_calibration_error, RESAMPLES)
    if checked["low"] is None:  # too few prompts, or nothing varies
        return figure | checked | {"by_luck": None}
    sums = resampled_sums(per_prompt, RESAMPLES)
    weight, _gap = gaps(whole)
    errors = gaps(sums)[1].std(axis=0)
    by_luck = float((weight * np.sqrt(2 / np.pi) * errors).sum())
    resampled = expected_calibration_error(sums)
    tail = (1 - CONFIDENCE) / 2
    below, above = np.quantile(resampled, [tail, 1 - tail]) - resampled.mean()
    return figure | {
        "low": max(0.0, value - by_luck - float(above)),
        "high": min(1.0, value - float(below)),
        "by_luck": by_luck,
    }


def ratio(parts: np.ndarray, prompt: np.ndarray) -> Figure:
    """The interval of Σ parts[:, 0] / Σ parts[:, 1], by prompt."""
    return bootstrap(parts, prompt, lambda sums: divide(sums[:, 0], sums[:, 1]), RESAMPLES)
