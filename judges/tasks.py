"""Celery: fetch the run, judge, record. The row holds all state."""

from celery import shared_task

from judges.judging import carry_out_trial
from judges.models import JudgeRun, JudgeServer, JudgeTrial
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
    try:
        carry_out(run)
    except (JobCancelled, JobTaken, RunPaused):
        return


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
def try_server(pk: int) -> None:
    """Ask a judge server a question; the page waits for its row to say what came of it."""
    server = JudgeServer.objects.filter(pk=pk, trial__waits=True).first()
    if server is not None:
        carry_out_server_trial(server)
