"""The real processes of an installation, started by hand so that they can be killed by hand.

PostgreSQL, Redis, two web servers and four Celery workers (pages' jobs, the sweep, two for judges
and training), all on loopback and in one folder. What dies is started again, as a container engine
or systemd would. The folder lies on a small disk of its own where mounting is allowed, so that it
can be filled.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests import postgresql
from tests.postgresql import free_port

ROOT = Path(__file__).resolve().parents[2]
RESTART_SECONDS = 0.5


def missing() -> str:
    """Why the rig cannot run here; empty if it can."""
    if postgresql.find_programs() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if shutil.which("redis-server") is None:
        return "Redis is not installed (Debian: apt-get install redis-server)"
    return ""


@dataclass
class Program:
    """One program of the rig, in a process group of its own."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: list[float] = field(default_factory=list)
    n_kills: int = 0

    def start(self, environment: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_at.append(time.time())

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        self.n_kills += 1
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Disk:
    """A disk of `megabytes` at `place`, if this user may mount one; else `why_not` says so."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self.place, self.why_not = place, ""
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.why_not = f"no disk can be mounted here: {done.stderr.strip()}"

    def fill(self) -> int:
        """Take all that is free; how many bytes it were."""
        n = 0
        full = (self.place / "fills-the-disk").open("wb", buffering=0)
        with full, contextlib.suppress(OSError):
            while True:
                n += full.write(b"\0" * 65536)
        return n

    def make_room(self) -> None:
        (self.place / "fills-the-disk").unlink(missing_ok=True)

    def unmount(self) -> None:
        if not self.why_not:
            subprocess.run(["umount", "-l", str(self.place)], check=False)


class Rig:
    """Use it as a context manager. `environment` is what every process of the application gets;
    the caller takes it too before it sets Django up."""

    def __init__(self, folder: Path, *, disk_megabytes: int, heartbeat_seconds: int) -> None:
        folder.chmod(0o755)  # PostgreSQL's programs run as another user than root
        self.disk = Disk(folder / "disk", disk_megabytes)
        self.folder = self.disk.place
        self.programs: dict[str, Program] = {}
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, daemon=True)
        self.ports = [free_port(), free_port()]
        self.redis_port = free_port()
        self.heartbeat_seconds = heartbeat_seconds
        self.database_is_down_on_purpose = False
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "Rig":
        (self.folder / "postgresql").mkdir()
        (self.folder / "storage").mkdir()
        (self.folder / "redis").mkdir()
        programs = postgresql.find_programs()
        assert programs is not None
        self.database = postgresql.Server(
            self.folder / "postgresql",
            programs,
            durable=True,
            options="-c max_wal_size=64MB -c min_wal_size=32MB",
        )
        self._add("redis", self._redis_command())
        self.environment = os.environ | {
            "DATABASE_URL": self.database.url,
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "CACHE_URL": f"redis://127.0.0.1:{self.redis_port}/1",
            "PREFLOOP_STORAGE": str(self.folder / "storage"),
            "PREFLOOP_HEARTBEAT_SECONDS": str(self.heartbeat_seconds),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            # As a team runs it.
            "DEBUG": "0",
            "SECRET_KEY": "of this rig alone, and as long as one has to be: 50 characters",
            "PREFLOOP_HTTP": "1",
            "ALLOWED_HOSTS": "127.0.0.1",
            "LOG_LEVEL": "WARNING",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore:You're running the worker",
        }
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._keeper.join()
        for program in self.programs.values():
            program.kill()
        with contextlib.suppress(AssertionError):
            self.database.stop()
        self.disk.unmount()

    def start_application(self) -> None:
        """The web servers and the workers. The database's tables are there."""
        from config.management.commands import serve

        for number, port in enumerate(self.ports, 1):
            command = serve.web_command("127.0.0.1", port)
            # One process each: there are two of these servers, and two processors.
            command[command.index("--workers") + 1] = "1"
            self._add(f"web-{number}", command)
        self._add("worker", serve.worker_command("web", concurrency=1))
        self._add("sweep", serve.sweep_worker_command())
        for number in (1, 2):
            command = serve.gpu_worker_command()
            command[command.index("--hostname") + 1] = f"gpu-{number}@%h"
            self._add(f"gpu-{number}", command)

    def _redis_command(self) -> list[str]:
        return [
            *("redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder / "redis"), "--appendonly", "yes", "--save", ""),
        ]

    def _add(self, name: str, command: list[str]) -> None:
        program = Program(name, command, self.folder.parent / f"{name}.log")
        program.start(self.environment or dict(os.environ))
        self.programs[name] = program

    def _keep_alive(self) -> None:
        """Start again what has died, for whatever reason."""
        while not self._stopping.wait(RESTART_SECONDS):
            for program in list(self.programs.values()):
                if program.process is not None and program.process.poll() is not None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(program.process.pid, signal.SIGKILL)  # what it left behind
                    program.start(self.environment)
            if not self.database_is_down_on_purpose and not self.database.is_up():
                with contextlib.suppress(AssertionError):
                    self.database.start()

    # --- faults --------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        self.programs[name].kill()

    def kill_database(self) -> None:
        self.database_is_down_on_purpose = True
        try:
            self.database.kill()
            self.database.start_again()
        finally:
            self.database_is_down_on_purpose = False

    def restart_database(self) -> None:
        """As an administrator does it: no new connections, running statements are cut off."""
        self.database_is_down_on_purpose = True
        try:
            self.database.stop("fast")
            time.sleep(1.0)
            self.database.start_again()
        finally:
            self.database_is_down_on_purpose = False

    def forget_messages(self) -> None:
        """Drop everything that the broker holds."""
        subprocess.run(
            ["redis-cli", "-p", str(self.redis_port), "FLUSHALL"], capture_output=True, check=True
        )

    def fill_disk(self, seconds: float) -> int:
        """No byte is free for so long; how many were."""
        try:
            n = self.disk.fill()
            time.sleep(seconds)
            return n
        finally:
            self.disk.make_room()

    def keep_logs(self, folder: Path) -> None:
        """Copy what every program said, training processes too."""
        folder.mkdir(parents=True, exist_ok=True)
        for log in [*self.folder.parent.glob("*.log"), self.folder / "postgresql" / "log"]:
            shutil.copy(log, folder)
        for log in (self.folder / "storage").glob("runs/*/output.log"):
            shutil.copy(log, folder / f"run-{log.parent.name}.log")

    def last_lines(self, n: int = 15) -> str:
        """Of every program's log, for a failing test."""
        parts = []
        for program in self.programs.values():
            lines = program.log.read_text(errors="replace").splitlines()[-n:]
            parts.append(f"--- {program.name}\n" + "\n".join(lines))
        return "\n".join(parts)
