"""Celery: fetch the run, judge, record. The row holds all state."""

import traceback

from celery import shared_task

from judges.judging import carry_out, carry_out_trial
from judges.ml.asking import EngineStopped
from judges.ml.config import ModelUnusable
from judges.models import JudgeRun, JudgeServer, JudgeTrial
from judges.servers import carry_out_server_trial
from labeling.jobs import Job, JobCancelled, JobTaken


@shared_task
def run_judge(run_id: int) -> None:
    """Carry one judge run from queued to its end."""
    run = JudgeRun.objects.claim(run_id)
    if run is None:  # cancelled while queued, or another worker has it
        return
    try:
        carry_out(run)
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        run.finish(Job.Status.FAILED, error=said(error))
        raise


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
        trial.finish(Job.Status.FAILED, error=said(error))
        raise


@shared_task
def try_server(pk: int) -> None:
    """Ask a judge server a question; the page waits for its row to say what came of it."""
    server = JudgeServer.objects.filter(pk=pk, trial__waits=True).first()
    if server is not None:
        carry_out_server_trial(server)


def said(error: Exception) -> str:
    """An error for the page: our own in plain words, a surprise with where it came from."""
    if isinstance(error, ModelUnusable | EngineStopped):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r}, in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"
