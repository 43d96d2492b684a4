"""What a judge said, as rows: its verdict, and the preference of its rater."""

import math
from collections.abc import Mapping
from typing import Any

from judges.ml.config import SCORES
from judges.ml.modes import Outcome, Question
from judges.ml.verdict import Logps, mean_and_error, read_both_orders, says_tie
from judges.models import ChosenJudge, JudgeRun, JudgeVersion, Verdict
from labeling.correction import corrected
from labeling.judgements import choice_of, record_judgement
from labeling.models import Choice, Comparison
from labeling.rated import record_rating


def verdict_of(
    run: JudgeRun | None,
    version: JudgeVersion,
    comparison: Comparison,
    outcome: Outcome,
    asked_for: JudgeRun | None = None,
) -> Verdict:
    """An outcome as a row that is not saved yet. What could not be asked says nothing for either
    side: it is unparsed, and says why.

    Args: asked_for: the run of a jury that the version is a member of.
    """
    verdict = Verdict(
        run=run,
        asked_for=asked_for,
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


def correction_of(version: JudgeVersion) -> dict[str, Any] | None:
    """Parameters of the calibration that the version was chosen with as its project's judge; None
    where it was chosen without one, or not at all."""
    chosen = ChosenJudge.objects.filter(version=version).select_related("calibration").first()
    return chosen.calibration.parameters if chosen and chosen.calibration else None


def record_verdict(verdict: Verdict, correction: Mapping[str, Any] | None = None) -> None:
    """Keep a saved verdict as the one current preference of the judge's rater; the scores of a
    judge that rates each response alone are its ratings of these as well.

    Args: correction: what its probability is corrected by; see `correction_of`. A correction leaves
        a half where it is, and no choice changes by it.
    """
    prob_a_ab, prob_a_ba = probs_by_order(verdict)
    tie = says_tie(verdict.prob_a, verdict.prob_tie)
    corrects = correction is not None and verdict.parsed
    record_judgement(
        verdict.version.rater,
        verdict.comparison,
        prob_a=corrected(correction, verdict.prob_a) if corrects else verdict.prob_a,
        prob_a_ab=prob_a_ab,
        prob_a_ba=prob_a_ba,
        parsed=verdict.parsed,
        choice=Choice.TIE if tie else choice_of(verdict.prob_a),
        rationale=verdict.rationale_ab,
        aspects={name: choice_of(prob) for name, prob in verdict.aspects.items()},
        seconds=verdict.seconds,
    )
    if verdict.parsed and "scores_a" in verdict.raw:  # rated alone, on a scale; rewards have none
        comparison, low, high = verdict.comparison, float(SCORES[0]), float(SCORES[-1])
        for response, score in (
            (comparison.response_a, verdict.score_a),
            (comparison.response_b, verdict.score_b),
        ):
            if score is not None:
                # An expectation may leave the scale by what float arithmetic rounds.
                record_rating(
                    verdict.version.rater,
                    response,
                    min(high, max(low, score)),
                    low=low,
                    high=high,
                )


def probs_by_order(verdict: Verdict) -> tuple[float | None, float | None]:
    """Probability that A is better with A shown first, and with B shown first: their mean is
    `prob_a`. None of a judge that has no orders, or that was not asked."""
    pairs = [_logps(verdict)]
    if "samples" in verdict.raw:
        pairs = [
            (_from_json(one["logp_ab"]), _from_json(one["logp_ba"]))
            for one in verdict.raw["samples"]
        ]
    if not pairs[0][0]:
        return None, None
    readings = [read_both_orders(*pair) for pair in pairs]
    return (
        mean_and_error([reading.prob_a_ab for reading in readings])[0],
        mean_and_error([reading.prob_a_ba for reading in readings])[0],
    )


def _logps(verdict: Verdict) -> tuple[Logps, Logps]:
    """Of both orders; empty where the verdict has none."""
    names = ("first", "second", "tie")
    ab, ba = (
        [getattr(verdict, f"logp_{order}_{name}") for name in names] for order in ("ab", "ba")
    )
    return (
        tuple(value for value in ab if value is not None),
        tuple(value for value in ba if value is not None),
    )


def _from_json(logps: list[float | None]) -> Logps:
    """JSON has no infinity: null is an answer that is impossible."""
    return tuple(-math.inf if value is None else value for value in logps)


def as_trial(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the result of a trial, in JSON: {"problem", "n_tokens_cut", "n_tokens",
    "seconds", "prob_a", "parsed", …, "questions": [{"name", "text", "rationale", "answers":
    [{"answer", "prob"}, …], "mass"}, …]}; what a mode has no word for is null."""
    reading = outcome.reading
    return {
        "problem": outcome.problem,
        "prob_a": outcome.prob_a,
        "parsed": outcome.parsed,
        "says_tie": says_tie(outcome.prob_a, reading.prob_tie if reading else None),
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
