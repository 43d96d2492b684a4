"""Ways to come to a verdict: a sample to requests, the replies to a reading.

- "rationale": the judge explains first, greedily, and its answer is read after its explanation;
  both orders of the responses. The default.
- "direct": the answer is read at once; both orders.
- "sampled" (self-consistency): K rationales are drawn in either order, the k-th of both orders make
  the k-th probability, and their mean is the verdict.
- "score": each response is rated alone from 1 to 10, by the expectation over the scores.

Any of the first three may have a third answer, for ties, and may ask further aspects. The reward
model (`reward.py`) and the jury (`judges.engines`) are no questions to a language model, and have
their outcome from `reward_outcome` and `jury_outcome`. The formulas stand in `verdict.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from judges.ml.asking import Engine, MeasuredBy, Reply, Request
from judges.ml.config import Aspect, JudgeRecipe, Messages
from judges.ml.questions import Lone, Sample, ask, ask_aspect, ask_score, draw_principle
from judges.ml.verdict import (
    Logps,
    Reading,
    answer_mass,
    expected_score,
    jury,
    mean_and_error,
    mean_over_samples,
    prob_from_rewards,
    prob_higher,
    read_both_orders,
    score_distribution,
)

ROUNDS = 8
"""So often a sample is asked anew that turned out too long for a context nobody knew."""
DOES_NOT_FIT = "The question does not fit the server's context, however much of its prompt is cut."


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question that was asked, and all that was said to it; a trial shows it."""

    name: str
    """"ab" and "ba" are the two orders; "a" and "b" one response alone; "honest ab" an aspect."""
    text: str
    """Exactly what the model read before its (first) answer, its own rationale included."""
    rationale: str = ""
    answers: tuple[str, ...] = ()
    logps: Logps = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a judge makes of one sample, or the problem that kept it from being asked.

    Without a problem there is always `prob_a`. `reading` is of the judges that are shown both
    responses in both orders.
    """

    problem: str = ""
    prob_a: float = 0.5
    parsed: bool = False
    reading: Reading | None = None
    logp_ab: Logps = ()
    logp_ba: Logps = ()
    answer_mass_ab: float = 0.0
    """Mode "score": of the question about A alone, as `answer_mass_ba` of that about B."""
    answer_mass_ba: float = 0.0
    score_a: float | None = None
    score_b: float | None = None
    standard_error: float | None = None
    """Of prob_a, over the rationales that were drawn."""
    rationale_ab: str = ""
    rationale_ba: str = ""
    aspects: Mapping[str, float] = field(default_factory=dict)
    """Probability that A is better there; aspects whose answer could not be read are left out."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """What was read beside the fields above, as JSON: see docs/judges.md."""
    questions: tuple[Question, ...] = ()
    measured_by: MeasuredBy = "logprobs"
    n_tokens: int = 0
    """Read and written, all questions."""
    n_tokens_written: int = 0
    n_tokens_cut: int = 0
    """Tokens of the prompt's oldest turns that were left out to fit the context."""
    cost: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A sample whose questions fit the context."""

    index: int
    sample: Sample | Lone
    requests: tuple[Request, ...]
    n_tokens_cut: int = 0


def judge(
    engine: Engine, recipe: JudgeRecipe, samples: Sequence[Sample | Lone]
) -> Iterator[list[tuple[int, Outcome]]]:
    """Verdicts as they come: (place in `samples`, outcome), each place once.

    The questions of a sample stand side by side, both orders next to each other. A prompt that
    is too long loses its oldest turns, and no response ever loses a word. Of a response that is
    rated by itself the outcome has `score_a` alone.

    Raises: EngineStopped, see `Engine`; ValueError for a mode that asks no language model, or that
        shows two responses where there is one.
    """
    if recipe.mode in ("reward", "jury"):
        raise ValueError(f'mode "{recipe.mode}" asks no language model')
    if recipe.mode != "score" and any(isinstance(sample, Lone) for sample in samples):
        raise ValueError(f'mode "{recipe.mode}" holds two responses against each other')
    left = list(enumerate(samples))
    for _round in range(ROUNDS):
        too_long: list[int] = []
        yield from _judge_once(engine, recipe, left, too_long)
        # What turned out too long is asked again without its oldest turns.
        left = [(index, samples[index]) for index in too_long]
        if not left:
            return
    yield [(index, Outcome(problem=DOES_NOT_FIT)) for index, _sample in left]


def _judge_once(
    engine: Engine,
    recipe: JudgeRecipe,
    samples: Sequence[tuple[int, Sample | Lone]],
    too_long: list[int],
) -> Iterator[list[tuple[int, Outcome]]]:
    """Every sample asked once; those that turned out not to fit are added to `too_long`."""
    asked, refused = [], []
    for index, sample in samples:
        fitting = _fit(engine, recipe, index, sample)
        if isinstance(fitting, _Asked):
            asked.append(fitting)
        else:
            refused.append((index, fitting))
    if refused:
        yield refused
    owners = [(row, slot) for row, one in enumerate(asked) for slot in range(len(one.requests))]
    requests = [request for one in asked for request in one.requests]
    replies: dict[int, dict[int, Reply]] = {}
    for batch in engine.answer(requests) if requests else ():
        complete = []
        for place, reply in batch:
            row, slot = owners[place]
            of_sample = replies.setdefault(row, {})
            of_sample[slot] = reply
            if len(of_sample) == len(asked[row].requests):
                in_order = [of_sample[slot] for slot in range(len(of_sample))]
                if any(one.too_long for one in in_order):
                    too_long.append(asked[row].index)
                else:
                    complete.append((asked[row].index, _outcome(recipe, asked[row], in_order)))
                del replies[row]
        if complete:
            yield complete


def requests_for(
    recipe: JudgeRecipe, sample: Sample | Lone, control: Sequence[str] = (), *, principle: str = ""
) -> tuple[Request, ...]:
    """All questions about one sample: the main one in both orders, then each aspect's; or for a
    score A alone, then B alone.

    Args: principle: the one that was drawn for the sample, see `questions.draw_principle`.
    """
    reference = sample.reference if recipe.show_reference else ""
    if isinstance(sample, Lone) or recipe.mode == "score":
        alone = (sample.response,) if isinstance(sample, Lone) else (sample.a, sample.b)
        return tuple(
            ask_score(
                recipe, sample.prompt, response, control, reference=reference, principle=principle
            )
            for response in alone
        )
    orders = ((sample.a, sample.b), (sample.b, sample.a))
    main = tuple(
        ask(recipe, sample.prompt, *order, control, reference=reference, principle=principle)
        for order in orders
    )
    return main + tuple(
        ask_aspect(recipe, aspect, sample.prompt, *order, control, reference=reference)
        for aspect in recipe.aspects
        for order in orders
    )


def reward_outcome(
    reward_a: float,
    reward_b: float,
    *,
    n_tokens: int,
    n_tokens_cut: int = 0,
    seconds: float = 0.0,
    spread: float | None = None,
) -> Outcome:
    """What two rewards say. A reward model has no answer tokens: all its mass is on its number.

    Args: spread: of an ensemble, the standard deviation of its members' differences.
    """
    readable = math.isfinite(reward_a) and math.isfinite(reward_b)
    prob_a = prob_from_rewards(reward_a, reward_b) if readable else 0.5
    return Outcome(
        problem="" if readable else "The reward model gave no number.",
        prob_a=prob_a,
        parsed=readable,
        answer_mass_ab=float(readable),
        answer_mass_ba=float(readable),
        score_a=reward_a if readable else None,
        score_b=reward_b if readable else None,
        raw={} if spread is None else {"spread": spread},
        n_tokens=n_tokens,
        n_tokens_cut=n_tokens_cut,
        seconds=seconds,
    )


def jury_outcome(said: Mapping[str, float | None], server_told: Sequence[str] = ()) -> Outcome:
    """What a jury says whose members said this: {member: probability of A, None if unparsed}.

    It is parsed if more than half of its members are; the others do not enter the mean. Tokens,
    seconds and cost are its members' own.
    """
    probs = {member: prob for member, prob in said.items() if prob is not None}
    unparsed = sorted(set(said) - set(probs))
    told = {"server_told": list(server_told)} if server_told else {}
    if not probs:
        return Outcome(raw={"logits": {}, "unparsed": unparsed} | told)
    prob_a, logits = jury(list(probs.values()))
    share = len(probs) / len(said)
    return Outcome(
        prob_a=prob_a,
        parsed=2 * len(probs) > len(said),
        # The share of members who could be read stands where others have their answers' mass.
        answer_mass_ab=share,
        answer_mass_ba=share,
        raw={"logits": dict(zip(probs, logits, strict=True)), "unparsed": unparsed} | told,
    )


def _fit(
    engine: Engine, recipe: JudgeRecipe, index: int, sample: Sample | Lone
) -> _Asked | Outcome:
    """The questions of a sample, the prompt's oldest turns left out as far as needed."""

    principle = draw_principle(recipe, sample)  # by the whole prompt, however much is left out

    def with_prompt(prompt: Messages) -> tuple[tuple[Request, ...], int]:
        cut = replace(sample, prompt=prompt)
        requests = requests_for(recipe, cut, engine.control, principle=principle)
        return requests, max(engine.excess(request) for request in requests)

    prompt = [dict(message) for message in sample.prompt]
    requests, whole_excess = with_prompt(prompt)
    excess = whole_excess
    if excess <= 0:
        return _Asked(index=index, sample=sample, requests=requests)
    while excess > 0 and len(prompt) > 1:
        # A system message says what the whole conversation is about: it goes last but one.
        oldest = next((i for i, turn in enumerate(prompt[:-1]) if turn["role"] != "system"), 0)
        del prompt[oldest]
        requests, excess = with_prompt(prompt)
    if excess > 0:
        # The last turn alone is too long: keep as much of its end as fits.
        words = prompt[0]["content"] if prompt else ""
        keep = [{**turn, "content": "…"} for turn in prompt]
        requests, excess = with_prompt(keep)
        if excess > 0:
            return Outcome(
                problem=f"The question without its prompt is {excess} tokens too long for the "
                "model's context: the responses do not fit."
            )
        low, high = 0, len(words)
        while high - low > 1:
            middle = (low + high) // 2
            keep[0]["content"] = "…" + words[len(words) - middle :]
            attempt, attempt_excess = with_prompt(keep)
            if attempt_excess <= 0:
                low, requests, excess = middle, attempt, attempt_excess
            else:
                high = middle
    return _Asked(index=index, sample=sample, requests=requests, n_tokens_cut=whole_excess - excess)


def _outcome(recipe: JudgeRecipe, asked: _Asked, replies: Sequence[Reply]) -> Outcome:
    """What the replies to a sample's questions come to."""
    problems = [reply.problem for reply in replies if reply.problem]
    costs = [reply.cost for reply in replies if reply.cost is not None]
    written = sum(reply.n_tokens_written for reply in replies)
    spent: dict[str, Any] = {
        "n_tokens": sum(reply.n_tokens_read for reply in replies) + written,
        "n_tokens_written": written,
        "n_tokens_cut": asked.n_tokens_cut,
        "cost": math.fsum(costs) if costs else None,
        "seconds": math.fsum(reply.seconds for reply in replies),
    }
    if problems:
        return replace(Outcome(problem=problems[0]), **spent)
    read = _MODES[recipe.mode](recipe, asked, replies)
    raw = dict(read.raw)
    principle = draw_principle(recipe, asked.sample)
    if principle:
        raw["principle"] = principle
    if recipe.show_reference and asked.sample.reference:
        raw["reference_shown"] = True
    told = sorted({one for reply in replies for one in reply.told})
    if told:
        raw["server_told"] = told
    drawn = any(said.measured_by == "samples" for reply in replies for said in reply.said)
    return replace(
        read,
        **spent,
        raw=raw,
        questions=_questions(recipe, asked, replies),
        measured_by="samples" if drawn else "logprobs",
    )


def _both_orders(recipe: JudgeRecipe, asked: _Asked, replies: Sequence[Reply]) -> Outcome:
    """Modes "rationale" and "direct"."""
    ab, ba = (reply.said[0] for reply in replies[:2])
    reading = read_both_orders(ab.logps, ba.logps, recipe.min_answer_mass)
    aspects, raw = _aspects(recipe, replies)
    return Outcome(
        prob_a=reading.prob_a,
        parsed=reading.parsed,
        reading=reading,
        logp_ab=ab.logps,
        logp_ba=ba.logps,
        answer_mass_ab=reading.answer_mass_ab,
        answer_mass_ba=reading.answer_mass_ba,
        rationale_ab=ab.rationale,
        rationale_ba=ba.rationale,
        aspects=aspects,
        raw=raw,
    )


def _sampled(recipe: JudgeRecipe, asked: _Asked, replies: Sequence[Reply]) -> Outcome:
    """Mode "sampled": the mean of the probabilities of K pairs of rationales.

    The log-probabilities of the whole are those of the answers' mean probabilities.
    """
    pairs = list(zip(replies[0].said, replies[1].said, strict=True))
    readings = [read_both_orders(ab.logps, ba.logps, recipe.min_answer_mass) for ab, ba in pairs]
    logp_ab = mean_over_samples([ab.logps for ab, _ba in pairs])
    logp_ba = mean_over_samples([ba.logps for _ab, ba in pairs])
    prob_a, standard_error = mean_and_error([reading.prob_a for reading in readings])
    whole = replace(
        read_both_orders(logp_ab, logp_ba, recipe.min_answer_mass),
        prob_a=prob_a,
        prob_a_ab=mean_and_error([reading.prob_a_ab for reading in readings])[0],
        prob_a_ba=mean_and_error([reading.prob_a_ba for reading in readings])[0],
    )
    ties = [reading.prob_tie for reading in readings if reading.prob_tie is not None]
    if ties:
        whole = replace(whole, prob_tie=mean_and_error(ties)[0])
    aspects, raw = _aspects(recipe, replies)
    return Outcome(
        prob_a=prob_a,
        parsed=whole.parsed,
        reading=whole,
        logp_ab=logp_ab,
        logp_ba=logp_ba,
        answer_mass_ab=whole.answer_mass_ab,
        answer_mass_ba=whole.answer_mass_ba,
        standard_error=standard_error,
        rationale_ab=pairs[0][0].rationale,
        rationale_ba=pairs[0][1].rationale,
        aspects=aspects,
        raw=raw
        | {
            "samples": [
                {
                    "prob_a": reading.prob_a,
                    "logp_ab": _as_json(ab.logps),
                    "logp_ba": _as_json(ba.logps),
                    "rationale_ab": ab.rationale,
                    "rationale_ba": ba.rationale,
                }
                for (ab, ba), reading in zip(pairs, readings, strict=True)
            ]
        },
    )


def _scored(recipe: JudgeRecipe, asked: _Asked, replies: Sequence[Reply]) -> Outcome:
    """Mode "score": P(score of A above that of B), each drawn from its own distribution. A response
    alone has its score, and no other to be held against."""
    if isinstance(asked.sample, Lone):
        logps = replies[0].said[0].logps
        alone, mass = score_distribution(logps), answer_mass(logps)
        return Outcome(
            parsed=mass >= recipe.min_answer_mass,
            answer_mass_ab=mass,
            score_a=expected_score(alone),
            raw={"scores_a": list(alone)},
        )
    logps_a, logps_b = (reply.said[0].logps for reply in replies[:2])
    of_a, of_b = score_distribution(logps_a), score_distribution(logps_b)
    mass_a, mass_b = answer_mass(logps_a), answer_mass(logps_b)
    prob_a = prob_higher(of_a, of_b)
    return Outcome(
        prob_a=prob_a,
        parsed=min(mass_a, mass_b) >= recipe.min_answer_mass,
        answer_mass_ab=mass_a,
        answer_mass_ba=mass_b,
        score_a=expected_score(of_a),
        score_b=expected_score(of_b),
        raw={"scores_a": list(of_a), "scores_b": list(of_b)},
    )


_Reads = Callable[[JudgeRecipe, _Asked, Sequence[Reply]], Outcome]
_MODES: dict[str, _Reads] = {
    "rationale": _both_orders,
    "direct": _both_orders,
    "sampled": _sampled,
    "score": _scored,
}


def _aspects(
    recipe: JudgeRecipe, replies: Sequence[Reply]
) -> tuple[dict[str, float], dict[str, Any]]:
    """(probability that A is better, by aspect; what was read of each, for `raw`)."""
    probs, raw = {}, {}
    for place, aspect in enumerate(recipe.aspects, start=1):
        ab, ba = (reply.said[0].logps for reply in replies[2 * place : 2 * place + 2])
        reading = read_both_orders(ab, ba, recipe.min_answer_mass)
        raw[aspect.name] = {
            "logp_ab": _as_json(ab),
            "logp_ba": _as_json(ba),
            "parsed": reading.parsed,
        }
        if reading.parsed:
            probs[aspect.name] = reading.prob_a
    return probs, {"aspects": raw} if raw else {}


def _questions(
    recipe: JudgeRecipe, asked: _Asked, replies: Sequence[Reply]
) -> tuple[Question, ...]:
    names = ["ab", "ba", *_aspect_names(recipe.aspects)]
    if recipe.mode == "score":
        names = ["a", "b"][: len(replies)]
    return tuple(
        Question(
            name=name,
            text=reply.said[0].text,
            rationale=reply.said[0].rationale,
            answers=request.answers,
            logps=reply.said[0].logps,
        )
        for name, request, reply in zip(names, asked.requests, replies, strict=True)
    )


def _aspect_names(aspects: Sequence[Aspect]) -> list[str]:
    return [f"{aspect.name} {order}" for aspect in aspects for order in ("ab", "ba")]


def _as_json(logps: Logps) -> list[float | None]:
    """JSON has no infinity: null is an answer that is impossible."""
    return [value if math.isfinite(value) else None for value in logps]
