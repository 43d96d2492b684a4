"""Celery tasks of labeling, and the sweep that finds lost jobs of every app."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery import shared_task
from django.core.cache import cache
from django.utils import timezone

from labeling.jobs import (
    Job,
    JobCancelled,
    JobTaken,
    database_came_back_lately,
    heartbeat,
    job_models,
    mark_lost,
)

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 1.0  # of a job that counts much faster than a page polls


@shared_task
def sweep_jobs() -> None:
    """Mark silent jobs as lost, wake forgotten ones again, take back expired leases, notice what is
    complete and what is to be sent again; once an hour, forget what is old."""
    from labeling.events import notice_completed_projects
    from labeling.notices import to_be_mailed
    from labeling.places import take_back_expired
    from labeling.projects import go_on_changing
    from labeling.sealing import seal_changes
    from labeling.webhooks import is_due

    wait = database_came_back_lately()
    for model in job_models():
        n_lost = 0 if wait else mark_lost(model.objects.silent())
        if n_lost:
            logger.warning("%d %s lost their worker", n_lost, model._meta.verbose_name_plural)
        for job in model.objects.forgotten():
            model.objects.filter(pk=job.pk, status=Job.Status.QUEUED).update(
                heartbeat_at=timezone.now()
            )
            job.enqueue()
    take_back_expired()
    notice_completed_projects()
    seal_changes()
    go_on_changing()
    if is_due():
        deliver_webhooks.apply_async(expires=10)
    if to_be_mailed().exists():
        mail_notices.apply_async(expires=10)
    if cache.add("old-rows-forgotten", True, timeout=3600):
        forget_old_rows()


def forget_old_rows() -> None:
    """Delete what nobody will ask for: answered idempotency keys, old webhook messages and notices,
    wrong passwords of yesterday, sessions that have ended, old files of rejected lines."""
    from django.core.management import call_command

    from labeling import notices
    from labeling.models import IdempotentRequest
    from labeling.personal_files import forget_old_rejects
    from labeling.sign_ins import forget_old_failures
    from labeling.webhooks import forget_old

    a_day_ago = timezone.now() - timedelta(days=1)
    IdempotentRequest.objects.filter(created_at__lt=a_day_ago).delete()
    forget_old()
    forget_old_failures()
    call_command("clearsessions")
    notices.forget_old()
    forget_old_rejects()


@shared_task
def mail_notices() -> None:
    """Send the notices that are to go by e-mail."""
    from labeling.notices import mail_due

    mail_due()


@shared_task
def deliver_webhooks() -> None:
    """Send the webhook messages that are due."""
    from labeling.webhooks import deliver_due

    deliver_due()


@shared_task
def run_import(job_id: int) -> None:
    """Carry one uploaded file into its project. Run again, it adds what is missing."""
    from labeling.imports.foreign.columns import Labels
    from labeling.imports.importing import ImportReport, import_file
    from labeling.imports.reading import Progress
    from labeling.imports.uploads import forget_upload, max_unpacked_bytes, reject_path
    from labeling.models import Comparison, ImportJob
    from labeling.storage import storage_path

    job = ImportJob.objects.claim(job_id)
    if job is None:  # cancelled while queued, or another worker has it
        return

    def on_progress(report: ImportReport, progress: Progress) -> None:
        job.report(
            n_done=progress.done // 1024,
            n_total=max(1, progress.total // 1024),
            result=report.as_json(),
        )

    try:
        with heartbeat(job):
            report = import_file(
                job.project,
                storage_path(job.path),
                form=job.format,
                labels=Labels(
                    **{k: job.options[k] for k in ("rater", "kind", "scale") if k in job.options}
                ),
                labels_per_comparison=job.options.get("labels_per_comparison"),
                known_answers=job.options.get("known_answers", Comparison.Purpose.WORK),
                reject_path=reject_path(job),
                max_bytes=max_unpacked_bytes(),
                on_progress=on_progress,
                name=job.filename,
                actor=job.created_by,
            )
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        job.finish(Job.Status.FAILED, error=f"{type(error).__name__}: {error}")
        raise
    if report.problem and not report.rows:
        job.finish(Job.Status.FAILED, error=report.problem, result=report.as_json())
    elif job.finish(Job.Status.SUCCEEDED, error=report.problem, result=report.as_json()):
        forget_upload(job)


@shared_task
def run_agreement(report_id: int) -> None:
    """Carry one AgreementReport from queued to its end."""
    from labeling.models import AgreementReport
    from labeling.reports import ALL_MODELS, VERSION, report_of
    from labeling.votes import fingerprint_of

    def figures(project: Any, on_progress: Any, state: Any) -> dict[str, Any]:
        fingerprint = fingerprint_of(project, VERSION, state)
        last = project.agreement_reports.filter(status=Job.Status.SUCCEEDED).order_by("-pk").first()
        if last is not None and last.fingerprint == fingerprint:
            result, parameters = last.result, last.parameters  # nothing has changed
        else:
            result, parameters = report_of(
                project,
                AgreementReport.MOST_RATERS,
                on_progress,
                ALL_MODELS,
                last.parameters if last is not None else None,
            )
        return {"result": result, "parameters": parameters, "fingerprint": fingerprint}

    _run_report(AgreementReport, report_id, figures)


@shared_task
def run_leaderboard(leaderboard_id: int) -> None:
    """Carry one Leaderboard from queued to its end."""
    from labeling.models import Leaderboard
    from labeling.reports import leaderboard_of

    def figures(project: Any, on_progress: Any, _state: Any) -> dict[str, Any]:
        return {"result": leaderboard_of(project, on_progress)}

    _run_report(Leaderboard, leaderboard_id, figures)


def _run_report(model: Any, pk: int, figures: Callable[..., dict[str, Any]]) -> None:
    """Carry a kept report to its end; figures: (project, on_progress, state_of) -> its columns."""
    from labeling.reports import StatisticsMissing
    from labeling.votes import state_of

    report = model.objects.claim(pk)
    if report is None:  # cancelled while queued, or another worker has it
        return
    reported_at = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= SECONDS_BETWEEN_REPORTS:
            report.report(n_done=done, n_total=total)
            reported_at = time.monotonic()

    try:
        with heartbeat(report):
            # Before the votes are read: an answer that arrives in between is shown as new.
            n_preferences, last_preference = state = state_of(report.project)
            columns = figures(report.project, on_progress, state)
        report.finish(
            Job.Status.SUCCEEDED,
            n_preferences=n_preferences,
            last_preference=last_preference,
            **columns,
        )
    except (JobCancelled, JobTaken):
        return
    except StatisticsMissing as error:
        report.finish(Job.Status.FAILED, error=str(error))
        logger.warning("%s", error)
    except Exception as error:
        report.finish(Job.Status.FAILED, error=repr(error))
        raise


@shared_task
def change_existing_comparisons(project_id: int, old: int, new: int) -> None:
    """Let a large project's comparisons that want `old` labels want `new`. Run again, it goes on.

    Does nothing if the project's number was changed once more meanwhile.
    """
    from labeling.models import Project
    from labeling.projects import change_labels_wanted

    project = Project.objects.filter(pk=project_id, labels_per_comparison=new).first()
    if project is not None:
        change_labels_wanted(project, old, new)
        Project.objects.filter(pk=project_id, changing_from=old).update(changing_from=None)
