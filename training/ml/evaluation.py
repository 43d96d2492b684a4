"""How good is a model? Accuracy with interval, log-loss, and how much length explains, on pairs;
the loss of a token against the base model's, on responses and texts.

Numbers in, numbers out: no torch, but numpy and scipy, which the web process lives without.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, rankdata

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


def auc(
    scores: Sequence[float], good: Sequence[float], units: Sequence[str]
) -> dict[str, float | int | None]:
    """Area under the ROC curve: how often a good response scores above a bad one, equal scores
    counting half; 0.5 is chance. With its 95 % bootstrap interval, units drawn whole, and n
    responses.

    Args: good: above ½ for a good response, below for a bad one; exactly ½ is left out.
    Source: the Mann-Whitney statistic, Hanley & McNeil 1982; ranks are shared by equal scores.
    """
    said = np.asarray(good, dtype=np.float64)
    clear = said != 0.5
    x, up = np.asarray(scores, dtype=np.float64)[clear], said[clear] > 0.5
    codes = np.unique(np.asarray(units)[clear], return_inverse=True)[1]
    if not up.any() or up.all():
        return {"value": None, "low": None, "high": None, "n": len(x)}
    values, place = np.unique(x, return_inverse=True)

    def area(weights: Floats) -> float:
        """Args: weights: how often each response was drawn."""
        goods = np.bincount(place, weights * up, len(values))
        bads = np.bincount(place, weights * ~up, len(values))
        below = np.concatenate([[0.0], np.cumsum(bads)[:-1]])
        pairs = goods.sum() * bads.sum()
        return float((goods * (below + bads / 2)).sum() / pairs) if pairs else math.nan

    value = area(np.ones(len(x)))
    n_units = int(codes.max()) + 1
    if n_units < FEWEST_UNITS:
        return {"value": value, "low": None, "high": None, "n": len(x)}
    draw = np.random.default_rng(0)
    share = np.full(n_units, 1 / n_units)
    found = [area(draw.multinomial(n_units, share)[codes].astype(float)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "n": len(x)}


def single_metrics(
    rewards: Sequence[float],
    good: Sequence[float],
    units: Sequence[str],
    lengths: Sequence[int],
    *,
    n_left_out: int = 0,
) -> dict[str, Any]:
    """What a policy's implicit rewards are worth on held-out single responses.

    Args:
        rewards: β·log π/π_ref of each response: above 0, training made it likelier.
        good: probability that it is good; exactly ½ measures nothing and is left out.
        units: the prompt of each response; lengths: their characters.
    Returns: auc; accuracy: share of responses moved to the right side, good ones up and bad ones
        down; majority: what "all of the more frequent kind" would get; good_reward, bad_reward
        (means) and margin, their difference; n, n_good, n_bad; length_correlation of the rewards.
        Without any: n and why.
    """
    said = np.asarray(good, dtype=np.float64)
    kept = np.flatnonzero(said != 0.5)
    if not len(kept):
        return {"of": "singles", "n": 0, "why": _no_singles(n_left_out)}
    up = said[kept] > 0.5
    r = np.asarray(rewards, dtype=np.float64)[kept]
    of = [units[at] for at in kept.tolist()]
    right = (np.where(up, r, -r) > 0) + 0.5 * (r == 0)
    if len(set(of)) == len(of):
        accuracy: dict[str, Any] = share_right(np.where(up, r, -r))
    else:
        accuracy = ratio_figure(right.tolist(), [1.0] * len(of), of) | {"n": len(of)}
    means = {
        name: float(r[own].mean()) if own.any() else None
        for name, own in (("good_reward", up), ("bad_reward", ~up))
    }
    both = None not in means.values()
    return {
        "of": "singles",
        "n": len(kept),
        "n_good": int(up.sum()),
        "n_bad": int((~up).sum()),
        "auc": auc(r.tolist(), said[kept].tolist(), of),
        "accuracy": accuracy,
        "majority": max(float(up.mean()), 1 - float(up.mean())),
        **means,
        "margin": means["good_reward"] - means["bad_reward"] if both else None,  # type: ignore[operator]
        "length_correlation": length_correlation(r, [lengths[at] for at in kept.tolist()]),
    }


def rating_metrics(
    predicted: Sequence[float],
    ratings: Sequence[float],
    good: Sequence[float],
    units: Sequence[str],
    lengths: Sequence[int],
    *,
    usual: float,
    n_left_out: int = 0,
) -> dict[str, Any]:
    """What a reward model that learned ratings is worth on held-out ones, both on [−1, 1].

    Args:
        good: probability that each response is good, for the AUC; units: its prompt; lengths: its
            characters; usual: the mean training rating, which says the same of every response.
    Returns: correlation (Pearson's r) and rank_correlation (of ranks, Spearman's), error (root mean
        square) and usual_error (of `usual`), mean_error (absolute), auc, each {"value", "low",
        "high", "n"}; n; length_correlation. Without any: n and why.
    """
    if not len(ratings):
        return {"of": "ratings", "n": 0, "why": _no_singles(n_left_out)}
    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, ratings))
    return {
        "of": "ratings",
        "n": len(y),
        "correlation": _correlation(x, y, units),
        "rank_correlation": _correlation(rankdata(x), rankdata(y), units),
        "error": _root_mean(x - y, units),
        "usual_error": _root_mean(usual - y, units),
        "mean_error": ratio_figure(np.abs(x - y).tolist(), [1.0] * len(y), units) | {"n": len(y)},
        "auc": auc(predicted, good, units),
        "length_correlation": length_correlation(x, lengths),
    }


def _no_singles(n_left_out: int) -> str:
    if n_left_out:
        return f"all {n_left_out} held-out responses were left out: too long or empty"
    return "no held-out response: every prompt is on the training side"


def _correlation(x: Floats, y: Floats, units: Sequence[str]) -> dict[str, Any]:
    """Pearson's r with its 95 % bootstrap interval, units drawn whole; None where one of the two
    never varies."""
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return {"value": None, "low": None, "high": None, "n": len(x)}
    x, y = x - x.mean(), y - y.mean()  # else the sums would lose digits
    codes = np.unique(np.asarray(units), return_inverse=True)[1]
    columns = (np.ones(len(x)), x, y, x * x, y * y, x * y)
    sums: Floats = np.column_stack([np.bincount(codes, column) for column in columns])

    def r(sums: Floats) -> Floats:
        n, sx, sy, xx, yy, xy = np.moveaxis(sums, -1, 0)
        under = np.maximum((n * xx - sx**2) * (n * yy - sy**2), 1e-300)
        found: Floats = (n * xy - sx * sy) / np.sqrt(under)
        return found

    return {"value": float(r(sums.sum(axis=0))), **_unit_interval(sums, r), "n": len(x)}


def _root_mean(errors: Floats, units: Sequence[str]) -> dict[str, Any]:
    """Root of the mean square, the interval's ends likewise."""
    square = ratio_figure((errors**2).tolist(), [1.0] * len(errors), units)
    ends = {name: square[name] for name in ("value", "low", "high")}
    return {k: v if v is None else math.sqrt(v) for k, v in ends.items()} | {"n": len(errors)}


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
