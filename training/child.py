"""The process that trains: one for every attempt of a run, started and watched by its worker.

python -m training.child RUN CLAIM

What it does to itself, to the GPU or to the machine's memory ends the run and never the worker. It
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

PR_SET_PDEATHSIG = 1  # prctl(2) of Linux
GOES_FIRST = "500"
"""Added to what the system holds against this process when it must end one for want of memory."""


def end_with_worker() -> None:
    """See to it that this process and its children do not outlive the worker."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the pipe alone has to do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait_for_the_end() -> None:
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait_for_the_end, name="ends with the worker", daemon=True).start()


def go_first() -> None:
    """Let the system choose this process before the worker, the pages and the database."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(GOES_FIRST)


def main() -> None:
    run_id, claim = int(sys.argv[1]), sys.argv[2]
    end_with_worker()
    go_first()
    faulthandler.enable()  # a crash leaves the line of Python that led to it
    import django

    django.setup()
    from django.db import connections

    from training.models import Run
    from training.tasks import go_on

    run = Run.objects.filter(pk=run_id, status=Run.Status.RUNNING, worker=claim).first()
    if run is not None:  # else it has gone to another worker meanwhile
        go_on(run)
    connections.close_all()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. Compiled libraries that crash while the interpreter takes itself apart would
    # make a bad end of a good one.
    os._exit(0)


if __name__ == "__main__":
    main()
