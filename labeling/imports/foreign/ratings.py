"""Judgements of single responses: our own form, TRL's unpaired one and HelpSteer's."""

from typing import Any

from labeling.imports.foreign.columns import Labels, find_response_keys, rest_of
from labeling.imports.interchange import BadRow


def from_ratings(record: dict[str, Any], _labels: Labels) -> list[dict[str, Any]]:
    """Our own form, of a file or of a table with one rating a row."""
    used = {"prompt", "response", "ratings", "scale", "metadata", "id", "model", *_RATING_COLUMNS}
    metadata = record.get("metadata")
    return [record | {"metadata": metadata if metadata else rest_of(record, used)}]


_RATING_COLUMNS = ("rating", "value", "desirable", "label", "label_from", "rater", "kind")
_RATING_COLUMNS += ("aspect", "rationale", "seconds", "created_at")


def from_trl_kto(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """TRL's unpaired form: `prompt`, `completion`, `label`; ours adds who, and which scale."""
    if record.get("prompt") in (None, "", []):
        raise BadRow("`prompt` is missing: nothing says where the completion begins")
    if record.get("completion") is None:
        raise BadRow("`completion` is missing")
    converted = {key: value for key, value in record.items() if key != "completion"}
    return from_ratings(converted | {"response": record["completion"]}, labels)


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HELPSTEER_SCALE = [0, 4]


def from_helpsteer(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
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
            "metadata": rest_of(record, {"prompt", "response", *HELPSTEER}),
        }
    ]


def fits_ratings(record: dict[str, Any]) -> bool:
    if not {"prompt", "response"} <= record.keys() or find_response_keys(record) is not None:
        return False
    return any(record.get(name) not in (None, "") for name in ("ratings", *_RATING_COLUMNS[:4]))
