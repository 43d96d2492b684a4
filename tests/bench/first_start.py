"""From `manage.py serve` on an empty storage folder to the first page: seconds, CPU, memory.

    python -m tests.bench.first_start --starts 5

Looks for an answer every 20 ms. The CPU is that of all processes together until that answer.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    starts = [first_start() for _ in range(parser.parse_args().starts)]
    for start in starts:
        print("  ".join(f"{name} {value:.2f}" for name, value in start.items()))
    medians = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
    print("median:  " + "  ".join(f"{name} {value:.2f}" for name, value in medians.items()))


def first_start() -> dict[str, float]:
    """One start and stop in a folder of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        served = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(port)],
            cwd=HOUSE,
            env=os.environ | {"PREFLOOP_STORAGE": folder},
            stdout=subprocess.DEVNULL,
        )
        try:
            while not answers(port):
                if served.poll() is not None:
                    raise SystemExit("serve ended before it answered")
                time.sleep(0.02)
            seconds = time.monotonic() - began
            family = processes_of(served.pid)
            cpu = sum(map(cpu_seconds, family))
            return {
                "s to the first page": seconds,
                "CPU s until then": cpu,
                "MB of the web process": max(
                    resident_mb(pid) for pid in family if "gunicorn" in arguments(pid)
                ),
            }
        finally:
            served.terminate()
            served.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            return page.status == 200
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False


def processes_of(pid: int) -> list[int]:
    """A process and everything below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [below for child in children for below in processes_of(int(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


if __name__ == "__main__":
    main()
