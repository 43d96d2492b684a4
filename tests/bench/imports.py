"""How fast files come in, and how much memory that takes: a table.

    python -m tests.bench.imports [comparisons …]

Every line is a process of its own with an empty SQLite database in a temporary folder. The file
has one prompt for every two comparisons and one person's vote and one verdict each, about 1 kB a
record. "again" is the same file a second time; "rows/cpu s" counts the processor's time alone, for
machines that others use too.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz")
WORDS = ("light", "water", "a", "model", "answer", "because", "often", "the", "seven", "river")


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [10_000, 100_000]
    head = f"{'file':<10} {'comparisons':>11} {'rows/s':>8} {'rows/cpu s':>10} "
    print(head + f"{'again/s':>8} {'peak MB':>8}")
    for n in sizes:
        for suffix in SUFFIXES if n <= 100_000 else SUFFIXES[:1]:
            with tempfile.TemporaryDirectory() as folder:
                environment = os.environ | {"PREFLOOP_STORAGE": folder}
                environment.pop("DATABASE_URL", None)
                result = subprocess.run(
                    [sys.executable, "-m", "tests.bench.imports", "--one", suffix, str(n)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
            one = json.loads(result.stdout.splitlines()[-1])
            print(
                f"{suffix:<10} {n:>11,} {n / one['seconds']:>8,.0f} {n / one['cpu']:>10,.0f} "
                f"{n / one['again']:>8,.0f} {one['peak_mb']:>8,.0f}",
                flush=True,
            )


def one(suffix: str, n: int) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from labeling.imports.importing import import_file
    from labeling.models import Project

    call_command("migrate", verbosity=0)
    project = Project.objects.create(slug="bench", name="Bench")
    path = write(settings.PREFLOOP_STORAGE / f"bench{suffix}", n)
    seconds, cpu = [], []
    for _ in range(2):
        started, cpu_started = time.perf_counter(), time.process_time()
        report = import_file(project, path)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - cpu_started)
        assert report.rows == n, report
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"seconds": seconds[0], "cpu": cpu[0], "again": seconds[1], "peak_mb": peak_mb})
    )


def write(path: Path, n: int) -> Path:
    import csv
    import gzip

    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if path.name.endswith(".csv"):
            table = csv.writer(file)
            names = list(record(0))
            table.writerow(names)
            for i in range(n):
                row = record(i)
                table.writerow(
                    [row[k] if isinstance(row[k], str) else json.dumps(row[k]) for k in names]
                )
        elif path.name.endswith(".json"):
            file.write("[\n")
            for i in range(n):
                file.write((",\n" if i else "") + json.dumps(record(i), indent=1))
            file.write("\n]\n")
        else:
            for i in range(n):
                file.write(json.dumps(record(i)) + "\n")
    return path


def record(i: int) -> dict[str, object]:
    def text(seed: int, n_words: int) -> str:
        return " ".join(WORDS[(seed * 7 + k * k) % len(WORDS)] for k in range(n_words))

    return {
        "id": f"bench-{i}",
        "prompt": f"Question {i // 2}: {text(i // 2, 30)}?",
        "response_a": f"{i} {text(i, 60)}.",
        "response_b": f"{i} {text(i + 1, 60)}!",
        "model_a": f"model-{i % 5}",
        "model_b": f"model-{i % 5 + 1}",
        "metadata": {"topic": i % 11},
        "preferences": [{"rater": f"person-{i % 97}", "choice": "ab"[i % 2], "seconds": 12.5}],
        "verdicts": [{"rater": "judge", "prob_a": (i % 99 + 0.5) / 100}],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        main()
