"""Real preferences as pairs for training, from ../shared/data; none of them is kept here."""

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from training.ml.data import Messages, Pair

ROLES = {"Human": "user", "Assistant": "assistant"}


def hh_rlhf(shared_data: Path, half: str, split: str) -> list[Pair]:
    """Dialogues of hh-rlhf: half "harmless" or "helpful", split "train" or "test". What both sides
    of a pair share, turn by turn, is the prompt."""
    folder = shared_data / "hh-rlhf"
    if half == "harmless":
        with gzip.open(folder / f"harmless-base.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [(row["chosen"], row["rejected"]) for row in map(json.loads, file)]
    else:
        with gzip.open(folder / f"helpful-base.{split}.json.gz", "rt", encoding="utf-8") as file:
            texts = [tuple(row["text"]) for row in json.load(file)]
    return [_pair(f"{half}-{split}-{n}", *both) for n, both in enumerate(texts)]


def ukp_strict(shared_data: Path) -> Iterator[tuple[str, Pair]]:
    """(debate, pair) of UKPConvArg1 strict: two arguments for the same side of a debate."""
    for path in sorted((shared_data / "ukpconvarg1" / "strict-csv").glob("*.csv.gz")):
        side = path.name.removesuffix(".csv.gz")
        debate, _underscore, stance = side.partition("_")
        prompt = [{"role": "user", "content": f"{_words(debate)} {_words(stance)}"}]
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                first, second = row["a1"], row["a2"]
                chosen, rejected = (first, second) if row["label"] == "a1" else (second, first)
                yield (
                    debate,
                    Pair(
                        prompt=prompt,
                        chosen=_answer(chosen),
                        rejected=_answer(rejected),
                        prompt_id=side,
                        comparison=row["#id"],
                    ),
                )


def _pair(name: str, chosen: str, rejected: str) -> Pair:
    one, other = _turns(chosen), _turns(rejected)
    shared = 0
    while shared < min(len(one), len(other)) - 1 and one[shared] == other[shared]:
        shared += 1
    prompt = one[:shared]
    opening = json.dumps(prompt[:1]).encode()
    return Pair(
        prompt=prompt,
        chosen=one[shared:],
        rejected=other[shared:],
        prompt_id=hashlib.sha256(opening).hexdigest(),
        comparison=name,
    )


def _turns(dialogue: str) -> Messages:
    parts = re.split(r"\n\n(Human|Assistant):", dialogue)[1:]
    return [
        {"role": ROLES[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _answer(text: str) -> Messages:
    return [{"role": "assistant", "content": re.sub(r"\s*<br/>\s*", "\n", text)}]


def _words(name: str) -> str:
    return re.sub(r"[-_]+", " ", name).strip()
