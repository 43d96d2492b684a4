"""The process that does what loads a model: started and watched by its worker.

python -m training.child KIND KEY CLAIM     one job, in a new process each time
python -m training.child serve              answers of the playground, as long as the worker asks

Where several processes share a run, `accelerate launch` starts the first of these lines in each; on
further machines it starts

python -m training.child join               whatever run the first machine begins next

What it does to itself, to the GPU or to the machine's memory ends the job and never the worker. It
ends with its worker: standard input is a pipe that closes when the worker is gone, however it went.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

PR_SET_PDEATHSIG = 1  # prctl(2) of Linux
GOES_FIRST = "500"
"""Added to what the system holds against this process when it must end one for want of memory."""
SERVE, JOIN = "serve", "join"


def end_with_worker(*, has_worker: bool) -> "SimpleQueue[str]":
    """See to it that this process and its children do not outlive the worker.

    Args: has_worker: whether standard input is a worker's pipe; else it ends with its launcher.
    Returns: the lines that the worker writes.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the pipe alone has to do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        # Not sys.stdin, whose lock this thread would hold while the interpreter ends.
        waiting = b""
        while block := os.read(0, 4096):
            *whole, waiting = (waiting + block).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if has_worker:
        threading.Thread(target=listen, name="ends with the worker", daemon=True).start()
    return lines


def go_first() -> None:
    """Let the system choose this process before the worker, the pages and the database."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(GOES_FIRST)


def main() -> None:
    lines = end_with_worker(has_worker=sys.argv[1] != JOIN)
    go_first()
    faulthandler.enable()  # a crash leaves the line of Python that led to it
    import django

    django.setup()
    from django.db import connections

    if sys.argv[1] == SERVE:
        serve(lines)
    words = sys.argv[1:]
    if "WORLD_SIZE" in os.environ:
        from training.ml import ranks

        ranks.meet()
        words = ranks.from_first(words)
    kind, key, claim = words
    done = carry_out(kind, int(key), claim)
    connections.close_all()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. Compiled libraries that crash while the interpreter takes itself apart would
    # make a bad end of a good one. Processes that share a run wait for each other: one that leaves
    # before its end says so, and the launcher ends the others.
    os._exit(0 if done or "WORLD_SIZE" not in os.environ else 1)


def carry_out(kind: str, key: int, claim: str) -> bool:
    """Do a job if it is still the worker's who claimed it: else it has gone to another meanwhile.

    Args: kind: the name of its model, in small letters.
    Returns: whether it was carried to a good end.
    """
    from django.apps import apps

    from labeling.jobs import Job
    from training.tasks import do, follow

    jobs = apps.get_model("training", kind).objects
    job = jobs.filter(pk=key, status=Job.Status.RUNNING, worker=claim).first()
    if job is None:
        return False
    if int(os.environ.get("RANK", "0")) > 0:
        follow(job)
        return True
    do(job)
    return bool(job.status == Job.Status.SUCCEEDED)


def serve(lines: "SimpleQueue[str]") -> None:
    """Do the jobs whose KIND, KEY and CLAIM the worker writes, a line each, until it ends this."""
    from django.db import connections

    while True:
        kind, key, claim = lines.get().split(" ", 2)
        carry_out(kind, int(key), claim)
        connections.close_all()  # it may be minutes until the next one


if __name__ == "__main__":
    main()
