"""What a judge said, as rows: its verdict, and the preference of its rater."""

import math
from typing import Any

from judges.ml.modes import Outcome, Question
from judges.models import JudgeRun, JudgeVersion, Verdict
from labeling.judgements import choice_of, record_judgement
from labeling.models import Choice, Comparison


def keep_verdict(
    version: JudgeVersion,
    comparison: Comparison,
    outcome: Outcome,
    *,
    run: JudgeRun | None,
    counts: bool = True,
) -> Verdict:
    """Write a verdict down, and unless it does not count, as the preference of the judge's rater.

    Raises: IntegrityError when the version has a verdict on this comparison.
    """
    verdict = verdict_of(version, comparison, outcome, run=run)
    verdict.save(force_insert=True)
    if counts:
        keep_preference(version, comparison, verdict, outcome)
    return verdict


def verdict_of(
    version: JudgeVersion, comparison: Comparison, outcome: Outcome, *, run: JudgeRun | None
) -> Verdict:
    """An outcome as a row. What could not be asked says nothing for either side: it is unparsed,
    and says why."""
    verdict = Verdict(
        run=run,
        version=version,
        comparison=comparison,
        prob_a=outcome.prob_a,
        prob_tie=outcome.reading.prob_tie if outcome.reading else None,
        score_a=outcome.score_a,
        score_b=outcome.score_b,
        standard_error=outcome.standard_error,
        answer_mass_ab=outcome.answer_mass_ab,
        answer_mass_ba=outcome.answer_mass_ba,
        parsed=outcome.parsed,
        rationale_ab=outcome.rationale_ab,
        rationale_ba=outcome.rationale_ba,
        aspects=dict(outcome.aspects),
        raw=dict(outcome.raw),
        measured_by=outcome.measured_by,
        n_tokens=outcome.n_tokens,
        n_tokens_written=outcome.n_tokens_written,
        n_tokens_cut=outcome.n_tokens_cut,
        cost=outcome.cost,
        seconds=outcome.seconds,
        problem=outcome.problem[:300],
    )
    for order, logps in (("ab", outcome.logp_ab), ("ba", outcome.logp_ba)):
        for answer, logp in zip(("first", "second", "tie"), logps, strict=False):
            setattr(verdict, f"logp_{order}_{answer}", logp)
    return verdict


def keep_preference(
    version: JudgeVersion, comparison: Comparison, verdict: Verdict, outcome: Outcome
) -> None:
    """The verdict as the one preference of the judge's rater."""
    reading = outcome.reading
    record_judgement(
        version.rater,
        comparison,
        prob_a=outcome.prob_a,
        prob_a_ab=reading.prob_a_ab if reading else None,
        prob_a_ba=reading.prob_a_ba if reading else None,
        parsed=outcome.parsed,
        choice=Choice.TIE if outcome.says_tie else choice_of(outcome.prob_a),
        rationale=outcome.rationale_ab,
        aspects={name: choice_of(prob) for name, prob in outcome.aspects.items()},
        seconds=outcome.seconds,
    )


def as_trial(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the result of a trial, in JSON: {"problem", "n_tokens_cut", "n_tokens",
    "seconds", "prob_a", "parsed", …, "questions": [{"name", "text", "rationale", "answers":
    [{"answer", "prob"}, …], "mass"}, …]}; what a mode has no word for is null."""
    reading = outcome.reading
    return {
        "problem": outcome.problem,
        "prob_a": outcome.prob_a,
        "parsed": outcome.parsed,
        "says_tie": outcome.says_tie,
        "prob_a_ab": reading.prob_a_ab if reading else None,
        "prob_a_ba": reading.prob_a_ba if reading else None,
        "prob_tie": reading.prob_tie if reading else None,
        "mean_logit": _finite(reading.mean_logit) if reading else None,
        "position_bias": _finite(reading.position_bias) if reading else None,
        "consistent": reading.consistent if reading else None,
        "score_a": outcome.score_a,
        "score_b": outcome.score_b,
        "standard_error": outcome.standard_error,
        "aspects": dict(outcome.aspects),
        "raw": dict(outcome.raw),
        "measured_by": outcome.measured_by,
        "n_tokens": outcome.n_tokens,
        "n_tokens_written": outcome.n_tokens_written,
        "n_tokens_cut": outcome.n_tokens_cut,
        "cost": outcome.cost,
        "seconds": outcome.seconds,
        "questions": [_question(question) for question in outcome.questions],
    }


def _question(question: Question) -> dict[str, Any]:
    probs = [math.exp(logp) for logp in question.logps]
    return {
        "name": question.name,
        "text": question.text,
        "rationale": question.rationale,
        "answers": [
            {"answer": answer, "prob": prob}
            for answer, prob in zip(question.answers, probs, strict=True)
        ],
        "mass": min(1.0, math.fsum(probs)),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
