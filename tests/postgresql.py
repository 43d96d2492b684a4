"""A PostgreSQL server of the tests' own: Debian's programs, a temporary folder, a free port."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_programs() -> Path | None:
    """The folder with initdb and pg_ctl, or None where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if initdb := shutil.which("initdb"):
        folders.insert(0, Path(initdb).parent)
    return next((f for f in folders if (f / "initdb").exists()), None)


@contextmanager
def running(folder: Path, programs: Path, *, durable: bool = False) -> Iterator[str]:
    """Start a server in `folder`; gives its address as a DATABASE_URL, and stops it at the end.

    Unless `durable`, it does not wait for the disk: tests keep nothing.
    """
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        done = subprocess.run(
            [*as_user, *command], capture_output=True, text=True, cwd=folder, check=False
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"

    run(str(programs / "initdb"), "-D", str(data), "-U", "prefloop", "-A", "trust", "-E", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    if not durable:
        options += " -c fsync=off"
    ctl = str(programs / "pg_ctl")
    run(ctl, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgres://prefloop@127.0.0.1:{port}/postgres"
    finally:
        run(ctl, "-D", str(data), "-m", "immediate", "stop")
