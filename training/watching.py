"""A worker's side of what loads a model: the process that does it, its signs of life, and its end.

A process of its own for each job, and a new interpreter each time: it costs some seconds of imports
(docs/training.md has the figures) and gives back everything at the end, a GPU's memory as well. The
playground alone keeps its process from one answer to the next, see training/serving.py.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db import DatabaseError, connection

from labeling.jobs import Job, patiently
from labeling.storage import storage_path
from training import causes
from training.ml.config import IN_PARTS
from training.models import Merge, ModelExport, Run
from training.registry import own_path, remove

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at the process and at the job's row."""
CANCEL_SECONDS = 2.0
"""Time to end by itself, at its next report, for a job that was asked to stop; then it is killed.
What a run saved last is whole in any case: checkpoints are sealed."""
LAST_SECONDS = 30.0
"""Time to end for a process whose job has ended."""
LAST_LINES = 20
OUTPUT = "output.log"
"""In a run's folder: what the training process and its libraries wrote, of all attempts."""
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def carry_out_in_child(job: Job) -> None:
    """Do a job in a process of its own and wait for its end; the job's row then says how it ended.

    The caller keeps the job's claim alive meanwhile.
    """
    n_killed_before = n_killed_for_memory()
    shared = isinstance(job, Run) and job.kind in IN_PARTS
    with output_of(job) as output:
        words = [job._meta.model_name or "", str(job.pk), job.worker]
        child = start(words, output, shared=shared)
        try:
            peak, stopped = watch(job, child)
        finally:
            kill(child)
        if shared and launcher():
            peak = None  # the launcher's own
        ran_out = n_killed_for_memory() > n_killed_before
        code = child.returncode
        patiently(
            lambda: note_end(job, code, peak, stopped=stopped, ran_out=ran_out, output=output)
        )


def output_of(job: Job) -> IO[bytes]:
    """What a process writes to: a run's is kept in its folder, others' are gone with the job."""
    if not isinstance(job, Run):
        return tempfile.TemporaryFile()
    folder = storage_path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / OUTPUT).open("a+b")


def start(words: list[str], output: IO[bytes], *, shared: bool = False) -> subprocess.Popen[bytes]:
    """A process of training/child.py, in a group of its own: its own children end with it.

    Args: shared: as many of them as the settings say, under accelerate's launcher. They leave its
        group, and end when standard input closes, as everything of training/child.py does.
    """
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", *(launcher() if shared else []), "training.child", *words],
        cwd=settings.BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def launcher() -> list[str]:
    """The words that start a module in several processes; none where a run has one."""
    asked = []
    if settings.PREFLOOP_ACCELERATE_CONFIG:
        asked += ["--config_file", settings.PREFLOOP_ACCELERATE_CONFIG]
    elif settings.PREFLOOP_RUN_PROCESSES > 1:
        # On a machine without GPUs as well: the processes find out for themselves.
        asked += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        asked += ["--dynamo_backend", "no", "--main_process_port", "0"]  # 0: any that is free
        asked += ["--num_processes", str(settings.PREFLOOP_RUN_PROCESSES)]
    return ["accelerate.commands.launch", *asked, "-m"] if asked else []


def watch(job: Job, child: subprocess.Popen[bytes]) -> tuple[int | None, bool]:
    """Wait for the end of the process, and bring it about when the job is to stop.

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
            seconds = seconds_to_live(job)
            kill_at = None if seconds is None else time.monotonic() + seconds
        elif time.monotonic() >= kill_at:
            stopped = True
            kill(child)


def seconds_to_live(job: Job) -> float | None:
    """How long the process may still take; None while there is no reason to end it."""
    rows = type(job).objects.filter(pk=job.pk)
    try:
        row = rows.values("status", "worker", "cancel_requested").first()
    except DatabaseError as error:  # busy or restarting: the next look tries again
        logger.warning("watching %s: %s", job, error)
        connection.close()
        return None
    if row is None or row["worker"] != job.worker:  # deleted, or gone to another worker
        return 0.0
    if row["status"] == Job.Status.LOST:  # while the database was away: its claim has lapsed
        return 0.0
    if row["status"] != Job.Status.RUNNING:
        return LAST_SECONDS
    return CANCEL_SECONDS if row["cancel_requested"] else None


def note_end(
    job: Job,
    returncode: int,
    peak: int | None,
    *,
    stopped: bool,
    ran_out: bool,
    output: IO[bytes],
) -> None:
    """Write how a job ended whose process is gone without having said so; else nothing.

    Args: of causes.of_exit; and stopped: it was killed because of a cancel.
    """
    if not is_mine(job):
        return
    remove(half_done(job))  # while the job is ours: whoever resumes it begins there
    if stopped:
        if job.finish(Job.Status.CANCELLED) and isinstance(job, Run):
            job.events.create(
                text="Cancelled in the middle of a step. Resume goes on from the last checkpoint."
            )
        return
    said = last_words(output)
    cause, words = causes.of_exit(ended_by(returncode, said), peak, ran_out=ran_out)
    logger.error("%s: %s\n%s", job, words, said)
    if not isinstance(job, Run):
        job.finish(Job.Status.FAILED, error=words)
    elif job.finish(Job.Status.FAILED, error=words, cause=cause):
        job.events.create(text=f"Failed: {words}\n{said}")


def ended_by(returncode: int, said: str) -> int:
    """How the process ended; where several shared the run, the one that ended first: their launcher
    ends the others, writes how that one went, and ends with 1 itself."""
    told = re.findall(r"^\s*exitcode\s*: (-?\d+) ", said, re.MULTILINE)
    return int(told[-1]) if returncode > 0 and told else returncode


def half_done(job: Job) -> list[Path]:
    """Files of a job that was ended in the middle, and of which nothing is kept. Runs and studies
    go on from theirs."""
    folders = {Merge: "merges", ModelExport: "exports"}
    folder = folders.get(type(job))
    path = own_path(f"{folder}/{job.pk}") if folder else None
    return [path] if path else []


def kill(child: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin:
        with contextlib.suppress(OSError):  # of a line that nobody will read
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


def last_words(output: IO[bytes]) -> str:
    """The last lines of what a process wrote."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - 8000))
    return "\n".join(output.read().decode(errors="replace").splitlines()[-LAST_LINES:])


def last_words_of(run: Run) -> str:
    """The last lines of what the last process of a run wrote, if it has had one on this machine."""
    with contextlib.suppress(OSError), (storage_path(run.folder) / OUTPUT).open("rb") as output:
        return last_words(output)
    return ""


def is_mine(job: Job) -> bool:
    """Whether a job is still in the hands of the worker that claimed it."""
    mine = type(job).objects.filter(pk=job.pk, status=Job.Status.RUNNING, worker=job.worker)
    return mine.exists()
