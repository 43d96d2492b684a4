"""Several models become one: adapters and whole models merged tensor by tensor, in float32.

Weights are read through the files' own tables of contents, one tensor at a time, and written as
soon as a shard is full: a merge needs the memory of the largest tensor some times over, and of one
shard.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.ml.data import Messages
from training.ml.loading import (
    MADE_BY,
    UNSCALED,
    holds_scorer,
    load_tokenizer,
    number_format,
    rope_of,
    scaled_config,
)
from training.ml.merge_check import check_rows, compare, works
from training.ml.merge_formulas import linear, merged_change, weighted_sum
from training.ml.merge_recipe import (
    LAYER,
    MergeRecipe,
    OnTensor,
    at_hand,
    base_of,
    is_head,
    root_of,
    scores,
    settings_of,
    slices_of,
    with_tokenizer,
)
from training.ml.mergekit import call_mergekit
from training.ml.stored_weights import PEFT_PREFIX, Adapted, Files, Weights, open_weights

SHARD_BYTES = 1_000_000_000


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
        "pad_token_id": load_tokenizer(with_tokenizer(model)).pad_token_id,
    }


def _copy_tokenizer(model: str, folder: Path) -> None:
    source = Path(with_tokenizer(model))
    patterns = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.jinja")
    for path in [p for pattern in patterns for p in source.glob(pattern)]:
        shutil.copyfile(path, folder / path.name)
    settings = Path(root_of(model)) / "generation_config.json"
    if settings.exists() and not (folder / "adapter_config.json").exists():
        shutil.copyfile(settings, folder / settings.name)


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
