"""Files of raw text under PREFLOOP_STORAGE/texts, for continued pre-training."""

import hashlib
import json
import re
from pathlib import Path

from labeling.storage import storage_path
from training.datasets import side_of

FOLDER = "texts"
SUFFIXES = (".txt", ".jsonl")


def known_texts() -> list[str]:
    """Names of the files there are."""
    folder = storage_path(FOLDER)
    paths = (path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    return sorted(str(path.relative_to(folder)) for path in paths)


def text_path(name: str) -> Path:
    """Where a file of text lies.

    Raises: ValueError that begins with "text" if there is none of that name.
    """
    root = storage_path(FOLDER)
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path.suffix not in SUFFIXES:
        raise ValueError(f"text: {name} names no .txt or .jsonl file under {FOLDER}/")
    if not path.is_file():
        raise ValueError(f"text: there is no file {name} under {FOLDER}/ in the storage folder")
    return path


def text_sha256(name: str) -> str:
    with text_path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_texts(name: str, test_share: float, seed: int) -> tuple[list[str], list[str], int]:
    """(train, test, repeated): the texts of a file by side, and how many said again what another
    had said; of these the first counts.

    A .jsonl file has a text in each line, a string or an object with "text". In a .txt file blank
    lines divide texts. Its hash and the seed draw a text's side, so it stays there as a file grows.

    Raises: ValueError naming the line that cannot be read.
    """
    path = text_path(name)
    try:
        whole = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {name} is not UTF-8: {error}") from error
    if path.suffix == ".txt":
        found = re.split(r"\n\s*\n", whole)
    else:
        lines = enumerate(whole.split("\n"), start=1)
        found = [_text_of(line, f"{name}, line {number}") for number, line in lines if line.strip()]
    sides: dict[str, list[str]] = {"train": [], "test": []}
    seen: set[str] = set()
    texts = [text.strip() for text in found if text.strip()]
    for text in texts:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest not in seen:
            sides[side_of(digest, test_share, seed)].append(text)
        seen.add(digest)
    for missing, full in (("test", "train"), ("train", "test")):
        if not sides[missing] and len(sides[full]) > 1:  # a draw over few texts
            sides[missing].append(sides[full].pop())
    return sides["train"], sides["test"], len(texts) - len(seen)


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        text = row if isinstance(row, str) else row["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: no JSON with a "text"') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: "text" is no text')
    return text
