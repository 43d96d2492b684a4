"""Forms of other tools, recognised by their keys and mapped onto the interchange form.

Chosen/rejected data names the better response by its column. Here that name would give the answer
away: the sides are therefore dealt by a hash of the texts, the same at every import, and the label
becomes a preference of a rater of its own ("imported", unless the file or the caller names one).
Columns that have no place of their own are kept in the comparison's metadata.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from labeling.imports.interchange import (
    BadRow,
    GivenRanking,
    ResponseList,
    Row,
    check_storable,
    messages_of,
    parse_row,
    parse_votes,
)
from labeling.imports.rated import RatedRow, Scale, parse_rated
from labeling.imports.sets import MAX_SET, rows_of_set
from labeling.models import Choice, Messages, Rater, content_hash

MAX_RANKED = 16  # 120 implied comparisons
MAX_REST_CHARS = 2000


@dataclass(frozen=True)
class Labels:
    """Whose labels these are where a file has labels and names nobody; and on which scale its
    ratings are where it does not say."""

    rater: str = "imported"
    kind: str = Rater.Kind.PERSON
    scale: Scale | None = None


@dataclass(frozen=True)
class Form:
    name: str
    fits: Callable[[dict[str, Any]], bool]
    convert: Callable[[dict[str, Any], Labels], list[dict[str, Any]]]


def recognise(values: list[Any]) -> str:
    """The form that fits most of these records; "unknown" if none fits any."""
    found: Counter[str] = Counter()
    for value in values:
        name = form_name(value) if isinstance(value, dict) else None
        if name:
            found[name] += 1
    return found.most_common(1)[0][0] if found else "unknown"


def form_name(record: dict[str, Any]) -> str | None:
    """The first form whose keys are in the record."""
    return next((form.name for form in FORMS if form.fits(record)), None)


def rows_of(value: Any, form: str, labels: Labels) -> tuple[list[Row] | list[RatedRow], list[str]]:
    """A record of the named form as rows, and reasons for parts of it that were left out.

    Raises: BadRow if nothing of it can be used.
    """
    if not isinstance(value, dict):
        raise BadRow("no JSON object: one object per comparison is wanted")
    check_storable(value)
    converter = _BY_NAME.get(form)
    if converter is None:
        keys = ", ".join(sorted(map(str, value))[:8]) or "none"
        raise BadRow(f"no known form of comparison; its keys are: {keys}")
    if form not in _LENIENT and not converter.fits(value):
        raise BadRow(f"this is no record of the form {form}")
    if form == "interchange" and "responses" in value:
        return rows_of_set(value), []
    try:
        records = converter.convert(value, labels)
    except KeyError as missing:
        raise BadRow(f"`{missing.args[0]}` is missing") from missing
    if form in RATED_FORMS:
        of_nobody = (labels.rater, labels.kind, labels.scale)
        return [parse_rated(record, *of_nobody) for record in records], []
    if form == "votes":
        return [parse_votes(record) for record in records], []
    if len(records) == 1:
        return [parse_row(records[0])], []
    rows, problems = [], []
    for record in records:
        try:
            rows.append(parse_row(record))
        except BadRow as problem:
            problems.append(str(problem))
    if not rows:
        raise BadRow(problems[0] if problems else "no two responses in it")
    if form == "ranked" and not problems:
        _join(rows, _read_ranked(value, labels))
    return rows, problems


# --- our own ---------------------------------------------------------------------------------


def _from_interchange(record: dict[str, Any], _labels: Labels) -> list[dict[str, Any]]:
    """As it is; a table has one vote a row, in columns of its own."""
    has_lists = record.get("preferences") or record.get("verdicts")
    if has_lists or record.get("rater") in (None, "") or record.get("choice") in (None, ""):
        return [record]
    key = "verdicts" if record.get("kind") == Rater.Kind.JUDGE else "preferences"
    return [record | {key: [{name: record.get(name) for name in _VOTE_COLUMNS}]}]


_VOTE_COLUMNS = ("rater", "choice", "strength", "prob_a", "prob_a_ab", "prob_a_ba", "seconds")
_VOTE_COLUMNS += ("shown_first", "rationale", "tags", "aspects", "audit", "inclusion_probability")
_VOTE_COLUMNS += ("created_at",)


# --- chosen and rejected ---------------------------------------------------------------------


def _from_hh(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    prompt, chosen, rejected = split_dialogues(
        dialogue(record["chosen"]), dialogue(record["rejected"])
    )
    return [_pair(record, {"chosen", "rejected"}, prompt, chosen, rejected, labels)]


def _from_trl(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    chosen, rejected = record["chosen"], record["rejected"]
    used = {"chosen", "rejected", *_PROMPT_KEYS}
    if chosen is None or rejected is None:
        raise BadRow("`chosen` or `rejected` is missing")
    prompt = _prompt(record)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            texts = _split_texts(chosen, rejected)
        else:
            texts = (prompt, _without(prompt, chosen), _without(prompt, rejected))
        return [_pair(record, used, *texts, labels)]
    chosen_turns = messages_of(chosen, "assistant", "chosen")
    rejected_turns = messages_of(rejected, "assistant", "rejected")
    if prompt is None or chosen_turns[0]["role"] != "assistant":
        # whole dialogues: what both share is the prompt
        turns = split_dialogues(chosen_turns, rejected_turns)
    else:
        turns = (prompt, chosen_turns, rejected_turns)
    return [_pair(record, used | {"messages"}, *turns, labels)]


def _from_sharegpt(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    prompt = messages_of(record["conversations"], "user", "conversations")
    if isinstance(record.get("system"), str) and record["system"].strip():
        prompt = [{"role": "system", "content": record["system"]}, *prompt]
    used = {"conversations", "chosen", "rejected", "system"}
    return [_pair(record, used, prompt, record["chosen"], record["rejected"], labels)]


def _from_openai(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    given = record["input"]
    prompt = given.get("messages") if isinstance(given, dict) else given
    used = {"input", "preferred_output", "non_preferred_output"}
    better, worse = record["preferred_output"], record["non_preferred_output"]
    return [_pair(record, used, prompt, better, worse, labels)]


def dialogue(text: Any) -> Messages:
    """An hh-rlhf transcript as messages. Turns of one speaker in a row are one message, since some
    transcripts hold a doubled marker and no chat template takes two answers in a row.

    Raises: BadRow if it does not begin with "Human:".
    """
    if not isinstance(text, str):
        raise BadRow("a dialogue is not text")
    parts = TRANSCRIPT_TURN.split(text)
    if len(parts) < 3 or parts[0].strip() or parts[1] != "Human":
        raise BadRow('a dialogue does not begin with "Human:"')
    turns: Messages = []
    for speaker, words in zip(parts[1::2], parts[2::2], strict=True):
        role, words = "user" if speaker == "Human" else "assistant", words.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = "\n\n".join(filter(None, (turns[-1]["content"], words)))
        else:
            turns.append({"role": role, "content": words})
    return turns


TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)\s*(?:## )?(Human|Assistant):")


def split_dialogues(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """(prompt, rest of the first, rest of the second): the prompt is what both share, as whole
    turns, and both rests begin with an answer.

    Where they part in the middle of a turn, that whole turn belongs to the rests.
    Raises: BadRow if they share no prompt.
    """
    n = 0
    while n < min(len(first), len(second)) - 1 and first[n] == second[n]:
        n += 1
    while n and not first[n]["role"] == second[n]["role"] == "assistant":
        n -= 1
    if not n:
        raise BadRow("the two dialogues share no prompt")
    return first[:n], first[n:], second[n:]


def _split_texts(chosen: str, rejected: str) -> tuple[Any, Any, Any]:
    """TRL's implicit prompt: what two texts begin with, cut between words."""
    if TRANSCRIPT_TURN.match(chosen):
        return split_dialogues(dialogue(chosen), dialogue(rejected))
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    n = max(chosen.rfind(" ", 0, n + 1), chosen.rfind("\n", 0, n + 1), 0)
    if not chosen[:n].strip():
        raise BadRow("no `prompt`, and the two texts do not begin alike")
    return chosen[:n], chosen[n:].strip(), rejected[n:].strip()


def _without(prompt: Any, text: str) -> str:
    """A response that repeats its prompt, without it."""
    start = prompt if isinstance(prompt, str) else ""
    return text[len(start) :].strip() if start and text.startswith(start) else text


def _pair(
    record: dict[str, Any],
    used: set[str],
    prompt: Any,
    chosen: Any,
    rejected: Any,
    labels: Labels,
    choice: str = "chosen",
) -> dict[str, Any]:
    """An interchange record in which chance, not the label, decides which response is A."""
    prompt = messages_of(prompt, "user", "prompt")
    chosen = messages_of(chosen, "assistant", "chosen")
    rejected = messages_of(rejected, "assistant", "rejected")
    models = {"chosen": _name(record, "chosen_model"), "rejected": _name(record, "rejected_model")}
    chosen_is_a = content_hash(prompt, chosen) < content_hash(prompt, rejected)
    a, b = ("chosen", "rejected") if chosen_is_a else ("rejected", "chosen")
    texts = {"chosen": chosen, "rejected": rejected}
    letter = "tie" if choice == "tie" else "a" if a == choice else "b"
    return {
        "id": record.get("id", record.get("prompt_id")),
        "prompt": prompt,
        "response_a": texts[a],
        "response_b": texts[b],
        "model_a": models[a],
        "model_b": models[b],
        "metadata": _rest(record, used | {"id", "prompt_id", "chosen_model", "rejected_model"}),
        **_label(letter, labels),
    }


def _label(choice: str, labels: Labels) -> dict[str, Any]:
    """One label of an unnamed source, as a preference of people or as a verdict of a model."""
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return {key: [{"rater": labels.rater, "choice": choice}]}


# --- several responses -----------------------------------------------------------------------


def _from_scored(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """`text`: whole dialogues that begin alike; `score`: a number for each, higher is better."""
    texts, scores = record["text"], record["score"]
    if not all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in scores):
        raise BadRow("`score` holds something that is no number")
    _check_ranked(texts, scores)
    records = []
    for i, j in combinations(range(len(texts)), 2):
        better, worse = (i, j) if scores[i] >= scores[j] else (j, i)
        turns = split_dialogues(dialogue(texts[better]), dialogue(texts[worse]))
        choice = "tie" if scores[i] == scores[j] else "chosen"
        pair = _pair(record, {"text", "score"}, *turns, labels, choice)
        pair["metadata"]["scores"] = [scores[better], scores[worse]]
        records.append(pair)
    return records


@dataclass(frozen=True)
class _Ranked:
    """K responses in an order, as other tools list them."""

    key: str  # the column of the list
    prompt: Any
    responses: list[Any]
    models: list[str]
    ranks: list[float]
    labels: Labels


def _read_ranked(record: dict[str, Any], labels: Labels) -> _Ranked:
    prompt = _prompt(record)
    if prompt is None:
        raise BadRow("`prompt` is missing")
    key = next(key for key in _LIST_KEYS if isinstance(record.get(key), list))
    items = record[key]
    responses = [_item_part(item, _TEXT_KEYS) for item in items]
    if any(response is None for response in responses):
        raise BadRow(f"one of `{key}` has no text")
    models = [_item_part(item, ("model", "source", "generator")) or "" for item in items]
    ranks = _ranks(record, items)
    _check_ranked(responses, ranks)
    if isinstance(record.get("rater"), (str, int)) and str(record["rater"]).strip():
        labels = Labels(str(record["rater"]), labels.kind)
    return _Ranked(key, prompt, responses, [str(m).strip() for m in models], ranks, labels)


def _from_ranked(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """K responses in an order imply K(K-1)/2 comparisons; the ranking stays in the metadata."""
    ranked = _read_ranked(record, labels)
    ranks, responses = ranked.ranks, ranked.responses
    used = {ranked.key, "rater", "ranks", "ranking", "scores", *_PROMPT_KEYS}
    group = content_hash(messages_of(ranked.prompt, "user", "prompt"), responses)[:16]
    records = []
    for i, j in combinations(range(len(responses)), 2):
        better, worse = (i, j) if ranks[i] <= ranks[j] else (j, i)
        choice = "tie" if ranks[i] == ranks[j] else "chosen"
        models = {
            "chosen_model": ranked.models[better],
            "rejected_model": ranked.models[worse],
        }
        pair = _pair(
            record | models,
            used,
            ranked.prompt,
            responses[better],
            responses[worse],
            ranked.labels,
            choice,
        )
        pair["metadata"]["ranking"] = {"group": group, "ranks": ranks, "pair": [better, worse]}
        if pair["id"] not in (None, ""):
            pair["id"] = f"{pair['id']}#{better}-{worse}"
        records.append(pair)
    return records


def _join(rows: list[Row], ranked: _Ranked) -> None:
    """Make the pairs of a list one set, as far as a person can rank so many, and keep its order."""
    if len(ranked.responses) > MAX_SET:
        return
    texts = [messages_of(response, "assistant", ranked.key) for response in ranked.responses]
    listed = ResponseList(list(zip(texts, ranked.models, strict=True)))
    order = [
        [k for k, rank in enumerate(ranked.ranks) if rank == place]
        for place in sorted(set(ranked.ranks))
    ]
    ranking = GivenRanking(listed, ranked.labels.rater, ranked.labels.kind, order)
    for row in rows:
        row.response_list = listed
        for vote in row.votes:
            vote.ranking = ranking


def _ranks(record: dict[str, Any], items: list[Any]) -> list[float]:
    """The rank of each response, 1 for the best; equal ranks are ties."""
    ranks = record.get("ranks") or [_item_part(item, ("rank",)) for item in items]
    if _are_numbers(ranks):
        return ranks
    scores = record.get("scores") or [_item_part(item, _SCORE_KEYS) for item in items]
    if _are_numbers(scores):
        order = sorted(set(scores), reverse=True)
        return [order.index(score) + 1 for score in scores]
    ranking = record.get("ranking")  # numbers of the responses, the best first
    if _are_numbers(ranking):
        start = 0 if 0 in ranking else 1
        if sorted(ranking) == list(range(start, start + len(items))):
            return [ranking.index(start + i) + 1 for i in range(len(items))]
        raise BadRow("`ranking` does not name each response once")
    raise BadRow("the responses have no `ranks`, `scores` or `ranking`")


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    )


def _check_ranked(responses: list[Any], ranks: list[Any]) -> None:
    if len(responses) != len(ranks):
        raise BadRow(f"{len(ranks)} ranks or scores for {len(responses)} responses")
    if not 2 <= len(responses) <= MAX_RANKED:
        raise BadRow(f"{len(responses)} responses: it may be 2 to {MAX_RANKED}")


def _item_part(item: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(item, dict):
        return next((item[key] for key in keys if item.get(key) is not None), None)
    return item if keys is _TEXT_KEYS and isinstance(item, (str, list)) else None


_LIST_KEYS = ("responses", "completions", "answers", "candidates", "outputs")
_TEXT_KEYS = ("response", "text", "answer", "content", "completion", "output", "messages")
_SCORE_KEYS = ("score", "overall_score", "rating")


# --- battles and annotations -----------------------------------------------------------------


def _from_arena(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """One user in two conversations: the prompt is what both share, each model's turns follow."""
    prompt, a, b = split_dialogues(
        messages_of(record["conversation_a"], "user", "conversation_a"),
        messages_of(record["conversation_b"], "user", "conversation_b"),
    )
    used = {"question_id", "id", "conversation_a", "conversation_b", *_ARENA_KEYS}
    identity = _name(record, "question_id") or _name(record, "id")
    return [_battle(record, used, identity, prompt, a, b, record.get("winner"), labels)]


def _from_arena_table(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """The table of the Kaggle battles: lists of turns as JSON text, three columns of 0 and 1."""
    turns = {name: _turn_list(record, name) for name in ("prompt", "response_a", "response_b")}
    if not len(turns["prompt"]) == len(turns["response_a"]) == len(turns["response_b"]):
        raise BadRow("prompt, response_a and response_b have different numbers of turns")
    sides = []
    for name in ("response_a", "response_b"):
        conversation = []
        for question, answer in zip(turns["prompt"], turns[name], strict=True):
            conversation += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        sides.append(conversation)
    if not sides[0]:
        raise BadRow("`prompt` is empty")
    prompt, a, b = split_dialogues(*sides)
    wins = {
        choice: str(record.get(f"winner_{name}")) in ("1", "1.0", "True", "true")
        for choice, name in (("a", "model_a"), ("b", "model_b"), ("tie", "tie"))
    }
    winners = [choice for choice, won in wins.items() if won]
    used = {"id", *turns, "winner_model_a", "winner_model_b", "winner_tie", *_ARENA_KEYS}
    winner = winners[0] if len(winners) == 1 else None
    return [_battle(record, used, _name(record, "id"), prompt, a, b, winner, labels)]


_ARENA_KEYS = ("winner", "judge", "model_a", "model_b", "tstamp")


def _battle(
    record: dict[str, Any],
    used: set[str],
    identity: str,
    prompt: Any,
    a: Any,
    b: Any,
    winner: Any,
    labels: Labels,
) -> dict[str, Any]:
    converted = {
        "id": identity,
        "prompt": prompt,
        "response_a": a,
        "response_b": b,
        "model_a": record.get("model_a"),
        "model_b": record.get("model_b"),
        "metadata": _rest(record, used),
    }
    if winner in (None, ""):
        return converted
    judge = record.get("judge")
    judge = "/".join(map(str, judge)) if isinstance(judge, list) else judge
    rater = str(judge).strip() if judge not in (None, "") else labels.rater
    is_model = _MODEL_NAME.match(rater) or (judge in (None, "") and labels.kind == "judge")
    vote = {"rater": rater, "choice": choice_word(winner), "created_at": record.get("tstamp")}
    return converted | {"verdicts" if is_model else "preferences": [vote]}


# MT-bench files name people "author_2" or "expert_7" and models "gpt-4"; arenas "arena_user_973".
_MODEL_NAME = re.compile(r"(gpt|claude|gemini|llama|mistral|mixtral|qwen|deepseek)[-_\d/ ]", re.I)


def _turn_list(record: dict[str, Any], name: str) -> list[str]:
    value = record.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(f"`{name}` is not the JSON of a list of turns") from None
    if not isinstance(value, list) or not all(t is None or isinstance(t, str) for t in value):
        raise BadRow(f"`{name}` is not a list of turns")
    return [turn or "" for turn in value]


def _from_alpaca_eval(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """`preference`: 1 for output_1, 2 for output_2, between them a probability, 0 or 1.5 a draw,
    null where the judge gave nothing readable."""
    preference = record["preference"]
    verdict: dict[str, Any] = {"rater": _name(record, "annotator") or labels.rater}
    if preference not in (None, ""):
        number = _number(preference)
        if number == 0:
            verdict["choice"] = Choice.TIE
        elif number is not None and 1 <= number <= 2:
            verdict["prob_a"] = 2 - number
        else:
            raise BadRow(f"`preference` is {preference!r}: it may be 0, 1 to 2, or null")
    used = {"instruction", "annotator", "preference"}
    used |= {"output_1", "output_2", "generator_1", "generator_2", "raw_completion"}
    return [
        {
            "prompt": record["instruction"],
            "response_a": record["output_1"],
            "response_b": record["output_2"],
            "model_a": record.get("generator_1"),
            "model_b": record.get("generator_2"),
            "metadata": _rest(record, used),
            "verdicts": [verdict],
        }
    ]


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


# --- judgements of single responses ----------------------------------------------------------


def _from_ratings(record: dict[str, Any], _labels: Labels) -> list[dict[str, Any]]:
    used = {"prompt", "response", "ratings", "scale", "metadata", "id", "model", *_RATING_COLUMNS}
    metadata = record.get("metadata")
    return [record | {"metadata": metadata if metadata else _rest(record, used)}]


_RATING_COLUMNS = ("rating", "value", "desirable", "label", "label_from", "rater", "kind")
_RATING_COLUMNS += ("aspect", "rationale", "seconds", "created_at")


def _from_trl_kto(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """TRL's unpaired form: `prompt`, `completion`, `label`; ours adds who, and which scale."""
    if record.get("prompt") in (None, "", []):
        raise BadRow("`prompt` is missing: nothing says where the completion begins")
    if record.get("completion") is None:
        raise BadRow("`completion` is missing")
    converted = {key: value for key, value in record.items() if key != "completion"}
    return _from_ratings(converted | {"response": record["completion"]}, labels)


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALE = [0, 4]


def _from_helpsteer(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """HelpSteer's attributes, each from 0 to 4: a rating of an aspect each."""
    ratings = [
        {"rater": labels.rater, "kind": labels.kind, "aspect": name, "value": record[name]}
        for name in HELPSTEER
        if record.get(name) not in (None, "")
    ]
    return [
        {
            "prompt": record["prompt"],
            "response": record["response"],
            "scale": HELPSTEER_SCALE,
            "ratings": ratings,
            "metadata": _rest(record, {"prompt", "response", *HELPSTEER}),
        }
    ]


def _from_rated_tasks(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Label Studio's JSON export of a project with a Rating tag: stars, each tag an aspect unless
    it is the only one. How many stars there were, the export does not say."""
    data = record["data"]
    key = _response_key(data)
    ratings = []
    for annotation in record.get("annotations") or []:
        if not isinstance(annotation, dict):
            raise BadRow("an annotation is no object")
        stars = _stars(annotation.get("result"))
        for name, value in stars.items() if not annotation.get("was_cancelled") else ():
            ratings.append(
                {
                    "rater": _annotator(annotation.get("completed_by")) or labels.rater,
                    "value": value,
                    "aspect": name if len(stars) > 1 else "",
                    "seconds": annotation.get("lead_time"),
                    "created_at": annotation.get("created_at"),
                }
            )
    if not ratings:
        raise BadRow("no annotation with a rating")
    return [
        {
            "id": record.get("id"),
            "prompt": _prompt(data),
            "response": data[key],
            "model": data.get("model"),
            "ratings": ratings,
            "metadata": _rest(data, {key, "model", *_PROMPT_KEYS}),
        }
    ]


def _stars(result: Any) -> dict[str, Any]:
    """Ratings of an annotation by the name of their tag."""
    found = {}
    for part in result if isinstance(result, list) else []:
        value = part.get("value") if isinstance(part, dict) else None
        if isinstance(value, dict) and "rating" in value:
            found[str(part.get("from_name") or "")] = value["rating"]
    return found


def _fits_rated_tasks(record: dict[str, Any]) -> bool:
    data, annotations = record.get("data"), record.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return False
    if _response_key(data) is None or _response_keys(data) is not None:
        return False
    return any(_stars(one.get("result")) for one in annotations if isinstance(one, dict))


def _from_argilla_ratings(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Argilla 2's export of rating questions: whole numbers, each question an aspect unless it is
    the only one. The scale stands in Argilla's settings and not in the export."""
    fields = record["fields"]
    key = _response_key(fields)
    questions = _rated_questions(record)
    ratings = [
        {
            "rater": str(given.get("user_id") or labels.rater),
            "value": given.get("value"),
            "aspect": name if len(questions) > 1 else "",
        }
        for name, answers in questions.items()
        for given in answers
    ]
    metadata = record.get("metadata")
    return [
        {
            "id": record.get("external_id") or record.get("id"),
            "prompt": _prompt(fields),
            "response": fields[key],
            "ratings": ratings,
            "metadata": metadata if isinstance(metadata, dict) else {},
        }
    ]


def _rated_questions(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Question -> its answers that are numbers."""
    found = {}
    responses = record.get("responses")
    for name, answers in responses.items() if isinstance(responses, dict) else ():
        answers = [answers] if isinstance(answers, dict) else answers
        if isinstance(answers, list):
            numbers = [a for a in answers if isinstance(a, dict) and _is_number(a.get("value"))]
            if numbers:
                found[name] = numbers
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits_argilla_ratings(record: dict[str, Any]) -> bool:
    fields = record.get("fields")
    if not isinstance(fields, dict) or _response_keys(fields) is not None:
        return False
    return _response_key(fields) is not None and bool(_rated_questions(record))


def _response_key(record: dict[str, Any]) -> str | None:
    """The name of the one column that holds a response."""
    return next((k for k in ("response", "completion", "answer", "output") if k in record), None)


def _fits_ratings(record: dict[str, Any]) -> bool:
    if not {"prompt", "response"} <= record.keys() or _response_keys(record) is not None:
        return False
    return any(record.get(name) not in (None, "") for name in ("ratings", *_RATING_COLUMNS[:4]))


# --- annotation tools ------------------------------------------------------------------------


def _from_argilla(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Exports of Argilla 2 (nested, or flattened with dots) and of Argilla 1 (answers as lists of
    {user_id, value, status}). The first question whose answers name a response counts."""
    fields = record["fields"] if isinstance(record.get("fields"), dict) else record
    if fields is record:
        fields = {k: v for k, v in record.items() if "." not in k}
    first, second = response_keys(fields)
    answers, suggestions = _argilla_answers(record)
    preferences, verdicts = [], []
    for rater, value in answers:
        choice = choice_word(_first_ranked(value), first, second)
        preferences.append({"rater": rater or labels.rater, "choice": choice})
    for agent, value in suggestions:
        choice = choice_word(_first_ranked(value), first, second)
        if choice in Choice.values:
            verdicts.append({"rater": agent or "suggestion", "choice": choice})
    metadata = record.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            metadata = {"metadata": metadata}
    return [
        {
            "id": record.get("external_id") or record.get("id"),
            "prompt": _prompt(fields),
            "response_a": fields[first],
            "response_b": fields[second],
            "metadata": metadata,
            "preferences": preferences,
            "verdicts": verdicts,
        }
    ]


def _argilla_answers(record: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """(rater, value) of people and (agent, value) of suggestions of the preference question."""
    answers: list[tuple[Any, Any]] = []
    suggestions: list[tuple[Any, Any]] = []
    if isinstance(record.get("responses"), dict):  # Argilla 2
        for given in _first_choices(record["responses"]):
            answers.append((given.get("user_id"), given.get("value")))
        for given in _first_choices(record.get("suggestions")):
            suggestions.append((given.get("agent"), given.get("value")))
        return answers, suggestions
    for key, values in record.items():
        if key.endswith(".responses") and isinstance(values, list):  # Argilla 2, flattened
            users = record.get(f"{key}.users")
            if not isinstance(users, list) or len(users) != len(values):
                users = [None] * len(values)
            answers += list(zip(users, values, strict=True))
            question = key.removesuffix(".responses")
            if record.get(f"{question}.suggestion") is not None:
                agent = record.get(f"{question}.suggestion.agent")
                suggestions.append((agent, record[f"{question}.suggestion"]))
            break
        if _is_argilla_1(values):
            answers += [
                (given.get("user_id"), given.get("value"))
                for given in values
                if given.get("status", "submitted") == "submitted"
            ]
            suggestion = record.get(f"{key}-suggestion")
            if suggestion is not None:
                about = record.get(f"{key}-suggestion-metadata")
                agent = about.get("agent") if isinstance(about, dict) else None
                suggestions.append((agent, suggestion))
            break
    return answers, suggestions


def _first_choices(questions: Any) -> list[dict[str, Any]]:
    """The answers to the first question that is answered by a choice or an order."""
    for given in questions.values() if isinstance(questions, dict) else []:
        given = [given] if isinstance(given, dict) else given
        if isinstance(given, list) and given and all(isinstance(g, dict) for g in given):
            return given
    return []


def _is_argilla_1(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, dict) and {"value", "status"} <= v.keys() for v in values)
    )


def _first_ranked(value: Any) -> Any:
    """The winner of an answer: a label, or the top of a ranking; two on top are a tie."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(part, dict) for part in value):  # [{"rank": 1, "value": "response-1"}, …]
        best = min((_number(part.get("rank")) or 99 for part in value), default=99)
        top = [part.get("value") for part in value if _number(part.get("rank")) == best]
        return top[0] if len(top) == 1 else "tie"
    if isinstance(value[0], list):  # [["response1"], ["response2"]], equal ones in one list
        return value[0][0] if len(value[0]) == 1 else "tie"
    return value[0]


def _from_label_studio(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """The full JSON export of a project with a Pairwise tag."""
    data = record["data"]
    first, second = response_keys(data)
    preferences = []
    annotations = record.get("annotations") or record.get("completions") or []
    for annotation in annotations if isinstance(annotations, list) else []:
        if not isinstance(annotation, dict):
            raise BadRow("an annotation is no object")
        preferences.append(
            {
                "rater": _annotator(annotation.get("completed_by")) or labels.rater,
                "choice": "skipped"
                if annotation.get("was_cancelled")
                else _selected(annotation.get("result")),
                "seconds": annotation.get("lead_time"),
                "created_at": annotation.get("created_at"),
            }
        )
    verdicts = []
    predictions = record.get("predictions")
    for prediction in predictions if isinstance(predictions, list) else []:
        choice = _selected(prediction.get("result")) if isinstance(prediction, dict) else None
        if choice in Choice.values:
            verdicts.append(
                {"rater": _name(prediction, "model_version") or "prediction", "choice": choice}
            )
    used = {first, second, *_PROMPT_KEYS, "model_a", "model_b"}
    return [
        {
            "id": record.get("id"),
            "prompt": _prompt(data),
            "response_a": data[first],
            "response_b": data[second],
            "model_a": data.get("model_a"),
            "model_b": data.get("model_b"),
            "metadata": data["metadata"]
            if isinstance(data.get("metadata"), dict)
            else _rest(data, used),
            "preferences": preferences,
            "verdicts": verdicts,
        }
    ]


def _from_label_studio_min(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Label Studio's JSON_MIN and CSV exports: one annotation a record."""
    first, second = response_keys(record)
    control = {"annotation_id", "annotator", "lead_time", "created_at", "updated_at", "id"}
    used = {first, second, *_PROMPT_KEYS, *control}
    choice: Any = "nothing selected"
    for key, value in record.items():
        value = value.get("selected") if isinstance(value, dict) else value
        if key not in used and isinstance(value, str) and value.lower() in ("left", "right"):
            choice = choice_word(value)
            used.add(key)
    preference = {
        "rater": _annotator(record.get("annotator")) or labels.rater,
        "choice": choice,
        "seconds": record.get("lead_time"),
        "created_at": record.get("created_at"),
    }
    return [
        {
            "id": record.get("id"),
            "prompt": _prompt(record),
            "response_a": record[first],
            "response_b": record[second],
            "metadata": _rest(record, used),
            "preferences": [preference],
        }
    ]


def _annotator(who: Any) -> str:
    """Label Studio names people by number, by e-mail, or by an object of both."""
    if isinstance(who, dict):
        if isinstance(who.get("email"), str) and who["email"].strip():
            return who["email"].strip()
        who = who.get("id")
    if isinstance(who, bool) or not isinstance(who, (str, int)):
        return ""
    return f"annotator {who}" if str(who).isdigit() else str(who).strip()


def _selected(result: Any) -> Any:
    """What the Pairwise tag of an annotation says."""
    for part in result if isinstance(result, list) else []:
        value = part.get("value") if isinstance(part, dict) else None
        if isinstance(value, dict) and "selected" in value:
            return choice_word(value["selected"])
    return "nothing selected"


# --- tables ----------------------------------------------------------------------------------


def _from_pairs(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """A table whose columns are named in another way: a question, two answers, perhaps a label."""
    first, second = response_keys(record)
    used = {first, second, "id", "gold", *_PROMPT_KEYS}
    converted = {
        "id": record.get("id", record.get("idx")),
        "prompt": _prompt(record),
        "response_a": record[first],
        "response_b": record[second],
        "gold": record.get("gold"),
    }
    for side, names in (("model_a", _MODEL_A), ("model_b", _MODEL_B)):
        key = next((name for name in names if record.get(name) not in (None, "")), None)
        if key:
            converted[side] = record[key]
            used.add(key)
    votes = []
    label = next((key for key in _CHOICE_KEYS if record.get(key) not in (None, "")), None)
    if label:
        rater = next((key for key in _RATER_KEYS if record.get(key) not in (None, "")), None)
        used |= {label, rater or label}
        choice = choice_word(record[label], first, second)
        votes.append({"rater": record[rater] if rater else labels.rater, "choice": choice})
    for key, value in record.items():  # a column for each rater, as in annotator1 … annotator3
        if re.fullmatch(r"(annotator|rater|labeler|worker)[-_ ]?\d+", key) and value is not None:
            used.add(key)
            votes.append({"rater": key, "choice": choice_word(value, first, second)})
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return [converted | {"metadata": _rest(record, used), key: votes}]


def _from_votes(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Votes alone: the comparison's id, who, and which. The comparison came in an earlier file."""
    if "preferences" in record or "verdicts" in record:
        return [record]
    identity = next((record[key] for key in _ID_KEYS if record.get(key) not in (None, "")), None)
    label = next(key for key in _CHOICE_KEYS if key in record)
    rater = next((record[key] for key in _RATER_KEYS if record.get(key) not in (None, "")), None)
    vote = {key: record.get(key) for key in ("strength", "seconds", "shown_first", "rationale")}
    vote |= {
        "rater": rater if rater is not None else labels.rater,
        "choice": choice_word(record[label]),
        "created_at": record.get("created_at"),
    }
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return [{"id": identity, key: [vote]}]


_ID_KEYS = ("comparison", "comparison_id", "pair_id", "id", "external_id")
_RATER_KEYS = ("rater", "worker", "annotator", "annotator_id", "user_id", "labeler", "judge")
_CHOICE_KEYS = ("choice", "winner", "label", "vote", "better", "golden", "preference")
_MODEL_A = ("model_a", "model_x", "model_1", "model1", "generator_1")
_MODEL_B = ("model_b", "model_y", "model_2", "model2", "generator_2")
_PROMPT_KEYS = ("prompt", "question", "instruction", "query", "messages", "conversation", "text")
_PROMPT_KEYS += ("input", "context", "system")

_STEM = r"(?:response|result|answer|output|generation|completion|candidate|text|arg|a)"
_SIDE = re.compile(rf"({_STEM})([-_ ]?)(a|x|1|left)", re.I)
_OTHER_SIDE = {"a": "b", "x": "y", "1": "2", "left": "right", "A": "B", "X": "Y"}


def response_keys(record: dict[str, Any]) -> tuple[str, str]:
    """The names of the two columns that hold the responses. Raises: BadRow if there are none."""
    keys = _response_keys(record)
    if keys is None:
        raise BadRow("no two columns for the responses, such as response_a and response_b")
    return keys


def _response_keys(record: dict[str, Any]) -> tuple[str, str] | None:
    for key in record:
        found = _SIDE.fullmatch(key)
        if found:
            stem, joint, side = found.groups()
            other = f"{stem}{joint}{_OTHER_SIDE.get(side, side)}"
            if other in record and other != key:
                return key, other
    return None


def choice_word(value: Any, first: str = "", second: str = "") -> Any:
    """A choice in the words of other tools; a word that says nothing comes back as it is."""
    number = _number(value)
    if number is not None:
        return {1.0: "a", 2.0: "b", 0.0: "tie", 1.5: "tie"}.get(number, value)
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word and word == first:
        return Choice.A
    if word and word == second:
        return Choice.B
    return _CHOICE_WORDS.get(re.sub(r"[\s_()-]+", "", word.lower()), value)


_CHOICE_WORDS = {
    **dict.fromkeys(
        ("a", "left", "first", "modela", "responsea", "response1", "outputa", "a1", "x"), Choice.A
    ),
    **dict.fromkeys(
        ("b", "right", "second", "modelb", "responseb", "response2", "outputb", "a2", "y"), Choice.B
    ),
    **dict.fromkeys(("tie", "equal", "same", "draw", "similar"), Choice.TIE),
    **dict.fromkeys(("bothbad", "tiebothbad", "bothbadtie"), Choice.BOTH_BAD),
}


def _prompt(record: dict[str, Any]) -> Any:
    """What was asked, under the names that other tools give it; None if it is not there.

    An `instruction` with an `input` is one question of two paragraphs.
    """
    key = next(
        (
            key
            for key in _PROMPT_KEYS[:-1]
            if isinstance(record.get(key), (str, list, dict)) and record[key]
        ),
        None,
    )
    if key is None:
        return None
    prompt = record[key]
    if isinstance(prompt, str) and TRANSCRIPT_TURN.match(prompt):
        prompt = dialogue(_OPEN_ANSWER.sub("", prompt))
    more = record.get("input")
    if key in ("instruction", "question") and isinstance(prompt, str) and isinstance(more, str):
        prompt = "\n\n".join(filter(str.strip, (prompt, more)))
    system = record.get("system")
    if isinstance(system, str) and system.strip():
        turns = messages_of(prompt, "user", key)
        prompt = [{"role": "system", "content": system}, *turns]
    return prompt


_OPEN_ANSWER = re.compile(r"\n\nAssistant:\s*\Z")


def _rest(record: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Short values that no column of ours takes."""
    return {
        key: value
        for key, value in record.items()
        if key not in used
        and isinstance(value, (str, int, float, bool))
        and len(str(value)) <= MAX_REST_CHARS
        and value != ""
    }


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    return str(value).strip() if isinstance(value, (str, int)) and value is not True else ""


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _fits_hh(record: dict[str, Any]) -> bool:
    texts = record.get("chosen"), record.get("rejected")
    return all(
        isinstance(text, str) and TRANSCRIPT_TURN.match(text) for text in texts
    ) and not record.get("prompt")


def _fits_argilla(record: dict[str, Any]) -> bool:
    if isinstance(record.get("fields"), dict) and (
        isinstance(record.get("responses"), dict) or isinstance(record.get("suggestions"), dict)
    ):
        return True
    answered = any(
        (key.endswith(".responses") and isinstance(value, list)) or _is_argilla_1(value)
        for key, value in record.items()
    )
    return answered and _response_keys(record) is not None


def _fits_set(record: dict[str, Any]) -> bool:
    """A list to be ranked, or ranked by raters with names; not one that brings bare ranks."""
    responses = record.get("responses")
    if not isinstance(responses, list) or "prompt" not in record:
        return False
    has_order = any(record.get(key) is not None for key in ("ranks", "scores", "ranking"))
    return not has_order and not any(
        _item_part(item, ("rank", *_SCORE_KEYS)) is not None for item in responses
    )


def _fits_votes(record: dict[str, Any]) -> bool:
    if "prompt" in record and _response_keys(record):
        return False
    has_vote = any(key in record for key in (*_CHOICE_KEYS, "preferences", "verdicts"))
    return has_vote and any(record.get(key) not in (None, "") for key in _ID_KEYS)


# The first that fits is taken: the more particular ones stand first.
FORMS = (
    Form("label-studio-ratings", _fits_rated_tasks, _from_rated_tasks),
    Form("argilla-ratings", _fits_argilla_ratings, _from_argilla_ratings),
    Form(
        "label-studio",
        lambda r: isinstance(r.get("data"), dict) and ("annotations" in r or "predictions" in r),
        _from_label_studio,
    ),
    Form(
        "label-studio-min",
        lambda r: {"annotation_id", "annotator"} <= r.keys() and _response_keys(r) is not None,
        _from_label_studio_min,
    ),
    Form("argilla", _fits_argilla, _from_argilla),
    Form(
        "arena",
        lambda r: _are_turns(r.get("conversation_a")) and _are_turns(r.get("conversation_b")),
        _from_arena,
    ),
    Form("arena-table", lambda r: "winner_model_a" in r and "response_a" in r, _from_arena_table),
    Form(
        "interchange",
        lambda r: {"prompt", "response_a", "response_b"} <= r.keys() or _fits_set(r),
        _from_interchange,
    ),
    Form(
        "alpaca-eval",
        lambda r: {"instruction", "output_1", "output_2", "preference"} <= r.keys(),
        _from_alpaca_eval,
    ),
    Form(
        "sharegpt",
        lambda r: (
            {"conversations", "chosen", "rejected"} <= r.keys()
            and isinstance(r["conversations"], list)
        ),
        _from_sharegpt,
    ),
    Form("hh-rlhf", _fits_hh, _from_hh),
    Form(
        "openai",
        lambda r: {"input", "preferred_output", "non_preferred_output"} <= r.keys(),
        _from_openai,
    ),
    Form("trl", lambda r: {"chosen", "rejected"} <= r.keys(), _from_trl),
    Form(
        "scored",
        lambda r: isinstance(r.get("text"), list) and isinstance(r.get("score"), list),
        _from_scored,
    ),
    Form(
        "ranked",
        lambda r: any(isinstance(r.get(key), list) for key in _LIST_KEYS),
        _from_ranked,
    ),
    Form("pairs", lambda r: _response_keys(r) is not None, _from_pairs),
    Form("trl-kto", lambda r: {"completion", "label"} <= r.keys(), _from_trl_kto),
    Form("ratings", _fits_ratings, _from_ratings),
    Form(
        "helpsteer",
        lambda r: {"prompt", "response", *HELPSTEER[:2]} <= r.keys(),
        _from_helpsteer,
    ),
    Form("votes", _fits_votes, _from_votes),
)
# These say themselves what a record lacks.
_LENIENT = ("interchange", "hh-rlhf", "trl", "trl-kto")
FORM_NAMES = tuple(form.name for form in FORMS)
# Forms of judgements of single responses.
RATED_FORMS = ("ratings", "trl-kto", "helpsteer", "label-studio-ratings", "argilla-ratings")
# Forms that may bring labels without saying whose they are.
UNNAMED_LABELS = ("sharegpt", "hh-rlhf", "openai", "trl", "scored", "ranked", "pairs", "votes")
UNNAMED_LABELS += ("ratings", "trl-kto", "helpsteer")
_BY_NAME = {form.name: form for form in FORMS}
