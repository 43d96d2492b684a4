"""How good is a model? Accuracy with interval, log-loss, and how much length explains, on pairs;
the loss of a token against the base model's, on responses and texts.

Numbers in, numbers out: no torch, but numpy and scipy, which the web process lives without.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Floats = NDArray[np.float64]
RESAMPLES = 1_000
FEWEST_UNITS = 10
"""Prompts or texts below which nothing is resampled."""


def clopper_pearson(n_right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share; ties may count half, so `n_right` need not be whole.

    Raises: ValueError if there is nothing to count.
    Source: Clopper & Pearson 1934; 42 of 50 gives [.708874, .928299].
    """
    if n < 1 or not 0 <= n_right <= n:
        raise ValueError(f"no interval for {n_right} of {n}")
    tail = (1 - confidence) / 2
    low = 0.0 if n_right == 0 else float(beta.ppf(tail, n_right, n - n_right + 1))
    high = 1.0 if n_right == n else float(beta.ppf(1 - tail, n_right + 1, n - n_right))
    return low, high


def share_right(margins: Sequence[float] | Floats) -> dict[str, float | int]:
    """Share of pairs with the chosen response ahead, a tie counting half, with its 95 % interval.

    Args: margins: how far the chosen response is ahead of the rejected one, one per pair.
    """
    values = np.asarray(margins, dtype=np.float64)
    n = len(values)
    n_right = float((values > 0).sum() + 0.5 * (values == 0).sum())
    low, high = clopper_pearson(n_right, n)
    return {"value": n_right / n, "low": low, "high": high, "n": n}


def log_loss(margins: Sequence[float] | Floats) -> float:
    """Mean of −log σ(Δ) in nats: 0.693 is chance, and margins that are too sure raise it."""
    return float(np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64)).mean())


def length_correlation(margins: Sequence[float] | Floats, lengths: Sequence[float]) -> float | None:
    """Pearson's r of margins and differences of length; None where one of them never varies."""
    m, d = np.asarray(margins, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if len(m) < 3 or m.std() == 0 or d.std() == 0:
        return None
    return float(np.corrcoef(m, d)[0, 1])


def length_correlations(
    rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[float]]
) -> dict[str, float | None]:
    """How rewards of single responses go with their length: Pearson's r, and the partial r given
    the label, which is left when "people preferred the longer one" is taken out.

    Args: rewards, lengths: (pairs, 2), of the chosen and of the rejected response.
    Returns: reward_length_correlation and reward_length_partial; None where one never varies.
    Source: partial r = (r_xy − r_xz·r_yz) / √((1 − r_xz²)(1 − r_yz²)), Yule 1907, z the label.
    """
    r, n = np.asarray(rewards, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    label = np.tile([1.0, 0.0], (len(r), 1))
    whole = length_correlation(r.ravel(), n.ravel().tolist())
    with_label = [length_correlation(x.ravel(), label.ravel().tolist()) for x in (r, n)]
    partial = None
    if whole is not None and None not in with_label:
        rz, nz = (float(value) for value in with_label if value is not None)
        rest = (1 - rz**2) * (1 - nz**2)
        partial = (whole - rz * nz) / math.sqrt(rest) if rest > 1e-12 else None
    return {"reward_length_correlation": whole, "reward_length_partial": partial}


def pair_metrics(
    margins: Sequence[float] | Floats,
    length_differences: Sequence[int],
    *,
    n_left_out: int = 0,
    rewards: Sequence[Sequence[float]] = (),
    lengths: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """What a reward model, or a policy's implicit reward, is worth on held-out pairs.

    Args:
        margins: reward of the chosen response minus that of the rejected one.
        length_differences: characters of the chosen response minus those of the rejected one.
        n_left_out: pairs that were too long or empty, for the reason where none is left.
        rewards, lengths: as in length_correlations, where rewards of single responses exist.
    Returns: accuracy and the baseline "longer wins", each {"value", "low", "high", "n"}; log_loss;
        margin (mean) and margin_sd; length_correlation of the margins; length_correlations.
        Without any pair: n and why.
    """
    if len(margins) == 0 and n_left_out:
        which = f"all {n_left_out} test pairs were" if n_left_out > 1 else "the one test pair was"
        return {"n": 0, "why": f"{which} left out: too long or empty"}
    if len(margins) == 0:
        return {"n": 0, "why": "no test pairs: every prompt is on the training side"}
    values = np.asarray(margins, dtype=np.float64)
    return {
        "n": len(values),
        "accuracy": share_right(values),
        "longer_wins": share_right(length_differences),
        "log_loss": log_loss(values),
        "margin": float(values.mean()),
        "margin_sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "length_correlation": length_correlation(values, length_differences),
        **(length_correlations(rewards, lengths) if len(rewards) else {}),
    }


def token_metrics(
    nll: Sequence[float],
    base_nll: Sequence[float],
    n_tokens: Sequence[int],
    units: Sequence[str],
    *,
    n_left_out: int = 0,
) -> dict[str, Any]:
    """What supervised fine-tuning or continued pre-training is worth on held-out rows.

    Args:
        nll, base_nll: −log-probability (nats) of each row's tokens under the model and its base.
        n_tokens: how many tokens that are, for each row.
        units: the prompt or text of each row; resampled whole for the 95 % intervals.
        n_left_out: rows that were too long or empty, for the reason where none is left.
    Returns: loss and base_loss in nats a token, change (loss minus base_loss, so below 0 is
        better), each {"value", "low", "high", "n"} with n in units; perplexity = exp(loss) and
        base_perplexity; n rows; test_tokens. Without any row: n and why.
    """
    if not len(nll):
        why = "nothing is held out: every prompt or text is on the training side"
        if n_left_out:
            why = f"all that was held out ({n_left_out}) was left out: too long or empty"
        return {"n": 0, "why": why}
    rows = np.column_stack([nll, base_nll, n_tokens]).astype(np.float64)
    codes = np.unique(np.asarray(units), return_inverse=True)[1]
    sums: Floats = np.column_stack([np.bincount(codes, column) for column in rows.T])  # (units, 3)

    def figure(statistic: Callable[[Floats], Floats]) -> dict[str, Any]:
        value = float(statistic(sums.sum(axis=0)))
        return {"value": value, **_unit_interval(sums, statistic), "n": len(sums)}

    loss = figure(lambda s: s[..., 0] / s[..., 2])
    base_loss = figure(lambda s: s[..., 1] / s[..., 2])
    return {
        "n": len(rows),
        "test_tokens": int(rows[:, 2].sum()),
        "loss": loss,
        "base_loss": base_loss,
        "change": figure(lambda s: (s[..., 0] - s[..., 1]) / s[..., 2]),
        "perplexity": _exp(loss),
        "base_perplexity": _exp(base_loss),
    }


def mean_figure(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one number for each prompt or text, with its 95 % bootstrap interval."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    interval = _unit_interval(np.hstack([column, np.ones_like(column)]), _mean_of_sums)
    return {"value": float(column.mean()), **interval, "n": len(values)}


def ratio_figure(
    tops: Sequence[float], bottoms: Sequence[float], units: Sequence[str]
) -> dict[str, Any]:
    """Σ tops / Σ bottoms over rows, with its 95 % bootstrap interval; the rows of a prompt or text
    are drawn together, and n counts these."""
    codes = np.unique(np.asarray(units), return_inverse=True)[1]
    sums: Floats = np.column_stack([np.bincount(codes, column) for column in (tops, bottoms)])
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    return {"value": value, **_unit_interval(sums, _mean_of_sums), "n": len(sums)}


def _mean_of_sums(sums: Floats) -> Floats:
    means: Floats = sums[..., 0] / sums[..., 1]
    return means


def _unit_interval(sums: Floats, statistic: Callable[[Floats], Floats]) -> dict[str, float | None]:
    """Percentile bootstrap of a statistic of sums (units, columns), the units drawn whole."""
    n = len(sums)
    if n < FEWEST_UNITS:
        return {"low": None, "high": None}
    draw = np.random.default_rng(0)
    resampled = [draw.multinomial(n, np.full(n, 1 / n)) @ sums for _ in range(RESAMPLES)]
    low, high = np.quantile(statistic(np.array(resampled)), [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _exp(figure: dict[str, Any]) -> dict[str, Any]:
    """Perplexity of a loss; exp keeps order, so the interval's ends go through it as they are."""
    ends = {name: figure[name] for name in ("value", "low", "high")}
    return {k: v if v is None else math.exp(v) for k, v in ends.items()} | {"n": figure["n"]}
