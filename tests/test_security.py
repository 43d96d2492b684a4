"""What docs/security.md promises where no other file tests it; it names tests that exist."""

import ast
import importlib.util
import io
import json
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
from django.conf import settings
from django.core.cache.backends.redis import RedisSerializer
from django.test import Client

from config.headers import POLICY
from config.plain_cache import JSONSerializer
from config.tracing import Traced
from tests.factories import ComparisonFactory, MembershipFactory, ProjectFactory, UserFactory
from tests.test_house import python_files

HOUSE = settings.BASE_DIR
DOCUMENT = HOUSE / "docs" / "security.md"


# --- the document ------------------------------------------------------------------------------


def named_tests() -> list[tuple[str, str]]:
    found = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", DOCUMENT.read_text())
    assert len(found) > 30
    return found


def test_every_test_that_the_document_names_exists():
    missing = []
    for file, name in named_tests():
        tree = ast.parse((HOUSE / file).read_text()) if (HOUSE / file).exists() else ast.Module([])
        if name not in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert missing == []


def test_every_threat_names_a_test():
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_the_table_of_roles_is_the_one_that_pages_ask():
    from labeling.access import PERMISSIONS

    for role, may in PERMISSIONS.items():
        cells = ["yes" if power in may else "–" for power in ("label", "view", "lead")]
        assert f"| {role.label} | {' | '.join(cells)} |" in DOCUMENT.read_text()


# --- pages -------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    "page",
    [
        *("/", "/status/", "/audit/", "/people/", "/account/tokens/", "/accounts/second-factor/"),
        *("/projects/kitchen/", "/projects/kitchen/compare/", "/projects/kitchen/agreement/"),
        *("/projects/kitchen/training/", "/projects/kitchen/judges/", "/projects/kitchen/export/"),
        *("/admin/", "/admin/labeling/preference/", "/api/docs/", "/nothing/here/", "/metrics"),
    ],
)
def test_every_kind_of_page_forbids_what_it_does_not_bring(page):
    comparison = ComparisonFactory(project__slug="kitchen")
    user = UserFactory(is_staff=True, is_superuser=True)
    MembershipFactory(project=comparison.project, user=user, role="owner")
    client = Client()
    client.force_login(user)
    answer = client.get(page)
    assert answer.status_code == (404 if page == "/nothing/here/" else 200)
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert "unsafe" not in POLICY
    assert (answer.headers["X-Frame-Options"], answer.headers["X-Content-Type-Options"]) == (
        "DENY",
        "nosniff",
    )
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


INLINE = re.compile(
    r"<script(?![^>]*\bsrc=)[^>]*>|<style\b|\sstyle=|\son[a-z]+=[\"']|javascript:|hx-on", re.I
)


def test_no_template_has_script_or_style_of_its_own():
    wrong = [
        f"{path.relative_to(HOUSE)}: {found.group()}"
        for path in sorted((HOUSE / "templates").rglob("*.html"))
        for found in INLINE.finditer(path.read_text())
    ]
    assert wrong == []


# --- no code from files ------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "os.system",
    "eval",
    "exec",
}


UNSAFE_OPTIONS = {
    **{"trust_remote_code": True, "allow_pickle": True, "shell": True},
    **{"use_safetensors": False, "weights_only": False},
}


def name_of(function: ast.expr) -> str:
    """`torch.load` of a call to it; empty for what has no plain name."""
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return ""


def test_no_module_of_ours_reads_pickles_or_runs_what_a_model_brings():
    wrong = []
    for path in python_files("config", "labeling", "judges", "training"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                said = {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES
            elif isinstance(node, ast.ImportFrom):
                said = {(node.module or "").partition(".")[0]} & UNSAFE_MODULES
            elif isinstance(node, ast.Call):
                said = {name_of(node.func)} & UNSAFE_CALLS
                said |= {
                    str(keyword.arg)
                    for keyword in node.keywords
                    if isinstance(keyword.value, ast.Constant)
                    and UNSAFE_OPTIONS.get(str(keyword.arg), ...) is keyword.value.value
                }
            elif isinstance(node, ast.Dict):  # options that are passed on by **
                said = {
                    "trust_remote_code"
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                    and key.value == "trust_remote_code"
                    and not (isinstance(value, ast.Constant) and value.value is False)
                }
            else:
                continue
            wrong += [f"{path.relative_to(HOUSE)}:{node.lineno} {what}" for what in said]
    assert wrong == []


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_a_models_folder_never_runs(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig

    from judges.ml.config import JudgeRecipe
    from judges.ml.loading import load_model
    from training.ml.loading import load_causal, load_reward_model

    def judge(name: str) -> None:
        load_model(name, JudgeRecipe(), torch.device("cpu"))

    folder, ran = tmp_path / "model", tmp_path / "ran"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaConfig(vocab_size=8, intermediate_size=8, **sizes).save_pretrained(folder)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(ran)))

    adapter = json.dumps({"base_model_name_or_path": str(tmp_path / "gone")})
    for load in (load_causal, load_reward_model, judge):
        with pytest.raises(Exception, match=r"safetensors|tokenizer|model"):
            load(str(folder))
        (folder / "adapter_config.json").write_text(adapter)
        with pytest.raises(Exception, match=r"safetensors|tokenizer|model|no|not"):
            load(str(folder))
        (folder / "adapter_config.json").unlink()

    assert not ran.exists()
    pickle.loads((folder / "optimizer.pt").read_bytes())
    assert ran.exists()  # the bomb is one


def test_the_shared_cache_holds_json_and_the_broker_takes_nothing_else(tmp_path):
    from config import celery_app

    serializer, ran = JSONSerializer(), tmp_path / "ran"
    for value in (7, "y", ["a", 1.5], {"n": None}, True):
        assert serializer.loads(RedisText.of(serializer.dumps(value))) == value
    poison = RedisSerializer().dumps(Bomb(ran))
    with pytest.raises(ValueError, match=r"decode|Expecting|codec"):
        serializer.loads(poison)
    assert not ran.exists()
    assert list(celery_app.conf.accept_content) == ["json"]


class RedisText:
    """What comes back from Redis: bytes, of a number too."""

    @staticmethod
    def of(value: int | bytes) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode()


# --- what we build on --------------------------------------------------------------------------


def dependencies_script():
    spec = importlib.util.spec_from_file_location("checked", HOUSE / ".ci" / "dependencies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("licence", "refused"),
    [
        ("MIT License", False),
        ("LGPL-3.0-only", False),
        ("GNU Lesser General Public License v3", False),
        ("MIT OR GPL-2.0-only", False),
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("GNU Affero General Public License v3", True),
        ("AGPL-3.0-only", True),
    ],
)
def test_licences_that_would_bind_us_are_refused(licence, refused):
    package = {"Name": "x", "Version": "1", "License": licence}
    assert bool(dependencies_script().binding([package])) is refused


def test_without_the_service_the_audit_says_so_and_passes():
    verdict = dependencies_script().verdict
    passes, lines = verdict("", "ConnectionError: no route to host")
    assert passes
    assert "NOTHING WAS AUDITED (ConnectionError" in lines[0]
    skipped = '{"dependencies": [{"name": "x", "skip_reason": "not found"}]}'
    assert "NOTHING WAS AUDITED" in verdict(skipped, "")[1][0]
    whole = '{"dependencies": [{"name": "x", "version": "1", "vulns": []}]}'
    assert verdict(whole, "") == (True, ["pip-audit: no known hole in 1 packages"])
    hole = '{"id": "PYSEC-1", "fix_versions": ["2"]}'
    passes, lines = verdict(whole.replace("[]", f"[{hole}]"), "")
    assert not passes
    assert lines[1] == "x 1: PYSEC-1, mended in 2"


def test_every_exception_from_the_security_rules_has_its_reason():
    bare = re.compile(r"#\s*(?:noqa: (?:S\d+,? ?)+|nosec(?: B\d+)*)\s*$", re.MULTILINE)
    wrong = [
        f"{path.relative_to(HOUSE)}: {found.group()}"
        for path in python_files("config", "labeling", "judges", "training")
        for found in bare.finditer(path.read_text())
    ]
    assert wrong == []


class Unread:
    """A body of which not one byte may be asked for."""

    def read(self, *_sizes):
        raise AssertionError("the body was read")

    readline = read


@pytest.mark.django_db
def test_a_large_body_is_refused_unread_where_no_file_is_taken():
    def send(client, path, content_type="multipart/form-data; boundary=x", **more):
        given = {"CONTENT_LENGTH": str(700 * 2**20), "wsgi.input": Unread()} | more
        return client.generic("POST", path, b"", content_type, **given)

    project = ProjectFactory()
    upload, stranger, member = f"/projects/{project.slug}/import/", Client(), Client()
    member.force_login(UserFactory())
    for path in ("/accounts/login/", upload, f"/api{upload[:-1]}s/", "/nowhere/"):
        assert send(stranger, path).status_code == 413, path
    for path in ("/accounts/password/", "/nowhere/", "/api/projects/"):
        assert send(member, path).status_code == 413, path
    assert send(member, "/api/projects/", "application/json").json() == {
        "detail": "This is too large to be sent here."
    }
    assert send(member, upload).status_code == 404  # asked who it is, and still not read
    unknown = {"HTTP_AUTHORIZATION": "Bearer made-up"}
    assert send(stranger, f"/api{upload[:-1]}s/", **unknown).status_code == 401
    assert send(stranger, "/accounts/login/", **unknown).status_code == 413
    endless = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    assert send(stranger, "/accounts/login/", **endless).status_code == 411


@pytest.mark.django_db
def test_a_refusal_is_one_line_of_the_log():
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.addFilter(Traced())
    loggers = [logging.getLogger(name) for name in ("django.request", "django.security")]
    for logger in loggers:
        logger.addHandler(handler)
    rater = MembershipFactory(role="rater")
    client = Client()
    client.force_login(rater.user)
    try:
        assert client.get(f"/projects/{rater.project.slug}/import/").status_code == 403
        assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    said = lines.getvalue().splitlines()
    assert ["Forbidden" in said[0], "Invalid HTTP_HOST" in said[1]] == [True, True]
    assert len(said) == 2
