"""Which embedded broker wakes the workers: kombu's files or its SQLite tables.

    python -m tests.bench.brokers [--messages 200] [--kills 5] [--polling 0.25]

For each broker two real Celery workers (one process each, as in `serve`) are started in a folder
of their own. Printed per broker:

idle CPU       seconds of processor time of both workers together in an idle minute
send           milliseconds to hand over one message, median / 95th percentile
latency        milliseconds from before sending to the task's first line, one message at a time
               (a quarter of the messages)
burst          four senders at once: messages a second until the last one has run
quiet loss     messages of both parts above that never ran, and that ran twice
killed         one worker gets SIGKILL in the middle of a stream of messages, then starts again:
               messages lost and doubled per kill (one that was running at that moment may be lost)
error lines    lines of the workers' and senders' logs that hold an error

Messages may be lost or doubled without harm, because the job rows are the truth and the sweep sends
forgotten ones again; fewer is still better.
"""

import argparse
import os
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from celery import Celery

BROKERS = {
    "filesystem": "kombu filesystem, defaults",
    "filesystem-beside": "kombu filesystem, moved within one folder",
    "sqlite": "kombu SQLAlchemy + SQLite, defaults",
    "sqlite-wal": "kombu SQLAlchemy + SQLite, WAL, wait 20 s",
}


def broker_settings(kind: str, folder: Path, polling: float) -> dict:
    """Celery settings of one broker that lives in `folder`."""
    options: dict = {}
    if kind.startswith("filesystem"):
        options["polling_interval"] = polling
        for name in ("queue", "control", "processed"):
            (folder / name).mkdir(exist_ok=True)
        options |= {
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "queue"),
            "control_folder": str(folder / "control"),
        }
        if kind == "filesystem-beside":
            options |= {"store_processed": True, "processed_folder": str(folder / "processed")}
        url = "filesystem://"
    else:  # has no polling interval: the option would go to its engine, which refuses it
        if kind == "sqlite-wal":
            with sqlite3.connect(folder / "broker.sqlite3") as database:
                database.execute("PRAGMA journal_mode=WAL")
            options["connect_args"] = {"timeout": 20}
        url = f"sqla+sqlite:///{folder / 'broker.sqlite3'}"
    return {
        "broker_url": url,
        "broker_transport_options": options,
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": True,
    }


app = Celery("brokers")
FOLDER = Path(os.environ.get("BENCH_FOLDER", "."))
if "BENCH_BROKER" in os.environ:
    app.conf.update(
        broker_settings(os.environ["BENCH_BROKER"], FOLDER, float(os.environ["BENCH_POLLING"]))
    )


@app.task(name="note")
def note(key: str, work_seconds: float = 0.0) -> None:
    """Write down that this message ran, and when."""
    line = f"{key} {time.time()}\n".encode()
    file = os.open(FOLDER / "ran", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line)
    os.close(file)
    time.sleep(work_seconds)


def ran() -> list[tuple[str, float]]:
    """Every execution so far: the message's key and the time."""
    lines = (FOLDER / "ran").read_text().split("\n")[:-1] if (FOLDER / "ran").exists() else []
    return [(key, float(at)) for key, at in (line.split() for line in lines)]


def wait_for(keys: set[str], seconds: float) -> None:
    """Until all keys have run, or nothing has happened for `seconds`."""
    n_seen, since = -1, time.time()
    while time.time() - since < seconds:
        seen = keys & {key for key, _ in ran()}
        if seen == keys:
            return
        if len(seen) != n_seen:
            n_seen, since = len(seen), time.time()
        time.sleep(0.05)


def send(keys: list[str], pause: float, work_seconds: float = 0.0) -> list[float]:
    """Send a message per key; the seconds that each sending took."""
    seconds = []
    for key in keys:
        begin = time.perf_counter()
        note.delay(key, work_seconds)
        seconds.append(time.perf_counter() - begin)
        time.sleep(pause * random.uniform(0.5, 1.5))
    return seconds


def start_worker(name: str) -> subprocess.Popen:
    log = open(FOLDER / f"{name}.log", "a")  # noqa: SIM115 - belongs to the worker
    command = [sys.executable, "-m", "celery", "-A", "tests.bench.brokers", "worker"]
    command += ["--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    command += ["--loglevel=WARNING", "-n", f"{name}@bench"]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def stop(worker: subprocess.Popen, how: int) -> None:
    """End the whole process group of a worker."""
    if how == signal.SIGKILL:
        os.killpg(worker.pid, how)
    else:
        worker.send_signal(how)
    worker.wait(30)


def cpu_seconds(workers: list[subprocess.Popen]) -> float:
    total = 0.0
    for worker in workers:
        parent = psutil.Process(worker.pid)
        for process in [parent, *parent.children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system
    return total


def ms(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=20)
    return f"{statistics.median(seconds) * 1000:.0f} / {cuts[-1] * 1000:.0f}"


def measure(n_messages: int, n_kills: int) -> dict[str, str]:
    """Every figure of the broker that the environment names."""
    row = {}
    workers = [start_worker("one"), start_worker("two")]
    send(["hello"], 0)
    wait_for({"hello"}, 60)
    time.sleep(3)

    before = cpu_seconds(workers)
    time.sleep(15)
    row["idle CPU s/min"] = f"{(cpu_seconds(workers) - before) * 4:.2f}"

    keys = [f"single-{i}" for i in range(n_messages // 4)]
    sent_at, took = {}, []
    for key in keys:
        time.sleep(random.uniform(0.1, 0.5))
        sent_at[key] = time.time()
        took += send([key], 0)
        wait_for({key}, 10)
    first = dict(reversed(ran()))
    row["send ms"] = ms(took)
    row["latency ms"] = ms([first[key] - sent_at[key] for key in keys if key in first])

    begin = time.time()
    senders = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.brokers", "--send", f"burst{i}", str(n_messages)],
            stderr=open(FOLDER / f"sender{i}.log", "w"),  # noqa: SIM115
        )
        for i in range(4)
    ]
    for sender in senders:
        sender.wait()
    burst = {f"burst{i}-{j}" for i in range(4) for j in range(n_messages)}
    wait_for(burst, 15)
    finished = [at for key, at in ran() if key in burst]
    row["burst /s"] = f"{len(burst) / (max(finished) - begin):.0f}" if finished else "-"
    expected = set(keys) | burst
    counts = Counter(key for key, _ in ran())
    row["lost"] = str(len(expected - set(counts)))
    row["twice"] = str(sum(counts[key] > 1 for key in expected))

    for kill in range(n_kills):
        stream = [f"kill{kill}-{i}" for i in range(40)]
        send(stream[:25], 0.02, work_seconds=0.05)
        stop(workers[0], signal.SIGKILL)
        send(stream[25:], 0.02, work_seconds=0.05)
        workers[0] = start_worker("one")
        wait_for(set(stream), 8)
    killed = {f"kill{kill}-{i}" for kill in range(n_kills) for i in range(40)}
    counts = Counter(key for key, _ in ran())
    row["lost/kill"] = f"{len(killed - set(counts)) / n_kills:.1f}"
    row["twice/kill"] = f"{sum(counts[key] > 1 for key in killed) / n_kills:.1f}"

    for worker in workers:
        stop(worker, signal.SIGTERM)
    logs = [line for log in FOLDER.glob("*.log") for line in log.read_text().splitlines()]
    errors = [line for line in logs if re.search(r"[A-Z]\w*Error\b|\berror\b|ERROR|CRITICAL", line)]
    row["error lines"] = str(len(errors))
    print("\n".join(dict.fromkeys(line[-150:] for line in errors)), file=sys.stderr)
    row["locked"] = str(sum("locked" in line.lower() for line in logs))
    kept = list(FOLDER.glob("processed/*")) + list(FOLDER.glob("queue/*"))
    if (FOLDER / "broker.sqlite3").exists():
        with sqlite3.connect(FOLDER / "broker.sqlite3") as database:
            [n_kept] = database.execute("SELECT count(*) FROM kombu_message").fetchone()
    else:
        n_kept = len(kept)
    row["kept"] = str(n_kept)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--polling", type=float, default=0.25, help="seconds between two looks")
    parser.add_argument("--only", choices=BROKERS)
    parser.add_argument("--send", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        name, n = options.send
        send([f"{name}-{i}" for i in range(int(n))], 0)
        return
    if "BENCH_BROKER" in os.environ:
        for name, value in measure(options.messages, options.kills).items():
            print(f"{name}\t{value}", flush=True)
        return
    print(
        f"{options.messages} messages, {options.kills} kills, looking every {options.polling} s, "
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}\n"
    )
    rows = {}
    for kind in [options.only] if options.only else BROKERS:
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "BENCH_BROKER": kind,
                "BENCH_FOLDER": folder,
                "BENCH_POLLING": str(options.polling),
            }
            command = [sys.executable, "-m", "tests.bench.brokers"]
            command += ["--messages", str(options.messages), "--kills", str(options.kills)]
            output = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        rows[kind] = dict(line.split("\t") for line in output.splitlines())
    names = list(next(iter(rows.values())))
    print("| broker | " + " | ".join(names) + " |")
    print("| --- |" + " ---: |" * len(names))
    for kind, row in rows.items():
        print(f"| {BROKERS[kind]} | " + " | ".join(row[name] for name in names) + " |")


if __name__ == "__main__":
    main()
