"""Uploaded files: where they lie until they are imported, and how long."""

import secrets
import time
from pathlib import Path

from django.conf import settings
from django.contrib.humanize.templatetags.humanize import intcomma
from django.core import signing
from django.core.files.uploadedfile import UploadedFile
from django.utils.translation import gettext as _

from labeling.imports.reading import SUFFIXES, kind_of
from labeling.models import ImportJob, Project
from labeling.storage import storage_path

FOLDER = "uploads"
# An upload that nobody has started to import is kept for a day.
KEPT_SECONDS = 24 * 3600
# Text packs about five to ten times; what unpacks to far more is no text but an attack.
UNPACKED_TIMES = 10


class BadUpload(Exception):
    """The upload was refused; the message is for the person who sent it."""


def max_unpacked_bytes() -> int:
    return UNPACKED_TIMES * settings.PREFLOOP_MAX_UPLOAD_BYTES


def keep_upload(upload: UploadedFile, project: Project) -> str:
    """Store a file under a name of ours; a signed token that names it to the preview page.

    Raises: BadUpload.
    """
    name = Path(upload.name or "").name
    suffix = kind_of(name)
    if suffix not in SUFFIXES:
        raise BadUpload(
            _("Files of these kinds can be imported: %(kinds)s, also .gz.")
            % {"kinds": ", ".join(SUFFIXES)}
        )
    if upload.size is not None and upload.size > settings.PREFLOOP_MAX_UPLOAD_BYTES:
        raise BadUpload(too_large())
    _forget_old_uploads()
    packed = ".gz" if name.lower().endswith(".gz") else ""
    relative = f"{FOLDER}/{secrets.token_hex(16)}{suffix}{packed}"
    path = storage_path(relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for chunk in upload.chunks():
            file.write(chunk)
    return signing.dumps({"path": relative, "name": name, "project": project.pk}, salt=FOLDER)


def kept_upload(token: str, project: Project) -> tuple[str, str]:
    """(path under PREFLOOP_STORAGE, the name that the person gave it) of a token of this project.

    Raises: BadUpload if the token is not ours, or its file is gone.
    """
    try:
        upload = signing.loads(token, salt=FOLDER, max_age=KEPT_SECONDS)
    except signing.BadSignature:
        upload = {}
    if upload.get("project") != project.pk or not storage_path(upload["path"]).is_file():
        raise BadUpload(_("That upload is no longer here. Please send the file again."))
    return upload["path"], upload["name"]


def too_large() -> str:
    return _(
        "The file is larger than %(most)s MiB. Pack it with gzip, split it, or use the command "
        "import_comparisons, which knows no limit."
    ) % {"most": intcomma(round(settings.PREFLOOP_MAX_UPLOAD_BYTES / 2**20))}


def reject_path(job: ImportJob) -> Path:
    """The reject file of an uploaded file."""
    return storage_path(f"{job.path}.rejects.jsonl")


def forget_upload(job: ImportJob) -> None:
    """Delete an uploaded file that has been imported; its reject file stays."""
    storage_path(job.path).unlink(missing_ok=True)


def _forget_old_uploads() -> None:
    folder = storage_path(FOLDER)
    if not folder.is_dir():
        return
    limit = time.time() - KEPT_SECONDS
    old = [path for path in folder.iterdir() if path.stat().st_mtime < limit]
    names = [f"{FOLDER}/{path.name.removesuffix('.rejects.jsonl')}" for path in old]
    wanted = set(ImportJob.objects.filter(path__in=names).values_list("path", flat=True))
    for path, name in zip(old, names, strict=True):
        if name not in wanted:
            path.unlink(missing_ok=True)
