"""One file that holds an installation: its rows, its files, its own key; and the way back.

A tar archive: `tables/NAME.jsonl.gz`, `files/…` as under PREFLOOP_STORAGE, and at its end
`manifest.json` with the SHA-256 of each. A restore reads and checks the whole archive before it
writes anything.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from config import tables
from config.tables import DEFAULT, Counted, TablesDiffer

FORM = 1
NOT_KEPT = {"static", "queue", "metrics", "tmp"}
"""Folders of the storage that are made anew."""
DATABASE_ENDINGS = (".sqlite3", ".sqlite3-wal", ".sqlite3-shm", ".sqlite3-journal")
PIECE = 1 << 20
PACKING = 6
"""Python's own choice, 9, takes longer for files that are hardly smaller."""
MOST_OF_MANIFEST = 64 << 20
"""Bytes; a line for each file, so this is hundreds of thousands of them."""
MOST_OF_LINE = 256 << 20
"""Bytes of one row."""
UNPACKED_TIMES, UNPACKED_FREE = 200, 256 << 20
"""Rows of a table unpack to so many times their size in the archive, or to so many bytes: text
packs five to twenty times, a bomb a thousand times."""


class BadBackup(Exception):
    """An archive that cannot be restored here; the message says why."""


def back_up(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the archive; its manifest. A file of that name is never overwritten.

    Rows are those of one moment. Files are read after them, so each file that a row names is there
    unless it was deleted meanwhile.

    Raises: FileExistsError; OSError when there is no room, and then nothing is left of the archive.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: name another file")
    part = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
            manifest = _write(archive, {part.resolve(), path.resolve()}, say)
            raw.flush()
            os.fsync(raw.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return manifest


def _write(archive: tarfile.TarFile, own: set[Path], say: Callable[[str], None]) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "form": FORM,
        "made_at": timezone.now().isoformat(),
        "migrations": tables.migrations_of(DEFAULT),
        "key": fingerprint_of_key(),
        "tables": {},
        "members": {},
    }
    with tables.snapshot() as moment:
        for model in tables.tables():
            counted = Counted()
            name = f"tables/{tables.label(model)}.jsonl.gz"
            with tempfile.TemporaryFile(dir=settings.PREFLOOP_STORAGE) as file:
                with gzip.GzipFile(
                    fileobj=file, mode="wb", compresslevel=PACKING, mtime=0
                ) as packed:
                    for row in counted.through(tables.rows(model, moment)):
                        line = json.dumps(row, ensure_ascii=False)
                        packed.write(line.encode(errors="surrogatepass") + b"\n")
                manifest["members"][name] = _add(archive, name, file)
            manifest["tables"][tables.label(model)] = counted.told()
    say(f"{sum(t['rows'] for t in manifest['tables'].values())} rows")
    n, gone = 0, 0
    for place in stored_files():
        if place.resolve() in own:
            continue
        name = f"files/{place.relative_to(settings.PREFLOOP_STORAGE).as_posix()}"
        try:
            with place.open("rb") as file:
                manifest["members"][name] = _add(archive, name, file)
        except FileNotFoundError:  # deleted since the folder was listed
            gone += 1
            continue
        n += 1
    manifest["deleted_meanwhile"] = gone
    say(f"{n} files" + (f", {gone} deleted meanwhile" if gone else ""))
    text = json.dumps(manifest, indent=1).encode()
    _add(archive, "manifest.json", io.BytesIO(text))
    return manifest


def stored_files() -> Iterator[Path]:
    """Every file under PREFLOOP_STORAGE that a restored installation needs."""
    root = settings.PREFLOOP_STORAGE
    for folder, names, files in os.walk(root):
        if Path(folder) == root:
            names[:] = [name for name in names if name not in NOT_KEPT]
        names.sort()
        for name in sorted(files):
            place = Path(folder) / name
            if place.is_file() and not place.is_symlink() and not name.endswith(DATABASE_ENDINGS):
                yield place


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> str:
    """Append a file as it is now, though it may still grow; its SHA-256."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    digest = hashlib.sha256()
    archive.addfile(info, _Hashing(file, digest))  # type: ignore[arg-type]
    return digest.hexdigest()


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self.file, self.digest = file, digest

    def read(self, size: int = -1) -> bytes:
        piece = self.file.read(size)
        self.digest.update(piece)
        return piece


def fingerprint_of_key() -> str:
    """Tells whether SECRET_KEY, which encrypts keys of servers, is the same; nothing else of it."""
    return hashlib.sha256(b"prefloop backup" + settings.SECRET_KEY.encode()).hexdigest()[:16]


def checked_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an archive whose every part is whole.

    Raises: BadBackup naming the first part that is missing, changed, or leads out of the folder.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            found: dict[str, str] = {}
            manifest: dict[str, Any] | None = None
            for member in archive:
                if not _is_part(member) or member.name in found:
                    raise BadBackup(f"{member.name} is no file that a backup holds")
                content = archive.extractfile(member)
                assert content is not None
                if member.name == "manifest.json":
                    manifest = json.loads(content.read(MOST_OF_MANIFEST))
                    continue
                digest = hashlib.sha256()
                while piece := content.read(PIECE):
                    digest.update(piece)
                found[member.name] = digest.hexdigest()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise BadBackup(f"{path} is no whole backup: {error}") from error
    if manifest is None or manifest.get("form") != FORM:
        raise BadBackup(f"{path} has no manifest at its end: it was cut short, or is no backup")
    for name, digest_wanted in manifest["members"].items():
        if found.get(name) != digest_wanted:
            raise BadBackup(f"{name} is {'changed' if name in found else 'missing'} in {path}")
    if more := set(found) - set(manifest["members"]):
        raise BadBackup(f"{path} holds {min(more)}, which its manifest does not name")
    return manifest


def _is_part(member: tarfile.TarInfo) -> bool:
    """Whether it is one that `back_up` writes: its name leads nowhere but into its own folder, and
    its content lies in the archive whole, so that all of them are no larger than the archive."""
    folder, _slash, name = member.name.partition("/")
    inside = PurePosixPath(name)
    is_clean = bool(name) and not inside.is_absolute() and ".." not in inside.parts
    return (
        member.isreg()
        and not member.issparse()
        and (member.name == "manifest.json" or (folder in ("tables", "files") and is_clean))
    )


def _lines(name: str, packed: IO[bytes], size: int) -> Iterator[bytes]:
    """The rows of a table, as long as they do not unpack to far more than rows do.

    Raises: BadBackup.
    """
    left = max(UNPACKED_FREE, UNPACKED_TIMES * size)
    with gzip.GzipFile(fileobj=packed) as lines:
        while line := lines.readline(min(left, MOST_OF_LINE) + 1):
            left -= len(line)
            if left < 0 or len(line) > MOST_OF_LINE:
                raise BadBackup(f"{name} unpacks to more than rows do")
            yield line


def restore(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Put an archive into an empty installation, and hold every table against it; the manifest.

    Raises: BadBackup; TablesDiffer where people have worked already, or a table came out otherwise.
    Then no row was written; files that were, stay.
    """
    manifest = checked_manifest(path)
    say(f"{len(manifest['members'])} parts are whole")
    tables.refuse_if_in_use(DEFAULT)
    here = tables.migrations_of(DEFAULT)
    if here != manifest["migrations"]:
        more, less = (
            set(manifest["migrations"]) - set(here),
            set(here) - set(manifest["migrations"]),
        )
        raise BadBackup(
            "The backup is of another version"
            + (f", which has {min(more)}" if more else f", which lacks {min(less)}")
            + ". Install that version, restore, and migrate then."
        )
    known = {tables.label(model): model for model in tables.tables()}
    rows = {name for name in manifest["members"] if name.startswith("tables/")}
    if strange := rows - {f"tables/{name}.jsonl.gz" for name in known}:
        raise BadBackup(f"{min(strange)} is of no table here")
    with tarfile.open(path, "r:") as archive, transaction.atomic():
        tables.empty(DEFAULT)
        for member in archive:
            folder, _slash, name = member.name.partition("/")
            content = archive.extractfile(member)
            assert content is not None
            if folder == "files":
                _put(name, content)
            elif folder == "tables":
                model = known[name.removesuffix(".jsonl.gz")]
                lines = _lines(member.name, content, member.size)
                tables.fill(model, (json.loads(line) for line in lines), DEFAULT)
        tables.end_of_filling(DEFAULT)
        for name, told in manifest["tables"].items():
            if tables.fingerprint(known[name], DEFAULT) != told:
                raise TablesDiffer(f"{name} came out otherwise than it is in the backup.")
    say(f"{sum(told['rows'] for told in manifest['tables'].values())} rows, each as it was")
    return manifest


def _put(name: str, content: IO[bytes]) -> None:
    """A file into the storage. The key of laptop mode, which made this empty installation's own on
    its first start, is replaced; nothing else is."""
    place = settings.PREFLOOP_STORAGE / name
    if place.exists() and name != "secret_key":
        raise BadBackup(f"{place} exists: restore into an empty PREFLOOP_STORAGE")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
        while piece := content.read(PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).rename(place)
