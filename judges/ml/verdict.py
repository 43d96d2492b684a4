"""From log-probabilities to one verdict.

Log-probabilities come as (first, second), or (first, second, tie) from a judge that may say that
neither is better: of "the response shown first is better", of "the one shown second is". With A
shown first (ab), "first" speaks for A; with B shown first (ba), "second" does. All logarithms are
natural.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Logps = tuple[float, ...]
"""Log-probabilities in nats of the answers, at most 0: (first, second) or (first, second, tie)."""

LARGEST_LOGIT = 30.0
"""A probability of 0 or 1 has no logit; it counts as this one, which is a doubt of 1e-13."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Everything that follows from one comparison's log-probabilities in both orders."""

    prob_a: float
    prob_a_ab: float
    prob_a_ba: float
    prob_tie: float | None = None
    """Mean over both orders; None from a judge that has no answer for ties."""
    mean_logit: float
    """(z_ab + z_ba) / 2: the logit for A with the item's position bias taken out."""
    position_bias: float
    """(z_ab - z_ba) / 2: above 0 the judge leans to the response that is shown first."""
    answer_mass_ab: float
    answer_mass_ba: float
    consistent: bool
    """Both orders name the same response."""
    parsed: bool


def says_tie(prob_a: float, prob_tie: float | None) -> bool:
    """Whether a tie is more probable than either response; where a judge has no answer for ties,
    exactly one half is one."""
    if prob_tie is None:
        return prob_a == 0.5
    a_alone = prob_a - prob_tie / 2
    return prob_tie > max(a_alone, 1 - prob_tie - a_alone)


def read_both_orders(logp_ab: Logps, logp_ba: Logps, min_answer_mass: float = 0.5) -> Reading:
    """The verdict on one comparison; "unparsed" where either order says something else mostly.

    Raises: ValueError if a value is above 0 or not a number.
    """
    z_ab, z_ba = logit_a(logp_ab, logp_ba)
    prob_a_ab = _prob_a(z_ab, _tie_share(logp_ab))
    prob_a_ba = _prob_a(z_ba, _tie_share(logp_ba))
    mass_ab, mass_ba = answer_mass(logp_ab), answer_mass(logp_ba)
    return Reading(
        prob_a=prob_a_preferred(logp_ab, logp_ba),
        prob_a_ab=prob_a_ab,
        prob_a_ba=prob_a_ba,
        prob_tie=prob_tie(logp_ab, logp_ba),
        mean_logit=(z_ab + z_ba) / 2,
        position_bias=(z_ab - z_ba) / 2,
        answer_mass_ab=mass_ab,
        answer_mass_ba=mass_ba,
        consistent=z_ab * z_ba > 0,
        parsed=min(mass_ab, mass_ba) >= min_answer_mass,
    )


def prob_a_preferred(logp_ab: Logps, logp_ba: Logps) -> float:
    """Probability that response A is better, averaged over both orders of showing.

    A judge that follows the place alone (position bias) comes out at exactly 0.5. Where it may say
    that neither is better, half of that probability counts for A: the value that is expected when
    A is worth 1, B 0 and a tie one half.

    Args:
        logp_ab: (first, second) or (first, second, tie) with A shown first.
        logp_ba: the same with B shown first; here "second" speaks for A.
    Returns: a float in [0, 1]; probability that the judge gave to other tokens is left out.
    Raises: ValueError if a value is above 0 or not a number: these are no log-probabilities.
    Source: RLAIF, Lee et al. 2023, arXiv:2309.00267, section 2.1 (soft label, mean over both
        orders); balanced position calibration, Wang et al. 2023, arXiv:2305.17926.
    """
    z_ab, z_ba = logit_a(logp_ab, logp_ba)
    return (_prob_a(z_ab, _tie_share(logp_ab)) + _prob_a(z_ba, _tie_share(logp_ba))) / 2


def prob_tie(logp_ab: Logps, logp_ba: Logps) -> float | None:
    """Probability that neither is better, of the answers alone, averaged over both orders; None
    where the judge had no such answer."""
    if len(logp_ab) < 3:
        return None
    return (_tie_share(logp_ab) + _tie_share(logp_ba)) / 2


def logit_a(logp_ab: Logps, logp_ba: Logps) -> tuple[float, float]:
    """(z_ab, z_ba): the logit of "A is better" against "B is better" with A shown first and with B
    shown first; a tie's probability is left out.

    Raises: ValueError if a value is above 0 or not a number.
    """
    values = (*logp_ab, *logp_ba)
    if not all(value <= 0 for value in values):
        raise ValueError(f"expected log-probabilities, got {logp_ab} and {logp_ba}")
    return _difference(*logp_ab[:2]), _difference(logp_ba[1], logp_ba[0])


def answer_mass(logp: Logps) -> float:
    """Probability that the judge gave to its answers together, in [0, 1]."""
    # Rounding of float32 log-probabilities may put the sum a hair above 1.
    return min(1.0, sum(math.exp(value) for value in logp))


def mean_over_samples(logps: Sequence[Logps]) -> Logps:
    """Log of the mean probability of each answer, over the rationales that were drawn."""
    return tuple(_log_mean(values) for values in zip(*logps, strict=True))


def mean_and_error(probs: Sequence[float]) -> tuple[float, float | None]:
    """The mean of the probabilities of K drawn rationales, and its standard error over them (None
    of one alone): the sample's standard deviation over the root of K.

    Source: self-consistency, Wang et al. 2022, arXiv:2203.11171; as soft labels, Lee et al. 2023,
        arXiv:2309.00267.
    """
    n = len(probs)
    mean = math.fsum(probs) / n
    if n < 2:
        return mean, None
    variance = math.fsum((prob - mean) ** 2 for prob in probs) / (n - 1)
    return mean, math.sqrt(variance / n)


def score_distribution(logps: Logps) -> tuple[float, ...]:
    """Probability of each score from 1, of the scores alone; equal where all are impossible."""
    highest = max(logps)
    if highest == -math.inf:
        return tuple(1 / len(logps) for _ in logps)
    weights = [math.exp(value - highest) for value in logps]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def expected_score(distribution: Sequence[float]) -> float:
    """The mean of the scores from 1 up.

    Source: d-RLAIF, Lee et al. 2023, arXiv:2309.00267, section 2.2.2.
    """
    return math.fsum(score * prob for score, prob in enumerate(distribution, start=1))


def prob_higher(one: Sequence[float], other: Sequence[float]) -> float:
    """Probability that a score drawn from `one` is above a score drawn from `other`, plus half the
    probability that they are equal.

    It uses all of both distributions, is one half for equal ones, and adds to 1 with the two
    exchanged. A difference of means would have to be scaled to become a probability.
    Source: Vargha and Delaney 2000, "A critique and improvement of the CL common language effect
        size statistics of McGraw and Wong", the measure A.
    """
    share = math.fsum(
        prob * (math.fsum(other[:score]) + other[score] / 2) for score, prob in enumerate(one)
    )
    return min(1.0, share)


def prob_from_rewards(reward_a: float, reward_b: float) -> float:
    """σ(r_a - r_b): the model of Bradley and Terry 1952 that reward models are trained by."""
    return _sigmoid(reward_a - reward_b)


def jury(probs: Sequence[float]) -> tuple[float, list[float]]:
    """(probability of the jury, logits of its members): the members' mean logit, as a probability.

    Raises: ValueError without a member.
    """
    if not probs:
        raise ValueError("a jury needs a member")
    logits = [logit(prob) for prob in probs]
    return _sigmoid(math.fsum(logits) / len(logits)), logits


def logit(prob: float) -> float:
    """log(p / (1 - p)), within ±LARGEST_LOGIT."""
    if prob in (0, 1):
        return math.copysign(LARGEST_LOGIT, prob - 0.5)
    return min(max(math.log(prob / (1 - prob)), -LARGEST_LOGIT), LARGEST_LOGIT)


def _prob_a(z: float, tie_share: float) -> float:
    return (1 - tie_share) * _sigmoid(z) + tie_share / 2


def _tie_share(logp: Logps) -> float:
    """Probability of a tie among the answers; 0 where it was none of them."""
    return score_distribution(logp)[2] if len(logp) > 2 else 0.0


def _difference(left: float, right: float) -> float:
    """left - right, and 0 where both answers are impossible: then the judge names neither."""
    return 0.0 if left == right else left - right


def _log_mean(values: Sequence[float]) -> float:
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(math.fsum(math.exp(v - highest) for v in values) / len(values))


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    odds = math.exp(z)
    return odds / (1 + odds)
