"""Workers that are there: each tells now and then that it lives, what it serves and what it has.

A row for each Celery process, so that pages know of workers on other machines without asking the
broker, which on a laptop cannot be asked.
"""

import importlib.metadata
import logging
import os
import platform
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils import timezone

from labeling.jobs import process_lives

logger = logging.getLogger(__name__)

GB = 10**9
"""As makers of cards count: what is sold as 24 GB holds 22.4 GiB at least."""
PACKAGES = ("prefloop", "django", "celery", "torch", "transformers", "peft", "trl", "bitsandbytes")
KEPT_FOR = timedelta(days=1)
"""A worker that said nothing for so long is forgotten."""
_stop = threading.Event()
_reporter: threading.Thread | None = None


def class_queues() -> list[str]:
    """Queues of training runs by the memory that they need, the smallest first; none where all
    wait in `gpu`."""
    sizes = settings.PREFLOOP_GPU_CLASSES
    return [*(f"train-{size}" for size in sizes), "train-more"] if sizes else []


def queues_for(memory: float) -> list[str]:
    """Queues of the classes that hold this much memory (bytes), the smallest first."""
    fitting = [size for size in settings.PREFLOOP_GPU_CLASSES if memory <= size * GB]
    return [*(f"train-{size}" for size in fitting), "train-more"]


def queues_within(memory: float) -> list[str]:
    """Queues of the classes that a GPU with this much memory (bytes) can serve. One that is larger
    than every class serves all."""
    sizes = settings.PREFLOOP_GPU_CLASSES
    if not sizes:
        return []
    fitting = [f"train-{size}" for size in sizes if size * GB <= memory]
    return [*fitting, "train-more"] if memory > 1.1 * max(sizes) * GB else fitting


def begin_reporting(queues: Sequence[str]) -> None:
    """Tell from now on, from a thread, that this process serves `queues`."""
    global _reporter
    if _reporter is not None and _reporter.is_alive():
        return
    _stop.clear()
    _reporter = threading.Thread(
        target=_report, args=(sorted(queues),), name="presence of this worker", daemon=True
    )
    _reporter.start()


def end_reporting() -> None:
    """Say goodbye: the worker's row is gone when this returns."""
    _stop.set()
    if _reporter is not None:
        _reporter.join(timeout=settings.PREFLOOP_HEARTBEAT_SECONDS)


def _report(queues: list[str]) -> None:
    from labeling.models import Worker

    name = f"{socket.gethostname()}:{os.getpid()}"
    fixed = {"queues": queues, "versions": versions(), "started_at": timezone.now()}
    while True:
        try:
            tell(name, **fixed)
        except DatabaseError as error:  # restarting: the next report tries again
            logger.warning("the presence of %s: %s", name, error)
        finally:
            connection.close()  # a child that is forked now must not inherit an open one
        if _stop.wait(settings.PREFLOOP_HEARTBEAT_SECONDS):
            break
    try:
        Worker.objects.filter(name=name).delete()
    except DatabaseError as error:
        logger.warning("the goodbye of %s: %s", name, error)
    finally:
        connection.close()


def tell(name: str, **fixed: Any) -> None:
    """Write the row of the worker `name` anew, and forget those that are long gone."""
    from labeling.models import Worker

    disk = shutil.disk_usage(settings.PREFLOOP_STORAGE)
    Worker.objects.update_or_create(
        name=name,
        defaults={
            **fixed,
            "gpus": gpus(),
            "disk_free": disk.free,
            "disk_total": disk.total,
            "heartbeat_at": timezone.now(),
        },
    )
    Worker.objects.filter(heartbeat_at__lt=timezone.now() - KEPT_FOR).delete()


def forget_the_ended() -> int:
    """Take away the rows of workers of this machine whose process is gone; how many.

    Only for the one process that watches over all others of this machine. It does not give them the
    seconds that a worker takes to say goodbye.
    """
    from labeling.models import Worker

    here = Worker.objects.filter(name__startswith=f"{socket.gethostname()}:")
    gone = [
        pk
        for pk, name in here.values_list("pk", "name")
        if not process_lives(int(name.rpartition(":")[2]))
    ]
    return Worker.objects.filter(pk__in=gone).delete()[0]


def versions() -> dict[str, str]:
    """Versions of what this process would compute with; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("mergekit-yaml"):  # a program, often of an environment of its own
        found["mergekit"] = "on the PATH"
    return found


def gpus() -> list[dict[str, Any]]:
    """[{"name", "memory_total", "memory_used", "use"}] of NVIDIA's GPUs here; bytes, and a share.

    Asked of the driver's own program: torch would keep memory on every card it looks at.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(  # noqa: S603 - the driver's program
            [
                program,
                "--query-gpu=name,memory.total,memory.used,utilization.gpu",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi: %s", error)
        return []
    return read_gpus(answer)


def read_gpus(answer: str) -> list[dict[str, Any]]:
    """What nvidia-smi printed, as `gpus` returns it. A number it does not know becomes None."""

    def number(text: str, unit: float) -> float | None:
        try:
            return float(text) * unit
        except ValueError:  # "[N/A]", as of a card that is divided
            return None

    found = []
    for line in answer.splitlines():
        name, total, used, use = (part.strip() for part in line.rsplit(",", 3))
        found.append(
            {
                "name": name,
                "memory_total": number(total, 2**20),
                "memory_used": number(used, 2**20),
                "use": number(use, 0.01),
            }
        )
    return found
