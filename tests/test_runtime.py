"""The real `serve`: processes, addresses, kills. Everything runs in a storage folder of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

pytestmark = pytest.mark.slow

# These tests start the application as a laptop does, whatever database the other tests run on.
LAPTOP = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """A running `serve` and what it printed."""

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        self.folder, self.port = folder, port
        self.environment = LAPTOP | {"PREFLOOP_STORAGE": str(folder), "LOG_LEVEL": "WARNING"}
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(port), *arguments],
            cwd=settings.BASE_DIR,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, part: str, seconds: float = 90) -> None:
        wait_until(lambda: part in self.output or self.process.poll() is not None, seconds, self)
        assert part in self.output

    def wait_for_end(self, seconds: float = 20) -> int:
        status = self.process.wait(seconds)
        self.reader.join(5)
        return status

    def get(self, path: str) -> tuple[int, str]:
        address = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(address, timeout=10) as response:
            return response.status, response.read().decode()

    def run_code(self, code: str) -> str:
        """Run Python with the application set up, on this storage."""
        prologue = "import config.wsgi\nfrom labeling.models import *\nStatus = ImportJob.Status\n"
        return subprocess.run(
            [sys.executable, "-c", prologue + code],
            cwd=settings.BASE_DIR,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()

    def family(self) -> set[int]:
        """The numbers of all processes that work in this storage folder, `serve` left out."""
        listing = subprocess.run(
            ["ps", "-eo", "pid,ppid"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        parents = [tuple(map(int, line.split())) for line in listing.splitlines()[1:]]
        family = {self.process.pid}
        while True:
            grown = family | {pid for pid, parent in parents if parent in family}
            if grown == family:
                return family - {self.process.pid}
            family = grown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def lives(pid: int) -> bool:
    listing = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    return bool(listing) and not listing.startswith("Z")


def wait_until(condition: Callable[[], bool], seconds: float, served: Served) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {seconds} s:\n{served.output}"
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `serve` in the test's folder; ends it after the test."""
    started = []

    def start(*arguments: str, port: int | None = None, folder: Path = tmp_path / "s") -> Served:
        folder.mkdir(exist_ok=True)
        started.append(Served(folder, port or free_port(), *arguments))
        return started[-1]

    yield start
    for served in started:
        served.close()


MAKE_JOB = """
project, _ = Project.objects.get_or_create(slug="p", defaults={"name": "P"})
job = ImportJob.objects.create(project=project, filename="f", path="f", %s)
print(job.pk)
"""


def test_serve_shows_the_password_once_works_restarts_what_dies_and_stops_on_ctrl_c(start):
    served = start()
    served.wait_for_line("Stop with")
    password = served.output.split("Password")[1].split()[0]

    status, page = served.get("/")
    assert (status, "Sign in" in page) == (200, True)  # by the redirect to the sign-in page
    assert (
        served.run_code(
            "from django.contrib.auth import authenticate\n"
            f"print(authenticate(username='admin', password={password!r}).is_superuser)"
        )
        == "True"
    )

    # A job that a page queued is done by the worker.
    (served.folder / "f").write_text('{"prompt": "Q", "response_a": "1", "response_b": "2"}\n')
    served.run_code(MAKE_JOB % "status=Status.QUEUED" + "job.enqueue()")
    state = "print(ImportJob.objects.latest('pk').status, Comparison.objects.count())"
    wait_until(lambda: served.run_code(state) == "succeeded 1", 30, served)

    # The sweep, which beat sends through the queue to a worker, finds a job without a worker.
    served.run_code(
        MAKE_JOB % "status=Status.RUNNING, worker='gone:1:0', heartbeat_at='2026-01-01T00:00Z'"
    )
    wait_until(lambda: served.run_code(state) == "lost 1", 60, served)

    # A worker that is killed comes back.
    family = served.family()
    for pid in family:
        command = subprocess.run(
            # -ww: COLUMNS, where it is set, would cut a long path to Python off before the queue
            ["ps", "-ww", "-o", "args=", "-p", str(pid)],
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        if "--queues gpu" in command or "--queues web" in command:
            os.kill(pid, signal.SIGKILL)
    served.wait_for_line("worker ended (signal SIGKILL); starting it again.", 10)
    wait_until(lambda: len(served.family()) >= len(family), 20, served)

    family = served.family()
    served.process.send_signal(signal.SIGINT)
    assert served.wait_for_end() == 0
    assert "Stopping." in served.output
    assert [pid for pid in family if lives(pid)] == []

    # The second start knows the account and is silent about its password.
    again = start()
    again.wait_for_line("Stop with")
    assert "Password " not in again.output
    assert password not in again.output
    again.process.send_signal(signal.SIGTERM)
    assert again.wait_for_end() == 0


def test_a_killed_serve_leaves_no_process_behind_and_its_jobs_can_be_resumed(start):
    served = start()
    served.wait_for_line("Stop with")
    family = served.family()
    assert len(family) >= 6  # watchdog, two of the web server, three of the worker

    worker = next(iter(family))
    served.run_code(
        "import socket\nfrom django.utils import timezone\n"
        + MAKE_JOB
        % (
            f"status=Status.RUNNING, worker=f'{{socket.gethostname()}}:{worker}:0', "
            "heartbeat_at=timezone.now()"
        )
    )
    served.process.kill()
    wait_until(lambda: not any(map(lives, family)), 15, served)

    again = start()
    again.wait_for_line("Stop with")
    assert again.run_code("print(ImportJob.objects.get().status)") == "lost"
    assert "lost the process that worked on it" in again.output


def test_a_taken_port_and_a_second_serve_give_one_clear_line_each(start, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        served = start(port=other.getsockname()[1])
        assert served.wait_for_end() == 1
    assert len(served.lines) == 1
    assert f"port {served.port}: Address already in use" in served.lines[0]

    lock = tmp_path / "s" / "serve.lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys\n"
            f"file = open({str(lock)!r}, 'w')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\n"
            "file.write('http://127.0.0.1:1/'); file.flush(); print('held', flush=True)\n"
            "sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    second = start()
    status = second.wait_for_end()
    holder.communicate()
    assert status == 1
    assert second.lines == [
        f"CommandError: Prefloop already runs from {tmp_path / 's'}: http://127.0.0.1:1/"
    ]


def test_an_unknown_address_gets_our_own_page_in_laptop_mode(start):
    served = start()
    served.wait_for_line("Stop with")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        served.get("/no/such/page/")
    page = refusal.value.read().decode()
    assert refusal.value.code == 404
    assert "There is no such page, or it is not yours to see." in page
    assert served.get("/static/prefloop.css")[0] == 200


def test_laptop_mode_is_never_served_to_other_machines(start):
    served = start("--host", "0.0.0.0")
    assert served.wait_for_end() == 1
    assert "Laptop mode is for this machine alone: not on 0.0.0.0." in served.output


def test_team_mode_without_a_secret_key_does_not_start(tmp_path):
    environment = LAPTOP | {"DEBUG": "0", "PREFLOOP_STORAGE": str(tmp_path)}
    environment.pop("SECRET_KEY", None)
    result = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=settings.BASE_DIR,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.returncode != 0
    assert "SECRET_KEY is required when DEBUG is off" in result.stderr.splitlines()[-1]


def test_team_mode_passes_the_deployment_check(tmp_path):
    environment = LAPTOP | {
        "DEBUG": "0",
        "SECRET_KEY": "k3y" * 20 + "abcdefgh",
        "PREFLOOP_STORAGE": str(tmp_path),
        "ALLOWED_HOSTS": "prefloop.example",
    }
    result = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy"],
        cwd=settings.BASE_DIR,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "System check identified no issues (0 silenced)."


def test_doctor_says_what_this_machine_has(tmp_path):
    result = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=settings.BASE_DIR,
        env=LAPTOP | {"PREFLOOP_STORAGE": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(result.stdout)
    assert report["python"]["ok"]
    assert report["storage"]["ok"]
    assert not report["migrations"]["ok"]  # a fresh folder has an empty database
    assert "migrate" in report["migrations"]["mend"]
    assert result.returncode == 1
