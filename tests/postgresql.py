"""A PostgreSQL server of the tests' own: Debian's programs, a temporary folder, a free port."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_programs() -> Path | None:
    """The folder with initdb and pg_ctl, or None where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if initdb := shutil.which("initdb"):
        folders.insert(0, Path(initdb).parent)
    return next((f for f in folders if (f / "initdb").exists()), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A PostgreSQL server in `folder`, made and started.

    Unless `durable`, it does not wait for the disk: tests keep nothing.
    """

    def __init__(
        self, folder: Path, programs: Path, *, durable: bool = False, options: str = ""
    ) -> None:
        self.folder, self.programs = folder, programs
        self.data = folder / "data"
        self.as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self.as_user = ["runuser", "-u", "postgres", "--"]
        port = free_port()
        self.url = f"postgres://prefloop@127.0.0.1:{port}/postgres"
        self.options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 {options}"
        if not durable:
            self.options += " -c fsync=off"
        self._do("initdb", "-D", str(self.data), "-U", "prefloop", "-A", "trust", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        log = str(self.folder / "log")
        self._ctl("-w", "-l", log, "-o", self.options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._ctl("-m", mode, "stop")

    def kill(self) -> None:
        """SIGKILL to the server's head; its children see it and end."""
        head = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(head, signal.SIGKILL)

    def start_again(self, seconds: float = 30) -> None:
        """Start after a kill: its children may take a moment to end."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.start()
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def is_up(self) -> bool:
        command = [*self.as_user, str(self.programs / "pg_ctl"), "-D", str(self.data), "status"]
        return subprocess.run(command, capture_output=True, cwd="/", check=False).returncode == 0

    def _ctl(self, *words: str) -> None:
        self._do("pg_ctl", "-D", str(self.data), *words)

    def _do(self, program: str, *words: str) -> None:
        command = [*self.as_user, str(self.programs / program), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


@contextmanager
def running(folder: Path, programs: Path, *, durable: bool = False) -> Iterator[str]:
    """Start a server in `folder`; gives its address as a DATABASE_URL, and stops it at the end."""
    server = Server(folder, programs, durable=durable)
    try:
        yield server.url
    finally:
        server.stop()
