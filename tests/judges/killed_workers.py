"""A program for tests: real judge commands as forked processes, some killed at random moments.

python -m tests.judges.killed_workers MODEL LOG SEED kills|share|cancel

Forked, because a process that has imported torch already is killed in its work, not in its imports.
Every batch is noted in LOG once the model has answered and before anything is kept. Prints one JSON
object with what the database holds at the end.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

django.setup()

import torch  # noqa: E402, F401 - before the forks
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402

from judges import runs  # noqa: E402
from judges.ml import engine  # noqa: E402, F401
from judges.models import Claim, JudgeRun, RunWorker, Verdict  # noqa: E402
from labeling.models import Comparison, Preference  # noqa: E402
from tests.factories import ComparisonFactory, ProjectFactory  # noqa: E402

MODEL, LOG, SEED, WHAT = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
N = 80 if WHAT == "share" else 30
# Three who share a run stop after their second batch until this file is there: else a quick worker
# would be done before the third has loaded its model.
ALL_AT_WORK = LOG.with_suffix(".all-at-work")
CHANCE = random.Random(SEED)
CALL = {
    "project": "kitchen",
    "judge": "tiny",
    "model": MODEL,
    "set": ["max_rationale_tokens=24", "min_answer_mass=0"],
    "batch_tokens": 1,
    "json": True,
}
asked = runs._batches


def noted(*arguments: Any) -> Any:
    """The batches of the real function, each noted with its comparisons and this process."""
    for n, batch in enumerate(asked(*arguments), start=1):
        if WHAT == "share" and n > 2:
            wait(ALL_AT_WORK.exists)
        line = json.dumps([os.getpid(), [comparison.pk for comparison, _outcome in batch]])
        with LOG.open("a") as log:
            log.write(line + "\n")
        yield batch


runs._batches = noted


def start(**more: Any) -> int:
    """The process of a `judge` command."""
    connections.close_all()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            call_command("judge", stdout=nowhere, stderr=nowhere, **CALL, **more)
        status = 0
    finally:
        os._exit(status)


def wait(until: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError("the workers do not get on")
        time.sleep(0.005)


def n_asked() -> int:
    return len(LOG.read_text().splitlines()) if LOG.exists() else 0


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def kept() -> list[list[Any]]:
    rows = Verdict.objects.order_by("pk").values_list("comparison_id", "pk", "prob_a", "created_at")
    return [[*row[:3], row[3].isoformat()] for row in rows]


def kill_at_random_moments() -> dict[str, Any]:
    """One worker, killed again and again, and started again by the same call."""
    starts = []
    for _kill in range(6):
        starts.append([None, kept()])
        before = n_asked()
        pid = start()
        starts[-1][0] = pid
        wanted = before + CHANCE.randint(0, 5)
        gone = False
        while n_asked() < wanted and not gone:
            gone = ended(pid)
            time.sleep(0.005)
        time.sleep(CHANCE.uniform(0, 0.6 if wanted == before else 0.15))
        if not gone:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    starts.append([None, kept()])
    pid = start()
    starts[-1][0] = pid
    _pid, status = os.waitpid(pid, 0)
    return {"starts": starts, "last_status": status}


def share() -> dict[str, Any]:
    """Three workers on one run; one is killed while it holds comparisons."""
    pids = [start()]
    wait(lambda: n_asked() > 0)
    pids += [start(join=True), start(join=True)]
    wait(lambda: RunWorker.objects.exclude(asking_since=None).filter(left_at=None).count() == 3)
    ALL_AT_WORK.touch()
    wait(lambda: RunWorker.objects.filter(n_judged__gt=0, left_at=None).count() == 3)
    victim = pids[CHANCE.randrange(3)]
    wait(lambda: Claim.objects.filter(worker__name__contains=f":{victim}:").exists())
    held = list(
        Claim.objects.filter(worker__name__contains=f":{victim}:").values_list(
            "comparison_id", flat=True
        )
    )
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids if pid != victim]
    return {"pids": pids, "victim": victim, "held": held, "statuses": statuses}


def cancel() -> dict[str, Any]:
    """A run that is cancelled while its model loads, and one in the middle of a long batch."""
    seconds = {}
    CALL["set"] = ["max_rationale_tokens=700", "min_answer_mass=0"]
    CALL["batch_tokens"] = 10**6
    loaded = runs.opened

    def load_slowly(*arguments: Any, **options: Any) -> Any:
        LOG.with_suffix(".loading").touch()
        for _moment in range(6000):
            time.sleep(0.01)
        return loaded(*arguments, **options)

    for moment in ("loading", "computing"):
        runs.opened = load_slowly if moment == "loading" else loaded
        pid = start()
        if moment == "loading":
            wait(LOG.with_suffix(".loading").exists)
        else:
            wait(lambda: RunWorker.objects.exclude(asking_since=None).filter(left_at=None))
            time.sleep(0.5)
        run = JudgeRun.objects.latest("pk")
        run.request_cancel()
        asked_at = time.monotonic()
        wait(lambda pid=pid: ended(pid))
        seconds[moment] = time.monotonic() - asked_at
    return {"seconds": seconds, "n_asked": n_asked()}


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    call_command("flush", interactive=False, verbosity=0)
    ComparisonFactory.create_batch(N, project=ProjectFactory(slug="kitchen"))
    result = {"kills": kill_at_random_moments, "share": share, "cancel": cancel}[WHAT]()
    current = Preference.objects.current()
    print(
        json.dumps(
            result
            | {
                "kept": kept(),
                "n_comparisons": Comparison.objects.count(),
                "n_current": current.count(),
                "n_compared": current.values("comparison").distinct().count(),
                "n_preferences": Preference.objects.count(),
                "n_claims": Claim.objects.count(),
                "runs": list(JudgeRun.objects.values_list("status", "n_done", "n_total")),
                "workers": list(RunWorker.objects.values_list("name", "n_judged", "problem")),
            }
        )
    )
