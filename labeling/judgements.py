"""Keeping what an AI judge says of a comparison, as the one preference of its rater."""

from django.db import transaction
from django.utils import timezone

from labeling.models import Choice, Comparison, Preference, Rater


@transaction.atomic
def record_judgement(
    rater: Rater,
    comparison: Comparison,
    *,
    prob_a: float | None,
    prob_a_ab: float | None = None,
    prob_a_ba: float | None = None,
    parsed: bool = True,
    choice: str = "",
    rationale: str = "",
    aspects: dict[str, str] | None = None,
    seconds: float | None = None,
) -> Preference:
    """Keep a judge's verdict; one that it gave before is kept as superseded.

    The probabilities are those of "A is better": over both orders, with A shown first, with B shown
    first. The choice follows from them unless the judge made it itself; exactly 0.5 is a tie. A
    verdict that could not be read is "unparsed" and has none: it is counted, and weighs nothing.

    Raises: ValueError for a rater that is no judge, a comparison of another project, or a
    probability outside [0, 1].
    """
    if rater.kind != Rater.Kind.JUDGE:
        raise ValueError(f"{rater} is no AI judge")
    if rater.project_id != comparison.project_id:
        raise ValueError(f"{rater} judges another project")
    if parsed and prob_a is None:
        raise ValueError("a verdict that was read has a probability")
    for prob in (prob_a, prob_a_ab, prob_a_ba):
        if prob is not None and not 0 <= prob <= 1:
            raise ValueError(f"{prob} is no probability")
    rater.preferences.current().filter(comparison=comparison).update(superseded_at=timezone.now())
    return Preference.objects.create(
        comparison=comparison,
        rater=rater,
        choice=choice or choice_of(prob_a) if parsed and prob_a is not None else Choice.UNPARSED,
        prob_a=prob_a if parsed else None,
        prob_a_ab=prob_a_ab if parsed else None,
        prob_a_ba=prob_a_ba if parsed else None,
        rationale=rationale,
        aspects=aspects or {},
        seconds=seconds,
    )


def choice_of(prob_a: float) -> str:
    """The response that a probability speaks for; exactly one half speaks for neither."""
    if prob_a == 0.5:
        return Choice.TIE
    return Choice.A if prob_a > 0.5 else Choice.B
