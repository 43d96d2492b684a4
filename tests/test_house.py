"""Holds the house to its rules: who may import whom, which names there are, what stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import get_commands

HOUSE = settings.BASE_DIR
APPS = ("labeling", "judges", "training")
FORBIDDEN = {
    "labeling": {"judges", "training"},
    "judges": {"training"},
    "training": {"judges"},
}
FLOORS = ["models", "domain", "forms", "doors"]
"""Inside an app a module imports only its own floor and those before it."""
# `jobs.py` holds the abstract row that models of every app are made from.
FLOOR_OF = {
    "jobs": "models",
    "models": "models",
    "forms": "forms",
    "serializers": "forms",
} | dict.fromkeys(
    (
        *("views", "server_pages", "api", "tasks", "admin", "urls"),
        *("management", "templatetags"),
    ),
    "doors",
)
KIND_NAMES = {"utils.py", "helpers.py", "base.py", "mixins.py", "common.py", "misc.py"}


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((HOUSE / folder).rglob("*.py"))]
    assert found
    return found


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    """Dotted names that a file imports: `from labeling import jobs` gives `labeling.jobs`.

    With `top_level_only`, imports in the body of a function and those for types alone are left out.
    """
    tree = ast.parse(path.read_text(), str(path))
    nodes = list(ast.walk(tree))
    if top_level_only:
        inner = {
            below
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
            for below in ast.walk(node)
        }
        nodes = [node for node in nodes if node not in inner]
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                parts = path.relative_to(HOUSE).with_suffix("").parts[: -node.level]
                package = ".".join([*parts, *([package] if package else [])])
            names += [f"{package}.{alias.name}" for alias in node.names]
    return names


def place(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def floor_of(module: str) -> str | None:
    """The floor of `labeling.views.compare`; None for what the order does not speak of."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] in ("migrations", "ml"):
        return None
    return FLOOR_OF.get(parts[1], "domain")


@pytest.mark.parametrize("app", APPS)
def test_an_app_imports_only_the_apps_it_may_know(app):
    wrong = [
        f"{place(path)} imports {name}"
        for path in python_files(app)
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[app]
    ]
    assert wrong == []


@pytest.mark.parametrize("app", APPS)
def test_an_app_does_not_import_the_settings_package(app):
    """`config` is the only place that knows all apps, so an app that imports it knows them too."""
    wrong = [
        f"{place(path)} imports {name}"
        for path in python_files(app)
        for name in imports(path)
        if name.split(".")[0] == "config"
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["judges/ml", "training/ml"])
def test_ml_imports_neither_django_nor_our_apps(folder):
    own = folder.replace("/", ".")
    wrong = [
        f"{place(path)} imports {name}"
        for path in python_files(folder)
        for name in imports(path)
        if name.split(".")[0] in {"django", "celery", "rest_framework", "config", *APPS}
        and not name.startswith(own)
    ]
    assert wrong == []


@pytest.mark.parametrize("app", APPS)
def test_inside_an_app_imports_go_from_doors_to_models(app):
    """Views, tasks and commands import domain modules, which import models; never back."""
    wrong = []
    for path in python_files(app):
        floor = floor_of(place(path).removesuffix(".py").replace("/", "."))
        if floor is None:
            continue
        for name in imports(path, top_level_only=True):
            above = floor_of(name) if name.split(".")[0] == app else None
            if above and FLOORS.index(above) > FLOORS.index(floor):
                wrong.append(f"{place(path)} ({floor}) imports {name} ({above})")
    assert wrong == []


def test_no_module_is_named_after_its_kind():
    wrong = [
        place(path)
        for path in python_files("config", "tests", *APPS)
        if path.name in KIND_NAMES or path.parent.name in {"utils", "helpers", "common"}
    ]
    assert wrong == []


def test_the_init_files_of_apps_are_empty():
    full = [
        place(path)
        for path in python_files(*APPS)
        if path.name == "__init__.py" and path.read_text().strip()
    ]
    # Django finds tables in `models` alone: a package of them has to name them there.
    assert full == ["labeling/models/__init__.py"]


def test_every_module_opens_with_a_line_on_its_subject():
    silent = [
        place(path)
        for path in python_files("config", *APPS)
        if path.name != "__init__.py"
        and path.parent.name != "migrations"
        and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def pages() -> list[Path]:
    return [HOUSE / "README.md", HOUSE / "CHANGELOG.md", *sorted((HOUSE / "docs").glob("*.md"))]


def links(page: Path) -> list[Path]:
    """Files of ours that a page points to."""
    found = re.findall(r"\]\((?!https?:)([\w./-]+)", page.read_text())
    return [(page.parent / to).resolve() for to in found]


def test_every_page_of_the_docs_is_linked_from_the_readme():
    in_readme = links(HOUSE / "README.md")
    assert [place(page) for page in pages()[2:] if page not in in_readme] == []


def test_links_in_the_docs_lead_somewhere():
    dead = [(place(page), str(to)) for page in pages() for to in links(page) if not to.exists()]
    assert dead == []


def test_commands_that_the_docs_name_exist():
    known = get_commands()
    unknown = [
        (place(page), name)
        for page in pages()
        for name in re.findall(r"manage\.py ([a-z]\w+)", page.read_text())
        if name not in known
    ]
    assert unknown == []


# What the extras bring. The base install has none of it, and serves every page.
HEAVY = {
    *("torch", "transformers", "datasets", "trl", "peft", "bitsandbytes", "accelerate"),
    *("numpy", "scipy", "pandas", "sklearn", "statsmodels", "evalica", "pyarrow"),
    "datasketch",
}


@pytest.mark.parametrize("entry", ["config.wsgi", "config.celery"])
def test_the_web_process_and_a_workers_start_import_no_heavy_library(entry):
    """Pages and task modules are loaded too; a task imports what it needs in its body."""
    code = (
        f"import {entry}, sys, importlib\n"
        "import django; django.setup()\n"
        "import config.urls\n"
        "for app in ('labeling', 'judges', 'training'):\n"
        "    if importlib.util.find_spec(f'{app}.tasks'): importlib.import_module(f'{app}.tasks')\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=HOUSE, stdout=subprocess.PIPE, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_rules_see_a_wrong_import(tmp_path):
    """The eyes of the tests above: every way to write an import is recognised."""
    file = HOUSE / "labeling" / "views" / "made_up.py"
    source = (
        "import judges.models\n"
        "from training import runs\n"
        "from ..jobs import Job\n"
        "def late():\n"
        "    from labeling.tasks import sweep_jobs\n"
    )

    class Pretended(type(file)):
        def read_text(self, *_args, **_kwargs):
            return source

    pretended = Pretended(file)
    assert imports(pretended) == [
        "judges.models",
        "training.runs",
        "labeling.jobs.Job",
        "labeling.tasks.sweep_jobs",
    ]
    assert "labeling.tasks.sweep_jobs" not in imports(pretended, top_level_only=True)
    assert floor_of("labeling.jobs.Job") == "models"
    assert floor_of("labeling.views.made_up") == "doors"
    assert floor_of("labeling.assignment") == "domain"
