"""An install without extras: every page answers, and what is missing is said in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from tests.test_house import HEAVY

pytestmark = pytest.mark.slow

# Read by Python at its start: what the extras bring cannot be found in this process.
WITHOUT_EXTRAS = f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {HEAVY!r} else found(name, path, target)
PathFinder.find_spec = find_spec
"""
VISIT = """
import sys
import config.wsgi
from django.contrib.auth import get_user_model
from django.test import Client
from judges.judging import judge_version
from judges.runs import new_run
from judges.ml.config import JudgeRecipe
from judges.models import Verdict
from labeling.models import Project

project = Project.objects.get()
version, _made = judge_version(project, "first", "some-model", JudgeRecipe())
run = new_run(version)
Verdict.objects.create(
    run=run, version=version, comparison=project.comparisons.first(), prob_a=0.9, parsed=True,
    answer_mass_ab=1, answer_mass_ba=1, n_tokens=9, seconds=1,
)
browser = Client(headers={"host": "localhost"})
browser.force_login(get_user_model().objects.get())
for page in ("", "compare/", "comparisons/", "import/", "export/", "agreement/", "leaderboard/",
             "judges/",
             "judges/new/", f"judges/{version.judge_id}/", f"judges/runs/{run.pk}/", "training/",
             "training/new/reward/", "training/new/dpo/", "training/datasets/",
             "training/datasets/new/"):
    status = browser.get(f"/projects/sample/{page}").status_code
    if status != 200:
        print(page, status)
print("agreement", browser.post("/projects/sample/agreement/").status_code)
"""


@pytest.fixture
def base_install(tmp_path: Path):
    """Runs `python ARGUMENTS` as an install without extras does, on an empty storage folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment |= {
        "PYTHONPATH": str(tmp_path / "site"),
        "PREFLOOP_STORAGE": str(tmp_path / "storage"),
        "LOG_LEVEL": "WARNING",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=settings.BASE_DIR,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def test_every_page_answers_and_what_is_missing_is_said_in_a_line(base_install):
    assert base_install("manage.py", "migrate", "--verbosity", "0").stdout == ""
    created = base_install(
        "-c",
        "import config.wsgi; from django.contrib.auth import get_user_model as users;"
        "users().objects.create_superuser('admin')",
    )
    assert created.stdout == ""
    base_install("manage.py", "sample_project", "--owner", "admin")

    assert base_install("-c", VISIT).stdout == "agreement 302\n"

    for command, message in {
        "agreement --project sample": "Agreement figures need statistics libraries, and evalica is "
        "not installed here: pip install '.[stats]'",
        "dataset --project sample --preview": "Agreement figures need statistics "
        "libraries, and numpy is not installed here: pip install '.[stats]'",
        "leaderboard --project sample": "Leaderboards need statistics libraries, and numpy is "
        "not installed here: pip install '.[stats]'",
        "demo": "The demo trains models: install them with pip install '.[train]'.",
        "judge --project sample --judge second --model some-model": "A judge runs a model, and "
        "torch is not installed here: pip install '.[train]'",
        "sample --project sample --model some-model": "Sampling runs a model, and torch is not "
        "installed here: pip install '.[train]'",
    }.items():
        refused = base_install("manage.py", *command.split())
        assert refused.returncode == 1
        assert refused.stdout.splitlines()[-1] == f"CommandError: {message}"
        assert "Traceback" not in refused.stdout
