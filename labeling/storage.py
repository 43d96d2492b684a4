"""Where files lie, and what a model's name means."""

import errno
import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

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
    the name itself, which is then a hub id."""
    if names_a_path(name):
        return str(Path(name).expanduser().resolve())
    stored = storage_path("models") / name
    return str(stored) if (stored / "config.json").exists() else name


def names_a_path(name: str) -> bool:
    """Whether a model is named by a path of this machine: /…, ./…, ~…, or with a .. in it."""
    return name.startswith(("/", ".", "~")) or ".." in Path(name).parts


def check_model_name(name: str, user: Any) -> None:
    """Refuse paths of the worker's machine to everybody but administrators: they would lead to
    other projects' models. And names that no folder could bear.

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
