"""The interchange form: one JSON object to one checked row, or one clear reason why not."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.utils.dateparse import parse_datetime

from labeling.judgements import choice_of
from labeling.models import Choice, Comparison, Messages, Rater, message_text

MAX_DEPTH = 64
MAX_MESSAGES = 1000
MAX_VOTES = 10_000
MAX_LABELS = 100
MAX_PRIORITY = 32_767
HUMAN_CHOICES = (Choice.A, Choice.B, Choice.TIE, Choice.BOTH_BAD)

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
}


class BadRow(ValueError):
    """Why a record cannot become a row, in words for the person who wrote the file."""


@dataclass(slots=True, eq=False)
class ResponseList:
    """K responses to one prompt that are ranked at once; the rows of its pairs share it."""

    responses: list[tuple[Messages, str]]  # each with the name of its model
    # Of each, the rater who wrote it as a better answer, or "".
    authors: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class GivenRanking:
    """One rater's order of such a list as it stands in a file; the votes it implies share it."""

    of: ResponseList
    rater: str
    kind: str
    order: list[list[int]]  # numbers of the responses from 0, best first; equals share a place
    implies: set[tuple[int, int]] | None = None  # pairs (low, high); None: every pair
    rationale: str = ""
    seconds: float | None = None
    created_at: datetime | None = None


@dataclass(slots=True)
class Vote:
    """One rater's preference as it stands in a file."""

    rater: str
    kind: str
    choice: str
    strength: int | None = None
    prob_a: float | None = None
    prob_a_ab: float | None = None
    prob_a_ba: float | None = None
    rationale: str = ""
    tags: list[str] = field(default_factory=list)
    aspects: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    shown_first: str = ""
    inclusion_probability: float | None = None
    audit: bool = False
    created_at: datetime | None = None
    ranking: GivenRanking | None = None  # that implies it


@dataclass(slots=True)
class LeadsWord:
    """A lead's decision on the comparison as it stands in a file."""

    choice: str
    strength: int | None = None
    note: str = ""


@dataclass(slots=True)
class Row:
    """A comparison on its way into the database. Without a prompt it brings votes for one that is
    known by its id."""

    prompt: Messages
    response_a: Messages
    response_b: Messages
    model_a: str = ""
    model_b: str = ""
    author_a: str = ""  # the rater who wrote it as a better answer
    author_b: str = ""
    external_id: str = ""
    gold: str = ""
    purpose: str = ""  # empty: as the import says
    labels_wanted: int | None = None  # None: as the import says
    priority: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    response_list: ResponseList | None = None
    decision: LeadsWord | None = None
    votes: list[Vote] = field(default_factory=list)
    bad_votes: list[str] = field(default_factory=list)  # reasons, one per vote left out


def parse_row(record: dict[str, Any]) -> Row:
    """A record of the interchange form as a row; votes that make no sense are left out with a
    reason, the comparison stays. Its values have passed `check_storable`.

    Raises: BadRow.
    """
    for key in ("prompt", "response_a", "response_b"):
        if record.get(key) is None:
            raise BadRow(f"`{key}` is missing")
    row = Row(
        prompt=messages_of(record["prompt"], "user", "prompt"),
        response_a=messages_of(record["response_a"], "assistant", "response_a"),
        response_b=messages_of(record["response_b"], "assistant", "response_b"),
        model_a=short_text(record, "model_a"),
        model_b=short_text(record, "model_b"),
        author_a=short_text(record, "author_a"),
        author_b=short_text(record, "author_b"),
        external_id=short_text(record, "id"),
        gold=_gold(record.get("gold")),
        purpose=_purpose(record.get("purpose")),
        labels_wanted=_whole_number(record, "labels_wanted", 0, MAX_LABELS),
        priority=_whole_number(record, "priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        metadata=metadata_of(record.get("metadata")),
    )
    if not message_text(row.prompt).strip():
        raise BadRow("`prompt` is empty")
    # An empty response is an answer that a model gave; two equal ones of one source are no pair.
    if row.response_a == row.response_b and row.model_a == row.model_b:
        raise BadRow("both responses are the same: nothing to compare")
    if row.purpose not in ("", Comparison.Purpose.WORK) and not row.gold:
        raise BadRow(f"`purpose` is {row.purpose!r} and `gold` is missing: what is the answer?")
    add_votes(row, record)
    try:
        row.decision = _decision(record.get("decision"))
    except BadRow as problem:
        row.bad_votes.append(f"decision: {problem}")
    return row


def parse_votes(record: dict[str, Any]) -> Row:
    """A record that brings votes for a comparison imported before, by that comparison's `id`.

    Raises: BadRow.
    """
    row = Row(prompt=[], response_a=[], response_b=[], external_id=short_text(record, "id"))
    if not row.external_id:
        raise BadRow("`id` is missing: it names the comparison that was judged")
    add_votes(row, record)
    if not row.votes:
        raise BadRow(row.bad_votes[0] if row.bad_votes else "no vote in it")
    return row


def add_votes(row: Row, record: dict[str, Any]) -> None:
    """Read `preferences` (people) and `verdicts` (AI judges) of a record into the row."""
    for key, read in (("preferences", _preference), ("verdicts", _verdict)):
        votes = record.get(key)
        if votes in (None, ""):
            continue
        if not isinstance(votes, list):
            raise BadRow(f"`{key}` is a {kind_of_value(votes)}, not a list")
        if len(votes) > MAX_VOTES:
            raise BadRow(f"more than {MAX_VOTES} `{key}`")
        seen: dict[str, Vote] = {}
        for number, entry in enumerate(votes, 1):
            try:
                vote = read(entry)
                earlier = seen.setdefault(vote.rater, vote)
                if earlier is vote:
                    row.votes.append(vote)
                else:
                    same = "again" if earlier.choice == vote.choice else "and differently"
                    raise BadRow(f"rater {vote.rater!r} answers twice here, {same}")
            except BadRow as problem:
                row.bad_votes.append(f"{key}[{number}]: {problem}")


def check_storable(record: Any) -> None:
    """Refuse what no database column takes: NUL, half surrogates, infinite numbers, deep nesting.

    Raises: BadRow.
    """
    stack = [(record, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise BadRow("there is a NUL character in a text")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadRow("half a surrogate pair in a text: it is no Unicode") from None
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise BadRow("a number is too large")
        elif isinstance(value, (dict, list)):
            if depth > MAX_DEPTH:
                raise BadRow("nested too deep")
            if isinstance(value, dict):
                stack.extend((key, depth + 1) for key in value)
                value = value.values()
            stack.extend((part, depth + 1) for part in value)


def messages_of(value: Any, role: str, name: str) -> Messages:
    """A text as one message of `role`, or a list of messages, checked and with our role names.

    Raises: BadRow, naming the column.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"`{name}` is a {kind_of_value(value)}: give a text or a list of messages")
    if not value:
        raise BadRow(f"`{name}` is an empty list")
    if len(value) > MAX_MESSAGES:
        raise BadRow(f"`{name}` has more than {MAX_MESSAGES} messages")
    messages = []
    for turn in value:
        if not isinstance(turn, dict):
            raise BadRow(f"`{name}` holds a {kind_of_value(turn)} where a message should be")
        given = turn.get("role", turn.get("from", role))
        if not isinstance(given, str) or given.lower() not in ROLES:
            raise BadRow(f"`{name}`: a role is {given!r}, not user, assistant or system")
        content = turn.get("content", turn.get("value"))
        messages.append({"role": ROLES[given.lower()], "content": _content(content, name)})
    return messages


def _content(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    # Parts, as chat servers have them: only text can be compared here.
    if isinstance(content, list) and content:
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str):
                raise BadRow(f"`{name}`: a message has a part that is not text")
            texts.append(text)
        return "\n\n".join(texts)
    raise BadRow(f"`{name}`: the content of a message is a {kind_of_value(content)}, not text")


def short_text(record: dict[str, Any], key: str) -> str:
    """An optional name of up to 200 characters; numbers are taken as names too. Raises: BadRow."""
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"`{key}` is a {kind_of_value(value)}, not a text")
    text = str(value).strip()
    if len(text) > 200:
        raise BadRow(f"`{key}` is longer than 200 characters")
    return text


def _gold(value: Any) -> str:
    if value in (None, ""):
        return ""
    if isinstance(value, str) and value.strip().lower() in HUMAN_CHOICES:
        return value.strip().lower()
    raise BadRow(f"`gold` is {shown(value)}: it may be {', '.join(HUMAN_CHOICES)}")


def _purpose(value: Any) -> str:
    if value in (None, ""):
        return ""
    if isinstance(value, str) and value.strip().lower() in Comparison.Purpose.values:
        return value.strip().lower()
    words = ", ".join(Comparison.Purpose.values)
    raise BadRow(f"`purpose` is {shown(value)}: it may be {words}")


def _whole_number(record: dict[str, Any], key: str, low: int, high: int) -> int | None:
    number = given_number(record, key)
    if number is None:
        return None
    if number != int(number) or not low <= number <= high:
        raise BadRow(f"`{key}` is {shown(record[key])}: a whole number from {low} to {high}")
    return int(number)


def metadata_of(value: Any) -> dict[str, Any]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise BadRow(f"`metadata` is a {kind_of_value(value)}, not an object")
    return value


def _preference(entry: Any) -> Vote:
    vote = vote_of(entry, Rater.Kind.PERSON)
    choice = entry.get("choice")
    choice = choice.strip().lower() if isinstance(choice, str) else choice
    if choice not in HUMAN_CHOICES:
        raise BadRow(f"`choice` is {shown(choice)}: it may be {', '.join(HUMAN_CHOICES)}")
    vote.choice = choice
    return vote


def _decision(entry: Any) -> LeadsWord | None:
    """A lead's decision. Who decided is not read: no file speaks for a person with an account."""
    if entry in (None, ""):
        return None
    if not isinstance(entry, dict):
        raise BadRow(f"a {kind_of_value(entry)} where an object should be")
    if entry.get("choice") not in HUMAN_CHOICES:
        given = shown(entry.get("choice"))
        raise BadRow(f"`choice` is {given}: it may be {', '.join(HUMAN_CHOICES)}")
    note = entry.get("note")
    if note is not None and not isinstance(note, str):
        raise BadRow(f"`note` is a {kind_of_value(note)}, not a text")
    return LeadsWord(entry["choice"], _strength(entry), note or "")


def _verdict(entry: Any) -> Vote:
    """A judge's verdict. Its probability decides (exactly 0.5 is a tie), then its words; a verdict
    with neither was unreadable, which is counted and not dropped."""
    vote = vote_of(entry, Rater.Kind.JUDGE)
    for key in ("prob_a", "prob_a_ab", "prob_a_ba"):
        setattr(vote, key, _probability(entry, key))
    choice = entry.get("choice")
    if choice not in (None, "") and choice not in Choice.values:
        raise BadRow(f"`choice` is {shown(choice)}: it may be {', '.join(Choice.values)}")
    if vote.prob_a is None and vote.prob_a_ab is not None and vote.prob_a_ba is not None:
        vote.prob_a = (vote.prob_a_ab + vote.prob_a_ba) / 2
    if vote.prob_a is not None:
        vote.choice = choice_of(vote.prob_a)
    else:
        vote.choice = choice or Choice.UNPARSED
    return vote


def vote_of(entry: Any, kind: str) -> Vote:
    """What every kind of vote has: who, why, how long, when. Raises: BadRow."""
    if not isinstance(entry, dict):
        raise BadRow(f"a {kind_of_value(entry)} where an object should be")
    rater = short_text(entry, "rater")
    if not rater:
        raise BadRow("`rater` is missing")
    seconds = given_number(entry, "seconds")
    if seconds is not None and seconds < 0:
        raise BadRow("`seconds` is negative")
    shown_first = entry.get("shown_first")
    if shown_first not in (None, "", "a", "b"):
        raise BadRow(f"`shown_first` is {shown(shown_first)}: it may be a or b")
    rationale = entry.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise BadRow(f"`rationale` is a {kind_of_value(rationale)}, not a text")
    tags = entry.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise BadRow("`tags` is not a list of texts")
    return Vote(
        rater=rater,
        kind=kind,
        choice="",
        strength=_strength(entry),
        seconds=seconds,
        shown_first=shown_first or "",
        rationale=rationale or "",
        tags=tags,
        aspects=_aspects(entry.get("aspects")),
        inclusion_probability=_probability(entry, "inclusion_probability"),
        audit=_flag(entry, "audit"),
        created_at=moment(entry.get("created_at")),
    )


def _strength(entry: dict[str, Any]) -> int | None:
    strength = given_number(entry, "strength")
    if strength is not None and strength not in (1, 2, 3):
        raise BadRow(f"`strength` is {strength:g}: it may be 1, 2 or 3")
    return None if strength is None else int(strength)


def _aspects(value: Any) -> dict[str, str]:
    """Answers to the questions beside the main one: {"honest": "a", …}."""
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise BadRow(f"`aspects` is a {kind_of_value(value)}, not an object")
    for answer in value.values():
        if answer not in HUMAN_CHOICES:
            raise BadRow(f"in `aspects` stands {shown(answer)}: a, b, tie or both_bad is wanted")
    return value


def _flag(entry: dict[str, Any], key: str) -> bool:
    """An optional truth value; CSV files bring it as text."""
    value = entry.get(key)
    found = {"": False, "false": False, "true": True, "0": False, "1": True}.get(
        str("" if value is None else value).lower()
    )
    if found is None:
        raise BadRow(f"`{key}` is {shown(value)}, not true or false")
    return found


def _probability(entry: dict[str, Any], key: str) -> float | None:
    number = given_number(entry, key)
    if number is not None and not 0 <= number <= 1:
        raise BadRow(f"`{key}` is {number}, outside of 0 to 1")
    return number


def given_number(entry: dict[str, Any], key: str) -> float | None:
    """An optional number; CSV files bring it as text."""
    value = entry.get(key)
    if value in (None, ""):
        return None
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise BadRow(f"`{key}` is {shown(value)}, not a number")


def moment(value: Any) -> datetime | None:
    """An optional moment: ISO 8601, UTC where no zone is given, or seconds since 1970."""
    if value in (None, ""):
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        moment = parse_datetime(value) if isinstance(value, str) else None
        if moment is not None:
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return moment.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise BadRow(f"`created_at` is {shown(value)}: write it like 2026-01-31T12:00:00Z")


def kind_of_value(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "text", int: "number", float: "number", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
