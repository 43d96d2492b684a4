"""A jury: several judge versions whose verdicts become one, by their mean logit.

A member that has a verdict on a comparison is not asked again; one that has none is asked, and its
verdict is kept as its own.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence

from django.db import transaction

from judges.ml.config import ModelUnusable, recipe_from
from judges.ml.modes import Outcome, jury_outcome
from judges.models import JudgeRun, JudgeVersion, Verdict
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


def ask_jury(
    members: Sequence[JudgeVersion],
    open_member: Callable[[JudgeVersion], Ask],
    run: JudgeRun | None = None,
    *,
    anew: bool = False,
) -> Ask:
    """The jury, ready to be asked. A member's model is loaded when it is needed; of those that run
    in this process one is in memory at a time.

    The members' verdicts are kept as they come, also where the jury's own never follows: nothing
    is asked twice. They do not count as preferences until their judge is put to work itself.

    Args:
        run: the jury's, which spends what its members take.
        anew: ask every member, whatever it has said before, and keep nothing.
    """
    opened: dict[int, Ask] = {}
    local = {member.pk for member in members if member.server_id is None}

    def ask(comparisons: Sequence[Comparison]) -> Iterator[list[tuple[int, Outcome]]]:
        said: dict[int, dict[str, float | None]] = {one.pk: {} for one in comparisons}
        told: dict[int, set[str]] = {one.pk: set() for one in comparisons}
        # Those that are in memory first: the last of one call begins the next.
        for member in sorted(members, key=lambda one: one.pk not in opened):
            known = {} if anew else _said(member, comparisons)
            missing = [one for one in comparisons if one.pk not in known]
            if missing:
                if member.pk not in opened:
                    if member.pk in local:
                        _free(opened, local)
                    opened[member.pk] = open_member(member)
                for batch in opened[member.pk](missing):
                    outcomes = [(missing[place], outcome) for place, outcome in batch]
                    for comparison, outcome in outcomes:
                        told[comparison.pk].update(outcome.raw.get("server_told", ()))
                        known[comparison.pk] = outcome.prob_a if outcome.parsed else None
                    if not anew:
                        _keep(member, outcomes, run)
                if not anew:  # where a run of the member was quicker, its verdict stands
                    known = _said(member, comparisons)
            for pk, prob in known.items():
                said[pk][str(member)] = prob
        yield [
            (place, jury_outcome(said[one.pk], sorted(told[one.pk])))
            for place, one in enumerate(comparisons)
        ]

    return ask


def _free(opened: dict[int, Ask], local: set[int]) -> None:
    """Give back the memory of the members that run in this process."""
    held = [pk for pk in opened if pk in local]
    for pk in held:
        del opened[pk]
    if held:
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _said(member: JudgeVersion, comparisons: Sequence[Comparison]) -> dict[int, float | None]:
    """{comparison: probability of A, None where it could not be read}."""
    rows = member.verdicts.filter(comparison__in=[one.pk for one in comparisons])
    return {
        pk: prob_a if parsed else None
        for pk, prob_a, parsed in rows.values_list("comparison", "prob_a", "parsed")
    }


@transaction.atomic
def _keep(
    member: JudgeVersion, outcomes: Sequence[tuple[Comparison, Outcome]], run: JudgeRun | None
) -> None:
    verdicts = [
        verdict_of(None, member, comparison, outcome, asked_for=run)
        for comparison, outcome in outcomes
    ]
    # A run of the member itself may have been quicker: its verdict stands.
    Verdict.objects.bulk_create(verdicts, ignore_conflicts=True)
