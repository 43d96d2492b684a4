"""A broker or a database that is away: what waits for it goes on, and nothing waits for ever."""

from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from config import celery_app
from judges.choosing import choose, settle
from judges.forgotten import remind
from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import ChosenJudge, JudgeServer
from labeling import jobs
from labeling.jobs import patiently
from labeling.models import AgreementReport
from labeling.projects import change_by_worker, go_on_changing
from labeling.tasks import change_existing_comparisons, deliver_webhooks
from tests.factories import ComparisonFactory, ProjectFactory, UserFactory

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
