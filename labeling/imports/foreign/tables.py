"""Tables whose columns are named in another way, and votes that come without their texts."""

import re
from typing import Any

from labeling.imports.foreign.columns import (
    CHOICE_KEYS,
    ID_KEYS,
    PROMPT_KEYS,
    RATER_KEYS,
    Labels,
    choice_word,
    find_response_keys,
    prompt_in,
    response_keys,
    rest_of,
)
from labeling.models import Rater


def from_pairs(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """A table whose columns are named in another way: a question, two answers, perhaps a label."""
    first, second = response_keys(record)
    used = {first, second, "id", "gold", *PROMPT_KEYS}
    converted = {
        "id": record.get("id", record.get("idx")),
        "prompt": prompt_in(record),
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
    label = next((key for key in CHOICE_KEYS if record.get(key) not in (None, "")), None)
    if label:
        rater = next((key for key in RATER_KEYS if record.get(key) not in (None, "")), None)
        used |= {label, rater or label}
        choice = choice_word(record[label], first, second)
        votes.append({"rater": record[rater] if rater else labels.rater, "choice": choice})
    for key, value in record.items():  # a column for each rater, as in annotator1 … annotator3
        if re.fullmatch(r"(annotator|rater|labeler|worker)[-_ ]?\d+", key) and value is not None:
            used.add(key)
            votes.append({"rater": key, "choice": choice_word(value, first, second)})
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return [converted | {"metadata": rest_of(record, used), key: votes}]


def from_votes(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Votes alone: the comparison's id, who, and which. The comparison came in an earlier file."""
    if "preferences" in record or "verdicts" in record:
        return [record]
    identity = next((record[key] for key in ID_KEYS if record.get(key) not in (None, "")), None)
    label = next(key for key in CHOICE_KEYS if key in record)
    rater = next((record[key] for key in RATER_KEYS if record.get(key) not in (None, "")), None)
    vote = {key: record.get(key) for key in ("strength", "seconds", "shown_first", "rationale")}
    vote |= {
        "rater": rater if rater is not None else labels.rater,
        "choice": choice_word(record[label]),
        "created_at": record.get("created_at"),
    }
    key = "verdicts" if labels.kind == Rater.Kind.JUDGE else "preferences"
    return [{"id": identity, key: [vote]}]


_MODEL_A = ("model_a", "model_x", "model_1", "model1", "generator_1")
_MODEL_B = ("model_b", "model_y", "model_2", "model2", "generator_2")


def fits_votes(record: dict[str, Any]) -> bool:
    if "prompt" in record and find_response_keys(record):
        return False
    has_vote = any(key in record for key in (*CHOICE_KEYS, "preferences", "verdicts"))
    return has_vote and any(record.get(key) not in (None, "") for key in ID_KEYS)
