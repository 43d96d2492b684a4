"""What a judge version is asked through, whatever it is made of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from judges.ml.asking import Engine
from judges.ml.budget import Budget
from judges.ml.config import JudgeRecipe, ModelUnusable, recipe_from
from judges.ml.modes import Outcome, judge
from judges.ml.questions import Sample
from judges.models import JudgeVersion
from judges.servers import server_engine
from labeling.models import Comparison
from labeling.storage import model_folder

Ask = Callable[[Sequence[Comparison]], Iterator[list[tuple[int, Outcome]]]]
"""Comparisons in, outcomes batch by batch as they come: (place in what was given, outcome)."""


def opened(
    version: JudgeVersion,
    *,
    device: str = "",
    batch_tokens: int = 0,
    budget: Budget | None = None,
) -> Ask:
    """The judge version, ready to be asked; a model of ours is loaded now.

    Args:
        budget: what a server may be asked for; see judges.servers.budget_of.
    Raises: ModelUnusable when the model cannot be loaded; EngineStopped when a server cannot be
        asked.
    """
    recipe = recipe_from(version.recipe)
    engine = _engine(version, recipe, device, batch_tokens, budget)
    return lambda comparisons: judge(engine, recipe, [sample_of(one) for one in comparisons])


def sample_of(comparison: Comparison) -> Sample:
    """The comparison as `judges.ml` knows it. A reference answer may come with it, in its metadata
    as `reference` or `reference_answer`."""
    metadata = comparison.metadata
    reference = metadata.get("reference") or metadata.get("reference_answer") or ""
    return Sample(
        comparison.prompt.messages,
        comparison.response_a.messages,
        comparison.response_b.messages,
        reference=reference if isinstance(reference, str) else "",
    )


def _engine(
    version: JudgeVersion,
    recipe: JudgeRecipe,
    device: str,
    batch_tokens: int,
    budget: Budget | None,
) -> Engine:
    if version.server is not None:
        return server_engine(version.server, version.model, recipe, budget)
    return _local().load_engine(model_folder(version.model), recipe, device, batch_tokens)


def _local() -> Any:
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
