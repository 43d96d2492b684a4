"""Files between machines that share no folder: PREFLOOP_SHARED_STORAGE names a place that all of
them reach through fsspec, as s3://bucket/prefloop, and each keeps what it needs in its own
PREFLOOP_STORAGE. Without that setting nothing here does anything.

A file or folder of the storage folder lies there under its own name: every file of it as an object
that is named by its SHA-256, and `files.json`, which says what the folder holds. That list is
written last and in one move, so that whoever reads it finds all of what it names; objects that it
no longer names are then removed.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from labeling.storage import names_a_path, storage_path

if TYPE_CHECKING:
    from labeling.models import Project

logger = logging.getLogger(__name__)

LIST = "files.json"
ITSELF = "."
"""What the list says in the place of a name, where the whole is one file."""
LAST = "complete"
"""Says that what lies beside it is whole (training/ml/steps.py): it is brought after all others."""
STAYS = ("output.log",)
"""What is told of one machine alone, and grows all the time."""


class SharedFileBroken(OSError):
    """What came from the shared storage is not what was put there."""


def is_shared() -> bool:
    return bool(settings.PREFLOOP_SHARED_STORAGE)


def put(relative: str | Path) -> int:
    """Bring a file or folder of this machine's storage folder to all machines, as it is now.

    Returns: how many of its files were not there yet.
    """
    if not is_shared():
        return 0
    files = _files_here(relative)
    there, place = _there(relative)
    known = {entry["sha256"] for entry in _listed(there, place).values()}
    there.makedirs(place, exist_ok=True)
    new = 0
    for entry, path in files.values():
        if entry["sha256"] not in known:
            known.add(entry["sha256"])
            there.put_file(str(path), f"{place}/{entry['sha256']}")
            new += 1
    listed = {name: entry for name, (entry, _path) in files.items()}
    _write_list(there, place, listed)
    for old in known - {entry["sha256"] for entry in listed.values()}:
        _remove_object(there, f"{place}/{old}")
    return new


def fetch(relative: str | Path) -> bool:
    """Make a file or folder here what it is for all machines; False if nobody has put it.

    Files of a folder that the list does not name are removed: another machine has gone on since.
    Raises: SharedFileBroken.
    """
    if not is_shared():
        return False
    there, place = _there(relative)
    listed = _listed(there, place)
    if not listed:
        return False
    _bring_all(there, place, listed, storage_path(relative))
    if ITSELF not in listed:
        for name, path in _walk(relative):
            if name not in listed:
                path.unlink()
    return True


def fetch_missing(relative: str | Path) -> None:
    """The same for what never changes once it is there, as a dataset or a finished model: nothing
    is looked up if it is here.

    What is here is whole: a folder is brought beside its place and moved there at the end, for
    another worker of this machine may look meanwhile, and this one may be killed.
    """
    path = storage_path(relative)
    if not is_shared() or path.exists():
        return
    there, place = _there(relative)
    listed = _listed(there, place)
    if not listed:
        return
    beside = storage_path("tmp")
    beside.mkdir(exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix="fetched-", dir=beside))
    try:
        _bring_all(there, place, listed, room / "it")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            (room / "it").rename(path)
        except OSError:
            if not path.exists():  # else somebody was faster
                raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def fetch_model(project: "Project", name: str) -> None:
    """Have a model of the project on this machine, or one that lies under models/, with all that
    it stands on. A hub's model is not looked for here."""
    if is_shared():
        for relative in places_of(project, name):
            fetch_missing(relative)


def places_of(project: "Project", name: str) -> Iterator[str]:
    """Where in the storage folder the files of a model lie that is named."""
    # The model's row belongs to training, which labeling does not import; the project knows it.
    version = project.models.filter(name=name).first()
    if version is not None:
        yield from places_of_version(version)
    elif not names_a_path(name):
        yield f"models/{name}"


def places_of_version(version: Any) -> Iterator[str]:
    """The same of a model's row: its own folder, and those of what it stands on."""
    root = storage_path("")
    while version is not None:
        path = Path(version.path)
        if path.is_relative_to(root):
            yield str(path.relative_to(root))
        elif not names_a_path(version.path):
            yield version.path
        version = version.base


def forget(relative: str | Path) -> None:
    """Remove it for all machines; the copies that they hold are theirs."""
    if not is_shared():
        return
    there, place = _there(relative)
    try:
        there.rm(place, recursive=True)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s stays in the shared storage: %s", relative, error)


def _there(relative: str | Path) -> tuple[Any, str]:
    """The filesystem, and the place of a file or folder in it."""
    import fsspec  # with what speaks to the storage: workers and the web process of a fleet have it

    storage_path(relative)  # refuses a name that leads out
    there, root = fsspec.core.url_to_fs(settings.PREFLOOP_SHARED_STORAGE)
    return there, f"{root.rstrip('/')}/{Path(relative).as_posix()}"


def _listed(there: Any, place: str) -> dict[str, dict[str, Any]]:
    """{name: {"sha256", "bytes"}} of what has been put; empty if nothing has."""
    there.invalidate_cache()  # another machine may have written it since
    try:
        found: dict[str, dict[str, Any]] = json.loads(there.cat_file(f"{place}/{LIST}"))
    except FileNotFoundError:
        return {}
    return found


def _write_list(there: Any, place: str, listed: dict[str, dict[str, Any]]) -> None:
    """In one move: an object appears whole, and a file under another name first."""
    text = json.dumps(listed, indent=1, sort_keys=True).encode()
    there.pipe_file(f"{place}/{LIST}.new", text)
    there.mv(f"{place}/{LIST}.new", f"{place}/{LIST}")


def _remove_object(there: Any, path: str) -> None:
    try:
        there.rm_file(path)
    except FileNotFoundError:
        return


def _bring_all(there: Any, place: str, listed: dict[str, dict[str, Any]], target: Path) -> None:
    """Every file of a list below the target, or the target itself. Raises: SharedFileBroken."""
    for name in sorted(listed, key=lambda name: (Path(name).name == LAST, name)):
        entry = listed[name]
        _bring(there, f"{place}/{entry['sha256']}", entry, _path(target, name))


def _bring(there: Any, source: str, entry: dict[str, Any], path: Path) -> None:
    if path.exists() and path.stat().st_size == entry["bytes"] and _sha256(path) == entry["sha256"]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    there.get_file(source, str(part))
    if _sha256(part) != entry["sha256"]:
        part.unlink()
        raise SharedFileBroken(f"{source} in the shared storage is not what was put there")
    part.replace(path)


def _path(folder: Path, name: str) -> Path:
    """Where a listed file lies here. The list was written by another machine: no name leads out."""
    path = folder if name == ITSELF else (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise SharedFileBroken(f"the list of {folder.name} names {name}, which lies outside of it")
    return path


def _files_here(relative: str | Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """{name: ({"sha256", "bytes"}, path)}. Raises: FileNotFoundError."""
    found = {}
    for name, path in _walk(relative):
        found[name] = ({"sha256": _sha256(path), "bytes": path.stat().st_size}, path)
    return found


def _walk(relative: str | Path) -> list[tuple[str, Path]]:
    top = storage_path(relative)
    if top.is_file():
        return [(ITSELF, top)]
    return [
        (path.relative_to(top).as_posix(), path)
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in STAYS
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
