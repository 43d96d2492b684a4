"""Which comparisons a judge is asked about, and in which order.

Every selection comes in the project's random order from its beginning: there lies the audit set,
which people label at random too, so a run that is stopped early, or limited, has judged a random
part, and of the audit set first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import models
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from labeling.models import Comparison, Preference, Project, Rater
from labeling.queue import filtered, with_majority_of_people


class Which(models.TextChoices):
    ALL = "all", _lazy("Everything")
    UNDECIDED = "undecided", _lazy("What nobody has labeled yet")
    DISPUTED = "disputed", _lazy("What people disagree on, or a judge and most people")
    AUDIT = "audit", _lazy("The audit set alone")
    LABELED = "labeled", _lazy("What people have labeled")
    UNTIED = "untied", _lazy("What people have labeled, with a majority")
    SET = "set", _lazy("The set of an experiment")


OFFERED = [choice for choice in Which.choices if choice[0] != Which.SET]
"""What a person may choose; a set comes from the laboratory."""


def selection_of(which: str) -> dict[str, str]:
    """What is stored with a run.

    Raises: ValueError for a word that is none of Which.
    """
    return {"which": Which(which).value}


def selection_of_set(comparisons: Sequence[int]) -> dict[str, Any]:
    """These comparisons, by their keys."""
    return {"which": Which.SET.value, "comparisons": list(comparisons)}


def which_of(selection: Mapping[str, Any]) -> Which:
    """The choice that a stored selection stands for; one without words is everything.

    Raises: ValueError for a selection that is not known.
    """
    unknown = set(selection) - {"which", "comparisons"}
    if unknown:
        raise ValueError(_("A selection has no %(names)s.") % {"names": ", ".join(sorted(unknown))})
    return Which(selection.get("which", Which.ALL))


def selected(project: Project, selection: Mapping[str, Any]) -> QuerySet[Comparison]:
    """The selected comparisons of the project in their order.

    Of all but "all", only what is there to be labeled: a comparison of the raters' sets has its
    answer. A majority is the answer that most people gave, a tie among them; where two answers
    share the first place there is none.

    Raises: ValueError for a selection that is not known.
    """
    which = which_of(selection)
    rows = project.comparisons.all()
    people = Preference.objects.current().filter(
        comparison=OuterRef("pk"), rater__kind=Rater.Kind.PERSON
    )
    if which != Which.ALL:
        rows = rows.work()
    if which == Which.SET:
        rows = rows.filter(pk__in=selection.get("comparisons", []))
    elif which == Which.UNDECIDED:
        rows = rows.filter(~Exists(people))
    elif which == Which.DISPUTED:
        among_people = filtered(project, disagreement="people").values("pk")
        with_judges = filtered(project, judge="differs").values("pk")
        rows = rows.filter(Q(pk__in=among_people) | Q(pk__in=with_judges))
    elif which == Which.AUDIT:
        rows = rows.filter(random_key__lt=project.audit_share)
    elif which == Which.LABELED:
        rows = rows.filter(Exists(people))
    elif which == Which.UNTIED:
        rows = with_majority_of_people(rows).filter(n_most__gt=F("n_next"))
    return rows.order_by("random_key", "pk")
