"""How far a project is, and who did what."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Max, Q, Sum
from django.utils import timezone

from labeling.models import Assignment, Preference, Project, Rater


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
    counts = project.comparisons.aggregate(
        n=Count("pk"),
        n_wanted=Sum("labels_wanted", default=0),
        n_free=Sum("open_places", default=0),
    )
    held = project.raters.aggregate(n=Count("assignments", filter=Q(assignments__state="leased")))[
        "n"
    ]
    # A held place is neither free nor given.
    n_given = counts["n_wanted"] - counts["n_free"] - held
    n_done = project.comparisons.filter(open_places=0).exclude(assignments__state="leased").count()
    return Progress(
        n_comparisons=counts["n"],
        n_done=n_done,
        n_wanted=counts["n_wanted"],
        n_given=n_given,
        n_judge_verdicts=Preference.objects.current()
        .of_judges()
        .filter(comparison__project=project)
        .count(),
    )


def raters_at_work(project: Project) -> list[Rater]:
    """The project's raters with `n_preferences`, `n_ties` and `last_at`, busiest first."""
    current = Q(preferences__superseded_at=None)
    return list(
        project.raters.annotate(
            n_preferences=Count("preferences", filter=current),
            n_ties=Count("preferences", filter=current & Q(preferences__choice="tie")),
            last_at=Max("preferences__created_at", filter=current),
        )
        .filter(n_preferences__gt=0)
        .order_by("kind", "-n_preferences", "name")
    )


def done_today(rater: Rater) -> int:
    """Answers that the rater gave since midnight UTC.

    Of every stream: a count that stood still at a repeat would give it away.
    """
    midnight: datetime = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    answered = rater.assignments.filter(state=Assignment.State.ANSWERED)
    return answered.filter(closed_at__gte=midnight).count()
