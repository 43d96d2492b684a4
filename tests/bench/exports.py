"""How fast labels go out, and how much memory that takes: a table.

    python -m tests.bench.exports [--n 2000 100000]

Every line is a process of its own on one SQLite database in a temporary folder, with comparisons of
about 1 kB, each with three votes. "seconds" is one call of `export_rows` inside the process, taken
once before to warm it up (at 2,000 comparisons; larger ones are taken once); "over HTTP" is the
download of the page by Django's test client, middleware and sign-in included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

CHOICES = (
    ("jsonl", "votes"),
    ("trl", "majority"),
    ("trl-chat", "soft"),
    ("trl", "dawid-skene"),
    ("csv", "votes"),
    ("parquet", "votes"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, nargs="+", default=[2_000, 100_000])
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    head = f"{'comparisons':>11} {'form':<9} {'rule':<12} {'rows':>9} {'seconds':>8} "
    print(head + f"{'over HTTP':>9} {'rows/s':>8} {'MB':>7} {'peak MB':>8}")
    for n in options.n:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PREFLOOP_STORAGE": folder}
            environment.pop("DATABASE_URL", None)
            run(["make", str(n)], environment)
            for form, rule in CHOICES:
                found = run([form, rule], environment)
                http = f"{found['http']:>9.3f}" if found["http"] else f"{'–':>9}"
                print(
                    f"{n:>11,} {form:<9} {rule:<12} {found['rows']:>9,} {found['seconds']:>8.3f} "
                    f"{http} {found['rows'] / found['seconds']:>8,.0f} {found['mb']:>7.1f} "
                    f"{found['peak_mb']:>8.0f}",
                    flush=True,
                )


def run(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench.exports", "--one", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def one(form: str, rule: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    if form == "make":
        make(int(rule))
        print("{}")
        return
    from django.contrib.auth import get_user_model
    from django.test import Client

    from labeling.export import ExportReport, export_rows
    from labeling.models import Project

    project = Project.objects.get(slug="bench")
    is_small = project.comparisons.count() <= 2_000
    for _ in range(2 if is_small else 1):
        report, started, n_bytes = ExportReport(), time.perf_counter(), 0
        for block in export_rows(project, form, "human", rule, report):
            n_bytes += len(block)
        seconds = time.perf_counter() - started
    http = None
    if is_small:
        user = get_user_model().objects.get(username="bench")
        client = Client(SERVER_NAME="localhost")
        client.force_login(user)
        query = f"format={form}&labels=human&aggregate={rule}"
        for _ in range(2):
            started = time.perf_counter()
            response = client.get(f"/projects/bench/export/download/?{query}")
            assert sum(map(len, response.streaming_content)) == n_bytes
            http = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"rows": report.rows, "seconds": seconds, "http": http, "mb": n_bytes / 1e6}
    print(json.dumps(found | {"peak_mb": peak_mb}))


def make(n: int) -> None:
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    from labeling.models import Comparison, Preference, Project, Prompt, Rater, Response

    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("bench")
    project = Project.objects.create(slug="bench", name="Bench")
    raters = Rater.objects.bulk_create(
        [Rater(project=project, name=f"person {i}") for i in range(30)]
    )
    words = [
        "the",
        "river",
        "is",
        "calm",
        "because",
        "water",
        "often",
        "finds",
        "a",
        "way",
        "and",
        "a",
        "model",
        "may",
        "say",
        "so",
    ]

    def text(seed: int, n_words: int) -> str:
        return " ".join(words[(seed * 7 + k * k) % len(words)] for k in range(n_words))

    for start in range(0, n, 2_000):
        numbers = range(start, min(n, start + 2_000))
        prompts = Prompt.objects.bulk_create(
            [
                Prompt(
                    project=project,
                    messages=[{"role": "user", "content": f"Question {i}: {text(i, 30)}?"}],
                    content_hash=f"{i:064d}",
                )
                for i in numbers
            ]
        )
        responses = Response.objects.bulk_create(
            [
                Response(
                    prompt=prompt,
                    messages=[{"role": "assistant", "content": f"{side}{i} {text(i, 60)}."}],
                    content_hash=f"{i:063d}{side}",
                    source=f"model-{side}",
                    n_chars=300,
                )
                for i, prompt in zip(numbers, prompts, strict=True)
                for side in "ab"
            ]
        )
        comparisons = Comparison.objects.bulk_create(
            [
                Comparison(
                    project=project,
                    prompt=prompt,
                    response_a=responses[2 * k],
                    response_b=responses[2 * k + 1],
                    content_hash=f"{i:064d}",
                    external_id=f"bench-{i}",
                    metadata={"topic": i % 11},
                    labels_wanted=3,
                    open_places=0,
                )
                for k, (i, prompt) in enumerate(zip(numbers, prompts, strict=True))
            ]
        )
        Preference.objects.bulk_create(
            [
                Preference(
                    comparison=comparison,
                    rater=raters[(i + 7 * k) % len(raters)],
                    # most say what the number says, some something else
                    choice=["ab"[i % 2], "a", "b", "tie"][(i * 31 + k * 17) % 13 // 4],
                    strength=k + 1,
                    seconds=12.5,
                    shown_first="ab"[(i + k) % 2],
                )
                for i, comparison in zip(numbers, comparisons, strict=True)
                for k in range(3)
            ]
        )


if __name__ == "__main__":
    main()
