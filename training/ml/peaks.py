"""How much memory a run really took: the one measurement there is on each kind of device."""

import contextlib
import ctypes
import sys
from pathlib import Path

M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE = 256 * 1024
"""Blocks from here on are asked of the kernel one by one, and go back to it when they are freed."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def give_memory_back() -> None:
    """Let freed tensors return to the machine at once, where the C library is glibc.

    Left to itself it raises the size from which it does so to 32 MiB, keeps what is smaller, and
    cannot use the gaps again for other sizes: a run on a CPU then takes two to four times the
    memory it needs (docs/memory.md), in no less time.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE)


class Peak:
    """Counts from its making on: make it before the model is loaded, when libraries already are.

    On a GPU it is torch's max_memory_reserved. On a CPU it is the process's largest resident set
    less the one at the start, which Linux alone tells. Memory that was freed before the start and
    is used again does not show: in a process that did other work before, the figure says nothing.
    """

    def __init__(self) -> None:
        self.device = "cpu"
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            self.device = "cuda"
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.start = 0
            return
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # the largest set counts anew: proc(5)
        self.start = _resident("VmRSS") or 0

    def bytes(self) -> int | None:
        """The peak until now, or None where it cannot be told."""
        if self.device == "cuda":
            return int(sys.modules["torch"].cuda.max_memory_reserved())
        highest = _resident("VmHWM")
        return None if highest is None else max(0, highest - self.start)


def held_now() -> int | None:
    """Bytes that this process holds: on a GPU what torch has reserved there, else its resident set
    with all libraries. None where nobody can tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    """VmRSS or VmHWM of this process in bytes."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
