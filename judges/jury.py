"""A jury: several judge versions whose verdicts become one, by their mean logit.

A member that has a verdict on a comparison is not asked again; one that has none is asked, and its
verdict is kept as its own.
"""

from collections.abc import Callable, Iterator, Sequence

from django.db import transaction

from judges.ml.config import ModelUnusable, recipe_from
from judges.ml.modes import Outcome, jury_outcome
from judges.models import JudgeVersion, Verdict
from judges.verdicts import verdict_of
from labeling.models import Comparison

Ask = Callable[[Sequence[Comparison]], Iterator[list[tuple[int, Outcome]]]]
"""As engines.Ask."""


def members_of(version: JudgeVersion) -> list[JudgeVersion]:
    """The judge versions that sit in this jury.

    Raises: ModelUnusable if one of them is gone or is a jury itself.
    """
    numbers = recipe_from(version.recipe).members
    found = JudgeVersion.objects.filter(judge__project=version.judge.project_id).select_related(
        "judge__project", "server", "rater"
    )
    by_pk = found.in_bulk(numbers)
    missing = [str(number) for number in numbers if number not in by_pk]
    if missing:
        raise ModelUnusable(f"{version} names members that are gone: {', '.join(missing)}")
    members = [by_pk[number] for number in numbers]
    for member in members:
        if member.recipe.get("mode") == "jury":
            raise ModelUnusable(f"{member} is a jury itself, and a jury has judges as its members")
    return members


def ask_jury(members: Sequence[JudgeVersion], open_member: Callable[[JudgeVersion], Ask]) -> Ask:
    """The jury, ready to be asked. A member's model is loaded when it is first needed.

    The members' verdicts are kept as they come, also where the jury's own never follows: nothing
    is asked twice. They do not count as preferences until their judge is put to work itself.
    """
    opened: dict[int, Ask] = {}

    def ask(comparisons: Sequence[Comparison]) -> Iterator[list[tuple[int, Outcome]]]:
        said: dict[int, dict[str, float | None]] = {one.pk: {} for one in comparisons}
        for member in members:
            known = _said(member, comparisons)
            missing = [one for one in comparisons if one.pk not in known]
            if missing:
                if member.pk not in opened:
                    opened[member.pk] = open_member(member)
                for batch in opened[member.pk](missing):
                    _keep(member, [(missing[place], outcome) for place, outcome in batch])
                known = _said(member, comparisons)
            for pk, prob in known.items():
                said[pk][str(member)] = prob
        yield [(place, jury_outcome(said[one.pk])) for place, one in enumerate(comparisons)]

    return ask


def _said(member: JudgeVersion, comparisons: Sequence[Comparison]) -> dict[int, float | None]:
    """{comparison: probability of A, None where it could not be read}."""
    rows = member.verdicts.filter(comparison__in=[one.pk for one in comparisons])
    return {
        pk: prob_a if parsed else None
        for pk, prob_a, parsed in rows.values_list("comparison", "prob_a", "parsed")
    }


@transaction.atomic
def _keep(member: JudgeVersion, outcomes: Sequence[tuple[Comparison, Outcome]]) -> None:
    verdicts = [verdict_of(None, member, comparison, outcome) for comparison, outcome in outcomes]
    # A run of the member itself may have been quicker: its verdict stands.
    Verdict.objects.bulk_create(verdicts, ignore_conflicts=True)
