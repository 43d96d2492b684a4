"""What people's labels of the audit stream say of judges: rows to counts, and counts to a plan.

Decisions, all of them counted and shown:
- Counted are comparisons of the project's work without a known answer that are judged one by one:
  response sets are drawn and answered as a whole, so their pairs are no random sample of pairs.
- People's answer is that of an untied majority, once the comparison has all the labels it wants.
  Where no answer leads, there is nothing a judge could agree with: it counts as an error.
- "Equally good" and "both are bad" are answers: a judge that names a side there errs. A judge that
  calls a tie, or cannot be read, has confidence 0 and is never left alone.
- Audit labels come in the order of the comparisons' random keys. Used are those up to the largest
  key below which at most `MOST_WAITING` still wait; what lies beyond was labeled ahead of its turn
  (after an import, or a change of the share) and is no random part. That looks at no answer.
- A label given after a count belongs to the running audit of what the count was used for.
"""

import math
import statistics
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db.models import Avg, Exists, Max, OuterRef

from judges.guarantee import GRID, Cell, Stage, cascade, level_of_test, place_of, times_as_many
from judges.ml.verdict import says_tie
from judges.models import Certificate, JudgeVersion, Verdict
from labeling.judgements import choice_of
from labeling.models import Choice, Comparison, ComparisonQuerySet, Preference, Project, Rater

MOST_WAITING = 0.05
"""Share of comparisons that may lack a label (skipped, or in somebody's hands) below the last that
is used."""
CHUNK = 2_000  # comparisons read at once
DISPUTED = ""
"""People's answer where none leads."""
NO_SIDE = (Choice.TIE, Choice.BOTH_BAD)

Progress = Callable[[int, int], None]


def population(project: Project, last: int | None = None) -> ComparisonQuerySet:
    """What a certificate can speak of, up to a key."""
    rows = project.comparisons.work().filter(gold="", response_set=None)
    return rows if last is None else rows.filter(pk__lte=last)


def audit_labels(project: Project) -> Any:
    """People's present answers of the audit stream, with the probability they were drawn with."""
    # A join would let SQLite begin with the people, and read all they ever said for every chunk.
    person = Rater.objects.filter(pk=OuterRef("rater"), kind=Rater.Kind.PERSON, project=project)
    return Preference.objects.current().filter(
        Exists(person), audit=True, inclusion_probability__isnull=False
    )


def confidence_and_choice(prob_a: float, prob_tie: float | None, parsed: bool) -> tuple[float, str]:
    """How sure a stored verdict is of the response it names; 0 where it names none."""
    if not parsed:
        return 0.0, Choice.UNPARSED
    if says_tie(prob_a, prob_tie):
        return 0.0, Choice.TIE
    return max(prob_a, 1 - prob_a), choice_of(prob_a)


def people_say(choices: Sequence[str], wanted: int) -> str | None:
    """The answer of most people; DISPUTED where none leads; None while labels are missing."""
    if len(choices) < max(1, wanted):
        return None
    (first, n), *others = Counter(choices).most_common(2)
    return DISPUTED if others and others[0][1] == n else first


def count(
    project: Project, versions: Sequence[JudgeVersion], on_progress: Progress | None = None
) -> dict[str, Any]:
    """How often each judge says what people say, at every confidence, ready for JSON.

    Returns: "cells": [[places, n, n_open, labeled, errors], …] as in `judges.guarantee.Cell`, and
        everything that the page and a certificate say beside: see the end of this function.
    """
    last_comparison = project.comparisons.aggregate(last=Max("pk"))["last"] or 0
    last_preference = Preference.objects.aggregate(last=Max("pk"))["last"] or 0
    rows = population(project, last_comparison)
    n_total, n_done = rows.count(), 0
    in_all: Counter[tuple[int, ...]] = Counter()
    in_queue: Counter[tuple[int, ...]] = Counter()
    labeled: list[tuple[float, tuple[int, ...], tuple[str, ...], str]] = []
    waiting, seconds = array("d"), array("d")
    n_judged, n_unjudged = [0] * len(versions), 0
    for chunk in chunks(rows):
        said = [verdicts_of(version, chunk[0][0], chunk[-1][0]) for version in versions]
        labels: dict[int, list[str]] = {}
        given = audit_labels(project).filter(
            comparison__gte=chunk[0][0], comparison__lte=chunk[-1][0], pk__lte=last_preference
        )
        for pk, choice, took in given.values_list("comparison", "choice", "seconds"):
            labels.setdefault(pk, []).append(choice)
            if took:
                seconds.append(took)
        for pk, key, n_open, wanted in chunk:
            verdicts = [of_judge.get(pk) for of_judge in said]
            places = tuple(place_of(v[0]) if v else len(GRID) for v in verdicts)
            in_all[places] += 1
            in_queue[places] += n_open > 0 and key >= project.audit_share
            for k, verdict in enumerate(verdicts):
                n_judged[k] += verdict is not None
            answer = people_say(labels.get(pk, []), wanted)
            if answer is None:
                waiting.append(key)
            else:
                n_unjudged += None in verdicts
                choices = tuple(v[1] if v else Choice.UNPARSED for v in verdicts)
                labeled.append((key, places, choices, answer))
        n_done += len(chunk)
        if on_progress is not None:
            on_progress(n_done, n_total)
    labeled.sort()
    used = labeled[: _in_turn([row[0] for row in labeled], sorted(waiting))]
    of_test = [Counter() for _version in versions]  # type: list[Counter[tuple[int, ...]]]
    wrong = [Counter() for _version in versions]  # type: list[Counter[tuple[int, ...]]]
    for i, (_key, places, choices, answer) in enumerate(used):
        k = i % len(versions)  # keys are random, so every judge gets a random part
        of_test[k][places] += 1
        wrong[k][places] += choices[k] != answer
    asked = Verdict.objects.filter(version__in=versions).order_by().values("version")
    costs = {row["version"]: row for row in asked.annotate(c=Avg("cost"), s=Avg("seconds"))}
    sets = project.comparisons.work().exclude(response_set=None)
    return {
        "versions": [
            {
                "id": version.pk,
                "name": str(version),
                "n_judged": n_judged[k],
                "cost": costs.get(version.pk, {}).get("c"),
                "seconds": costs.get(version.pk, {}).get("s"),
                "currency": version.server.currency if version.server else "",
            }
            for k, version in enumerate(versions)
        ],
        "cells": [
            [places, n, in_queue[places], *([c[places] for c in part] for part in (of_test, wrong))]
            for places, n in sorted(in_all.items())
        ],
        "n_comparisons": n_total,
        "n_open": sum(in_queue.values()),
        "n_labels": len(used),
        "n_ahead": len(labeled) - len(used),
        "n_waiting": bisect_left(sorted(waiting), used[-1][0]) if used else 0,
        "n_disputed": sum(row[3] == DISPUTED for row in used),
        "n_no_side": sum(row[3] in NO_SIDE for row in used),
        "n_unjudged": n_unjudged,
        "n_with_answer": project.comparisons.work().exclude(gold="").count(),
        "n_in_sets": sets.filter(gold="").count(),
        "seconds_per_label": statistics.median(seconds) if seconds else None,
        "n_timed": len(seconds),
        "last_comparison": last_comparison,
        "last_preference": last_preference,
    }


def chunks(rows: ComparisonQuerySet, after: int = 0) -> Iterator[list[tuple[int, float, int, int]]]:
    """(key, random key, open places, labels wanted) of comparisons, in the order of their keys."""
    columns = ("pk", "random_key", "open_places", "labels_wanted")
    while True:
        chunk = list(rows.filter(pk__gt=after).order_by("pk").values_list(*columns)[:CHUNK])
        if not chunk:
            return
        yield chunk
        after = chunk[-1][0]


def verdicts_of(version: JudgeVersion, first: int, last: int) -> dict[int, tuple[float, str]]:
    """{comparison: (confidence, choice)} of the version's verdicts between two keys."""
    rows = Verdict.objects.filter(version=version, comparison__gte=first, comparison__lte=last)
    columns = rows.values_list("comparison", "prob_a", "prob_tie", "parsed")
    return {pk: confidence_and_choice(*said) for pk, *said in columns}


def _in_turn(labeled: Sequence[float], waiting: Sequence[float]) -> int:
    """How many labeled comparisons, by rising random key, come before too many wait."""
    for n in range(len(labeled), 0, -1):
        n_waiting = bisect_left(waiting, labeled[n - 1])
        if n_waiting <= MOST_WAITING * (n + n_waiting):
            return n
    return 0


# The plan -----------------------------------------------------------------------------------------


def stages_of(
    counted: dict[str, Any], alpha: float, level: float, starts: int
) -> tuple[Stage, ...]:
    """What a test at this level makes of the counts."""
    cells = [
        Cell(tuple(places), n, n_open, tuple(labeled), tuple(errors))
        for places, n, n_open, labeled, errors in counted["cells"]
    ]
    return cascade(cells, len(counted["versions"]), alpha, level, starts=starts)


def plan(
    counted: dict[str, Any], *, alpha: float, delta: float, starts: int, number: int
) -> dict[str, Any]:
    """What the `number`-th test of the project would come to, ready for JSON.

    Returns: {"alpha", "delta", "level", "least", "n_labels", "n_needed" (None: no number would do),
        "why_needed", "share_ai", "share_people", "n_decided", "n_leaving" (of the queue), "stages":
        [{"name", "threshold", "n", "errors", "bound", "n_decided", "steps"}]}.
    """
    level = level_of_test(delta, number)
    stages = stages_of(counted, alpha, level, starts)
    n_all = counted["n_comparisons"]
    n_decided = sum(stage.n_decided for stage in stages)
    rows = []
    for version, stage in zip(counted["versions"], stages, strict=True):
        chosen = stage.test.chosen
        rows.append(
            {
                "name": version["name"],
                "threshold": chosen.threshold if chosen else None,
                "n": chosen.n if chosen else 0,
                "errors": chosen.errors if chosen else 0,
                "bound": chosen.bound if chosen else None,
                "n_decided": stage.n_decided,
                "steps": [
                    vars(step) | {"covered": covered / n_all if n_all else 0.0}
                    for step, covered in zip(stage.test.steps, stage.covered, strict=True)
                ],
            }
        )
    needed, why = _needed(counted, stages, alpha, level / len(stages), starts)
    return {
        "alpha": alpha,
        "delta": delta,
        "starts": starts,
        "number": number,
        "level": level,
        "least": stages[0].test.least,
        "n_labels": counted["n_labels"],
        "n_needed": needed,
        "why_needed": why,
        "share_ai": n_decided / n_all if n_all else 0.0,
        "share_people": 1 - n_decided / n_all if n_all else 1.0,
        "n_decided": n_decided,
        "n_leaving": sum(stage.n_open for stage in stages),
        "stages": rows,
    }


def _needed(
    counted: dict[str, Any], stages: Sequence[Stage], alpha: float, level: float, starts: int
) -> tuple[int | None, str]:
    """How many more audit labels the first judge would probably need, and why: "enough" (none),
    "few" (so many for the first threshold that could be tried), "errors" (if errors go on as they
    came), "too many" (it errs about as often as α at every threshold), "nothing" (no verdicts)."""
    if any(stage.test.chosen for stage in stages):
        return 0, "enough"
    first, n_all = stages[0], counted["n_comparisons"]
    if not n_all or not first.covered[-1]:
        return None, "nothing"
    steps = first.test.steps
    if steps[-1].state == "few":
        # Of all audit labels the share that the lowest threshold covers will reach it.
        missing = first.test.least - steps[-1].n
        return max(1, math.ceil(missing * len(stages) * n_all / first.covered[-1])), "few"
    counts = [(step.n, step.errors) for step in steps]
    times = times_as_many(counts, alpha, level, starts=starts)
    if times is None:
        return None, "too many"
    return max(1, math.ceil((times - 1) * counted["n_labels"])), "errors"


# The running audit --------------------------------------------------------------------------------


def since(certificate: Certificate) -> tuple[int, int]:
    """(labels, errors) that people gave since the certificate, on what it lets judges decide.

    A comparison counts whose people's answers, earlier versions too, are all newer.
    """
    newer = audit_labels(certificate.project).filter(pk__gt=certificate.last_preference)
    votes: dict[int, list[str]] = {}
    for pk, choice in newer.values_list("comparison", "choice"):
        if pk <= certificate.last_comparison:
            votes.setdefault(pk, []).append(choice)
    stages = [
        (stage.version, stage.threshold)
        for stage in certificate.stages.select_related("version")
        if stage.threshold is not None
    ]
    n = errors = 0
    keys = sorted(votes)
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        wanted = dict(
            population(certificate.project)
            .filter(pk__in=part)
            .exclude(
                pk__in=Preference.objects.filter(
                    comparison__in=part,
                    rater__kind=Rater.Kind.PERSON,
                    pk__lte=certificate.last_preference,
                ).values("comparison")
            )
            .values_list("pk", "labels_wanted")
        )
        said = [(verdicts_of(version, part[0], part[-1]), low) for version, low in stages]
        for pk, n_wanted in wanted.items():
            answer = people_say(votes[pk], n_wanted)
            decided = decision(pk, said)
            if answer is not None and decided is not None:
                n += 1
                errors += decided[1] != answer
    return n, errors


def decision(
    pk: int, said: Sequence[tuple[dict[int, tuple[float, str]], float]]
) -> tuple[int, str] | None:
    """(stage, choice) of the first stage that is sure enough of this comparison; None: people."""
    for stage, (verdicts, threshold) in enumerate(said):
        confidence, choice = verdicts.get(pk, (0.0, Choice.UNPARSED))
        if confidence >= threshold:
            return stage, choice
    return None


def sources_of(project: Project, after: int = 0, last: int | None = None) -> set[str]:
    """The models whose responses are compared, between two keys; what raters wrote is left out."""
    rows = Comparison.objects.filter(project=project, pk__gt=after)
    if last is not None:
        rows = rows.filter(pk__lte=last)
    found: set[str] = set()
    for side in ("response_a", "response_b"):
        of_models = rows.filter(**{f"{side}__author": None}).order_by()
        found.update(of_models.values_list(f"{side}__source", flat=True).distinct())
    return found
