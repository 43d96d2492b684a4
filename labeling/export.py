"""Labels out: a project's comparisons with their answers, streamed in the form that is asked for.

Rows are read in chunks by primary key, so memory does not grow with the project, no transaction
stays open behind a slow download, and each chunk is a handful of queries.
"""

import gzip
import importlib.util
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from django.db.models import JSONField, QuerySet, TextField, Value
from django.db.models.functions import Cast
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.aggregation import (
    CLASSES,
    SOURCES,
    VALUES,
    counted_kind,
    decide,
    margin,
    soft_label,
)
from labeling.export_forms import (
    LABEL_COLUMNS,
    VOTE_COLUMNS,
    Answer,
    Label,
    Labeled,
    Order,
    argilla,
    as_time,
    csv_lines,
    interchange,
    interchange_set,
    label_record,
    label_row,
    label_studio,
    pair,
    vote_row,
)
from labeling.imports.sets import MAX_SET
from labeling.judgements import choice_of
from labeling.models import (
    Choice,
    Comparison,
    Decision,
    Preference,
    Project,
    Ranking,
    Rater,
    Rating,
)
from labeling.posteriors import MISSING, can_weigh, posteriors
from labeling.rated import judged_by_content, kto_records, rated_records

RATED = ("ratings", "trl-kto")
"""Forms of judgements of single responses; the others are of comparisons."""
FORMATS = ("jsonl", "trl", "trl-chat", *RATED, "csv", "parquet", "label-studio", "argilla")
LABELS = ("human", "ai", "mixed")
AGGREGATES = ("votes", "majority", "dawid-skene", "soft")
SUFFIXES = {"csv": ".csv", "parquet": ".parquet", "label-studio": ".json"}  # others .jsonl
CHUNK = 500
LEFT_OUT = {
    "gold_set": _lazy("comparisons of training, qualification and check sets"),
    "gold": _lazy("control questions with a known answer"),
    "ties": _lazy("ties"),
    "disputed": _lazy("disputed: no choice has the most votes"),
    "both_bad": _lazy("both responses bad"),
    "unparsed": _lazy("only unreadable AI verdicts"),
    "unlabeled": _lazy("without a label of this kind"),
    "same_text": _lazy("both responses have the same text"),
    "ai_verdicts": _lazy("verdicts of AI judges: labels of people were asked for"),
    "human_preferences": _lazy("answers of people: labels of AI judges were asked for"),
    "unparsed_verdicts": _lazy("unreadable AI verdicts: this form has no place for them"),
    "rankings": _lazy(
        "rankings that no present answer follows from, or of sets that are not whole"
    ),
    "neutral": _lazy("ratings exactly in the middle of their scale: neither good nor bad"),
    "aspects": _lazy("ratings of an aspect: this form has place for the whole alone"),
    "rated_by_judges": _lazy("ratings by AI judges: labels of people were asked for"),
    "rated_by_people": _lazy("ratings by people: labels of AI judges were asked for"),
}


class ExportProblem(Exception):
    """Why nothing can be exported, in one line."""


@dataclass
class ExportReport:
    """What went out: rows of the file, and what did not become one, by reason (see LEFT_OUT)."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    comparisons: int = 0  # read so far


def default_aggregate(form: str) -> str:
    """Pairs for training are one per comparison; every other form keeps the votes."""
    return "majority" if form in ("trl", "trl-chat") else "votes"


def suffix_of(form: str) -> str:
    return SUFFIXES.get(form, ".jsonl")


def refuse_missing_library(form: str, aggregate: str = "") -> None:
    """Raises: ExportProblem for parquet without pyarrow, for dawid-skene without numpy, for ratings
    made into one."""
    if form in RATED and aggregate not in ("", "votes"):
        raise ExportProblem(
            _("Ratings go out as they were given: choose that each answer counts, or another form.")
        )
    if aggregate == "dawid-skene" and not can_weigh():
        raise ExportProblem(_(MISSING))
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ExportProblem(
            _(
                "Parquet files need pyarrow, which is not installed here: "
                "pip install '.[parquet]', or take jsonl or csv."
            )
        )


def export_file(
    project: Project,
    path: Path,
    form: str,
    labels: str = "mixed",
    aggregate: str = "",
    on_progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Write a file, gzipped if its name ends in .gz. Only a whole file ever bears the name, and
    none is written when there is no row for it.

    Raises: ExportProblem; OSError.
    """
    report = ExportReport()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    if path.exists() and not path.is_file():  # a device or a pipe is written to, never replaced
        part = path
    try:
        with part.open("wb") as file:
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else None
            to: BinaryIO | gzip.GzipFile = packed or file
            for block in export_rows(project, form, labels, aggregate, report):
                to.write(block)
                if on_progress is not None:
                    on_progress(report)
            if packed is not None:
                packed.close()
        if report.rows and part != path:
            part.replace(path)
    finally:  # a key pressed or a full disk: nobody else would remove it
        if part != path:
            with suppress(FileNotFoundError):
                part.unlink()
    return report


def export_rows(
    project: Project,
    form: str,
    labels: str = "mixed",
    aggregate: str = "",
    report: ExportReport | None = None,
) -> Iterator[bytes]:
    """The export as blocks of bytes, one for each chunk of comparisons.

    Args: form, labels, aggregate: of FORMATS, LABELS, AGGREGATES; no aggregate is the form's own
        (`default_aggregate`). report: filled while the blocks are taken.
    Raises: ExportProblem before the first block.
    """
    aggregate = aggregate or default_aggregate(form)
    if form not in FORMATS or labels not in LABELS or aggregate not in AGGREGATES:
        raise ValueError(f"no such export: {form}, {labels}, {aggregate}")
    refuse_missing_library(form, aggregate)
    report = ExportReport() if report is None else report
    if form in RATED:
        return _rated_blocks(project, form, labels, report)
    return _blocks(project, form, labels, aggregate, report)


def _blocks(
    project: Project, form: str, labels: str, aggregate: str, report: ExportReport
) -> Iterator[bytes]:
    crowd = Crowd(project, labels) if aggregate == "dawid-skene" else None
    # The interchange form has a record for each response set; elsewhere its pairs are like others.
    alone = {"response_set": None} if form == "jsonl" else {}
    columns = _ANSWER_COLUMNS[:_N_OF_PAIRS] if form in ("trl", "trl-chat") else _ANSWER_COLUMNS
    chunks = (
        [record for row in rows for record in _records(row, form, labels, aggregate, crowd, report)]
        for rows in _chunks(project.comparisons.filter(**alone), report, columns)
    )
    if form == "csv":
        yield from _csv(chunks, aggregate, report)
    elif form == "parquet":
        yield from _parquet(chunks, aggregate, report)
    elif form == "label-studio":
        yield from _json_array(chunks, report)
    else:
        for records in chunks:
            yield from _json_lines(records, report)
        if form == "jsonl":
            for sets in _response_sets(project, report):
                records = [
                    record
                    for rows, orders in sets
                    for record in _set_records(rows, orders, labels, aggregate, crowd, report)
                ]
                yield from _json_lines(records, report)


def _rated_blocks(
    project: Project, form: str, labels: str, report: ExportReport
) -> Iterator[bytes]:
    """Judgements of single responses; with "mixed" those of people and of judges."""
    current = Rating.objects.current().of_project(project)
    wanted = {"human": Rater.Kind.PERSON, "ai": Rater.Kind.JUDGE}.get(labels)
    if wanted:
        others = current.exclude(rater__kind=wanted).count()
        current = current.filter(rater__kind=wanted)
        if others:
            reason = "rated_by_judges" if labels == "human" else "rated_by_people"
            report.left_out[reason] += others
    for rows in judged_by_content(project, current, with_texts=True, whole=True):
        records: list[dict[str, Any]] = []
        for row in rows:
            for record in kto_records(row) if form == "trl-kto" else rated_records(row):
                if isinstance(record, str):
                    report.left_out[record] += 1
                else:
                    records.append(record)
        yield from _json_lines(records, report)


# --- what a comparison becomes -----------------------------------------------------------------


def _records(
    row: Labeled,
    form: str,
    labels: str,
    aggregate: str,
    crowd: "Crowd | None",
    report: ExportReport,
) -> Iterator[dict[str, Any]]:
    """The records of one comparison; what becomes none is counted."""
    if form == "jsonl":
        yield _interchange(row, labels, aggregate, crowd, report)
        return
    left_out = report.left_out
    if row.purpose != Comparison.Purpose.WORK:
        left_out["gold_set"] += 1
    elif form in ("trl", "trl-chat"):
        if row.gold:  # as in training/datasets.py
            left_out["gold"] += 1
            return
        for label in labels_of(row, labels, aggregate, crowd):
            if label.choice not in (Choice.A, Choice.B):
                left_out[_REASONS.get(label.choice, label.choice)] += 1
            elif row.text_a == row.text_b:
                left_out["same_text"] += 1
            else:
                yield pair(row, label, is_chat=form == "trl-chat")
    elif aggregate == "votes":
        yield from _with_votes(row, form, labels, report)
    else:
        label = aggregated(row, labels, aggregate, crowd)
        if label.choice not in CLASSES:
            left_out[label.choice] += 1
        elif form == "argilla" and row.text_a == row.text_b:
            left_out["same_text"] += 1
        elif form in ("csv", "parquet"):
            yield label_row(row, label)
        else:
            yield (label_studio if form == "label-studio" else argilla)(row, [], label)


_REASONS = {Choice.TIE: "ties"}


def _interchange(
    row: Labeled, labels: str, aggregate: str, crowd: "Crowd | None", report: ExportReport
) -> dict[str, Any]:
    record = interchange(row, _wanted(row, labels, report), with_decision=labels != "ai")
    if aggregate != "votes":
        record["label"] = label_record(aggregated(row, labels, aggregate, crowd))
    return record


def _set_records(
    rows: list[Labeled],
    orders: list[Order],
    labels: str,
    aggregate: str,
    crowd: "Crowd | None",
    report: ExportReport,
) -> Iterator[dict[str, Any]]:
    """One record for a response set; one for each pair where somebody has deleted some of them."""
    orders = [order for order in orders if labels in ("mixed", SOURCES[order.kind])]
    records = [_interchange(row, labels, aggregate, crowd, report) for row in rows]
    n = len({key for row in rows for key in (row.key_a, row.key_b)})
    is_work = all(row.purpose == Comparison.Purpose.WORK for row in rows)
    if 2 <= n <= MAX_SET and len(rows) == n * (n - 1) / 2 and is_work:
        record, n_left_out = interchange_set(rows, records, orders)
        yield record
    else:
        n_left_out = len(orders)
        yield from records
    if n_left_out:
        report.left_out["rankings"] += n_left_out


def _with_votes(
    row: Labeled, form: str, labels: str, report: ExportReport
) -> Iterator[dict[str, Any]]:
    """The forms that keep votes apart."""
    if form in ("csv", "parquet"):
        kind = counted_kind((answer.kind for answer in row.answers), labels)
        if not kind:
            report.left_out["unlabeled"] += 1
        yield from (vote_row(row, answer) for answer in row.answers if answer.kind == kind)
        return
    wanted = _wanted(row, labels, report)
    answers = [answer for answer in wanted if answer.choice != Choice.UNPARSED]
    if len(answers) < len(wanted):
        report.left_out["unparsed_verdicts"] += len(wanted) - len(answers)
    if form == "label-studio":
        yield label_studio(row, answers, None)
    elif row.text_a == row.text_b:
        report.left_out["same_text"] += 1  # Argilla's form has no place for the models
    else:
        yield argilla(row, answers, None)


def _wanted(row: Labeled, labels: str, report: ExportReport) -> list[Answer]:
    """The answers of the wanted kind, both of them for "mixed"; the others are counted."""
    if labels == "mixed":
        return row.answers
    wanted = [answer for answer in row.answers if SOURCES[answer.kind] == labels]
    if len(wanted) < len(row.answers):
        reason = "ai_verdicts" if labels == "human" else "human_preferences"
        report.left_out[reason] += len(row.answers) - len(wanted)
    return wanted


def labels_of(
    row: Labeled, labels: str, aggregate: str, crowd: "Crowd | None" = None
) -> list[Label]:
    """The labels of a comparison: one, or with "votes" one for each answer that counts.

    A lead's decision stands for all of them, except where AI labels alone are asked for.
    """
    if aggregate != "votes" or (row.decision and labels != "ai"):
        return [aggregated(row, labels, aggregate, crowd)]
    kind = counted_kind((answer.kind for answer in row.answers), labels)
    if not kind:
        return [Label("votes", "unlabeled", "", 0.5, 0.0, 0)]
    return [_vote(answer) for answer in row.answers if answer.kind == kind]


def _vote(answer: Answer) -> Label:
    if answer.choice == Choice.UNPARSED:
        return Label("votes", "unparsed", SOURCES[answer.kind], 0.5, 0.0, 1, answer.rater)
    return Label(
        rule="votes",
        choice=answer.choice,
        source=SOURCES[answer.kind],
        prob_a=soft_label([(answer.choice, answer.prob_a)]),
        margin=margin(answer.choice, [(answer.choice, answer.strength)]),
        n_raters=1,
        rater=answer.rater,
    )


def aggregated(row: Labeled, labels: str, aggregate: str, crowd: "Crowd | None" = None) -> Label:
    """The one label of a comparison under a rule; its choice may be a reason why there is none."""
    if row.decision and labels != "ai":
        choice = row.decision["choice"]
        strength = margin(choice, [(choice, row.decision.get("strength"))])
        return Label("decision", choice, "human", VALUES[choice], strength, 1)
    outcome = decide([(a.kind, a.choice, a.rater_id) for a in row.answers], labels)
    if not outcome.raters:
        return Label(aggregate, outcome.outcome, outcome.source, 0.5, 0.0, 0)
    counted = [
        a for a in row.answers if SOURCES[a.kind] == outcome.source and a.choice != Choice.UNPARSED
    ]
    prob_a = soft_label([(a.choice, a.prob_a) for a in counted])
    distance = 0.0
    if aggregate == "majority":
        choice = Choice.TIE if outcome.outcome == "ties" else outcome.outcome
        distance = margin(choice, [(a.choice, a.strength) for a in counted])
    elif aggregate == "soft":
        is_bad = all(a.choice == Choice.BOTH_BAD for a in counted)
        choice = Choice.BOTH_BAD if is_bad else choice_of(prob_a)
    elif crowd is not None:
        choice, prob_a = crowd.label(row.pk)
    else:
        raise ValueError("dawid-skene needs the whole crowd")
    return Label(aggregate, str(choice), outcome.source, prob_a, distance, len(counted))


class Crowd:
    """Every counted vote of a project, weighed by Dawid and Skene's model.

    Args: current: the answers that count at all; None: all current ones.
    """

    def __init__(self, project: Project, labels: str, current: QuerySet | None = None):
        self.posteriors = posteriors(project, labels, current)

    def label(self, comparison: int) -> tuple[str, float]:
        """The likeliest choice and the probability that A is better; "disputed" where A and B are
        equally likely and likelier than all else, or where the votes came too late to be weighed.
        """
        q = self.posteriors.of(comparison)
        if q is None:
            return "disputed", 0.5
        prob_a = sum(p * VALUES[choice] for choice, p in q.items())
        best = max(q.values())
        winners = [choice for choice, p in q.items() if best - p < 1e-9]
        return (winners[0] if len(winners) == 1 else "disputed"), prob_a


# --- reading -----------------------------------------------------------------------------------

_COLUMNS = (
    "pk",
    "external_id",
    "content_hash",
    "prompt__messages",
    "response_a__messages",
    "response_b__messages",
    "response_a",
    "response_b",
    "response_a__content_hash",
    "response_b__content_hash",
    "response_a__source",
    "response_b__source",
    "response_a__author__name",
    "response_b__author__name",
    "response_set",
    "gold",
    "purpose",
    "labels_wanted",
    "priority",
    "metadata",
    "prompt__content_hash",
    "response_a__n_chars",
    "response_b__n_chars",
)
_ANSWER_COLUMNS = (
    "comparison_id",
    "rater__name",
    "rater_id",
    "rater__kind",
    "choice",
    "strength",
    "prob_a",
    "prob_a_ab",
    "prob_a_ba",
    "rationale",
    # As text: most are empty, and need not be decoded.
    Cast("tags", TextField()),
    Cast("aspects", TextField()),
    "seconds",
    "shown_first",
    "inclusion_probability",
    "audit",
    "created_at",
    "ranking",
)
_N_OF_PAIRS = 7  # of these columns, those from which pairs for training are made
_N_WITH_TAGS = _ANSWER_COLUMNS.index("seconds") - 1
SETS = 50
"""Response sets that are read at a time, of up to 36 pairs each."""


def _chunks(
    comparisons: QuerySet, report: ExportReport, columns: tuple[Any, ...] = _ANSWER_COLUMNS
) -> Iterator[list[Labeled]]:
    """These comparisons with their current answers, in the order of their keys."""
    last = 0
    while True:
        some = comparisons.filter(pk__gt=last).order_by("pk")[:CHUNK]
        rows = _labeled(some, report, columns)
        if not rows:
            return
        last = rows[-1].pk
        yield rows


def labeled_by_content(
    project: Project,
    current: QuerySet,
    *,
    with_texts: bool,
    with_tags: bool,
    with_aspects: bool = False,
) -> Iterator[list[Labeled]]:
    """Every comparison of a project, a chunk at a time, in the order of its content's hash: the
    same in every database.

    Args: current: the answers that count at all. with_texts: otherwise prompt and responses are
        None. with_tags, with_aspects: otherwise those of answers are empty; what a pair for
        training is made without is never read.
    """
    texts = ("prompt__messages", "response_a__messages", "response_b__messages")
    of_comparison = tuple(
        Value(None, JSONField()) if name in texts and not with_texts else name for name in _COLUMNS
    )
    n_columns = _N_WITH_TAGS if with_tags else _N_OF_PAIRS
    of_answer = _ANSWER_COLUMNS[: _N_WITH_TAGS + 1 if with_aspects else n_columns]
    report, last = ExportReport(), ""
    while True:
        some = project.comparisons.filter(content_hash__gt=last).order_by("content_hash")[:CHUNK]
        rows = _labeled(some, report, of_answer, of_comparison, current)
        if not rows:
            return
        last = rows[-1].content_hash
        yield rows


def _labeled(
    comparisons: QuerySet,
    report: ExportReport,
    columns: tuple[Any, ...] = _ANSWER_COLUMNS,
    of_comparison: tuple[Any, ...] = _COLUMNS,
    current: QuerySet | None = None,
) -> list[Labeled]:
    rows = {values[0]: Labeled(*values) for values in comparisons.values_list(*of_comparison)}
    if rows:
        current = Preference.objects.current() if current is None else current
        answers = current.filter(comparison__in=list(rows)).order_by("pk")
        for comparison, *values in answers.values_list(*columns):
            answer = Answer(*values)
            answer.tags = _decoded(answer.tags, [])
            answer.aspects = _decoded(answer.aspects, {})
            rows[comparison].answers.append(answer)
        for comparison, decision in _decisions(Decision.objects.filter(comparison__in=list(rows))):
            rows[comparison].decision = decision
        report.comparisons += len(rows)
    return list(rows.values())


def _decoded(text: Any, empty: Any) -> Any:
    return empty if text in (None, "[]", "{}") else json.loads(text)


def _decisions(decisions: QuerySet) -> Iterator[tuple[int, dict[str, Any]]]:
    current = decisions.filter(superseded_at=None).values_list(
        "comparison_id", "choice", "strength", "note", "decided_by__username", "created_at"
    )
    for comparison, choice, strength, note, decided_by, created_at in current:
        decision = {
            "choice": choice,
            "strength": strength,
            "note": note,
            "decided_by": decided_by,
            "created_at": as_time(created_at),
        }
        yield comparison, {key: value for key, value in decision.items() if value}


def _response_sets(
    project: Project, report: ExportReport
) -> Iterator[list[tuple[list[Labeled], list[Order]]]]:
    """The pairs of each set of responses that are ranked at once, and its current rankings."""
    last = 0
    while True:
        found = project.response_sets.filter(pk__gt=last).order_by("pk")
        pks = list(found.values_list("pk", flat=True)[:SETS])
        if not pks:
            return
        last = pks[-1]
        sets: dict[int, tuple[list[Labeled], list[Order]]] = {pk: ([], []) for pk in pks}
        for row in _labeled(
            project.comparisons.filter(response_set__in=pks).order_by("pk"), report
        ):
            sets[row.set_pk or 0][0].append(row)
        orders = Ranking.objects.filter(response_set__in=pks, superseded_at=None).order_by("pk")
        for the_set, *values in orders.values_list(
            *("response_set", "pk", "rater__name", "rater__kind", "order"),
            *("rationale", "seconds", "created_at"),
        ):
            sets[the_set][1].append(Order(*values))
        yield list(sets.values())


# --- bytes -------------------------------------------------------------------------------------

_encode = json.JSONEncoder(ensure_ascii=False).encode


def _json_lines(records: list[dict[str, Any]], report: ExportReport) -> Iterator[bytes]:
    if records:
        report.rows += len(records)
        yield "".join([f"{_encode(record)}\n" for record in records]).encode()


def _json_array(chunks: Iterator[list[dict[str, Any]]], report: ExportReport) -> Iterator[bytes]:
    """One array, as Label Studio's own import wants it."""
    for records in chunks:
        if records:
            start = ",\n" if report.rows else "[\n"
            report.rows += len(records)
            yield (start + ",\n".join(map(_encode, records))).encode()
    yield b"\n]\n" if report.rows else b"[]\n"


def _csv(
    chunks: Iterator[list[dict[str, Any]]], aggregate: str, report: ExportReport
) -> Iterator[bytes]:
    columns = VOTE_COLUMNS if aggregate == "votes" else LABEL_COLUMNS
    yield csv_lines(columns, [], head=True)
    for records in chunks:
        report.rows += len(records)
        yield csv_lines(columns, records, head=False)


PARQUET_TYPES = {
    "float64": ("prob_a", "prob_a_ab", "prob_a_ba", "seconds", "inclusion_probability", "margin"),
    "int16": ("strength",),
    "int32": ("n_raters",),
    "bool_": ("audit",),
}
PARQUET_ROWS = 20_000
"""Rows of a row group: that many are held at a time."""


def _parquet(
    chunks: Iterator[list[dict[str, Any]]], aggregate: str, report: ExportReport
) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    columns = VOTE_COLUMNS if aggregate == "votes" else LABEL_COLUMNS
    types = {name: kind for kind, names in PARQUET_TYPES.items() for name in names}
    schema = pyarrow.schema(
        [(name, getattr(pyarrow, types.get(name, "string"))()) for name in columns]
    )
    drain = _Drain()
    held: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(drain, schema, compression="zstd") as writer:
        for records in chunks:
            report.rows += len(records)
            held += records
            if len(held) >= PARQUET_ROWS:
                writer.write_table(pyarrow.Table.from_pylist(held, schema))
                held = []
                yield drain.taken()
        if held:
            writer.write_table(pyarrow.Table.from_pylist(held, schema))
    yield drain.taken()


class _Drain(io.RawIOBase):
    """A file that is only ever written forward; what was written is taken out of it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        self.place += len(self.parts[-1])
        return len(self.parts[-1])

    def taken(self) -> bytes:
        parts, self.parts = self.parts, []
        return b"".join(parts)
