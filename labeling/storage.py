"""Where files lie, and what a model's name means."""

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    from labeling.models import Project

OURS = ("runs", "merges", "exports", "studies")
"""Folders under PREFLOOP_STORAGE whose files belong to one row of one project. Bases lie elsewhere,
and other projects may use them."""
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")
LONGEST_NAME = 255
"""Bytes of a file's or folder's name at most, on the systems we know."""


def storage_path(relative: str | Path) -> Path:
    """The place of a file under PREFLOOP_STORAGE.

    Raises: ValueError if the name leads out of the storage folder.
    """
    root = settings.PREFLOOP_STORAGE.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{relative} lies outside the storage folder")
    return path


def model_folder(name: str) -> str:
    """What to load for a model's name: a folder under PREFLOOP_STORAGE/models, a local folder, or
    the name itself, which is then a hub id.

    Raises: ValueError for a name that is none of them. A loader takes a name that exists in its
        working directory for a folder, whoever's it is.
    """
    if names_a_path(name):
        return str(Path(name).expanduser().resolve())
    stored = storage_path("models") / name
    if (stored / "config.json").exists():
        return str(stored)
    if not is_hub_id(name):
        raise ValueError(
            _("%(name)s is no folder under models/ in the storage folder, and no hub id.")
            % {"name": name}
        )
    return name


def files_folder(path: str, *, is_base: bool) -> str:
    """Where the files of a model lie, as its row names the place: what was made here lies under the
    storage folder; a base may be a hub id, and is never what another project made."""
    if Path(path).is_absolute():
        return path
    if is_base and (path.partition("/")[0] in OURS or not storage_path(path).exists()):
        return model_folder(path)
    return str(storage_path(path))


def is_hub_id(name: str) -> bool:
    """Whether it can only be meant for the hub: owner/name, and nothing here is called so."""
    return (
        HUB_ID.fullmatch(name) is not None
        and name.partition("/")[0] not in OURS
        and not Path(name).exists()
        and not storage_path(name).exists()
    )


def names_a_path(name: str) -> bool:
    """Whether a model is named by a path of this machine: /…, ./…, ~…, or with a .. in it."""
    return name.startswith(("/", ".", "~")) or ".." in Path(name).parts


def check_model_name(project: "Project", name: str, user: Any) -> None:
    """A model of the project, a folder under models/ in the storage folder, or a hub id. Paths of
    the worker's machine are refused to everybody but administrators: they would lead to other
    projects' models. And so are names that no folder could bear.

    Raises: ValidationError.
    """
    if any(len(part.encode()) > LONGEST_NAME for part in Path(name).parts):
        raise ValidationError(os.strerror(errno.ENAMETOOLONG))
    if names_a_path(name) and not user.is_superuser:
        raise ValidationError(
            _(
                "Only an administrator names a path. Give a model of this project, a folder under "
                "models/ in the storage folder, or a hub id."
            )
        )
    # The model's row belongs to training, which labeling does not import; the project knows it.
    if not project.models.filter(name=name).exists():  # type: ignore[attr-defined]
        try:
            model_folder(name)
        except (ValueError, OSError) as error:
            raise ValidationError(str(error)) from None
