"""Judgements of single responses: a record to a checked row, and rows into the database.

    {"prompt": …, "response": …, "model": …, "scale": [1, 5],
     "ratings": [{"rater": "ann", "value": 4}, {"rater": "bo", "desirable": true}]}

A line may also hold one judgement by itself, in `rating` or `desirable`, and TRL's form for KTO
(`prompt`, `completion`, `label`) is one of these. What a response is decides where its ratings go:
the prompt, its messages and the model. A rater has one rating of a response, and one of each aspect
of it.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from labeling.imports.interchange import (
    MAX_VOTES,
    BadRow,
    given_number,
    kind_of_value,
    messages_of,
    metadata_of,
    moment,
    short_text,
    shown,
)
from labeling.imports.rows import Raters, Stored, keep_prompts, keep_responses
from labeling.models import (
    Messages,
    Project,
    Rater,
    Rating,
    content_hash,
    message_text,
)

Scale = tuple[float, float]
"""The worst and the best value."""
Says = tuple[bool | None, float | None, float | None, float | None]
"""Thumb, value, and the ends of its scale."""
MAX_ASPECT = 100
YES = ("true", "1", "1.0", "yes", "good", "up", "desirable", "👍")
NO = ("false", "0", "0.0", "no", "bad", "down", "undesirable", "👎")
NO_SCALE = (
    '`scale` is missing: what are the worst and the best value? Write "scale": [1, 5] in the line, '
    "or give the scale of the whole file (--scale 1-5)"
)
_SPAN = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:-|–|to|,|\.\.)\s*(-?\d+(?:\.\d+)?)\s*")


@dataclass(slots=True)
class GivenRating:
    """One rater's judgement of a response as it stands in a file."""

    rater: str
    kind: str
    aspect: str = ""
    desirable: bool | None = None
    value: float | None = None
    scale: Scale | None = None
    rationale: str = ""
    seconds: float | None = None
    created_at: datetime | None = None

    @property
    def says(self) -> "Says":
        """What makes two ratings the same."""
        return self.desirable, self.value, *(self.scale or (None, None))

    @property
    def in_words(self) -> str:
        return rating_in_words(*self.says)


@dataclass(slots=True)
class RatedRow:
    """A response with its judgements on its way into the database."""

    prompt: Messages
    response: Messages
    model: str = ""
    external_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    votes: list[GivenRating] = field(default_factory=list)
    bad_votes: list[str] = field(default_factory=list)  # reasons, one per rating left out


def rating_in_words(
    desirable: bool | None, value: float | None, low: float | None, high: float | None
) -> str:
    """good, bad, or 4 of 1 to 5."""
    if value is None:
        return "good" if desirable else "bad"
    return f"{value:g} of {low:g} to {high:g}"


# A record to a row --------------------------------------------------------------------------------


def parse_rated(record: dict[str, Any], rater: str, kind: str, scale: Scale | None) -> RatedRow:
    """A record of this form as a row; ratings that make no sense are left out with a reason, where
    others stay. Its values have passed `check_storable`.

    Args: rater, kind: of judgements that name nobody; scale: of values that bring none.
    Raises: BadRow.
    """
    for key in ("prompt", "response"):
        if record.get(key) is None:
            raise BadRow(f"`{key}` is missing")
    row = RatedRow(
        prompt=messages_of(record["prompt"], "user", "prompt"),
        response=messages_of(record["response"], "assistant", "response"),
        model=short_text(record, "model"),
        external_id=short_text(record, "id"),
        metadata=metadata_of(record.get("metadata")),
    )
    if not message_text(row.prompt).strip():
        raise BadRow("`prompt` is empty")
    scale = scale_of(record.get("scale")) or scale
    entries = record.get("ratings")
    if entries in (None, "", []):
        entries = [record]
    if not isinstance(entries, list):
        raise BadRow(f"`ratings` is a {kind_of_value(entries)}, not a list")
    if len(entries) > MAX_VOTES:
        raise BadRow(f"more than {MAX_VOTES} `ratings`")
    seen: dict[tuple[str, str, str], GivenRating] = {}
    for number, entry in enumerate(entries, 1):
        try:
            vote = _rating(entry, rater, kind, scale)
            earlier = seen.setdefault((vote.kind, vote.rater, vote.aspect), vote)
            if earlier is not vote:
                same = "again" if earlier.says == vote.says else "and differently"
                raise BadRow(f"rater {vote.rater!r} judges twice here, {same}")
            row.votes.append(vote)
        except BadRow as problem:
            row.bad_votes.append(
                str(problem) if entry is record else f"ratings[{number}]: {problem}"
            )
    if not row.votes:
        raise BadRow(row.bad_votes[0])
    return row


def _rating(entry: Any, rater: str, kind: str, scale: Scale | None) -> GivenRating:
    if not isinstance(entry, dict):
        raise BadRow(f"a {kind_of_value(entry)} where an object should be")
    if entry.get("kind") not in (None, "", *Rater.Kind.values):
        raise BadRow(f"`kind` is {shown(entry['kind'])}: it may be {', '.join(Rater.Kind.values)}")
    rationale = entry.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise BadRow(f"`rationale` is a {kind_of_value(rationale)}, not a text")
    seconds = given_number(entry, "seconds")
    if seconds is not None and seconds < 0:
        raise BadRow("`seconds` is negative")
    vote = GivenRating(
        rater=short_text(entry, "rater") or rater,
        kind=entry.get("kind") or kind,
        aspect=short_text(entry, "aspect"),
        rationale=rationale or "",
        seconds=seconds,
        created_at=moment(entry.get("created_at")),
    )
    if len(vote.aspect) > MAX_ASPECT:
        raise BadRow(f"`aspect` is longer than {MAX_ASPECT} characters")
    value = "value" if entry.get("value") not in (None, "") else "rating"
    vote.value = given_number(entry, value)
    vote.desirable = _thumb(entry)
    if vote.value is None and vote.desirable is None:
        raise BadRow("no judgement: give `rating` with a scale, or `desirable` (true or false)")
    if vote.value is not None:
        vote.scale = scale_of(entry.get("scale")) or scale
        if vote.scale is None:
            raise BadRow(NO_SCALE)
        low, high = vote.scale
        if not low <= vote.value <= high:
            raise BadRow(f"`{value}` is {vote.value:g}, outside of the scale {low:g} to {high:g}")
    return vote


def _thumb(entry: dict[str, Any]) -> bool | None:
    """Whether the response is good by itself; our own exports say where a label was derived."""
    name = "desirable" if entry.get("desirable") not in (None, "") else "label"
    given = entry.get(name)
    if given in (None, "") or (name == "label" and entry.get("label_from") == "rating"):
        return None
    word = str(given).strip().lower()
    if word in YES:
        return True
    if word in NO:
        return False
    raise BadRow(f"`{name}` is {shown(given)}: it may be true or false")


def scale_of(given: Any) -> Scale | None:
    """The ends of a scale, from [1, 5], "1-5", or {"min": 1, "max": 5}; None if there is none.

    Raises: BadRow.
    """
    if given in (None, "", []):
        return None
    ends = given
    if isinstance(given, str):
        found = _SPAN.fullmatch(given)
        ends = found.groups() if found else [part.strip() for part in given.strip("[] ").split(",")]
    if isinstance(given, dict):
        ends = [given.get("min"), given.get("max")]
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError, OverflowError):
        low, high = 0.0, 0.0
    if not low < high:
        raise BadRow(f"`scale` is {shown(given)}: write the worst and the best value, like [1, 5]")
    return low, high


# Rows into the database ---------------------------------------------------------------------------


class RatingStore:
    """Writes the rated responses of one file into one project; remembers the raters it has met."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.raters = Raters(project)

    def store(self, rows: list[RatedRow]) -> Stored:
        """Write a batch in one transaction; what is there already is counted, not written."""
        stored = Stored()
        with transaction.atomic():
            # One importer at a time in a project: two would make the same rating twice.
            Project.objects.select_for_update(no_key=True).get(pk=self.project.pk)
            responses = self._responses(rows, stored)
            self.raters.find_own({(vote.kind, vote.rater) for row in rows for vote in row.votes})
            known = _known(set(responses))
            # This project's own ratings coming back are no reason to make a rater of that name.
            votes = []
            for index, (row, response) in enumerate(zip(rows, responses, strict=True)):
                for vote in row.votes:
                    own = self.raters.own.get((vote.kind, vote.rater), 0)
                    if known.get((response, own, vote.aspect)) == vote.says:
                        stored.known_votes += 1
                    else:
                        votes.append((index, response, vote))
            self.raters.learn({(vote.kind, vote.rater) for _index, _response, vote in votes})
            new: list[Rating] = []
            for index, response, vote in votes:
                key = response, self.raters.ids[vote.kind, vote.rater], vote.aspect
                if key not in known:
                    known[key] = vote.says
                    new.append(_rating_of(key, vote, rows[index]))
                elif known[key] == vote.says:
                    stored.known_votes += 1
                else:
                    said = rating_in_words(*known[key])
                    reason = f"rater {vote.rater!r} has said {said}, and here {vote.in_words}"
                    stored.bad_votes.append((index, reason))
            Rating.objects.bulk_create(new)
            stored.ratings = len(new)
        return stored

    def _responses(self, rows: list[RatedRow], stored: Stored) -> list[int]:
        """The id of each row's response, made where it is new."""
        hashes = [(content_hash(row.prompt), content_hash(row.response)) for row in rows]
        prompts, known = keep_prompts(
            self.project,
            {key: row.prompt for (key, _response), row in zip(hashes, rows, strict=True)},
        )
        places = [
            (prompts[prompt], response, row.model)
            for (prompt, response), row in zip(hashes, rows, strict=True)
        ]
        wanted = {place: row.response for place, row in zip(places, rows, strict=True)}
        found, n_new = keep_responses(wanted, known, {})
        stored.responses += n_new
        return [found[place] for place in places]


Key = tuple[int, int, str]
"""Response, rater, aspect."""


def _known(responses: set[int]) -> dict[Key, Says]:
    """What is said now of these responses."""
    rows = Rating.objects.current().filter(response__in=responses)
    return {
        (response, rater, aspect): tuple(says)
        for response, rater, aspect, *says in rows.values_list(
            "response", "rater", "aspect", "desirable", "value", "low", "high"
        )
    }


def _rating_of(key: Key, vote: GivenRating, row: RatedRow) -> Rating:
    response, rater, aspect = key
    low, high = vote.scale or (None, None)
    return Rating(
        response_id=response,
        rater_id=rater,
        aspect=aspect,
        desirable=vote.desirable,
        value=vote.value,
        low=low if vote.value is not None else None,
        high=high if vote.value is not None else None,
        rationale=vote.rationale,
        external_id=row.external_id,
        metadata=row.metadata,
        seconds=vote.seconds,
        created_at=vote.created_at or timezone.now(),
    )
