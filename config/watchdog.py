"""Ends the process groups of `serve` when `serve` itself is killed; run as a script.

Standard input tells which groups are alive: "+123" begins one, "-123" ends one. The pipe closes
when `serve` is gone, however it went; then every group left gets SIGTERM and, after a grace,
SIGKILL. A pipe works on Linux and macOS alike, and for children of children too.
"""

import contextlib
import os
import signal
import sys
import time


def end_groups(groups: set[int], grace: float) -> None:
    """Ask every process group to end, then kill what is left after `grace` seconds."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if group_is_alive(group)}
        time.sleep(0.1)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS says "not permitted" of a dead group
        return False
    return True


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        sign, group = line[0], int(line[1:])
        if sign == "+":
            groups.add(group)
        else:
            groups.discard(group)
    end_groups(groups, grace=float(sys.argv[1]))


if __name__ == "__main__":
    main()
