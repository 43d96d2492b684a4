"""From the log-probabilities of both orders to one verdict.

Log-probabilities come as (first, second): of "the response shown first is better" and of "the one
shown second is". With A shown first (ab), "first" speaks for A; with B shown first (ba), "second"
does. All logarithms are natural.
"""

import math
from dataclasses import dataclass

LogPair = tuple[float, float]
"""(first, second), log-probabilities in nats of the two answers, at most 0."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Everything that follows from one comparison's four log-probabilities."""

    prob_a: float
    prob_a_ab: float
    prob_a_ba: float
    mean_logit: float
    """(z_ab + z_ba) / 2: the logit for A with the item's position bias taken out."""
    position_bias: float
    """(z_ab - z_ba) / 2: above 0 the judge leans to the response that is shown first."""
    answer_mass_ab: float
    answer_mass_ba: float
    consistent: bool
    """Both orders name the same response."""
    parsed: bool


def read_both_orders(logp_ab: LogPair, logp_ba: LogPair, min_answer_mass: float = 0.5) -> Reading:
    """The verdict on one comparison; "unparsed" where either order says something else mostly.

    Raises: ValueError if a value is above 0 or not a number.
    """
    z_ab, z_ba = logit_a(logp_ab, logp_ba)
    prob_a_ab, prob_a_ba = _sigmoid(z_ab), _sigmoid(z_ba)
    mass_ab, mass_ba = answer_mass(logp_ab), answer_mass(logp_ba)
    return Reading(
        prob_a=prob_a_preferred(logp_ab, logp_ba),
        prob_a_ab=prob_a_ab,
        prob_a_ba=prob_a_ba,
        mean_logit=(z_ab + z_ba) / 2,
        position_bias=(z_ab - z_ba) / 2,
        answer_mass_ab=mass_ab,
        answer_mass_ba=mass_ba,
        consistent=z_ab * z_ba > 0,
        parsed=min(mass_ab, mass_ba) >= min_answer_mass,
    )


def prob_a_preferred(logp_ab: LogPair, logp_ba: LogPair) -> float:
    """Probability that response A is better, averaged over both orders of showing.

    A judge that follows the place alone (position bias) comes out at exactly 0.5.

    Args:
        logp_ab: (first, second) with A shown first.
        logp_ba: the same with B shown first; here "second" speaks for A.
    Returns: a float in [0, 1]; probability that the judge gave to other tokens is left out.
    Raises: ValueError if a value is above 0 or not a number: these are no log-probabilities.
    Source: RLAIF, Lee et al. 2023, arXiv:2309.00267, section 2.1 (soft label, mean over both
        orders); balanced position calibration, Wang et al. 2023, arXiv:2305.17926.
    """
    z_ab, z_ba = logit_a(logp_ab, logp_ba)
    return (_sigmoid(z_ab) + _sigmoid(z_ba)) / 2


def logit_a(logp_ab: LogPair, logp_ba: LogPair) -> tuple[float, float]:
    """(z_ab, z_ba): the logit of "A is better" with A shown first and with B shown first.

    Raises: ValueError if a value is above 0 or not a number.
    """
    values = (*logp_ab, *logp_ba)
    if not all(value <= 0 for value in values):
        raise ValueError(f"expected log-probabilities, got {logp_ab} and {logp_ba}")
    return _difference(*logp_ab), _difference(logp_ba[1], logp_ba[0])


def answer_mass(logp: LogPair) -> float:
    """Probability that the judge gave to the two answers together, in [0, 1]."""
    # Rounding of float32 log-probabilities may put the sum a hair above 1.
    return min(1.0, math.exp(logp[0]) + math.exp(logp[1]))


def _difference(left: float, right: float) -> float:
    """left - right, and 0 where both answers are impossible: then the judge names neither."""
    return 0.0 if left == right else left - right


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1 / (1 + math.exp(-z))
    odds = math.exp(z)
    return odds / (1 + odds)
