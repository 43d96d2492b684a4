"""How large a model is: read from its config.json and the headers of its weights, without torch."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.ml.weights import WORD_LAYERS, linear_layers, tensor_shapes


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a config tells of a decoder or encoder: enough to count every number in it."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    gated: bool
    """The MLP has a gate beside its way up: Llama and most that came after it."""
    activation: str
    norms: int
    """Numbers in the norm layers."""
    linears: tuple[tuple[str, int, int], ...]
    """(path, inputs, outputs) of one layer's linear layers: what adapters and four bits reach."""
    embeddings: int
    """Numbers in the tables of words and positions."""
    tied: bool
    """The head that tells words is the table of words."""
    biases: int = 0
    head_norms: bool = False
    """Queries and keys pass through norms of their own, head by head."""
    stack: str = "layers"
    """What the list of layers is called in a layer's path."""
    file_bytes: int = 0
    """Of the weights on the disk, where they are there."""

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(d_in * d_out for _name, d_in, d_out in self.linears)

    @property
    def language_head(self) -> int:
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All numbers, with the language head."""
        others = self.embeddings + self.language_head + self.norms + self.biases
        return self.linear_weights + others


MOST = 2**31
"""No number of a config reaches it: contexts, the largest, stand at some ten million tokens."""
MOST_LAYERS = 10_000
"""Every layer is looked at by itself."""
NAMED_BY_CONFIG = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
    *("gpt2", "gpt_neox"),
)
"""Kinds of models whose layers bear the names that `architecture` gives them; others may not."""


def named_layers(name: str | Path) -> dict[str, list[int]]:
    """Paths and shapes of the linear layers of a folder or hub id: by the headers of its weights,
    else by its config alone; of an adapter, its base's. Empty where neither tells.

    Raises: ValueError if a file of weights is none.
    """
    try:
        folder = model_folder(str(name))
    except ValueError:
        return {}
    if layers := linear_layers(folder):
        return layers
    try:
        found = architecture(_json(folder / "config.json"))
    except ValueError:
        return {}
    if found.name not in NAMED_BY_CONFIG:
        return {}
    return {
        f"{found.stack}.{layer}.{end}": [d_out, d_in]
        for layer in range(found.layers)
        for end, d_in, d_out in found.linears
    }


def model_folder(name: str) -> Path:
    """The folder of a local model or of a hub id in the hub's cache; of an adapter, its base's.

    Raises: ValueError if there is none on this machine.
    """
    path = Path(name)
    if not path.is_dir():
        home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
        cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
        found = []
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            folder = cache / f"models--{name.replace('/', '--')}" / "snapshots"
            found = sorted(folder.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise ValueError(f"the config of {name} is not on this machine")
        return found[-1].parent
    adapter = path / "adapter_config.json"
    if adapter.is_file() and not (path / "config.json").is_file():
        return model_folder(str(_json(adapter).get("base_model_name_or_path")))
    if not (path / "config.json").is_file():
        raise ValueError(f"{name} holds no model (no config.json)")
    return path


def read_architecture(name: str | Path) -> Architecture:
    """The architecture of a folder or hub id, from its config.json and, where there are weights,
    the headers of its safetensors files.

    Raises: ValueError if there is no config, or it does not say how large the model is.
    """
    folder = model_folder(str(name))
    config = _json(folder / "config.json")
    found = architecture(config)
    shapes = tensor_shapes(folder)
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not shapes:
        return found
    return replace(_counted(found, shapes), file_bytes=files)


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Raises: ValueError naming the key that is missing, or is no number that a model can have.
    """
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        raise ValueError(f"the model's config: text_config must hold settings, not {_short(text)}")
    kind = str(text.get("model_type", ""))
    hidden = _whole(text, "hidden_size", "n_embd", "d_model")
    layers = _whole(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _whole(text, "num_attention_heads", "n_head", "num_heads")
    vocabulary = _whole(text, "vocab_size")
    if layers > MOST_LAYERS:
        raise ValueError(f"the model's config: more than {MOST_LAYERS:,} layers are not counted")
    kv_heads = _number(text, "num_key_value_heads") or heads
    head_dim = _number(text, "head_dim") or hidden // heads
    if not head_dim:
        raise ValueError(f"the model's config: {heads} heads do not fit a hidden_size of {hidden}")
    # transformers takes words tied unless the config says otherwise.
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    if not isinstance(tied, bool):
        raise ValueError(
            f"the model's config: tie_word_embeddings must be true or false, not {_short(tied)}"
        )
    intermediate = _number(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    context = _number(text, "max_position_embeddings", "n_positions", "n_ctx")
    activation = str(text.get("hidden_act") or text.get("activation_function") or "silu")
    if text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts"):
        raise ValueError("models with experts are not counted yet")
    gated = kind not in ("gpt2", "gpt_neox", "gptj", "opt", "bert", "roberta", "phi", "falcon")
    wide, narrow = heads * head_dim, kv_heads * head_dim
    linears: tuple[tuple[str, int, int], ...]
    if kind == "gpt2":
        linears = (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, intermediate),
            ("mlp.c_proj", intermediate, hidden),
        )
    elif kind == "gpt_neox":
        linears = (
            ("attention.query_key_value", hidden, 3 * hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", hidden, intermediate),
            ("mlp.dense_4h_to_h", intermediate, hidden),
        )
    else:
        up = (("mlp.gate_proj", hidden, intermediate),) if gated else ()
        linears = (
            ("self_attn.q_proj", hidden, wide),
            ("self_attn.k_proj", hidden, narrow),
            ("self_attn.v_proj", hidden, narrow),
            ("self_attn.o_proj", wide, hidden),
            *up,
            ("mlp.up_proj", hidden, intermediate),
            ("mlp.down_proj", intermediate, hidden),
        )
    head_norms = kind == "qwen3"
    with_bias = kind in ("gpt2", "gpt_neox", "opt", "bert", "roberta", "phi")
    biases = layers * sum(d_out for _name, _in, d_out in linears) if with_bias else 0
    if kind == "qwen2":
        biases = layers * (wide + 2 * narrow)
    positions = context * hidden if kind in ("gpt2", "opt", "bert", "roberta") else 0
    return Architecture(
        name=kind,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        context=context,
        gated=gated,
        activation=activation,
        norms=(2 * layers + 1) * hidden * (1 if gated else 2)
        + (2 * layers * head_dim if head_norms else 0),
        linears=linears,
        embeddings=vocabulary * hidden + positions,
        tied=tied,
        biases=biases,
        head_norms=head_norms,
        stack="h" if kind == "gpt2" else "layers",
    )


def _counted(found: Architecture, shapes: Mapping[str, Sequence[int]]) -> Architecture:
    """The architecture with the numbers of its tensors as the weights' headers have them."""
    linears, stack = [], found.stack
    for name in sorted(shapes):
        first = re.search(r"(?:^|\.)(layers|h|layer)\.0\.(.+)\.weight$", name)
        shape = shapes[name]
        if first and len(shape) == 2:
            d_out, d_in = shape if found.name != "gpt2" else (shape[1], shape[0])
            linears.append((first[2], d_in, d_out))
            stack = first[1]
    if not linears:
        return found
    tables = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and any(word in name for word in WORD_LAYERS)
    }
    heads = [name for name in tables if "lm_head" in name or "embed_out" in name]
    embeddings = sum(_size(s) for name, s in tables.items() if name not in heads)
    norms = sum(_size(s) for name, s in shapes.items() if len(s) == 1 and not _is_bias(name))
    biases = sum(_size(s) for name, s in shapes.items() if len(s) == 1 and _is_bias(name))
    return replace(
        found,
        head_norms=any(name.endswith("q_norm.weight") for name in shapes),
        linears=tuple(linears),
        stack=stack,
        embeddings=embeddings,
        tied=not heads,
        norms=norms,
        biases=biases,
    )


def _is_bias(name: str) -> bool:
    return name.endswith("bias") and "norm" not in name and "ln_" not in name


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _whole(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that the config has. Raises: ValueError if it has none."""
    if found := _number(config, *names):
        return found
    raise ValueError(f"the model's config does not say its {names[0]}")


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that the config has, 0 if none.

    Raises: ValueError that names a key whose value is no whole number from 1 on, or past any model.
    """
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
            raise ValueError(
                f"the model's config: {name} must be a whole number from 1 to {MOST - 1:,}, "
                f"not {_short(value)}"
            )
        return value
    return 0


def _short(value: Any) -> str:
    """A value as a message quotes it; a number may have more digits than Python would write."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings")
    return found
