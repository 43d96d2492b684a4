"""What is merged and how: one frozen dataclass, and what speaks against it, told before the launch.

Only headers of weight files are read, so forms, commands and the API ask without torch.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.ml.settings import gettext_noop
from training.ml.weights import tensor_shapes

OnTensor = Callable[[int, int], None]
"""Told (tensors done, all of them); raises to end the merge."""

MERGES = {
    "fold": gettext_noop("Adapter into its base"),
    "linear": gettext_noop("Linear: weighted mean"),
    "task_arithmetic": gettext_noop("Task arithmetic: sum of changes"),
    "slerp": gettext_noop("SLERP: along the arc between two"),
    "ties": gettext_noop("TIES: trim, elect a sign, mean"),
    "dare_linear": gettext_noop("DARE: drop at random, then the weighted mean"),
    "dare_ties": gettext_noop("DARE: drop at random, then TIES"),
    "cat": gettext_noop("Concatenate adapters"),
    "passthrough": gettext_noop("Stack layers"),
    "mergekit": gettext_noop("mergekit, as a program of its own"),
}
ABOUT = {
    "fold": gettext_noop(
        "The adapter is added to its base's weights (a 4-bit base is turned back into numbers "
        "first), so that the model needs no adapter any more. Saved only if it gives the same "
        "logits on 32 prompts."
    ),
    "linear": gettext_noop(
        "The mean of all weights, each model counting by its weight. Models that began at the same "
        "base and learned the same kind of task usually gain a little."
    ),
    "task_arithmetic": gettext_noop(
        "What each model learned beside the base is added to it, times its weight; a negative "
        "weight takes it away (Ilharco et al. 2023)."
    ),
    "slerp": gettext_noop(
        "Two models, mixed along the arc between their directions: t = 0 is the first, t = 1 the "
        "second. Keeps the length of the weights where a mean would shorten it."
    ),
    "ties": gettext_noop(
        "Keeps the largest changes of each model, lets them vote on the sign of every number, and "
        "takes the mean of those that agree: less interference (Yadav et al. 2023)."
    ),
    "dare_linear": gettext_noop(
        "Drops changes at random and scales up the rest, then the weighted mean: many changes are "
        "not needed (Yu et al. 2024). The seed decides which."
    ),
    "dare_ties": gettext_noop(
        "Drops changes at random and scales up the rest, then signs are elected as in TIES."
    ),
    "cat": gettext_noop(
        "LoRA adapters of one base side by side in a single adapter: exactly the weighted sum of "
        "their changes; the ranks add up. Stays small and can still be taken off."
    ),
    "passthrough": gettext_noop(
        "Layers of one or several models on top of each other: a deeper model that wants training "
        "before it is good (Kim et al. 2023, depth up-scaling)."
    ),
    "mergekit": gettext_noop(
        "Writes a configuration for the program mergekit and calls it, where it is installed: for "
        "methods that are not built in, such as model_stock or della."
    ),
}
SIGNS = {
    "total": gettext_noop("by the sum of the changes"),
    "count": gettext_noop("by the number of models"),
}
DTYPES = {
    "base": gettext_noop("as the base's files"),
    "float32": "float32",
    "bfloat16": "bfloat16",
}
NEEDS_BASE = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
"""Methods on what was learned beside a base: whole models must say which one that is."""
MERGEKIT_METHODS = (
    "linear", "slerp", "nuslerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della",
    "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "karcher",
)  # fmt: skip
SETTINGS = {
    "fold": (),
    "linear": ("weights",),
    "task_arithmetic": ("weights", "scale"),
    "slerp": ("t",),
    "ties": ("weights", "density", "sign", "scale"),
    "dare_linear": ("weights", "density", "seed", "scale"),
    "dare_ties": ("weights", "density", "sign", "seed", "scale"),
    "cat": ("weights",),
    "passthrough": ("layers",),
    "mergekit": ("weights", "mergekit_method", "density", "t"),
}
"""What each method reads beside the models, their base and the number format."""
LAYER = re.compile(r"^(.*?\b(?:layers|h|layer|blocks))\.(\d+)\.(.+)$")
SLICE = re.compile(r"^\s*(\d+)\s*:\s*(\d+)\s*-\s*(\d+)\s*$")
MOST_MODELS = 8


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """Everything that decides a merge; stored whole with it, so that it can be repeated."""

    method: str
    models: tuple[str, ...]
    """Folders, in the order of the weights."""
    base: str = ""
    """Folder of the base; empty: that of the adapters."""
    weights: tuple[float, ...] = ()
    """One for each model; empty: all 1."""
    t: float = 0.5
    """SLERP: 0 is the first model, 1 the second."""
    density: float = 0.5
    """Share of the changes that is kept."""
    sign: str = "total"
    scale: float = 1.0
    """The merged change is multiplied by it before it is added to the base."""
    seed: int = 0
    layers: str = ""
    """Stacking: "1:0-16, 2:8-24" is model 1's layers 0 to 15, then model 2's 8 to 23."""
    dtype: str = "base"
    mergekit_method: str = "model_stock"

    def __post_init__(self) -> None:
        if self.method not in MERGES:
            raise ValueError(f"method: {self.method} is none of {', '.join(MERGES)}")
        if not 1 <= len(self.models) <= MOST_MODELS:
            raise ValueError(f"models: name one to {MOST_MODELS} models")
        if self.method == "fold" and len(self.models) != 1:
            raise ValueError("models: one adapter is merged into its base")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError("models: SLERP goes from one model to one other")
        if self.method not in ("fold", "passthrough", "task_arithmetic") and len(self.models) < 2:
            raise ValueError("models: a merge needs two models at least")
        if len(set(self.models)) < len(self.models):
            raise ValueError("models: a model is named twice")
        if self.weights and len(self.weights) != len(self.models):
            raise ValueError("weights: give one for each model, or none")
        numbers = (*self.weights, self.t, self.density, self.scale)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("weights: only finite numbers")
        if self.method not in ("task_arithmetic", "cat") and any(w < 0 for w in self.weights):
            raise ValueError("weights: only task arithmetic and cat take away")
        if self.weights and not any(self.weights):
            raise ValueError("weights: all of them are 0")
        if not 0 <= self.t <= 1:
            raise ValueError("t: must lie in [0, 1]")
        if not 0 < self.density <= 1:
            raise ValueError("density: must lie above 0 and not above 1")
        if self.sign not in SIGNS:
            raise ValueError(f"sign: {self.sign} is none of {', '.join(SIGNS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype} is none of {', '.join(DTYPES)}")
        if self.seed < 0:
            raise ValueError("seed: must not be negative")
        if self.mergekit_method not in MERGEKIT_METHODS:
            raise ValueError(
                f"mergekit_method: {self.mergekit_method} is none of {', '.join(MERGEKIT_METHODS)}"
            )
        if self.method == "passthrough":
            slices_of(self)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, one for each model."""
        return self.weights or (1.0,) * len(self.models)


def slices_of(recipe: MergeRecipe) -> list[tuple[int, int, int]]:
    """Of a stack from below: (number of the model from 0, first layer, the layer behind the last).

    Raises: ValueError that begins with "layers".
    """
    found = []
    for part in recipe.layers.split(","):
        match = SLICE.match(part)
        if match is None:
            raise ValueError(f"layers: {part.strip()!r} is not written as 1:0-16")
        model, first, behind = (int(number) for number in match.groups())
        if not 1 <= model <= len(recipe.models):
            raise ValueError(f"layers: there is no model {model}")
        if first >= behind:
            raise ValueError(f"layers: {part.strip()} holds no layer")
        found.append((model - 1, first, behind))
    unused = set(range(len(recipe.models))) - {model for model, _first, _behind in found}
    if unused:
        raise ValueError(f"layers: model {min(unused) + 1} gives no layer")
    return found


# What a folder is


def settings_of(folder: str | Path, file: str = "adapter_config.json") -> dict[str, Any]:
    """The adapter's or model's own description; empty if there is none."""
    path = Path(folder) / file
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def base_of(folder: str) -> str:
    """The folder of an adapter's base, or its name; empty for a whole model."""
    base = settings_of(folder).get("base_model_name_or_path")
    return at_hand(str(base)) if base else ""


def at_hand(name: str) -> str:
    """The folder of a model: itself, or where the hub's cache keeps what the name was fetched as.

    The name itself where nothing was fetched under it.
    """
    if Path(name).is_dir():
        return name
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    place = cache / f"models--{name.replace('/', '--')}"
    commit = place / "refs" / "main"
    if not commit.is_file():
        return name
    return str(place / "snapshots" / commit.read_text().strip())


def root_of(folder: str) -> str:
    """The whole model beneath an adapter, however many stand on each other; or itself."""
    seen = {folder}
    while base := base_of(folder):
        folder = at_hand(base)
        if folder in seen:
            raise ValueError(f"models: the adapter {folder} names itself as its base")
        seen.add(folder)
    return at_hand(folder)


def with_tokenizer(model: str) -> str:
    """The folder itself, or its base's where an adapter brings no words of its own."""
    return model if any(Path(model).glob("tokenizer*")) else root_of(model)


def scores(folder: str) -> bool:
    """Whether it gives responses a number instead of writing them."""
    if base_of(folder):
        return settings_of(folder).get("task_type") == "SEQ_CLS"
    names = settings_of(folder, "config.json").get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def form_of(folder: str) -> str:
    """ "whole", "lora" (LoRA of any kind), "adapter" (others that change weights), "prompt"."""
    settings = settings_of(folder)
    if not settings:
        return "whole"
    if settings.get("num_virtual_tokens"):
        return "prompt"
    return "lora" if settings.get("peft_type") == "LORA" else "adapter"


def n_layers(folder: str) -> int:
    """How many layers stand on top of each other in a whole model."""
    matches = [LAYER.match(name) for name in tensor_shapes(Path(folder))]
    return 1 + max((int(match[2]) for match in matches if match), default=-1)


def tokenizer_hash(folder: str) -> str:
    """What identifies the words of a tokenizer: its vocabulary, in whatever order it is written.

    Empty where no tokenizer.json is at hand. A chat template may differ: it changes no weights.
    """
    for place in (folder, root_of(folder)):
        path = Path(place) / "tokenizer.json"
        if path.exists():
            whole = json.loads(path.read_text())
            vocabulary = whole["model"].get("vocab", {})
            items = vocabulary.items() if isinstance(vocabulary, dict) else enumerate(vocabulary)
            words = sorted(str(item) for item in items)
            added = sorted((t["id"], t["content"]) for t in whole.get("added_tokens", []))
            return hashlib.sha256(json.dumps([words, added]).encode()).hexdigest()
    return ""


# What speaks against it


def why_not(recipe: MergeRecipe, names: Sequence[str]) -> str:
    """Why these models cannot be merged so, in a sentence that names the field; empty if they can.

    Args: names: what people call the models, in their order.
    """
    known = dict(zip(recipe.models, names, strict=True))
    for folder in recipe.models:
        if reason := _unreadable(folder, known[folder]):
            return reason
    if recipe.base and (reason := _unreadable(recipe.base, "the base")):
        return f"base: {reason.partition(': ')[2]}"
    forms = {folder: form_of(folder) for folder in recipe.models}
    if recipe.method == "fold" and forms[recipe.models[0]] == "whole":
        return f"models: {names[0]} is a whole model already"
    if recipe.method == "cat":
        for folder, form in forms.items():
            if form != "lora":
                return f"models: only LoRA adapters stand side by side; {known[folder]} is none"
            if settings_of(folder).get("use_dora"):
                return (
                    f"models: {known[folder]} is a DoRA, whose change is no product of two "
                    "matrices; choose another method"
                )
    if recipe.method == "mergekit":
        for folder, form in forms.items():
            if form != "whole":
                return f"models: merge the adapter {known[folder]} into its base first"
    kinds = {scores(folder) for folder in recipe.models}
    if len(kinds) > 1:
        return "models: a reward model and a model that writes cannot be merged"
    if reason := _other_words(recipe.models, names):
        return reason
    if len({str(settings_of(m, "made_by.json").get("rope")) for m in recipe.models}) > 1:
        return "models: some were trained with a stretched context and some were not"
    if recipe.method == "passthrough":
        return _why_not_stack(recipe, names)
    bases = {root_of(folder) for folder in recipe.models if base_of(folder)}
    if recipe.method == "cat":  # beside the very weights that they are going to stand on
        bases = {base_of(folder) for folder in recipe.models}
    if len(bases) > 1:
        return "models: the adapters belong to different bases"
    if recipe.method in NEEDS_BASE and not bases and not recipe.base:
        return "base: name the base that the models began with; their changes are counted from it"
    if recipe.base and bases and recipe.base not in bases:
        return "base: the adapters belong to another base"
    return _other_shapes([*recipe.models, *([recipe.base] if recipe.base else [])], known)


def _unreadable(folder: str, name: str) -> str:
    if not Path(folder).is_dir():
        return f"models: {name} is no folder on this machine; fetch it first"
    if form_of(folder) == "prompt":
        return f"models: {name} is a learned prompt, which changes no weights"
    made = settings_of(folder, "made_by.json")
    if made.get("members", 1) > 1:
        return f"models: {name} is an ensemble of {made['members']}, which is more than one model"
    for place in (folder, root_of(folder)):
        if not Path(place).is_dir():
            return f"models: {name} stands on {place}, which is no folder on this machine"
        if not any(Path(place).glob("*.safetensors")):
            return f"models: {name} has no weights as safetensors"
    return ""


def _other_words(models: Sequence[str], names: Sequence[str]) -> str:
    hashes = [tokenizer_hash(folder) for folder in models]
    for name, found in zip(names, hashes, strict=True):
        if found and hashes[0] and found != hashes[0]:
            return (
                f"models: {names[0]} and {name} have different tokenizers: a number of one stands "
                "for another word in the other"
            )
    return ""


def _other_shapes(models: Sequence[str], known: dict[str, str]) -> str:
    """Whether the whole models differ in a tensor; heads, which may be new, are no difference."""
    roots = list(dict.fromkeys(root_of(folder) for folder in models))
    shapes = [{n: s for n, s in tensor_shapes(Path(r)).items() if not is_head(n)} for r in roots]
    for root, found in zip(roots[1:], shapes[1:], strict=True):
        differing = [n for n in shapes[0].keys() | found.keys() if shapes[0].get(n) != found.get(n)]
        if differing:
            name = min(differing)
            return (
                f"models: {known.get(root, Path(root).name)} has other shapes: {name} is "
                f"{found.get(name, 'missing')} there and {shapes[0].get(name, 'missing')} in "
                f"{known.get(roots[0], Path(roots[0]).name)}"
            )
    return ""


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the head, which a model that scores and one that writes have
    each of its own."""
    return name.split(".")[0] in ("lm_head", "score", "classifier")


def _why_not_stack(recipe: MergeRecipe, names: Sequence[str]) -> str:
    widths = []
    for folder, name in zip(recipe.models, names, strict=True):
        shapes = tensor_shapes(Path(root_of(folder)))
        matches = [(LAYER.match(n), s) for n, s in shapes.items()]
        one = {m[3]: s for m, s in matches if m and m[2] == "0"}
        outside = {n: s for n, s in shapes.items() if not LAYER.match(n)}
        widths.append((one, outside))
        there = n_layers(root_of(folder))
        for model, first, behind in slices_of(recipe):
            if recipe.models[model] == folder and behind > there:
                return f"layers: {name} has {there} layers; {first}-{behind} reaches beyond"
    for name, found in zip(names, widths, strict=True):
        if found != widths[0]:
            return f"models: the layers of {names[0]} and {name} have other shapes"
    return ""
