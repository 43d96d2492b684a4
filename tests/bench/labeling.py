"""Raters over HTTP against the real server: throughput, waiting time, labels beyond the wanted.

    python -m tests.bench.labeling [--database sqlite postgresql] [--n 10000 1000000]
                                   [--raters 1 8 32] [--seconds 10] [--labels 1] [--to-the-end 300]

For each database and N a project of N comparisons is made (pairs of about 2 kB, Markdown), `serve`
is started on it (one process tree: web server, workers), and R raters answer without thinking time
as the page does: three pairs are held, and one request sends an answer and brings the next pair.
Printed per R:

pairs/s      answers kept in a second
p50, p95     milliseconds from sending an answer to having read the response with the next pair
errors       responses that were neither 200 nor 409
over         labels beyond the wanted number, in the whole database, afterwards: must be 0
cpu/pair     milliseconds of processor time per pair: of the web server, and of the database
memory       MB, peak of the web server's processes (proportional set size); of the whole tree

`--to-the-end N` plays 32 raters on N comparisons until nothing is left, for 1, 3 and 5 labels a
comparison: the moment at which over-assignment shows. The load runs on the same machine and takes
its share of it; compare figures of one run with each other.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil

ROOT = Path(__file__).resolve().parents[2]
from tests import postgresql  # noqa: E402

WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "that",
    "it",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "this",
    "are",
    "be",
    "or",
    "an",
    "which",
    "answer",
    "question",
    "example",
    "model",
    "value",
    "result",
    "reason",
    "people",
    "water",
    "light",
    "number",
    "system",
]
PASSWORD = "walnut-river-8"


def text(chance: random.Random, n_chars: int) -> str:
    """Markdown as a chat model writes it: paragraphs, a list, at times code."""
    parts, size = [], 0
    while size < n_chars:
        words = " ".join(chance.choices(WORDS, k=40))
        kind = chance.random()
        if kind < 0.2:
            words = "\n".join(f"- **{chance.choice(WORDS)}**: {words[:60]}" for _n in range(4))
        elif kind < 0.25:
            words = f"```python\ndef {chance.choice(WORDS)}(x):\n    return x + 1\n```"
        parts.append(words)
        size += len(words)
    return "\n\n".join(parts)


def make_project(n: int, n_labels: int, slug: str) -> None:
    """A project of `n` comparisons with prompts and responses of their own, written in bulk."""
    from django.db import connection

    from labeling.models import Comparison, Project, Prompt, Response

    project = Project.objects.create(slug=slug, name=slug, labels_per_comparison=n_labels)
    chance = random.Random(1)
    bodies = [text(chance, 800) for _n in range(200)]
    questions = [text(chance, 200)[:300] for _n in range(50)]
    now = time.strftime("%Y-%m-%d %H:%M:%S+00:00", time.gmtime())
    start = {m: (m.objects.order_by("-pk").values_list("pk", flat=True).first() or 0) + 1
             for m in (Prompt, Response, Comparison)}  # fmt: skip

    def message(role: str, words: str) -> str:
        return json.dumps([{"role": role, "content": words}])

    def prompts() -> Iterator[tuple]:
        for i in range(n):
            words = message("user", f"{i}: {questions[i % 50]}")
            yield start[Prompt] + i, words, f"{i:064x}", now, project.pk

    def responses() -> Iterator[tuple]:
        for i in range(2 * n):
            words = message("assistant", f"{bodies[i % 199]} {i}")
            yield (
                start[Response] + i,
                words,
                f"{i:064x}",
                "",
                len(words),
                now,
                start[Prompt] + i // 2,
            )

    def comparisons() -> Iterator[tuple]:
        for i in range(n):
            first = start[Response] + 2 * i
            yield (
                *(start[Comparison] + i, f"{i:064x}", "", "", "work", "{}", "[]"),
                *(n_labels, n_labels, 0, chance.random(), now, project.pk),
                *(start[Prompt] + i, first, first + 1),
            )

    tables = [
        (Prompt, ["id", "messages", "content_hash", "created_at", "project_id"], prompts()),
        (Response, ["id", "messages", "content_hash", "source", "n_chars", "created_at",
                    "prompt_id"], responses()),
        (Comparison, ["id", "content_hash", "external_id", "gold", "purpose", "metadata", "leaks",
                      "labels_wanted", "open_places", "priority", "random_key", "created_at",
                      "project_id", "prompt_id", "response_a_id", "response_b_id"], comparisons()),
    ]  # fmt: skip
    for model, columns, rows in tables:
        table, names = model._meta.db_table, ", ".join(columns)
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
                cursor.execute(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")
            else:
                marks = ", ".join("?" * len(columns))
                cursor.execute("BEGIN")
                cursor.connection.executemany(
                    f"INSERT INTO {table} ({names}) VALUES ({marks})", rows
                )
                cursor.execute("COMMIT")
    if connection.vendor == "postgresql":  # autovacuum would do it a minute later
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def make_raters(n: int, slug: str) -> list[str]:
    """Accounts of raters in the project; their session keys."""
    from django.contrib.auth import (
        BACKEND_SESSION_KEY,
        HASH_SESSION_KEY,
        SESSION_KEY,
        get_user_model,
    )
    from django.contrib.sessions.backends.db import SessionStore

    from labeling.access import rater_of
    from labeling.models import Membership, Project

    project = Project.objects.get(slug=slug)
    keys = []
    for number in range(n):
        user = get_user_model().objects.create(username=f"{slug}-{number}")
        Membership.objects.create(project=project, user=user, role=Membership.Role.RATER)
        rater_of(user, project)
        session = SessionStore()
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        keys.append(session.session_key)
    return keys


class Player(threading.Thread):
    """One rater: holds three pairs, answers the first, takes what the response brings."""

    def __init__(self, port: int, slug: str, session: str) -> None:
        super().__init__(daemon=True)
        self.ready, self.begin = threading.Event(), threading.Event()
        self.until = 0.0
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.path = f"/projects/{slug}/compare/"
        self.cookies = {"sessionid": session, "csrftoken": secrets.token_hex(16)}
        self.chance = random.Random(session)
        self.held: list[str] = []  # assignments, in the order of the page
        self.times: list[float] = []
        self.kept = self.refused = self.errors = 0

    def ask(self, method: str, body: dict[str, str] | None, fragment: bool) -> tuple[int, str]:
        headers = {
            "Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()),
            "Accept-Encoding": "gzip",
        }
        if fragment:
            headers["HX-Request"] = "true"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["X-CSRFToken"] = self.cookies["csrftoken"]
            data = urlencode(body)
        have = "" if body is not None or not fragment else "?have=" + ",".join(self.held)
        try:
            self.connection.request(method, self.path + have, data, headers)
            reply = self.connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            # The server had closed the idle connection: sent again, as the page does.
            self.connection.close()
            self.connection.request(method, self.path + have, data, headers)
            reply = self.connection.getresponse()
        content = reply.read()
        if reply.headers.get("Content-Encoding") == "gzip":
            import gzip

            content = gzip.decompress(content)
        for cookie in reply.headers.get_all("Set-Cookie") or []:
            name, value = cookie.split(";")[0].split("=", 1)
            self.cookies[name] = value
        return reply.status, content.decode()

    def take(self, page: str) -> None:
        self.held += re.findall(r'name="assignment" value="(\d+)"', page)

    def run(self) -> None:
        try:
            status, page = self.ask("GET", None, fragment=False)
            assert status == 200, (status, page[:300])
            self.take(page)
            self.take(self.ask("GET", None, fragment=True)[1])
            self.ready.set()
            self.begin.wait()
            while self.held and time.monotonic() < self.until:
                self.answer()
        finally:
            self.ready.set()
            self.connection.close()

    def answer(self) -> None:
        assignment = self.held.pop(0)
        body = {
            "assignment": assignment,
            "answer": self.chance.choice(["left-1", "left-2", "right-3", "right-1", "tie"]),
            "seconds": "12.5",
            "answer_key": secrets.token_hex(16),
            "have": ",".join(self.held),
        }
        began = time.perf_counter()
        status, page = self.ask("POST", body, fragment=True)
        self.times.append(time.perf_counter() - began)
        if status == 200:
            self.kept += 1
        elif status == 409:
            self.refused += 1
        else:
            self.errors += 1
        self.take(page)


class Meter(threading.Thread):
    """Peak memory and processor time of the served tree and of the database."""

    def __init__(self, server: int, database: Path | None) -> None:
        super().__init__(daemon=True)
        self.server = psutil.Process(server)
        self.database = database
        self.peak_web = self.peak_all = 0.0
        self.stop = threading.Event()

    def web(self) -> list[psutil.Process]:
        return [p for p in self.server.children(recursive=True) if "gunicorn" in _line(p)]

    def database_processes(self) -> list[psutil.Process]:
        if self.database is None:
            return []
        pid = int((self.database / "data" / "postmaster.pid").read_text().split()[0])
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]

    def seconds(self) -> tuple[float, float]:
        """Processor seconds so far: (web server, database with its ended processes)."""
        return _cpu(self.web()), _cpu(self.database_processes())

    def run(self) -> None:
        while not self.stop.wait(0.5):
            with contextlib.suppress(psutil.Error):
                self.peak_web = max(self.peak_web, _memory(self.web()))
                tree = [self.server, *self.server.children(recursive=True)]
                self.peak_all = max(self.peak_all, _memory(tree))


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _cpu(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss / 2**20
    return total


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, Path | None]]:
    """(DATABASE_URL, folder of the PostgreSQL server)."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'bench.sqlite3'}", None
        return
    programs = postgresql.find_programs()
    if programs is None:
        sys.exit("PostgreSQL is not installed (Debian: apt-get install postgresql).")
    own = folder / "postgresql"
    own.mkdir()
    # Durable, as an installation is: a kept answer is on disk.
    with postgresql.running(own, programs, durable=True) as url:
        yield url, own


@contextlib.contextmanager
def served(environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """(port, process) of `serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "manage.py", "serve", "--port", str(port)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Stop with" in line:
            break
    else:
        sys.exit("serve did not start:\n" + "".join(lines))
    drain = threading.Thread(
        target=lambda: [print(end=line) for line in process.stdout], daemon=True
    )
    drain.start()
    try:
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def play(port: int, slug: str, sessions: list[str], seconds: float) -> tuple[list[Player], float]:
    """Have raters answer for so long, or to the end: they, and the seconds it took.

    All of them have their first pairs before the first one answers.
    """
    players = [Player(port, slug, session) for session in sessions]
    for player in players:
        player.start()
        time.sleep(0.03)  # people do not come in the same millisecond
    for player in players:
        player.ready.wait(120)
    began = time.monotonic()
    for player in players:
        player.until = began + seconds
        player.begin.set()
    for player in players:
        player.join(seconds + 120)
        if player.is_alive():
            sys.exit("A rater got no response within two minutes.")
    return players, time.monotonic() - began


def n_over() -> int:
    """Labels beyond the wanted number, over all projects."""
    from django.db.models import Count, F, Q, Sum

    from labeling.models import Comparison

    over = (
        Comparison.objects.filter(preferences__superseded_at=None)
        .annotate(n=Count("preferences", filter=Q(preferences__superseded_at=None)))
        .filter(n__gt=F("labels_wanted"))
        .aggregate(total=Sum(F("n") - F("labels_wanted")))
    )
    return over["total"] or 0


def report(name: str, players: list[Player], seconds: float, cpu: tuple[float, float]) -> None:
    times = sorted(t for p in players for t in p.times)
    kept = sum(p.kept for p in players)
    p95 = times[int(0.95 * (len(times) - 1))] if times else float("nan")
    print(
        f"{name:<34} {kept / seconds:8.1f} {1000 * statistics.median(times or [0]):8.1f} "
        f"{1000 * p95:8.1f} {sum(p.errors for p in players):7d} {n_over():5d} "
        f"{1000 * cpu[0] / max(1, kept):7.1f} {1000 * cpu[1] / max(1, kept):7.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--raters", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--labels", type=int, default=1)
    parser.add_argument("--to-the-end", type=int, default=0, metavar="N")
    options = parser.parse_args()
    runs = [(kind, n) for kind in options.database for n in options.n]
    if options.to_the_end:
        runs = [(kind, 0) for kind in options.database]
    for kind, n in runs:
        with tempfile.TemporaryDirectory(prefix="bench") as folder:
            Path(folder).chmod(0o755)
            with database(kind, Path(folder)) as (url, postgres):
                bench(kind, n, Path(folder), url, postgres, options)


def bench(
    kind: str, n: int, folder: Path, url: str, postgres: Path | None, options: argparse.Namespace
) -> None:
    """One database: in a process of its own, because Django's settings are read once."""
    environment = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(folder),
        "LOG_LEVEL": "WARNING",
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    if kind == "postgresql":  # as a team runs it
        team = {"DEBUG": "0", "SECRET_KEY": secrets.token_hex(32), "PREFLOOP_HTTP": "1"}
        environment |= team | {"ALLOWED_HOSTS": "127.0.0.1"}
    child = os.fork()
    if child:
        _pid, status = os.waitpid(child, 0)
        if status:
            sys.exit("The run failed.")
        return
    try:
        os.environ.update(environment)
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        if options.to_the_end:
            to_the_end(kind, environment, postgres, options.to_the_end)
        else:
            throughput(kind, n, environment, postgres, options)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


HEAD = (
    f"{'':<34} {'pairs/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'errors':>7} {'over':>5} "
    f"{'web ms':>7} {'db ms':>7}"
)


def throughput(
    kind: str,
    n: int,
    environment: dict[str, str],
    postgres: Path | None,
    options: argparse.Namespace,
) -> None:
    began = time.monotonic()
    make_project(n, options.labels, "rush")
    sessions = make_raters(max(options.raters), "rush")
    print(f"\n{kind}, {n:,} comparisons (made in {time.monotonic() - began:.0f} s)\n{HEAD}")
    with served(environment) as (port, pid):
        meter = Meter(pid, postgres)
        meter.start()
        play(
            port, "rush", sessions[:2], 1.0
        )  # the first request of a process imports what it needs
        for n_raters in options.raters:
            before = meter.seconds()
            players, seconds = play(port, "rush", sessions[:n_raters], options.seconds)
            after = meter.seconds()
            cpu = after[0] - before[0], after[1] - before[1]
            report(f"{n_raters} raters", players, seconds, cpu)
        meter.stop.set()
        print(
            f"peak memory: web server {meter.peak_web:.0f} MB, whole tree {meter.peak_all:.0f} MB"
        )


def to_the_end(kind: str, environment: dict[str, str], postgres: Path | None, n: int) -> None:
    from labeling.models import Comparison, Preference

    print(f"\n{kind}, 32 raters until nothing is left, {n} comparisons\n{HEAD}")
    for n_labels in (1, 3, 5):
        make_project(n, n_labels, f"end-{n_labels}")
    sessions = {labels: make_raters(32, f"end-{labels}") for labels in (1, 3, 5)}
    with served(environment) as (port, pid):
        meter = Meter(pid, postgres)
        for n_labels in (1, 3, 5):
            slug = f"end-{n_labels}"
            before = meter.seconds()
            players, seconds = play(port, slug, sessions[n_labels], 300)
            after = meter.seconds()
            cpu = after[0] - before[0], after[1] - before[1]
            report(f"{n_labels} labels each", players, seconds, cpu)
            given = Preference.objects.current().filter(comparison__project__slug=slug).count()
            left = Comparison.objects.filter(project__slug=slug, open_places__gt=0).count()
            print(f"    {given} labels given of {n * n_labels} wanted; {left} comparisons open")


if __name__ == "__main__":
    main()
