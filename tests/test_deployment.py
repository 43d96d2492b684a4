"""The files that put the application on a server: what they name is there, and safe as it comes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from django.conf import settings
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from config.bodies import FILES
from labeling.models import Worker

ROOT = Path(settings.BASE_DIR)
COMPOSE = ("docker-compose.yml", "docker-compose.worker.yml")


def composed(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def explained() -> dict[str, tuple[str, bool, str]]:
    """{name: (value, whether it is only shown, the comment above it)} of .env.example."""
    found, comment = {}, ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.fullmatch(r"(# )?([A-Z][A-Z_]+)=(\S*)", line):
            found[match[2]] = (match[3], bool(match[1]), comment)
            comment = ""
        elif line.startswith("#"):
            comment += line.removeprefix("#")
        else:
            comment = ""
    return found


def read_by_settings(folder: Path) -> set[str]:
    """Every variable that the settings of a server ask the environment for."""
    program = (
        "import environ, json; asked = []; look = environ.Env.get_value\n"
        "def noting(self, name, *rest, **more):\n"
        "    asked.append(str(name)); return look(self, name, *rest, **more)\n"
        "environ.Env.get_value = noting\n"
        "import config.settings; print(json.dumps(asked))"
    )
    env = os.environ | {"DEBUG": "0", "SECRET_KEY": "of-a-test", "PREFLOOP_STORAGE": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def read_by_files() -> set[str]:
    """What the compose files and the proxy's take from .env."""
    text = "".join((ROOT / name).read_text() for name in (*COMPOSE, "Caddyfile"))
    return set(re.findall(r"\$\{([A-Z_]+)", text)) | set(re.findall(r"\{\$([A-Z_]+)", text))


def test_every_setting_is_explained_and_nothing_else_is(tmp_path):
    assert set(explained()) == read_by_settings(tmp_path) | read_by_files()
    assert [name for name, (_v, _s, comment) in explained().items() if len(comment) < 10] == []


def test_no_setting_comes_with_an_unsafe_value():
    given = {name: value for name, (value, shown, _c) in explained().items() if not shown}
    assert set(given.values()) == {""}  # what is secret, or names the place, is filled in by people
    assert {"SECRET_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD"} <= set(given)
    shown = {name: value for name, (value, only, _c) in explained().items() if only}
    for name in ("DEBUG", "PREFLOOP_HTTP", "PREFLOOP_WEBHOOK_PRIVATE", "PREFLOOP_TRACKERS_ONLINE"):
        assert shown[name] == "0"


def test_the_defaults_that_are_shown_are_those_of_the_settings(tmp_path):
    """Taking away every # changes nothing but what a team's server is given anyway."""
    shown = {n: v for n, (v, only, _c) in explained().items() if only and v and n != "DEBUG"}
    kept = ("PREFLOOP_", "LOG_")
    program = (
        "import os, json; from config import settings as s; "
        "names = [n for n in sorted(dir(s)) if n.startswith('PREFLOOP_')]; "
        "print(json.dumps({n: str(getattr(s, n)) for n in names} | {'log': s.LOGGING}))"
    )

    def settings_with(extra: dict[str, str]) -> str:
        plain = {n: v for n, v in os.environ.items() if not n.startswith(kept)}
        env = plain | {"PREFLOOP_STORAGE": str(tmp_path), "SECRET_KEY": "of-a-test"} | extra
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert settings_with(shown) == settings_with({})


def test_a_server_that_was_given_no_secret_does_not_start():
    for name in COMPOSE:
        text = (ROOT / name).read_text()
        for secret in re.findall(r"\$\{(SECRET_KEY|\w+_PASSWORD|\w+_URL)([^}]*)\}", text):
            assert secret[1].startswith(":?"), f"{name}: {secret[0]} is not asked for"


def test_the_services_are_those_of_a_team_and_only_the_proxy_is_reached_from_outside():
    services = composed("docker-compose.yml")["services"]

    assert set(services) >= {"proxy", "database", "queue", "web", "worker", "sweep", "trainer"}
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert services["trainer"]["profiles"] == ["gpu"]
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in services.items():
        if name != "prepare":
            assert "healthcheck" in service, name
        if "build" in service:
            assert service["build"]["target"] in stages, name
            assert service["cap_drop"] == ["ALL"]
    assert services["web"]["build"]["target"] == "web"  # without torch
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in composed("docker-compose.yml")["volumes"]


def test_every_queue_that_a_task_is_sent_to_is_served_by_a_service(capsys):
    services = composed("docker-compose.yml")["services"]
    text = (ROOT / "Dockerfile").read_text() + str(services["sweep"]["command"])
    call_command("queues")  # what the GPU worker's image asks for
    served = {"gpu"} & set(capsys.readouterr().out.strip().split(","))
    served |= set(re.findall(r"--queues['\"], ['\"](\w+)", text))

    routed = {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()}
    assert served == routed | {settings.CELERY_TASK_DEFAULT_QUEUE}


def test_a_collector_of_figures_inside_is_answered_by_the_name_that_the_docs_tell():
    """Asked by another name the server answers 400, and nobody sees any figure."""
    services = composed("docker-compose.yml")["services"]
    (address,) = re.findall(
        r"`http://(\w+):8000/metrics`", (ROOT / "docs/deployment.md").read_text()
    )

    assert address in services
    assert services["web"]["environment"]["ALLOWED_HOSTS"].endswith(f",{address}")


def test_the_proxy_is_given_what_its_file_reads():
    given = composed("docker-compose.yml")["services"]["proxy"]["environment"]
    assert set(given) == set(re.findall(r"\{\$([A-Z_]+)", (ROOT / "Caddyfile").read_text()))


def test_images_come_with_the_extras_that_the_settings_tell():
    told = explained()["EXTRAS"][0]
    text = "".join((ROOT / name).read_text() for name in ("Dockerfile", "docker-compose.yml"))
    assert set(re.findall(r"EXTRAS(?:=|:-)([\w,]*\w)", text)) == {told, "fleet"}
    assert "oidc" in told  # every process reads the settings, and they refuse OIDC without it


def units() -> dict[str, dict[str, str]]:
    """{name: {what: value}} of the units of systemd."""
    return {
        path.name: dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        for path in sorted((ROOT / "systemd").glob("*.service"))
    }


def test_units_start_what_the_images_start():
    text = (ROOT / "Dockerfile").read_text() + str(
        composed("docker-compose.yml")["services"]["sweep"]["command"]
    )
    for name, unit in units().items():
        assert (unit["User"], unit["Restart"]) == ("prefloop", "always")
        start = unit["ExecStart"].replace("127.0.0.1:8000", "0.0.0.0:8000")
        start = re.sub(r" --hostname \S+", "", start)  # a container has a name of its own
        missing = [
            word
            for word in re.findall(r"[\w:.-]+", start.partition("bin/")[2])
            if word not in ("sh", "exec") and word not in text
        ]
        assert missing == [], name


def test_units_are_what_systemd_says(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for path in (ROOT / "systemd").glob("*.service"):
        text = re.sub(r"/srv/prefloop/venv/bin/\w+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        [program, "verify", *map(str, tmp_path.glob("*.service"))], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_images_hold_no_secret_and_run_without_rights():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".env", ".env.*", ".git", "data"} <= set(ignored)
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.index(" AS application") :]
    assert final.index("USER 1000") < final.index("FROM application AS trainer")
    assert "USER root" not in text


def test_the_proxy_takes_large_bodies_for_imports_alone():
    text = (ROOT / "Caddyfile").read_text()
    matchers = dict(re.findall(r"^\t(@\w+) (?:not )?path_regexp (\S+)$", text, re.MULTILINE))
    sizes = dict(re.findall(r"request_body (\S+) \{\s+max_size (\S+)", text))
    assert set(sizes) == {"@imports", "@others"} == set(matchers)
    assert len(set(matchers.values())) == 1
    assert re.search(r"@others not ", text)
    assert int(sizes["@others"].removesuffix("MB")) * 10**6 > settings.PREFLOOP_API_MAX_BYTES
    files = [reverse(name, args=["zoo"]) for name in sorted(FILES)]
    assert len(files) == 2
    assert all(re.search(matchers["@imports"], path) for path in files)
    assert not re.search(matchers["@imports"], "/accounts/login/")
    for name in COMPOSE:  # no other proxy in front
        for service in composed(name)["services"].values():
            if "ports" in service:
                assert "./Caddyfile:/etc/caddy/Caddyfile:ro" in service["volumes"]


@pytest.mark.parametrize("name", COMPOSE)
def test_the_compose_files_are_what_their_specification_says(name):
    program = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("check-jsonschema is not installed (extra dev)")
    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", str(ROOT / name)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.django_db
def test_a_worker_is_well_while_it_writes_its_row():
    with pytest.raises(CommandError, match="was heard of within three reports"):
        call_command("worker_lives")

    Worker.objects.create(
        name=f"{socket.gethostname()}:17",
        disk_free=1,
        disk_total=1,
        started_at=timezone.now(),
        heartbeat_at=timezone.now(),
    )
    assert call_command("worker_lives") is None
