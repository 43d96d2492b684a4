"""A million votes of 500 raters in a database: the jobs of agreement and leaderboard, end to end.

    python -m tests.bench.reports [--database sqlite postgresql] [--votes 1000000] [--raters 500]
                                  [--judges 3] [--seed 7]

Fills a database in a temporary folder: comparisons of 20 sources with texts of some 700
characters, 2.5 to a prompt, five people's votes on each, one of 40 topics, a thousand known
answers; and the verdicts of AI judges, in both orders, on every comparison. Then each job of
`labeling/tasks.py` runs as a worker runs it, in a process of its own, on the processors that the
bench is given (`taskset -c 0,1`), and prints

seconds      by the clock, from the start of the task until its row is written; the import of the
             libraries apart
processor    of this process (the database's is not in it)
MB           the most that the process held, libraries in it
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.filling import fresh_database, gather_statistics, write_rows

PER_COMPARISON, PER_PROMPT, SOURCES, TOPICS, GOLD = 5, 2.5, 20, 40, 1_000
CHOICES = ("a", "b", "tie")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--raters", type=int, default=500)
    parser.add_argument("--judges", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--job", choices=JOBS)
    options = parser.parse_args()
    if options.job:  # in a process that has the database from the one that made it
        print(json.dumps(carried_out(options.job)))
        return
    if len(options.database) > 1:  # Django is set up once a process
        for kind in options.database:
            command = [sys.executable, "-m", "tests.bench.reports", *sys.argv[1:]]
            subprocess.run([*command, "--database", kind], check=True)
        return
    with fresh_database(options.database[0]):
        began = time.perf_counter()
        fill(options.votes // PER_COMPARISON, options.raters, options.judges, options.seed)
        print(
            f"{options.database[0]}: {options.votes:,} votes of {options.raters} raters and "
            f"{options.votes // PER_COMPARISON * options.judges:,} verdicts of {options.judges} "
            f"judges, seed {options.seed}; filled in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        for job in JOBS:
            command = [sys.executable, "-m", "tests.bench.reports", "--job", job]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(
                f"{job:<34} {row['seconds']:6.1f} s ({row['cpu']:.1f} s of processor)   "
                f"{row['mb']:6,.0f} MB   {row['words']}",
                flush=True,
            )


# The rows -----------------------------------------------------------------------------------------


def fill(n_comparisons: int, n_raters: int, n_judges: int, seed: int) -> None:
    """A project "bench" with all its votes."""
    from labeling.models import Comparison, Preference, Project, Prompt, Rater, Response
    from tests.bench.labeling import text

    rng, chance = np.random.default_rng(seed), random.Random(seed)
    project = Project.objects.create(slug="bench", name="Bench", labels_per_comparison=5)
    people = Rater.objects.bulk_create(
        Rater(project=project, name=f"rater {i}") for i in range(n_raters)
    )
    judges = Rater.objects.bulk_create(
        Rater(project=project, kind=Rater.Kind.JUDGE, name=f"judge {i}") for i in range(n_judges)
    )
    now = time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime())
    n_prompts = int(n_comparisons / PER_PROMPT)
    bodies = [text(chance, 600)[:1_400] for _ in range(1_000)]
    strength = rng.normal(0, 0.6, SOURCES)
    first = rng.integers(SOURCES, size=n_comparisons)
    second = (first + rng.integers(1, SOURCES, size=n_comparisons)) % SOURCES
    prompt = np.sort(rng.integers(n_prompts, size=n_comparisons))
    chosen = rng.integers(len(bodies), size=2 * n_comparisons)
    key = rng.random(n_comparisons)

    def message(role: str, words: str) -> str:
        return json.dumps([{"role": role, "content": words}])

    write_rows(
        Prompt,
        ["id", "messages", "content_hash", "created_at", "project_id"],
        ((i + 1, message("user", f"question {i}"), str(i), now, project.pk)
         for i in range(n_prompts)),
    )  # fmt: skip
    write_rows(
        Response,
        ["id", "messages", "content_hash", "source", "n_chars", "created_at", "prompt_id"],
        ((i + 1, message("assistant", bodies[body]), str(i), f"model {source}", len(bodies[body]),
          now, where + 1)
         for i, (body, source, where) in enumerate(
             zip(chosen.tolist(), np.column_stack([first, second]).ravel().tolist(),
                 np.repeat(prompt, 2).tolist(), strict=True))),
    )  # fmt: skip
    d = strength[first] - strength[second]
    parts = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full(n_comparisons, 0.45)])
    truth = (rng.random(n_comparisons) > np.cumsum(parts / parts.sum(axis=0), axis=0)).sum(axis=0)
    known = set(rng.choice(n_comparisons, min(GOLD, n_comparisons // 10), replace=False).tolist())
    write_rows(
        Comparison,
        ["id", "content_hash", "external_id", "gold", "purpose", "metadata", "leaks",
         "labels_wanted", "open_places", "priority", "random_key", "created_at", "project_id",
         "prompt_id", "response_a_id", "response_b_id"],
        ((i + 1, str(i), f"row-{i}", CHOICES[truth[i]] if i in known else "", "work",
          json.dumps({"topic": f"topic {i % TOPICS}"}), "[]", PER_COMPARISON, 0, 0, where, now,
          project.pk, asked + 1, 2 * i + 1, 2 * i + 2)
         for i, (where, asked) in enumerate(zip(key.tolist(), prompt.tolist(), strict=True))),
    )  # fmt: skip
    votes = votes_of_people([row.pk for row in people], truth, key, project.audit_share, rng)
    verdicts = verdicts_of_judges([row.pk for row in judges], d, truth, rng)
    write_rows(
        Preference,
        ["id", "comparison_id", "rater_id", "choice", "strength", "prob_a", "prob_a_ab",
         "prob_a_ba", "rationale", "tags", "aspects", "seconds", "shown_first",
         "inclusion_probability", "audit", "certified", "created_at"],
        ((i, *row) for i, row in enumerate((*votes, *verdicts), start=1)),
    )  # fmt: skip
    gather_statistics()


def votes_of_people(
    raters: list[int], truth: np.ndarray, key: np.ndarray, audit_share: float, rng: Any
) -> Iterator[tuple]:
    """Of known accuracy and known leaning to what stands first, some far busier than others."""
    n_items, n_raters = len(truth), len(raters)
    accuracy = rng.uniform(0.5, 0.95, n_raters)
    leaning = rng.uniform(0, 0.3, n_raters)
    busy = rng.lognormal(0, 0.7, n_raters)
    groups = np.array_split(rng.permutation(n_raters), PER_COMPARISON)
    rater = np.column_stack(
        [rng.choice(g, size=n_items, p=busy[g] / busy[g].sum()) for g in groups]
    ).ravel()
    # In the order of time the votes of a comparison lie apart, as people leave them.
    item = np.repeat(np.arange(n_items), PER_COMPARISON)
    order = np.argsort(item + rng.uniform(0, n_items / 10, len(item)))
    rater, item = rater[order], item[order]
    n = len(item)
    first = rng.integers(0, 2, n)
    wrong = (truth[item] + rng.integers(1, 3, n)) % 3
    choice = np.where(rng.random(n) < accuracy[rater], truth[item], wrong)
    choice = np.where(rng.random(n) < leaning[rater], first, choice)
    strength, seconds = rng.integers(1, 4, n), rng.lognormal(3, 0.6, n)
    audit = key[item] < audit_share
    at = 1_750_000_000 + np.sort(rng.uniform(0, 30 * 86_400, n))
    pk = np.array(raters)[rater]
    for row in zip(
        (item + 1).tolist(), pk.tolist(), choice.tolist(), strength.tolist(), seconds.tolist(),
        first.tolist(), audit.tolist(), at.tolist(), strict=True,
    ):  # fmt: skip
        which, who, said, how_much, took, shown, drawn, when = row
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when)) + f".{when % 1:.6f}"[2:]
        yield (
            *(which, who, CHOICES[said], how_much if said < 2 else None, None, None, None, ""),
            *("[]", "{}", took, CHOICES[shown], audit_share if drawn else 1.0, drawn, False),
            moment + "+00:00",
        )


def verdicts_of_judges(
    raters: list[int], d: np.ndarray, truth: np.ndarray, rng: Any
) -> Iterator[tuple]:
    """Judges who see the truth through noise, and lean to the first place a little."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S.000000+00:00", time.gmtime(1_753_000_000))
    for place, rater in enumerate(raters):
        logit = np.array([1.5, -1.5, 0])[truth] + d + rng.normal(0, 1 + place / 2, len(d))
        ab, ba = (1 / (1 + np.exp(-logit - lean)) for lean in (0.3, -0.3))
        mean = (ab + ba) / 2
        for i, (p, p_ab, p_ba) in enumerate(
            zip(mean.tolist(), ab.tolist(), ba.tolist(), strict=True)
        ):
            yield (
                *(i + 1, rater, "a" if p > 0.5 else "b", None, p, p_ab, p_ba, "", "[]", "{}"),
                *(0.2, "", None, False, False, moment),
            )


# The jobs -----------------------------------------------------------------------------------------


def agreement(project: Any) -> str:
    from labeling.models import AgreementReport
    from labeling.tasks import run_agreement

    report = AgreementReport.objects.create(project=project)
    run_agreement(report.pk)
    report.refresh_from_db()
    truth = report.result["truth"]
    return (
        f"alpha {report.result['krippendorff_alpha']['value']:.4f}, {len(truth['raters'])} raters, "
        f"{truth['steps']} steps of the rater model"
    )


def leaderboard(project: Any) -> str:
    from labeling.models import Leaderboard
    from labeling.tasks import run_leaderboard

    board = Leaderboard.objects.create(project=project)
    run_leaderboard(board.pk)
    board.refresh_from_db()
    return f"{len(board.result['boards'])} boards, {len(board.result['pairs'])} pairs of sources"


def labels(project: Any) -> str:
    from labeling.posteriors import posteriors

    return f"{len(posteriors(project, 'human')):,} labels"


JOBS: dict[str, Callable[[Any], str]] = {
    "agreement with Dawid and Skene": agreement,
    "the same, nothing new": agreement,
    "leaderboard": leaderboard,
    "labels by Dawid and Skene": labels,
}


def carried_out(job: str) -> dict[str, Any]:
    """One job, in this process."""
    import os

    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from labeling import agreement_scales, leaderboard, truth  # noqa: F401 - libraries, apart
    from labeling.models import Project

    project = Project.objects.get(slug="bench")
    began, used = time.perf_counter(), time.process_time()
    words = JOBS[job](project)
    # Not ru_maxrss, which a child inherits from the process that made it.
    status = Path("/proc/self/status").read_text()
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - used,
        "mb": int(status.split("VmHWM:")[1].split()[0]) / 1024,
        "words": words,
    }


if __name__ == "__main__":
    main()
