"""One file into one project, from its first byte to the report of what became of its lines."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from django.db import reset_queries

from labeling.changes import note_change
from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import RATED_FORMS, recognise, rows_of
from labeling.imports.interchange import BadRow, Row
from labeling.imports.rated import RatedRow, RatingStore
from labeling.imports.reading import (
    FileProblem,
    Progress,
    Record,
    read_records,
    shortened,
)
from labeling.imports.rows import BATCH_ROWS, RowStore
from labeling.models import Comparison, Project
from labeling.storage import storage_path

BATCH_CHARS = 2_000_000
SUMMED = (
    "created",
    "duplicates",
    "preferences",
    "verdicts",
    "unparsed",
    "decisions",
    "sets",
    "split_sets",
    "rankings",
    "leaks",
    "responses",
    "ratings",
    "known_votes",
)
RECOGNISED_BY = 50  # so many records decide on the form of a file


@dataclass
class ImportReport:
    """What became of a file: `rows + rejected` is the number of its records."""

    format: str = ""
    rows: int = 0  # records that became comparisons, votes or ratings
    created: int = 0  # comparisons that are new
    duplicates: int = 0  # comparisons that were there already
    rejected: int = 0
    reject_file: str | None = None
    preferences: int = 0  # new answers of people
    verdicts: int = 0  # new verdicts of AI judges
    unparsed: int = 0  # of these, the unreadable ones
    sets: int = 0  # lists of responses that people rank at once, new
    split_sets: int = 0  # lists kept as single pairs, since one of these was there already
    rankings: int = 0  # new rankings of such lists
    leaks: int = 0  # new comparisons in which a response names a model or its maker
    decisions: int = 0  # new decisions of leads
    responses: int = 0  # single responses with ratings that are new
    ratings: int = 0  # new judgements of single responses
    known_votes: int = 0  # preferences, verdicts and ratings that were there already
    rejected_votes: int = 0  # votes (or a purpose) left out of rows that stayed
    reasons: dict[str, int] = field(default_factory=dict)
    problem: str = ""  # one line, when the file as a whole could not be used
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def import_file(
    project: Project,
    source: str | Path,
    *,
    form: str = "auto",
    labels: Labels | None = None,
    labels_per_comparison: int | None = None,
    known_answers: str = Comparison.Purpose.WORK,
    reject_path: Path | None = None,
    max_bytes: int | None = None,
    on_progress: Callable[[ImportReport, Progress], None] | None = None,
    name: str = "",
    actor: Any = None,
) -> ImportReport:
    """Import a file, or `hf://owner/name[/config]:split`, and report on it.

    `name` is what the report calls the file, where it lies under another. `known_answers` is the
    purpose of comparisons with a known answer (`gold`) that name none themselves. Leads' decisions
    that the file brought are written into the change log as brought by `actor`, if there is one.

    Nothing is written twice, so an import that was cut off is simply run again. `on_progress` is
    called after every batch, outside of any transaction; what it raises ends the import.
    """
    report, progress, started = ImportReport(), Progress(), monotonic()
    rejects = _RejectFile(reject_path or default_reject_path(source), report)
    store: RowStore | RatingStore = RowStore(project, labels_per_comparison, known_answers)
    labels = labels or Labels()
    batch: list[tuple[Record, Any]] = []  # rows of one kind, Row or RatedRow
    n_chars = 0

    def write_batch() -> None:
        stored = store.store([row for _record, row in batch])
        # The development server keeps every query; of a million rows that would be the memory.
        reset_queries()
        for name in SUMMED:
            setattr(report, name, getattr(report, name) + getattr(stored, name))
        for index, reason in stored.bad_votes:
            rejects.add_vote(batch[index][0], reason)
        for index, reason in stored.rejected:
            rejects.add(batch[index][0], reason)
            report.rows -= 1
        batch.clear()
        report.seconds = round(monotonic() - started, 3)
        if on_progress is not None:
            on_progress(report, progress)

    try:
        with rejects:
            try:
                records = read_records(source, progress, max_bytes)
                report.format, records = form_of(records, form)
                if report.format in RATED_FORMS:
                    store = RatingStore(project)
                for record in records:
                    rows = _rows(record, report, labels, rejects)
                    batch += [(record, row) for row in rows]
                    n_chars += len(record.text)
                    if len(batch) >= BATCH_ROWS or n_chars >= BATCH_CHARS:
                        write_batch()
                        n_chars = 0
            except FileProblem as problem:
                report.problem = str(problem).replace(Path(source).name, name or Path(source).name)
                rejects.add(Record(line=0, text=""), report.problem)
            write_batch()
    finally:  # cut off as well: the batches before are kept
        report.seconds = round(monotonic() - started, 3)
        note_decisions(project, actor, report.decisions, name or Path(source).name)
    if not report.problem:
        report.problem = _nothing_done(report, rejects.first_reason, name or Path(source).name)
    return report


def note_decisions(project: Project, actor: Any, n: int, source: str) -> None:
    """One line in the change log for the decisions that came from elsewhere."""
    if actor is not None and n:
        note_change(project, actor, "import decisions", source, after={"decisions": n})


def form_of(records: Iterator[Record], form: str) -> tuple[str, Iterator[Record]]:
    """The form of a file by its first records, and all of them again; "unknown" if no form fits."""
    if form != "auto":
        return form, records
    first: list[Record] = []
    n_chars = 0
    for record in records:
        first.append(record)
        n_chars += len(record.text)
        if len(first) >= RECOGNISED_BY or n_chars > BATCH_CHARS:
            break
    return recognise([r.value for r in first if not r.problem]), chain(first, records)


def _rows(
    record: Record, report: ImportReport, labels: Labels, rejects: "_RejectFile"
) -> list[Row] | list[RatedRow]:
    """The rows of one record; what is wrong goes to the reject file."""
    if record.problem:
        rejects.add(record, record.problem)
        return []
    try:
        rows, problems = rows_of(record.value, report.format, labels)
    except BadRow as problem:
        rejects.add(record, str(problem))
        return []
    for reason in problems:
        rejects.add_vote(record, reason)
    for row in rows:
        for reason in row.bad_votes:
            rejects.add_vote(record, reason)
    report.rows += 1
    return rows


def _nothing_done(report: ImportReport, reason: str, name: str) -> str:
    """One line on a file that gave no row at all."""
    if report.rows:
        return ""
    if not report.rejected:
        return f"{name} is empty: no record in it"
    return f"none of the {report.rejected:,} records of {name} could be used: {reason}"


def default_reject_path(source: str | Path) -> Path:
    """Beside the input, or in storage where that folder takes no files."""
    if not str(source).startswith("hf://"):
        beside = Path(f"{source}.rejects.jsonl")
        with suppress(OSError):
            is_new = not beside.exists()
            with beside.open("a"):
                pass
            if is_new:
                beside.unlink()
            return beside
    digest = hashlib.sha256(str(source).encode(errors="replace")).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "_", Path(source).name)[:100]
    return storage_path(Path("rejects") / f"{name}.{digest}.rejects.jsonl")


class _RejectFile:
    """Rejected records, one JSON object a line: where, why, and what stood there."""

    def __init__(self, path: Path, report: ImportReport):
        self.path, self.report = path, report
        self.first_reason = ""
        self.reasons: Counter[str] = Counter()
        self.file: TextIO | None = None

    def __enter__(self) -> "_RejectFile":
        return self

    def __exit__(self, *_error: Any) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, record: Record, reason: str) -> None:
        """A record that could not become a row."""
        self.report.rejected += 1
        self._write({"line": record.line, "reason": reason, "text": record.text})

    def add_vote(self, record: Record, reason: str) -> None:
        """A vote that was left out of a record which otherwise became a row."""
        self.report.rejected_votes += 1
        self._write({"line": record.line, "reason": reason, "kept": True, "text": record.text})

    def _write(self, entry: dict[str, Any]) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self.report.reject_file = str(self.path)
        entry["text"] = shortened(entry["text"])
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.first_reason = self.first_reason or entry["reason"]
        self.reasons[general(entry["reason"])] += 1
        self.report.reasons = dict(self.reasons.most_common(50))


def general(reason: str) -> str:
    """A reason without its particulars, to count reasons by kind."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|(?<![\w.-])-?\d[\d.,]*", "…", reason)
