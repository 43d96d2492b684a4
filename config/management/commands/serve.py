"""Run the whole application on this machine: web server, workers, and what watches over them."""

import fcntl
import importlib.util
import io
import os
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import IO, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command, get_commands
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection

from config.processes import KeepsDying, ProcessTree
from labeling.reports import libraries_missing
from labeling.workers import class_queues, forget_the_ended

START_SECONDS = 90
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ADMIN = "admin"
KIB_AFTER_A_JOB = "250000"
"""What a worker's process may have held at most to be kept: more than ours takes (62 MB), less than
one that has imported torch (470 MB)."""


class Command(BaseCommand):
    help = (
        "Serve Prefloop from this machine: brings the database up to date, makes the "
        "administrator's account, starts the web server and the workers, restarts what dies "
        "and stops everything on Ctrl-C."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument(
            "--port",
            type=int,
            default=int(os.environ.get("PORT") or 8000),
            help="port to listen on (default: the environment's PORT, or 8000)",
        )
        parser.add_argument(
            "--sample", action="store_true", help="make the sample project when it is missing"
        )

    def handle(self, *, host: str, port: int, sample: bool, verbosity: int, **_: Any) -> None:
        if settings.LAPTOP and host not in LOOPBACK:
            raise CommandError(
                f"Laptop mode is for this machine alone: not on {host}. "
                "Set DEBUG=0, SECRET_KEY and ALLOWED_HOSTS, or stay on 127.0.0.1."
            )
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        lock = hold_storage(address)
        refuse_taken_port(host, port)

        call_command("migrate", verbosity=0, interactive=False)
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)
        if not settings.LAPTOP:  # in laptop mode, files come straight from static/
            call_command("collectstatic", verbosity=0, interactive=False)
        administrator = ensure_administrator()
        if sample and "sample_project" in get_commands():
            name = administrator.get_username()
            call_command("sample_project", owner=name, stdout=io.StringIO())
        note_lost_jobs(self.say)
        forget_the_ended()

        try:
            with ProcessTree(environment(verbosity), self.say) as tree:
                tree.add("web", web_command(host, port))
                tree.add("worker", worker_command("web", concurrency=2))
                tree.add("sweep", sweep_worker_command())
                if importlib.util.find_spec("torch"):
                    tree.add("gpu", gpu_worker_command())
                else:
                    self.say(
                        "torch is not installed here: judges and training wait for a worker that "
                        "has it. Install it with: pip install '.[train]'"
                    )
                if missing := libraries_missing():
                    self.say(
                        f"{', '.join(missing)} not installed here: agreement figures cannot be "
                        "computed. Install with: pip install '.[stats]'"
                    )
                wait_until_served(tree, address)
                if not tree.stop_requested.is_set():
                    self.announce(address, administrator)
                tree.watch()
                self.say("Stopping. A run in progress keeps what it has stored and can be resumed.")
        except KeepsDying as error:
            raise CommandError(str(error)) from error
        finally:
            note_lost_jobs(self.say)
            forget_the_ended()
            lock.close()

    def say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def announce(self, address: str, administrator: Any) -> None:
        """Say where the application is, and at the first start the administrator's password."""
        lines = ["", f"Prefloop is ready at  {address}"]
        if not administrator.has_usable_password():
            password = secrets.token_urlsafe(9)
            administrator.set_password(password)
            administrator.save(update_fields=["password"])
            lines += [
                f"  Sign in as          {administrator.get_username()}",
                f"  Password            {password}",
                "                      It is shown this once; change it after signing in.",
            ]
        else:
            lines += [
                f"  Sign in as          {administrator.get_username()}  (forgotten the password? "
                "manage.py changepassword)",
            ]
        lines += [
            f"  Files are kept in   {settings.PREFLOOP_STORAGE}",
            "  Stop with           Ctrl-C",
            "",
        ]
        self.say("\n".join(lines))


def hold_storage(address: str) -> IO[str]:
    """Lock the storage folder for one `serve`; the lock ends with this process, however it ends."""
    file = open(settings.PREFLOOP_STORAGE / "serve.lock", "a+")  # noqa: SIM115 - held while we run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise CommandError(
            f"Prefloop already runs from {settings.PREFLOOP_STORAGE}: {file.read().strip()}"
        ) from None
    file.truncate(0)
    file.write(f"{address} (process {os.getpid()})\n")
    file.flush()
    return file


def refuse_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Cannot listen on {host} port {port}: {error.strerror}. Choose another port, "
                f"for example: make run PORT={port + 1 if port < 65535 else 8000}"
            ) from None


def ensure_administrator() -> Any:
    """An active superuser, made without a usable password when there is none."""
    users = get_user_model().objects
    existing = users.filter(is_superuser=True, is_active=True)
    administrator = existing.filter(username=ADMIN).first() or existing.order_by("pk").first()
    if administrator is not None:
        return administrator
    if users.filter(username=ADMIN).exists():
        raise CommandError(
            f"There is no active administrator, and {ADMIN!r} is somebody else's name. "
            "Make one with: manage.py createsuperuser"
        )
    return users.create_superuser(ADMIN, password=None)


def note_lost_jobs(say: Any) -> None:
    """Mark the jobs of processes that are gone, so that the pages offer to resume them at once."""
    from labeling.jobs import job_models, mark_lost

    for model in job_models():
        n_lost = mark_lost(model.objects.orphaned())
        if n_lost:
            name = model._meta.verbose_name if n_lost == 1 else model._meta.verbose_name_plural
            say(f"{n_lost} {name} lost the process that worked on it; its page can resume it.")


def environment(verbosity: int) -> dict[str, str]:
    """What the processes get: ours, quiet, unbuffered."""
    defaults = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "LOG_LEVEL": "INFO" if verbosity > 1 else "WARNING",
        # Celery warns root on many lines because of pickle; we accept JSON alone.
        "PYTHONWARNINGS": "ignore:You're running the worker",
        # macOS ends a forked child that touches Objective-C, as looking up proxies does.
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
    }
    if web_processes() > 1:  # they count requests together: see config/metrics.py
        counts = settings.PREFLOOP_STORAGE / "metrics"
        shutil.rmtree(counts, ignore_errors=True)
        defaults["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
    return defaults | os.environ | {"PYTHONUNBUFFERED": "1"}


def web_command(host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "config.wsgi:application"),
        *("--bind", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
        *("--worker-class", "gthread", "--workers", str(web_processes())),
        # Requests wait better in the server's queue than for each other's processor time: with four
        # threads an answer costs a quarter more than with two (docs/benchmarks.md). A second one,
        # because a slow page or upload must not keep raters waiting. SQLite has one process alone.
        *("--threads", "4" if web_processes() == 1 else "2", "--preload"),
        *("--timeout", "120", "--graceful-timeout", "2", "--log-level", "warning"),
        "--no-control-socket",
    ]


def web_processes() -> int:
    """Two, where there are two processors; one on SQLite, which lets one write at a time."""
    return 1 if connection.vendor == "sqlite" else min(2, os.cpu_count() or 1)


def worker_command(queue: str, *, concurrency: int, more: Sequence[str] = ()) -> list[str]:
    """A Celery worker that is named by the queue that it serves.

    Args: more: queues that it serves besides.
    """
    queues = ",".join([queue, *more])
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "config", "worker", "--queues", queues),
        *("--concurrency", str(concurrency), "--hostname", f"{queue}@%h"),
        *("--loglevel", os.environ.get("LOG_LEVEL", "WARNING")),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def sweep_worker_command() -> list[str]:
    """The worker that sends the periodic tasks and does them itself, in one process.

    Without a schedule file: every period is seconds long.
    """
    worker = worker_command("sweep", concurrency=1)
    return [*worker, "--pool", "solo", "--beat", "--scheduler", "celery.beat:Scheduler"]


def gpu_worker_command() -> list[str]:
    """One job at a time. What trains or loads a model of training has a process of its own; a
    judge's model lies in Celery's, which is replaced after a job that needed as much.

    It yields the processor to the pages, which matters where training runs on the CPU.
    """
    worker = worker_command("gpu", concurrency=1, more=class_queues())
    return ["nice", "-n", "5", *worker, "--max-memory-per-child", KIB_AFTER_A_JOB]


def wait_until_served(tree: ProcessTree, address: str) -> None:
    """Return when the web server answers, or when a signal asked to stop."""
    deadline = time.monotonic() + START_SECONDS

    def answers() -> bool:
        if time.monotonic() > deadline:
            raise CommandError(f"The web server did not answer within {START_SECONDS} s.")
        host = address.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
        try:
            with urllib.request.urlopen(host + "accounts/login/", timeout=10):  # noqa: S310 - our own address
                return True
        except urllib.error.HTTPError as error:  # it serves; it may not know the name 127.0.0.1
            return error.code < 500
        except OSError:
            return False

    tree.watch(until=answers)
