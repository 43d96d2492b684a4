"""What Argilla 1 and 2 export: choices between responses, and ratings of one."""

import json
from typing import Any

from labeling.imports.foreign.columns import (
    Labels,
    choice_word,
    find_response_key,
    find_response_keys,
    number_in,
    prompt_in,
    response_keys,
)
from labeling.models import Choice


def from_argilla_ratings(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Argilla 2's export of rating questions: whole numbers, each question an aspect unless it is
    the only one. The scale stands in Argilla's settings and not in the export."""
    fields = record["fields"]
    key = find_response_key(fields)
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
            "prompt": prompt_in(fields),
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


def fits_argilla_ratings(record: dict[str, Any]) -> bool:
    fields = record.get("fields")
    if not isinstance(fields, dict) or find_response_keys(fields) is not None:
        return False
    return find_response_key(fields) is not None and bool(_rated_questions(record))


def from_argilla(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
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
            "prompt": prompt_in(fields),
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
        best = min((number_in(part.get("rank")) or 99 for part in value), default=99)
        top = [part.get("value") for part in value if number_in(part.get("rank")) == best]
        return top[0] if len(top) == 1 else "tie"
    if isinstance(value[0], list):  # [["response1"], ["response2"]], equal ones in one list
        return value[0][0] if len(value[0]) == 1 else "tie"
    return value[0]


def fits_argilla(record: dict[str, Any]) -> bool:
    if isinstance(record.get("fields"), dict) and (
        isinstance(record.get("responses"), dict) or isinstance(record.get("suggestions"), dict)
    ):
        return True
    answered = any(
        (key.endswith(".responses") and isinstance(value, list)) or _is_argilla_1(value)
        for key, value in record.items()
    )
    return answered and find_response_keys(record) is not None
