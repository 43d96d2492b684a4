"""Two importers of one file at the same moment, in real processes: every row once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = ["manage.py", "import_comparisons"]
COUNTS = """
import django, json; django.setup()
from labeling.models import Comparison, Preference, Prompt, Rater, Response
print(json.dumps([m.objects.count() for m in (Prompt, Response, Comparison, Preference, Rater)]))
print(json.dumps(sorted(set(Comparison.objects.values_list("open_places", flat=True)))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_file_imported_by_two_at_once_is_there_once(database, tmp_path: Path, request):
    if database == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    else:
        url = f"sqlite:///{tmp_path / 'twice.sqlite3'}"
    env = os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_STORAGE": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    path = tmp_path / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(700):
            votes = [{"rater": f"r{n % 7}", "choice": "a"}]
            record = {"prompt": f"{n}?", "response_a": "x", "response_b": "y", "preferences": votes}
            file.write(json.dumps(record) + "\n")

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("manage.py", "migrate", "-v0")
    python("manage.py", "flush", "--no-input")
    python(
        "-c",
        "import django; django.setup()\nfrom labeling.models import Project\n"
        "Project.objects.create(slug='twice', name='Twice', labels_per_comparison=2)",
    )
    importers = [
        subprocess.Popen(
            [sys.executable, *IMPORT, str(path), "--project", "twice", "--json"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    reports = []
    for importer in importers:
        out, err = importer.communicate(timeout=120)
        assert importer.returncode == 0, err
        reports.append(json.loads(out))
    assert sum(report["created"] for report in reports) == 700
    assert sum(report["duplicates"] for report in reports) == 700
    assert sum(report["preferences"] for report in reports) == 700
    counts, places = map(json.loads, python("-c", COUNTS).splitlines())
    assert counts == [700, 1400, 700, 700, 7]
    assert places == [1]
