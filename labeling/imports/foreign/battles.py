"""Battles of models: what arenas, MT-bench and AlpacaEval publish."""

import json
import re
from typing import Any

from labeling.imports.foreign.columns import Labels, choice_word, name_in, number_in, rest_of
from labeling.imports.foreign.dialogues import split_dialogues
from labeling.imports.interchange import BadRow, messages_of
from labeling.models import Choice


def from_arena(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """One user in two conversations: the prompt is what both share, each model's turns follow."""
    prompt, a, b = split_dialogues(
        messages_of(record["conversation_a"], "user", "conversation_a"),
        messages_of(record["conversation_b"], "user", "conversation_b"),
    )
    used = {"question_id", "id", "conversation_a", "conversation_b", *_ARENA_KEYS}
    identity = name_in(record, "question_id") or name_in(record, "id")
    return [_battle(record, used, identity, prompt, a, b, record.get("winner"), labels)]


def from_arena_table(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
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
    return [_battle(record, used, name_in(record, "id"), prompt, a, b, winner, labels)]


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
        "metadata": rest_of(record, used),
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


def from_alpaca_eval(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """`preference`: 1 for output_1, 2 for output_2, between them a probability, 0 or 1.5 a draw,
    null where the judge gave nothing readable."""
    preference = record["preference"]
    verdict: dict[str, Any] = {"rater": name_in(record, "annotator") or labels.rater}
    if preference not in (None, ""):
        number = number_in(preference)
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
            "metadata": rest_of(record, used),
            "verdicts": [verdict],
        }
    ]
