"""Will it fit? The peak memory of a run, told from the model's config and the recipe alone; and of
a model at work.

    fits = predict("dpo", recipe, read_architecture(folder), device="cuda")
    fits.peak, fits.terms
    inference("write", Work(rows=16, tokens=1024), read_architecture(folder), device="cuda")

No torch in here: the launch form asks at every change of a setting. The terms are those of
docs/memory.md. What a formula cannot know (libraries, the allocator's gaps) stands as a constant
with the measurement that gave it. Bytes everywhere, unless a name says otherwise.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from training.ml.architecture import Architecture
from training.ml.config import NO_REFERENCE, DPORecipe, Recipe, typed
from training.ml.methods import (
    IN_4_BITS,
    LORA,
    PROMPTS,
    SCORERS,
    WHOLE,
    needs_reference_copy,
    virtual_tokens,
    why_not,
)
from training.ml.quiet_star_config import QuietStarRecipe
from training.ml.settings import (
    DTYPES,
    gettext_noop,
    is_target,
    targets,
    texts_in_a_row,
    token_budget,
)

MIB, GIB = 2**20, 2**30

NF4_BITS = 4.127
"""Bits a weight under NF4 with double quantisation: 4, a byte of scale for each 64 weights, and a
float32 for each 256 scales: 4 + 8/64 + 32/(64·256). Dettmers et al. 2023, arXiv:2305.14314, §3."""
ADAM_STATES = 8
"""Bytes per trained number of Adam's two moments in float32. Kingma and Ba 2015, algorithm 1."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""TRL's head works on tiles of so many positions and words: TRL 1.16, in
trl/kernels/chunked_logprob.py and _CHUNKED_LOGPROB_CHUNK_SIZE."""
TILE_COPIES = 7
"""Copies of a tile in float32 that its way back makes where there is no Triton: logits, scaled,
log-probabilities, probabilities, gradient, and two of mask, difference and product. Counted in
_backward_tile of the same file."""
CHUNK = 512
"""Positions whose logits exist at once under DPO and where a policy is measured:
training/ml/logprobs.py."""
FEATURES_AT_ONCE = 32
"""Pairs whose features are computed together for a head alone: training/ml/reward_model.py."""
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

READ_AT_ONCE = {"cpu": 1024, "cuda": 16384}
"""Tokens that a judge's engine reads in one pass: judges/ml/engine.py."""
MOST_ASKED = {"cpu": 128, "cuda": 1024}
"""Texts of a batch of the same engine."""
USES = {
    "write": gettext_noop("a policy that writes responses"),
    "score": gettext_noop("a reward model that scores them"),
    "ask": gettext_noop("a judge that is asked for its verdict"),
}
"""What a model at work does."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a model at work is given."""

    rows: int = 16
    """Texts at once."""
    tokens: int = 1024
    """Of each, with those that it writes."""
    new_tokens: int = 256
    """Of them written; a judge's verdict and a reward are read and need none."""
    dtype: str = "auto"
    in_4_bits: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "tokens"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must lie between 1 and {2**31 - 1}")
        if self.new_tokens < 0:
            raise ValueError("new_tokens must not be negative")
        if self.new_tokens >= self.tokens:
            raise ValueError("new_tokens must be fewer than tokens, which count them too")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}")


def make_work(settings: Mapping[str, Any]) -> Work:
    """Settings that may be text, as a form or a command line gives them.

    Raises: ValueError for an unknown setting or a value that makes no sense.
    """
    known = {setting.name: setting.type for setting in fields(Work)}
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"there is no setting {name!r}; there are {', '.join(known)}")
        values[name] = typed(name, value, known[name])
    return Work(**values)


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
    """When it is reached: start, forward, backward, step or measuring; of a model at work, its
    use."""
    trained: int
    """Numbers that are trained."""
    parameters: int
    """Numbers of the base."""
    tokens: int
    """Tokens a conversation, the longest."""
    device: str
    part: tuple[int, int] = (0, 0)
    """Of a run: texts that are at work together, and the tokens of each."""
    reference: str = ""
    """Of a run that has one: how the reference model is asked, a key of REFERENCES."""

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

    @property
    def slower(self) -> bool:
        """Whether a step takes longer for it; a reference asked once saves a pass."""
        return self.settings.keys() != {"precompute_reference"}


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
    quantised = method in IN_4_BITS
    return (four_bits(linear) if quantised else linear * number) + others * number


def mapped_file(arch: Architecture, *, method: str, number: int, device: str) -> int:
    """Bytes of a file of weights that stay in sight beside what was made of them, on a CPU alone:
    their 4-bit form, or what PiSSA leaves of them.

    A safetensors file is mapped, not read. Tables and norms that need no conversion are views of
    it, so the mapping lives as long as they do, with the pages of the linear layers in it. (The
    system may take these pages back when it is short of memory.)
    """
    as_they_are = arch.file_bytes >= arch.weights * number
    if method not in (*IN_4_BITS, "pissa") or device == "cuda" or not as_they_are:
        return 0
    return arch.linear_weights * number


def adapted_layers(arch: Architecture, wanted: str | list[str]) -> list[list[tuple[str, int, int]]]:
    """Of each layer, the linear layers that are targets."""
    return [
        [one for one in arch.linears if is_target(f"{arch.stack}.{layer}.{one[0]}", wanted)]
        for layer in range(arch.layers)
    ]


def adapter_weights(arch: Architecture, rank: int, wanted: str | list[str]) -> int:
    """Numbers in the adapters: the sum of r·(d_in + d_out) over the targets.

    Source: Hu et al. 2021, arXiv:2106.09685, §4.1: ΔW = BA, B of d_out × r, A of r × d_in.
    """
    return rank * sum(
        d_in + d_out for layer in adapted_layers(arch, wanted) for _path, d_in, d_out in layer
    )


def trained_weights(kind: str, recipe: Recipe, arch: Architecture) -> int:
    """Numbers that are trained by the recipe's method, the score head and trained norms with them.

    Sources: the papers of docs/training.md; of P-tuning, PEFT's PromptEncoder: the vectors and
    three square layers with their biases.
    """
    method, virtual = recipe.method, virtual_tokens(recipe)
    score = arch.hidden if kind in SCORERS else 0
    if isinstance(recipe, QuietStarRecipe):  # in place of a score: marks and the mixing head
        score = 3 * arch.hidden**2 + 5 * arch.hidden + 1
    if method in WHOLE:
        return arch.weights - (arch.language_head if kind in SCORERS else 0) + score
    if method == "head":
        return score
    if method == "prefix":
        return virtual * 2 * arch.layers * arch.kv_heads * arch.head_dim + score
    if method in PROMPTS:
        network = 3 * (arch.hidden**2 + arch.hidden) if method == "ptuning" else 0
        return virtual * arch.hidden + network + score
    norms = arch.norms if recipe.train_norms else 0
    outputs = sum(
        d_out for layer in adapted_layers(arch, targets(recipe)) for _path, _in, d_out in layer
    )
    if method == "ia3":
        return outputs + score + norms
    n = adapter_weights(arch, recipe.lora_rank, targets(recipe))
    return n + (outputs if method == "dora" else 0) + score + norms


def optimizer_states(recipe: Recipe, arch: Architecture, trained: int) -> int:
    """Bytes of what the optimizer keeps: Adam's two moments of every trained number; GaLore's of
    rank × the longer side of each projected weight, and the directions, rank × the shorter.

    Source: Zhao et al. 2024, arXiv:2403.03507, table 1.
    """
    if recipe.method != "galore":
        return trained * ADAM_STATES
    small, projected = 0, 0
    for layer in adapted_layers(arch, targets(recipe)):
        for _path, d_in, d_out in layer:
            rank = min(recipe.galore_rank, d_in, d_out)
            small += rank * (2 * max(d_in, d_out) + min(d_in, d_out))
            projected += d_in * d_out
    return small * 4 + (trained - projected) * ADAM_STATES


def step_space(recipe: Recipe, arch: Architecture, trained: int, device: str) -> int:
    """Bytes that exist only while the optimizer steps.

    torch's AdamW takes the roots of all second moments at once on a GPU; on a CPU weight by weight,
    in two copies. GaLore's decomposition copies the gradient, and gives both bases and a square
    work space (LAPACK's gesdd); its step back is two matrices of the weight's size.
    """
    if recipe.method not in WHOLE:
        return trained * 4
    table = arch.vocabulary * arch.hidden * 4
    largest = max(table, *(d_in * d_out * 4 for _path, d_in, d_out in arch.linears))
    if recipe.method == "full":
        return trained * 4 if device == "cuda" else 2 * largest
    looks = [
        4 * (max(d_in, d_out) * min(d_in, d_out) * 2 + 5 * min(d_in, d_out) ** 2)
        for _path, d_in, d_out in arch.linears
    ]
    return max(3 * table, *looks)


def _reads(path: str) -> str:
    """What a linear layer is given: attention (a norm's output), heads, mlp (a norm's) or product
    (of the MLP's inner width)."""
    if re.search(r"down_proj|mlp\.c_proj|4h_to_h|fc2|mlp\.Wo|(?<!attention\.)output\.dense", path):
        return "product"
    if re.search(r"o_proj|out_proj|attn\.c_proj|attention\.dense|attn\.Wo|attention\.output", path):
        return "heads"
    if re.search(r"[qkv]_proj|query|key|value|c_attn|Wqkv", path):
        return "attention"
    return "mlp"


def layer_activations(
    arch: Architecture,
    *,
    rows: int,
    tokens: int,
    number: int,
    method: str = "lora",
    adapted: Sequence[tuple[str, int, int]] | None = None,
    rank: int = 0,
    norms: bool = True,
    flash: bool = True,
    before: int = 0,
) -> int:
    """Bytes that one layer keeps for its backward pass.

    Counted from what autograd saves in transformers' own layers under PEFT (a test holds it to
    that, for each method and shape of model). Per token, in numbers:
    - norms keep their input, in float32 if they are RMS norms, and where these are trained what
      goes into the weight; GPT-NeoX has one input for both. Qwen3 has two more, for q and k.
    - A linear layer keeps its input only if weights or an adapter's matrices on it are trained, and
      layers with one input keep it once. Under autocast each adapter keeps a cast copy of its own,
      and a weight that is trained a copy in two bytes.
    - Attention keeps q, k, v and its output (keys and values repeated for all heads, since the mask
      of padded rows rules out grouped kernels). GPT-NeoX turns q and k, and keeps all three again;
      so does GPT-2 with a learned prefix before k and v.
    - A gated MLP keeps three times its width, a plain one once, and gelu_new, which is put together
      from five operations, four times.
    - LoRA keeps rank numbers a target; DoRA its output and that of the weight; (IA)³ the output.

    Without flash attention the matrices of all heads come on top: 5·rows·heads·tokens² bytes at two
    bytes a number, Korthikanti et al. 2022, arXiv:2205.05198, eq. 2; with it the mask alone, cast
    to numbers by each layer.

    Args: adapted: the layer's targets, None: all; before: places of a learned prefix.
    """
    adapted = arch.linears if adapted is None else adapted
    hidden, wide = arch.hidden, arch.heads * arch.head_dim
    whole, is_neox = method in WHOLE, arch.name == "gpt_neox"
    if whole:
        adapted = arch.linears
    precise = 4 if arch.gated or whole else number  # of a norm's input
    per_token = (1 if is_neox else 2) * hidden * precise
    if norms and arch.gated and method not in PROMPTS:
        per_token += 2 * hidden * (4 if whole else number)
    if arch.head_norms:
        both = (arch.heads + arch.kv_heads) * arch.head_dim
        per_token += both * precise
        per_token += both * (4 if whole else number) if norms and method not in PROMPTS else 0
    if whole or method in LORA:
        copied = number == 2
        inputs = {path if copied else _reads(path): (path, d_in) for path, d_in, _out in adapted}
        shared = not is_neox and (whole or not copied)  # the heads' output is kept by attention
        per_token += number * sum(
            d_in for path, d_in in inputs.values() if not (shared and _reads(path) == "heads")
        )
    # The one layer that gives all three keeps them together, beside those made of them.
    again = 2 * wide if is_neox != (method == "prefix") and not arch.gated else 0
    mlp = 3 if arch.gated else 4 if arch.activation == "gelu_new" else 1
    per_token += number * (4 * wide + again + mlp * arch.intermediate) + 4 * arch.heads
    outputs = sum(d_out for _path, _in, d_out in adapted)
    if method in LORA:
        per_token += number * (rank * len(adapted) + (2 * outputs if method == "dora" else 0))
    if method == "ia3":
        per_token += number * outputs
    matrices = rows * tokens * (tokens + before) * number
    if not flash:
        matrices += rows * arch.heads * tokens**2 * (5 * number // 2)
    longer = rows * before * 2 * wide * number
    copies = 2 * sum(d_in * d_out for _path, d_in, d_out in arch.linears)
    return rows * tokens * per_token + matrices + longer + (copies if whole and number == 2 else 0)


def activations(
    arch: Architecture,
    *,
    rows: int,
    tokens: int,
    number: int,
    checkpointing: bool,
    method: str = "lora",
    wanted: str | list[str] = "all-linear",
    rank: int = 0,
    norms: bool = True,
    flash: bool = True,
    before: int = 0,
) -> int:
    """Bytes kept for the backward pass of the whole model.

    Layers below the first that anything is trained in keep nothing. With checkpointing each layer
    keeps its input alone and is done again on the way back, so one layer's are there at a time, and
    what the end of the model kept is gone by then: Chen et al. 2016, arXiv:1604.06174, §3.
    """
    ends = 3 * rows * tokens * arch.hidden * number  # the words' vectors and the last norm
    if method == "head":
        return rows * tokens * arch.hidden * number  # what the head is given
    each = adapted_layers(arch, wanted)
    lowest = 0
    if (method in LORA or method == "ia3") and not norms:
        lowest = next((n for n, found in enumerate(each) if found), arch.layers)
    kept = [
        layer_activations(
            arch,
            rows=rows,
            tokens=tokens,
            number=number,
            method=method,
            adapted=adapted,
            rank=rank,
            norms=norms,
            flash=flash,
            before=before,
        )
        for adapted in each[lowest:]
    ]
    if checkpointing:
        inputs = checkpoints(arch, rows=rows, tokens=tokens, number=number)
        return inputs + max([*kept, ends])
    return sum(kept) + ends


def checkpoints(arch: Architecture, *, rows: int, tokens: int, number: int) -> int:
    """Bytes of the inputs of all layers, kept under gradient checkpointing: L·B·S·H numbers."""
    return arch.layers * rows * tokens * arch.hidden * number


def full_logits(*, rows: int, tokens: int, vocabulary: int) -> int:
    """Bytes of all logits of a plain cross-entropy: in bf16, in float32, and their gradient.

    B·S·V·(2 + 4 + 4). Our recipes never hold them; others' trainers do, so it is told.
    """
    return rows * tokens * vocabulary * (2 + 4 + 4)


def tile_logits(arch: Architecture, *, rows: int, tokens: int, number: int, device: str) -> int:
    """Bytes of TRL's head at work: one tile of logits, the rest of it summed as it goes.

    On a GPU the tile is made at its full width and worked on in place. On a CPU only what is
    written takes memory, and plain operations make TILE_COPIES of it. Beside it the gradient of the
    hidden states, in float32. Source: at TILE_TOKENS.
    """
    positions = min(rows * tokens, TILE_TOKENS)
    hidden_gradient = rows * tokens * arch.hidden * 4
    if device == "cuda":
        return positions * TILE_WORDS * number + hidden_gradient
    width = min(arch.vocabulary, TILE_WORDS)
    return positions * width * (number + TILE_COPIES * 4) + hidden_gradient


def chunk_logits(arch: Architecture, *, rows: int, tokens: int, number: int) -> int:
    """Bytes of the logits where a policy is measured: a chunk, in float32, its softmax."""
    return min(rows * tokens, CHUNK) * arch.vocabulary * (number + 4 + 4)


def chunk_gradients(arch: Architecture, *, rows: int, tokens: int, number: int) -> int:
    """Bytes of DPO's head on the way back: a chunk is computed again, of which its softmax stays,
    the gradient of what was told, and that of the logits, in float32; beside it the gradient of the
    hidden states."""
    logits = min(rows * tokens, CHUNK) * arch.vocabulary * (3 * 4 + (2 if number == 2 else 0))
    return logits + rows * tokens * arch.hidden * number


def work_space(
    arch: Architecture, *, rows: int, tokens: int, number: int, method: str = "lora"
) -> int:
    """Bytes of what exists only within one operation: the widest layer's in- and outputs and, on
    the way back, their gradients. In 4 bits, the one weight turned back into numbers; for DoRA, its
    change written out, from a unit matrix of its inputs, to measure its length."""
    inner = 2 if not arch.gated and arch.activation != "gelu_new" else 3
    widest = max(inner * arch.intermediate, 3 * arch.hidden)
    passing = rows * tokens * (widest + 2 * arch.hidden) * number
    written_out = 0
    if method in IN_4_BITS:
        written_out = max(d_in * d_out for _path, d_in, d_out in arch.linears) * number
    if method == "dora":
        written_out = max(d_in * (d_in + 3 * d_out) for _path, d_in, d_out in arch.linears) * 4
    return passing + written_out


def kv_cache(arch: Architecture, *, rows: int = 1, tokens: int = 1, number: int = 2) -> int:
    """Bytes of keys and values kept while generating: 2·L·kv heads·head width numbers a token."""
    return 2 * arch.layers * arch.kv_heads * arch.head_dim * number * tokens * rows


def inference(use: str, work: Work, arch: Architecture, *, device: str = "cuda") -> Estimate:
    """The peak of a model at work.

    A policy that writes reads all prompts at once; at its end it holds the keys and values of every
    token, but works on one token of each text: the larger of the two moments counts. A layer's keys
    and values grow by being copied. Texts of unlike length are read under a mask, for which they
    are repeated for all heads; the one token is not (transformers 5.23, sdpa_attention_forward). A
    judge holds them too, in one piece, and reads on in parts. A reward model keeps nothing between
    layers. Of the logits the last position's exist: where tokens are drawn as logits, their copy in
    float32, probabilities and a draw.

    Args: use: one of USES.
    """
    number = number_bytes(work.dtype, device)
    method = "qlora" if work.in_4_bits else "lora"
    weights = base_weights(arch, method=method, number=number, head=use != "score")
    weights += mapped_file(arch, method=method, number=number, device=device)
    tokens = min(work.tokens, arch.context or work.tokens)

    def moment(held: int, read: int) -> dict[str, int]:
        """With the keys and values of `held` tokens of each text, `read` tokens passing through."""
        passing = work_space(arch, rows=1, tokens=read, number=number, method=method)
        reads = read > work.rows
        if use == "score":
            return {"work": passing}
        cache = kv_cache(arch, rows=work.rows, tokens=held, number=number)
        copies = cache // (2 * arch.layers) if use == "write" else 0
        if use == "write" and reads and arch.heads != arch.kv_heads:
            copies += work.rows * held * 2 * arch.heads * arch.head_dim * number
        logits = work.rows * arch.vocabulary * 4 * 4
        # A layer's attention is done when its MLP works, and the last layer when logits come.
        at_once = {"copies": copies, "logits": logits, "work": passing}
        largest = max(at_once, key=lambda name: at_once[name])
        return {"cache": cache, largest: at_once[largest]}

    if use == "write":
        prompt = max(1, tokens - work.new_tokens)
        moments = [moment(prompt, work.rows * prompt), moment(tokens, work.rows)]
    elif use == "ask":
        moments = [moment(tokens, min(work.rows * tokens, max(READ_AT_ONCE[device], tokens)))]
    else:
        moments = [moment(tokens, work.rows * tokens)]
    largest = max(moments, key=lambda found: sum(found.values()))
    terms = [Term("weights", weights, gettext_noop("the model's weights"))]
    terms += [Term(name, n, WORK_TERMS[name]) for name, n in largest.items()]
    terms += surroundings(device, sum(largest.values()))
    found = tuple(term for term in terms if term.bytes)
    return Estimate(found, use, 0, arch.weights, tokens, device)


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

    It is that of its largest moment. Where all weights are trained, gradients come as activations
    go, so of both together the sum is never there: the way back is told at its two ends.

    Args: device: "cuda" or "cpu"; tokens: of the longest conversation, where it is known; else the
        recipe's max_length, or the model's context where that is shorter.
    """
    method, virtual = recipe.method, virtual_tokens(recipe)
    stretched = recipe.rope_factor if recipe.rope_scaling != "none" else 1
    context = int((arch.context or recipe.max_length + virtual) * stretched)
    limit = min(recipe.max_length, context - virtual)
    tokens = min(tokens or limit, limit)
    number = number_bytes(recipe.dtype, device)
    whole, writes = method in WHOLE, kind not in SCORERS
    # Vectors of a learned prompt stand in the row itself.
    rows, each = largest_part(recipe, tokens)
    shape: dict[str, Any] = {"rows": rows, "number": number}
    shape["tokens"] = each + (virtual if method in ("prompt", "ptuning") else 0)
    if isinstance(recipe, QuietStarRecipe):  # a column below every token
        shape["tokens"] *= recipe.blocks
    trained = trained_weights(kind, recipe, arch)

    # What is trained is float32 whatever the base is: training/ml/loading.py train_in_float32.
    frozen = base_weights(arch, method=method, number=number, head=writes)
    frozen += mapped_file(arch, method=method, number=number, device=device)
    copy = base_weights(arch, method="lora", number=number)
    always = {
        "weights": 0 if whole else frozen,
        "trained": trained * 4,
        "optimizer": optimizer_states(recipe, arch, trained),
        "reference": copy if asked_reference(recipe) == "copy" else 0,
    }
    kept: dict[str, Any] = {
        "checkpointing": recipe.gradient_checkpointing,
        "method": method,
        "wanted": targets(recipe),
        "rank": recipe.lora_rank,
        "norms": recipe.train_norms or whole,
        # Every model we load runs torch's fused attention; it never holds the matrices.
        "flash": True,
        "before": virtual if method == "prefix" else 0,
    }
    of_all = activations(arch, **shape, **kept)
    of_one = activations(replace(arch, layers=1), **shape, **kept)
    logits = tile_logits(arch, **shape, device=device) if writes else 0
    if isinstance(recipe, DPORecipe | QuietStarRecipe):
        logits = chunk_gradients(arch, **shape)
    work = work_space(arch, **shape, method=method)
    if method == "head":  # a frozen base is asked once, before the first step
        of_all = of_one = 0
        work = work_space(arch, rows=2 * FEATURES_AT_ONCE, tokens=tokens, number=number)
    head = arch.vocabulary * arch.hidden * 4 if whole and writes else 0
    in_parts = recipe.gradient_accumulation > 1 or token_budget(recipe) > 0
    all_at_once = not whole or in_parts
    # Either the head works on all kept activations, or a layer does.
    at_the_head = {"logits": logits} if logits >= work else {"work": work}
    moments = {
        "forward": {
            "gradients": trained * 4 if all_at_once else head,
            "activations": of_all,
            **at_the_head,
        },
        "backward": {"gradients": trained * 4, "activations": of_one, "work": work},
        # LoftQ finds its start from the base in full, beside the one in 4 bits.
        "start": {"work": copy if method == "loftq" else 0},
        "step": {"gradients": trained * 4, "work": step_space(recipe, arch, trained, device)},
        "measuring": {
            "logits": chunk_logits(arch, **shape) if writes else 0,
            "work": work,
        },
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    found = always | moments[moment]
    moving = sum(found.get(name, 0) for name in ("activations", "logits", "work"))
    terms = [Term(name, found.get(name, 0), words) for name, words in TERMS.items()]
    terms += surroundings(device, moving)
    told = tuple(term for term in terms if term.bytes)
    part = (rows, shape["tokens"])
    return Estimate(
        told, moment, trained, arch.weights, tokens, device, part, asked_reference(recipe)
    )


def largest_part(recipe: Recipe, tokens: int) -> tuple[int, int]:
    """(texts with a way back, tokens of each) of the largest part of a step that passes through the
    model together, with conversations of up to so many tokens.

    Of a pair both responses have a way back, of KTO's two texts the one. Under a budget of tokens
    that is as many of the longest as it holds, or one row more of texts so much shorter that they
    fill it. What is measured obeys the same budget and has no way back. A text with
    thoughts counts once for each.
    """
    if isinstance(recipe, QuietStarRecipe):
        return recipe.batch_size * recipe.n_thoughts, tokens
    each = texts_in_a_row(recipe)
    with_a_way_back = 1 if getattr(recipe, "loss", "") == "kto" else each
    n, length = recipe.batch_size, tokens
    if budget := token_budget(recipe):
        of_step = recipe.batch_size * recipe.gradient_accumulation
        n = min(of_step, max(1, budget // (each * tokens)))
        shorter = budget // (each * (n + 1))
        if n < of_step and (n + 1) * shorter > n * tokens:
            n, length = n + 1, shorter
    return with_a_way_back * n, length


def asked_reference(recipe: Recipe) -> str:
    """How a run asks its reference model, a key of REFERENCES; empty if it has none."""
    if not isinstance(recipe, DPORecipe) or recipe.loss in NO_REFERENCE:
        return ""
    if recipe.precompute_reference:
        return "before"
    return "copy" if needs_reference_copy(recipe.method) else "off"


REFERENCES = {
    "before": gettext_noop(
        "The reference is asked before the first step: no copy of it, and no pass of it in a step."
    ),
    "off": gettext_noop(
        "The reference is the policy with its adapter off: no copy of it. Its pass in each step "
        "takes less than the way back, which comes after it."
    ),
    "copy": gettext_noop(
        "The reference is a copy of the base; computed once, before the first step, it would take "
        "nothing."
    ),
}


TERMS = {
    "weights": gettext_noop("the base model's weights"),
    "trained": gettext_noop("what is trained, in float32"),
    "gradients": gettext_noop("its gradients"),
    "optimizer": gettext_noop("the optimizer's averages of it"),
    "reference": gettext_noop("the reference model"),
    "activations": gettext_noop("activations kept for the way back"),
    "logits": gettext_noop("logits of a tile of tokens and words"),
    "work": gettext_noop("work space of one layer or step"),
}


WORK_TERMS = {
    "cache": gettext_noop("keys and values of every token"),
    "copies": gettext_noop("copies of one layer's keys and values"),
    "logits": gettext_noop("logits of the last positions"),
    "work": TERMS["work"],
}


def surroundings(device: str, moving: int) -> list[Term]:
    """What stands around a model's own memory, of which `moving` bytes come and go."""
    if device == "cuda":
        return [
            Term("gaps", round(GAPS * moving), gettext_noop("gaps the allocator leaves")),
            Term("libraries", CUDA_CONTEXT, gettext_noop("CUDA's context")),
        ]
    return [Term("libraries", CPU_LIBRARIES, gettext_noop("libraries"))]


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

    Tried in every combination: the reference asked before the first step, checkpointing, smaller
    batches summed up to the same step (under a budget of tokens, a smaller budget), the base in
    four bits, shorter conversations. What changes no result comes first, and a suggestion that
    gives up more than another and is not smaller by it is left out.
    """
    budget = token_budget(recipe)
    batches = halves(budget, 256) if budget else halves(recipe.batch_size, 1)
    if not budget:  # the same pairs in each step
        batches = [batch for batch in batches if recipe.batch_size % batch == 0]
    asked_before = [False, *([True] if asked_reference(recipe) == "copy" else [])]
    lengths = halves(min(recipe.max_length, arch.context or recipe.max_length), 128)[:4]
    methods = [recipe.method, *(["qlora"] if recipe.method in ("lora", "full") else [])]
    checkpointing = [recipe.gradient_checkpointing]
    if not why_not(kind, recipe.method, {}, gradient_checkpointing=True):
        checkpointing.append(True)
    found: dict[int, tuple[int, Suggestion]] = {}
    for before, kept, batch, method, length in product(
        asked_before, dict.fromkeys(checkpointing), batches, methods, lengths
    ):
        changes: dict[str, Any] = {"precompute_reference": True} if before else {}
        cost = 0  # a reference asked once is less work too
        if kept != recipe.gradient_checkpointing:
            changes["gradient_checkpointing"], cost = True, cost + 2
        if budget and batch != budget:
            changes["batch_tokens"], cost = batch, cost + batches.index(batch)
        elif not budget and batch != recipe.batch_size:
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
        # One of each kind: which of checkpointing, method and length it gives up, and how it asks.
        sort = (kept != recipe.gradient_checkpointing) + 2 * (method != recipe.method)
        sort += 4 * (length != lengths[0]) + 8 * before
        if sort not in found or cost < found[sort][0]:
            found[sort] = (cost, Suggestion(changes, peak, same))
    nearest: list[Suggestion] = []
    for _cost, one in sorted(found.values(), key=lambda f: f[0]):
        settings = one.settings.items()
        if not any(o.settings.items() <= settings and o.peak <= one.peak for o in nearest):
            nearest.append(one)
    return nearest[:most]


def lighter_work(
    use: str, work: Work, arch: Architecture, available: int, *, device: str = "cuda"
) -> list[Suggestion]:
    """The most texts at once that fit, with the weights as asked and in 4 bits; empty if one text
    does not."""
    found = []
    for in_4_bits in (False, True):
        if work.in_4_bits and not in_4_bits:
            continue
        for rows in halves(work.rows, 1):
            lighter = replace(work, rows=rows, in_4_bits=in_4_bits)
            peak = inference(use, lighter, arch, device=device).peak
            if peak <= available:
                changes: dict[str, Any] = {} if rows == work.rows else {"rows": rows}
                changes |= {} if in_4_bits == work.in_4_bits else {"in_4_bits": True}
                found.append(Suggestion(changes, peak, "in_4_bits" not in changes))
                break
    return found


def halves(number: int, least: int) -> list[int]:
    """The number and its halves, rounded down, while they are not below `least`, 1 or more."""
    found = [number]
    while found[-1] // 2 >= least:
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
