"""Several models become one: adapters and whole models merged tensor by tensor, in float32.

Every method works on changes ΔW, what a model learned beside its base, never on the matrices A and
B of adapters by themselves: (B₁ + B₂)(A₁ + A₂) holds the cross terms B₁A₂ and B₂A₁, which nobody
learned. Weights are read through the files' own tables of contents, one tensor at a time, and
written as soon as a shard is full: a merge needs the memory of the largest tensor some times over,
and of one shard.
"""

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.ml.data import Messages, chat_tokens
from training.ml.loading import (
    MADE_BY,
    UNSCALED,
    holds_scorer,
    load_causal,
    load_scorer,
    load_tokenizer,
    made_by,
    number_format,
    rope_of,
    scaled_config,
)
from training.ml.merge_recipe import (
    LAYER,
    MergeRecipe,
    at_hand,
    base_of,
    is_head,
    root_of,
    scores,
    settings_of,
    slices_of,
)
from training.ml.methods import IN_4_BITS
from training.ml.weights import WORD_LAYERS

SHARD_BYTES = 1_000_000_000
N_PROMPTS = 32
LAST_POSITIONS = 8
"""Of each prompt, the positions whose logits are compared: all of them would be gigabytes."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far a logit may be off, as a share of the largest: rounding, and nothing else. A weight in
bfloat16 keeps eight bits, so each product is off by up to 1/256, and layers add up."""
FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What safetensors calls them."""
PEFT_PREFIX = "base_model.model."

OnTensor = Callable[[int, int], None]
"""Told (tensors done, all of them); raises to end the merge."""


class NotTheSame(ValueError):
    """The merged model gives other logits than what it was merged from; nothing was saved."""


# The formulas, on one tensor


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢθᵢ / Σ wᵢ.

    Source: model soups, Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """
    return weighted_sum(tensors, [w / sum(weights) for w in weights])


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢτᵢ of changes: task arithmetic, before it is added to θ₀.

    Source: Ilharco et al. 2023, arXiv:2212.04089, section 2; a negative weight forgets.
    """
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """[sin((1−t)Ω)·v₀ + sin(tΩ)·v₁] / sin Ω, Ω the angle between them.

    The angle is that of the normalised tensors, read as one long vector each; it is applied to the
    tensors as they are. A straight line where |cos Ω| is above 0.9995 or a tensor is all zeros.
    (1,0,0) and (0,2,0) at t = 0.25 give (0.923880, 0.765367, 0).

    Source: Shoemake 1985, section 3.3; the rule is mergekit's (slerp.py).
    """
    length = first.norm() * second.norm()
    cosine = float((first * second).sum() / length) if length > 0 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    near, far = math.sin((1 - t) * angle), math.sin(t * angle)
    return (near * first + far * second) / math.sin(angle)


def trim(change: Tensor, density: float) -> Tensor:
    """The change with the share `density` of its numbers that is largest in size; zero elsewhere.

    Numbers as large as the smallest one kept are kept too.
    Source: TIES, Yadav et al. 2023, arXiv:2306.01708, section 4, step 1; here by tensor.
    """
    n_kept = max(1, int(density * change.numel()))
    if n_kept >= change.numel():
        return change
    sizes = change.abs().flatten()
    least = sizes.kthvalue(sizes.numel() - n_kept + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def drop(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each number kept with probability `density` and divided by it, zero otherwise: so the
    expected change stays what it is.

    Source: DARE, Yu et al. 2024, arXiv:2311.03099, eq. 1 and 2; their drop rate is 1 − density.
    """
    kept = torch.rand(change.shape, generator=generator) < density
    return torch.where(kept, change / density, 0.0)


def agreeing_mean(changes: Sequence[Tensor], weights: Sequence[float], sign: str) -> Tensor:
    """For each number: the sign that the models elect, and the weighted mean of those that bear it.

    Args: sign: "total" elects by Σ wᵢτᵢ, as the paper does; "count" by how many weigh on either
        side. Where the election is even, the mean of those above zero for "count", zero for
        "total".
    Source: TIES, Yadav et al. 2023, arXiv:2306.01708, section 4, steps 2 and 3; zeros take no part.
    """
    voices = changes if sign == "total" else [change.sign() for change in changes]
    elected = weighted_sum(voices, weights).sign()
    if sign == "count":
        elected = torch.where(elected == 0, 1.0, elected)
    total, weight_of = torch.zeros_like(elected), torch.zeros_like(elected)
    for change, weight in zip(changes, weights, strict=True):
        agrees = (change.sign() == elected) & (change != 0)
        total += torch.where(agrees, weight * change, 0.0)
        weight_of += torch.where(agrees, weight, 0.0)
    return torch.where(weight_of > 0, total / weight_of.clamp(min=1e-12), 0.0)


def merged_change(recipe: MergeRecipe, name: str, changes: Sequence[Tensor]) -> Tensor:
    """What the recipe makes of the changes of one tensor, before it is added to the base.

    Args: name: of the tensor; DARE draws anew for each, so that their order decides nothing.
    """
    weights = recipe.shares
    if recipe.method == "fold":
        return changes[0]
    if recipe.method == "linear":
        return linear(changes, weights)
    if recipe.method == "slerp":
        return slerp(changes[0], changes[1], recipe.t)
    if recipe.method.startswith("dare"):
        drawn = [_generator(recipe.seed, name, place) for place in range(len(changes))]
        changes = [drop(c, recipe.density, g) for c, g in zip(changes, drawn, strict=True)]
    elif recipe.method == "ties":
        changes = [trim(change, recipe.density) for change in changes]
    if recipe.method == "task_arithmetic":
        return recipe.scale * weighted_sum(changes, weights)
    if recipe.method == "dare_linear":
        return recipe.scale * linear(changes, weights)
    return recipe.scale * agreeing_mean(changes, weights, recipe.sign)


def _generator(seed: int, name: str, place: int) -> torch.Generator:
    words = f"{seed} {place} {name}".encode()
    number = 0
    for byte in words:  # the same on every machine, unlike hash()
        number = (number * 257 + byte) % (2**61 - 1)
    return torch.Generator().manual_seed(number)


# Weights, one tensor at a time


class Weights(Protocol):
    """Tensors by the names of the base's files."""

    names: list[str]

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32."""


class Files:
    """A whole model's safetensors; weights stored in 4 bits are turned back into numbers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._opened: dict[str, Any] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            opened: Any = safe_open(path, framework="pt")
            self._opened |= dict.fromkeys(opened.keys(), opened)
        # Beside a weight in 4 bits stand its scales, under its name with more behind it.
        self.names = [n for n in self._opened if not re.search(r"\.(weight|bias)\.", n)]

    def tensor(self, name: str) -> Tensor:
        stored: Tensor = self._opened[name].get_tensor(name)
        parts = [n for n in self._opened if n.startswith(f"{name}.")]
        if parts:
            stored = self._from_4_bits(stored, parts)
        return stored.float()

    def dtype(self, name: str) -> torch.dtype:
        """The number format of a stored tensor; float32 for one that is packed."""
        return FORMATS.get(self._opened[name].get_slice(name).get_dtype(), torch.float32)

    def _from_4_bits(self, stored: Tensor, parts: list[str]) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict(
            {part: self._opened[part].get_tensor(part) for part in parts},
            device=torch.device("cpu"),
        )
        turned: Tensor = dequantize_4bit(stored, state)
        return turned


class Rounded:
    """A base as QLoRA holds it: linear layers in 4 bits and back, all else as it is.

    As training/ml/loading.py loads it, on a machine of this kind: the adapter was learned beside
    these numbers, so it is merged into them.
    """

    def __init__(self, base: Weights, *, turned: bool) -> None:
        self.base, self.names, self.turned = base, base.names, turned

    def tensor(self, name: str) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        tensor = self.base.tensor(name)
        if tensor.ndim != 2 or not name.endswith(".weight") or _is_of_words(name):
            return tensor
        numbers = number_format("auto")
        held = tensor.T if self.turned else tensor
        packed, state = quantize_4bit(
            held.to(numbers).contiguous(), quant_type="nf4", compress_statistics=True
        )
        back: Tensor = dequantize_4bit(packed, state).float()
        return back.T if self.turned else back


def _is_of_words(name: str) -> bool:
    return any(word in name for word in WORD_LAYERS)


class Adapted:
    """A base with an adapter: W + ΔW."""

    def __init__(self, folder: str) -> None:
        base = open_weights(base_of(folder))
        self.settings = settings_of(folder)
        self.turned = bool(self.settings.get("fan_in_fan_out"))
        rounded = made_by(folder) in IN_4_BITS
        self.base: Weights = Rounded(base, turned=self.turned) if rounded else base
        path = Path(folder) / "adapter_model.safetensors"
        stored = load_file(path)
        self.stored = {key.removeprefix(PEFT_PREFIX): stored[key].float() for key in stored}
        self.parts = self._by_tensor(folder)
        self.names = [*base.names, *(name for name in self.parts if name not in base.names)]

    def tensor(self, name: str) -> Tensor:
        if name not in self.base.names:
            return self.parts[name]["whole"]
        weight = self.base.tensor(name)
        change = self.change(name, weight)
        return weight if change is None else weight + change

    def change(self, name: str, weight: Tensor) -> Tensor | None:
        """What the adapter adds to this weight; None where it adds nothing.

        LoRA: s·BA with s = alpha / r, or alpha / √r of rsLoRA (Hu et al. 2021, arXiv:2106.09685,
        section 4.1; Kalajdzievski 2023, arXiv:2312.03732). DoRA: m·(W + s·BA)/‖W + s·BA‖ − W, the
        length of each output's row (Liu et al. 2024, arXiv:2402.09353, eq. 5). (IA)³: W·l − W
        (Liu et al. 2022, arXiv:2205.05638, section 3.3). Layers trained whole: W′ − W.
        """
        parts = self.parts.get(name)
        if parts is None:
            return None
        if "whole" in parts:
            return parts["whole"] - weight
        if "ia3_l" in parts:
            factor = parts["ia3_l"].T if self.turned else parts["ia3_l"]
            factor = factor.flatten() if weight.ndim == 1 else factor
            return weight * factor - weight
        product = parts["lora_B.weight"] @ parts["lora_A.weight"]  # (outputs, inputs)
        change = self.scale(name, len(parts["lora_A.weight"])) * product
        if "lora_magnitude_vector" in parts:
            plain = weight.T if self.turned else weight
            moved = plain + change
            length = moved.norm(dim=1, keepdim=True)  # of each output
            change = parts["lora_magnitude_vector"].reshape(-1, 1) * moved / length - plain
        return change.T if self.turned else change

    def scale(self, name: str, rank: int) -> float:
        """What the product of the two matrices of a layer is multiplied by."""
        alpha = self.settings["lora_alpha"]
        layer = name.removesuffix(".weight")
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                alpha = value
        return float(alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))

    def _by_tensor(self, folder: str) -> dict[str, dict[str, Tensor]]:
        """The adapter's tensors by the name of the base's tensor that they change.

        Raises: ValueError for a kind of adapter that is not known here.
        """
        found: dict[str, dict[str, Tensor]] = {}
        kinds = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")
        for key, tensor in self.stored.items():
            kind = next((kind for kind in kinds if key.endswith(f".{kind}")), "whole")
            layer = key.removesuffix(f".{kind}")
            name = self._in_base(
                key if kind == "whole" else f"{layer}.weight", is_new=kind == "whole"
            )
            if name not in self.base.names and not is_head(name):
                raise ValueError(f"{folder} holds {key}, which this cannot merge")
            found.setdefault(name, {})[kind] = tensor
            if kind == "ia3_l" and tensor.shape[-1] == 1:  # of outputs: the bias is scaled as well
                bias = self._in_base(f"{layer}.bias", is_new=True)
                if bias in self.base.names:
                    found.setdefault(bias, {})[kind] = tensor
        return found

    def _in_base(self, name: str, *, is_new: bool) -> str:
        """The base's own name of a tensor: older files leave out the model's first word."""
        for wanted in (name, name.partition(".")[2]):
            if wanted in self.base.names:
                return wanted
        if not is_new:
            raise ValueError(f"the adapter changes {name}, which the base's files do not hold")
        return name


def open_weights(folder: str) -> Weights:
    """The weights that a model computes with, of a whole model or of an adapter over its base."""
    folder = at_hand(folder)
    return Adapted(folder) if base_of(folder) else Files(folder)


# A merge


def merge(
    recipe: MergeRecipe,
    folder: Path,
    on_tensor: OnTensor = lambda done, total: None,
    prompts: Sequence[Messages] = (),
    *,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write the merged model into `folder`, which must not exist; it is there whole or not at all.

    Args: prompts: conversations for the check; what is missing of 32 is drawn at random.
    Returns: check (see compare and works), bytes, seconds, and for mergekit its last lines.
    Raises: NotTheSame; ValueError for models that do not fit each other; what `on_tensor` raises.
    """
    began = time.monotonic()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an attempt that was stopped: begin anew
    part.mkdir(parents=True)
    found: dict[str, Any] = {}
    try:
        if recipe.method == "mergekit":
            found["said"] = call_mergekit(recipe, part, on_tensor)
        elif recipe.method == "cat":
            concatenate(recipe, part)
        elif recipe.method == "passthrough":
            stack(recipe, part, on_tensor, shard_bytes)
        else:
            write_merged(recipe, part, on_tensor, shard_bytes)
        _copy_tokenizer(recipe.models[0], part)
        rows = check_rows(recipe.models[0], prompts)
        if recipe.method == "fold":
            found["check"] = compare(recipe.models[0], str(part), rows)
        else:
            found["check"] = works(str(part), rows)
        found["bytes"] = sum(path.stat().st_size for path in part.iterdir())
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return found | {"seconds": time.monotonic() - began}


def write_merged(recipe: MergeRecipe, folder: Path, on_tensor: OnTensor, shard_bytes: int) -> None:
    """The merged tensors and their config into an empty folder, by every method on changes."""
    sources = [open_weights(model) for model in recipe.models]
    base = _base_weights(recipe, sources)
    # Of a whole model if one is among them: its head, and a config that knows it.
    like = next((m for m in recipe.models if not base_of(m)), recipe.models[0])
    files = Files(root_of(like))
    scorer = scores(recipe.models[0])
    names = files.names
    if scorer:
        heads = [n for n in open_weights(like).names if is_head(n) and not n.startswith("lm_head")]
        names = [*(n for n in names if not is_head(n)), *heads]

    def merged() -> Iterator[tuple[str, Tensor]]:
        for done, name in enumerate(names):
            on_tensor(done, len(names))
            dtype = files.dtype(name) if name in files.names else torch.float32
            yield name, _merged_tensor(recipe, name, base, sources).to(_saved_as(recipe, dtype))
        on_tensor(len(names), len(names))

    write_shards(merged(), folder, shard_bytes)
    config = _config_of(files.folder, recipe)
    if scorer and not holds_scorer(files.folder):
        config |= _scorer_config(config, recipe.models[0])
    _write_config(config, recipe, folder)


def _base_weights(recipe: MergeRecipe, sources: Sequence[Weights]) -> Weights | None:
    """What changes are counted from. Adapters that were all learned beside the same 4-bit base are
    merged into that; with others among them, their changes go onto the base as it is stored."""
    adapters = [source for source in sources if isinstance(source, Adapted)]
    if recipe.base or not adapters:
        return Files(at_hand(recipe.base)) if recipe.base else None
    beside = {base_of(model) for model in recipe.models}
    if len(beside) > 1:  # a whole model among them, or adapters of adapters
        return Files(root_of(next(model for model in recipe.models if base_of(model))))
    if len({type(adapter.base) for adapter in adapters}) == 1:
        return adapters[0].base
    return open_weights(beside.pop())


def _merged_tensor(
    recipe: MergeRecipe, name: str, base: Weights | None, sources: Sequence[Weights]
) -> Tensor:
    if base is None:  # whole models without a base: their weights themselves
        return merged_change(recipe, name, [source.tensor(name) for source in sources])
    if name not in base.names:
        # A head that each model made for itself: there is no start to count changes from.
        heads = [source.tensor(name) for source in sources]
        return linear(heads, [abs(share) for share in recipe.shares])
    weight = base.tensor(name)
    changes = [_change(source, base, name, weight) for source in sources]
    if all(change is None for change in changes):
        return weight
    there = [torch.zeros_like(weight) if change is None else change for change in changes]
    return weight + merged_change(recipe, name, there)


def _change(source: Weights, base: Weights, name: str, weight: Tensor) -> Tensor | None:
    """What a model learned beside `weight`."""
    if isinstance(source, Adapted) and (
        base is source.base or not isinstance(source.base, Adapted)
    ):
        return source.change(name, weight)
    change = source.tensor(name) - weight
    return change if bool(change.any()) else None


def _saved_as(recipe: MergeRecipe, stored: torch.dtype) -> torch.dtype:
    return stored if recipe.dtype == "base" else number_format(recipe.dtype)


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """Tensors into safetensors files of about `shard_bytes`, with the index that loaders read."""
    place_of: dict[str, int] = {}
    held: dict[str, Tensor] = {}
    n_shards, n_bytes, total = 0, 0, 0

    def write() -> None:
        nonlocal n_shards, n_bytes
        n_shards += 1
        place_of.update(dict.fromkeys(held, n_shards))
        save_file(held, folder / f"shard-{n_shards}.safetensors", metadata={"format": "pt"})
        held.clear()
        n_bytes = 0

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and n_bytes + size > shard_bytes:
            write()
        held[name] = tensor.contiguous()
        n_bytes, total = n_bytes + size, total + size
    write()
    if n_shards == 1:
        (folder / "shard-1.safetensors").rename(folder / "model.safetensors")
        return
    final = {n: f"model-{n:05}-of-{n_shards:05}.safetensors" for n in range(1, n_shards + 1)}
    for number, file in final.items():
        (folder / f"shard-{number}.safetensors").rename(folder / file)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: final[number] for name, number in place_of.items()},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _config_of(folder: str, recipe: MergeRecipe) -> dict[str, Any]:
    """The base's description, with the stretched context that an adapter was trained with."""
    config = settings_of(folder, "config.json")
    config.pop("quantization_config", None)
    stretched = rope_beside(recipe.models[0])
    if stretched != UNSCALED:
        text = scaled_config(folder, stretched).get_text_config()
        config.pop("rope_scaling", None)
        config["rope_parameters"] = text.rope_parameters
        config["max_position_embeddings"] = text.max_position_embeddings
    return config


def rope_beside(model: str) -> tuple[str, float]:
    """Kind and factor of the stretched context that an adapter, or one beneath it, stands on."""
    while base := base_of(model):
        if (found := rope_of(model)) != UNSCALED:
            return found
        model = base
    return UNSCALED  # a whole model's config says it itself


def _write_config(config: dict[str, Any], recipe: MergeRecipe, folder: Path) -> None:
    if recipe.dtype != "base":
        config.pop("torch_dtype", None)
        config["dtype"] = recipe.dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _scorer_config(config: dict[str, Any], model: str) -> dict[str, Any]:
    """What a base's config says once the model has a score head in the place of its words."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    return {
        "architectures": [NAMES[config["model_type"]]],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": load_tokenizer(_with_tokenizer(model)).pad_token_id,
    }


def _with_tokenizer(model: str) -> str:
    """The folder itself, or its base's where an adapter brings no words of its own."""
    return model if any(Path(model).glob("tokenizer*")) else root_of(model)


def _copy_tokenizer(model: str, folder: Path) -> None:
    source = Path(_with_tokenizer(model))
    patterns = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.jinja")
    for path in [p for pattern in patterns for p in source.glob(pattern)]:
        shutil.copyfile(path, folder / path.name)
    settings = Path(root_of(model)) / "generation_config.json"
    if settings.exists() and not (folder / "adapter_config.json").exists():
        shutil.copyfile(settings, folder / settings.name)


# Adapters side by side, layers on top of each other, and the program of others


def concatenate(recipe: MergeRecipe, folder: Path) -> None:
    """One LoRA adapter with the weighted sum of all changes, exactly: A's below each other, B's
    beside each other, each B times wᵢsᵢ.

    [w₁s₁B₁, w₂s₂B₂]·[A₁; A₂] = Σ wᵢ·sᵢBᵢAᵢ without a cross term: the "cat" of PEFT's
    `add_weighted_adapter`. Layers trained whole become the base's and the weighted sum of changes.
    """
    sources = [Adapted(model) for model in recipe.models]
    if len({type(source.base) for source in sources}) > 1:
        raise ValueError("models: some were learned beside a 4-bit base and some were not")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in dict.fromkeys(name for source in sources for name in source.parts):
        rows, columns = [], []
        for source, weight in zip(sources, recipe.shares, strict=True):
            parts = source.parts.get(name, {})
            if "lora_A.weight" in parts:
                rank = len(parts["lora_A.weight"])
                rows.append(parts["lora_A.weight"])
                columns.append(weight * source.scale(name, rank) * parts["lora_B.weight"])
        layer = f"{PEFT_PREFIX}{name.removesuffix('.weight')}"
        if rows:
            tensors[f"{layer}.lora_A.weight"] = torch.cat(rows)  # (all ranks, inputs)
            tensors[f"{layer}.lora_B.weight"] = torch.cat(columns, dim=1)  # (outputs, all ranks)
            ranks[name.removesuffix(".weight")] = sum(map(len, rows))
        elif name in sources[0].base.names:
            weight0 = sources[0].base.tensor(name)
            there = [source.change(name, weight0) for source in sources]
            moved = [torch.zeros_like(weight0) if c is None else c for c in there]
            tensors[f"{PEFT_PREFIX}{name}"] = weight0 + weighted_sum(moved, recipe.shares)
        else:
            heads = [source.parts[name]["whole"] for source in sources]
            tensors[f"{PEFT_PREFIX}{name}"] = linear(heads, [abs(w) for w in recipe.shares])
    rank = max(ranks.values())
    settings = sources[0].settings | {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {layer: n for layer, n in ranks.items() if n != rank},
        "alpha_pattern": {layer: n for layer, n in ranks.items() if n != rank},
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in ranks}),
        "modules_to_save": sorted(
            {m for s in sources for m in (s.settings.get("modules_to_save") or [])}
        )
        or None,
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
    made = Path(recipe.models[0]) / MADE_BY
    if made.exists():
        shutil.copyfile(made, folder / MADE_BY)


def stack(recipe: MergeRecipe, folder: Path, on_tensor: OnTensor, shard_bytes: int) -> None:
    """Slices of layers on top of each other; the words come from the lowest slice's model, the last
    norm and the head from the highest one's.

    Source: depth up-scaling, Kim et al. 2023, arXiv:2312.15166, section 3.1; mergekit's
    "passthrough".
    """
    sources = [open_weights(model) for model in recipe.models]
    slices = slices_of(recipe)
    order = [(model, layer) for model, first, behind in slices for layer in range(first, behind)]
    lowest, highest = sources[slices[0][0]], sources[slices[-1][0]]
    plan: list[tuple[str, Weights, str]] = []
    for name in lowest.names:
        if not LAYER.match(name):
            is_low = "embed" in name or "wte" in name or "wpe" in name
            plan.append((name, lowest if is_low else highest, name))
    for place, (model, layer) in enumerate(order):
        for name in sources[model].names:
            match = LAYER.match(name)
            if match and int(match[2]) == layer:
                plan.append((f"{match[1]}.{place}.{match[3]}", sources[model], name))
    files = Files(root_of(recipe.models[0]))

    def stacked() -> Iterator[tuple[str, Tensor]]:
        for done, (name, source, taken) in enumerate(plan):
            on_tensor(done, len(plan))
            dtype = files.dtype(taken) if taken in files.names else torch.float32
            # A copy: safetensors refuses two layers that are one place in memory.
            yield name, source.tensor(taken).to(_saved_as(recipe, dtype), copy=True)
        on_tensor(len(plan), len(plan))

    write_shards(stacked(), folder, shard_bytes)
    config = _config_of(files.folder, recipe)
    key = next(k for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config)
    for name, value in config.items():  # a kind of layer for each of them
        if isinstance(value, list) and len(value) == config[key] and "layer" in name:
            config[name] = [value[layer] for _model, layer in order]
    config[key] = len(order)
    _write_config(config, recipe, folder)


def mergekit_program() -> str | None:
    """Where the program mergekit is, if it is installed."""
    return shutil.which("mergekit-yaml")


def mergekit_config(recipe: MergeRecipe) -> dict[str, Any]:
    """The configuration that mergekit reads, of the settings that its method knows."""
    method = recipe.mergekit_method
    parameters: dict[str, Any] = {}
    if method in ("slerp", "nuslerp"):
        parameters["t"] = recipe.t
    models = []
    for folder, weight in zip(recipe.models, recipe.shares, strict=True):
        settings: dict[str, Any] = {}
        if method not in ("slerp", "model_stock", "karcher"):
            settings["weight"] = weight
        if method in ("ties", "dare_linear", "dare_ties", "della", "della_linear") or (
            method.startswith("breadcrumbs")
        ):
            settings["density"] = recipe.density
        models.append({"model": folder} | ({"parameters": settings} if settings else {}))
    config: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "float32"}
    if recipe.base or method == "slerp":
        config["base_model"] = recipe.base or recipe.models[0]
    if parameters:
        config["parameters"] = parameters
    out = {"base": None, "float32": "float32", "bfloat16": "bfloat16"}[recipe.dtype]
    if out:
        config["out_dtype"] = out
    return config


def call_mergekit(recipe: MergeRecipe, folder: Path, on_tensor: OnTensor) -> str:
    """Have mergekit write the model; its last lines.

    Raises: ValueError if it is not installed or fails; what `on_tensor` raises ends it.
    """
    program = mergekit_program()
    if program is None:
        raise ValueError(
            "mergekit is not installed on this worker: pip install mergekit in an environment of "
            "its own, and put mergekit-yaml on the PATH"
        )
    plan, log = folder / "mergekit.yml", folder / "mergekit.log"
    plan.write_text(json.dumps(mergekit_config(recipe), indent=2))  # JSON is YAML
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - a program of this machine, no shell
            [program, str(plan), str(folder)],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            while process.poll() is None:
                on_tensor(0, 1)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    lines = log.read_text(errors="replace").splitlines()[-5:]
    log.unlink()
    if process.returncode or not any(folder.glob("*.safetensors")):
        raise ValueError(f"mergekit failed: {' '.join(lines)[-500:] or process.returncode}")
    return "\n".join(lines)


# Is it the same model?


def check_rows(model: str, prompts: Sequence[Messages]) -> list[list[int]]:
    """32 rows of word ids: prompts, cut to 128 tokens, and then words drawn at random."""
    tokenizer = load_tokenizer(_with_tokenizer(model))
    rows = [chat_tokens(tokenizer, p, open_answer=True)[-128:] for p in prompts[:N_PROMPTS]]
    draw = torch.Generator().manual_seed(0)
    words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    while len(rows) < N_PROMPTS:
        places = torch.randint(len(words), (16,), generator=draw)
        rows.append([words[place] for place in places])
    return rows


def compare(source: str, merged: str, rows: list[list[int]]) -> dict[str, Any]:
    """How far the logits of a merged model are from those of its adapter over its base.

    Returns: largest (difference), tolerance, both in logits; same_words, of how many positions the
        likeliest word is the same, as {"value", "n"}; n rows.
    Raises: NotTheSame beyond the tolerance.
    """
    wanted = logits_of(source, rows)
    found = logits_of(merged, rows)
    largest = max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
    dtype = Files(merged).dtype(Files(merged).names[0])
    scale = max(float(a.abs().max()) for a in wanted)
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) * scale
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(wanted, found, strict=True)]
    n = sum(s.numel() for s in same)
    if not largest <= tolerance:  # also where one of them is no number
        raise NotTheSame(
            f"the merged model's logits are off by up to {largest:.4g} on {len(rows)} prompts, and "
            f"{tolerance:.4g} would be rounding; nothing was saved"
        )
    return {
        "n": len(rows),
        "largest": largest,
        "tolerance": tolerance,
        "same_words": {"value": float(sum(int(s.sum()) for s in same) / n), "n": n},
    }


def works(merged: str, rows: list[list[int]]) -> dict[str, Any]:
    """That a merged model loads and gives numbers. Raises: NotTheSame."""
    found = logits_of(merged, rows)
    if not all(bool(logits.isfinite().all()) for logits in found):
        raise NotTheSame("the merged model gives logits that are no numbers; nothing was saved")
    return {"n": len(rows), "largest_logit": max(float(logits.abs().max()) for logits in found)}


def logits_of(name: str, rows: list[list[int]]) -> list[Tensor]:
    """Logits of each row's last positions, (positions, words) or (1, scores), one row at a time.

    An adapter stays beside its base here, as it was trained: that is what merging is held against.
    """
    model, scored = _load(name).eval(), scores(name)
    where = next(model.parameters()).device
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row], device=where)).logits
            found.append((logits if scored else logits[0, -LAST_POSITIONS:]).float().cpu())
    return found


def _load(name: str) -> Any:
    load = load_scorer if scores(name) else load_causal
    if not base_of(name):
        return load(name)
    base = load(base_of(name), method=made_by(name), rope=rope_of(name))
    return PeftModel.from_pretrained(base, name)
