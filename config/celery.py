"""The Celery application; its settings are the CELERY_… ones of Django's."""

import os
from typing import Any

from celery import Celery
from celery.contrib.django.task import DjangoTask
from celery.signals import task_postrun, task_prerun, worker_ready, worker_shutdown
from django.db import transaction

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")


class WakingTask(DjangoTask):
    """A task whose message only wakes a worker: with the broker away, the change that wanted it
    stands all the same, and the sweep sends the message later."""

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        def wake() -> None:  # Django names the function whose error it logs: a partial has no name
            self.delay(*args, **kwargs)

        transaction.on_commit(wake, robust=True)


app = Celery("prefloop", task_cls=WakingTask)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_ready.connect
def tell_that_it_is_there(sender: Any, **_: Any) -> None:
    from labeling.workers import begin_reporting

    begin_reporting(list(sender.app.amqp.queues.consume_from))


@worker_shutdown.connect
def say_goodbye(**_: Any) -> None:
    from labeling.workers import end_reporting

    end_reporting()


@task_prerun.connect
def trace_task(task_id: str, task: Any, args: Any, **_: Any) -> None:
    """Lines of the log name the task and what it works on: its name and the row's number."""
    from config.tracing import trace_id

    short = task.name.rpartition(".")[2]
    trace_id.set(f"{short}-{args[0] if args else task_id[:8]}")


@task_postrun.connect
def end_trace(**_: Any) -> None:
    from config.tracing import trace_id

    trace_id.set("")
