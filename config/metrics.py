"""/metrics in Prometheus' text form: requests of the web processes, and what our rows say.

Requests are counted by each process; where there are several, PROMETHEUS_MULTIPROC_DIR names a
folder that they share. All else is read from the database at each visit, so it is right whichever
process answers, and whatever was restarted.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Min, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from judges.models import JudgeRun, Verdict
from labeling.jobs import Job, active_by_kind
from labeling.models import Assignment, Worker
from labeling.workers import class_queues
from training.models import Run

SHARED = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
if SHARED:  # the library opens files in it with the first counter
    Path(SHARED).mkdir(parents=True, exist_ok=True)
REQUESTS = Counter("prefloop_requests", "Requests answered", ["method", "route", "status"])
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)
"""Of HTTP. Anybody may send another word, and each would be a series that is kept."""
SECONDS = Histogram(
    "prefloop_request_seconds",
    "Seconds from a request to its answer",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def count_requests(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: counts requests by the name of their route, never by their address, which would
    be a new series for every project."""

    def middleware(request: HttpRequest) -> HttpResponse:
        began = time.perf_counter()
        response = get_response(request)
        match = request.resolver_match
        route = (match.view_name or "unnamed") if match else "unknown"
        method = request.method if request.method in METHODS else "other"
        REQUESTS.labels(method, route, response.status_code).inc()
        SECONDS.labels(route).observe(time.perf_counter() - began)
        return response

    return middleware


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """For the bearer of PREFLOOP_METRICS_TOKEN, and for administrators."""
    if not _may_read(request):
        raise PermissionDenied
    rows = CollectorRegistry()
    rows.register(Rows())
    if SHARED:
        MultiProcessCollector(rows)
    found = generate_latest(rows) + (b"" if SHARED else generate_latest(REGISTRY))
    return HttpResponse(found, content_type=CONTENT_TYPE_LATEST)


def _may_read(request: HttpRequest) -> bool:
    wanted = settings.PREFLOOP_METRICS_TOKEN
    scheme, _space, given = request.headers.get("Authorization", "").partition(" ")
    if wanted and scheme.lower() == "bearer":
        return secrets.compare_digest(given.encode(), wanted.encode())
    return request.user.is_superuser


class Rows:
    """Figures of the database, in a handful of queries however large it is."""

    def collect(self) -> Iterator[Metric]:
        now = timezone.now()
        yield from self._jobs()
        yield from self._people()
        yield from self._judging()
        yield from self._training()
        yield from self._workers()
        yield _gauge(
            "prefloop_metrics_seconds",
            "Seconds that reading these rows took",
            (timezone.now() - now).total_seconds(),
        )

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "prefloop_jobs", "Jobs that wait or run", labels=["kind", "status"]
        )
        waits = GaugeMetricFamily(
            "prefloop_job_wait_seconds", "Age of the oldest job that waits", labels=["kind"]
        )
        now = timezone.now()
        for model, found in active_by_kind():
            kind = model._meta.model_name or ""
            jobs.add_metric([kind, "queued"], found["queued"])
            jobs.add_metric([kind, "running"], found["running"])
            oldest = found["oldest"]
            waits.add_metric([kind], (now - oldest).total_seconds() if oldest else 0)
        yield jobs
        yield waits
        yield from self._runs_by_queue(now)

    def _runs_by_queue(self, now: datetime) -> Iterator[Metric]:
        """What to start more GPU workers by."""
        waiting = GaugeMetricFamily(
            "prefloop_queue_runs", "Training runs that wait, by queue", labels=["queue"]
        )
        ages = GaugeMetricFamily(
            "prefloop_queue_wait_seconds", "Age of the oldest that waits there", labels=["queue"]
        )
        queued = Run.objects.filter(status=Job.Status.QUEUED).order_by()
        found = queued.values("queue").annotate(n=Count("pk"), oldest=Min("queued_at"))
        rows = {row["queue"]: row for row in found}
        for queue in sorted({"gpu", *class_queues(), *rows}):
            row = rows.get(queue)
            waiting.add_metric([queue], row["n"] if row else 0)
            ages.add_metric([queue], (now - row["oldest"]).total_seconds() if row else 0)
        yield waiting
        yield ages

    def _people(self) -> Iterator[Metric]:
        now = timezone.now()
        leases = Assignment.objects.filter(state=Assignment.State.LEASED)
        found = leases.aggregate(n=Count("pk"), late=Count("pk", filter=Q(expires_at__lt=now)))
        yield _gauge("prefloop_leases", "Comparisons in the hands of people", found["n"])
        yield _gauge(
            "prefloop_leases_expired",
            "Leases that ran out and wait to be taken back",
            found["late"],
        )

    def _judging(self) -> Iterator[Metric]:
        done = GaugeMetricFamily(
            "prefloop_judge_run_comparisons", "Comparisons judged by an active run", labels=["run"]
        )
        cost = GaugeMetricFamily(
            "prefloop_judge_run_cost", "What an active run has cost so far", labels=["run"]
        )
        tokens = GaugeMetricFamily(
            "prefloop_judge_run_tokens", "Tokens an active run has read and written", labels=["run"]
        )
        for run in JudgeRun.objects.active():
            spent = Verdict.objects.filter(run=run).aggregate(cost=Sum("cost"), n=Sum("n_tokens"))
            done.add_metric([str(run.pk)], run.n_done)
            cost.add_metric([str(run.pk)], spent["cost"] or 0)
            tokens.add_metric([str(run.pk)], spent["n"] or 0)
        yield from (done, cost, tokens)

    def _training(self) -> Iterator[Metric]:
        steps = GaugeMetricFamily("prefloop_run_step", "Last step of a running run", labels=["run"])
        speed = GaugeMetricFamily(
            "prefloop_run_tokens_per_second", "Tokens a second at its last report", labels=["run"]
        )
        memory = GaugeMetricFamily(
            "prefloop_run_memory_bytes", "Memory at its last report", labels=["run"]
        )
        for run in Run.objects.filter(status=Job.Status.RUNNING):
            last = run.steps.filter(split="train").order_by("step").last()
            if last is None:
                continue
            steps.add_metric([str(run.pk)], last.step)
            if last.cost.get("seconds"):
                speed.add_metric([str(run.pk)], last.cost["tokens"] / last.cost["seconds"])
            if last.cost.get("memory"):
                memory.add_metric([str(run.pk)], last.cost["memory"])
        yield from (steps, speed, memory)

    def _workers(self) -> Iterator[Metric]:
        present = GaugeMetricFamily(
            "prefloop_workers", "Workers heard of within three reports", labels=["queue"]
        )
        disk = GaugeMetricFamily(
            "prefloop_worker_disk_free_bytes", "Free on a worker's storage", labels=["worker"]
        )
        families = {
            name: GaugeMetricFamily(f"prefloop_gpu_{name}", text, labels=["worker", "gpu"])
            for name, text in (
                ("memory_total", "Bytes of a GPU's memory"),
                ("memory_used", "Bytes of it in use, by anybody"),
                ("use", "Share of the last second in which it computed"),
            )
        }
        workers = list(Worker.objects.present())
        queues = [queue for worker in workers for queue in worker.queues]
        for queue in sorted({"web", "gpu", "sweep", *class_queues(), *queues}):
            present.add_metric([queue], queues.count(queue))
        for worker in workers:
            disk.add_metric([worker.name], worker.disk_free)
            for at, gpu in enumerate(worker.gpus):
                for name, family in families.items():
                    if gpu[name] is not None:
                        family.add_metric([worker.name, str(at)], gpu[name])
        yield present
        yield disk
        yield from families.values()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
