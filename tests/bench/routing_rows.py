"""How long counting, routing and taking back take in a large project: a table.

    python -m tests.bench.routing_rows [--n 100000]

One SQLite database in a temporary folder. The judge has judged everything and is sure of half of
it; people have labeled a thousand comparisons of the audit stream. "tend" is the sweep's look at a
certificate in force, "figures" what the page computes while a slider is moved.
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SEED = 20_261_121
AT_ONCE = 5_000
LABELED = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFLOOP_STORAGE"] = folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        os.environ.pop("DATABASE_URL", None)
        import django

        django.setup()
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

    print(f"{n:,} comparisons")
    timed("count the audit stream", lambda: run("count"))
    timed("count, test, route with priorities", lambda: run("issue"))
    certificate = project.certificates.get()
    timed("route again, nothing new", lambda: run("route"))
    timed("tend", lambda: tend(certificate))
    timed("figures", lambda: outlook(project, policy_of(project)))
    revoke(certificate, "lead")
    timed("withdraw", lambda: run("withdraw"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:,.0f} MB", flush=True)


def timed(name: str, do: Callable[[], Any]) -> None:
    began = time.perf_counter()
    do()
    print(f"{name:<36} {time.perf_counter() - began:>9.2f} s", flush=True)


def make(n: int) -> Any:
    from django.core.management import call_command

    from judges.judging import judge_version
    from judges.ml.config import JudgeRecipe
    from judges.models import ChosenJudge, Verdict
    from labeling.models import Comparison, Preference, Project, Prompt, Response

    call_command("migrate", verbosity=0, stdout=sys.stderr)
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
    labeled = sorted(rng.random() for _ in range(n))[min(n, LABELED) - 1]
    for start in range(0, n, AT_ONCE):
        comparisons = Comparison.objects.bulk_create(
            Comparison(
                project=project,
                prompt=prompt,
                response_a=a,
                response_b=b,
                content_hash=str(i),
                random_key=rng.random(),
            )
            for i in range(start, min(n, start + AT_ONCE))
        )
        said = [(c, rng.choice((0.97, rng.uniform(0.5, 0.9)))) for c in comparisons]
        Verdict.objects.bulk_create(
            Verdict(
                version=version,
                comparison=c,
                prob_a=p,
                answer_mass_ab=1,
                answer_mass_ba=1,
                parsed=True,
                n_tokens=1,
                seconds=0.1,
            )
            for c, p in said
        )
        Preference.objects.bulk_create(
            [Preference(comparison=c, rater=version.rater, choice="a", prob_a=p) for c, p in said]
            + list(labels(person, said, min(labeled, project.audit_share), rng))
        )
    answered = Preference.objects.filter(audit=True).values("comparison")
    Comparison.objects.filter(pk__in=answered).update(open_places=0)
    return project


def labels(person: Any, said: Any, below: float, rng: random.Random) -> Iterator[Any]:
    """People say A as often as the judge expects."""
    from labeling.models import Preference

    for comparison, prob in said:
        if comparison.random_key < below:
            yield Preference(
                comparison=comparison,
                rater=person,
                choice="a" if rng.random() < prob else "b",
                audit=True,
                inclusion_probability=0.1,
                seconds=30,
            )


if __name__ == "__main__":
    main()
