"""The worker's side of the playground: one process that holds models from one answer to the next.

A process for each answer would load its models each time. This one is started by the first answer,
takes the next ones on its standard input, and ends when nobody asks for a while, when the worker
takes up other work, which is going to need the memory, or with the worker. When it dies, the answer
in the making says why, and the next one starts another.
"""

import logging
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO

from training.child import SERVE
from training.models import SideBySide
from training.watching import (
    LAST_SECONDS,
    kill,
    most_held,
    n_killed_for_memory,
    note_end,
    output_of,
    seconds_to_live,
    start,
)

logger = logging.getLogger(__name__)

IDLE_SECONDS = 300.0
"""After so long without an answer the process ends: others may need the memory."""
LOOK_SECONDS = 0.1
"""Between two looks at whether an answer is done: a person waits."""


@dataclass
class Held:
    """The process, and what it writes to."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]


_turn = threading.Lock()
"""Held while an answer is in the making, and while the process is ended."""
_held: Held | None = None
_clock: threading.Timer | None = None


def answer(pair: SideBySide) -> None:
    """Have the process answer and wait for the end; the pair's row then says how it ended.

    The caller keeps the pair's claim alive meanwhile.
    """
    global _clock
    with _turn:
        if _clock is not None:
            _clock.cancel()
        n_killed_before = n_killed_for_memory()
        held = _asked(pair)
        peak, stopped = _watch(pair, held.process)
        if held.process.poll() is not None:
            ran_out = n_killed_for_memory() > n_killed_before
            code, output = held.process.returncode, held.output
            note_end(pair, code, peak, stopped=stopped, ran_out=ran_out, output=output)
            _end()
            return
        _clock = threading.Timer(IDLE_SECONDS, end)
        _clock.daemon = True
        _clock.start()


def end() -> None:
    """End the process if there is one, and give its memory back."""
    with _turn:
        _end()


def _end() -> None:
    global _held
    if _held is not None:
        kill(_held.process)
        _held.output.close()
        _held = None


def _asked(pair: SideBySide) -> Held:
    """The process, living, with the pair's line written to it."""
    global _held
    line = f"{pair._meta.model_name} {pair.pk} {pair.worker}\n".encode()
    if _held is not None:
        try:
            _held.process.stdin.write(line)  # type: ignore[union-attr]
            _held.process.stdin.flush()  # type: ignore[union-attr]
        except OSError:  # it died since the last answer
            logger.warning("the process of the playground was gone; another one is started")
            _end()
        else:
            return _held
    output = output_of(pair)
    _held = Held(start([SERVE], output), output)
    _held.process.stdin.write(line)  # type: ignore[union-attr]
    _held.process.stdin.flush()  # type: ignore[union-attr]
    return _held


def _watch(pair: SideBySide, process: subprocess.Popen[bytes]) -> tuple[int | None, bool]:
    """Wait until the pair has ended or the process has. Returns: as watching.watch does."""
    peak: int | None = None
    kill_at: float | None = None
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        peak = max(filter(None, (peak, most_held(process.pid))), default=None)
        seconds = seconds_to_live(pair)
        if seconds == LAST_SECONDS:  # it has ended, and the process waits for the next one
            break
        if seconds is not None and kill_at is None:
            kill_at = time.monotonic() + seconds
        if kill_at is not None and time.monotonic() >= kill_at:
            kill(process)
            return peak, True
    return peak, False
