"""Names of erased people in files: uploads, what imports rejected, frozen datasets."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.utils import timezone

from labeling import shared
from labeling.imports.reading import FileProblem, Progress, read_records
from labeling.imports.uploads import FOLDER, max_unpacked_bytes
from labeling.models import ImportJob
from labeling.storage import storage_path

REJECTS = ".rejects.jsonl"
REJECTS_IN = (FOLDER, "rejects")
"""Those of the import page, and those of the command where they cannot lie beside their file."""
REJECTS_KEPT_DAYS = 30


def forget_in_files(names: set[str], pseudonym: str) -> None:
    """Take the names out of every file of the storage, and what the people wrote out of what
    imports left. To be called before the rows are renamed: options of imports say whose they are.

    A rejected line of theirs loses its content, an upload that names them is deleted. A frozen
    dataset keeps its rows and its name; its first line is written anew with the commit.
    """
    theirs = set(ImportJob.objects.filter(options__rater__in=names).values_list("path", flat=True))
    for path in _reject_files():
        if _upload_of(path) in theirs or any(_line_names(line, names) for line in _lines(path)):
            _redact(path, names, pseudonym, every=_upload_of(path) in theirs)
    for path in _uploads():
        if f"{FOLDER}/{path.name}" in theirs or _upload_names(path, names):
            path.unlink(missing_ok=True)
    _forget_in_datasets(names, pseudonym)


def traces_in_files(name: str) -> dict[str, int]:
    """{file: lines} in which a name still stands; of an upload or a dataset 1."""
    found = {}
    for path in _reject_files():
        if n := sum(_line_names(line, {name}) for line in _lines(path)):
            found[f"{path.parent.name}/{path.name}"] = n
    for path in _uploads():
        if _upload_names(path, {name}):
            found[f"{FOLDER}/{path.name}"] = 1
    for path in sorted(storage_path("datasets").glob("*.jsonl")):
        if _names(_head(path), {name}):
            found[f"datasets/{path.name}"] = 1
    return found


def forget_old_rejects() -> int:
    """Delete reject files of a month ago: who wanted to mend their lines has done so; how many."""
    limit = time.time() - REJECTS_KEPT_DAYS * 24 * 3600
    old = [path for path in _reject_files() if path.stat().st_mtime < limit]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


# --- what imports left -------------------------------------------------------------------------


def _reject_files() -> Iterator[Path]:
    for folder in REJECTS_IN:
        yield from sorted(storage_path(folder).glob(f"*{REJECTS}"))


def _upload_of(path: Path) -> str:
    return f"{FOLDER}/{path.name.removesuffix(REJECTS)}"


def _uploads() -> list[Path]:
    files = sorted(storage_path(FOLDER).glob("*"))
    return [path for path in files if path.is_file() and not path.name.endswith(REJECTS)]


def _upload_names(path: Path, names: set[str]) -> bool:
    """Whether a record names one of them; of what cannot be read, whether its text does."""
    try:
        return any(
            _says(record.text, names) if record.problem else _names(record.value, names)
            for record in read_records(path, Progress(), max_unpacked_bytes())
        )
    except FileProblem:
        return any(_says(line.decode(errors="replace"), names) for line in _lines(path))


def _line_names(line: bytes, names: set[str]) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:  # the worker was killed while it wrote
        return _says(line.decode(errors="replace"), names)
    return _text_names(entry["text"], names) or _says(entry["reason"], names)


def _text_names(text: str, names: set[str]) -> bool:
    """A record as it was sent; a long one was cut, and is no JSON any more."""
    try:
        return _names(json.loads(text), names)
    except ValueError:
        return _says(text, names)


def _redact(path: Path, names: set[str], pseudonym: str, *, every: bool) -> None:
    """Take the content out of the lines that name them, or of every line."""

    def redacted(line: bytes) -> bytes:
        if not every and not _line_names(line, names):
            return line
        try:
            entry = json.loads(line)
        except ValueError:
            return b""
        reason = _as_a_word(names).sub(pseudonym, entry["reason"])
        entry |= {"reason": reason, "text": "", "erased": True}
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"

    modified_at = path.stat().st_mtime
    _replace(path, map(redacted, _lines(path)))
    os.utime(path, (modified_at, modified_at))  # it goes when it would have gone


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _names(value: Any, names: set[str]) -> bool:
    """Whether one of the names is a whole value or key in it."""
    if isinstance(value, str):
        return value in names
    if isinstance(value, list):
        return any(_names(part, names) for part in value)
    if isinstance(value, dict):
        return any(_names(part, names) for pair in value.items() for part in pair)
    return False


def _says(text: str, names: set[str]) -> bool:
    return _as_a_word(names).search(text) is not None


def _as_a_word(names: set[str]) -> re.Pattern[str]:
    written = names | {json.dumps(name)[1:-1] for name in names}
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(written)))})(?!\w)")


# --- frozen datasets ---------------------------------------------------------------------------


def _forget_in_datasets(names: set[str], pseudonym: str) -> None:
    """Datasets of an older version name who labeled in their first line. What is trained on are the
    lines after it: their hash is kept, so that the file is known by it from now on."""
    datasets = _datasets()
    for path in sorted(set(datasets.values_list("path", flat=True))):
        rows = datasets.filter(path=path)
        if _names(list(rows.values_list("raters", flat=True)), names):
            shared.fetch_missing(path)
        file = storage_path(path)
        head = _head(file)
        if not _names(head["raters"] if head else [], names):
            continue
        whole, body = hashes(file)
        one = rows.first()
        if one is None or (one.body_sha256 or one.sha256) != (body if one.body_sha256 else whole):
            continue  # changed by somebody else: `traces` names it
        rows.update(body_sha256=body, redacted_at=timezone.now())
        told = [
            rater | {"rater": pseudonym} if rater.get("rater") in names else rater
            for rater in head["raters"]
        ]
        # Not before: a file with a new first line beside rows that do not know of it is refused.
        transaction.on_commit(partial(_write_head, path, head | {"raters": told}))


def _write_head(relative: str, head: dict[str, Any]) -> None:
    path = storage_path(relative)
    first = json.dumps(head, ensure_ascii=False, sort_keys=True).encode() + b"\n"
    with path.open("rb") as file:
        next(file)
        _replace(path, [first], rest=file)
    shared.put(relative)


def hashes(path: Path) -> tuple[str, str]:
    """(SHA-256 of the file, SHA-256 of it without its first line)."""
    whole, body = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        whole.update(next(file, b""))
        while piece := file.read(1 << 20):
            whole.update(piece)
            body.update(piece)
    return whole.hexdigest(), body.hexdigest()


def _head(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        head: dict[str, Any] = json.loads(file.readline() or "{}")
    return head


def _datasets() -> models.QuerySet:
    """They belong to training, which labeling does not import."""
    return apps.get_model("training", "Dataset")._base_manager.all()


def _replace(path: Path, lines: Iterable[bytes], rest: Any = None) -> None:
    """Write the file anew beside its place, and put it there in one move."""
    with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            file.writelines(lines)
            if rest is not None:
                shutil.copyfileobj(rest, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:  # a full disk: nobody else would remove it
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)
