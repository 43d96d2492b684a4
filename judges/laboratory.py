"""The laboratory: judge versions held against people's labels of the same comparisons.

An experiment freezes a set of the project's own comparisons, has every version of its cells asked
about them (runs that do not count), and stores what they come to. `judges/quality.py` computes the
figures; it wants the extra `stats`, so only the worker's functions here load it.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Count, QuerySet
from django.utils.translation import gettext as _

from judges.judging import exemplars_of, judge_version
from judges.ml.config import recipe_from
from judges.ml.verdict import says_tie
from judges.models import Cell, Experiment, JudgeRun, JudgeVersion, PromptVersion, Verdict
from judges.prompts import with_words
from judges.runs import RunActive, carry_out, failure_line, new_run, notice_death, requeue
from judges.selection import selection_of_set
from judges.workers import RunPaused
from labeling.changes import note_change
from labeling.jobs import Job, JobCancelled, JobTaken, heartbeat
from labeling.judgements import choice_of
from labeling.models import Choice, Comparison, Preference, Project, Rater

if TYPE_CHECKING:
    from judges.quality import Answers, Labeled

logger = logging.getLogger(__name__)

MOST = 5_000
"""Comparisons of an experiment, at most."""
USUAL = 500
"""Enough for isotonic calibration, and for intervals of some per cent."""
MOST_CELLS = 24
EPSILON = 0.15
"""The alt-test's ε for trained people; see `judges.quality.alt_test`."""
PEOPLE_SHOWN = 20
CHUNK = 500  # keys in one query


class NothingLabeled(Exception):
    """The project has no comparison whose answer people know; the message says what to do."""


# The set ------------------------------------------------------------------------------------------


def references(project: Project, keys: Iterable[int] | None = None) -> dict[int, str]:
    """{comparison: people's answer}, of the project's work: the known answer where there is one,
    else the answer of an untied majority of people. Comparisons without either are left out.

    Args:
        keys: only these comparisons; None: all of the project.
    """
    work = project.comparisons.work()
    votes = Preference.objects.current().filter(rater__kind=Rater.Kind.PERSON)
    found: dict[int, str] = {}
    for rows, said in (
        [(work, votes.filter(comparison__in=work))]
        if keys is None
        else [
            (work.filter(pk__in=part), votes.filter(comparison__in=part))
            for part in _parts(sorted(keys))
        ]
    ):
        tallies: dict[int, list[tuple[int, str]]] = {}
        counted = said.order_by().values_list("comparison", "choice").annotate(n=Count("pk"))
        for comparison, choice, n in counted:
            tallies.setdefault(comparison, []).append((n, choice))
        for comparison, gold in rows.values_list("pk", "gold"):
            tally = sorted(tallies.get(comparison, []), reverse=True)
            if gold:
                found[comparison] = gold
            elif tally and (len(tally) == 1 or tally[0][0] > tally[1][0]):
                found[comparison] = tally[0][1]
    return found


def labeled_set(project: Project, most: int = USUAL) -> list[int]:
    """Keys of up to `most` comparisons whose answer people know, in the project's random order."""
    known = references(project)
    in_order = project.comparisons.work().order_by("random_key", "pk").values_list("pk", flat=True)
    return [pk for pk in in_order if pk in known][:most]


# Making one ---------------------------------------------------------------------------------------


def grid(
    bases: Sequence[JudgeVersion],
    prompts: Sequence[PromptVersion] = (),
    modes: Sequence[str] = (),
    user: Any = None,
) -> list[JudgeVersion]:
    """A version for every base with every prompt in every mode; without prompts or modes, each
    base's own. What is not there yet becomes a version of the base's judge.

    Raises: ValueError for a combination that cannot be, or for more than `MOST_CELLS`.
    """
    n = len(bases) * max(1, len(prompts)) * max(1, len(modes))
    if n > MOST_CELLS:
        raise ValueError(
            _("That makes %(n)s cells; an experiment holds %(most)s.")
            % {"n": n, "most": MOST_CELLS}
        )
    found: dict[int, JudgeVersion] = {}
    for base in bases:
        for prompt in prompts or (None,):
            for mode in modes or (None,):
                values = with_words(base.recipe, prompt.words) if prompt else base.recipe
                recipe = recipe_from(values | ({"mode": mode} if mode else {}))
                version = base
                if prompt or mode:
                    version, _made = judge_version(
                        base.judge.project,
                        base.judge.name,
                        base.model,
                        recipe,
                        user,
                        prompt=prompt.name if prompt else "",
                        server=base.server,
                    )
                found[version.pk] = version
    return list(found.values())


@transaction.atomic
def new_experiment(
    project: Project,
    name: str,
    versions: Sequence[JudgeVersion],
    *,
    most: int = USUAL,
    epsilon: float = EPSILON,
    user: Any = None,
) -> Experiment:
    """A queued experiment over comparisons frozen now. The caller wakes a worker.

    Raises: NothingLabeled; ValueError without versions.
    """
    if not versions:
        raise ValueError(_("Choose at least one judge."))
    comparisons = labeled_set(project, min(most, MOST))
    if not comparisons:
        raise NothingLabeled(
            _(
                "People have labeled nothing yet that a judge could be held against. A comparison "
                "counts when it has a known answer, or an answer that most people gave."
            )
        )
    by = user if user is not None and user.is_authenticated else None
    experiment = Experiment.objects.create(
        project=project,
        name=name,
        selection={"comparisons": comparisons, "epsilon": epsilon},
        created_by=by,
        n_total=len(versions) * len(comparisons),
    )
    Cell.objects.bulk_create([Cell(experiment=experiment, version=one) for one in versions])
    note_change(
        project,
        by,
        "start experiment",
        name,
        after={"judges": [str(one) for one in versions], "n": len(comparisons)},
    )
    return experiment


def compute_again(experiment: Experiment) -> bool:
    """Queue a finished experiment once more: what was asked is kept, people's answers are read
    anew. False if it is at work. The caller wakes a worker."""
    Experiment.objects.filter(pk=experiment.pk, status=Job.Status.SUCCEEDED).update(
        status=Job.Status.CANCELLED
    )
    experiment.refresh_from_db()
    return experiment.requeue()


# Carrying it out ----------------------------------------------------------------------------------


def carry_out_experiment(experiment: Experiment, *, device: str = "") -> None:
    """Ask every cell what it has not judged, store the figures after each, and end the job.

    A cell whose judge cannot go on leaves its reason with its run; the others are asked all the
    same, and the experiment then ends as failed and can be resumed.

    Raises: JobCancelled, JobTaken.
    """
    cells = list(
        experiment.cells.select_related(
            "version__judge__project", "version__rater", "run"
        ).order_by("pk")
    )
    problems = []
    for cell in cells:
        problem = _ask(experiment, cells, cell, device)
        if problem:
            problems.append(f"{cell.version}: {problem}")
        _report(experiment, cells, result=result_of(experiment, cells))
    status = Job.Status.FAILED if problems else Job.Status.SUCCEEDED
    experiment.finish(status, error="\n".join(problems))


def _ask(experiment: Experiment, cells: Sequence[Cell], cell: Cell, device: str) -> str:
    """Have the cell's version judge what it has not judged of the set; what kept it, or ""."""
    n_left = len(_unjudged(experiment, cell.version))
    if not n_left:
        return ""
    run = cell.run
    try:
        if run is not None:
            notice_death(run)
        if run is None or not run.can_resume:
            run = new_run(
                cell.version,
                limit=n_left,
                user=experiment.created_by,
                selection=selection_of_set(experiment.selection["comparisons"]),
                counts=False,
            )
            cell.run = run
            cell.save(update_fields=["run"])
        else:
            requeue(run)
    except RunActive as error:
        return str(error)
    claimed = JudgeRun.objects.claim(run.pk)
    if claimed is None:
        return _("Run %(run)s went to another worker.") % {"run": run.pk}
    try:
        with heartbeat(experiment):
            carry_out(claimed, device=device, on_batch=lambda _run: _report(experiment, cells))
    except RunPaused as error:
        return str(error)
    except (JobCancelled, JobTaken):
        if experiment_goes_on(experiment):
            return _("Its run was stopped.")
        unfinished = JudgeRun.objects.filter(pk=run.pk).exclude(status=Job.Status.SUCCEEDED)
        unfinished.update(status=Job.Status.CANCELLED, error="")
        raise
    except Exception as error:  # the reason stands with the run; the other cells go on
        logger.exception("cell %s of %s", cell.pk, experiment)
        return failure_line(error)
    return ""


def experiment_goes_on(experiment: Experiment) -> bool:
    """Whether the row is still this worker's: somebody may have stopped the cell's run alone."""
    return Experiment.objects.filter(
        pk=experiment.pk, status=Job.Status.RUNNING, worker=experiment.worker
    ).exists()


def _unjudged(experiment: Experiment, version: JudgeVersion) -> list[int]:
    """The set without what the version has judged, and without its exemplars."""
    wanted = experiment.selection["comparisons"]
    done = set(exemplars_of(version).values_list("pk", flat=True))
    for part in _parts(wanted):
        judged = Verdict.objects.filter(version=version, comparison__in=part)
        done.update(judged.values_list("comparison", flat=True))
    return [pk for pk in wanted if pk not in done]


def _report(experiment: Experiment, cells: Sequence[Cell], **values: Any) -> None:
    wanted = experiment.selection["comparisons"]
    versions = [cell.version_id for cell in cells]
    n_done = sum(
        Verdict.objects.filter(version__in=versions, comparison__in=part).count()
        for part in _parts(wanted)
    )
    experiment.report(n_done=n_done, n_total=len(versions) * len(wanted), **values)


# Figures ------------------------------------------------------------------------------------------


def result_of(experiment: Experiment, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the experiment has come to so far, ready for JSON: see docs/laboratory.md.

    {"set": {"n", "n_prompts", "n_decided", "n_gold", "n_gone", "n_people"}, "ceiling", "cells":
    [{"version", "name", "model", "mode", …figures}], "differences": [{"first", "second" (places in
    "cells"), …}], "epsilon", "interval"}.
    """
    from judges import quality  # statistics libraries
    from labeling.shares import CONFIDENCE

    labeled = labeled_of(experiment.project, experiment.selection["comparisons"])
    epsilon = experiment.selection.get("epsilon", EPSILON)
    asked = [(cell, answers_of(cell.version, labeled)) for cell in cells]
    asked = [(cell, answers) for cell, answers in asked if len(answers)]
    rows = []
    for cell, answers in asked:
        version = cell.version
        figures = quality.judge_figures(labeled, answers, version.model, epsilon)
        figures["alt_test"]["people"] = figures["alt_test"]["people"][:PEOPLE_SHOWN]
        rows.append(
            {
                "version": version.pk,
                "judge": version.judge_id,
                "name": str(version),
                "model": version.model,
                "mode": version.recipe.get("mode", "rationale"),
                "prompt": str(version.prompt) if version.prompt else "",
                "currency": version.server.currency if version.server else "",
                **figures,
            }
        )
    gold = experiment.project.comparisons.filter(pk__in=labeled.comparison.tolist()).exclude(
        gold=""
    )
    return {
        "set": {
            "n": len(labeled),
            "n_prompts": len(set(labeled.prompt.tolist())),
            "n_decided": int((labeled.reference <= quality.B).sum()),
            "n_gold": gold.count(),
            "n_gone": len(experiment.selection["comparisons"]) - len(labeled),
            "n_people": len(set(labeled.people.rater.tolist())),
        },
        "ceiling": quality.ceiling(labeled),
        "cells": rows,
        "differences": quality.differences(labeled, [answers for _cell, answers in asked]),
        "epsilon": epsilon,
        "interval": {"confidence": CONFIDENCE, "resamples": quality.RESAMPLES},
    }


def labeled_of(project: Project, comparisons: Sequence[int]) -> "Labeled":
    """These comparisons with people's answer and votes, without those that have none any more."""
    import numpy as np

    from judges.quality import Labeled
    from labeling.agreement import CHOICES, Votes

    code = {choice: place for place, choice in enumerate(CHOICES)}
    known = references(project, comparisons)
    columns = ("pk", "prompt", "response_a__n_chars", "response_b__n_chars")
    sources = ("response_a__source", "response_b__source")
    rows = {}
    for part in _parts(comparisons):
        of_part = Comparison.objects.filter(pk__in=part).values_list(*columns, *sources)
        rows.update({row[0]: row for row in of_part})
    kept = [rows[pk] for pk in comparisons if pk in known and pk in rows]
    place = {row[0]: i for i, row in enumerate(kept)}
    raters: dict[int, int] = {}
    names, item, rater, choice, first = [], [], [], [], []
    for part in _parts(list(place)):
        votes = Preference.objects.current().filter(
            comparison__in=part, rater__kind=Rater.Kind.PERSON
        )
        for comparison, who, name, said, shown in votes.values_list(
            "comparison", "rater", "rater__name", "choice", "shown_first"
        ):
            if who not in raters:
                raters[who] = len(names)
                names.append(name)
            item.append(place[comparison])
            rater.append(raters[who])
            choice.append(code[said])
            first.append({"a": 0, "b": 1}.get(shown, -1))

    def numbers(values: Iterable[int]) -> Any:
        return np.array(list(values), dtype=np.int64)

    prompt, length_a, length_b = (numbers(row[k] for row in kept) for k in (1, 2, 3))
    at = numbers(item)
    nothing = np.full(len(at), np.nan)
    return Labeled(
        comparison=numbers(place),
        prompt=prompt,
        reference=numbers(code[known[pk]] for pk in place),
        length_a=length_a,
        length_b=length_b,
        source_a=np.array([row[4] for row in kept], dtype=object),
        source_b=np.array([row[5] for row in kept], dtype=object),
        people=Votes(
            raters=names,
            is_judge=np.zeros(len(names), dtype=bool),
            n_comparisons=len(place),
            item=at,
            prompt=prompt[at],
            rater=numbers(rater),
            choice=numbers(choice),
            shown_first=numbers(first),
            prob_a_ab=nothing,
            prob_a_ba=nothing,
            length_a=length_a[at],
            length_b=length_b[at],
        ),
    )


def answers_of(version: JudgeVersion, labeled: "Labeled") -> "Answers":
    """The version's stored verdicts on these comparisons."""
    import numpy as np

    from judges.quality import Answers
    from labeling.agreement import CHOICES

    code = {choice: place for place, choice in enumerate(CHOICES)}
    place = {pk: i for i, pk in enumerate(labeled.comparison.tolist())}
    rows: list[Verdict] = []
    for part in _parts(list(place)):
        rows += Verdict.objects.filter(version=version, comparison__in=part).defer(
            "rationale_ab", "rationale_ba", "raw"
        )

    def numbers(values: Iterable[float | None]) -> Any:
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    asked = [row for row in rows if not row.problem]
    mass = {row.pk: (row.answer_mass_ab + row.answer_mass_ba) / 2 for row in asked}
    return Answers(
        place=np.array([place[row.comparison_id] for row in rows], dtype=np.int64),
        choice=np.array([code[choice_said(row)] for row in rows], dtype=np.int64),
        prob_a=numbers(row.prob_a for row in rows),
        logit_ab=numbers(_logit(row.logp_ab_first, row.logp_ab_second) for row in rows),
        logit_ba=numbers(_logit(row.logp_ba_second, row.logp_ba_first) for row in rows),
        mass=numbers(mass.get(row.pk) for row in rows),
        seconds=numbers(row.seconds for row in rows),
        cost=numbers(row.cost for row in rows),
        measured_by="samples" if any(row.measured_by == "samples" for row in rows) else "logprobs",
    )


def choice_said(verdict: Verdict) -> str:
    """What a stored verdict names: a response, a tie where that is most probable, or nothing."""
    if not verdict.parsed:
        return Choice.UNPARSED
    if says_tie(verdict.prob_a, verdict.prob_tie):
        return Choice.TIE
    return choice_of(verdict.prob_a)


def _logit(for_a: float | None, for_b: float | None) -> float | None:
    """The logit for A in one order; None where the judge was not asked for it."""
    if for_a is None or for_b is None:
        return None
    return 0.0 if for_a == for_b else for_a - for_b


def _parts(keys: Sequence[int]) -> Iterable[Sequence[int]]:
    return [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]


def experiments_of(project: Project) -> QuerySet[Experiment]:
    return project.experiments.annotate(n_cells=Count("cells")).order_by("-pk")
