"""How fast a dataset is previewed and frozen, and how much memory that takes: a table.

    python -m tests.bench.datasets [--n 2000 100000]

Every line is a process of its own on one SQLite database in a temporary folder, with comparisons of
about 1 kB on as many prompts, each with three votes; prompts are 30 words drawn from 2,000. "of one
template" is the worst case: prompts of 16 templates that differ in a number, so that nearly all say
nearly the same. "labels of now" is what a launch does without a dataset: majority, nothing sought.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

LINES = {
    "labels of now": {"near_duplicates": 0.0},
    "previewed and frozen": {},
    "by Dawid-Skene": {"aggregate": "dawid-skene"},
    "of one template": {},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, nargs="+", default=[2_000, 100_000])
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    print(f"{'comparisons':>11} {'what':<21} {'pairs':>9} {'seconds':>8} {'MB':>6} {'peak MB':>8}")
    for n in options.n:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PREFLOOP_STORAGE": folder}
            environment.pop("DATABASE_URL", None)
            run(["make", str(n)], environment)
            for name in LINES:
                found = run(["measure", name], environment)
                print(
                    f"{n:>11,} {name:<21} {found['pairs']:>9,} {found['seconds']:>8.1f} "
                    f"{found['mb']:>6.0f} {found['peak_mb']:>8.0f}",
                    flush=True,
                )


def run(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench.datasets", "--one", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def one(what: str, name: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from labeling.models import Project
    from labeling.storage import storage_path
    from training.dataset_settings import DatasetSettings
    from training.datasets import freeze
    from training.previews import build

    if what == "make":
        make(int(name))
        print("{}")
        return
    project = Project.objects.get(slug="bench")
    if name == "of one template":
        use_templates(project)
    settings = DatasetSettings(**LINES[name])
    started = time.perf_counter()
    if settings.near_duplicates:
        _preview, dataset = build(project, settings, freezing=True)
    else:
        dataset = freeze(project, settings)
    seconds = time.perf_counter() - started
    found = {
        "pairs": dataset.counts["pairs"],
        "seconds": seconds,
        "mb": storage_path(dataset.path).stat().st_size / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    dataset.delete()
    print(json.dumps(found))


def make(n: int) -> None:
    from labeling.models import Project
    from tests.bench import exports

    exports.make(n)
    draw = random.Random(1)
    words = [f"word{i}" for i in range(2_000)]
    project = Project.objects.get(slug="bench")
    change_prompts(project, lambda number: " ".join(draw.choices(words, k=30)))


def use_templates(project) -> None:
    def text(number: int) -> str:
        words = [f"word{number % 16}x{place}" for place in range(30)]
        return f"Question {number}: {' '.join(words)}"

    change_prompts(project, text)


def change_prompts(project, text_of) -> None:
    changed = []
    for number, prompt in enumerate(project.prompts.order_by("pk").iterator()):
        prompt.messages = [{"role": "user", "content": text_of(number)}]
        changed.append(prompt)
        if len(changed) == 500:
            type(prompt).objects.bulk_update(changed, ["messages"])
            changed = []
    if changed:
        type(changed[0]).objects.bulk_update(changed, ["messages"])


if __name__ == "__main__":
    main()
