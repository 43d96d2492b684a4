"""What a loss needs of the labels, and an option of the base: asked before a worker is woken.

No torch in here, as in `methods`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.ml.config import AnyRecipe, DPORecipe, RewardRecipe
from training.ml.data import Pair, Single, pairs_of, singles_of
from training.ml.methods import PROMPTS, WHOLE
from training.ml.ppo_config import PPORecipe
from training.ml.settings import gettext_noop

ROTARY = ("rope_theta", "rope_parameters", "rope_scaling")
"""What the config of a model with rotary positions names one of."""
HARD = gettext_noop(
    "wants hard labels, and here some are not certain: under a soft label the best distance is its "
    "log-odds already; take majority labels without ties"
)


def needs_hard_labels(recipe: AnyRecipe) -> bool:
    """Whether the recipe's loss adds a margin, which only a certain label leaves room for."""
    if isinstance(recipe, RewardRecipe):
        return recipe.loss == "margin" and recipe.soft_labels == "kept"
    if isinstance(recipe, DPORecipe):
        return recipe.loss == "simpo" and recipe.simpo_gamma > 0
    return False


def needs_strengths(recipe: AnyRecipe) -> bool:
    """Whether the recipe learns from how much better a response is."""
    if not isinstance(recipe, RewardRecipe):
        return False
    of_strength = recipe.loss == "ratings" and recipe.rating_of == "strength"
    return of_strength or recipe.loss in ("margin", "scaled")


def aspect_count(name: str) -> str:
    """Under what a dataset counts the pairs in which this aspect was answered."""
    return f"aspect {name}"


def why_not_labels(recipe: AnyRecipe, counts: Mapping[str, int]) -> str:
    """Why these labels do not suit the recipe's loss, in a sentence; empty if they do.

    Args: counts: of a dataset, as training.datasets keeps them: `soft` and `graded` pairs, and
        those with an answer to each aspect; or, of judgements of single responses, `singles`,
        `good`, `bad` and `neutral` ones.
    """
    if counts.get("singles"):
        return _why_not_singles(recipe, counts)
    if getattr(recipe, "imitate", "") == "demonstrations" and not counts.get("demonstrations"):
        return "imitate: no rater’s better answer is among these pairs"
    if needs_hard_labels(recipe) and counts.get("soft"):
        return f"loss: {_name(recipe)} {HARD}"
    if needs_strengths(recipe) and not counts.get("graded"):
        return (
            f"loss: {_name(recipe)} wants answers with a strength (slightly, clearly, much), and "
            "no pair here has one"
        )
    is_of_aspect = isinstance(recipe, RewardRecipe) and recipe.loss == "ratings"
    if is_of_aspect and not needs_strengths(recipe) and not counts.get(aspect_count(_of(recipe))):
        known = [name.removeprefix(aspect_count("")) for name in counts if _is_aspect(name, counts)]
        answered = f"answered were {', '.join(sorted(known))}" if known else "none was answered"
        return f"rating_of: no pair here has an answer to the aspect {_of(recipe)!r}; {answered}"
    return ""


def _why_not_singles(recipe: AnyRecipe, counts: Mapping[str, int]) -> str:
    """The same for a dataset of judgements of single responses."""
    if isinstance(recipe, PPORecipe):
        return ""  # it takes the prompts alone
    if isinstance(recipe, DPORecipe):
        if recipe.loss != "kto":
            return (
                "loss: this dataset holds judgements of single responses, and this loss learns "
                "from pairs; choose kto, or a dataset of pairs"
            )
        missing = [kind for kind in ("good", "bad") if not counts.get(kind)]
        if missing:
            return (
                f"dataset: KTO learns from good and from bad responses, and none here is "
                f"{' or '.join(missing)}"
            )
        return ""
    if isinstance(recipe, RewardRecipe):
        if recipe.loss != "ratings":
            return (
                "loss: this dataset holds judgements of single responses, and this loss learns "
                "from pairs; choose ratings, or a dataset of pairs"
            )
        if recipe.rating_of != "strength":
            return (
                "rating_of: here the dataset decides which rating is learned, by its setting "
                "aspect; leave this at strength"
            )
        if recipe.center_rewards:
            return (
                "center_rewards: the scale of the ratings says where 0 is; only pairs leave it open"
            )
        return ""
    return (
        "dataset: this one holds judgements of single responses, and this recipe imitates the "
        "chosen responses of pairs; choose a dataset of pairs"
    )


def _of(recipe: AnyRecipe) -> str:
    return str(getattr(recipe, "rating_of", ""))


def _is_aspect(name: str, counts: Mapping[str, int]) -> bool:
    return name.startswith(aspect_count("")) and counts[name] > 0


def why_not_base(recipe: AnyRecipe, config: Mapping[str, Any]) -> str:
    """Why an option of the recipe does not fit its method or base, in a sentence; empty if it does.

    Args: config: of the base, as its config.json has it; empty if it is not at hand.
    """
    members = getattr(recipe, "members", 1)
    if members > 1 and recipe.method in WHOLE:
        return (
            "members: every member of an ensemble is an adapter beside one base, and this method "
            "changes the base; choose LoRA"
        )
    if members > 1 and recipe.method in PROMPTS:
        return (
            "members: a learned prompt changes the base's forward pass, so several cannot stand "
            "beside it; choose LoRA"
        )
    if recipe.rope_scaling == "none" or not config:
        return ""
    text = config.get("text_config") or config
    if not any(text.get(name) for name in ROTARY):
        return (
            f"rope_scaling: the base ({text.get('model_type', 'unknown')}) has no rotary positions "
            "that could be scaled"
        )
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in scaling.values()):
        return "rope_scaling: the base has a rule of its own for each kind of layer"
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        return "rope_scaling: the base's positions are scaled already"
    return ""


def suiting(recipe: AnyRecipe, rows: Sequence[Pair | Single]) -> None:
    """Raises: ValueError where why_not_labels would refuse these rows."""
    pairs, singles = pairs_of(rows), singles_of(rows)
    counts = {
        "singles": len(singles),
        "good": sum(single.good > 0.5 for single in singles),
        "bad": sum(single.good < 0.5 for single in singles),
        "soft": sum(0 < pair.prob < 1 for pair in pairs),
        "graded": sum(pair.strength is not None for pair in pairs),
    }
    for pair in pairs:
        for name in pair.aspects or ():
            counts[aspect_count(name)] = counts.get(aspect_count(name), 0) + 1
    if reason := why_not_labels(recipe, counts):
        raise ValueError(reason)


def _name(recipe: AnyRecipe) -> str:
    return {
        "margin": "a margin",
        "scaled": "this loss",
        "ratings": "this loss",
        "simpo": "SimPO with a margin",
    }[str(getattr(recipe, "loss", ""))]
