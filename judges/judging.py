"""Make a judge, and turn what its model answers into verdicts and preferences."""

import json
import math
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from judges.ml.config import JudgeRecipe, ModelUnusable, recipe_from, recipe_values
from judges.ml.verdict import read_both_orders
from judges.models import Judge, JudgeRun, JudgeTrial, JudgeVersion, Verdict
from labeling.jobs import Job, heartbeat
from labeling.judgements import record_judgement
from labeling.models import Comparison, Project, Rater, content_hash
from labeling.storage import model_folder, storage_path


@transaction.atomic
def judge_version(
    project: Project, name: str, model: str, recipe: JudgeRecipe, user: Any = None
) -> tuple[JudgeVersion, bool]:
    """The version of the judge `name` with this model and recipe, and whether it was made now.

    The same settings are the same version; a change makes a new version, hence a new rater.
    """
    judge, _created = Judge.objects.get_or_create(project=project, name=name)
    judge = Judge.objects.select_for_update().get(pk=judge.pk)  # one new version at a time
    values = recipe_values(recipe)
    for version in judge.versions.filter(model=model):
        # What an older version did not name yet had the default's value.
        if recipe_values(recipe_from(version.recipe)) == values:
            return version, False
    newest = judge.versions.first()
    number = newest.number + 1 if newest else 1
    version = JudgeVersion.objects.create(
        judge=judge,
        number=number,
        model=model,
        recipe=values,
        rater=_new_rater(project, f"{name} v{number}"),
        created_by=user if user is not None and user.is_authenticated else None,
    )
    return version, True


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
    for exemplar in recipe_from(version.recipe).exemplars:
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


def engines() -> Any:
    """The module that runs models. It imports torch: only the process that judges pays for it.

    Raises: ModelUnusable where the libraries are not installed.
    """
    try:
        from judges.ml import engine
    except ModuleNotFoundError as error:
        raise ModelUnusable(
            f"A judge runs a model, and {error.name} is not installed here: pip install '.[train]'"
        ) from error
    return engine


def sample_of(comparison: Comparison) -> Any:
    from judges.ml.engine import Sample

    return Sample(
        comparison.prompt.messages, comparison.response_a.messages, comparison.response_b.messages
    )


def verdict_of(
    run: JudgeRun,
    version: JudgeVersion,
    recipe: JudgeRecipe,
    comparison: Comparison,
    outcome: Any,
) -> Verdict:
    """What came of asking about a comparison, as a row that is not saved yet."""
    verdict = Verdict(
        run=run,
        version=version,
        comparison=comparison,
        n_tokens_cut=outcome.n_tokens_cut,
        seconds=outcome.seconds,
        problem=outcome.problem,
    )
    if outcome.problem:
        # Never asked: says nothing for either side, and counts as unparsed.
        verdict.prob_a, verdict.parsed, verdict.n_tokens = 0.5, False, 0
        verdict.answer_mass_ab = verdict.answer_mass_ba = 0.0
        return verdict
    logp_ab, logp_ba = _logps(outcome)
    verdict.logp_ab_first, verdict.logp_ab_second = logp_ab
    verdict.logp_ba_first, verdict.logp_ba_second = logp_ba
    reading = read_both_orders(logp_ab, logp_ba, recipe.min_answer_mass)
    verdict.prob_a, verdict.parsed = reading.prob_a, reading.parsed
    verdict.answer_mass_ab = reading.answer_mass_ab
    verdict.answer_mass_ba = reading.answer_mass_ba
    verdict.rationale_ab, verdict.rationale_ba = outcome.ab.rationale, outcome.ba.rationale
    verdict.n_tokens = outcome.ab.n_tokens + outcome.ba.n_tokens
    return verdict


def record_verdict(verdict: Verdict, recipe: JudgeRecipe) -> None:
    """Keep the preference of a saved verdict, as the current one of the judge's rater."""
    prob_a_ab = prob_a_ba = None
    if not verdict.problem:
        logp_ab = (verdict.logp_ab_first, verdict.logp_ab_second)
        logp_ba = (verdict.logp_ba_first, verdict.logp_ba_second)
        reading = read_both_orders(logp_ab, logp_ba, recipe.min_answer_mass)
        prob_a_ab, prob_a_ba = reading.prob_a_ab, reading.prob_a_ba
    record_judgement(
        verdict.version.rater,
        verdict.comparison,
        prob_a=verdict.prob_a,
        prob_a_ab=prob_a_ab,
        prob_a_ba=prob_a_ba,
        parsed=verdict.parsed,
        rationale=verdict.rationale_ab,
        seconds=verdict.seconds,
    )


def _logps(outcome: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    return (
        (outcome.ab.logp_first, outcome.ab.logp_second),
        (outcome.ba.logp_first, outcome.ba.logp_second),
    )


def carry_out_trial(trial: JudgeTrial, *, device: str = "") -> None:
    """Ask a judge version about one comparison and keep everything it read and said.

    Nothing of it counts: no verdict, no preference. The result is `{"problem", "n_tokens_cut",
    "seconds", "prob_a", "prob_a_ab", "prob_a_ba", "mean_logit", "position_bias", "consistent",
    "parsed", "orders": [{"shown", "text", "rationale", "prob_first", "prob_second", "mass"}, …]}`.
    Raises: JobCancelled, JobTaken; ModelUnusable when the model cannot be loaded.
    """
    engine_module = engines()
    version = trial.version
    recipe = recipe_from(version.recipe)
    with heartbeat(trial):
        engine = engine_module.load_engine(model_folder(version.model), recipe, device)
        [[(_index, outcome)]] = engine_module.judge_in_batches(
            engine, [sample_of(trial.comparison)]
        )
    trial.report()
    result: dict[str, Any] = {
        "problem": outcome.problem,
        "n_tokens_cut": outcome.n_tokens_cut,
        "seconds": outcome.seconds,
    }
    if not outcome.problem:
        reading = read_both_orders(*_logps(outcome), recipe.min_answer_mass)
        result |= {
            "prob_a": reading.prob_a,
            "prob_a_ab": reading.prob_a_ab,
            "prob_a_ba": reading.prob_a_ba,
            "mean_logit": reading.mean_logit,
            "position_bias": reading.position_bias,
            "consistent": reading.consistent,
            "parsed": reading.parsed,
            "orders": [
                {
                    "shown": shown,
                    "text": answer.text,
                    "rationale": answer.rationale,
                    "prob_first": math.exp(answer.logp_first),
                    "prob_second": math.exp(answer.logp_second),
                    "mass": mass,
                }
                for shown, answer, mass in (
                    ("ab", outcome.ab, reading.answer_mass_ab),
                    ("ba", outcome.ba, reading.answer_mass_ba),
                )
            ],
        }
    trial.finish(Job.Status.SUCCEEDED, result=result)


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
