"""Who is better: ratings of the sources of responses. Numbers in, numbers out.

A row of `Games` is one comparison of two sources with the answers it got: how many said that the
first is better, that neither is, that the second is. All rows of a prompt are drawn together, so
that ten comparisons of one prompt count as one piece of evidence about what prompts are like.

Decisions, all of them visible in the figures:
- Ties have a place of their own in Davidson's model; `ties="half"` counts a tie as half a win for
  each instead, which is what Bradley-Terry programs do.
- Sources that no chain of comparisons connects cannot be compared: each connected part has ratings
  of its own, with its own mean.
- A source that won or lost everything would get an infinite rating. Then, and only then, a weak
  prior (`PRIOR_SD`) makes the ratings finite, and the report says so. Resamples always have it,
  because any of them may hold a source that lost everything.
- Intervals are 95 %: by the sandwich formula, clustered by prompt, and by resampling prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from django.utils.translation import gettext_noop
from scipy import sparse
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm

from labeling.intervals import MIN_PROMPTS, RESAMPLES, SEED
from labeling.shares import CONFIDENCE

PRIOR_SD = 3.0
"""Of a log strength around the mean: 520 points; a source three such away would win 99.99 %."""
ELO = 400 / np.log(10)  # points to one unit of log strength
ELO_MEAN = 1_000
MANY_SOURCES = 150  # above which FEW_RESAMPLES are drawn
MANY_ROWS = 50_000  # comparisons above which FEW_RESAMPLES of a contextual model are drawn
FEW_RESAMPLES = 200
MOST_CHANCES = 80  # sources up to which the chance of each pair is kept
Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Ties = Literal["davidson", "half"]


@dataclass(frozen=True)
class Games:
    """Comparisons of two sources; every array is (rows,). Counts may be fractions or weighted."""

    sources: list[str]
    prompt: np.ndarray
    """Code or key of the prompt."""
    first: np.ndarray
    """Place in `sources`; never equal to `second`."""
    second: np.ndarray
    wins: np.ndarray
    """Answers that the first is better."""
    ties: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: np.ndarray) -> "Games":
        names = ("prompt", "first", "second", "wins", "ties", "losses")
        return Games(self.sources, **{name: getattr(self, name)[mask] for name in names})


@dataclass(frozen=True)
class Pairs:
    """Sums by pair of sources, prompt by prompt: all that a model without context needs."""

    n_sources: int
    first: np.ndarray
    """(pairs,) the smaller place in `sources`."""
    second: np.ndarray
    by_prompt: sparse.csr_matrix
    """(prompts, 3 · pairs) wins of the first, then ties, then losses."""

    def sums(self) -> np.ndarray:
        """(3, pairs) over all prompts."""
        return np.asarray(self.by_prompt.sum(axis=0)).reshape(3, -1)


@dataclass(frozen=True)
class Strengths:
    """What a model has found."""

    log_strength: np.ndarray
    """(sources,) mean 0."""
    log_tie: float | None
    """log ν of Davidson's model; None where there is none."""
    covariance: np.ndarray
    """(sources, sources) of `log_strength`, clustered by prompt."""
    has_prior: bool


def elo(log_strength: np.ndarray) -> np.ndarray:
    """Log strengths on the scale of chess: 400 points are odds of ten to one, the mean is 1,000."""
    return ELO_MEAN + ELO * np.asarray(log_strength)


def prob_better(difference: Any) -> Any:
    """Chance that the first is preferred, where a side is taken: σ(θ_i − θ_j)."""
    return expit(difference)


def pairs_of(games: Games) -> Pairs:
    """Sums by pair and prompt, of all rows."""
    swapped = games.first > games.second
    first = np.where(swapped, games.second, games.first)
    second = np.where(swapped, games.first, games.second)
    n = len(games.sources)
    keys, pair = np.unique(first.astype(np.int64) * n + second, return_inverse=True)
    prompts, prompt = np.unique(games.prompt, return_inverse=True)
    counts = np.concatenate(
        [
            np.where(swapped, games.losses, games.wins),
            games.ties,
            np.where(swapped, games.wins, games.losses),
        ]
    ).astype(float)
    column = np.concatenate([pair + part * len(keys) for part in range(3)])
    kept = counts != 0
    by_prompt = sparse.csr_matrix(
        (counts[kept], (np.tile(prompt, 3)[kept], column[kept])),
        shape=(len(prompts), 3 * len(keys)),
    )
    return Pairs(n, keys // n, keys % n, by_prompt)


def win_table(games: Games) -> tuple[np.ndarray, np.ndarray]:
    """(sources, sources) wins of the row over the column, and their ties."""
    n = len(games.sources)
    wins, ties = np.zeros((n, n)), np.zeros((n, n))
    np.add.at(wins, (games.first, games.second), games.wins)
    np.add.at(wins, (games.second, games.first), games.losses)
    np.add.at(ties, (games.first, games.second), games.ties)
    np.add.at(ties, (games.second, games.first), games.ties)
    return wins, ties


# What can be compared with what -------------------------------------------------------------------


def connected_parts(games: Games) -> list[np.ndarray]:
    """The sources (places) of each connected part, largest first; those without games left out."""
    wins, ties = win_table(games)
    played = (wins + wins.T + ties) != 0
    _n, label = connected_components(sparse.csr_matrix(played), directed=False)
    parts = [np.flatnonzero(label == part) for part in np.unique(label[played.any(axis=1)])]
    return sorted(parts, key=lambda part: (-len(part), part[0]))


def unbounded(games: Games) -> dict[str, list[int]]:
    """Sources whose ratings have no finite best value, in one connected part.

    Ratings are finite where every two groups of sources have beaten each other at least once (a
    tie counts for both); then both lists are empty. Else a group at the top was never beaten from
    outside ("above"), or one at the bottom never beat anybody outside ("below"). The one group that
    is larger than every other is not named: it is what the others stand apart from.

    Source: Ford 1957, American Mathematical Monthly 64(8); Hunter 2004, assumption 1.
    """
    wins, ties = win_table(games)
    took = (wins + ties) > 0
    n_groups, group = connected_components(
        sparse.csr_matrix(took), directed=True, connection="strong"
    )
    if n_groups == 1:
        return {"above": [], "below": []}
    first, second = np.nonzero(took)
    outside = group[first] != group[second]
    beaten, has_beaten = group[second[outside]], group[first[outside]]
    size = np.bincount(group)
    largest = np.flatnonzero(size == size.max())
    apart = np.ones(len(group), dtype=bool) if len(largest) > 1 else group != largest[0]
    return {
        "above": np.flatnonzero(apart & ~np.isin(group, beaten)).tolist(),
        "below": np.flatnonzero(apart & ~np.isin(group, has_beaten)).tolist(),
    }


# Models without context ---------------------------------------------------------------------------


def strengths(pairs: Pairs, ties: Ties = "davidson", prior_sd: float | None = None) -> Strengths:
    """Maximum likelihood (with `prior_sd`: a posteriori) strengths and their covariance.

    Davidson: P(i ≻ j) = π_i / S, P(tie) = ν√(π_i π_j) / S, S = π_i + π_j + ν√(π_i π_j); evalica's
    `newman` finds the same with v = ν / 2. "half": Bradley-Terry, a tie is half a win for each.
    Where nobody ever said "equal", both are Bradley-Terry.

    Args:
        pairs: of one connected part (without a prior there is no answer for more).
    Raises: ValueError where the likelihood has no finite maximum.
    Source: Davidson 1970, JASA 65, eq. 2.4; covariance H⁻¹ G H⁻¹ with the scores summed by prompt
        before they are squared, Liang & Zeger 1986, times C / (C − 1) for C prompts.
    """
    model = _Model(pairs, ties)
    sums = pairs.sums()[None]
    start = np.zeros((1, model.n_parameters))
    found = model.fit(sums, start, prior_sd, n_steps=100)
    if not np.isfinite(found).all() or np.abs(found).max() > 30:
        raise ValueError("the strengths have no finite best value")
    point = found[0]
    slope = model.information(sums, found, prior_sd)[0]
    scores = model.scores_by_prompt(point)
    n_prompts = scores.shape[0]
    spread = np.asarray((scores.T @ scores).todense()) * n_prompts / max(n_prompts - 1, 1)
    inverse = np.linalg.inv(slope)
    covariance = (inverse @ spread @ inverse)[: pairs.n_sources, : pairs.n_sources]
    centre = np.eye(pairs.n_sources) - 1 / pairs.n_sources
    return Strengths(
        log_strength=point[: pairs.n_sources] - point[: pairs.n_sources].mean(),
        log_tie=float(point[-1]) if model.has_tie else None,
        covariance=centre @ covariance @ centre,
        has_prior=prior_sd is not None,
    )


def resampled_strengths(
    pairs: Pairs,
    found: Strengths,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """(resamples, sources) log strengths, mean 0, refitted to prompts drawn with replacement.

    Every refit begins at `found`, so three or four steps of Newton's method reach its maximum.
    """
    model = _Model(pairs, "half" if found.log_tie is None else "davidson")
    point = np.append(found.log_strength, [] if found.log_tie is None else [found.log_tie])
    refitted = []
    for sums in _resampled(pairs.by_prompt, resamples):
        start = np.tile(point, (len(sums), 1))
        refitted.append(model.fit(sums.reshape(len(sums), 3, -1), start, PRIOR_SD, n_steps=8))
        on_progress(sum(map(len, refitted)), resamples)
    drawn = np.concatenate(refitted)[:, : pairs.n_sources]
    return drawn - drawn.mean(axis=1, keepdims=True)


class _Model:
    """Davidson's model, or Bradley-Terry, for many tables of sums at once.

    Both are exponential families in d = θ_i − θ_j (and log ν): the likelihood is concave, its slope
    is "seen − expected", and its curvature the variance of what is counted.
    """

    def __init__(self, pairs: Pairs, ties: Ties) -> None:
        self.pairs = pairs
        self.has_tie = ties == "davidson" and bool(pairs.sums()[1].any())
        self.n_parameters = pairs.n_sources + self.has_tie
        n_pairs, n = len(pairs.first), pairs.n_sources
        place = np.arange(n_pairs)
        # (pairs, sources): +1 for the first, −1 for the second.
        self.sign = sparse.csr_matrix(
            (
                np.repeat([1.0, -1.0], n_pairs),
                (np.tile(place, 2), np.concatenate([pairs.first, pairs.second])),
            ),
            shape=(n_pairs, n),
        )
        size = self.n_parameters
        corner = [
            pairs.first * size + pairs.first,
            pairs.second * size + pairs.second,
            pairs.first * size + pairs.second,
            pairs.second * size + pairs.first,
        ]
        # (pairs, parameters²): where a pair's curvature goes.
        self.square = sparse.csr_matrix(
            (
                np.repeat([1.0, 1.0, -1.0, -1.0], n_pairs),
                (np.tile(place, 4), np.concatenate(corner)),
            ),
            shape=(n_pairs, size * size),
        )

    def expected(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(…, pairs) P(first) − P(second), and P(tie); point: (…, parameters)."""
        d = point[..., self.pairs.first] - point[..., self.pairs.second]
        return _expected(d, point[..., -1:] if self.has_tie else None)

    def slope(self, sums: np.ndarray, point: np.ndarray, prior_sd: float | None) -> np.ndarray:
        """(tables, parameters) of the log likelihood; sums: (tables, 3, pairs)."""
        wins, ties, losses = sums[:, 0], sums[:, 1], sums[:, 2]
        n = wins + ties + losses
        lead, tie = self.expected(point)
        slope = (self.sign.T @ ((wins - losses - n * lead) / 2).T).T
        if self.has_tie:
            slope = np.column_stack([slope, (ties - n * tie).sum(axis=1)])
        return slope if prior_sd is None else slope - point / prior_sd**2

    def information(
        self, sums: np.ndarray, point: np.ndarray, prior_sd: float | None
    ) -> np.ndarray:
        """(tables, parameters, parameters) minus the second derivative of the log likelihood."""
        n = sums.sum(axis=1)
        lead, tie = self.expected(point)
        size = self.n_parameters
        own = n * ((1 - tie) / 4 - lead**2 / 4)
        found = (self.square.T @ own.T).T.reshape(-1, size, size)
        if self.has_tie:
            cross = (self.sign.T @ (-n * lead * tie / 2).T).T
            found[:, -1, :-1] = found[:, :-1, -1] = cross
            found[:, -1, -1] = (n * tie * (1 - tie)).sum(axis=1)
        if prior_sd is not None:
            return found + np.eye(size) / prior_sd**2
        # Adding a number to all strengths changes nothing: hold their sum.
        found[:, : self.pairs.n_sources, : self.pairs.n_sources] += 1 / self.pairs.n_sources
        return found

    def fit(
        self, sums: np.ndarray, point: np.ndarray, prior_sd: float | None, n_steps: int
    ) -> np.ndarray:
        """(tables, parameters) by Newton's method, no step longer than 2; NaN where it fails."""
        for _ in range(n_steps):
            slope = self.slope(sums, point, prior_sd)
            try:
                step = np.linalg.solve(self.information(sums, point, prior_sd), slope[..., None])[
                    ..., 0
                ]
            except np.linalg.LinAlgError:
                return np.full_like(point, np.nan)
            longest = np.abs(step).max(axis=1, keepdims=True)
            point = point + step * np.minimum(1, 2 / np.maximum(longest, 1e-300))
            if longest.max() < 1e-8 or not np.isfinite(longest).all():
                break
        return point

    def scores_by_prompt(self, point: np.ndarray) -> sparse.csr_matrix:
        """(prompts, parameters) each prompt's part of the slope, without the prior."""
        n_pairs = len(self.pairs.first)
        lead, tie = self.expected(point)
        rows = self.pairs.by_prompt
        wins, ties, losses = (rows[:, k * n_pairs : (k + 1) * n_pairs] for k in range(3))
        n = wins + ties + losses
        scores = (wins - losses - n @ sparse.diags(lead)) @ self.sign / 2
        if not self.has_tie:
            return sparse.csr_matrix(scores)
        of_tie = np.asarray(ties.sum(axis=1)).ravel() - n @ tie
        return sparse.csr_matrix(sparse.hstack([scores, of_tie[:, None]]))


def _expected(d: np.ndarray, log_tie: Any) -> tuple[np.ndarray, np.ndarray]:
    """P(first) − P(second), and P(tie), at a difference of log strengths; log_tie None: no ties."""
    if log_tie is None:
        return np.tanh(d / 2), np.zeros_like(d)
    nu = np.exp(np.minimum(log_tie, 30))
    half = np.minimum(np.abs(d) / 2, 300)
    whole = 1 + np.exp(-2 * half) + nu * np.exp(-half)
    return np.sign(d) * (1 - np.exp(-2 * half)) / whole, nu * np.exp(-half) / whole


def _resampled(by_prompt: sparse.csr_matrix, resamples: int) -> Iterator[np.ndarray]:
    """(some resamples, columns) sums over as many prompts as there are, drawn with replacement.

    Prompts with equal rows are drawn together, as in `labeling.intervals.resampled_sums`; sparse,
    because a prompt holds a few of the thousands of pairs.
    """
    n = by_prompt.shape[0]
    rng = np.random.default_rng(SEED)
    # Equal rows give equal sums of equal numbers, to the last bit; others collide by no chance.
    mark = by_prompt @ np.random.default_rng(SEED + 1).normal(size=by_prompt.shape[1])
    _marks, where, size = np.unique(mark, return_index=True, return_counts=True)
    alike = 10 * len(where) < n
    rows = by_prompt[where] if alike else by_prompt
    transposed = sparse.csr_matrix(rows.T)
    # Few at a time: draws that leave the processor's reach take five times as long.
    at_once = max(1, min(resamples, int(2e6 / max(rows.shape))))
    for begin in range(0, resamples, at_once):
        some = min(at_once, resamples - begin)
        if alike:
            draws = rng.multinomial(n, size / n, size=some)
        else:
            draws = np.stack(
                [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(some)]
            )
        yield (transposed @ draws.T.astype(float)).T


def rao_kupper(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Rao and Kupper's model of ties: (log strengths of mean 0, η ≥ 1, minus log likelihood).

    P(i ≻ j) = π_i / (π_i + η π_j), P(tie) = the rest. Another answer to the question that
    `strengths` answers; to see whether the ratings depend on the model of ties.

    Args:
        wins: (sources, sources) of the row over the column; ties: symmetric.
    Source: Rao & Kupper 1967, JASA 62.
    """
    n = len(wins)
    first, second = np.triu_indices(n, 1)
    won, lost, tied = wins[first, second], wins[second, first], ties[first, second]

    def cost(point: np.ndarray) -> tuple[float, np.ndarray]:
        d, h = point[first] - point[second], point[-1]  # h = log η
        for_first, for_second = expit(d - h), expit(-d - h)
        log_likelihood = (
            (won + tied) * np.log(for_first)
            + (lost + tied) * np.log(for_second)
            + tied * np.log(np.expm1(2 * h))
        ).sum()
        of_first, of_second = (won + tied) * (1 - for_first), (lost + tied) * (1 - for_second)
        slope = np.zeros(n + 1)
        np.add.at(slope, first, of_first - of_second)
        np.add.at(slope, second, of_second - of_first)
        slope[-1] = tied.sum() * 2 / -np.expm1(-2 * h) - of_first.sum() - of_second.sum()
        return -log_likelihood, -slope

    start = np.append(np.zeros(n), 0.5)
    found = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=[(None, None)] * n + [(1e-9, None)],
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000},
    )  # fmt: skip
    return found.x[:n] - found.x[:n].mean(), float(np.exp(found.x[-1])), float(found.fun)


def davidson_cost(wins: np.ndarray, ties: np.ndarray, found: Strengths) -> float:
    """Minus log likelihood of Davidson's model; arguments as of `rao_kupper`."""
    first, second = np.triu_indices(len(wins), 1)
    d = found.log_strength[first] - found.log_strength[second]
    log_tie = -np.inf if found.log_tie is None else found.log_tie
    whole = np.logaddexp(np.logaddexp(d / 2, -d / 2), log_tie)
    seen = (wins[first, second] - wins[second, first]) * d / 2 - whole * (
        wins[first, second] + wins[second, first] + ties[first, second]
    )
    tied = ties[first, second].sum()
    return -float(seen.sum() + (tied * log_tie if tied else 0))


# Intervals and ranks ------------------------------------------------------------------------------


def sandwich_interval(found: Strengths) -> tuple[np.ndarray, np.ndarray]:
    """(sources,) lower and upper ends on the scale of chess."""
    error = np.sqrt(np.diag(found.covariance))
    return elo(found.log_strength - Z * error), elo(found.log_strength + Z * error)


def percentile_interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sources,) ends on the scale of chess; drawn: (resamples, sources)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return elo(low), elo(high)


def rank_intervals(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sources,) best and worst rank that the intervals of the ratings leave open.

    The best is one more than the number of sources whose interval lies wholly above; the worst, as
    many as there are, less those whose interval lies wholly below.
    """
    above = (low[None, :] > high[:, None]).sum(axis=1)
    below = (high[None, :] < low[:, None]).sum(axis=1)
    return 1 + above, len(low) - below


# Models with context ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Controlled:
    """Ratings at equal length (and style)."""

    log_strength: np.ndarray
    """(sources,) mean 0."""
    weights: np.ndarray
    """(features,) change of the log odds by one standard deviation of the feature."""
    drawn: np.ndarray
    """(resamples, sources)"""
    drawn_weights: np.ndarray
    """(resamples, features)"""


def length_feature(length_first: np.ndarray, length_second: np.ndarray) -> np.ndarray:
    """(rows,) how much longer the first is: tanh of the difference by its standard deviation.

    Source: the length-controlled win rate of AlpacaEval, Dubois et al. 2024, arXiv:2404.04475.
    """
    difference = (length_first - length_second).astype(float)
    spread = difference.std() if len(difference) else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros(len(difference))


def style_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(rows, features) relative differences (a − b) / (a + b) of counts, standardised.

    Args:
        first, second: (rows, features) counts of list items, headings, bold words, …
    Source: "style control" of the Chatbot Arena, FastChat's rating_systems.py.
    """
    total = first + second
    ratio = np.divide(first - second, total, out=np.zeros(total.shape), where=total > 0)
    spread = ratio.std(axis=0)
    return np.divide(ratio, spread, out=np.zeros_like(ratio), where=spread > 0)


def controlled(
    games: Games,
    features: np.ndarray,
    resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Controlled:
    """Strengths with the features held equal: Davidson's model with d = θ_i − θ_j + βᵀz.

    The same model of ties as `strengths`, so that the two can stand beside each other. Each
    resample is refitted by one step of Newton's method from the whole data's maximum, with its own
    curvature: as good as a full refit but for terms of order 1 / prompts (Davidson & MacKinnon
    1999, International Economic Review 40; Andrews 2002, Econometrica 70). With the weak prior, so
    that every resample has an answer.

    Args:
        features: (rows, features) for the first less for the second, see `length_feature`.
    """
    n, rows = len(games.sources), len(games)
    has_tie = bool(games.ties.any())
    size = n + features.shape[1] + has_tie  # log ν comes last
    last = size - has_tie
    # The columns that a row fills, and with what: its two sources, and the features.
    filled = np.column_stack(
        [games.first, games.second, np.tile(np.arange(n, last), (rows, 1))]
    ).astype(np.int64)
    values = np.column_stack([np.ones(rows), -np.ones(rows), features])
    x = sparse.csr_matrix(
        (values.ravel(), (np.repeat(np.arange(rows), filled.shape[1]), filled.ravel())),
        shape=(rows, last),
    )
    count = (games.wins + games.ties + games.losses).astype(float)
    prior = np.eye(size) / PRIOR_SD**2

    def parts(point: np.ndarray) -> tuple[np.ndarray, ...]:
        """Each row's slope in d and log ν, and its curvature: (dd, dν, νν)."""
        lead, tie = _expected(x @ point[:last], point[-1] if has_tie else None)
        return (
            (games.wins - games.losses - count * lead) / 2,
            games.ties - count * tie,
            count * (1 - tie - lead**2) / 4,
            -count * lead * tie / 2,
            count * tie * (1 - tie),
        )

    point = np.zeros(size)
    for _ in range(100):
        in_d, in_tie, dd, d_tie, tie_tie = parts(point)
        information = np.zeros((size, size))
        information[:last, :last] = (x.T @ sparse.diags(dd) @ x).todense()
        slope = np.zeros(size)
        slope[:last] = x.T @ in_d
        if has_tie:
            information[-1, :-1] = information[:-1, -1] = x.T @ d_tie
            information[-1, -1] = tie_tie.sum()
            slope[-1] = in_tie.sum()
        step = np.linalg.solve(information + prior, slope - point / PRIOR_SD**2)
        point = point + step * min(1, 2 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-8:
            break
    # What one step needs of a resample are sums: the slope, and the curvature's entries. A row has
    # entries for its two sources and the features alone, so these are sparse too.
    in_d, in_tie, dd, d_tie, tie_tie = parts(point)
    left, right = np.triu_indices(size)
    code = np.zeros((size, size), dtype=np.int64)
    code[left, right] = code[right, left] = np.arange(len(left))
    near, far = np.triu_indices(filled.shape[1])
    columns = [code[filled[:, near], filled[:, far]], len(left) + filled]
    entries = [dd[:, None] * values[:, near] * values[:, far], in_d[:, None] * values]
    if has_tie:
        columns += [
            code[filled, -1],
            np.tile([code[-1, -1], len(left) + size - 1], (rows, 1)),
        ]
        entries += [d_tie[:, None] * values, np.column_stack([tie_tie, in_tie])]
    column, entry = np.hstack(columns), np.hstack(entries)
    prompts, prompt = np.unique(games.prompt, return_inverse=True)
    by_prompt = sparse.csr_matrix(
        (entry.ravel(), (np.repeat(prompt, column.shape[1]), column.ravel())),
        shape=(len(prompts), len(left) + size),
    )
    drawn = []
    for sums in _resampled(by_prompt, resamples):
        information = sums[:, : len(left)][:, code] + prior
        slope = sums[:, len(left) :] - point / PRIOR_SD**2
        drawn.append(point + np.linalg.solve(information, slope[..., None])[..., 0])
        on_progress(sum(map(len, drawn)), resamples)
    all_drawn = np.concatenate(drawn)
    centred = all_drawn[:, :n] - all_drawn[:, :n].mean(axis=1, keepdims=True)
    return Controlled(
        log_strength=point[:n] - point[:n].mean(),
        weights=point[n:last],
        drawn=centred,
        drawn_weights=all_drawn[:, n:last],
    )


# What a page shows --------------------------------------------------------------------------------


def rating_table(
    games: Games,
    ties: Ties = "davidson",
    features: dict[str, np.ndarray] | None = None,
    prior: bool = False,
    most_resamples: int = RESAMPLES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The ratings of each connected part, largest part first, ready for JSON.

    Args:
        features: by name, (rows, features) of models with context to show beside ("length", …); a
            row with NaN is left out of that model.
        prior: have the weak prior in any case, because counts below 0 are among them (answers with
            a judge's mistakes taken out).
        most_resamples: fewer are drawn of many sources, and of a model with context of many rows.
    Returns: for each part "sources" (best first; figures "rating" and "controlled" by name, and
        "rank", "rank_low", "rank_high", "wins", "ties", "losses", "n"), "n" answers, "n_prompts",
        "tie" (ν, or None), "has_prior", "above", "below" (see `unbounded`), "resamples",
        "features" (by name: figures of each feature's weight), "order" and "chances": for "raw" and
        each feature, [value, low, high] of the chance that a source of "order" is preferred to
        each one after it, where a side is taken; for parts of `MOST_CHANCES` sources at most.
    """
    parts = connected_parts(games)
    found = []
    for done, part in enumerate(parts):

        def on_part(share: float, done: int = done) -> None:
            on_progress(int(1000 * (done + share) / len(parts)), 1000)

        found.append(_rated_part(games, part, ties, features or {}, prior, most_resamples, on_part))
        on_part(1.0)
    return found


def _rated_part(
    games: Games,
    part: np.ndarray,
    ties: Ties,
    features: dict[str, np.ndarray],
    prior: bool,
    most_resamples: int,
    on_part: Callable[[float], None],
) -> dict[str, Any]:
    inside = np.isin(games.first, part)
    code = np.full(len(games.sources), -1)
    code[part] = np.arange(len(part))
    one = games.where(inside)
    one = Games(
        [games.sources[place] for place in part],
        one.prompt, code[one.first], code[one.second], one.wins, one.ties, one.losses,
    )  # fmt: skip
    pairs = pairs_of(one)
    edge = {"above": [], "below": []} if prior else unbounded(one)
    has_prior = prior or bool(edge["above"] or edge["below"])
    rated = strengths(pairs, ties, PRIOR_SD if has_prior else None)
    n_prompts = pairs.by_prompt.shape[0]
    n_models = 1 + len(features)
    resamples = most_resamples if len(part) <= MANY_SOURCES else FEW_RESAMPLES
    few = n_prompts < MIN_PROMPTS
    low, high = sandwich_interval(rated)
    chances: dict[str, list[list[float]]] = {}
    if not few:
        drawn = resampled_strengths(
            pairs, rated, resamples, lambda n, total: on_part(n / total / n_models)
        )
        drawn_low, drawn_high = percentile_interval(drawn)
        chances["raw"] = _chances(rated.log_strength, drawn)
    else:
        drawn_low = drawn_high = None
    value = elo(rated.log_strength)
    wins, tied = win_table(one)
    sources = []
    best, worst = rank_intervals(
        low if drawn_low is None else drawn_low, high if drawn_high is None else drawn_high
    )
    rank = np.argsort(np.argsort(-value, kind="stable")) + 1
    why = gettext_noop("Fewer than 10 prompts: too few to resample.")
    for k, name in enumerate(one.sources):
        n = float(wins[k].sum() + wins[:, k].sum() + tied[k].sum())
        figure: dict[str, Any] = {"value": float(value[k]), "n": round(n)}
        if drawn_low is None:
            figure |= {"low": None, "high": None, "why_no_interval": why}
        else:
            figure |= {"low": float(drawn_low[k]), "high": float(drawn_high[k])}
        figure |= {"sandwich_low": float(low[k]), "sandwich_high": float(high[k])}
        sources.append(
            {
                "source": name,
                "rating": figure,
                "controlled": {},
                "rank": int(rank[k]),
                "rank_low": None if drawn_low is None else int(best[k]),
                "rank_high": None if drawn_low is None else int(worst[k]),
                "wins": float(wins[k].sum()),
                "ties": float(tied[k].sum()),
                "losses": float(wins[:, k].sum()),
                "n": round(n),
                "edge": "above" if k in edge["above"] else "below" if k in edge["below"] else "",
            }
        )
    weights: dict[str, list[dict[str, Any]]] = {}
    for number, (name, columns) in enumerate(features.items(), start=1):
        known = ~np.isnan(columns[inside]).any(axis=1)
        some = one.where(known)
        if few or len(np.unique(some.prompt)) < MIN_PROMPTS:
            continue
        held = controlled(
            some,
            columns[inside][known],
            resamples if len(some) <= MANY_ROWS else min(resamples, FEW_RESAMPLES),
            lambda n, total, number=number: on_part((number + n / total) / n_models),
        )
        held_low, held_high = percentile_interval(held.drawn)
        chances[name] = _chances(held.log_strength, held.drawn)
        n_of = np.bincount(some.first, minlength=len(part))
        n_of = n_of + np.bincount(some.second, minlength=len(part))
        for k, row in enumerate(sources):
            row["controlled"][name] = {
                "value": float(elo(held.log_strength[k])),
                "low": float(held_low[k]),
                "high": float(held_high[k]),
                "n": int(n_of[k]),
            }
        tail = (1 - CONFIDENCE) / 2
        ends = np.quantile(held.drawn_weights, [tail, 1 - tail], axis=0)
        weights[name] = [
            {"value": float(value), "low": float(a), "high": float(b), "n": len(some)}
            for value, a, b in zip(held.weights, *ends, strict=True)
        ]
    return {
        "sources": sorted(sources, key=lambda row: row["rank"]),
        "n": round(float((one.wins + one.ties + one.losses).sum())),
        "n_comparisons": len(one),
        "n_prompts": n_prompts,
        "tie": None if rated.log_tie is None else float(np.exp(rated.log_tie)),
        "has_prior": has_prior,
        "resamples": 0 if few else resamples,
        "features": weights,
        "order": one.sources,
        "chances": chances,
    }


def _chances(log_strength: np.ndarray, drawn: np.ndarray) -> list[list[float]]:
    """[value, low, high] for each pair of sources, in the order of `np.triu_indices`."""
    if len(log_strength) > MOST_CHANCES:
        return []
    first, second = np.triu_indices(len(log_strength), 1)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(drawn[:, first] - drawn[:, second], [tail, 1 - tail], axis=0)
    found = prob_better(np.stack([log_strength[first] - log_strength[second], *ends]))
    return [[round(float(value), 4) for value in row] for row in found.T]
