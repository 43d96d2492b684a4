"""Judgements of single responses: keeping a judge's, and reading all of them, response by response.

A thumb is a scale with two places: on [0, 1] up is 1 and down is 0, and a value is where it lies
between the worst and the best of its scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Exists, FloatField, JSONField, OuterRef, QuerySet, Value
from django.utils import timezone

from labeling.export_forms import as_time
from labeling.models import Messages, Project, Rater, Rating, Response

CHUNK = 500
MIDDLE = 0.5
"""Above it a rating speaks for the response, below it against, where nobody gave a thumb."""


@dataclass(slots=True)
class Judgement:
    """One rater's current rating of a response, as it stands in the database."""

    rater: str
    kind: str
    aspect: str
    desirable: bool | None
    value: float | None
    low: float | None
    high: float | None
    created_at: datetime
    # Datasets are made without what follows, and it is not read for them.
    rationale: str = ""
    external_id: str = ""
    seconds: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> float:
        """Where it lies between the worst (0) and the best (1)."""
        if self.value is None or self.low is None or self.high is None:
            return 1.0 if self.desirable else 0.0
        return (self.value - self.low) / (self.high - self.low)

    def good(self, middle: float = MIDDLE) -> float:
        """1 if it calls the response good, 0 if bad; one half exactly between."""
        if self.desirable is not None:
            return 1.0 if self.desirable else 0.0
        return 0.5 if abs(self.place - middle) < 1e-9 else float(self.place > middle)


@dataclass(slots=True)
class Judged:
    """A response with the judgements of it."""

    pk: int
    prompt_hash: str
    text_hash: str
    model: str
    prompt: Messages
    response: Messages
    n_chars: int
    judgements: list[Judgement] = field(default_factory=list)


def judged_by_content(
    project: Project, current: QuerySet[Rating], *, with_texts: bool, whole: bool = False
) -> Iterator[list[Judged]]:
    """Every response of a project that bears one of these ratings, a chunk at a time, in the order
    of the hashes of prompt and response: the same in every database. Keys alone are held for all.

    Args: with_texts: otherwise prompt and response are None; whole: read what datasets do without.
    """
    rated = Response.objects.filter(
        Exists(current.filter(response=OuterRef("pk"))), prompt__project=project
    )
    order = ("prompt__content_hash", "content_hash", "source", "pk")
    keys = list(rated.order_by(*order).values_list("pk", flat=True))
    nothing = Value(None, JSONField())
    texts = ("prompt__messages", "messages") if with_texts else (nothing, nothing)
    columns = ("rater__name", "rater__kind", "aspect", "desirable", "value", "low", "high")
    columns += ("created_at",)
    if whole:
        columns += ("rationale", "external_id", "seconds", "metadata")
    else:
        columns += (Value(""), Value(""), Value(None, FloatField()), "metadata")
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        rows = {
            values[0]: Judged(*values)
            for values in Response.objects.filter(pk__in=chunk).values_list(
                "pk", "prompt__content_hash", "content_hash", "source", *texts, "n_chars"
            )
        }
        said = current.filter(response__in=chunk).order_by("pk")
        for response, *values in said.values_list("response", *columns):
            if response in rows:
                rows[response].judgements.append(Judgement(*values))
        yield [rows[pk] for pk in chunk if pk in rows]


# Out ----------------------------------------------------------------------------------------------


def rated_records(row: Judged) -> Iterator[dict[str, Any]]:
    """A response as lines of the form that docs/import.md calls `ratings`: one for each line that
    its ratings came from, so that ids and metadata come back to theirs."""
    lines: dict[str, list[Judgement]] = {}
    for one in row.judgements:
        lines.setdefault(repr((one.external_id, one.metadata)), []).append(one)
    for judgements in lines.values():
        first = judgements[0]
        record: dict[str, Any] = {
            "id": first.external_id,
            "prompt": row.prompt,
            "response": row.response,
            "model": row.model,
            "metadata": first.metadata,
        }
        record = {name: value for name, value in record.items() if value}
        yield record | {"ratings": [_record(one) for one in judgements]}


def _record(one: Judgement) -> dict[str, Any]:
    record: dict[str, Any] = {"rater": one.rater}
    if one.kind != Rater.Kind.PERSON:
        record["kind"] = one.kind
    if one.desirable is not None:
        record["desirable"] = one.desirable
    if one.value is not None:
        record |= {"value": one.value, "scale": [one.low, one.high]}
    for name in ("aspect", "rationale"):
        if getattr(one, name):
            record[name] = getattr(one, name)
    if one.seconds is not None:
        record["seconds"] = one.seconds
    return record | {"created_at": as_time(one.created_at)}


def kto_records(row: Judged) -> Iterator[dict[str, Any] | str]:
    """Each rating as TRL's unpaired form, or the reason (of LEFT_OUT) why it is none. Where nobody
    gave a thumb the label is derived from the value, and the line says so."""
    for one in row.judgements:
        if one.aspect:
            yield "aspects"
            continue
        if one.good() == 0.5:
            yield "neutral"
            continue
        record = {
            "prompt": row.prompt,
            "completion": row.response,
            "label": one.good() > 0.5,
        }
        if one.desirable is None:
            record["label_from"] = "rating"
        if row.model:
            record["model"] = row.model
        if one.external_id:
            record["id"] = one.external_id
        if one.metadata:
            record["metadata"] = one.metadata
        said = {name: value for name, value in _record(one).items() if name != "desirable"}
        yield record | said


# What a judge says --------------------------------------------------------------------------------


@transaction.atomic
def record_rating(
    rater: Rater, response: Response, value: float, *, low: float, high: float, rationale: str = ""
) -> Rating:
    """Keep a judge's rating of a response; one that it gave before is kept as superseded, and the
    same again is the same rating.

    Raises: ValueError for a rater that is no judge, or a response of another project.
    """
    if rater.kind != Rater.Kind.JUDGE:
        raise ValueError(f"{rater} is no AI judge")
    if rater.project_id != response.prompt.project_id:
        raise ValueError(f"{rater} judges another project")
    current = Rating.objects.current().filter(rater=rater, response=response, aspect="")
    known = current.filter(value=value, low=low, high=high).first()
    if known is not None:
        return known
    current.update(superseded_at=timezone.now())
    return Rating.objects.create(
        rater=rater, response=response, value=value, low=low, high=high, rationale=rationale
    )
