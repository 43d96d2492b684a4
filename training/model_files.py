"""A model's files on their way out: as a zip, as GGUF, and the command that serves them."""

import json
import shlex
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils.translation import gettext_noop

from labeling import shared
from labeling.changes import note_change
from labeling.jobs import Job, JobTaken
from labeling.models import Project
from labeling.storage import storage_path
from training.ml.merge_recipe import at_hand, base_of, form_of, settings_of
from training.models import ModelExport, ModelVersion
from training.runs import version_folder

BLOCK = 1 << 20
PARTS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Endings of what a model consists of. Nothing else leaves: a base's folder may be any folder of
this machine, and pickles run what they like."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
NUMBERS = {
    "float32": gettext_noop("float32"),
    "float16": gettext_noop("float16"),
    "bfloat16": gettext_noop("bfloat16"),
}


def folder_of(version: ModelVersion) -> Path | None:
    """Where a model's files lie on this machine; None if they do not."""
    try:
        path = Path(at_hand(version_folder(version)))
    except ValueError:  # a hub's model, and a folder here has come to be called like it
        return None
    return path if path.is_dir() else None


def files_of(folder: Path) -> list[Path]:
    """The files that a model consists of. Links count in the hub's cache alone, which is made of
    them, and there only within the model's own part of it."""
    in_cache = folder.parent.name == "snapshots"
    members = folder.glob("member-*/*")  # of an ensemble, beside the first
    return [
        path
        for path in sorted([*folder.iterdir(), *members])
        if path.suffix in PARTS
        and path.is_file()
        and (
            not path.is_symlink()
            or (in_cache and path.resolve().is_relative_to(folder.parent.parent.resolve()))
        )
    ]


def bytes_of(version: ModelVersion) -> int | None:
    """Size of a model's files; None if they are not on this machine."""
    folder = folder_of(version)
    return sum(path.stat().st_size for path in files_of(folder)) if folder else None


def zipped(version: ModelVersion) -> Iterator[bytes]:
    """The model's folder as a zip, made while it is sent: no copy on the disk, none in memory.

    An adapter names its base by the name that people know, not by a folder of this machine.
    """
    folder = folder_of(version)
    if folder is None:
        raise FileNotFoundError(f"the files of {version.name} are not on this machine")
    sink = _Sink()
    # Weights do not get smaller, so nothing is packed.
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in files_of(folder):
            info = zipfile.ZipInfo.from_file(
                path,
                f"{version.name}/{path.relative_to(folder).as_posix()}",
                strict_timestamps=False,
            )
            with archive.open(info, "w", force_zip64=True) as entry:
                if path.name == "adapter_config.json":
                    entry.write(_portable(path, version))
                else:
                    with path.open("rb") as source:
                        while block := source.read(BLOCK):
                            entry.write(block)
                            yield sink.take()
            yield sink.take()
    yield sink.take()


class _Sink:
    """What ZipFile writes to: bytes wait here until they are sent. It cannot go back."""

    def __init__(self) -> None:
        self.waiting = bytearray()

    def write(self, data: Any) -> int:
        self.waiting += data
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data, self.waiting = bytes(self.waiting), bytearray()
        return data


def _portable(path: Path, version: ModelVersion) -> bytes:
    settings = json.loads(path.read_text())
    if version.base is not None and Path(settings["base_model_name_or_path"]).is_absolute():
        known = version.base.path
        is_hub = not Path(known).is_absolute() and version.base.kind == ModelVersion.Kind.BASE
        settings["base_model_name_or_path"] = known if is_hub else version.base.name
    return json.dumps(settings, indent=2).encode()


def serving_command(version: ModelVersion) -> dict[str, Any]:
    """The line that serves a model with vLLM: a base with its LoRA adapters, or a whole model.

    Returns: command (empty if there is nothing to serve), and left_out: (name, reason) of adapters
        that vLLM does not take.
    """
    folder = folder_of(version)
    if folder is None or version.kind == ModelVersion.Kind.REWARD:
        return {"command": "", "left_out": []}
    if form_of(str(folder)) == "whole":
        candidates = list(version.derived.filter(kind=ModelVersion.Kind.POLICY).order_by("name"))
        base = _served_name(version, folder)
    else:
        candidates = [version]
        base = base_of(str(folder))
    taken: list[tuple[ModelVersion, Path, int]] = []
    left_out: list[tuple[str, str]] = []
    for adapter in candidates:
        place = folder_of(adapter)
        if place is None or form_of(str(place)) == "whole":
            continue
        reason, rank = _why_not_vllm(str(place))
        if reason:
            left_out.append((adapter.name, reason))
        else:
            taken.append((adapter, place, rank))
    words = ["vllm", "serve", base]
    if taken:
        words += ["--enable-lora", "--max-lora-rank", str(_rank_allowed(max(r for *_, r in taken)))]
        if len(taken) > 1:
            words += ["--max-loras", str(len(taken))]
        words += ["--lora-modules", *(f"{adapter.name}={place}" for adapter, place, _r in taken)]
    elif form_of(str(folder)) != "whole":
        return {"command": "", "left_out": left_out}
    return {"command": shlex.join(words), "left_out": left_out}


def _served_name(version: ModelVersion, folder: Path) -> str:
    return (
        version.path
        if not Path(version.path).is_absolute()
        and not version.path.startswith(("runs/", "merges/"))
        else str(folder)
    )


def _why_not_vllm(folder: str) -> tuple[str, int]:
    """(why vLLM does not take this adapter or "", its rank).

    Source: vLLM's lora/peft_helper.py: no layers trained whole, no DoRA; rsLoRA is known. An
    adapter is served over a whole model, whose positions are as its own config says.
    """
    settings = settings_of(folder)
    if form_of(folder) != "lora":
        return "it is no LoRA adapter", 0
    if settings.get("modules_to_save"):
        whole = ", ".join(settings["modules_to_save"])
        return f"it has layers trained whole ({whole}); merge it into its base", 0
    if settings.get("use_dora"):
        return "it is a DoRA; merge it into its base", 0
    if form_of(base_of(folder)) != "whole":
        return "it stands on another adapter; merge it into its base", 0
    if "rope" in settings_of(folder, "made_by.json"):
        return "its base would be served without its longer context; merge it into its base", 0
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    if rank > VLLM_RANKS[-1]:
        return f"its rank {rank} is above {VLLM_RANKS[-1]}; merge it into its base", 0
    return "", int(rank)


def _rank_allowed(rank: int) -> int:
    return next(allowed for allowed in VLLM_RANKS if allowed >= rank)


# GGUF


def start_export(project: Project, model: ModelVersion, numbers: str, by: Any) -> ModelExport:
    """Queue a model for its GGUF file.

    Raises: ValueError for a model that cannot become one, as far as its folder says.
    """
    from training.ml.gguf_shapes import why_no_gguf

    if numbers not in NUMBERS:
        raise ValueError(f"numbers: {numbers} is none of {', '.join(NUMBERS)}")
    folder = folder_of(model)
    if folder is None:
        raise ValueError(f"the files of {model.name} are not on this machine")
    if reason := why_no_gguf(str(folder)):
        raise ValueError(reason)
    with transaction.atomic():
        export = ModelExport.objects.create(
            project=project, model=model, numbers=numbers, created_by=by
        )
        note_change(project, by, gettext_noop("export model"), model, after={"gguf": numbers})
    export.enqueue()
    return export


def carry_out_export(export: ModelExport) -> None:
    """Write the file in this process and end the row.

    Raises: ValueError for another shape, or without the converter; JobCancelled, JobTaken.
    """
    try:
        from training.ml.exporting import save_gguf
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the converter is not on this worker: pip install {error.name} (of the extra [dev])"
        ) from None

    folder = folder_of(export.model)
    if folder is None:
        raise ValueError(f"the files of {export.model.name} are not on this machine")
    path = f"exports/{export.pk}/{export.model.name}-{export.numbers}.gguf"
    file = storage_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    reported_at = 0.0

    def on_tensor(done: int, total: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= 0.5 or done == total:
            export.report(n_done=done, n_total=total)
            reported_at = time.monotonic()

    found = save_gguf(folder, file, export.numbers, on_tensor)
    shared.put(path)
    if not export.finish(Job.Status.SUCCEEDED, path=path, result=found):
        file.unlink(missing_ok=True)
        raise JobTaken(f"export {export.pk} went to another worker")
