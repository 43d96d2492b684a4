"""The memory of each process of an installation over time, and whether it is flat.

Every few seconds the kernel is asked for each process of each program: its resident set (RSS). Not
for what it holds alone (USS), which swings by tens of MB as processes that share pages with it come
and go. PostgreSQL counts as a whole, by what its processes share out of memory that is no file's
and without its shared buffers, which fill up to their fixed size.

A process that dies and is started again is a new life. Of each life the first three minutes are
left out, in which it meets its pages and tasks for the first time and its free memory scatters; of
what is left, medians of half minutes are taken, which hardly depend on each other. The slope is
that of all lives of one kind of process together, each with an intercept of its own (within-groups
least squares); its interval is Student's over those medians.

**Flat** has to be shown: even at the upper end of that interval ten minutes add less than 3 MB, or
2 % where that is more, and the longest life has not risen by more. **Grows**: the lower end is
above. Else it is open, which counts as not shown.
"""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.rig import Rig

WARM_SECONDS, PIECE_SECONDS = 180.0, 30.0
FEWEST_PIECES = 4
"""Half minutes of the longest life, below which nothing is said."""
MOST_MB, MOST_SHARE, HORIZON = 3.0, 0.02, 600.0
HAS_TORCH_MB = 250.0
"""A pool process of the GPU's workers above this holds a judge's model."""

Row = tuple[str, int, float, float]
"""(kind of process, pid, seconds since the start, MB)."""
Life = Sequence[tuple[float, float]]
"""(seconds, MB) of one process."""


def weigh(rig: Rig, at: float) -> list[Row]:
    """What each process holds at this moment."""
    import psutil

    found: list[Row] = []
    for program in list(rig.programs.values()):
        with contextlib.suppress(psutil.Error, AttributeError):
            head = psutil.Process(program.process.pid)
            for process in [head, *head.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    held = rollup(process.pid)
                    kind = kind_of(program.name, process, is_head=process == head, held=held)
                    found.append((kind, process.pid, at, round(held["Rss"], 2)))
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        place = rig.folder / "postgresql" / "data" / "postmaster.pid"
        head = psutil.Process(int(place.read_text().split()[0]))
        alone = 0.0
        for process in [head, *head.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                alone += rollup(process.pid)["Pss_Anon"]
        found.append(("postgresql, all of it", head.pid, at, round(alone, 2)))
    return found


def rollup(pid: int) -> dict[str, float]:
    """The kernel's sums over a process's memory, in MB."""
    sums = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_unit = line.replace(":", "").split()
        sums[name] = int(value) / 1024
    return sums


def kind_of(program: str, process: Any, *, is_head: bool, held: dict[str, float]) -> str:
    if "training.child" in process.cmdline():
        return "a run's process"
    if is_head:
        return program
    if program.startswith("web"):
        return f"{program}, serves"
    if program == "sweep":
        return "sweep, its clock"
    if program.startswith("gpu") and held["Rss"] > HAS_TORCH_MB:
        return "a judge's process"
    return f"{program}, its pool"


@dataclass
class Trend:
    """One kind of process: MB, and MB that ten minutes add."""

    kind: str
    n_lives: int
    longest: float
    """Seconds of the longest life, its warm-up included."""
    first: float
    last: float
    """Of the longest life: its first minute after the warm-up, its last one."""
    rise: float | None = None
    low: float = 0.0
    high: float = 0.0
    verdict: str = "too short"


def trends(rows: Sequence[Row]) -> list[Trend]:
    kinds: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for kind, pid, at, size in rows:
        kinds.setdefault(kind, {}).setdefault(pid, []).append((at, size))
    return [trend(kind, list(lives.values())) for kind, lives in sorted(kinds.items())]


def trend(kind: str, lives: Sequence[Life]) -> Trend:
    """What is to be said of one kind of process from its lives."""
    longest = max(lives, key=lambda life: life[-1][0] - life[0][0])
    lasted = longest[-1][0] - longest[0][0]
    found = Trend(kind, len(lives), lasted, longest[0][1], longest[-1][1])
    pieces = [medians(life) for life in lives]
    long = max(pieces, key=len)
    if len(long) < FEWEST_PIECES:
        return found
    # A minute at either end: one median alone says little.
    found.first, found.last = (
        statistics.fmean(size for _at, size in ends) for ends in (long[:2], long[-2:])
    )
    found.rise, found.low, found.high = common_rise(pieces)
    allowed = max(MOST_MB, MOST_SHARE * found.first)
    if max(found.high, found.last - found.first) < allowed:
        found.verdict = "flat"
    elif found.low > allowed:
        found.verdict = "grows"
    else:
        found.verdict = "open"
    return found


def medians(life: Life) -> Life:
    """Of each whole half minute after the warm-up: (its middle, its median)."""
    begin = life[0][0] + WARM_SECONDS
    pieces: dict[int, list[float]] = {}
    for at, size in life:
        if at >= begin:
            pieces.setdefault(int((at - begin) // PIECE_SECONDS), []).append(size)
    whole = range(int((life[-1][0] - begin) // PIECE_SECONDS))
    return [
        (begin + (n + 0.5) * PIECE_SECONDS, statistics.median(pieces[n]))
        for n in whole
        if n in pieces
    ]


def common_rise(lives: Sequence[Life]) -> tuple[float, float, float]:
    """(rise, low, high): MB in ten minutes by the slope that all lives share, with its interval of
    95 %. At least one life has three points."""
    from scipy.stats import t

    points = []
    for life in lives:
        if len(life) > 1:
            middle, level = (statistics.fmean(column) for column in zip(*life, strict=True))
            points += [(at - middle, size - level) for at, size in life]
    free = len(points) - sum(len(life) > 1 for life in lives) - 1
    spread = sum(x * x for x, _y in points)
    slope = sum(x * y for x, y in points) / spread
    error = (sum((y - slope * x) ** 2 for x, y in points) / free / spread) ** 0.5
    half = float(t.ppf(0.975, free)) * error
    return HORIZON * slope, HORIZON * (slope - half), HORIZON * (slope + half)
