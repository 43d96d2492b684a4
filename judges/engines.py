"""What a judge version is asked through, whatever it is made of."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _

from judges.jury import ask_jury, members_of
from judges.ml.asking import Engine, Halt
from judges.ml.budget import Budget
from judges.ml.config import JudgeRecipe, ModelUnusable, recipe_from
from judges.ml.modes import Outcome, judge
from judges.ml.questions import Sample
from judges.models import JudgeRun, JudgeVersion
from judges.servers import server_engine
from labeling import shared
from labeling.models import Comparison, Project
from labeling.storage import files_folder, model_folder, names_a_path

Ask = Callable[[Sequence[Comparison]], Iterator[list[tuple[int, Outcome]]]]
"""Comparisons in, outcomes batch by batch as they come: (place in what was given, outcome)."""


def opened(
    version: JudgeVersion,
    *,
    device: str = "",
    batch_tokens: int = 0,
    budget: Budget | None = None,
    counts: dict[str, int] | None = None,
    halt: Halt | None = None,
    run: JudgeRun | None = None,
    anew: bool = False,
) -> Ask:
    """The judge version, ready to be asked; a model of ours is loaded now.

    Args:
        budget: what a server may be asked for; see judges.claims.budget_of.
        counts: added to by what the engine meets; see judges.ml.asking.Engine.
        halt: stops what waits for a server, from another thread.
        run: which is to have spent what a jury's members take.
        anew: a jury's members are asked whatever they have said before; nothing of it is kept.
    Raises: ModelUnusable when the model cannot be loaded; EngineStopped when a server cannot be
        asked.
    """
    recipe = recipe_from(version.recipe)
    if recipe.mode == "jury":
        members = members_of(version)
        return ask_jury(
            members,
            lambda one: opened(
                one,
                device=device,
                batch_tokens=batch_tokens,
                budget=budget,
                counts=counts,
                halt=halt,
            ),
            run,
            anew=anew,
        )
    if recipe.mode == "reward":
        shared.fetch_model(version.judge.project, version.model)
        place = model_place(version.judge.project, version.model)
        scorer = _imported("reward").load_reward_model(place, recipe, device, batch_tokens, counts)
        return lambda comparisons: scorer.judge([sample_of(one) for one in comparisons])
    engine = engine_of(version, recipe, device, batch_tokens, budget, counts, halt)
    return lambda comparisons: judge(engine, recipe, [sample_of(one) for one in comparisons])


def engine_of(
    version: JudgeVersion,
    recipe: JudgeRecipe,
    device: str = "",
    batch_tokens: int = 0,
    budget: Budget | None = None,
    counts: dict[str, int] | None = None,
    halt: Halt | None = None,
) -> Engine:
    """The language model of a version, which its recipe asks in words; one of ours is loaded now.

    Args and Raises: as of `opened`.
    """
    if version.server is not None:
        return server_engine(version.server, version.model, recipe, budget, counts, halt)
    shared.fetch_model(version.judge.project, version.model)
    place = model_place(version.judge.project, version.model)
    engine: Engine = _imported("engine").load_engine(place, recipe, device, batch_tokens, counts)
    return engine


def model_place(project: Project, name: str) -> str:
    """What to load for a model's name: a model that was trained in this project, or as
    `labeling.storage.model_folder` says."""
    # The model's row belongs to training, which judges do not import; the project knows its models.
    found = project.models.filter(name=name).first()
    if found is None:
        return model_folder(name)
    return files_folder(found.path, is_base=found.kind == found.Kind.BASE)


def why_unusable(project: Project, name: str) -> str:
    """What is wrong with the folder of a model that is named, in one line; "" where nothing is, or
    where it is a hub's model and only loading it will tell."""
    place = model_place(project, name)
    folder = Path(place)
    if not (names_a_path(place) or folder.is_dir()):
        return ""
    if not folder.is_dir():
        return _("There is no model folder %(folder)s on this machine.") % {"folder": name}
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        return _("The folder %(folder)s holds no model: it has no config.json.") % {"folder": name}
    if not any(folder.glob("*.safetensors")):
        return _("The folder %(folder)s has no weights as safetensors.") % {"folder": name}
    return ""


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


def _imported(name: str) -> Any:
    """A module that imports torch: only the process that judges pays for it.

    Raises: ModelUnusable where the libraries are not installed.
    """
    try:
        return import_module(f"judges.ml.{name}")
    except ModuleNotFoundError as error:
        raise ModelUnusable(
            f"A judge runs a model, and {error.name} is not installed here: pip install '.[train]'"
        ) from error
