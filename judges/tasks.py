"""Celery: fetch the run, judge, record. The row holds all state."""

from celery import shared_task

from judges.judging import carry_out_trial
from judges.models import (
    DriftCheck,
    Experiment,
    JudgeRun,
    JudgeServer,
    JudgeTrial,
    JudgeVersion,
    RoutingRun,
)
from judges.runs import carry_out, failure_line, joined
from judges.servers import carry_out_server_trial
from judges.workers import RunPaused
from labeling.jobs import Job, JobCancelled, JobTaken


@shared_task
def run_judge(run_id: int) -> None:
    """Carry one judge run from queued to its end, or help those who do."""
    run = JudgeRun.objects.claim(run_id) or joined(run_id)
    if run is None:  # cancelled while queued, or other workers have it
        return
    notice_other_model(run)
    try:
        carry_out(run)
    except (JobCancelled, JobTaken, RunPaused):
        return
    finally:
        correct_new_labels(run)
        route_new_labels(run)


def correct_new_labels(run: JudgeRun) -> None:
    """Let all labels of the project's judge bear probabilities corrected as it was chosen with: it
    may have been chosen while a batch was being written."""
    from judges.choosing import correct_preferences

    correct_preferences(run.version)


def route_new_labels(run: JudgeRun) -> None:
    """Let what the judge has said since be routed, if a certificate in force names it."""
    from judges.certificates import live_certificate, start

    certificate = live_certificate(run.version.judge.project)
    if certificate and certificate.stages.filter(version=run.version_id).exists():
        start(certificate.project, RoutingRun.Kind.ROUTE)


def notice_other_model(run: JudgeRun) -> None:
    """Have the project's judge checked if its model is not the one that was chosen."""
    from judges.drift import check_if_changed

    check = check_if_changed(run.version)
    if check is not None:
        check.enqueue()


@shared_task
def try_judge(trial_id: int) -> None:
    """Try a judge on one comparison; the page waits for the row to end."""
    trial = JudgeTrial.objects.claim(trial_id)
    if trial is None:
        return
    try:
        carry_out_trial(trial)
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        trial.finish(Job.Status.FAILED, error=failure_line(error))
        raise


@shared_task
def run_experiment(experiment_id: int) -> None:
    """Carry one experiment of the laboratory from queued to its end."""
    from judges.laboratory import carry_out_experiment

    experiment = Experiment.objects.claim(experiment_id)
    if experiment is None:
        return
    try:
        carry_out_experiment(experiment)
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        experiment.finish(Job.Status.FAILED, error=failure_line(error))
        raise


@shared_task
def check_drift(check_id: int) -> None:
    """Ask a chosen judge's probe again."""
    from judges.drift import carry_out_check

    check = DriftCheck.objects.claim(check_id)
    if check is None:
        return
    try:
        carry_out_check(check)
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        check.finish(Job.Status.FAILED, error=failure_line(error))
        raise


@shared_task
def settle_judge(version_id: int) -> None:
    """Let the verdicts of a judge that was chosen count. Run again, it goes on."""
    from judges.choosing import settle

    version = JudgeVersion.objects.select_related("rater").filter(pk=version_id).first()
    if version is not None:
        settle(version)


@shared_task
def try_server(pk: int) -> None:
    """Ask a judge server a question; the page waits for its row to say what came of it."""
    server = JudgeServer.objects.filter(pk=pk, trial__waits=True).first()
    if server is not None:
        carry_out_server_trial(server)


@shared_task
def run_routing(run_id: int) -> None:
    """Carry one run of a project's routing from queued to its end."""
    from judges.certificates import NotReady
    from judges.routing import carry_out as carry_out_routing

    run = RoutingRun.objects.claim(run_id)
    if run is None:
        return
    try:
        carry_out_routing(run)
    except (JobCancelled, JobTaken):
        return
    except NotReady as error:
        run.finish(Job.Status.FAILED, error=str(error))
    except Exception as error:
        run.finish(Job.Status.FAILED, error=failure_line(error))
        raise


@shared_task
def tend_certificates() -> None:
    """Revoke certificates whose ground has changed, and send workers for what they let stand, for
    what is to be judged before people see it, and for what waits because a message was lost."""
    from judges.certificates import tend_all
    from judges.forgotten import remind
    from judges.requests import take_requests

    tend_all()
    take_requests()
    remind()
