"""Will PPO fit? The peak of four roles on one base, told from configs and the headers of weights.

As memory.py, whose terms these are: no torch in here. One copy of the base; on it the adapters of
the policy, the critic, the reward models and, where the policy goes on from an adapter, the
reference. What moves is the largest of a rollout, of reading what was written, and of an update,
in which one role at a time has gradients.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.ml.architecture import Architecture, read_architecture
from training.ml.memory import (
    ADAM_STATES,
    MOST_ASKED,
    TERMS,
    Estimate,
    Suggestion,
    Term,
    Work,
    activations,
    adapted_layers,
    adapter_weights,
    base_weights,
    halves,
    inference,
    kv_cache,
    mapped_file,
    number_bytes,
    surroundings,
    work_space,
)
from training.ml.methods import BESIDE, IN_4_BITS
from training.ml.ppo_config import PPORecipe
from training.ml.settings import gettext_noop, names_in, targets
from training.ml.weights import tensor_shapes

KEPT_LOGITS = 2**24
"""Logits of an update that exist at once: training/ml/roles.py."""
LOGIT_BYTES = 8
"""Of each of them: itself and its log-probability, in whose place the way back is told."""
DRAWN_BYTES = 24
"""Of each logit that is drawn from: logits, probabilities and their sums in float64, which are made
of a copy: training/ml/rollouts.py _draw."""
ROOM = 64
"""Positions by which the room for keys and values grows: training/ml/rollouts.py BLOCK."""
ASKED_TOKENS = 2**18
"""Of a batch of a judge, and on a CPU ASKED_BYTES of keys and values: judges/ml/engine.py."""
ASKED_BYTES = 2**31
WORDS = {
    "weights": TERMS["weights"],
    "trained": gettext_noop("policy and critic, in float32"),
    "optimizer": TERMS["optimizer"],
    "frozen": gettext_noop("adapters of reward models and reference, in float32"),
    "beside": gettext_noop("models that score and cannot share the base"),
    "gradients": TERMS["gradients"],
    "activations": TERMS["activations"],
    "cache": gettext_noop("keys and values of every token that is written"),
    "logits": gettext_noop("logits of some positions"),
    "work": TERMS["work"],
}


@dataclass(frozen=True)
class Judge:
    """A judge of the project that is asked on the machine of the run."""

    folder: str
    dtype: str
    in_4_bits: bool
    context: int
    """Tokens of a question at most; 0 is as much as the model can read."""
    lead: int
    """About how many tokens every question begins with; they are held once."""
    words: int
    """About how many stand after the response."""


def predict(
    recipe: PPORecipe,
    arch: Architecture,
    *,
    device: str = "cuda",
    tokens: int | None = None,
    judge: Judge | None = None,
) -> Estimate:
    """The peak of a run, its terms adding up to it.

    Args: arch: of the base; tokens: of the longest prompt with its response, where it is known;
        else max_length, or the model's context where that is shorter; judge: that scores, if it is
        asked here. The recipe names folders.
    Raises: ValueError where a model beside the base cannot be counted.
    """
    number = number_bytes(recipe.dtype, device)
    limit = min(recipe.max_length, arch.context or recipe.max_length)
    tokens = min(tokens or limit, limit)
    new = min(recipe.max_new_tokens, tokens)
    start = adapter_numbers(recipe.base_model)
    new_adapter = adapter_weights(arch, recipe.lora_rank, targets(recipe))
    new_adapter += arch.norms if recipe.train_norms else 0
    if recipe.method == "dora":  # a length for every output
        wanted = adapted_layers(arch, targets(recipe))
        new_adapter += sum(d_out for layer in wanted for _path, _in, d_out in layer)
    policy = start or new_adapter
    folders = [*recipe.folders, *names_in(recipe.holdout_reward_model)]
    shared = [folder for folder in folders if shares(folder, recipe)]
    on_base = [n for folder in shared for n in member_numbers(folder)]
    critic = 0
    if recipe.algorithm == "ppo":
        first = recipe.folders[0] if recipe.folders else ""
        critic = (adapter_numbers(first) if first in shared else 0) or new_adapter + arch.hidden
        critic += 1  # its head's bias
    trained = policy + critic
    beside = sum(
        _beside(folder, number=number, device=device) for folder in folders if folder not in shared
    )
    if recipe.judge_model:  # it writes one digit: no keys and values, and its head
        asked = read_architecture(recipe.judge_model)
        beside += base_weights(asked, method="lora", number=number)
    written = recipe.prompts_per_step * recipe.samples_per_prompt
    judging: dict[str, int] = {}
    if judge is not None:
        at_work = _asked(judge, written, tokens, device)
        beside += at_work.pop("weights")
        judging = at_work
    always = {
        "weights": base_weights(arch, method=recipe.method, number=number)
        + mapped_file(arch, method=recipe.method, number=number, device=device),
        "trained": trained * 4,
        "optimizer": trained * ADAM_STATES,
        "frozen": 4 * (sum(on_base) + start),
        "beside": beside,
    }
    rows, some = min(recipe.rollout_batch_size, written), min(recipe.batch_size, written)
    method = recipe.method
    held = kv_cache(arch, rows=rows, tokens=tokens + ROOM, number=number)
    copied = held // arch.layers  # one layer's, while its room grows
    if arch.heads != arch.kv_heads:  # and repeated for all heads
        copied += rows * tokens * 2 * arch.heads * arch.head_dim * number
    kept: dict[str, Any] = {
        "checkpointing": recipe.gradient_checkpointing,
        "method": method,
        "wanted": targets(recipe),
        "rank": recipe.lora_rank,
        "norms": recipe.train_norms,
    }
    learning: dict[str, Any] = {"rows": some, "tokens": tokens, "number": number}
    reading = work_space(arch, rows=rows, tokens=tokens, number=number, method=method)
    moments = {
        "rollout": {
            "cache": held + copied,
            "logits": rows * arch.vocabulary * DRAWN_BYTES,
            "work": work_space(
                arch, rows=rows, tokens=max(1, tokens - new), number=number, method=method
            ),
        },
        "judging": judging,
        "reading": {"logits": _logits(arch, rows * new), "work": reading},
        "update": {
            "gradients": 4 * max(policy, critic),
            "activations": activations(arch, **learning, **kept),
            "logits": _logits(arch, some * new),
            "work": work_space(arch, **learning, method=method),
        },
        "step": {"gradients": 4 * max(policy, critic), "work": 4 * max(policy, critic)},
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    found = always | moments[moment]
    moving = sum(found.get(name, 0) for name in ("activations", "cache", "logits", "work"))
    terms = [Term(name, found.get(name, 0), words) for name, words in WORDS.items()]
    terms += surroundings(device, moving)
    told = tuple(term for term in terms if term.bytes)
    at_once = some if moment in ("update", "step") else rows
    if moment == "judging":
        at_once = written
    return Estimate(told, moment, trained, arch.weights, tokens, device, (at_once, tokens))


def _asked(judge: Judge, n: int, tokens: int, device: str) -> dict[str, int]:
    """Bytes of a judge that is asked about n responses: its weights, keys and values, what passes
    through it, and its logits."""
    arch = read_architecture(judge.folder)
    tokens = min(tokens + judge.words, judge.context or arch.context or 2**31)
    token = kv_cache(arch, number=number_bytes(judge.dtype, device))
    most = min(ASKED_TOKENS, ASKED_BYTES // token) if device == "cpu" else ASKED_TOKENS
    rows = max(1, min(n, MOST_ASKED[device], most // tokens))
    tokens += -(-judge.lead // rows)
    work = Work(
        rows=rows, tokens=tokens, new_tokens=0, dtype=judge.dtype, in_4_bits=judge.in_4_bits
    )
    terms = inference("ask", work, arch, device=device).terms
    moving = ("weights", "cache", "logits", "work")
    return {term.name: term.bytes for term in terms if term.name in moving}


def _logits(arch: Architecture, positions: int) -> int:
    at_once = min(positions, max(1, KEPT_LOGITS // arch.vocabulary))
    return at_once * arch.vocabulary * LOGIT_BYTES


def adapter_numbers(folder: str) -> int:
    """Numbers of an adapter, its score head with them; 0 for any other model."""
    if not (Path(folder) / "adapter_config.json").exists():
        return 0
    return _numbers(Path(folder))


def member_numbers(folder: str) -> list[int]:
    """The same of every member of an ensemble."""
    return [_numbers(place) for place in (Path(folder), *sorted(Path(folder).glob("member-*")))]


def _numbers(folder: Path) -> int:
    total = 0
    for shape in tensor_shapes(folder).values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def shares(folder: str, recipe: PPORecipe) -> bool:
    """Whether a reward model stands on the policy's base, as far as names tell: roles.can_share
    looks at the weights too."""
    place, start = Path(folder), Path(recipe.base_model)
    own = _json(place / "adapter_config.json").get("base_model_name_or_path")
    made, there = _json(place / "made_by.json"), _json(start / "made_by.json")
    base = _json(start / "adapter_config.json").get("base_model_name_or_path", str(start))
    method = made.get("method", "lora")
    return (
        own is not None
        and Path(own).resolve() == Path(base).resolve()
        and method in (*BESIDE, "pissa")
        and (method in IN_4_BITS) == (recipe.method in IN_4_BITS)
        and made.get("rope") == there.get("rope")
    )


def _beside(folder: str, *, number: int, device: str) -> int:
    """Bytes of a reward model with a base of its own."""
    arch = read_architecture(folder)
    method = _json(Path(folder) / "made_by.json").get("method", "lora")
    weights = base_weights(arch, method=method, number=number, head=False)
    weights += mapped_file(arch, method=method, number=number, device=device)
    return weights + 4 * sum(member_numbers(folder) if adapter_numbers(folder) else [])


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def suggestions(
    recipe: PPORecipe,
    arch: Architecture,
    available: int,
    *,
    device: str = "cuda",
    judge: Judge | None = None,
    most: int = 3,
) -> list[Suggestion]:
    """The nearest settings that fit: fewer responses in memory at once and checkpointing first,
    which change no result; then RLOO, which has no critic; then the base in 4 bits."""
    gives_up: list[dict[str, Any]] = [{}]
    if recipe.algorithm == "ppo":
        gives_up.append(
            {"algorithm": "rloo", "samples_per_prompt": max(2, recipe.samples_per_prompt)}
        )
    if recipe.method == "lora" and adapter_numbers(recipe.base_model) == 0:
        gives_up += [{**changes, "method": "qlora"} for changes in gives_up]
    found = []
    for changes in gives_up:
        for same in _lighter(recipe):
            chosen = {**same, **changes}
            peak = predict(replace(recipe, **chosen), arch, device=device, judge=judge).peak
            if chosen and peak <= available:
                found.append(Suggestion(chosen, peak, not changes))
                break
    return found[:most]


def _lighter(recipe: PPORecipe) -> list[dict[str, Any]]:
    """Settings that take less memory for the same result, the least change first."""
    steps: list[dict[str, Any]] = [{}]
    batches, rollouts = halves(recipe.batch_size, 1), halves(recipe.rollout_batch_size, 1)
    for place in range(1, max(len(batches), len(rollouts))):
        steps.append(
            {
                "batch_size": batches[min(place, len(batches) - 1)],
                "rollout_batch_size": rollouts[min(place, len(rollouts) - 1)],
            }
        )
    if not recipe.gradient_checkpointing:
        steps += [{**step, "gradient_checkpointing": True} for step in steps]
    return steps
