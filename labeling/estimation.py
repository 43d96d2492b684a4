"""How often people prefer A to B, from few labels of people and many of a judge. Numbers in,
numbers out.

An answer is a number: 1 for A, 0 for B, ½ for "equal" and for "both are bad". Three estimates stand
side by side: people alone; the judge alone, which says what the judge prefers and may be far from
what people prefer; and both together, where the judge's many verdicts make the interval narrow and
the people's labels take its mistakes out again. The third is valid only where we know with which
probability a comparison got its label, so it is refused where that was not recorded.

A figure is a dict with "value", "low", "high" and "n" (labels of people), or "value" None and
"why". All intervals are 95 %, clustered by prompt: comparisons of one prompt count as one.
"""

import math
from typing import Any

import numpy as np
from django.utils.translation import gettext_noop
from scipy.stats import norm, t

from labeling.intervals import Figure, refused, sums_by_prompt
from labeling.shares import CONFIDENCE, clopper_pearson

FEW_PROMPTS = 30  # prompts with a label below which only people's own exact interval stands
FEW_MINORITY = 5  # prompts' worth of the rarer answer, likewise
FEW_LABELS = 10  # below which nobody can say how many more it takes
LEAST_PROBABILITY = 0.01  # of a label: its answer would weigh as much as a hundred
POWER = 0.8
MOST_LABELS = 1_000_000  # beyond which nobody asks for more
Z = float(norm.ppf((1 + CONFIDENCE) / 2))

TOO_FEW = gettext_noop(
    "Fewer than 30 prompts, or hardly any of the rarer answer, were labelled by people here: what "
    "the judge adds cannot be judged by so few. The interval of people alone stands. Let the "
    "random audit stream run on, with a larger share if need be, until 30 prompts have a label."
)


def win_rate(answer: np.ndarray, prompt: np.ndarray) -> Figure:
    """Mean answer with an interval that is honest at any size.

    Few prompts, or few of the rarer answer: Clopper-Pearson with a prompt as a trial, counts
    rounded outwards. Else Wilson's score interval, with as many trials as would give the same
    variance as the prompts did.

    Args:
        answer: (comparisons,) in [0, 1]; prompt: (comparisons,).
    Returns: also "error" (standard error), "n_prompts", "method".
    Source: Wilson 1927; with an effective n, Korn & Graubard 1998, Survey Methodology 24.
    """
    n = len(answer)
    if not n:
        return refused(gettext_noop("Nobody has compared these two yet."), n=0)
    value = float(np.mean(answer))
    error, n_prompts = _error(answer - value, prompt)
    if _is_few(value, n_prompts):
        k = value * n_prompts
        low = clopper_pearson(math.floor(k + 1e-9), n_prompts)[0]
        high = clopper_pearson(math.ceil(k - 1e-9), n_prompts)[1]
        method = "clopper-pearson"
    else:
        variance = value * (1 - value)
        effective = min(variance / error**2, float(n)) if error > 0 else float(n_prompts)
        whole = 1 + Z**2 / effective
        middle = (value + Z**2 / (2 * effective)) / whole
        half = Z / whole * math.sqrt(variance / effective + Z**2 / (4 * effective**2))
        low, high, method = middle - half, middle + half, "wilson"
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "n_prompts": n_prompts,
        "error": error,
        "method": method,
    }


def ppi_mean(
    answer: np.ndarray,
    verdict: np.ndarray,
    others: np.ndarray,
    weight: float | None = None,
) -> tuple[float, float, float]:
    """Prediction-powered mean (PPI++): (value, standard error, λ).

    θ = λ · mean(others) + mean(answer − λ · verdict); λ = Cov(answer, verdict) /
    ((1 + n / N) Var(verdict)), clipped to [0, 1]. λ = 0 is people alone, 1 is plain PPI.

    Args:
        answer, verdict: (n,) people's answers and the judge's on the labelled comparisons, which
            are a random sample of all.
        others: (N,) the judge's on those without a label.
        weight: λ, instead of the best.
    Source: Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453, example 6.1; variances as in
        ppi_py.ppi_mean_ci.
    """
    lam = ppi_weight(answer, verdict, others) if weight is None else weight
    value = lam * others.mean() + (answer - lam * verdict).mean()
    variance = lam**2 * others.var() / len(others) + (answer - lam * verdict).var() / len(answer)
    return float(value), math.sqrt(variance), lam


def ppi_weight(answer: np.ndarray, verdict: np.ndarray, others: np.ndarray) -> float:
    """λ of `ppi_mean` with the least variance; 0 where the verdicts are all alike."""
    variance = np.concatenate([verdict, others]).var(ddof=1)
    if variance == 0:
        return 0.0
    shared = np.mean((answer - answer.mean()) * (verdict - verdict.mean()))
    return float(np.clip(shared / ((1 + len(answer) / len(others)) * variance), 0, 1))


def prediction_powered(
    answer: np.ndarray,
    verdict: np.ndarray,
    prompt: np.ndarray,
    others: np.ndarray,
    prompt_of_others: np.ndarray,
) -> Figure:
    """PPI++ with an interval clustered by prompt; arguments as of `ppi_mean`.

    Returns: also "error", "weight" (λ), "n_others", "factor": how many labels of people alone
        would be worth one of these (the ratio of the variances).
    """
    n, n_prompts = len(answer), len(np.unique(prompt))
    if not n or _is_few(float(answer.mean()), n_prompts):
        return refused(TOO_FEW, n=n)
    if not len(others):
        return refused(
            gettext_noop("People have labelled every comparison: the judge has nothing to add."),
            n=n,
        )
    value, _error_alone, lam = ppi_mean(answer, verdict, others)
    # What each comparison moves the value by; summed by prompt, because a prompt may have
    # comparisons with a label and without.
    moves = np.concatenate(
        [
            (answer - lam * verdict - (answer - lam * verdict).mean()) / n,
            lam * (others - others.mean()) / len(others),
        ]
    )
    clusters = np.concatenate([prompt, prompt_of_others])
    sums = sums_by_prompt(moves[:, None], clusters)[:, 0]
    error = math.sqrt((sums**2).sum() * n_prompts / (n_prompts - 1))
    alone, _n = _error(answer - answer.mean(), prompt)
    return {
        "value": value,
        **_interval(value, error, n_prompts),
        "n": n,
        "n_prompts": n_prompts,
        "n_others": len(others),
        "error": error,
        "weight": lam,
        "factor": alone**2 / error**2 if error else None,
        "method": "ppi++",
    }


def active_inference(
    answer: np.ndarray, verdict: np.ndarray, probability: np.ndarray, prompt: np.ndarray
) -> Figure:
    """The mean answer where each comparison was labelled with its own, recorded probability.

    θ = mean of λf + (Y − λf) ξ / π over all comparisons, ξ = 1 where there is a label; λ in
    [0, 1] with the least variance.

    Args:
        answer: (comparisons,) NaN where people gave no label.
        verdict: (comparisons,) the judge's, everywhere.
        probability: (comparisons,) with which a label was asked for, whatever came of it; NaN where
            it is not known.
        prompt: (comparisons,).
    Returns: as `prediction_powered`.
    Source: Zrnic & Candès 2024, "Active statistical inference", arXiv:2403.03208, eq. 1; λ as
        in PPI++.
    """
    labelled = ~np.isnan(answer)
    n = int(labelled.sum())
    if np.isnan(probability[labelled]).any():
        return refused(
            gettext_noop(
                "Some of these labels were not drawn at random and no probability is recorded for "
                "them: which comparisons people saw may depend on their answers."
            ),
            n=n,
        )
    if n and probability[labelled].min() < LEAST_PROBABILITY:
        return refused(
            gettext_noop(
                "Some labels were drawn with a probability below 1 %: a single answer would weigh "
                "as much as a hundred."
            ),
            n=n,
        )
    if not n or _is_few(float(np.nanmean(answer)), len(np.unique(prompt[labelled]))):
        return refused(TOO_FEW, n=n)
    scale = np.zeros(len(answer))
    scale[labelled] = 1 / probability[labelled]
    of_people = np.where(labelled, answer, 0) * scale
    of_judge = verdict * (scale - 1)
    spread = of_judge - of_judge.mean()
    variance = (spread**2).mean()
    lam = float(np.clip((of_people * spread).mean() / variance, 0, 1)) if variance else 0.0
    parts = of_people - lam * of_judge
    value = float(parts.mean())
    error, _n = _error(parts - value, prompt)
    # People alone, from the same labels: weighted by 1 / π, Hájek's ratio.
    alone = float(of_people.sum() / scale.sum())
    moves = np.where(labelled, answer - alone, 0) * scale / scale.mean()
    error_alone, _n = _error(moves, prompt)
    # Few labels of great weight are as unsure as few labels: Kish's effective number of them.
    weights = sums_by_prompt(scale[labelled, None], prompt[labelled])[:, 0]
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    if effective < FEW_LABELS:
        return refused(TOO_FEW, n=n)
    error *= math.sqrt(effective / (effective - 1))
    return {
        "value": value,
        **_interval(value, error, effective),
        "n": n,
        "n_prompts": len(weights),
        "n_others": int(len(answer) - n),
        "error": error,
        "weight": lam,
        "factor": error_alone**2 / error**2 if error else None,
        "method": "active",
    }


def rogan_gladen(answer: np.ndarray, verdict: np.ndarray, others: np.ndarray) -> Figure:
    """The judge's win rate with its errors, known from labelled comparisons, taken out.

    θ = (p + q₀ − 1) / (q₀ + q₁ − 1); p: how often the judge says A; q₁ (q₀): how often it says A
    (B) where people do. Needs sides: answers and verdicts of ½ are left out.

    Source: Rogan & Gladen 1978, American Journal of Epidemiology 107; variance by the delta method,
        as in Lang & Reiczigel 2014, Preventive Veterinary Medicine 113.
    """
    sides = (answer != 0.5) & (verdict != 0.5)
    for_a, judged_a = answer[sides] > 0.5, verdict[sides] > 0.5
    n_a, n_b = int(for_a.sum()), int((~for_a).sum())
    everywhere = np.concatenate([verdict, others])
    everywhere = everywhere[everywhere != 0.5]
    if min(n_a, n_b) < FEW_MINORITY or not len(everywhere):
        return refused(TOO_FEW, n=n_a + n_b)
    right_a, right_b = float(judged_a[for_a].mean()), float((~judged_a[~for_a]).mean())
    better = right_a + right_b - 1
    if better < 0.1:
        return refused(
            gettext_noop("This judge agrees with people hardly more often than a coin."),
            n=n_a + n_b,
        )
    p = float((everywhere > 0.5).mean())
    value = float(np.clip((p + right_b - 1) / better, 0, 1))
    error = (
        math.sqrt(
            p * (1 - p) / len(everywhere)
            + value**2 * right_a * (1 - right_a) / n_a
            + (1 - value) ** 2 * right_b * (1 - right_b) / n_b
        )
        / better
    )
    return {
        "value": value,
        **_interval(value, error),
        "n": n_a + n_b,
        "error": error,
        "right_a": right_a,
        "right_b": right_b,
        "method": "rogan-gladen",
    }


def labels_to_decide(figure: Figure) -> Figure:
    """About how many more labels of people decide which of the two is better.

    Asked for so many that, if the win rate is what it looks like now, the interval leaves ½ out
    with probability `POWER`.

    Args:
        figure: with "value", "low", "high", "error" and "n".
    Returns: "value" more labels (0: decided), None with "why" where no number would do; "low": the
        number if the win rate is as far from ½ as its interval allows.
    """
    if figure["value"] is None:
        return refused(figure["why"], n=figure["n"])
    if figure["n"] < FEW_LABELS:
        return refused(
            gettext_noop("Fewer than 10 labels: too few to say how many more it takes."),
            n=figure["n"],
        )
    if figure["low"] > 0.5 or figure["high"] < 0.5:
        return {"value": 0, "low": 0, "high": 0, "n": figure["n"]}
    per_label = figure["error"] or 0.5 / math.sqrt(figure["n"])

    def more(distance: float) -> int | None:
        if distance <= 0:
            return None
        needed = figure["n"] * ((Z + norm.ppf(POWER)) * per_label / distance) ** 2
        return None if needed > MOST_LABELS else max(1, math.ceil(needed - figure["n"]))

    found = more(abs(figure["value"] - 0.5))
    if found is None:
        return refused(
            gettext_noop("They are so near to each other that no number of labels would decide."),
            n=figure["n"],
        )
    return {
        "value": found,
        "low": more(max(figure["high"] - 0.5, 0.5 - figure["low"])),
        "high": None,
        "n": figure["n"],
    }


def _is_few(value: float, n_prompts: int) -> bool:
    return n_prompts < FEW_PROMPTS or min(value, 1 - value) * n_prompts < FEW_MINORITY


def _error(deviation: np.ndarray, prompt: np.ndarray) -> tuple[float, int]:
    """Standard error of a mean from the rows' deviations from it, and the number of prompts."""
    sums = sums_by_prompt(deviation[:, None], prompt)[:, 0]
    n_prompts = len(sums)
    variance = (sums**2).sum() / len(deviation) ** 2 * n_prompts / max(n_prompts - 1, 1)
    return math.sqrt(variance), n_prompts


def _interval(value: float, error: float, n: float = math.inf) -> dict[str, Any]:
    """Ends by Student's t of n − 1 degrees of freedom; cut at 0 and 1."""
    reach = error * (Z if math.isinf(n) else float(t.ppf((1 + CONFIDENCE) / 2, max(n - 1, 1))))
    return {"low": max(0.0, value - reach), "high": min(1.0, value + reach)}
