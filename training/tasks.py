"""Celery: fetch a run, call its recipe, record what it reports."""

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Task, shared_task
from celery.signals import task_prerun
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext_noop

from labeling import shared
from labeling.changes import note_change
from labeling.jobs import Job, JobCancelled, JobTaken, heartbeat, patiently
from labeling.reports import StatisticsMissing
from labeling.storage import storage_path
from training import serving
from training.alarms import heed
from training.arenas import carry_out_arena
from training.cards import write_card
from training.causes import UNKNOWN, of_error
from training.dataset_settings import stored_settings
from training.datasets import freeze, load_rows
from training.fitting import keep_peaks
from training.fleet import bring, leave
from training.judge_scores import JudgeScores
from training.merges import carry_out_merge
from training.ml.config import ON_TEXTS
from training.ml.data import prompts_of
from training.ml.objectives import why_not_labels
from training.ml.settings import TRACKERS
from training.model_files import carry_out_export
from training.models import (
    Arena,
    Checkpoint,
    DatasetDraft,
    Merge,
    ModelExport,
    ModelReport,
    ModelVersion,
    Round,
    RoundMeasure,
    Run,
    RunStep,
    SideBySide,
    Study,
)
from training.playground import carry_out_pair
from training.previews import build
from training.reports import can_report, figures_of, report_on
from training.round_chain import go_on_after
from training.rounds import carry_out_round, measure_of
from training.runs import Impossible, keep_model, recipe_of
from training.studies import result_of
from training.sweeps import may_start, wake_next
from training.texts import load_texts, text_sha256
from training.watching import carry_out_in_child, is_mine
from training.writers import writer_of

if TYPE_CHECKING:
    from training.ml.steps import StepReport
    from training.ml.trackers import Tracker

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Steps are written, and a cancel seen, at most this long after they happened."""


SECONDS_BETWEEN_REPORTS = 1.0
LOGGED = (("accuracy", 3), ("loss", 4), ("score", 3), ("holdout", 3), ("kl", 2), ("length", 1))
"""What a line of the log tells of a measurement, and with how many digits."""


@shared_task
def build_dataset(draft_id: int) -> None:
    """Carry one DatasetDraft from queued to its end: a preview, or a frozen dataset."""
    draft = DatasetDraft.objects.claim(draft_id)
    if draft is None:  # cancelled while queued, or another worker has it
        return
    try:
        chosen = stored_settings(draft.filters)
        with heartbeat(draft):
            preview, dataset = build(
                draft.project, chosen, freezing=draft.freezing, on_progress=_teller(draft)
            )
        with transaction.atomic():
            ended = draft.finish(Job.Status.SUCCEEDED, result=preview, dataset=dataset)
            if ended and dataset:
                note_change(
                    draft.project,
                    draft.created_by,
                    gettext_noop("freeze dataset"),
                    dataset,
                    after={"pairs": dataset.counts["pairs"], "sha256": dataset.sha256},
                )
    except (JobCancelled, JobTaken):
        return
    except (ValueError, OSError, StatisticsMissing) as error:
        draft.finish(Job.Status.FAILED, error=of_error(error)[1])
    except Exception as error:
        draft.finish(Job.Status.FAILED, error=repr(error))
        raise


@shared_task
def merge_models(merge_id: int) -> None:
    """Carry one Merge from queued to its end: a model that passed its check, or the reason."""
    _in_child(Merge, merge_id)


@shared_task
def export_model(export_id: int) -> None:
    """Carry one ModelExport from queued to its file."""
    _in_child(ModelExport, export_id)


@shared_task
def report_on_model(report_id: int) -> None:
    """Carry one ModelReport from queued to its end."""
    _in_child(ModelReport, report_id)


@shared_task
def carry_out_study(study_id: int) -> None:
    """Carry one Study from queued to its end, or on from the training that it was stopped in."""
    _in_child(Study, study_id)


@shared_task
def choose_pairs(round_id: int) -> None:
    """Carry one Round from queued to the pairs that people are given."""
    _in_child(Round, round_id)


@shared_task
def fill_arena(arena_id: int) -> None:
    """Carry one Arena from queued to the comparisons that people are given."""
    _in_child(Arena, arena_id)


@shared_task
def measure_round(measure_id: int) -> None:
    """Carry one RoundMeasure from queued to its figures: of answers alone, no model is loaded."""
    carry_out_job(RoundMeasure, measure_id)


@shared_task
def answer_side_by_side(pair_id: int) -> None:
    """Let two models answer a prompt; the page polls the row for what they have said so far."""
    pair = SideBySide.objects.claim(pair_id)
    if pair is not None:
        with heartbeat(pair):
            serving.answer(pair)


@shared_task
def train(run_id: int) -> None:
    """Carry one run from queued to its end, in a process of its own."""
    if may_start(run_id):  # else the run of its sweep that is before it wakes it
        _in_child(Run, run_id)
        wake_next(run_id)


@task_prerun.connect
def make_room(task: Task, **_: Any) -> None:
    """Other work of this worker, a judge's too, may need the memory that the playground holds."""
    if task.name != answer_side_by_side.name:
        serving.end()


def _in_child(kind: type[Job], pk: int) -> None:
    job = kind.objects.claim(pk)
    if job is not None:  # else cancelled while queued, or another worker has it
        with heartbeat(job):
            carry_out_in_child(job)


def carry_out_job(kind: type[Job], pk: int) -> None:
    """Carry one job from queued to its end in this very process, as a command line does."""
    job = kind.objects.claim(pk)
    if job is not None:  # else cancelled while queued, or another worker has it
        with heartbeat(job):
            do(job)


def do(job: Job) -> None:
    """Carry a claimed job to its end in this process. Its row holds all state."""
    match job:
        case Run():
            go_on(job, alone=True)
        case Merge():
            _end_of(job, carry_out_merge)
        case ModelExport():
            _end_of(job, carry_out_export)
        case SideBySide():
            _end_of(job, carry_out_pair)
        case ModelReport():
            _end_of(job, _report)
        case Study():
            _end_of(job, _study)
        case Round():
            _end_of(job, carry_out_round)
        case Arena():
            _end_of(job, carry_out_arena)
        case RoundMeasure():
            _end_of(job, _measure)
        case _:
            raise TypeError(f"nothing here does {job!r}")


def _end_of(job: Job, carry: Callable[[Any], Any]) -> None:
    """Do a job whose function ends its own row; note in plain words what went wrong."""
    try:
        bring(job)
        carry(job)
        _keep_copies(job)
    except (JobCancelled, JobTaken):
        return
    except Exception as error:
        cause, words = of_error(error, LESS_MEMORY[type(job)])
        logger.error("%s failed: %s", job, words, exc_info=cause == UNKNOWN)
        job.finish(Job.Status.FAILED, error=words)


LESS_MEMORY: dict[type[Job], str] = {
    Merge: "Merge fewer models, or where there is more memory.",
    ModelExport: "Write the file where there is more memory.",
    SideBySide: "Choose smaller models, or two adapters of one base, which is then held once.",
    ModelReport: "The report uses the batch_size of the run: start the run with a smaller one.",
    Study: "The study uses the settings of the run: start the run with a smaller batch_size.",
    Round: "Ask fewer prompts, for shorter responses, or smaller models.",
    Arena: "Ask for shorter responses, or smaller models.",
    RoundMeasure: "Measure where there is more memory.",
}
"""What to change in a job that did not fit."""


def _report(report: ModelReport) -> None:
    result = figures_of(report.model, _teller(report))
    if report.finish(Job.Status.SUCCEEDED, result=result) and write_card(report.model):
        leave(next(shared.places_of_version(report.model)))


def _study(study: Study) -> None:
    study.finish(Job.Status.SUCCEEDED, result=result_of(study, _teller(study)))


def _measure(measure: RoundMeasure) -> None:
    measure.finish(Job.Status.SUCCEEDED, result=measure_of(measure.round))


def _teller(job: Job) -> Callable[[int, int], None]:
    """Stores a job's progress, about once a second."""
    reported_at = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= SECONDS_BETWEEN_REPORTS:
            job.report(n_done=done, n_total=total)
            reported_at = time.monotonic()

    return tell


def carry_out(
    run_id: int, show: Callable[["StepReport"], None] | None = None, *, alone: bool = False
) -> None:
    """Carry one run from queued to its end in this very process, as a command line does.

    Args: show: is told every report as well, for a progress line; alone: see go_on.
    """
    run = Run.objects.claim(run_id)
    if run is None:  # cancelled while queued, or another worker has it
        return
    with heartbeat(run):
        go_on(run, show, alone=alone)


def go_on(
    run: Run, show: Callable[["StepReport"], None] | None = None, *, alone: bool = False
) -> None:
    """Carry a run that this worker has claimed to its end. The run's row holds all state.

    Args: alone: this process has done nothing else before, so that the memory that it takes is the
        run's. Else its peak is not kept as a measurement.
    """
    record = Recorder(run, show)
    try:
        record.say(f"Worker {run.worker.rsplit(':', 1)[0]} took the run.")
        metrics = _call_recipe(run, record, alone=alone)
        record.flush()
        if "paused" in metrics:
            _pause(run, metrics["paused"])
            return
        if "alarm" in metrics:
            metrics["alarm"] = heed(run, metrics["alarm"])
        leave(f"{run.folder}/model")
        model = patiently(lambda: _end(run, metrics))
        _keep_copies(run)
        record.say(f"Finished: model {model.name}.")
        if follows := go_on_after(run):
            record.say(follows)
    except JobCancelled:
        record.say("Cancelled. Resume goes on from the last checkpoint.")
    except JobTaken:
        logger.warning("run %s went to another worker", run.pk)
    except KeyboardInterrupt:
        run.finish(Run.Status.CANCELLED, error="Interrupted from the keyboard.")
        record.say("Interrupted. Resume goes on from the last checkpoint.")
        raise
    except Exception as error:
        cause, words = of_error(error)
        # The run's own log keeps the traceback of a refusal in plain words too.
        logger.error("run %s failed: %s", run.pk, words, exc_info=cause == UNKNOWN)
        if run.finish(Run.Status.FAILED, error=words, cause=cause):
            record.say(f"Failed: {words}\n{''.join(traceback.format_exception(error)[-4:])}")
    finally:
        record.close()


def follow(run: Run) -> None:
    """Train beside the process that carries the run out: the same rows and steps, of whose parts
    this one takes its share. It reports nothing, and fails aloud: its end ends the others."""
    from training.ml import ranks
    from training.ml.peaks import give_memory_back

    ranks.from_first(None)  # until the run has its rows
    patiently(run.refresh_from_db)
    if ranks.is_first_of_machine():
        patiently(lambda: bring(run))
    ranks.wait()
    give_memory_back()
    recipe, (train_rows, test_rows) = patiently(lambda: (recipe_of(run), _frozen_rows(run)))
    _recipe_function(run.kind)(
        recipe, train_rows, test_rows, storage_path(run.folder), lambda report: None
    )


def _pause(run: Run, alarm: dict) -> None:
    """Leave the run as it is until somebody resumes it."""
    from training.ml.ppo_checkpoints import heard  # brings torch

    told = heed(run, alarm)
    words = (
        f"Paused by an alarm at step {told['step']}: {'; '.join(told['words'])}. "
        f"{told['n_comparisons']} comparisons wait for people. Resume goes on all the same."
    )
    if run.finish(Run.Status.PAUSED, error=words):
        # Not before: a worker that dies on the way here leaves a run that pauses when resumed.
        heard(storage_path(run.folder), told)


def _end(run: Run, metrics: dict) -> ModelVersion:
    """The run's end and its model, both or neither. Raises: JobTaken."""
    with transaction.atomic():
        # First, as the proof that the run is still this worker's; it locks the row until commit.
        if not run.finish(Run.Status.SUCCEEDED, metrics=metrics):
            raise JobTaken(f"run {run.pk} went to another worker")
        model = keep_model(run)
        if can_report(model):
            report_on(model)
        return model


def _call_recipe(run: Run, record: "Recorder", *, alone: bool) -> dict:
    patiently(lambda: bring(run))
    train_rows, test_rows = patiently(lambda: _rows(run, record))
    # These import torch: only workers pay for it. It takes so long that the database may have
    # restarted meanwhile.
    from training.ml import loading, ranks
    from training.ml.peaks import Peak, give_memory_back
    from training.ml.steps import newest_checkpoint

    give_memory_back()
    recipe, folder = patiently(lambda: recipe_of(run)), storage_path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    revision = loading.revision(recipe.base_model)
    if run.base_revision and run.base_revision != revision:
        raise ValueError(
            f"the base model {run.base_model} is no longer what this run began with: its files "
            "have changed. Start a new run."
        )
    run.base_revision = revision
    run.report(base_revision=revision)
    last = newest_checkpoint(folder)
    if last:
        record.say(f"Goes on from {last.name}.")
    train = _recipe_function(run.kind)
    if run.report_to:
        record.tracker = _tracker(run)
        record.say(f"Its numbers go to {TRACKERS[run.report_to]} as well.")
    if ranks.count() > 1:
        record.say(f"{ranks.count()} processes share each step.")
    ranks.from_first(None)  # those that follow find the run's rows now
    ranks.wait()  # until they have its files
    judge = JudgeScores(run, recipe, record.say) if getattr(recipe, "judge", "") else None
    writer = writer_of(run, recipe)
    peak = Peak()
    if judge is None and writer is None:
        metrics = train(recipe, train_rows, test_rows, folder, record)
    else:
        try:
            metrics = train(
                recipe, train_rows, test_rows, folder, record, reward=judge, writer=writer
            )
        finally:
            if writer is not None:
                writer.close()
        if judge is not None:
            metrics["judge"] = judge.figures()
    # What one of several processes held is not what was foretold for one that holds all.
    measured = peak.bytes() if alone and ranks.count() == 1 else None
    keep_peaks(run, recipe, metrics, peak.device, measured)
    return metrics


def _recipe_function(kind: str) -> Callable[..., dict]:
    from training.ml import dpo, ppo, quiet_star, reward_model, sft

    return {
        Run.Kind.REWARD: reward_model.train,
        Run.Kind.DPO: dpo.train,
        Run.Kind.PPO: ppo.train,
        Run.Kind.SFT: sft.train,
        Run.Kind.PRETRAIN: sft.pretrain,
        Run.Kind.QUIET_STAR: quiet_star.train,
    }[Run.Kind(kind)]


@shared_task
def keep_copy(relative: str) -> None:
    """Have a file that a worker elsewhere left beside the pages too, which show and offer it."""
    shared.fetch_missing(relative)


def _keep_copies(job: Job) -> None:
    if not shared.is_shared() or job.status != Job.Status.SUCCEEDED:
        return
    made: list[str] = []
    match job:
        case Run():
            made = [f"{job.folder}/model", *([job.dataset.path] if job.dataset else [])]
        case Merge():
            made = [f"merges/{job.pk}/model"]
        case ModelExport():
            made = [job.path]
    for relative in made:
        keep_copy.delay_on_commit(relative)


def _tracker(run: Run) -> "Tracker":
    from training.ml.trackers import open_tracker

    return open_tracker(
        run.report_to,
        folder=storage_path("trackers") / run.report_to,
        project=f"prefloop-{run.project.slug}",
        name=f"{run.kind}-{run.pk}",
        settings=run.recipe,
        online=settings.PREFLOOP_TRACKERS_ONLINE,
    )


def _rows(run: Run, record: "Recorder") -> tuple[list, list]:
    """(train, test): rows of the frozen dataset, or their prompts; or texts of the file that the
    recipe names.

    Raises: ValueError if they are gone, or no longer what the run began with.
    """
    if run.kind not in ON_TEXTS:
        if run.dataset is None:
            _freeze_labels(run, record)
        return _frozen_rows(run)
    recipe = recipe_of(run)
    sha256 = text_sha256(recipe.text)
    if run.text_sha256 and run.text_sha256 != sha256:
        raise ValueError(
            f"the file {recipe.text} is no longer what this run began with. Start a new run."
        )
    run.text_sha256 = sha256
    run.report(text_sha256=sha256)
    train, test, n_repeated = load_texts(recipe.text, recipe.test_share, recipe.seed)
    record.say(
        f"{recipe.text}: {len(train)} texts for training, {len(test)} held out, "
        f"{n_repeated} repeated ones left out."
    )
    return train, test


def _frozen_rows(run: Run) -> tuple[list, list]:
    """The same of a run that has its rows already."""
    if run.kind in ON_TEXTS:
        recipe = recipe_of(run)
        return load_texts(recipe.text, recipe.test_share, recipe.seed)[:2]
    sides = load_rows(run.dataset)
    return tuple(prompts_of(rows) for rows in sides) if run.kind == Run.Kind.PPO else sides


def _freeze_labels(run: Run, record: "Recorder") -> None:
    """The labels of now as the run's dataset, and that of the runs of its sweep.

    Raises: ValueError if there are too few pairs.
    """
    dataset = freeze(run.project, stored_settings(run.labels))
    if reason := why_not_labels(recipe_of(run), dataset.counts):
        raise Impossible(reason)
    run.report(dataset=dataset)
    if run.sweep_id:
        run.sweep.runs.filter(dataset=None).update(dataset=dataset)
    text = f"Froze the labels of now: {dataset}, {dataset.counts['train']} training pairs."
    if n_ties := dataset.counts.get("ties_kept"):
        text += f" {n_ties} ties stand in its file and train nothing."
    record.say(text)


class Recorder:
    """Writes a run's reports into its rows, about once a second."""

    def __init__(self, run: Run, show: Callable[["StepReport"], None] | None) -> None:
        self.run, self.show = run, show
        self.tracker: Tracker | None = None
        self.waiting: dict[tuple[int, str], RunStep] = {}
        self.lines: list[str] = []
        self.checkpoints: dict[int, Path] = {}
        self.written_at = 0.0
        self.total: int | None = None

    def __call__(self, report: "StepReport") -> None:
        """Take a report. Raises: JobCancelled, JobTaken, to end the recipe."""
        self.total = report.n_steps
        if report.values:
            self.waiting[report.step, report.split] = RunStep(
                run=self.run,
                step=report.step,
                split=report.split,
                values=report.values,
                cost=report.cost,
            )
            if self.tracker:
                self._track(lambda tracker: tracker.log(report))
        if report.split != "train" and report.values:
            told = [f"{n} {report.values[n]:.{d}f}" for n, d in LOGGED if n in report.values]
            self.lines.append(f"Step {report.step}: {report.split} {', '.join(told)}.")
        self.lines += [f"Step {report.step}: {note}." for note in report.notes]
        if self.show:
            self.show(report)
        if report.checkpoint:
            self.checkpoints[report.step] = report.checkpoint
        if report.checkpoint or time.monotonic() - self.written_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and the progress. Raises: JobCancelled, JobTaken (nothing written)."""
        cancelled = patiently(self._write)
        self.waiting.clear()
        self.checkpoints.clear()
        self.lines.clear()
        self.written_at = time.monotonic()
        if cancelled:
            raise cancelled

    def _write(self) -> JobCancelled | None:
        done = [step for step, split in self.waiting if split == "train"]
        cancelled = None
        if self.checkpoints:
            self._leave_checkpoint()
        with transaction.atomic():
            try:
                # First: it proves that the run is this worker's, and locks the row until commit.
                self.run.report(n_done=max([self.run.n_done, *done]), n_total=self.total)
            except JobCancelled as error:  # raised below: here it would undo the cancel itself
                cancelled = error
            RunStep.objects.bulk_create(
                self.waiting.values(),
                update_conflicts=True,
                unique_fields=["run", "step", "split"],
                update_fields=["values", "cost"],
            )
            for step, path in self.checkpoints.items():
                self._keep_checkpoint(step, path)
            for line in self.lines:
                self.say(line)
        return cancelled

    def _leave_checkpoint(self) -> None:
        """For other machines. One that cannot be left now is left with the next; a run that has
        gone to another machine leaves nothing of this one."""
        if not shared.is_shared() or not is_mine(self.run):
            return
        try:
            leave(self.run.folder)
        except OSError as error:
            logger.warning("the checkpoint of run %s: %s", self.run.pk, error)
            self.lines.append(f"The checkpoint is on this machine alone for now: {error}")

    def _keep_checkpoint(self, step: int, path: Path) -> None:
        """Note a new checkpoint, and forget those whose files the trainer has removed."""
        root = storage_path("")
        Checkpoint.objects.update_or_create(
            run=self.run, step=step, defaults={"path": str(path.resolve().relative_to(root))}
        )
        gone = [c.pk for c in self.run.checkpoints.all() if not storage_path(c.path).exists()]
        Checkpoint.objects.filter(pk__in=gone).delete()

    def say(self, text: str) -> None:
        """One line in the run's log."""
        patiently(lambda: self.run.events.create(text=text))

    def close(self) -> None:
        """Have the tracker write its last lines."""
        if self.tracker:
            self._track(lambda tracker: tracker.close())

    def _track(self, act: Callable[["Tracker"], None]) -> None:
        """A tracker that fails, hours into a run perhaps, is left behind, and the log says so."""
        try:
            act(self.tracker)
        except Exception as error:
            logger.exception("run %s lost its tracker", self.run.pk)
            name = TRACKERS[self.run.report_to]
            self.say(f"{name} takes no more numbers: {error!r}. The run goes on without it.")
            self.tracker = None
