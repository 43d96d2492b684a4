"""How long counting, routing and taking back take in a large project: a table.

    python -m tests.bench.routing_rows [--n 1000000] [--database sqlite postgresql]

A database in a temporary folder. The judge has judged everything and is sure of half of it; people
have labeled a thousand comparisons of the audit stream. "tend" is the sweep's look at a certificate
in force, "figures" what the page computes while a slider is moved.

Meanwhile somebody else, in a process of their own, changes one comparison after another, as raters
do; "waited" is how long one of these changes took, at most and in 99 of 100 cases. That is what a
run's locks cost.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.filling import fresh_database, gather_statistics, write_rows

SEED = 20_261_121
LABELED = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--raters", action="store_true", help="be the somebody else")
    options = parser.parse_args()
    if options.raters:
        change_until_told(options.n)
        return
    if len(options.database) > 1:  # Django is set up once a process
        for kind in options.database:
            command = [sys.executable, "-m", "tests.bench.routing_rows", "--n", str(options.n)]
            subprocess.run([*command, "--database", kind], check=True)
        return
    with fresh_database(options.database[0]):
        print(f"{options.database[0]}, {options.n:,} comparisons", flush=True)
        measure(options.n)


def measure(n: int) -> None:
    from judges.certificates import new_run, policy_of, revoke, set_policy, tend
    from judges.models import RoutingRun
    from judges.outlook import outlook
    from judges.routing import carry_out

    project = make(n)
    set_policy(project, None, purpose="reward_model")

    def run(kind: str) -> dict[str, Any]:
        job = RoutingRun.objects.claim(new_run(project, kind).pk)
        carry_out(job)
        return job.result

    timed(n, "count the audit stream", lambda: run("count"))
    timed(n, "count, test, route with priorities", lambda: run("issue"))
    certificate = project.certificates.get()
    timed(n, "route again, nothing new", lambda: run("route"))
    timed(n, "tend", lambda: tend(certificate))
    timed(n, "figures", lambda: outlook(project, policy_of(project)))
    revoke(certificate, "lead")
    timed(n, "withdraw", lambda: run("withdraw"))
    # Not ru_maxrss, which a child inherits from the process that made it.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    print(f"peak memory {peak:,.0f} MB", flush=True)


def timed(n: int, name: str, do: Callable[[], Any]) -> None:
    command = [sys.executable, "-m", "tests.bench.routing_rows", "--raters", "--n", str(n)]
    others = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    others.stdout.readline()  # they have begun
    began = time.perf_counter()
    do()
    seconds = time.perf_counter() - began
    row = json.loads(others.communicate("")[0])
    waited = f"{1000 * row['most']:.0f} ms, {1000 * row['in_99']:.0f} ms of {row['n']:,}"
    print(f"{name:<36} {seconds:>9.2f} s   waited {waited}", flush=True)


def change_until_told(n: int) -> None:
    """Change random comparisons until stdin is closed; how long each took."""
    import select

    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.db.models import F

    from labeling.models import Comparison

    chance = random.Random(SEED)

    def change() -> float:
        began = time.perf_counter()
        Comparison.objects.filter(pk=chance.randint(1, n)).update(external_id=F("external_id"))
        return time.perf_counter() - began

    change()
    print("ready", flush=True)
    took = [change()]
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        took.append(change())
    took.sort()
    print(json.dumps({"most": took[-1], "in_99": took[int(0.99 * len(took))], "n": len(took)}))


def make(n: int) -> Any:
    from judges.judging import judge_version
    from judges.ml.config import JudgeRecipe
    from judges.models import ChosenJudge, Verdict
    from labeling.models import Comparison, Preference, Project, Prompt, Response

    rng = random.Random(SEED)
    project = Project.objects.create(slug="bench", name="Bench", audit_share=0.1)
    prompt = Prompt.objects.create(project=project, messages=[], content_hash="p")
    a, b = (
        Response.objects.create(
            prompt=prompt, messages=[], content_hash=side, source=f"model-{side}", n_chars=1
        )
        for side in "ab"
    )
    version, _made = judge_version(project, "judy", "owner/judy", JudgeRecipe(mode="direct"))
    ChosenJudge.objects.create(project=project, version=version)
    person = project.raters.create(name="ann")
    keys = [rng.random() for _ in range(n)]
    probs = [rng.choice((0.97, rng.uniform(0.5, 0.9))) for _ in range(n)]
    below = min(sorted(keys)[min(n, LABELED) - 1], project.audit_share)
    now = datetime.now(UTC)
    write_rows(
        Comparison,
        ["id", "content_hash", "external_id", "gold", "purpose", "metadata", "leaks",
         "labels_wanted", "open_places", "priority", "random_key", "created_at", "project_id",
         "prompt_id", "response_a_id", "response_b_id"],
        ((i, str(i), "", "", "work", "{}", "[]", 1, int(key >= below), 0, key, str(now),
          project.pk, prompt.pk, a.pk, b.pk) for i, key in enumerate(keys, start=1)),
    )  # fmt: skip
    write_rows(
        Verdict,
        ["id", "version_id", "comparison_id", "prob_a", "answer_mass_ab", "answer_mass_ba",
         "parsed", "rationale_ab", "rationale_ba", "aspects", "raw", "measured_by", "n_tokens",
         "n_tokens_written", "n_tokens_cut", "seconds", "problem", "created_at"],
        ((i, version.pk, i, prob, 1.0, 1.0, True, "", "", "{}", "{}", "logprobs", 1, 0, 0, 0.1,
          "", str(now)) for i, prob in enumerate(probs, start=1)),
    )  # fmt: skip

    def answers() -> Iterator[tuple]:
        for i, (key, prob) in enumerate(zip(keys, probs, strict=True), start=1):
            yield (i, version.rater_id, "a", prob, None, None, False)
            if key < below:  # people say A as often as the judge expects
                yield (i, person.pk, "a" if rng.random() < prob else "b", None, 30.0, 0.1, True)

    write_rows(
        Preference,
        ["id", "comparison_id", "rater_id", "choice", "prob_a", "seconds",
         "inclusion_probability", "audit", "rationale", "tags", "aspects", "shown_first",
         "certified", "created_at"],
        ((pk, *row, "", "[]", "{}", "", False, str(now))
         for pk, row in enumerate(answers(), start=1)),
    )  # fmt: skip
    gather_statistics()
    return project


if __name__ == "__main__":
    main()
