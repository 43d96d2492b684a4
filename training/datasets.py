"""Preferences become a frozen, hashed dataset of pairs, split by prompt.

What cannot become a pair is counted under the reason: ties, disputes, both bad, no label.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.adjudication import current_decisions
from labeling.aggregation import Outcome, decide
from labeling.models import Choice, Comparison, Preference, Project
from labeling.storage import storage_path
from training.ml.data import Pair
from training.models import Dataset

MIN_TRAIN_PAIRS = 8
LABELS = {
    "mixed": _lazy("People, else AI judges"),
    "human": _lazy("People only"),
    "ai": _lazy("AI judges only"),
}
COUNTED = {
    "pairs": _lazy("pairs"),
    "human": _lazy("pairs labeled by people"),
    "ai": _lazy("pairs labeled by AI judges"),
    "decided": _lazy("pairs decided by a lead, whatever the votes say"),
    "train": _lazy("training pairs"),
    "test": _lazy("test pairs"),
    "ties": _lazy("ties"),
    "disputed": _lazy("disputed: no choice has the most votes"),
    "both_bad": _lazy("both responses bad"),
    "unparsed": _lazy("only unreadable AI verdicts"),
    "unlabeled": _lazy("without a label of this kind"),
    "same_text": _lazy("both responses have the same text"),
    "gold": _lazy("kept out of training: control questions with a known answer"),
    "sets": _lazy("kept out of training: training, qualification and check sets of raters"),
    "moved_to_test": _lazy("fixed to training, but their prompt is fixed to the test side"),
}


def side_of(prompt_hash: str, test_share: float, seed: int) -> str:
    """Which side a prompt belongs to: a fixed draw, so it stays there as labels keep coming in."""
    digest = hashlib.sha256(f"{seed}:{prompt_hash}".encode()).digest()
    return "test" if int.from_bytes(digest[:8]) / 2**64 < test_share else "train"


def split_prompts(fixed: dict[str, set[str]], test_share: float, seed: int) -> dict[str, str]:
    """The side of every prompt; no prompt is on both.

    Args: fixed: for each prompt's hash, the sides that the metadata of its comparisons names
        ("split": "train" or "test"); where both are named, the prompt is on the test side.
    """
    sides = {}
    for prompt, named in fixed.items():
        if named:
            sides[prompt] = "test" if "test" in named else "train"
        else:
            sides[prompt] = side_of(prompt, test_share, seed)
    # A draw over few prompts may leave a side empty: then the first free prompt changes over.
    for missing in ("test", "train"):
        free = sorted(prompt for prompt, named in fixed.items() if not named)
        if len(sides) > 1 and free and missing not in sides.values() and 0 < test_share < 1:
            sides[free[0]] = missing
    return sides


def decisions(project: Project, labels: str) -> dict[int, Outcome]:
    """What the current preferences say, by comparison; comparisons without any are left out.

    A lead's decision stands in place of the votes, except where AI judges alone are asked for.
    """
    answers = (
        Preference.objects.current()
        .filter(comparison__project=project)
        .order_by("comparison_id", "rater_id")
        .values_list("comparison_id", "rater__kind", "choice", "rater_id")
        .iterator(chunk_size=10_000)
    )
    found = {
        comparison: decide([row[1:] for row in rows], labels)
        for comparison, rows in groupby(answers, key=itemgetter(0))
    }
    if labels == "ai":
        return found
    for comparison, decision in current_decisions(project.comparisons.all()).items():
        outcome = "ties" if decision.choice == Choice.TIE else decision.choice
        votes = found[comparison].votes if comparison in found else {}
        found[comparison] = Outcome(outcome, "human", votes, (), decided=True)
    return found


@dataclass(frozen=True)
class Plan:
    """A dataset before it is written."""

    sides: dict[str, str]
    decisions: dict[int, Outcome]
    counts: dict[str, int]
    raters: list[dict[str, Any]]


def plan(
    project: Project, *, labels: str = "mixed", test_share: float = 0.1, seed: int = 0
) -> Plan:
    """Decide and count; writes nothing, so a form can show it before a launch."""
    found = decisions(project, labels)
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    counts["comparisons"] = 0
    fixed: dict[str, set[str]] = {}
    rows: list[tuple[str, str, str | None]] = []
    votes: Counter[int] = Counter()
    nothing = Outcome("unlabeled", "", {}, ())
    comparisons = project.comparisons.values_list(
        "pk",
        "prompt__content_hash",
        "metadata__split",
        "purpose",
        "gold",
        "response_a__content_hash",
        "response_b__content_hash",
    )
    for pk, prompt, split, purpose, gold, text_a, text_b in comparisons.iterator(chunk_size=10_000):
        counts["comparisons"] += 1
        decision = found.get(pk, nothing)
        if gold:  # and so every set: the database holds no set without a known answer
            reason = "gold" if purpose == Comparison.Purpose.WORK else "sets"
            counts[reason] += 1
            found[pk] = Outcome(reason, decision.source, decision.votes, decision.raters)
            continue
        if decision.outcome not in ("a", "b"):
            counts[decision.outcome] += 1
            continue
        if text_a == text_b:
            counts["same_text"] += 1
            found[pk] = Outcome("same_text", decision.source, decision.votes, decision.raters)
            continue
        counts["pairs"] += 1
        counts[decision.source] += 1
        counts["decided"] += decision.decided
        votes.update(decision.raters)
        fixed.setdefault(prompt, set())
        if split in ("train", "test"):
            fixed[prompt].add(split)
        rows.append((prompt, decision.source, split))
    sides = split_prompts(fixed, test_share, seed)
    for prompt, _source, split in rows:
        counts[sides[prompt]] += 1
        counts["moved_to_test"] += split == "train" and sides[prompt] == "test"
    counts["train_prompts"] = sum(side == "train" for side in sides.values())
    counts["test_prompts"] = len(sides) - counts["train_prompts"]
    # Without ids, and in an order that no database's collation changes: they go into the file.
    raters = sorted(
        (
            {"rater": rater.name, "kind": rater.kind, "n": votes[rater.pk]}
            for rater in project.raters.filter(pk__in=votes)
        ),
        key=itemgetter("kind", "rater", "n"),
    )
    return Plan(sides, found, dict(counts), raters)


def freeze(
    project: Project, *, labels: str = "mixed", test_share: float = 0.1, seed: int = 0
) -> Dataset:
    """Write the dataset and its row; the same labels and settings give the same dataset.

    The file's first line says what made it and what was left out; every further line is a pair.
    Its name is the SHA-256 of all of it.

    Raises: ValueError if there are too few pairs, or none on the test side.
    """
    made = plan(project, labels=labels, test_share=test_share, seed=seed)
    refuse_too_few(made.counts, labels)
    filters = {"labels": labels, "aggregate": "majority", "test_share": test_share, "seed": seed}
    head = {"filters": filters, "counts": made.counts, "raters": made.raters}
    folder = storage_path("datasets")
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        try:
            for row in _lines(project, head, made):
                line = json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
                digest.update(line)
                file.write(line)
        except BaseException:  # a key pressed or a full disk: nobody else would remove it
            Path(file.name).unlink()
            raise
    sha256 = digest.hexdigest()
    path = Path("datasets") / f"{sha256}.jsonl"
    Path(file.name).replace(storage_path(path))
    dataset, _created = Dataset.objects.get_or_create(
        project=project,
        sha256=sha256,
        defaults={
            "path": str(path),
            "filters": filters,
            "counts": made.counts,
            "raters": made.raters,
        },
    )
    return dataset


def refuse_too_few(counts: dict[str, int], labels: str) -> None:
    """Raises: ValueError saying in words what a run would lack."""
    if not counts["pairs"]:
        whom = {
            "human": _("no pair to train on: no clear preference by people yet"),
            "ai": _("no pair to train on: no clear preference by AI judges yet"),
            "mixed": _("no pair to train on: no clear preference by people or AI judges yet"),
        }[labels]
        others = [
            f"{counts[name]} {COUNTED[name]}"
            for name in ("ties", "disputed", "both_bad", "unparsed", "same_text", "gold", "sets")
            if counts[name]
        ]
        detail = f" ({'; '.join(others)})" if others else ""
        raise ValueError(f"{whom}{detail}")
    if counts["train"] < MIN_TRAIN_PAIRS:
        raise ValueError(
            _("too few pairs: %(n)s for training, at least %(least)s are needed")
            % {"n": counts["train"], "least": MIN_TRAIN_PAIRS}
        )
    if not counts["test"]:
        raise ValueError(_("no test pair: at least two prompts are needed, one on the test side"))


def _lines(project: Project, head: dict[str, Any], made: Plan) -> Iterator[dict[str, Any]]:
    yield head
    # Ordered by content, so that the same labels give the same file in every database.
    comparisons = (
        Comparison.objects.filter(project=project)
        .select_related("prompt", "response_a", "response_b")
        .order_by("content_hash")
    )
    for comparison in comparisons.iterator(chunk_size=1000):
        decision = made.decisions.get(comparison.pk)
        if decision is None or decision.outcome not in ("a", "b"):
            continue
        a, b = comparison.response_a.messages, comparison.response_b.messages
        chosen, rejected = (a, b) if decision.outcome == "a" else (b, a)
        yield {
            "comparison": comparison.content_hash,
            "prompt_id": comparison.prompt.content_hash,
            "split": made.sides[comparison.prompt.content_hash],
            "source": decision.source,
            "votes": decision.votes,
            "decided": decision.decided,
            "prompt": comparison.prompt.messages,
            "chosen": chosen,
            "rejected": rejected,
        }


def load_pairs(dataset: Dataset) -> tuple[list[Pair], list[Pair]]:
    """(train, test) pairs of a frozen dataset.

    Raises: ValueError if the file is gone or is no longer what was frozen.
    """
    path = storage_path(dataset.path)
    if not path.exists():
        raise ValueError(f"the dataset's file {dataset.path} is gone from the storage folder")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != dataset.sha256:
        raise ValueError(f"the dataset's file {dataset.path} was changed after it was frozen")
    sides: dict[str, list[Pair]] = {"train": [], "test": []}
    for line in content.splitlines()[1:]:
        row = json.loads(line)
        sides[row["split"]].append(
            Pair(
                prompt=row["prompt"],
                chosen=row["chosen"],
                rejected=row["rejected"],
                prompt_id=row["prompt_id"],
                comparison=row["comparison"],
            )
        )
    return sides["train"], sides["test"]
