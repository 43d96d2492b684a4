"""What this machine has, what is missing, and how to mend it."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

FREE_GIB_WANTED = 5
STATS = ("numpy", "scipy", "pandas", "scikit-learn", "statsmodels", "evalica")
TRAIN = ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "accelerate")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. What is not `needed` may be missing without harm to the rest."""

    ok: bool
    says: str
    mend: str = ""
    """What to do when it is not ok."""
    needed: bool = True


class Command(BaseCommand):
    help = (
        "Say what this machine has for Prefloop, what is missing and how to mend it. "
        "Exit status 1 when something that is needed is missing."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        findings = {
            "python": python(),
            "storage": storage(),
            "database": database(),
            "migrations": migrations(),
            "broker": broker(),
            "statistics": extra("stats", STATS, why="agreement figures need"),
            "training": extra("train", TRAIN, why="judges and training need"),
            "parquet": extra("parquet", ("pyarrow",), why="imports of .parquet files need"),
            "gpu": gpu(),
            "quantisation": quantisation(),
            "browser": program(*BROWSERS, why="the browser tests", mend="apt-get install chromium"),
            "postgresql": program(
                *("pg_ctl", "pg_ctlcluster"),
                why="the PostgreSQL tests",
                mend="apt-get install postgresql",
            ),
        }
        if options["json"]:
            report = {name: asdict(finding) for name, finding in findings.items()}
            self.stdout.write(json.dumps(report, ensure_ascii=False))
        else:
            for name, finding in findings.items():
                mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
                self.stdout.write(f"{mark:<8}{name:<14}{finding.says}")
                if not finding.ok and finding.mend:
                    self.stdout.write(f"{'':<22}{finding.mend}")
        if any(finding.needed and not finding.ok for finding in findings.values()):
            sys.exit(1)


def python() -> Finding:
    return Finding(
        sys.version_info >= (3, 11),
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "Prefloop needs Python 3.11 or newer: make setup PYTHON=python3.12",
    )


def storage() -> Finding:
    """Is PREFLOOP_STORAGE writable, and is there room?"""
    folder = settings.PREFLOOP_STORAGE
    free = shutil.disk_usage(folder).free / 2**30
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return Finding(
            False, f"{folder}: {error.strerror}", "Set PREFLOOP_STORAGE to another folder."
        )
    return Finding(
        free >= FREE_GIB_WANTED,
        f"{folder} is writable, {free:.0f} GiB free",
        f"Make room: models and checkpoints want {FREE_GIB_WANTED} GiB and more.",
    )


def database() -> Finding:
    try:
        connection.ensure_connection()
    except DatabaseError as error:
        return Finding(False, str(error).splitlines()[0], "Look at DATABASE_URL.")
    if connection.vendor == "sqlite":
        version = connection.Database.sqlite_version
        return Finding(True, f"SQLite {version}, {settings.DATABASES['default']['NAME']}")
    with connection.cursor() as cursor:
        cursor.execute("SELECT version()")
        return Finding(True, cursor.fetchone()[0].split(" on ")[0])


def migrations() -> Finding:
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        return Finding(False, str(error).splitlines()[0], "Look at DATABASE_URL.")
    return Finding(
        not missing,
        f"{len(missing)} migrations are not applied" if missing else "the tables are up to date",
        "manage.py migrate (make setup and make run do it)",
    )


def broker() -> Finding:
    from config.celery import app

    with app.connection_for_write() as queue:
        where = queue.as_uri()  # without the password
        try:
            queue.ensure_connection(max_retries=1, timeout=5)
            queue.default_channel.close()
        except Exception as error:  # every transport brings errors of its own
            return Finding(False, f"{where}: {error}", "Look at CELERY_BROKER_URL.")
    if where.startswith("filesystem:"):
        return Finding(True, f"embedded: {settings.PREFLOOP_STORAGE / 'queue'}")
    return Finding(True, where)


def extra(name: str, distributions: tuple[str, ...], why: str) -> Finding:
    """One of the optional parts of pyproject.toml: is all of it installed?"""
    versions, missing = [], []
    for distribution in distributions:
        try:
            versions.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    if missing:
        says = f"not installed: {', '.join(missing)}; {why} {'them' if missing[1:] else 'it'}"
        mend = f"pip install '.[{name}]' (make setup does it)"
        return Finding(False, says, mend, needed=False)
    return Finding(True, ", ".join(versions), needed=False)


def gpu() -> Finding:
    """What torch sees; imported here alone, because it takes seconds."""
    try:
        import torch
    except ImportError:
        return Finding(False, "torch is not installed", needed=False)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        says = f"{torch.cuda.device_count()} × {name}, {free / 2**30:.0f} of "
        return Finding(True, f"{says}{total / 2**30:.0f} GiB free, {bf16} bfloat16", needed=False)
    if torch.backends.mps.is_available():
        return Finding(True, "Apple GPU (mps)", needed=False)
    driver = shutil.which("nvidia-smi")
    return Finding(
        False,
        "none: judges and training run on the CPU, small models only",
        "There is an NVIDIA driver, but this torch has no CUDA: make clean setup TORCH_INDEX="
        if driver
        else "",
        needed=False,
    )


def quantisation() -> Finding:
    """Does bitsandbytes really store a small matrix in NF4 and give it back here?"""
    try:
        import torch
        from bitsandbytes import functional
    except Exception as error:  # a wheel for another CUDA fails in many ways
        says = f"bitsandbytes does not load: {error}"
        return Finding(False, says, "pip install '.[train]'", needed=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    try:
        packed, state = functional.quantize_4bit(weights, quant_type="nf4")
        error = (functional.dequantize_4bit(packed, state) - weights).abs().max().item()
    except Exception as problem:
        return Finding(False, f"4-bit weights fail on {device}: {problem}", needed=False)
    return Finding(
        error < 0.2,
        f"4-bit NF4 works on {device} (largest error {error:.2f} on weights within ±1)",
        needed=False,
    )


def program(*names: str, why: str, mend: str) -> Finding:
    """A program that only tests need."""
    for name in names:
        if path := shutil.which(name):
            return Finding(True, path, needed=False)
    return Finding(False, f"not found; {why} are skipped", mend, needed=False)
