"""Which pairs to label next: what a label would tell, and a draw of which every probability is
known.

Numbers alone, so it can be used from a notebook. A *gap* is the reward of response A minus that of
B; several members of an ensemble give several gaps for a pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEAST_RANDOM = 0.1
"""Share of a round's labels that is drawn uniformly from all candidates, whatever their scores."""


def prob_of_gap(gaps: ArrayLike) -> Floats:
    """σ(gap): the probability that A is preferred, by Bradley and Terry's model."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(gaps, dtype=float))))


def entropy(probs: ArrayLike) -> Floats:
    """H(p) of an answer that is A with probability p, in nats; 0 where it is certain."""
    p = np.asarray(probs, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return np.asarray(np.where((p <= 0) | (p >= 1), 0.0, each))


# What a label would tell --------------------------------------------------------------------------


def bald(probs: ArrayLike) -> Floats:
    """What an answer would tell about which member of an ensemble is right, in nats.

    H(p̄) − mean_k H(p_k): large where the members are sure and contradict each other, 0 where they
    agree, however unsure all of them are. Members at 1 and 0 give log 2.

    Args: probs: (members, pairs), σ of each member's gap.
    Returns: (pairs,), from 0 to log 2.
    Raises: ValueError for fewer than two members: one never contradicts itself.
    Source: Houlsby et al. 2011, arXiv:1112.5745, eq. 2, with the members as posterior draws.
    """
    p = np.asarray(probs, dtype=float)
    if p.ndim != 2 or len(p) < 2:
        raise ValueError("how members disagree needs at least two of them")
    return np.asarray(np.maximum(entropy(p.mean(axis=0)) - entropy(p).mean(axis=0), 0.0))


def uncertain_gap(gap: ArrayLike, spread: ArrayLike) -> Floats:
    """How large the difference of a pair could be: |gap| + its standard deviation; 0 where the gap
    is known, since a label tells nothing new there.

    Args: gap, spread: (pairs,), in units of reward.
    Raises: ValueError for a negative spread.
    Source: an upper confidence bound of the gap, as in DeltaUCB for choosing pairs for DPO.
    """
    mean, sd = np.asarray(gap, dtype=float), np.asarray(spread, dtype=float)
    if (sd < 0).any():
        raise ValueError("a spread is at least 0")
    return np.asarray(np.where(sd > 0, np.abs(mean) + sd, 0.0))


def answer_spread(probs: ArrayLike) -> Floats:
    """√(p (1 − p)), to which the best probability of asking people is proportional when their
    answers correct a model's.

    Args: probs: (pairs,). Source: Zrnic & Candès 2024, arXiv:2403.03208, section 3.
    """
    p = np.asarray(probs, dtype=float)
    return np.asarray(np.sqrt(p * (1 - p)))


def decision_gain(
    covariance: ArrayLike, contrast: ArrayLike, features: ArrayLike, probs: ArrayLike
) -> Floats:
    """By how much one answer is expected to shrink the variance of what is to be decided.

    With strengths θ ~ N(·, Σ), the decision cᵀθ (such as new − previous) and an answer about dᵀθ
    that carries p(1 − p) of information:  p(1−p) (cᵀΣd)² / (1 + p(1−p) dᵀΣd).

    Args: covariance: Σ (models, models); contrast: c (models,); features: d (pairs, models), +1 and
        −1 for the two sides' models; probs: (pairs,) that the first is preferred.
    Returns: (pairs,), never more than cᵀΣc. Σ = I of two models, c = d = (1, −1), p = ½ give 2/3.
    Source: the Gaussian update of Laplace's approximation, as in Chu & Ghahramani 2005.
    """
    sigma, c = np.asarray(covariance, dtype=float), np.asarray(contrast, dtype=float)
    d, p = np.asarray(features, dtype=float), np.asarray(probs, dtype=float)
    seen = d @ sigma  # (pairs, models)
    w = p * (1 - p)
    return np.asarray(w * (seen @ c) ** 2 / (1 + w * np.einsum("ij,ij->i", seen, d)))


def d_optimal(
    features: ArrayLike,
    probs: ArrayLike,
    n: int,
    *,
    labeled: ArrayLike | None = None,
    labeled_probs: ArrayLike | None = None,
    ridge: float = 1.0,
) -> tuple[list[int], list[float]]:
    """The n pairs that together tell most about a reward's last layer, the best first; and what
    each adds to log det, in nats.

    Greedily argmax log det(A + p(1−p) φφᵀ): the gain of a pair is log(1 + p(1−p) φᵀA⁻¹φ), and what
    was taken lowers the gain of all that is like it. With A = I, φ = (2, 0) and p = ½ the first
    gain is log 2.

    Args:
        features: φ = h(x, a) − h(x, b) (pairs, width), what the last layer reads of the two sides.
        probs: (pairs,) that A is preferred.
        labeled, labeled_probs: the same of pairs with a label; they count as known.
        ridge: A = ridge · I before any pair.
    Source: D-optimal design for a logistic model; greedily within 1 − 1/e of the best, since log
        det is submodular (Nemhauser, Wolsey & Fisher 1978).
    """
    phi, p = np.asarray(features, dtype=float), np.asarray(probs, dtype=float)
    w = p * (1 - p)
    inverse = np.linalg.inv(_information(phi.shape[1], labeled, labeled_probs, ridge))
    seen = phi @ inverse  # (pairs, width)
    leverage = np.einsum("ij,ij->i", seen, phi)  # φᵀA⁻¹φ
    free = np.ones(len(phi), dtype=bool)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(min(n, len(phi))):
        gain = np.where(free, np.log1p(w * np.maximum(leverage, 0)), -1.0)
        best = int(gain.argmax())
        order.append(best)
        gains.append(float(gain[best]))
        free[best] = False
        # Sherman and Morrison: A grows by one pair, A⁻¹ and every leverage by one rank.
        towards = inverse @ phi[best]
        scale = w[best] / (1 + w[best] * leverage[best])
        inverse -= scale * np.outer(towards, towards)
        leverage = leverage - scale * (phi @ towards) ** 2
    return order, gains


def i_optimal(
    features: ArrayLike,
    probs: ArrayLike,
    n: int,
    *,
    labeled: ArrayLike | None = None,
    labeled_probs: ArrayLike | None = None,
    ridge: float = 1.0,
) -> tuple[list[int], list[float]]:
    """The n pairs after which the reward's gaps are known best over all candidates, the best first;
    and by how much each lowers the mean variance.

    Greedily argmin tr(A⁻¹ M), M = mean of p(1−p) φφᵀ over the candidates: a pair's gain is
    p(1−p) φᵀA⁻¹MA⁻¹φ / (1 + p(1−p) φᵀA⁻¹φ). D-optimal asks about what is rare, since that is known
    least; this asks about what is known little *and* is like much else, and what is far from any
    other candidate gains nothing by being far. With A = I and a single candidate φ = 2, p = ½ the
    variance falls from 1 to ½.

    Args: as of `d_optimal`.
    Source: I-optimal (also V-optimal) design, Atkinson, Donev & Tobias 2007, chapter 10; for
        classifiers as active learning Zhang & Oles 2000.
    """
    phi, p = np.asarray(features, dtype=float), np.asarray(probs, dtype=float)
    w = p * (1 - p)
    inverse = np.linalg.inv(_information(phi.shape[1], labeled, labeled_probs, ridge))
    target = (phi * w[:, None]).T @ phi / len(phi)  # M
    free = np.ones(len(phi), dtype=bool)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(min(n, len(phi))):
        seen = phi @ inverse  # (pairs, width)
        leverage = np.einsum("ij,ij->i", seen, phi)
        worth = np.einsum("ij,ij->i", seen @ target, seen)  # φᵀA⁻¹MA⁻¹φ
        gain = np.where(free, w * worth / (1 + w * leverage), -1.0)
        best = int(gain.argmax())
        order.append(best)
        gains.append(float(gain[best]))
        free[best] = False
        inverse -= w[best] / (1 + w[best] * leverage[best]) * np.outer(seen[best], seen[best])
    return order, gains


def _information(
    width: int, labeled: ArrayLike | None, labeled_probs: ArrayLike | None, ridge: float
) -> Floats:
    """A = ridge · I + Σ p(1−p) φφᵀ over the pairs with a label."""
    information = ridge * np.eye(width)
    if labeled is not None and labeled_probs is not None:
        known, q = np.asarray(labeled, dtype=float), np.asarray(labeled_probs, dtype=float)
        information += (known * (q * (1 - q))[:, None]).T @ known
    return information


MOST_WIDE = 256
"""Dimensions that are enough to tell candidates apart; what is wider is projected to so many."""


def unit_features(features: ArrayLike, seed: int = 0) -> Floats:
    """Features on a scale of their own: every dimension as long as every other, and a pair of
    length 1 in the mean, so that a ridge of 1 weighs as much as four pairs that nobody can tell
    apart, whatever the model. Wider ones are projected at random, which keeps their inner products.

    Source: Johnson & Lindenstrauss 1984.
    """
    phi = np.asarray(features, dtype=float)
    if not len(phi):
        return phi
    size = np.sqrt((phi**2).mean(axis=0))
    phi = phi[:, size > 0] / size[size > 0]
    if phi.shape[1] > MOST_WIDE:
        rng = np.random.default_rng(seed)
        phi = phi @ rng.standard_normal((phi.shape[1], MOST_WIDE))
    length = math.sqrt(float((phi**2).sum(axis=1).mean()))
    return np.asarray(phi / length if length else phi)


# From rewards to a design -------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """Pairs under a reward model."""

    gaps: Floats
    """(members, pairs)"""
    features: Floats
    """(pairs, width) what the last layer reads of A minus what it reads of B."""
    is_trained: bool = True
    """Whether the rewards mean anything: a head that is still random has features alone."""

    @property
    def probs(self) -> Floats:
        """(members, pairs) that A is preferred; ½ where nobody knows."""
        found = prob_of_gap(self.gaps)
        return found if self.is_trained else np.full_like(found, 0.5)


WAYS = {
    "i_optimal": "what makes all gaps known best",
    "d_optimal": "what tells most about the last layer",
    "near_tie": "where the model cannot tell",
    "bald": "where the members of an ensemble contradict each other",
    "uncertain_gap": "what could differ most",
    "decision": "what decides between two models",
    "random": "uniformly",
}
MOST_OF_A_PROMPT = 2
"""Pairs of one prompt that are taken for a score each: they say much the same. The optimal designs
see that by themselves."""


def design(
    way: str,
    n: int,
    candidates: Read,
    labeled: Read | None = None,
    *,
    prompts: Sequence[object] = (),
    worth: ArrayLike | None = None,
    share: float = LEAST_RANDOM,
) -> tuple[Floats, Floats]:
    """With which probability each candidate is taken, and what a label of it would tell.

    Args:
        way: of WAYS.
        labeled: pairs with a label, read by the same model.
        prompts: (candidates,) of each; for the ways that score each pair by itself.
        worth: (candidates,) of "decision": see `decision_gain`.
    Returns: probabilities (candidates,) that sum to n, and scores (candidates,), NaN where a
        candidate was not scored.
    Raises: ValueError for "bald" with one member, or an unknown way.
    """
    n_candidates = candidates.gaps.shape[1]
    scores = np.full(n_candidates, np.nan)
    if way == "random":
        return in_proportion(np.ones(n_candidates), n, share), scores
    if way == "decision":
        scores = np.sqrt(np.asarray(worth, dtype=float))
        return in_proportion(scores, n, share), scores
    if way == "near_tie" and not candidates.is_trained:
        way = "i_optimal"  # where no reward is known, every pair is a near tie
    if way in ("i_optimal", "d_optimal"):
        phi, known, q = _on_one_scale(candidates, labeled)
        find = i_optimal if way == "i_optimal" else d_optimal
        n_best = n - n_at_random(n, share)
        p = candidates.probs.mean(axis=0)
        order, gains = find(phi, p, n_best, labeled=known, labeled_probs=q)
        scores[order] = gains
    elif way == "near_tie":
        scores = entropy(candidates.probs.mean(axis=0))
        order = _few_of_a_prompt(scores, prompts)
    elif way == "bald":
        scores = bald(candidates.probs)
        order = _few_of_a_prompt(scores, prompts)
    elif way == "uncertain_gap":
        scores = uncertain_gap(candidates.gaps.mean(axis=0), _spread(candidates, labeled))
        order = _few_of_a_prompt(scores, prompts)
    else:
        raise ValueError(f"there is no way {way!r} to choose pairs")
    return best_and_random(order, n, n_candidates, share), scores


def _on_one_scale(
    candidates: Read, labeled: Read | None
) -> tuple[Floats, Floats | None, Floats | None]:
    """Features of candidates and of labeled pairs in the same units, and the latter's p."""
    if labeled is None or not labeled.gaps.shape[1]:
        return unit_features(candidates.features), None, None
    n = len(candidates.features)
    both = unit_features(np.concatenate([candidates.features, labeled.features]))
    return both[:n], both[n:], labeled.probs.mean(axis=0)


def _spread(candidates: Read, labeled: Read | None) -> Floats:
    """(pairs,) standard deviation of the gaps: over the members of an ensemble; of a single model,
    of its last layer given the labeled pairs (Laplace's approximation: √(φᵀA⁻¹φ))."""
    if len(candidates.gaps) > 1:
        return np.asarray(candidates.gaps.std(axis=0, ddof=1))
    phi, known, q = _on_one_scale(candidates, labeled)
    inverse = np.linalg.inv(_information(phi.shape[1], known, q, 1.0))
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", phi @ inverse, phi)))


def _few_of_a_prompt(scores: Floats, prompts: Sequence[object]) -> list[int]:
    """The places in the order of their scores, without the third and further of a prompt."""
    seen: dict[object, int] = {}
    order = []
    for place in np.argsort(-scores, kind="stable").tolist():
        prompt = prompts[place] if prompts else place
        seen[prompt] = seen.get(prompt, 0) + 1
        if seen[prompt] <= MOST_OF_A_PROMPT:
            order.append(place)
    return order


# Which are drawn ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """What a round takes of its candidates."""

    places: list[int]
    """Of those that were taken, in ascending order."""
    probability: Floats
    """(candidates,) with which this design takes each; never 0."""
    at_random: NDArray[np.bool_]
    """(candidates,) whether one belongs to the part that is a uniform sample of all of them."""
    floor: float
    """The probability of that part, the same for every candidate."""


def n_at_random(n: int, share: float = LEAST_RANDOM) -> int:
    """How many of n are drawn uniformly: the share of them, rounded up, and at least one."""
    return min(n, max(1, math.ceil(share * n - 1e-9)))


def best_and_random(
    order: Sequence[int], n: int, n_candidates: int, share: float = LEAST_RANDOM
) -> Floats:
    """Inclusion probabilities (candidates,) where the first of `order` are taken for sure and at
    least a share of n uniformly from the rest.

    Raises: ValueError if there is nothing to take.
    """
    n = _possible(n, n_candidates)
    n_best = min(n - n_at_random(n, share), len(order)) if n < n_candidates else n
    best = list(order[:n_best])
    rest = (n - n_best) / (n_candidates - n_best) if n_candidates > n_best else 1.0
    probs = np.full(n_candidates, rest)
    probs[best] = 1.0
    return probs


def in_proportion(scores: ArrayLike, n: int, share: float = LEAST_RANDOM) -> Floats:
    """Inclusion probabilities (candidates,) that sum to n: a floor of share · n / candidates for
    each, and above it in proportion to the score, at most 1.

    Raises: ValueError for a negative score, or if there is nothing to take.
    """
    found = np.asarray(scores, dtype=float)
    n = _possible(n, len(found))
    if (found < 0).any() or not np.isfinite(found).all():
        raise ValueError("a score is a number of at least 0")
    if not found.any():
        found = np.ones(len(found))
    floor = n_at_random(n, share) / len(found)
    low, high = 0.0, (n + 1) / max(float(found[found > 0].min()), 1e-12)
    for _ in range(200):  # Σ min(1, floor + t · score) grows with t: halve until it is n
        middle = (low + high) / 2
        if np.minimum(1.0, floor + middle * found).sum() < n:
            low = middle
        else:
            high = middle
    probs = np.minimum(1.0, floor + high * found)
    open_places = probs < 1
    if open_places.any() and probs.sum() < n - 1e-9:  # those with a score are full: the rest evenly
        missing = n - probs.sum()
        probs[open_places] += missing / open_places.sum()
    return probs


def draw(probs: ArrayLike, seed: int) -> Draw:
    """Take candidates with exactly these probabilities, as many as they sum to.

    Systematic sampling in a random order: one uniform start, then every whole step along the
    running sum. Of what is taken, a part is marked as drawn at random, so that a candidate carries
    the mark with the smallest of all probabilities, whatever its own: a uniform sample of all.

    Args: probs: (candidates,), each in (0, 1]; their sum is a whole number, else it is rounded by
        chance.
    Raises: ValueError for a probability outside.
    Source: Madow 1949, Annals of Mathematical Statistics 20(3); Tillé 2006, section 7.
    """
    p = np.asarray(probs, dtype=float)
    if len(p) == 0 or (p <= 0).any() or (p > 1 + 1e-9).any():
        raise ValueError("every candidate needs a probability above 0 and at most 1")
    p = np.minimum(p, 1.0)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(p))
    ends = np.cumsum(p[order])
    ends[-1] = _whole(float(ends[-1]))
    start = rng.random()
    passed = np.floor(ends - start).astype(int) + 1  # how many steps lie below each end
    taken = np.diff(np.concatenate([[0], passed])) > 0
    places = np.sort(order[taken])
    floor = float(p.min())
    marked = np.zeros(len(p), dtype=bool)
    marked[places] = rng.random(len(places)) < floor / p[places]
    return Draw(places.tolist(), p, marked, floor)


def pool_mean(values: ArrayLike, probs: ArrayLike, n_candidates: int) -> float:
    """The mean over all candidates from those that were taken: Σ y / π, over how many there were.

    Unbiased whatever the scores were. Source: Horvitz & Thompson 1952, JASA 47(260), eq. 5.
    """
    y, p = np.asarray(values, dtype=float), np.asarray(probs, dtype=float)
    return float((y / p).sum() / n_candidates)


def _possible(n: int, n_candidates: int) -> int:
    if n < 1 or n_candidates < 1:
        raise ValueError("there is nothing to choose from, or nothing to choose")
    return min(n, n_candidates)


def _whole(total: float) -> float:
    """The sum without what floating point added or took."""
    return float(round(total)) if abs(total - round(total)) < 1e-6 else total
