"""What Label Studio exports: choices between responses, and stars for one."""

from typing import Any

from labeling.imports.foreign.columns import (
    PROMPT_KEYS,
    Labels,
    choice_word,
    find_response_key,
    find_response_keys,
    name_in,
    prompt_in,
    response_keys,
    rest_of,
)
from labeling.imports.interchange import BadRow
from labeling.models import Choice


def from_rated_tasks(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Label Studio's JSON export of a project with a Rating tag: stars, each tag an aspect unless
    it is the only one. How many stars there were, the export does not say."""
    data = record["data"]
    key = find_response_key(data)
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
            "prompt": prompt_in(data),
            "response": data[key],
            "model": data.get("model"),
            "ratings": ratings,
            "metadata": rest_of(data, {key, "model", *PROMPT_KEYS}),
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


def fits_rated_tasks(record: dict[str, Any]) -> bool:
    data, annotations = record.get("data"), record.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return False
    if find_response_key(data) is None or find_response_keys(data) is not None:
        return False
    return any(_stars(one.get("result")) for one in annotations if isinstance(one, dict))


def from_label_studio(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
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
                {"rater": name_in(prediction, "model_version") or "prediction", "choice": choice}
            )
    used = {first, second, *PROMPT_KEYS, "model_a", "model_b"}
    return [
        {
            "id": record.get("id"),
            "prompt": prompt_in(data),
            "response_a": data[first],
            "response_b": data[second],
            "model_a": data.get("model_a"),
            "model_b": data.get("model_b"),
            "metadata": data["metadata"]
            if isinstance(data.get("metadata"), dict)
            else rest_of(data, used),
            "preferences": preferences,
            "verdicts": verdicts,
        }
    ]


def from_label_studio_min(record: dict[str, Any], labels: Labels) -> list[dict[str, Any]]:
    """Label Studio's JSON_MIN and CSV exports: one annotation a record."""
    first, second = response_keys(record)
    control = {"annotation_id", "annotator", "lead_time", "created_at", "updated_at", "id"}
    used = {first, second, *PROMPT_KEYS, *control}
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
            "prompt": prompt_in(record),
            "response_a": record[first],
            "response_b": record[second],
            "metadata": rest_of(record, used),
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
