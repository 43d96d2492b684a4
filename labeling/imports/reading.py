"""Files to records: JSON lines, JSON, CSV, Parquet, each also gzipped, and data sets of the hub.

Everything streams: one record is held at a time, whatever the size of the file. What cannot be read
comes back as a record with a problem, so that it can be counted and written down.
"""

import codecs
import csv
import gzip
import importlib.util
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from labeling.imports.parquet_bounds import (
    MAX_IN_A_LIST,
    Unbelievable,
    check_footer,
    unpacked_sizes,
)
from labeling.spreadsheets import unguarded

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""A longer record is rejected: a preference about two responses has no use for it."""
MAX_REJECT_CHARS = 100_000
"""So much of a rejected record is kept in the reject file."""
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
UNPACKS_TO_TOO_MUCH = "the file unpacks to more than is allowed; what follows is left out"
PARQUET_ROWS = 16
"""Rows that are unpacked at a time. A column that names one long text in every row is tiny on the
disk, and so many times that text in memory."""
BYTES_OF_A_ROW = 64
"""What a row counts at least: a billion empty ones pack to nothing."""

csv.field_size_limit(MAX_RECORD_BYTES)


class FileProblem(Exception):
    """The file as a whole cannot be read; the message is one line for the person who gave it."""


@dataclass(slots=True)
class Record:
    """One record of a file, or what was wrong with it."""

    line: int  # line of the file; in a JSON array the place of the record, from 1
    text: str
    value: Any = None
    problem: str = ""


@dataclass
class Progress:
    """How far into the file the reader is, in bytes of the file as it lies on disk."""

    done: int = 0
    total: int = 0


def read_records(
    source: str | Path, progress: Progress | None = None, max_bytes: int | None = None
) -> Iterator[Record]:
    """Every record of a file or of `hf://owner/name[/config]:split`, in order.

    `max_bytes` bounds what a gzipped or a Parquet file may unpack to.
    Raises: FileProblem if nothing at all can be read.
    """
    progress = progress or Progress()
    if str(source).startswith("hf://"):
        yield from _hub_records(str(source))
        return
    path = Path(source)
    try:
        progress.total = path.stat().st_size
        with path.open("rb") as raw:
            unpacked = _Unpacked(raw, progress, max_bytes)
            stream = io.BufferedReader(unpacked, 1 << 18)
            reader = _reader_for(path, stream)
            yield from reader(stream) if reader != _parquet_records else reader(stream, max_bytes)
            if unpacked.failure:
                yield Record(line=0, text="", problem=unpacked.failure)
    except OSError as error:
        raise FileProblem(f"{path.name} cannot be read: {error.strerror or error}") from error


class _Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked if it is gzipped (by its content: names lie).

    A damaged or too large archive ends here like a file that ends, and says so in `failure`: what
    was read before the damage is still worth having.
    """

    def __init__(self, raw: BinaryIO, progress: Progress, max_bytes: int | None):
        self.failure = ""
        self.raw_file, self.progress, self.left = raw, progress, max_bytes
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        self.stream: Any = gzip.GzipFile(fileobj=raw) if is_gzip else raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.failure:
            return 0
        try:
            # read1 gives what is there; read would wait for more and lose it to the error
            data = self.stream.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.failure = "the gzip file is damaged or ends too early; what follows is lost"
            return 0
        self.progress.done = self.raw_file.tell()
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                self.failure = UNPACKS_TO_TOO_MUCH
                return 0
        buffer[: len(data)] = data
        return len(data)


def _reader_for(path: Path, stream: io.BufferedReader) -> Callable[..., Iterator[Record]]:
    start = stream.peek(4)[:4]
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise FileProblem("this is UTF-16 text: save it as UTF-8 and import it again")
    suffix = kind_of(path.name)
    if suffix == ".parquet" or start == b"PAR1":
        return _parquet_records
    if suffix == ".csv":
        return _csv_records
    if suffix == ".jsonl":
        return _json_lines
    if suffix == ".json":
        return _json_values
    if stream.peek(256)[:256].removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"[", b"{"):
        return _json_values
    raise FileProblem(
        f"{path.name} is of no known kind: give {', '.join(SUFFIXES)}, each also with .gz"
    )


def kind_of(name: str) -> str:
    """The suffix that says what is in a file, without .gz: ".jsonl", ".json", ".csv", …"""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return {".ndjson": ".jsonl", ".tsv": ".csv"}.get(suffix, suffix)


def parse_json(text: str) -> Any:
    """A JSON value, by the book: NaN and Infinity are not JSON and no database takes them.

    Raises: ValueError with a short reason.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _json_record(line: int, data: bytes) -> Record:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Record(
            line,
            shortened(data.decode(errors="backslashreplace")),
            problem=f"not valid UTF-8 at byte {error.start + 1}",
        )
    try:
        return Record(line, text, value=parse_json(text))
    except ValueError as error:
        return Record(line, shortened(text), problem=str(error))


def shortened(text: str) -> str:
    """A record for the reject file: whole, or its beginning and how long it was."""
    if len(text) <= MAX_REJECT_CHARS + 100:  # what was shortened before is left alone
        return text
    return f"{text[:MAX_REJECT_CHARS]} … ({len(text):,} characters)"


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whole?); of a line beyond the limit only the beginning."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        whole = len(line) <= MAX_RECORD_BYTES
        if not whole:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(1 << 20)
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, whole


def _too_long(line: int, data: bytes) -> Record:
    start = data[:MAX_REJECT_CHARS].decode(errors="backslashreplace")
    return Record(
        line,
        f"{start} … (only the beginning is kept)",
        problem=f"longer than {MAX_RECORD_BYTES // 2**20} MiB",
    )


def _json_lines(stream: io.BufferedReader) -> Iterator[Record]:
    for number, line, whole in _lines(stream):
        if not whole:
            yield _too_long(number, line)
        elif line := line.strip():
            yield _json_record(number, line)


def _json_values(stream: io.BufferedReader) -> Iterator[Record]:
    """A .json file holds one array of records, or (as many do) one record a line."""
    start = stream.peek(256).removeprefix(codecs.BOM_UTF8).lstrip()
    if start[:1] == b"{" and _first_line_is_whole(stream):
        yield from _json_lines(stream)
    else:
        yield from _json_array(stream)


def _first_line_is_whole(stream: io.BufferedReader) -> bool:
    """True if a JSON value ends with the first line, as far as the read-ahead buffer shows it."""
    line = stream.peek(1 << 18).removeprefix(codecs.BOM_UTF8).lstrip()
    line, newline, _rest = line.partition(b"\n")
    if not newline:
        return True  # one long line
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def _json_array(stream: io.BufferedReader) -> Iterator[Record]:
    """The elements of one array, or values one after another, cut out by their brackets.

    Only the element at hand is in memory, and a broken one is rejected alone: a parser would stop
    there. Where the brackets themselves are wrong, the rest is one rejected record.
    """
    stream.read(len(codecs.BOM_UTF8) if stream.peek(3)[:3] == codecs.BOM_UTF8 else 0)
    element, number = bytearray(), 0
    depth, base = 0, 0  # base: 1 inside the outer array
    in_string, opened, closed, too_long = False, False, False, False

    def finished() -> Record | None:
        nonlocal number, too_long
        data, long = bytes(element).strip(), too_long
        element.clear()
        too_long = False
        if not data:
            return None
        number += 1
        return _too_long(number, data) if long else _json_record(number, data)

    while chunk := stream.read(1 << 16):
        place = 0
        while place < len(chunk):
            found = (_INSIDE if in_string else _OUTSIDE).search(chunk, place)
            end = found.end() if found else len(chunk)
            if too_long or len(element) + end - place > MAX_RECORD_BYTES:
                too_long = True
                del element[MAX_REJECT_CHARS:]
            else:
                element += chunk[place:end]
            place = end
            if found is None:
                continue
            sign = found.group()
            if in_string:
                if sign == b'"':
                    in_string = False
                elif place < len(chunk):  # an escaped character, whatever it is
                    element += chunk[place : place + 1]
                    place += 1
                else:
                    element += stream.read(1)
            elif sign == b'"':
                in_string = True
            elif sign in b"[{":
                if sign == b"[" and not opened and not element[:-1].strip():
                    opened, base = True, 1
                    element.clear()
                depth += 1
                opened = True
            elif sign in b"]}":
                depth -= 1
                if base and depth == 0:  # the end of the outer array
                    del element[-1:]
                    closed = True
                    if record := finished():
                        yield record
                    base = 0
                elif not base and depth <= 0:
                    depth = 0
                    if record := finished():
                        yield record
            elif depth == base:  # a comma between elements
                del element[-1:]
                if record := finished():
                    yield record
    if element.strip() or depth > 0:
        number += 1
        problem = "broken JSON: the file ends inside a record or a bracket is missing"
        if closed or not opened:
            problem = "broken JSON: something stands outside of the records"
        yield Record(number, shortened(element.decode(errors="backslashreplace")), problem=problem)


STRUCTURED = ("metadata", "preferences", "verdicts", "tags", "aspects", "decision")
STRUCTURED += ("responses", "rankings", "pairs", "ratings", "scale")
PLAIN = ("id", "model_a", "model_b", "rater", "rationale")  # text, whatever it looks like


def _csv_records(stream: io.BufferedReader) -> Iterator[Record]:
    too_long: list[int] = []

    def text_lines() -> Iterator[str]:
        for number, line, whole in _lines(stream):
            if not whole:
                too_long.append(number)
            yield (line if whole else line[:1000]).decode(errors="surrogateescape")

    lines = text_lines()
    header_line = next(lines, "")
    if not header_line.strip():
        return
    delimiter = max(",;\t", key=header_line.count)
    header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter))]
    if len(set(header)) != len(header):
        raise FileProblem("the CSV header names a column twice")
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        line = reader.line_num + 2
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(line, "", problem=f"broken CSV: {error}")
            continue
        if not cells:
            continue
        text = json.dumps(dict(zip(header, cells, strict=False)))
        if too_long:
            too_long.clear()
            problem = f"longer than {MAX_RECORD_BYTES // 2**20} MiB"
        elif len(cells) != len(header):
            problem = f"{len(cells)} cells under {len(header)} column names"
        elif any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
            problem = "not valid UTF-8"
        else:
            value = {name: cell for name, cell in zip(header, cells, strict=True) if name}
            yield Record(line, text, value=_unguarded(value))
            continue
        yield Record(line, shortened(text), problem=problem)


def _unguarded(row: dict[str, str]) -> dict[str, Any]:
    """The values of a row, without the guards of our own exports."""
    row = unguarded(row)
    return {name: _cell(name, cell) for name, cell in row.items()}


def _cell(name: str, cell: str) -> Any:
    """A cell as text, save where it holds the JSON of messages or of a structured column.

    A response that merely is JSON stays the text that a model wrote.
    """
    if cell[:1] not in ("[", "{") or name in PLAIN:
        return cell
    try:
        value = parse_json(cell)
    except ValueError:
        return cell
    if name in STRUCTURED:
        return value
    is_messages = (
        isinstance(value, list)
        and value
        and all(
            isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or "from" in turn)
            for turn in value
        )
    )
    return value if is_messages else cell


def _parquet_records(stream: io.BufferedReader, max_bytes: int | None = None) -> Iterator[Record]:
    if importlib.util.find_spec("pyarrow") is None:
        raise FileProblem(
            "Parquet files need pyarrow, which is not installed here: pip install '.[parquet]', "
            "or give the data as .jsonl or .csv"
        )
    import pyarrow
    import pyarrow.parquet

    # Parquet is read from its end, which an unpacked stream cannot do.
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        file.seek(0)
        try:
            check_footer(file)
            table = pyarrow.parquet.ParquetFile(file, thrift_container_size_limit=MAX_IN_A_LIST)
            sizes = unpacked_sizes(file, table.metadata)
            number, left = 0, max_bytes
            if left is not None and any(size > left for size in sizes):
                yield Record(line=0, text="", problem=UNPACKS_TO_TOO_MUCH)
                return
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                if left is not None:
                    left -= max(batch.nbytes, BYTES_OF_A_ROW * batch.num_rows)
                    if left < 0:
                        yield Record(line=0, text="", problem=UNPACKS_TO_TOO_MUCH)
                        return
                for value in batch.to_pylist():
                    number += 1
                    cells = {k: _cell(k, v) if isinstance(v, str) else v for k, v in value.items()}
                    yield _object_record(number, cells)
        except (pyarrow.ArrowException, Unbelievable, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileProblem(f"this is no readable Parquet file: {reason}") from error


def _hub_records(source: str) -> Iterator[Record]:
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:/([\w.-]+))?:([\w.\[\]:%-]+)", source)
    if not found:
        raise FileProblem(f"{source} is not of the form hf://owner/name[/config]:split")
    if importlib.util.find_spec("datasets") is None:
        raise FileProblem("hf:// needs the datasets library: pip install '.[train]'")
    import datasets

    name, config, split = found.groups()
    try:
        rows = iter(datasets.load_dataset(name, config, split=split, streaming=True))
        for number, value in enumerate(rows, 1):
            yield _object_record(number, dict(value))
    except Exception as error:  # the library raises whatever its network and parsers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise FileProblem(f"{source} cannot be read: {reason}") from error


def _object_record(number: int, value: Any) -> Record:
    value = _plain(value)
    return Record(number, json.dumps(value, ensure_ascii=False, default=str), value=value)


def _plain(value: Any) -> Any:
    """A value of a typed file as JSON would hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value
