"""A worker's side of a run: the process that trains, its signs of life, and its end.

A process of its own for each run, and a new interpreter each time: it costs some seconds of imports
(docs/training.md has the figures) and gives back everything at the end, a GPU's memory as well.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db import DatabaseError, connection

from labeling.storage import storage_path
from training import causes
from training.models import Run

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at the process and at the run's row."""
CANCEL_SECONDS = 2.0
"""Time to end by itself, at its next report, for a run that was asked to stop; then it is killed.
What it saved last is whole in any case: checkpoints are sealed."""
LAST_SECONDS = 30.0
"""Time to end for a process whose run has ended."""
LAST_LINES = 20
OUTPUT = "output.log"
"""In the run's folder: what the training process and its libraries wrote, of all attempts."""
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def carry_out_in_child(run: Run) -> None:
    """Train in a process of its own and wait for its end; the run's row then says how it ended.

    The caller keeps the run's claim alive meanwhile.
    """
    folder = storage_path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    n_killed_before = n_killed_for_memory()
    with (folder / OUTPUT).open("ab") as output:
        child = start(run, output)
        try:
            peak, stopped = watch(run, child)
        finally:
            kill(child)
    if not _is_mine(run):
        return
    if stopped:
        if run.finish(Run.Status.CANCELLED):
            run.events.create(
                text="Cancelled in the middle of a step. Resume goes on from the last checkpoint."
            )
        return
    ran_out = n_killed_for_memory() > n_killed_before
    cause, words = causes.of_exit(child.returncode, peak, ran_out=ran_out)
    logger.error("run %s: %s", run.pk, words)
    if run.finish(Run.Status.FAILED, error=words, cause=cause):
        run.events.create(text=f"Failed: {words}\n{last_words(folder / OUTPUT)}")


def start(run: Run, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process that trains, in a group of its own, so that its own children end with it."""
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "training.child", str(run.pk), run.worker],
        cwd=settings.BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def watch(run: Run, child: subprocess.Popen[bytes]) -> tuple[int | None, bool]:
    """Wait for the end of the process, and bring it about when the run is to stop.

    Returns: bytes that it held at most; whether it had to be killed because of a cancel.
    """
    peak: int | None = None
    kill_at: float | None = None
    stopped = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
            return peak, stopped
        peak = max(filter(None, (peak, most_held(child.pid))), default=None)
        if kill_at is None:
            seconds = seconds_to_live(run)
            kill_at = None if seconds is None else time.monotonic() + seconds
        elif time.monotonic() >= kill_at:
            stopped = True
            kill(child)


def seconds_to_live(run: Run) -> float | None:
    """How long the process may still take; None while there is no reason to end it."""
    try:
        row = Run.objects.filter(pk=run.pk).values("status", "worker", "cancel_requested").first()
    except DatabaseError as error:  # busy or restarting: the next look tries again
        logger.warning("watching run %s: %s", run.pk, error)
        connection.close()
        return None
    if row is None or row["worker"] != run.worker:  # deleted, or gone to another worker
        return 0.0
    if row["status"] == Run.Status.LOST:  # while the database was away: its claim has lapsed
        return 0.0
    if row["status"] != Run.Status.RUNNING:
        return LAST_SECONDS
    return CANCEL_SECONDS if row["cancel_requested"] else None


def kill(child: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin:
        child.stdin.close()


def most_held(pid: int) -> int | None:
    """The largest resident set of a process so far, in bytes, where Linux tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def n_killed_for_memory() -> int:
    """Processes that the system has ended for want of memory, in this container or at all."""
    n = 0
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    n += int(line.split()[1])
    return n


def last_words(path: Path) -> str:
    """The last lines of what the process wrote."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8000))
        lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])
    return ""


def _is_mine(run: Run) -> bool:
    return Run.objects.filter(pk=run.pk, status=Run.Status.RUNNING, worker=run.worker).exists()
