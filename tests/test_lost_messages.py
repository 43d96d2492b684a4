"""A broker or a database that is away: what waits for it goes on, and nothing waits for ever."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from config import celery_app
from judges.choosing import choose, settle
from judges.forgotten import remind
from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import ChosenJudge, JudgeServer
from labeling import jobs, progress, quality
from labeling.answering import record_preference
from labeling.assignment import next_comparison
from labeling.jobs import patiently
from labeling.models import AgreementReport
from labeling.projects import change_by_worker, go_on_changing
from labeling.tasks import change_existing_comparisons, deliver_webhooks
from tests import postgresql
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
    bearer,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def messages(monkeypatch):
    """(task, key) of every message that was sent."""
    sent = []

    def send(self, args=None, *_more, **_options):
        sent.append((self.name.rpartition(".")[2], *args))

    monkeypatch.setattr(celery_app.Task, "apply_async", send)
    return sent


@pytest.fixture
def no_broker():
    """Redis is configured and not there."""
    before = celery_app.conf.broker_url
    celery_app.conf.update(broker_url="redis://127.0.0.1:1/0", task_publish_retry=False)
    celery_app.amqp.__dict__.pop("_producer_pool", None)
    celery_app.pool.force_close_all()
    yield
    celery_app.conf.update(broker_url=before, task_publish_retry=True)


@pytest.fixture(params=["there", "away"])
def shared_cache(request, settings, tmp_path, monkeypatch) -> Iterator[bool]:
    """Whether the Redis is there that the web processes share, and what may be kept is."""
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    port = postgresql.free_port()
    environment = os.environ | {"CACHE_URL": f"redis://127.0.0.1:{port}/1", "DEBUG": "1"}
    said = subprocess.run(
        [sys.executable, "-c", "import json, config.settings as s; print(json.dumps(s.CACHES))"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    settings.CACHES = json.loads(said)
    deadline = time.monotonic() + 10
    while not (cache.set("a", 1) or cache.get("a")) and time.monotonic() < deadline:
        time.sleep(0.02)
    if request.param == "away":
        server.kill()
        server.wait()
    monkeypatch.setattr(progress, "LARGE", 0)
    monkeypatch.setattr(quality, "NEWEST_IN_LIST", 1)
    monkeypatch.setattr(quality, "ENOUGH", 1)
    yield request.param == "there"
    server.kill()
    server.wait()


def test_what_a_large_project_keeps_is_shared_and_no_page_fails_without_it(shared_cache, client):
    member = MembershipFactory()
    ComparisonFactory.create_batch(4, project=member.project)
    raters = RaterFactory.create_batch(2, project=member.project)

    def answer(choice: str) -> None:
        for rater in raters:
            record_preference(rater, next_comparison(rater).comparison, choice)

    answer("tie")
    assert progress.kept_progress(member.project) is None
    counted = progress.count_progress(member.project)
    assert counted.progress.n_given == 2
    assert quality.usual_rates(member.project) == quality.Rates(1.0, 0.0, 2)

    answer("a")
    assert progress.kept_progress(member.project) == (counted if shared_cache else None)
    assert quality.usual_rates(member.project).ties == (1.0 if shared_cache else 0.0)
    client.force_login(member.user)
    assert client.get(f"/projects/{member.project.slug}/").status_code == 200
    reply = client.get("/api/me/", headers=bearer(member.user))
    assert reply.json()["username"] == member.user.username
    assert cache.add("once", True) is shared_cache


def test_a_change_stands_whose_message_cannot_be_sent(
    no_broker, django_capture_on_commit_callbacks
):
    pytest.importorskip("redis")
    others = []
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        report = AgreementReport.objects.create(project=ProjectFactory())
        report.enqueue()
        deliver_webhooks.delay_on_commit()
        transaction.on_commit(lambda: others.append("done"))

    assert len(callbacks) == 3
    assert others == ["done"]
    report.refresh_from_db()
    assert report.status == "queued"  # the sweep sends its message later


def test_a_judge_that_was_chosen_is_settled_though_its_message_was_lost(messages):
    project = ProjectFactory()
    version, _made = judge_version(project, "tiny", "owner/model", JudgeRecipe(mode="direct"))
    choose(version, user=UserFactory())
    assert remind() == 0  # its own message may be on its way
    ChosenJudge.objects.update(chosen_at=timezone.now() - timedelta(minutes=1))

    assert [remind(), remind()] == [1, 0]
    assert messages == [("settle_judge", version.pk)]
    settle(version)
    assert ChosenJudge.objects.get().settled_at is not None


def test_a_server_is_tried_though_its_message_was_lost(messages):
    server = JudgeServer.objects.create(
        name="vllm",
        url="http://10.0.0.1:8000/v1",
        trial={"waits": True},
        tried_at=timezone.now() - timedelta(minutes=1),
    )
    assert [remind(), remind()] == [1, 0]
    assert messages == [("try_server", server.pk)]


def test_comparisons_are_changed_though_the_worker_was_killed_at_it(messages):
    project = ProjectFactory(labels_per_comparison=2)
    comparison = ComparisonFactory(project=project, labels_wanted=1)
    change_by_worker(project, 1, 2)

    go_on_changing()
    go_on_changing()

    assert ("change_existing_comparisons", project.pk, 1, 2) in messages
    change_existing_comparisons(project.pk, 1, 2)
    comparison.refresh_from_db()
    project.refresh_from_db()
    assert (comparison.labels_wanted, project.changing_from) == (2, None)


@pytest.mark.django_db(transaction=True)
def test_a_job_waits_for_a_database_that_is_away_and_gives_up_at_last(monkeypatch):
    monkeypatch.setattr(jobs, "PAUSE_SECONDS", 0.01)
    tries = []

    def do() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("the database system is starting up")
        return "done"

    assert patiently(do) == "done"
    assert len(tries) == 3

    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(OperationalError, match="shutting down"):
        patiently(lambda: (_ for _ in ()).throw(OperationalError("it is shutting down")))


def test_within_a_transaction_a_lost_database_is_not_waited_for():
    tries = []

    def do() -> None:
        tries.append(connection.in_atomic_block)
        raise OperationalError("server closed the connection unexpectedly")

    with pytest.raises(OperationalError):
        patiently(do)
    assert tries == [True]
