"""One tree of processes: start them, restart one that died, stop them all, leave no orphan."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.watchdog import end_groups, group_is_alive

GRACE_SECONDS = 3.0
"""From asking a process to end until it is killed. Short, because everything survives a kill, and
an idle Celery worker on the embedded broker takes six seconds to say goodbye."""
RESTARTS_PER_MINUTE = 3
"""A process that dies more often than this is broken: restarting it again would hide why."""


class KeepsDying(Exception):
    """A process died again and again; the message says which one and what it said last."""


@dataclass
class Member:
    """A process of the tree and what is known of it."""

    name: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    deaths: list[float] = field(default_factory=list)
    relay: threading.Thread | None = None
    restart_at: float | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=8))


class ProcessTree:
    """Runs commands side by side, each in a process group of its own.

    `say` gets every line: those of the processes, with their name before them, and our own.
    Use it as a context manager: leaving it stops everything.
    """

    def __init__(self, environment: dict[str, str], say: Callable[[str], None]) -> None:
        self.environment = environment
        self.say = say
        self.members: list[Member] = []
        self.stop_requested = threading.Event()
        self._watchdog: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "ProcessTree":
        self._watchdog = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, str(Path(__file__).with_name("watchdog.py")), str(GRACE_SECONDS)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def add(self, name: str, command: list[str]) -> None:
        """Start a command as a member of the tree."""
        member = Member(name, command)
        self.members.append(member)
        self._start(member)

    def watch(self, until: Callable[[], bool] | None = None) -> None:
        """Restart what dies, until a signal asks to stop or `until()` is true.

        Raises: KeepsDying.
        """
        while not self.stop_requested.is_set() and not (until and until()):
            for member in self.members:
                if member.restart_at is not None:
                    if time.monotonic() >= member.restart_at:
                        self._start(member)
                elif member.process is not None and member.process.poll() is not None:
                    self._mourn(member)
            self.stop_requested.wait(0.3)

    def stop(self) -> None:
        """End every process and all their children: asked first, killed after a grace."""
        alive = [m for m in self.members if m.process is not None]
        for member in alive:
            self._end(member, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for member in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
        groups = {m.process.pid for m in alive if group_is_alive(m.process.pid)}
        end_groups(groups, grace=0)
        for member in alive:
            member.process.wait()
            member.relay.join(timeout=1)
        self.members.clear()
        if self._watchdog is not None:
            for member in alive:
                self._tell_watchdog(f"-{member.process.pid}")
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    def _start(self, member: Member) -> None:
        member.restart_at = None
        member.process = subprocess.Popen(  # noqa: S603 - commands of our own making
            member.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A group of its own: Ctrl-C reaches us alone, and a signal to the group reaches
            # children of children.
            start_new_session=True,
        )
        self._tell_watchdog(f"+{member.process.pid}")
        member.relay = threading.Thread(
            target=self._relay, args=(member, member.process), daemon=True
        )
        member.relay.start()

    def _relay(self, member: Member, process: subprocess.Popen[str]) -> None:
        with process.stdout:
            for line in process.stdout:
                line = line.rstrip()
                if line:
                    member.last_lines.append(line)
                    self._say(f"{member.name:<6} | {line}")

    def _mourn(self, member: Member) -> None:
        """Note a death, clear what it left, and plan the restart."""
        code = member.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._end(member, signal.SIGKILL)
        self._tell_watchdog(f"-{member.process.pid}")
        member.relay.join(timeout=1)  # its last words
        member.process = None
        now = time.monotonic()
        member.deaths = [at for at in member.deaths if now - at < 60] + [now]
        if len(member.deaths) > RESTARTS_PER_MINUTE:
            last = "\n".join(f"    {line}" for line in member.last_lines) or "    (nothing)"
            raise KeepsDying(
                f"{member.name} ended {len(member.deaths)} times within a minute "
                f"(last: {how}). What it said last:\n{last}"
            )
        self._say(f"{member.name} ended ({how}); starting it again.")
        member.restart_at = now + 1

    def _end(self, member: Member, signum: int) -> None:
        """SIGTERM goes to the head, which ends its children in order; SIGKILL to the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if signum == signal.SIGKILL:
                os.killpg(member.process.pid, signum)
            else:
                member.process.send_signal(signum)

    def _tell_watchdog(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: orderly ends still work
            self._watchdog.stdin.write(line + "\n")
            self._watchdog.stdin.flush()

    def _say(self, line: str) -> None:
        with self._lock:
            self.say(line)

    def _on_signal(self, signum: int, frame: object) -> None:
        if self.stop_requested.is_set():  # the second Ctrl-C: do not wait any longer
            end_groups({m.process.pid for m in self.members if m.process is not None}, grace=0)
        self.stop_requested.set()
