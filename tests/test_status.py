"""What load balancers, collectors of metrics, readers of logs and administrators see."""

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import get_resolver
from django.utils import timezone

from config import health
from config.tracing import (
    JSONLines,
    Traced,
    WithoutTokens,
    request_id,
    trace_id,
    without_tokens,
)
from labeling.invitations import invite
from labeling.jobs import Job
from labeling.models import AgreementReport, Project, Worker
from labeling.workers import forget_the_ended, read_gpus, tell, versions
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db


def metrics_of(client: Client, **headers: Any) -> dict[str, float]:
    response = client.get("/metrics", **headers)
    assert response.status_code == 200
    lines = [line for line in response.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _space, value in (line.rpartition(" ") for line in lines)}


def administrator() -> Client:
    client = Client()
    client.force_login(UserFactory(is_superuser=True, is_staff=True))
    return client


def a_worker(**more: Any) -> Worker:
    now = timezone.now()
    row = {"name": "box:7", "queues": ["gpu"], "disk_free": 10, "disk_total": 20}
    return Worker.objects.create(**(row | {"started_at": now, "heartbeat_at": now} | more))


def test_a_load_balancer_that_knows_no_name_of_ours_is_answered():
    live = Client().get("/healthz", headers={"host": "10.1.2.3:8000"})
    ready = Client().get("/readyz", headers={"host": "10.1.2.3:8000"})

    assert (live.status_code, live.content) == (200, b"ok\n")
    assert ready.status_code == 200
    assert ready.json() == {
        "ready": True,
        "database": "ok",
        "tables": "ok",
        "queue": "ok",
        "storage": "ok",
    }
    assert Client().get("/", headers={"host": "10.1.2.3:8000"}).status_code == 400


def test_not_ready_while_files_cannot_be_kept(settings, tmp_path):
    settings.PREFLOOP_STORAGE = tmp_path / "gone"

    response = Client().get("/readyz")

    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["storage"] == "No such file or directory"


def test_not_ready_while_the_queue_does_not_answer(monkeypatch):
    from config.celery import app

    monkeypatch.setattr(
        app, "connection_for_write", lambda: app.connection("redis://127.0.0.1:1/0")
    )
    monkeypatch.setattr(health, "BROKER_SECONDS", 0.2)

    response = Client().get("/readyz")

    assert response.status_code == 503
    assert response.json()["queue"] == "does not answer"


def test_metrics_count_requests_by_route_and_read_what_waits():
    client = administrator()
    ProjectFactory(slug="kitchen")
    client.get("/projects/kitchen/")
    name = 'prefloop_requests_total{method="GET",route="labeling:project",status="200"}'
    before = metrics_of(client)[name]
    client.get("/projects/kitchen/")
    report = AgreementReport.objects.create(project=ProjectFactory())
    AgreementReport.objects.update(queued_at=timezone.now() - timedelta(seconds=90))
    a_worker(gpus=[{"name": "H200", "memory_total": 8.0, "memory_used": 2.0, "use": None}])

    found = metrics_of(client)

    assert found[name] == before + 1
    assert found['prefloop_jobs{kind="agreementreport",status="queued"}'] == 1
    assert found['prefloop_jobs{kind="agreementreport",status="running"}'] == 0
    assert found['prefloop_job_wait_seconds{kind="agreementreport"}'] == pytest.approx(90, abs=5)
    assert found['prefloop_workers{queue="gpu"}'] == 1
    assert found['prefloop_workers{queue="web"}'] == 0
    assert found['prefloop_gpu_memory_used{gpu="0",worker="box:7"}'] == 2
    assert not any(series.startswith("prefloop_gpu_use") for series in found)
    AgreementReport.objects.claim(report.pk)
    assert metrics_of(client)['prefloop_jobs{kind="agreementreport",status="running"}'] == 1


def test_words_that_are_no_method_share_one_series():
    client = administrator()
    for word in ("FOO1", "FOO2"):
        client.generic(word, f"/{word}/")

    found = metrics_of(client)

    series = [name for name in found if 'method="other"' in name and "_total" in name]
    assert series == ['prefloop_requests_total{method="other",route="unknown",status="404"}']
    assert not any("FOO" in name for name in found)


def test_metrics_are_for_the_bearer_of_the_token_and_for_administrators(settings):
    stranger = Client()
    stranger.force_login(UserFactory())
    bearer = {"headers": {"authorization": "Bearer t0ken"}}

    assert Client().get("/metrics").status_code == 403
    assert stranger.get("/metrics").status_code == 403
    assert Client().get("/metrics", **bearer).status_code == 403  # no token is set
    assert Client().get("/metrics", headers={"authorization": "Bearer "}).status_code == 403
    settings.PREFLOOP_METRICS_TOKEN = "t0ken"
    assert "prefloop_leases" in metrics_of(Client(), **bearer)
    wrong = {"headers": {"authorization": "Bearer other"}}
    assert Client().get("/metrics", **wrong).status_code == 403


def test_an_answer_names_its_request_and_a_forged_id_is_replaced():
    given = Client().get("/healthz", headers={"x-request-id": "abc-12345"})
    forged = Client().get("/healthz", headers={"x-request-id": "a b\tlevel=ERROR"})

    assert given.headers["X-Request-ID"] == "abc-12345"
    assert len(forged.headers["X-Request-ID"]) == 32


def test_a_line_of_the_log_is_json_with_the_id_of_its_request(rf):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    handler.addFilter(Traced())
    logger = logging.getLogger("tests.lines")
    logger.addHandler(handler)

    def view(request):
        logger.error("two\nlines", extra={"run": 7})
        raise ValueError("broken")

    request = rf.get("/", headers={"x-request-id": "trace-me-1"})
    with pytest.raises(ValueError, match="broken"):
        request_id(view)(request)
    logger.removeHandler(handler)

    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert line["id"] == "trace-me-1"
    assert (line["level"], line["message"], line["run"]) == ("ERROR", "two\nlines", 7)
    assert trace_id.get() == ""


def test_no_line_of_the_log_hands_out_an_invitation(caplog):
    lead = MembershipFactory(role="lead")
    _invitation, token = invite(lead.project, "rater", lead.user)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    loggers = [logging.getLogger(name) for name in ("django.request", "prefloop.requests")]
    for logger in loggers:
        logger.addHandler(handler)

    with caplog.at_level(logging.INFO):
        assert Client().get(f"/join/{token}/").status_code == 200
        assert Client().post(f"/join/{token}/", {"username": ""}).status_code == 422
        assert Client().get(f"/join/{token}/more/").status_code == 404
    for logger in loggers:
        logger.removeHandler(handler)

    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.levelno >= logging.INFO]
    assert ("INFO", "GET /join/…/ 200") in said
    assert ("WARNING", "Unprocessable Entity: /join/…/") in said
    assert ("WARNING", "Not Found: /join/…/more/") in said
    assert token not in caplog.text + stream.getvalue()
    access = logging.makeLogRecord(
        {"msg": "%(r)s", "args": {"r": f"GET /?next=%2Fjoin%2F{token}%2F"}}
    )
    assert WithoutTokens().filter(access)
    assert access.getMessage() == "GET /?next=%2Fjoin%2F…%2F"


def test_every_route_with_a_token_is_kept_out_of_the_log():
    def routes(patterns: list[Any], before: str = "") -> Iterator[str]:
        for pattern in patterns:
            route = before + str(pattern.pattern)
            if hasattr(pattern, "url_patterns"):
                yield from routes(pattern.url_patterns, route)
            else:
                yield route

    secret = re.compile(r"<(?:\w+:)?(?:\w*token|key|code|secret|uidb\d+)>")
    found = [route for route in routes(get_resolver().url_patterns) if secret.search(route)]

    assert "join/<str:token>/" in found
    for route in found:
        assert "S3cret" not in without_tokens("/" + secret.sub("S3cret", route)), route


def test_a_worker_tells_of_itself_and_the_long_gone_are_forgotten():
    now = timezone.now()
    a_worker(name="old:1", heartbeat_at=now - timedelta(days=2))
    a_worker(name="silent:1", heartbeat_at=now - timedelta(minutes=2))

    for _report in range(2):
        tell("box:7", queues=["web"], versions=versions(), started_at=now)

    assert list(Worker.objects.values_list("name", flat=True)) == ["box:7", "silent:1"]
    assert [worker.name for worker in Worker.objects.present()] == ["box:7"]
    told = Worker.objects.get(name="box:7")
    assert told.disk_total > told.disk_free > 0
    assert "django" in told.versions


def test_workers_whose_process_ended_here_are_forgotten_and_others_are_not():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    a_worker(name=f"{socket.gethostname()}:{child.pid}")
    a_worker(name=f"{socket.gethostname()}:{os.getpid()}")
    a_worker(name="elsewhere:1")

    assert forget_the_ended() == 1

    left = [f"{socket.gethostname()}:{os.getpid()}", "elsewhere:1"]
    assert sorted(Worker.objects.values_list("name", flat=True)) == sorted(left)


def test_what_the_driver_says_of_gpus_is_read_with_its_gaps():
    answer = "NVIDIA H200, 143771, 512, 37\nNVIDIA A100, MIG, 40960, [N/A], [N/A]\n"

    assert read_gpus(answer) == [
        {
            "name": "NVIDIA H200",
            "memory_total": 143771 * 2**20,
            "memory_used": 512 * 2**20,
            "use": 0.37,
        },
        {
            "name": "NVIDIA A100, MIG",
            "memory_total": 40960 * 2**20,
            "memory_used": None,
            "use": None,
        },
    ]


def test_administrators_see_workers_jobs_and_what_failed_last():
    client = administrator()
    a_worker()
    a_worker(name="silent:1", queues=["web"], heartbeat_at=timezone.now() - timedelta(minutes=2))
    AgreementReport.objects.create(project=ProjectFactory())
    AgreementReport.objects.create(
        project=ProjectFactory(name="Broken"),
        status=Job.Status.LOST,
        error="The worker <stopped>.",
        finished_at=timezone.now(),
    )

    page = client.get("/status/").content.decode()
    fragment = client.get("/status/", headers={"hx-request": "true"}).content.decode()

    assert "Nobody serves the queue “web”" in page
    assert "Nobody serves the queue “gpu”" not in page
    assert "The worker &lt;stopped&gt;." in page
    assert "<html" in page
    assert "<html" not in fragment
    assert "box:7" in fragment
    assert "silent:1" in fragment
    broken = Project.objects.get(name="Broken")
    assert f'<a href="/projects/{broken.slug}/agreement/">agreement in Broken</a>' in page
    assert f'<a href="/projects/{broken.slug}/">Broken</a>' in page
    assert ">agreement report</td>" in page
