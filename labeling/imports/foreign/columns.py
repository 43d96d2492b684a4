"""What other tools call their columns and their choices, and whose labels are in a file.

Columns that have no place of their own are kept in the comparison's metadata.
"""

import re
from dataclasses import dataclass
from typing import Any

from labeling.imports.foreign.dialogues import TRANSCRIPT_TURN, dialogue
from labeling.imports.interchange import BadRow, messages_of
from labeling.imports.rated import Scale
from labeling.models import Choice, Rater

MAX_REST_CHARS = 2000


@dataclass(frozen=True)
class Labels:
    """Whose labels these are where a file has labels and names nobody; and on which scale its
    ratings are where it does not say."""

    rater: str = "imported"
    kind: str = Rater.Kind.PERSON
    scale: Scale | None = None


ID_KEYS = ("comparison", "comparison_id", "pair_id", "id", "external_id")
RATER_KEYS = ("rater", "worker", "annotator", "annotator_id", "user_id", "labeler", "judge")
CHOICE_KEYS = ("choice", "winner", "label", "vote", "better", "golden", "preference")
PROMPT_KEYS = ("prompt", "question", "instruction", "query", "messages", "conversation", "text")
PROMPT_KEYS += ("input", "context", "system")

_STEM = r"(?:response|result|answer|output|generation|completion|candidate|text|arg|a)"
_SIDE = re.compile(rf"({_STEM})([-_ ]?)(a|x|1|left)", re.I)
_OTHER_SIDE = {"a": "b", "x": "y", "1": "2", "left": "right", "A": "B", "X": "Y"}


def response_keys(record: dict[str, Any]) -> tuple[str, str]:
    """The names of the two columns that hold the responses. Raises: BadRow if there are none."""
    keys = find_response_keys(record)
    if keys is None:
        raise BadRow("no two columns for the responses, such as response_a and response_b")
    return keys


def find_response_keys(record: dict[str, Any]) -> tuple[str, str] | None:
    """As `response_keys`; None if there are no two such columns."""
    for key in record:
        found = _SIDE.fullmatch(key)
        if found:
            stem, joint, side = found.groups()
            other = f"{stem}{joint}{_OTHER_SIDE.get(side, side)}"
            if other in record and other != key:
                return key, other
    return None


def find_response_key(record: dict[str, Any]) -> str | None:
    """The name of the one column that holds a response."""
    return next((k for k in ("response", "completion", "answer", "output") if k in record), None)


def choice_word(value: Any, first: str = "", second: str = "") -> Any:
    """A choice in the words of other tools; a word that says nothing comes back as it is."""
    number = number_in(value)
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


def prompt_in(record: dict[str, Any]) -> Any:
    """What was asked, under the names that other tools give it; None if it is not there.

    An `instruction` with an `input` is one question of two paragraphs.
    """
    key = next(
        (
            key
            for key in PROMPT_KEYS[:-1]
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


def rest_of(record: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Short values that no column of ours takes."""
    return {
        key: value
        for key, value in record.items()
        if key not in used
        and isinstance(value, (str, int, float, bool))
        and len(str(value)) <= MAX_REST_CHARS
        and value != ""
    }


def name_in(record: dict[str, Any], key: str) -> str:
    """A name or a number under this key, as text; empty if there is none."""
    value = record.get(key)
    return str(value).strip() if isinstance(value, (str, int)) and value is not True else ""


def number_in(value: Any) -> float | None:
    """The number that a value is or says; None for anything else."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
