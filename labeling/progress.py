"""How far a project is, and who did what."""

from dataclasses import asdict, dataclass
from datetime import datetime

from django.core.cache import cache
from django.db.models import Count, Q, QuerySet, Sum
from django.utils import timezone

from labeling.models import Assignment, Comparison, Preference, Project, Rater

LARGE = 50_000  # comparisons that are counted in about a tenth of a second
KEEP_SECONDS = 60
ENTRANCE = (Assignment.Stream.TRAINING, Assignment.Stream.QUALIFICATION)
"""What comes before the work, and counts neither in it nor in a day's."""


@dataclass(frozen=True)
class Progress:
    n_comparisons: int
    n_done: int  # have every label they want
    n_wanted: int  # labels wanted in all
    n_given: int  # of those, given by people; a surplus on one comparison does not fill another
    n_judge_verdicts: int

    @property
    def share(self) -> float:
        return self.n_given / self.n_wanted if self.n_wanted else 0.0


def project_progress(project: Project) -> Progress:
    """Labels given and wanted, over the whole project."""
    # Sets of known answers want no labels, and neither does what a better answer implies.
    wanted = project.comparisons.work().filter(labels_wanted__gt=0)
    counts = wanted.aggregate(
        n=Count("pk"),
        n_wanted=Sum("labels_wanted", default=0),
        n_free=Sum("open_places", default=0),
        n_full=Count("pk", filter=Q(open_places=0)),
    )
    leases = Assignment.objects.filter(
        state=Assignment.State.LEASED,
        repeats=None,
        rater__project=project,
        comparison__purpose=Comparison.Purpose.WORK,
        comparison__labels_wanted__gt=0,
    )
    held = leases.aggregate(
        n=Count("pk"),
        n_full=Count("comparison", filter=Q(comparison__open_places=0), distinct=True),
    )
    # A held place is neither free nor given.
    n_given = counts["n_wanted"] - counts["n_free"] - held["n"]
    return Progress(
        n_comparisons=counts["n"],
        n_done=counts["n_full"] - held["n_full"],
        n_wanted=counts["n_wanted"],
        n_given=n_given,
        n_judge_verdicts=Preference.objects.current()
        .of_judges()
        .filter(comparison__project=project)
        .count(),
    )


@dataclass(frozen=True)
class Counted:
    """Progress, and when it was counted."""

    progress: Progress
    at: datetime


def kept_progress(project: Project) -> Counted | None:
    """The project's progress: of now in a small project, else as counted within the last minute;
    None if a large project's must be counted first (`count_progress`)."""
    kept = cache.get(_key(project))
    if kept is not None:
        return Counted(Progress(**kept["progress"]), datetime.fromisoformat(kept["at"]))
    if _is_large(project):
        return None
    return Counted(project_progress(project), timezone.now())


def count_progress(project: Project) -> Counted:
    """Count a project, unless it was counted within the last minute; for large ones, seconds."""
    counted = kept_progress(project)
    if counted is None:
        counted = Counted(project_progress(project), timezone.now())
        # As JSON, which is all that a shared cache takes.
        kept = {"progress": asdict(counted.progress), "at": counted.at.isoformat()}
        cache.set(_key(project), kept, KEEP_SECONDS)
    return counted


def _is_large(project: Project) -> bool:
    """Whether counting its comparisons takes longer than a page may."""
    return project.comparisons.order_by()[LARGE : LARGE + 1].exists()


def _key(project: Project) -> str:
    return f"progress-{project.pk}"


@dataclass(frozen=True)
class OwnProgress:
    """What a rater may know: their own numbers."""

    n_today: int
    n_answered: int
    limit: int | None
    day_limit: int | None


def own_progress(project: Project, rater: Rater | None) -> OwnProgress:
    return OwnProgress(
        n_today=done_today(rater) if rater else 0,
        n_answered=n_answers(answered_by(rater)) if rater else 0,
        limit=(rater and rater.label_limit) or project.labels_per_rater,
        day_limit=project.labels_per_day,
    )


def answered_by(rater: Rater) -> QuerySet[Assignment]:
    """What the rater has answered, training and qualification left out.

    Checks and repeats are in: a count that stood still at one would give it away.
    """
    answered = rater.assignments.filter(state=Assignment.State.ANSWERED)
    return answered.exclude(stream__in=ENTRANCE)


def n_answers(answered: QuerySet[Assignment]) -> int:
    """How many answers these assignments are: a ranking is one, however many pairs it has."""
    counted = answered.aggregate(
        pairs=Count("pk", filter=Q(comparison__response_set=None)),
        rankings=Count("comparison__response_set", distinct=True),
    )
    return counted["pairs"] + counted["rankings"]


def done_today(rater: Rater) -> int:
    """Answers that the rater gave since midnight UTC."""
    midnight: datetime = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    return n_answers(answered_by(rater).filter(closed_at__gte=midnight))
