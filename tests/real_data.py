"""Real data sets, which come in forms of their own, as records of the interchange form.

The records are read from ../shared/data where the tests run; none of them is kept here.
"""

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACES = {"left": "a", "right": "b", "tie": "tie"}


def llmfao(shared_data: Path) -> Iterator[dict[str, Any]]:
    """2,139 comparisons, 8,931 votes of 124 people, a verdict in words of gpt-3.5 and of gpt-4.

    A is the model that the files call x, and that people saw on the left.
    """
    folder = shared_data / "llmfao"
    votes = defaultdict(list)
    for row in _csv(folder / "crowd-comparisons.csv.gz"):
        choice = PLACES[row["winner"]]
        votes[row["id"]].append(
            {"rater": f"worker-{row['worker']}", "choice": choice, "shown_first": "a"}
        )
    verdicts = defaultdict(list)
    for judge, name in (("gpt-3.5", "gpt3"), ("gpt-4", "gpt4")):
        for row in _csv(folder / f"{name}-crowd-comparisons.csv.gz"):
            choice = PLACES[row["winner"]]
            verdicts[row["id"]].append({"rater": judge, "choice": choice, "shown_first": "a"})
    with (folder / "models.jsonl").open(encoding="utf-8") as file:
        models = {row["id"]: row["name"] for row in map(json.loads, file)}
    with gzip.open(folder / "pairs-crowd.jsonl.gz", "rt", encoding="utf-8") as file:
        for pair in map(json.loads, file):
            yield {
                "id": f"llmfao-{pair['id']}",
                "prompt": pair["text"],
                "response_a": pair["result_x"],
                "response_b": pair["result_y"],
                "model_a": models[pair["model_x"]],
                "model_b": models[pair["model_y"]],
                "metadata": {"type": pair["type"], "slug": pair["slug"]},
                "preferences": votes[str(pair["id"])],
                "verdicts": verdicts[str(pair["id"])],
            }


def pandalm(shared_data: Path) -> Iterator[dict[str, Any]]:
    """999 comparisons, each judged by the same three people, gpt-3.5-turbo and PandaLM-7B; 25
    verdicts of gpt-3.5-turbo could not be read."""
    folder = shared_data / "pandalm"
    choices = {"1": "a", "2": "b", "0": "tie", "Tie": "tie"}
    gpt = {row["idx"]: row for row in _json(folder / "gpt-3.5-turbo-testset-v1.json.gz")}
    panda = {row["idx"]: row for row in _json(folder / "pandalm-7b-testset-v1.json.gz")}
    for row in _json(folder / "testset-v1.json.gz"):
        model_a, model_b = row["cmp_key"].split("_")
        verdicts = []
        for judge, results, key in (
            ("gpt-3.5-turbo", gpt, "gpt"),
            ("pandalm-7b", panda, "pandalm"),
        ):
            result = results[row["idx"]]
            verdicts.append(
                {
                    "rater": judge,
                    "prob_a": None,
                    "choice": choices.get(str(result[f"{key}_result"])),
                    "rationale": result[f"{key}_reason"],
                }
            )
        yield {
            "id": f"pandalm-{row['idx']}",
            "prompt": "\n\n".join(filter(str.strip, (row["instruction"], row["input"]))),
            # Six answers are the bare word True, which the file holds as a boolean.
            "response_a": str(row["response1"]),
            "response_b": str(row["response2"]),
            "model_a": model_a,
            "model_b": model_b,
            "metadata": {"motivation_app": row["motivation_app"]},
            "preferences": [
                {"rater": f"annotator{n}", "choice": choices[str(row[f"annotator{n}"])]}
                for n in (1, 2, 3)
            ],
            "verdicts": verdicts,
        }


def write_jsonl(records: Iterator[dict[str, Any]], path: Path) -> Path:
    """The records as a file that `import_comparisons` takes."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def _csv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
