"""One comparison with its answers as a record of each export form; the readers of these forms
stand in `labeling/imports`."""

import csv
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from labeling.imports.foreign.dialogues import TRANSCRIPT_TURN
from labeling.imports.sets import OF_A_PAIR
from labeling.models import Choice, Messages, Rater
from labeling.spreadsheets import guarded, guards_in


@dataclass(slots=True)
class Answer:
    """One rater's current answer, as it stands in the database."""

    rater: str
    rater_id: int
    kind: str
    choice: str
    strength: int | None
    prob_a: float | None
    # Pairs for training are made without what follows, and it is not read for them.
    prob_a_ab: float | None = None
    prob_a_ba: float | None = None
    rationale: str = ""
    tags: list[str] | None = None
    aspects: dict[str, str] | None = None
    seconds: float | None = None
    shown_first: str = ""
    inclusion_probability: float | None = None
    audit: bool = False
    created_at: datetime | None = None
    ranking: int | None = None  # that implied it


@dataclass(slots=True)
class Order:
    """One rater's current ranking of a response set, as it stands in the database."""

    pk: int
    rater: str
    kind: str
    order: list[list[int]]  # keys of responses, best first; equals share a place
    rationale: str
    seconds: float | None
    created_at: datetime


@dataclass(slots=True)
class Labeled:
    """A comparison with everything that is known of it."""

    pk: int
    external_id: str
    content_hash: str
    prompt: Messages
    response_a: Messages
    response_b: Messages
    key_a: int
    key_b: int
    text_a: str  # content hashes of the responses
    text_b: str
    model_a: str
    model_b: str
    author_a: str | None
    author_b: str | None
    set_pk: int | None
    gold: str
    purpose: str
    labels_wanted: int
    priority: int
    metadata: dict[str, Any]
    prompt_hash: str
    chars_a: int
    chars_b: int
    answers: list[Answer] = field(default_factory=list)
    decision: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its id in the file it came from; without one the hash of its content."""
        return self.external_id or self.content_hash


@dataclass(frozen=True, slots=True)
class Label:
    """What a rule makes of the answers to a comparison."""

    rule: str
    """votes, majority, dawid-skene, soft, or decision: a lead's word, which overrides."""
    choice: str
    """a, b, tie, both_bad; or why there is none: disputed, unparsed, unlabeled."""
    source: str
    """human or ai."""
    prob_a: float
    margin: float
    n_raters: int
    rater: str = ""
    """Who voted, where the rule is votes."""


# --- our own form ------------------------------------------------------------------------------


def interchange(row: Labeled, answers: list[Answer], with_decision: bool) -> dict[str, Any]:
    """Everything, under the names of docs/import.md; what is empty is left away."""
    record: dict[str, Any] = {
        "id": row.external_id,
        "prompt": row.prompt,
        "response_a": row.response_a,
        "response_b": row.response_b,
        "model_a": row.model_a,
        "model_b": row.model_b,
        "author_a": row.author_a,
        "author_b": row.author_b,
        "gold": row.gold,
        "metadata": row.metadata,
    }
    record = {key: value for key, value in record.items() if value}
    record |= {
        "purpose": row.purpose,
        "labels_wanted": row.labels_wanted,
        "priority": row.priority,
        "preferences": [vote_record(a) for a in answers if a.kind == Rater.Kind.PERSON],
        "verdicts": [vote_record(a) for a in answers if a.kind == Rater.Kind.JUDGE],
    }
    if with_decision and row.decision is not None:
        record["decision"] = row.decision
    return record


def interchange_set(
    rows: list[Labeled], records: list[dict[str, Any]], orders: list[Order]
) -> tuple[dict[str, Any], int]:
    """A response set as one record, and how many of its rankings have no place in it.

    Args: rows, records: all its pairs, and `interchange` of each. orders: its rankings.
    """
    responses: dict[int, dict[str, Any]] = {}
    for row in rows:
        responses[row.key_a] = _listed(row.response_a, row.model_a, row.author_a)
        responses[row.key_b] = _listed(row.response_b, row.model_b, row.author_b)
    places = {key: place for place, key in enumerate(sorted(responses))}
    shared = {
        key: records[0][key]
        for key in ("metadata", "labels_wanted", "priority")
        if key in records[0] and all(record.get(key) == records[0][key] for record in records)
    }
    pairs = []
    for row, record in zip(rows, records, strict=True):
        own = {
            key: record[key]
            for key in (*OF_A_PAIR, "label")
            if key not in shared and record.get(key) not in (None, [])
        }
        a, b = places[row.key_a], places[row.key_b]
        if own or a > b:
            pairs.append({"a": a, "b": b} | own)
    rankings = [_ranking(order, rows, places) for order in orders]
    kept = [ranking for ranking in rankings if ranking is not None]
    record = {
        "prompt": rows[0].prompt,
        "responses": [responses[key] for key in places],
        **shared,
        "rankings": kept,
        "pairs": pairs,
    }
    return record, len(rankings) - len(kept)


def _listed(messages: Messages, model: str, author: str | None) -> dict[str, Any]:
    response = {"messages": messages, "model": model, "author": author}
    return {key: value for key, value in response.items() if value}


def _ranking(order: Order, rows: list[Labeled], places: dict[int, int]) -> dict[str, Any] | None:
    """A ranking by the numbers of the responses; None if it does not order all of them, or none of
    the rater's present answers follows from it."""
    if sorted(key for tied in order.order for key in tied) != list(places):
        return None
    implied = [
        [places[row.key_a], places[row.key_b]]
        for row in rows
        if any(answer.ranking == order.pk for answer in row.answers)
    ]
    if not implied:
        return None
    record: dict[str, Any] = {
        "rater": order.rater,
        "order": [[places[key] for key in tied] for tied in order.order],
    }
    if order.kind != Rater.Kind.PERSON:
        record["kind"] = order.kind
    if len(implied) < len(rows):  # the others were answered anew since
        record["implies"] = implied
    if order.rationale:
        record["rationale"] = order.rationale
    if order.seconds is not None:
        record["seconds"] = order.seconds
    return record | {"created_at": as_time(order.created_at)}


def vote_record(answer: Answer) -> dict[str, Any]:
    record: dict[str, Any] = {"rater": answer.rater, "choice": answer.choice}
    for key in _VOTE_KEYS:
        value = getattr(answer, key)
        if value or isinstance(value, float):  # a probability or a time of 0.0 says something
            record[key] = value
    record["created_at"] = as_time(answer.created_at)
    return record


_VOTE_KEYS = ("strength", "prob_a", "prob_a_ab", "prob_a_ba", "rationale", "tags", "aspects")
_VOTE_KEYS += ("seconds", "shown_first", "inclusion_probability", "audit")


def as_time(moment: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond where there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def label_record(label: Label) -> dict[str, Any]:
    """The label of a rule, beside the votes that it was made from."""
    return {
        "choice": label.choice,
        "prob_a": round(label.prob_a, 6),
        "margin": round(label.margin, 6),
        "n_raters": label.n_raters,
        "source": label.source,
        "rule": label.rule,
    }


# --- pairs for training ------------------------------------------------------------------------


def pair(row: Labeled, label: Label, *, is_chat: bool) -> dict[str, Any]:
    """Prompt, chosen and rejected as TRL reads them, as texts or as lists of messages.

    The label's choice is a or b.
    """
    is_a = label.choice == Choice.A
    a, b = row.response_a, row.response_b
    chosen, rejected = (a, b) if is_a else (b, a)
    models = (row.model_a, row.model_b) if is_a else (row.model_b, row.model_a)
    if is_chat:
        texts = {"prompt": row.prompt, "chosen": chosen, "rejected": rejected}
    else:
        is_transcript = max(len(row.prompt), len(chosen), len(rejected)) > 1
        texts = _transcripts(row.prompt, chosen, rejected) if is_transcript else {}
        texts = texts or {
            "prompt": row.prompt[0]["content"],
            "chosen": chosen[0]["content"],
            "rejected": rejected[0]["content"],
        }
    return texts | {
        "margin": round(label.margin, 6),
        "prob": round(label.prob_a if is_a else 1 - label.prob_a, 6),
        "n_raters": label.n_raters,
        "rule": label.rule,
        "source": label.source,
        "rater": label.rater,
        "chosen_model": models[0],
        "rejected_model": models[1],
        "id": row.name,
    }


def _transcripts(prompt: Messages, chosen: Messages, rejected: Messages) -> dict[str, str]:
    """Several turns as one text, in the way of hh-rlhf: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    return {
        "prompt": "".join(map(_turn, prompt)) + "\n\nAssistant:",
        "chosen": f" {chosen[0]['content']}" + "".join(map(_turn, chosen[1:])),
        "rejected": f" {rejected[0]['content']}" + "".join(map(_turn, rejected[1:])),
    }


def _turn(message: dict[str, str]) -> str:
    speaker = {"user": "Human: ", "assistant": "Assistant: "}.get(message["role"], "")
    return f"\n\n{speaker}{message['content']}"


# --- tables ------------------------------------------------------------------------------------

TEXT_COLUMNS = ("id", "prompt", "response_a", "response_b", "model_a", "model_b")
VOTE_COLUMNS = (
    *TEXT_COLUMNS,
    *("rater", "kind", "choice", "strength", "prob_a", "prob_a_ab", "prob_a_ba"),
    *("seconds", "shown_first", "rationale", "tags", "aspects", "audit", "inclusion_probability"),
    *("created_at", "decision", "gold", "metadata"),
)
LABEL_COLUMNS = (
    *TEXT_COLUMNS,
    *("label", "prob_a", "margin", "n_raters", "source", "rule", "gold", "metadata"),
)


def vote_row(row: Labeled, answer: Answer) -> dict[str, Any]:
    """One vote as a flat row; what is structured is JSON."""
    return _text_row(row) | {
        "rater": answer.rater,
        "kind": answer.kind,
        "choice": answer.choice,
        "strength": answer.strength,
        "prob_a": answer.prob_a,
        "prob_a_ab": answer.prob_a_ab,
        "prob_a_ba": answer.prob_a_ba,
        "seconds": answer.seconds,
        "shown_first": answer.shown_first,
        "rationale": answer.rationale,
        "tags": _json(answer.tags),
        "aspects": _json(answer.aspects),
        "audit": answer.audit,
        "inclusion_probability": answer.inclusion_probability,
        "created_at": as_time(answer.created_at),
        "decision": _json(row.decision),
        "gold": row.gold,
        "metadata": _json(row.metadata),
    }


def label_row(row: Labeled, label: Label) -> dict[str, Any]:
    """One comparison with the label of a rule, as a flat row."""
    return _text_row(row) | {
        "label": label.choice,
        "prob_a": round(label.prob_a, 6),
        "margin": round(label.margin, 6),
        "n_raters": label.n_raters,
        "source": label.source,
        "rule": label.rule,
        "gold": row.gold,
        "metadata": _json(row.metadata),
    }


def _text_row(row: Labeled) -> dict[str, Any]:
    texts = {
        "prompt": plain(row.prompt, "user"),
        "response_a": plain(row.response_a, "assistant"),
        "response_b": plain(row.response_b, "assistant"),
    }
    return {
        "id": row.external_id,
        **{k: v if isinstance(v, str) else _json(v) for k, v in texts.items()},
        "model_a": row.model_a,
        "model_b": row.model_b,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def plain(messages: Messages, role: str) -> str | Messages:
    """One message of the expected role as its text alone, unless a reader would take that text for
    something else: JSON, or a transcript."""
    text = messages[0]["content"]
    if len(messages) > 1 or messages[0]["role"] != role:
        return messages
    return messages if text[:1] in ("[", "{") or TRANSCRIPT_TURN.match(text) else text


def csv_lines(columns: tuple[str, ...], rows: list[dict[str, Any]], *, head: bool) -> bytes:
    """Rows as CSV. A text that a spreadsheet would compute, whole or from some place on, is guarded
    there, and the column `guarded` names the cells where that was done, so that reading undoes
    exactly this (labeling/spreadsheets.py)."""
    text = io.StringIO()
    table = csv.writer(text, quoting=csv.QUOTE_ALL)
    if head:
        table.writerow([*columns, "guarded"])
    for row in rows:
        cells = {name: row[name] for name in columns}
        texts = {name: guarded(cell) for name, cell in cells.items() if isinstance(cell, str)}
        changed = [name for name, cell in texts.items() if cell != cells[name]]
        table.writerow([*(cells | texts).values(), guards_in(changed)])
    return text.getvalue().encode()


# --- annotation tools --------------------------------------------------------------------------


def label_studio(row: Labeled, answers: list[Answer], label: Label | None) -> dict[str, Any]:
    """A task of Label Studio with a Pairwise tag; people annotate, judges and rules predict."""
    data = {
        "prompt": plain(row.prompt, "user"),
        "response_a": plain(row.response_a, "assistant"),
        "response_b": plain(row.response_b, "assistant"),
        "model_a": row.model_a,
        "model_b": row.model_b,
        "metadata": row.metadata,
    }
    annotations = [
        {
            "completed_by": {"email": answer.rater},
            "result": _pairwise(answer.choice),
            "was_cancelled": False,
            "lead_time": answer.seconds,
            "created_at": as_time(answer.created_at),
        }
        for answer in answers
        if answer.kind == Rater.Kind.PERSON
    ]
    predictions = [
        {"model_version": name, "score": score, "result": _pairwise(choice)}
        for name, choice, score in _guesses(answers, label)
    ]
    return {
        "id": row.external_id,
        "data": data,
        "annotations": annotations,
        "predictions": predictions,
    }


def _pairwise(choice: str) -> list[dict[str, Any]]:
    """Label Studio knows left and right; `tie` and `both_bad` are ours, and left as they are."""
    selected = {Choice.A: "left", Choice.B: "right"}.get(choice, choice)
    return [
        {
            "type": "pairwise",
            "from_name": "better",
            "to_name": "response_a,response_b",
            "value": {"selected": selected},
        }
    ]


def argilla(row: Labeled, answers: list[Answer], label: Label | None) -> dict[str, Any]:
    """A record of Argilla 2 with the question `preference`; people respond, judges suggest."""
    responses = [
        {"user_id": answer.rater, "value": _argilla_value(answer.choice), "status": "submitted"}
        for answer in answers
        if answer.kind == Rater.Kind.PERSON
    ]
    suggestions = [
        {"agent": name, "value": _argilla_value(choice), "score": score}
        for name, choice, score in _guesses(answers, label)
    ]
    # Argilla has one suggestion a question; several judges come as a list.
    suggested = suggestions[0] if len(suggestions) == 1 else suggestions
    return {
        "id": row.external_id,
        "status": "completed" if responses else "pending",
        "fields": {
            "prompt": plain(row.prompt, "user"),
            "response_a": plain(row.response_a, "assistant"),
            "response_b": plain(row.response_b, "assistant"),
        },
        "metadata": row.metadata,
        "responses": {"preference": responses},
        "suggestions": {"preference": suggested} if suggestions else {},
    }


def _argilla_value(choice: str) -> str:
    return {Choice.A: "response_a", Choice.B: "response_b"}.get(choice, choice)


def _guesses(answers: list[Answer], label: Label | None) -> list[tuple[str, str, float | None]]:
    """(name, choice, probability of that choice) of judges, or of the rule that made a label."""
    if label is not None:
        return [(label.rule, label.choice, _confidence(label.choice, label.prob_a))]
    return [
        (answer.rater, answer.choice, _confidence(answer.choice, answer.prob_a))
        for answer in answers
        if answer.kind == Rater.Kind.JUDGE
    ]


def _confidence(choice: str, prob_a: float | None) -> float | None:
    if prob_a is None or choice not in (Choice.A, Choice.B):
        return None
    return round(prob_a if choice == Choice.A else 1 - prob_a, 6)
