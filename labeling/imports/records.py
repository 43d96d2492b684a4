"""Rows of the interchange form that come by themselves, without a file: what became of each."""

from dataclasses import dataclass, field
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from labeling.imports.importing import note_decisions
from labeling.imports.interchange import BadRow, Row, check_storable, parse_row
from labeling.imports.rows import RowStore, Stored, comparison_hash
from labeling.models import Comparison, Project, content_hash


@dataclass
class RowResult:
    result: str  # created | duplicate | rejected
    comparison: int | None = None
    reason: str = ""
    left_out: list[str] = field(default_factory=list)  # votes that were not kept, and why


@transaction.atomic
def store_records(
    project: Project,
    records: list[Any],
    labels_per_comparison: int | None = None,
    actor: Any = None,
) -> tuple[list[RowResult], Stored]:
    """Keep what can be kept, all in one transaction; (what became of each, counts). `actor` is
    named in the change log for decisions of leads among them."""
    results = [RowResult("rejected") for _record in records]
    rows: list[Row] = []
    places: list[int] = []  # of each row among the records
    for place, record in enumerate(records):
        try:
            rows.append(_row(record))
            places.append(place)
        except BadRow as problem:
            results[place].reason = str(problem)
    # The store locks it too; earlier, so that nobody adds the same rows between the two questions.
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    hashes = [_hash(row) for row in rows]
    known = _ids(project, hashes)
    stored = RowStore(project, labels_per_comparison).store(rows)
    note_decisions(project, actor, stored.decisions, _("rows of a program"))
    ids = _ids(project, hashes)
    for place, row, key in zip(places, rows, hashes, strict=True):
        result = results[place]
        result.result = "duplicate" if key in known else "created"
        result.comparison = ids[key]
        result.left_out += row.bad_votes
        known[key] = ids[key]  # a second row of the same content
    for index, reason in stored.bad_votes:
        results[places[index]].left_out.append(reason)
    return results, stored


def _row(record: Any) -> Row:
    if not isinstance(record, dict):
        raise BadRow("this is no object")
    check_storable(record)
    return parse_row(record)


def _hash(row: Row) -> str:
    return comparison_hash(
        content_hash(row.prompt),
        (content_hash(row.response_a), row.model_a),
        (content_hash(row.response_b), row.model_b),
    )


def _ids(project: Project, hashes: list[str]) -> dict[str, int]:
    found = Comparison.objects.filter(project=project, content_hash__in=set(hashes))
    return dict(found.values_list("content_hash", "pk"))
