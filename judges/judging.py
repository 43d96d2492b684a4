"""Make judges, and try them."""

import json
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from judges.engines import opened
from judges.ml.config import (
    ASKING_MODES,
    PAIR_MODES,
    JudgeRecipe,
    prompt_words,
    recipe_from,
    recipe_values,
)
from judges.models import Judge, JudgeServer, JudgeTrial, JudgeVersion, PromptVersion
from judges.prompts import prompt_of, prompt_version
from judges.verdicts import as_trial
from labeling.jobs import Job, heartbeat
from labeling.models import Comparison, Project, Rater, content_hash
from labeling.storage import storage_path


@transaction.atomic
def judge_version(
    project: Project,
    name: str,
    model: str,
    recipe: JudgeRecipe,
    user: Any = None,
    *,
    prompt: str = "",
    server: JudgeServer | None = None,
) -> tuple[JudgeVersion, bool]:
    """The version of the judge `name` with this model and recipe, and whether it was made now.

    The same settings are the same version; a change makes a new version, hence a new rater.

    Args:
        prompt: what the words of the question are called if the project has none like them; empty:
            as the judge is.
        server: where the model runs; None is a worker of ours.
    """
    judge, _created = Judge.objects.get_or_create(project=project, name=name)
    judge = Judge.objects.select_for_update().get(pk=judge.pk)  # one new version at a time
    values = recipe_values(recipe)
    for version in judge.versions.filter(model=model, server=server):
        # What an older version did not name yet had the default's value.
        if recipe_values(recipe_from(version.recipe)) == values:
            return version, False
    newest = judge.versions.first()
    number = newest.number + 1 if newest else 1
    version = JudgeVersion.objects.create(
        judge=judge,
        number=number,
        model=model,
        server=server,
        recipe=values,
        prompt=_prompt(project, recipe, prompt, name, user),
        rater=_new_rater(project, f"{name} v{number}"),
        created_by=user if user is not None and user.is_authenticated else None,
    )
    return version, True


def _prompt(
    project: Project, recipe: JudgeRecipe, prompt: str, judge: str, user: Any
) -> PromptVersion | None:
    """The words of the recipe's question; None of a judge that is asked none."""
    if recipe.mode not in ASKING_MODES:
        return None
    if prompt:
        return prompt_version(project, prompt, prompt_words(recipe), user)[0]
    return prompt_of(project, recipe, judge, user)[0]


def _new_rater(project: Project, name: str) -> Rater:
    """A judge's rater; an imported judge may already bear the name, and two never share a rater."""
    judges = Rater.objects.filter(project=project, kind=Rater.Kind.JUDGE)
    free, n = name, 1
    while judges.filter(name=free).exists():
        n += 1
        free = f"{name} ({n})"
    return Rater.objects.create(project=project, kind=Rater.Kind.JUDGE, name=free)


def exemplars_of(version: JudgeVersion) -> QuerySet[Comparison]:
    """Comparisons of the project that this version is shown with their answer.

    A recipe keeps the words of its exemplars, so the same words make the same comparison: prompt
    and both responses, in whichever order.
    """
    shown = Q()
    recipe = recipe_from(version.recipe)
    for exemplar in recipe.exemplars if recipe.mode in PAIR_MODES else ():
        first, second = content_hash(exemplar.first), content_hash(exemplar.second)
        of_prompt = Q(prompt__content_hash=content_hash(exemplar.prompt))
        shown |= of_prompt & (
            Q(response_a__content_hash=first, response_b__content_hash=second)
            | Q(response_a__content_hash=second, response_b__content_hash=first)
        )
    if not shown:
        return Comparison.objects.none()
    return Comparison.objects.filter(shown, project=version.judge.project_id)


def n_left_out(version: JudgeVersion) -> int:
    """Comparisons that are never asked because they are this version's exemplars."""
    return exemplars_of(version).exclude(verdicts__version=version).count()


def carry_out_trial(trial: JudgeTrial, *, device: str = "") -> None:
    """Ask a judge version about one comparison and keep everything it read and said.

    Nothing of it counts: no verdict, no preference. For the result see `verdicts.as_trial`.
    Raises: JobCancelled, JobTaken; ModelUnusable when the model cannot be loaded.
    """
    with heartbeat(trial):
        [[(_index, outcome)]] = opened(trial.version, device=device)([trial.comparison])
    trial.report()
    trial.finish(Job.Status.SUCCEEDED, result=as_trial(outcome))


def stored_models() -> list[str]:
    """Names of the language models under PREFLOOP_STORAGE/models, for a form to offer."""
    root = storage_path("models")
    names = []
    for file in [*root.glob("*/config.json"), *root.glob("*/*/config.json")]:
        try:
            kinds = json.loads(file.read_text()).get("architectures") or []
        except (OSError, ValueError, AttributeError):
            continue  # half written, or no model's: nothing to offer
        if any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
            names.append(str(file.parent.relative_to(root)))
    return sorted(names)
