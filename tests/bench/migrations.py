"""Migrations on PostgreSQL at a million rows while answers are written; backup and restore.

    python -m tests.bench.migrations [--n 1000000] [--writers 4]
    python -m tests.bench.migrations --backup --n 200000 [--archive FILE]

The database is made as it was before `labeling 0007`, filled with N comparisons that have one
preference each (2 N responses, N prompts), and then brought up to date migration by migration,
while writers keep an answer every 20 ms each: a place taken and a preference written, in one
transaction that waits for the disk. Printed per migration:

seconds      it took
longest      milliseconds of the longest answer that began or ended in it
refused      answers that the table refused because the code that wrote them was older than it

`--backup` fills 5 N rows in today's form on PostgreSQL, responses of 720 characters that pack to
half, and prints, for a backup of it, its check and its restore into another PostgreSQL, then for a
restore of the same archive into SQLite and a backup of that: seconds, the most memory that the
command's process held (ru_maxrss, in MB of 2^20 bytes), and the archive's size. Every restore holds
each table against the hash that the backup told; at the end the hashes that both databases told are
compared. With --archive, the first half is done if there is no such file yet, the second if there
is.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests import postgresql

START = {
    "labeling": "0006_leaderboard",
    "judges": "0009_verdict_asked_for",
    "training": "0002_paused_jobs",
}
FILL = """
INSERT INTO labeling_prompt (id, messages, content_hash, created_at, project_id)
SELECT i, ('[{{"role": "user", "content": "Tell me about place ' || i || '."}}]')::jsonb,
    lpad(i::text, 64, '0'), now(), {project} FROM generate_series(1, {n}) AS i;
INSERT INTO labeling_response (id, messages, content_hash, source, n_chars, created_at, prompt_id)
SELECT i,
    ('[{{"role": "assistant", "content": "' || {text} || i || '"}}]')::jsonb,
    lpad(i::text, 64, '0'), '', 720, now(), (i + 1) / 2 FROM generate_series(1, 2 * {n}) AS i;
INSERT INTO labeling_comparison (id, content_hash, external_id, gold, purpose, metadata, leaks,
    labels_wanted, open_places, priority, random_key, created_at, project_id, prompt_id,
    response_a_id, response_b_id)
SELECT i, lpad(i::text, 64, '0'), '', '', 'work', '{{}}', '[]', 2, 1, 0, random(), now(),
    {project}, i, 2 * i - 1, 2 * i FROM generate_series(1, {n}) AS i;
INSERT INTO labeling_preference (choice, rationale, tags, aspects, shown_first, audit,
    comparison_id, rater_id{more_names})
SELECT 'a', '', '[]', '{{}}', 'a', false, i, {rater}{more_values} FROM generate_series(1, {n}) AS i;
SELECT setval('labeling_prompt_id_seq', {n}), setval('labeling_response_id_seq', 2 * {n}),
    setval('labeling_comparison_id_seq', {n});
"""
SECRET_KEY = "of this bench alone"
SAME_TEXT = "repeat('Some words. ', 60)"
OWN_TEXT = (
    "(SELECT string_agg(md5((i * 100 + word)::text), ' ') FROM generate_series(1, 22) AS word)"
)


class Writer(threading.Thread):
    """Answers one comparison after the other, with the columns that the code knew at the start."""

    def __init__(self, url: str, number: int, n_writers: int, rater: int, n: int) -> None:
        super().__init__(daemon=True)
        self.url, self.rater = url, rater
        self.todo = iter(range(number + 1, n, n_writers))
        self.stop = threading.Event()
        self.answers: list[tuple[float, float, str]] = []  # began, ended, why it was refused
        self.columns = {"certified": False}
        self.known = ""

    def run(self) -> None:
        import psycopg

        connection = psycopg.connect(self.url, autocommit=False)
        while not self.stop.wait(0.02):
            comparison = next(self.todo)
            began, why = time.time(), ""
            try:
                self.write(connection, comparison)
            except psycopg.errors.NotNullViolation as error:
                connection.rollback()
                why = error.diag.column_name or "?"
                self.known = why  # the new code comes with the next answer
            self.answers.append((began, time.time(), why))

    def write(self, connection: Any, comparison: int) -> None:
        names, values = (f", {self.known}", ", false") if self.known else ("", "")
        connection.execute(
            "UPDATE labeling_comparison SET open_places = open_places - 1 "
            "WHERE id = %s AND open_places > 0",
            [comparison],
        )
        connection.execute(
            "INSERT INTO labeling_preference (choice, rationale, tags, aspects, shown_first, audit,"
            f" comparison_id, rater_id{names}) VALUES ('b', '', '[]', '{{}}', 'a', false, %s, %s"
            f"{values})",
            [comparison, self.rater],
        )
        connection.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--backup", action="store_true")
    parser.add_argument("--archive", type=Path, help="with --backup: do one half at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prefloop-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        archive = options.archive or folder / "postgresql.tar"
        if options.backup:
            print(f"{5 * options.n:,} rows\n\n| step | seconds | rows a second | peak, MB | MB |")
            print("| --- | ---: | ---: | ---: | ---: |", flush=True)
        if not archive.exists():
            on_postgresql(folder, archive, options)
        if options.backup and (options.archive is None or not (folder / "storage").exists()):
            backup_on_sqlite(archive, folder, options.n)


def on_postgresql(folder: Path, archive: Path, options: argparse.Namespace) -> None:
    programs = postgresql.find_programs()
    if programs is None:
        sys.exit("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    (folder / "postgresql").mkdir()
    (folder / "storage").mkdir()
    server = postgresql.Server(
        folder / "postgresql", programs, durable=True, options="-c max_wal_size=4GB"
    )
    try:
        set_up(server.url, folder / "storage")
        if options.backup:
            backup_on_postgresql(server.url, archive, folder, options.n)
        else:
            migrations(server.url, options.n, options.writers)
    finally:
        server.stop()


def set_up(url: str, storage: Path) -> None:
    os.environ |= {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(storage),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": SECRET_KEY,
    }
    import django

    django.setup()


def fill(n: int, more: dict[str, str], text: str = SAME_TEXT) -> tuple[int, int]:
    """(project, rater) of N comparisons with a preference each, of another rater than this one.

    Args: text: SQL that gives the text of response i.
    """
    from django.db import connection

    with connection.cursor() as cursor:
        keys = {}
        for table, row in (
            ("labeling_project", {"slug": "'big'", "name": "'Big'"}),
            ("labeling_rater", {"name": "'ann'", "kind": "'person'", "project_id": "{project}"}),
            ("labeling_rater", {"name": "'bob'", "kind": "'person'", "project_id": "{project}"}),
        ):
            cursor.execute(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = "
                "%s AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'",
                [table],
            )
            for column, kind in cursor.fetchall():
                row.setdefault(column, EMPTY[kind])
            values = ", ".join(row.values()).format(**keys)
            cursor.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values}) RETURNING id")
            keys["project" if "project" in table else "rater"] = cursor.fetchone()[0]
        names = "".join(f", {name}" for name in more)
        values = "".join(f", {value}" for value in more.values())
        own = {"project": keys["project"], "rater": keys["rater"] - 1}
        cursor.execute(FILL.format(n=n, text=text, more_names=names, more_values=values, **own))
        cursor.execute("VACUUM ANALYZE")
    return keys["project"], keys["rater"]


EMPTY = {
    "character varying": "''",
    "text": "''",
    "smallint": "1",
    "integer": "1",
    "bigint": "1",
    "double precision": "0",
    "boolean": "false",
    "jsonb": "'[]'",
    "timestamp with time zone": "now()",
}


def migrations(url: str, n: int, n_writers: int) -> None:
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor
    from django.db.migrations.loader import MigrationLoader

    def executor() -> MigrationExecutor:
        made = MigrationExecutor(connection)
        made.loader = MigrationLoader(connection, replace_migrations=False)
        return made

    first = executor()
    graph = first.loader.graph
    outside = [node for node in graph.leaf_nodes() if node[0] not in START]
    first.migrate([*START.items(), *outside])
    began = time.time()
    _project, rater = fill(n, {})
    print(f"{n:,} comparisons with a preference each, made in {time.time() - began:.0f} s\n")
    writers = [Writer(url, number, n_writers, rater, n) for number in range(n_writers)]
    for writer in writers:
        writer.start()
    time.sleep(5.0)
    spans = [("nothing, for 5 s", began := time.time() - 5.0, time.time())]
    last = executor()
    plan = last.migration_plan(
        [node for node in last.loader.graph.leaf_nodes() if "everything" not in node[1]]
    )
    for migration, _backwards in plan:
        began = time.time()
        executor().migrate([(migration.app_label, migration.name)])
        spans.append((f"{migration.app_label} {migration.name}", began, time.time()))
        time.sleep(0.3)
    for writer in writers:
        writer.stop.set()
        writer.join(10)
    answers = sorted(answer for writer in writers for answer in writer.answers)
    print("| migration | seconds | answers | longest, ms | refused |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, begin, end in spans:
        within = [a for a in answers if a[1] >= begin and a[0] <= end]
        longest = max((1000 * (a[1] - a[0]) for a in within), default=0.0)
        refused = sum(bool(a[2]) for a in within)
        print(f"| {name} | {end - begin:.1f} | {len(within)} | {longest:.0f} | {refused} |")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM labeling_preference WHERE choice = 'b'")
        [n_kept] = cursor.fetchone()
    n_sent = sum(not why for _began, _ended, why in answers)
    print(f"\n{n_sent} answers were acknowledged, {n_kept} are there.")


def backup_on_postgresql(url: str, archive: Path, folder: Path, n: int) -> None:
    from django.core.management import call_command
    from django.db import connection

    call_command("migrate", verbosity=0)
    fill(n, {"certified": "false"}, OWN_TEXT)
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("CREATE DATABASE restored")
    connection.close()
    restored = installation(folder / "restored", url.rpartition("/")[0] + "/restored")
    show("PostgreSQL: backup", n, archive, dict(os.environ), "backup")
    show("restore --check", n, archive, dict(os.environ), "restore", "--check")
    timed(["migrate", "--verbosity", "0"], restored)
    show("restore into PostgreSQL", n, archive, restored, "restore")


def backup_on_sqlite(archive: Path, folder: Path, n: int) -> None:
    sqlite = installation(folder / "sqlite", f"sqlite:///{folder / 'sqlite.sqlite3'}")
    again = folder / "sqlite.tar"
    timed(["migrate", "--verbosity", "0"], sqlite)
    show("restore into SQLite", n, archive, sqlite, "restore")
    show("SQLite: backup", n, again, sqlite, "backup")
    told = []
    for path in (archive, again):
        with tarfile.open(path) as whole:
            manifest = whole.extractfile("manifest.json")
            assert manifest is not None
            told.append(json.load(manifest)["tables"])
    differ = [name for name in told[0] if told[0][name] != told[1][name]]
    print(f"\nTables whose hashes differ between the two backups: {', '.join(differ) or 'none'}")


def installation(folder: Path, url: str) -> dict[str, str]:
    """The environment of an empty one."""
    folder.mkdir()
    own = {"PREFLOOP_STORAGE": str(folder), "DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}
    return os.environ | own | {"DJANGO_SETTINGS_MODULE": "config.settings"}


def show(name: str, n: int, archive: Path, environment: dict[str, str], *command: str) -> None:
    seconds, peak = timed([*command, str(archive)], environment)
    size = archive.stat().st_size / 2**20
    print(
        f"| {name} | {seconds:.0f} | {5 * n / seconds:,.0f} | {peak:.0f} | {size:.0f} |", flush=True
    )


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, peak of memory in MB) of a management command. It ends the bench where it fails."""
    began = time.time()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "manage.py", *command], env=environment, stdout=said, stderr=said
        )
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{command}: {said.read().decode()}")
    return time.time() - began, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
