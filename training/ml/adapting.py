"""A base model made trainable by a recipe's method, its optimizer, and its weights on the disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from training.ml import ranks
from training.ml.config import Recipe
from training.ml.galore import GaLoreAdamW
from training.ml.loading import (
    HEADS,
    LANGUAGE_HEADS,
    MADE_BY,
    UNSCALED,
    adapter_config,
    device,
    load_causal,
    load_scorer,
)
from training.ml.methods import IN_4_BITS, WHOLE
from training.ml.settings import is_target, targets

NETWORK = "network.safetensors"


def adapted(base: Any, recipe: Recipe, *, task: str) -> Any:
    """The base with the method's adapter around it, or the base itself where all weights move."""
    if recipe.method in WHOLE:
        return base
    return get_peft_model(base, adapter_config(base, recipe, task=task))


def optimizer_name(recipe: Recipe) -> str:
    """What the trainer calls the optimizer of a run.

    A paged one moves its averages to the machine's memory while the GPU needs the room; beside a
    4-bit base on a GPU alone, for a CPU has no second memory to page to.
    """
    if recipe.method in IN_4_BITS and device().type == "cuda":
        return "paged_adamw_32bit"
    return "adamw_torch"


def optimizer_words(recipe: Recipe) -> str:
    """The optimizer as a run's metrics name it."""
    return "galore_adamw" if recipe.method == "galore" else optimizer_name(recipe)


def optimizer_of(model: Any, recipe: Recipe) -> GaLoreAdamW | None:
    """An optimizer that the trainer does not know by name; None for those that it does."""
    if recipe.method != "galore":
        return None
    wanted = targets(recipe)
    projected = [
        module.weight
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and not _is_head(name)
        and is_target(name, wanted)
    ]
    known = {id(weight) for weight in projected}
    others = [p for p in model.parameters() if id(p) not in known]
    return GaLoreAdamW(
        [
            {"params": projected, "rank": recipe.galore_rank, "gap": recipe.galore_gap},
            {"params": others},
        ],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )


def save_start(model: Any, recipe: Recipe, folder: Path) -> None:
    """Bring LoftQ's matrices to their start, and keep PiSSA's, which its end needs; the other
    methods need neither.

    Every start of a run finds the same matrices anew, so a resumed run may write them again.
    """
    if recipe.method == "loftq":
        base = model.get_base_model()
        load = load_scorer if any(hasattr(base, head) for head in HEADS) else load_causal
        with torch.random.fork_rng():  # a new head is drawn and thrown away
            start_loftq(model, load(recipe.base_model, dtype=recipe.dtype))
    if recipe.method == "pissa" and ranks.is_first():
        model.save_pretrained(folder / "start", save_embedding_layers=False)


@torch.no_grad()
def start_loftq(model: Any, whole: Any) -> None:
    """Matrices that give a base in 4 bits back what it lost: of W − Q the main directions.

    With them the layer says Q + s·BA, s = alpha / rank, the nearest of that rank to W. (PEFT has
    this too, but for a GPU alone, and for s = 1.)

    Args: whole: the same base with its weights as they are.
    Source: Li et al. 2023, "LoftQ", arXiv:2310.08659, eq. 6 and 7, one round of its algorithm 1.
    """
    from bitsandbytes.functional import dequantize_4bit  # for methods in 4 bits alone

    originals = dict(whole.named_modules())
    for name, layer in model.get_base_model().named_modules():
        if "default" not in getattr(layer, "lora_A", ()):
            continue
        original = originals[name].weight
        if type(originals[name]).__name__ == "Conv1D":  # it keeps its weight lying down
            original = original.T
        rounded = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        left, sizes, right = torch.linalg.svd((original - rounded).float(), full_matrices=False)
        rank, root = layer.r["default"], sizes[: layer.r["default"]].sqrt()
        layer.lora_A["default"].weight.copy_(root[:, None] * right[:rank])
        layer.lora_B["default"].weight.copy_(left[:, :rank] * root / layer.scaling["default"])


def save_network(model: Any, recipe: Recipe, checkpoint: Path) -> None:
    """Into a P-tuning checkpoint, the network that makes its vectors: PEFT keeps these alone."""
    if recipe.method == "ptuning":
        save_file(_network(model), checkpoint / NETWORK)


def load_network(model: Any, recipe: Recipe, checkpoint: Path) -> None:
    """What save_network has written, back into the model in training."""
    if recipe.method == "ptuning":
        saved = load_file(checkpoint / NETWORK)
        for name, parameter in _network(model).items():
            parameter.data.copy_(saved[name])


def _network(model: Any) -> dict[str, Any]:
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def save_model(model: Any, recipe: Recipe, folder: Path) -> None:
    """The trained weights as safetensors in `folder`/model, and the method that made them.

    PiSSA's are turned into a LoRA adapter of twice the rank over the untouched base, so that
    nobody who loads them has to take the base apart in the same way first.
    """
    place = folder / "model"
    weights = ranks.whole_weights(model)
    if not ranks.is_first():
        return
    if isinstance(model, PeftModel):
        model.save_pretrained(place, save_embedding_layers=False, state_dict=weights)
    else:
        model.save_pretrained(place, state_dict=weights)
    if recipe.method == "pissa":
        _as_lora(place, folder / "start")
    made: dict[str, Any] = {"method": recipe.method}
    if recipe.rope_scaling != UNSCALED[0]:
        made["rope"] = (recipe.rope_scaling, recipe.rope_factor)
    (place / MADE_BY).write_text(json.dumps(made))


def save_members(folder: Path, n: int) -> None:
    """One model in `folder`/model of the members that were trained under `folder`/members: the
    first one's files, the others in folders of their own beside them."""
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "members" / "0" / "model", place)
    for member in range(1, n):
        source = folder / "members" / str(member) / "model"
        own = place / f"member-{member}"
        own.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(source / name, own / name)
    made = json.loads((place / MADE_BY).read_text())
    (place / MADE_BY).write_text(json.dumps(made | {"members": n}))


def _as_lora(place: Path, start: Path) -> None:
    """The saved matrices A and B of PiSSA, and the start's A₀ and B₀ behind them.

    PiSSA's base is W − s·B₀A₀, so its weight W + s·(BA − B₀A₀) is a LoRA of twice the rank on W,
    with matrices [A; A₀] and [B, −B₀] and the same s = alpha / rank. (PEFT converts too, but loses
    the layers trained whole.)
    """
    weights, before = (load_file(p / "adapter_model.safetensors") for p in (place, start))
    for name, tensor in weights.items():
        if "lora_A" in name:
            weights[name] = torch.cat([tensor, before[name]], dim=0)  # (2 rank, inputs)
        elif "lora_B" in name:
            weights[name] = torch.cat([tensor, -before[name]], dim=1)  # (outputs, 2 rank)
    save_file(weights, place / "adapter_model.safetensors", metadata={"format": "pt"})
    path = place / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    path.write_text(json.dumps(config | {"init_lora_weights": True}, indent=2))


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] in (*HEADS, *LANGUAGE_HEADS)
