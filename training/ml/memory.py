"""Will it fit? The peak memory of a run, told from the model's config and the recipe alone.

    fits = predict("dpo", recipe, read_architecture(folder), device="cuda")
    fits.peak, fits.terms

No torch in here: the launch form asks at every change of a setting. The terms are those of
docs/memory.md. What a formula cannot know (libraries, the allocator's gaps) stands as a constant
with the measurement that gave it. Bytes everywhere, unless a name says otherwise.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from training.ml.config import Recipe, gettext_noop, targets
from training.ml.weights import WORD_LAYERS, tensor_shapes

MIB, GIB = 2**20, 2**30

NF4_BITS = 4.127
"""Bits a weight under NF4 with double quantisation: 4, a byte of scale for each 64 weights, and a
float32 for each 256 scales: 4 + 8/64 + 32/(64·256). Dettmers et al. 2023, arXiv:2305.14314, §3."""
ADAM_STATES = 8
"""Bytes per trained number of Adam's two moments in float32. Kingma and Ba 2015, algorithm 1."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""DPO's head works on tiles of so many positions and words: TRL 1.16, in
trl/kernels/chunked_logprob.py and _CHUNKED_LOGPROB_CHUNK_SIZE."""
CHUNK = 512
"""Positions whose logits exist at once where a policy is measured: training/ml/logprobs.py."""
CUDA_CONTEXT = 450 * MIB
"""What the driver, cuBLAS and the kernels of a process take beside torch's own memory. It is not in
max_memory_reserved; it is in what nvidia-smi shows. Between 300 and 600 MiB by card and version."""
GAPS = 0.05
"""Share of what comes and goes (activations, gradients, work space) that the allocator cannot use
again for another size: PyTorch's CUDA allocator rounds to 512 bytes and keeps blocks of 2 MiB. On
a CPU blocks go back to the kernel one by one (training/ml/peaks.py), and there are no gaps."""
CPU_LIBRARIES = 25 * MIB
"""What a run's libraries load at the first use of each, their thread pools, the tokens of the
pairs: found by tests/bench/memory.py as the rest that does not move with the model."""

ADAPTERS = ("lora", "qlora", "rslora", "dora", "pissa", "loftq", "qdora")
"""Methods with two small matrices beside each target."""


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
    """(name, inputs, outputs) of one layer's linear layers: what adapters and four bits reach."""
    embeddings: int
    """Numbers in the tables of words and positions."""
    tied: bool
    """The head that tells words is the table of words."""
    biases: int = 0
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


@dataclass(frozen=True)
class Term:
    """One part of the peak."""

    name: str
    bytes: int
    words: str
    """What it is, for people; marked for the catalogue."""


@dataclass(frozen=True)
class Estimate:
    """The peak of a run and what it consists of, the terms adding up to it."""

    terms: tuple[Term, ...]
    moment: str
    """When it is reached: training, measuring or loading."""
    trained: int
    """Numbers that are trained."""
    tokens: int
    """Tokens a conversation, the longest."""
    device: str

    @property
    def peak(self) -> int:
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True)
class Suggestion:
    """Settings that fit where the asked ones do not."""

    settings: dict[str, Any]
    peak: int
    same_result: bool
    """Only the way to the numbers changes, not the numbers: the same pairs in each step."""


# Reading a model


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

    Raises: ValueError naming what the config does not say.
    """
    text = config.get("text_config") or config
    kind = str(text.get("model_type", ""))
    hidden = _whole(text, "hidden_size", "n_embd", "d_model")
    layers = _whole(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _whole(text, "num_attention_heads", "n_head", "num_heads")
    vocabulary = _whole(text, "vocab_size")
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_dim = int(text.get("head_dim") or hidden // heads)
    intermediate = int(
        text.get("intermediate_size") or text.get("n_inner") or text.get("ffn_dim") or 4 * hidden
    )
    context = int(
        text.get("max_position_embeddings") or text.get("n_positions") or text.get("n_ctx") or 0
    )
    activation = str(text.get("hidden_act") or text.get("activation_function") or "silu")
    if text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts"):
        raise ValueError("models with experts are not counted yet")
    gated = kind not in ("gpt2", "gpt_neox", "gptj", "opt", "bert", "roberta", "phi", "falcon")
    wide, narrow = heads * head_dim, kv_heads * head_dim
    linears: tuple[tuple[str, int, int], ...]
    if kind == "gpt2":
        linears = (
            ("c_attn", hidden, 3 * hidden),
            ("c_proj", hidden, hidden),
            ("c_fc", hidden, intermediate),
            ("c_proj", intermediate, hidden),
        )
    elif kind == "gpt_neox":
        linears = (
            ("query_key_value", hidden, 3 * hidden),
            ("dense", hidden, hidden),
            ("dense_h_to_4h", hidden, intermediate),
            ("dense_4h_to_h", intermediate, hidden),
        )
    else:
        up = (("gate_proj", hidden, intermediate),) if gated else ()
        linears = (
            ("q_proj", hidden, wide),
            ("k_proj", hidden, narrow),
            ("v_proj", hidden, narrow),
            ("o_proj", wide, hidden),
            *up,
            ("up_proj", hidden, intermediate),
            ("down_proj", intermediate, hidden),
        )
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
        norms=(2 * layers + 1) * hidden * (1 if gated else 2),
        linears=linears,
        embeddings=vocabulary * hidden + positions,
        # transformers takes words tied unless the config says otherwise.
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        biases=biases,
    )


def _counted(found: Architecture, shapes: Mapping[str, Sequence[int]]) -> Architecture:
    """The architecture with the numbers of its tensors as the weights' headers have them."""
    layers = {name for name in shapes if re.search(r"\.(?:layers|h|layer)\.0\.", name)}
    linears = []
    for name in sorted(layers):
        part, shape = name.split(".")[-2], shapes[name]
        if name.endswith(".weight") and len(shape) == 2:
            d_out, d_in = shape if found.name != "gpt2" else (shape[1], shape[0])
            linears.append((part, d_in, d_out))
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
        linears=tuple(linears),
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
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ValueError(f"the model's config does not say its {names[0]}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings")
    return found


# The terms


def number_bytes(dtype: str, device: str) -> int:
    """Bytes of a number of the base under "auto", "float32" or "bfloat16"."""
    if dtype == "auto":
        return 2 if device == "cuda" else 4
    return 2 if dtype == "bfloat16" else 4


def four_bits(weights: int) -> int:
    """Bytes of linear weights in NF4 with double quantisation. Source: at NF4_BITS."""
    return round(weights * NF4_BITS / 8)


def base_weights(arch: Architecture, *, method: str, number: int, head: bool = True) -> int:
    """Bytes of the frozen base: linear layers in `number` bytes or in 4 bits, all else in `number`.

    Args: head: with the head that tells words, which a reward model does not have.
    """
    others = arch.embeddings + arch.norms + arch.biases + (arch.language_head if head else 0)
    linear = arch.linear_weights
    quantised = method in ("qlora", "qdora", "loftq")
    return (four_bits(linear) if quantised else linear * number) + others * number


def adapter_weights(arch: Architecture, rank: int, wanted: str | list[str]) -> int:
    """Numbers in the adapters: the sum of r·(d_in + d_out) over the targets.

    Source: Hu et al. 2021, arXiv:2106.09685, §4.1: ΔW = BA, B of d_out × r, A of r × d_in.
    """
    return arch.layers * sum(
        rank * (d_in + d_out)
        for name, d_in, d_out in arch.linears
        if wanted == "all-linear" or name in wanted
    )


def trained_weights(kind: str, recipe: Recipe, arch: Architecture) -> int:
    """Numbers that are trained by the recipe's method: adapters, norms, the score head.

    Raises: ValueError for a method whose numbers are not known here.
    """
    score = arch.hidden if kind == "reward" else 0
    if recipe.method == "full":
        head = arch.language_head if kind != "reward" else 0
        return arch.weights - arch.language_head + head + score
    if recipe.method not in ADAPTERS:
        raise ValueError(f"the memory of the method {recipe.method} is not counted yet")
    wanted = targets(recipe)
    n = adapter_weights(arch, recipe.lora_rank, wanted)
    if "dora" in recipe.method:  # a length for each output
        n += arch.layers * sum(
            d_out for name, _in, d_out in arch.linears if wanted == "all-linear" or name in wanted
        )
    return n + score + (arch.norms if recipe.train_norms else 0)


def layer_activations(
    arch: Architecture,
    *,
    rows: int,
    tokens: int,
    number: int,
    rank: int = 0,
    norms: bool = True,
    flash: bool = True,
) -> int:
    """Bytes that one layer keeps for its backward pass.

    Counted from what autograd saves in transformers' own layers under PEFT (a test holds it to
    that). Per token, in numbers: two norms keep their input and, where they are trained, what goes
    into the weight; linear layers their input, once where nothing is cast; attention q, k, v and
    its output (keys and values repeated for all heads, since the mask of padded rows rules out
    grouped kernels); a gated MLP four times its width, a plain one twice. With 2-byte numbers the
    norms work in float32, and each adapter keeps a cast copy of its input.
    Without flash attention the matrices of all heads come on top: 5·rows·heads·tokens² bytes at two
    bytes a number, Korthikanti et al. 2022, arXiv:2205.05198, eq. 2; with it the mask alone, cast
    to numbers by each layer.
    """
    hidden, wide = arch.hidden, arch.heads * arch.head_dim
    if arch.gated:
        mlp = 4 * arch.intermediate
    else:
        # gelu_new is put together from five operations that each keep something
        mlp = (7 if arch.activation == "gelu_new" else 2) * arch.intermediate
    linear_inputs = len(arch.linears) - 1 if number == 2 and rank else 2  # down's is in the MLP
    if number == 2:
        per_token = 2 * hidden * 4 + (2 * hidden * 2 if norms else 0)
        if rank:
            per_token += 2 * ((linear_inputs - 1) * hidden + wide)
        else:
            per_token += 2 * 2 * hidden
    else:
        per_token = 4 * (2 * hidden + (2 * hidden if norms and arch.gated else 0) + 2 * hidden)
    per_token += number * (4 * wide + mlp + rank * len(arch.linears)) + 4 * arch.heads
    matrices = rows * tokens**2 * number
    if not flash:
        matrices += rows * arch.heads * tokens**2 * (5 * number // 2)
    return rows * tokens * per_token + matrices


def activations(
    arch: Architecture,
    *,
    rows: int,
    tokens: int,
    number: int,
    checkpointing: bool,
    rank: int = 0,
    norms: bool = True,
    flash: bool = True,
) -> int:
    """Bytes kept for the backward pass of the whole model.

    With checkpointing each layer keeps its input alone and is done again on the way back, so one
    layer's are there at a time: Chen et al. 2016, arXiv:1604.06174, §3.
    """
    one = layer_activations(
        arch, rows=rows, tokens=tokens, number=number, rank=rank, norms=norms, flash=flash
    )
    ends = 3 * rows * tokens * arch.hidden * number  # the words' vectors and the last norm
    if checkpointing:
        return checkpoints(arch, rows=rows, tokens=tokens, number=number) + one + ends
    return arch.layers * one + ends


def checkpoints(arch: Architecture, *, rows: int, tokens: int, number: int) -> int:
    """Bytes of the inputs of all layers, kept under gradient checkpointing: L·B·S·H numbers."""
    return arch.layers * rows * tokens * arch.hidden * number


def full_logits(*, rows: int, tokens: int, vocabulary: int) -> int:
    """Bytes of all logits of a plain cross-entropy: in bf16, in float32, and their gradient.

    B·S·V·(2 + 4 + 4). Our recipes never hold them; others' trainers do, so it is told.
    """
    return rows * tokens * vocabulary * (2 + 4 + 4)


def tile_logits(arch: Architecture, *, rows: int, tokens: int, number: int, device: str) -> int:
    """Bytes of DPO's head at work: one tile of logits, the rest of it summed as it goes.

    On a GPU the tile is made at its full width and worked on in place. On a CPU only what is
    written takes memory, and plain operations make float32 copies of it: at most seven at once, as
    tests/bench/memory.py found. Beside it
    the gradient of the hidden states, in float32. Source: at TILE_TOKENS.
    """
    positions = min(rows * tokens, TILE_TOKENS)
    hidden_gradient = rows * tokens * arch.hidden * 4
    if device == "cuda":
        return positions * TILE_WORDS * number + hidden_gradient
    width = min(arch.vocabulary, TILE_WORDS)
    return positions * width * (number + 7 * 4) + hidden_gradient


def chunk_logits(arch: Architecture, *, rows: int, tokens: int, number: int) -> int:
    """Bytes of the logits where a policy is measured: a chunk, in float32, its softmax."""
    return min(rows * tokens, CHUNK) * arch.vocabulary * (number + 4 + 4)


def work_space(arch: Architecture, *, rows: int, tokens: int, number: int, quantised: bool) -> int:
    """Bytes of what exists only within one operation: the widest layer's in- and outputs and, on
    the way back, their gradients; under QLoRA the one weight turned back into numbers."""
    widest = max(arch.intermediate, arch.hidden)
    passing = rows * tokens * (3 * widest + 2 * arch.hidden) * number
    largest = max(d_in * d_out for _name, d_in, d_out in arch.linears)
    turned_back = largest * number if quantised else 0
    return passing + turned_back


def kv_cache(arch: Architecture, *, rows: int = 1, tokens: int = 1, number: int = 2) -> int:
    """Bytes of keys and values kept while generating: 2·L·kv heads·head width numbers a token."""
    return 2 * arch.layers * arch.kv_heads * arch.head_dim * number * tokens * rows


def inference(arch: Architecture, *, rows: int, tokens: int, device: str = "cuda") -> int:
    """Bytes of a model that generates: weights, the cache of keys and values, the last position's
    logits in float32, one layer's work, the context."""
    number = number_bytes("auto", device)
    context = CUDA_CONTEXT if device == "cuda" else CPU_LIBRARIES
    return (
        base_weights(arch, method="lora", number=number)
        + kv_cache(arch, rows=rows, tokens=tokens, number=number)
        + rows * arch.vocabulary * 4
        + work_space(arch, rows=rows, tokens=tokens, number=number, quantised=False)
        + context
    )


# Put together


def predict(
    kind: str,
    recipe: Recipe,
    arch: Architecture,
    *,
    device: str = "cuda",
    tokens: int | None = None,
) -> Estimate:
    """The peak of a run.

    Args: device: "cuda" or "cpu"; tokens: of the longest conversation, where it is known; else the
        recipe's max_length, or the model's context where that is shorter.
    Raises: ValueError for a recipe or a method that is not counted.
    """
    if kind not in ("reward", "dpo"):
        raise ValueError(f"the memory of the recipe {kind} is not counted yet")
    limit = min(recipe.max_length, arch.context or recipe.max_length)
    tokens = min(tokens or limit, limit)
    rows = 2 * recipe.batch_size  # chosen and rejected
    number = number_bytes(recipe.dtype, device)
    trained = trained_weights(kind, recipe, arch)
    full = recipe.method == "full"
    quantised = recipe.method in ("qlora", "qdora", "loftq")
    shape = {"rows": rows, "tokens": tokens, "number": number}

    # What is trained is float32 whatever the base is: training/ml/loading.py train_in_float32.
    frozen = base_weights(arch, method=recipe.method, number=number, head=kind != "reward")
    held = 0 if full else frozen
    # The reference: asked before, it is no second model; nor where the adapter can be off.
    is_live = kind == "dpo" and not getattr(recipe, "precompute_reference", True)
    copies = trained * 4 if full and is_live else 0
    states = trained * ADAM_STATES
    kept = activations(
        arch,
        **shape,
        checkpointing=recipe.gradient_checkpointing,
        rank=0 if full else recipe.lora_rank,
        norms=recipe.train_norms or full,
        # Every model we load runs torch's fused attention; it never holds the matrices.
        flash=True,
    )
    logits = tile_logits(arch, **shape, device=device) if kind == "dpo" else 0
    work = work_space(arch, **shape, quantised=quantised)
    measuring = work + (chunk_logits(arch, **shape) if kind == "dpo" else 0)

    # At the step's highest point either the head works on all kept activations, or a layer does.
    passing = kept + max(logits, work)
    moment = "training"
    if measuring > passing:
        moment, kept, logits, work = "measuring", 0, measuring - work, work
    elif logits >= work:
        work = 0
    else:
        logits = 0
    moving = kept + logits + work
    terms = [
        Term("weights", held, gettext_noop("the base model's weights")),
        Term("trained", trained * 4, gettext_noop("what is trained, in float32")),
        Term("gradients", trained * 4, gettext_noop("its gradients")),
        Term("optimizer", states, gettext_noop("Adam's two moments of it")),
        Term("reference", copies, gettext_noop("the reference model")),
        Term("activations", kept, gettext_noop("activations kept for the way back")),
        Term("logits", logits, gettext_noop("logits of a tile of tokens and words")),
        Term("work", work, gettext_noop("work space of one layer")),
        Term(
            "gaps",
            round(GAPS * moving) if device == "cuda" else 0,
            gettext_noop("gaps the allocator leaves"),
        ),
        Term(
            "libraries",
            CUDA_CONTEXT if device == "cuda" else CPU_LIBRARIES,
            gettext_noop("CUDA's context") if device == "cuda" else gettext_noop("libraries"),
        ),
    ]
    return Estimate(tuple(t for t in terms if t.bytes), moment, trained, tokens, device)


# What would fit


def suggestions(
    kind: str,
    recipe: Recipe,
    arch: Architecture,
    available: int,
    *,
    device: str = "cuda",
    most: int = 3,
) -> list[Suggestion]:
    """The nearest settings that fit, fewest changes first; empty if nothing tried does.

    Tried in every combination: checkpointing, smaller batches summed up to the same step, the base
    in four bits, shorter conversations. What changes no result comes first, and a suggestion that
    gives up more than another and is not smaller by it is left out.
    """
    batches = _halves(recipe.batch_size, 1)
    lengths = _halves(min(recipe.max_length, arch.context or recipe.max_length), 128)[:4]
    methods = [recipe.method, *(["qlora"] if recipe.method in ("lora", "full") else [])]
    checkpointing = [recipe.gradient_checkpointing, True]
    found: dict[int, tuple[int, Suggestion]] = {}
    for kept, batch, method, length in product(
        dict.fromkeys(checkpointing), batches, methods, lengths
    ):
        changes: dict[str, Any] = {}
        cost = 0
        if kept != recipe.gradient_checkpointing:
            changes["gradient_checkpointing"], cost = True, cost + 2
        if batch != recipe.batch_size:
            accumulation = recipe.gradient_accumulation * (recipe.batch_size // batch)
            changes |= {"batch_size": batch, "gradient_accumulation": accumulation}
            cost += batches.index(batch)
        same = method == recipe.method and length == lengths[0]
        if method != recipe.method:
            changes["method"], cost = method, cost + 20
        if length != lengths[0]:
            changes["max_length"], cost = length, cost + 30 * lengths.index(length)
        if not changes:
            continue
        peak = predict(kind, replace(recipe, **changes), arch, device=device).peak
        if peak > available:
            continue
        # One of each kind: which of checkpointing, method and length it gives up.
        sort = (kept != recipe.gradient_checkpointing) + 2 * (method != recipe.method)
        sort += 4 * (length != lengths[0])
        if sort not in found or cost < found[sort][0]:
            found[sort] = (cost, Suggestion(changes, peak, same))
    return [suggestion for _cost, suggestion in sorted(found.values(), key=lambda f: f[0])[:most]]


def _halves(number: int, least: int) -> list[int]:
    """The number and its halves while they are whole and not below `least`."""
    found = [number]
    while found[-1] % 2 == 0 and found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found


def read_bytes(text: str) -> int:
    """Bytes of "24GiB", "16 GB", "512MiB" or a plain number of bytes.

    Raises: ValueError.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B?|B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory; write it as 24GiB")
    number, unit = float(match[1]), str(match[2] or "B").upper()
    power: int = " KMGT".index(unit[0]) if unit[0] != "B" else 0
    step = 1024.0 if "I" in unit or len(unit) == 1 else 1000.0
    return int(number * step ** float(power))
