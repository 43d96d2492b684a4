"""The four roles of PPO on one base: policy, reference, critic and reward models as adapters.

The base is in memory once, in 4 bits or in full. A role is the adapter that is active while it is
asked; the reference is no adapter at all, or a frozen copy of the one that the policy starts from.
Critic and reward models have a head of their own: a vector that makes a number of a hidden state.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.ml.loading import (
    HEADS,
    MADE_BY,
    UNSCALED,
    ModelMissing,
    adapter_base,
    adapter_config,
    load_causal,
    made_by,
    number_format,
    revision,
    rope_of,
    without_dropout,
)
from training.ml.logprobs import pad_right
from training.ml.lora_layers import quicken
from training.ml.methods import BESIDE, IN_4_BITS
from training.ml.packing import lay, model_inputs, pack
from training.ml.rollouts import Rollout, body_and_head

POLICY, REFERENCE, CRITIC = "default", "reference", "critic"
"""PEFT saves an adapter of the first name as the folder's own."""
KEPT_LOGITS = 2**24
"""Logits that exist at once. In float32 they are 64 MiB."""


def reward_role(place: int) -> str:
    return f"reward-{place}"


def can_share(reward_model: str, start: str, method: str) -> bool:
    """Whether a reward model is an adapter that can stand on the base of this policy, held by this
    method.

    One that learned beside a base in 4 bits, or with scaled positions, gives other numbers on
    another base.
    """
    own_base, base = adapter_base(reward_model), adapter_base(start) or start
    if own_base is None or made_by(reward_model) not in (*BESIDE, "pissa"):
        return False
    if (made_by(reward_model) in IN_4_BITS) != (method in IN_4_BITS):
        return False
    if rope_of(reward_model) != rope_of(start):
        return False
    same_place = Path(own_base).resolve() == Path(base).resolve()
    return own_base == base or same_place or revision(own_base) == revision(base)


class Roles:
    """A base with an adapter for each role."""

    def __init__(self, recipe: Any, reward_models: Sequence[str], *, critic: bool) -> None:
        """Seed before: new adapters start at random.

        Args:
            recipe: a PPORecipe. Its base_model is the policy's start: a base, or the folder of an
                adapter, which then is trained further, and whose frozen copy is the reference.
            reward_models: folders of reward models that can share the base; see can_share.
            critic: whether one is wanted. It begins as the first reward model; without one, as a
                new adapter whose head says 0.
        Raises: ModelMissing; ValueError for a method or a base that cannot be shared.
        """
        if recipe.method not in BESIDE:
            raise ValueError(
                f"method is {recipe.method!r}; roles share a base by {', '.join(BESIDE)}"
            )
        start = adapter_base(recipe.base_model)
        if start is not None and made_by(recipe.base_model) not in BESIDE:
            start = None  # load_causal merges it, or says why it cannot
        self.rope = rope_of(recipe.base_model) if start is not None else UNSCALED
        base = load_causal(
            start or recipe.base_model, method=recipe.method, dtype=recipe.dtype, rope=self.rope
        )
        base.requires_grad_(False)
        self.method, self.numbers = recipe.method, number_format(recipe.dtype)
        self.heads: dict[str, torch.nn.Linear] = {}
        self.reference_copy = start is not None
        config = adapter_config(base, recipe, task="CAUSAL_LM")
        if start is None:
            self.model: Any = get_peft_model(base, config, adapter_name=POLICY)
        else:
            self.model = get_peft_model(base, _config(recipe.base_model), adapter_name=POLICY)
            self._fill(POLICY, recipe.base_model)
            self._add(REFERENCE, recipe.base_model)
        for place, folder in enumerate(reward_models):
            self._add(reward_role(place), folder, head=True)
        if critic and reward_models:
            self._add(CRITIC, reward_models[0], head=True)
        elif critic:
            self.model.add_adapter(CRITIC, config)
            self.heads[CRITIC] = self._new_head()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(False)
            if any(f".{role}." in name for role in self.model.peft_config):
                parameter.data = parameter.data.float()
        for head in self.heads.values():
            head.requires_grad_(False)
        self._learned = {role: self._parameters_of(role) for role in (POLICY, CRITIC)}
        for parameters in self._learned.values():
            for parameter in parameters.values():
                parameter.requires_grad_(True)
        self._switched = [
            module
            for module in self.model.modules()
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        ]
        self.body, self.words = body_and_head(self.model)
        # A policy that drops inputs by chance is not the one that sampled: no ratio would be right.
        without_dropout(self.model)
        for module in self.model.modules():
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        self.model.eval()
        quicken(self.model)
        with self.acting(POLICY):
            self.in_lines = pack(self.body)

    def trained(self, role: str) -> dict[str, torch.nn.Parameter]:
        """The parameters of the policy or the critic by name, the critic's head among them."""
        return self._learned[role]

    def _parameters_of(self, role: str) -> dict[str, torch.nn.Parameter]:
        found = {n: p for n, p in self.model.named_parameters() if f".{role}." in n}
        if role in self.heads:
            found |= {f"head.{n}": p for n, p in self.heads[role].named_parameters()}
        return found

    @contextlib.contextmanager
    def acting(self, role: str, *, learning: bool = False) -> Iterator[None]:
        """The model speaks as this role meanwhile. While learning, gradients reach its adapter:
        the way back must then be gone within."""
        spoken = [] if role == REFERENCE and not self.reference_copy else [role]
        # What PEFT's set_adapter and disable_adapter do, without their look at every parameter,
        # which takes longer than a small model's layers.
        for layer in self._switched:
            layer._active_adapter = spoken
        with (
            torch.set_grad_enabled(learning),
            torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=self.numbers == torch.bfloat16
            ),
        ):
            yield

    @property
    def device(self) -> torch.device:
        where: torch.device = self.words.weight.device
        return where

    def save_policy(self, place: Path) -> None:
        """The policy's adapter as safetensors, as any run leaves it, and what made it."""
        self.model.save_pretrained(place, selected_adapters=[POLICY], save_embedding_layers=False)
        made: dict[str, Any] = {"method": self.method}
        if self.rope != UNSCALED:
            made["rope"] = self.rope
        (place / MADE_BY).write_text(json.dumps(made))

    def _new_head(self) -> torch.nn.Linear:
        width = self.model.get_base_model().get_output_embeddings().weight.shape[1]
        head = torch.nn.Linear(width, 1, device=self.model.device, dtype=torch.float32)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        return head

    def _add(self, role: str, folder: str, *, head: bool = False) -> None:
        self.model.add_adapter(role, _config(folder))
        found = self._fill(role, folder)
        if head:
            self.heads[role] = self._new_head()
            if found is None:
                raise ModelMissing(f"{folder} holds no reward model: it has no score head")
            self.heads[role].weight.data.copy_(found)

    def _fill(self, role: str, folder: str) -> Tensor | None:
        """Put an adapter's weights into its place; its head's weights come back, if it has one."""
        path = Path(folder) / "adapter_model.safetensors"
        if not path.is_file():
            raise ModelMissing(f"{folder} has no adapter_model.safetensors")
        weights = load_file(path)
        heads = [name for name in weights if name.split(".")[-2] in HEADS]
        head = [weights.pop(name) for name in heads]
        result = set_peft_model_state_dict(self.model, weights, adapter_name=role)
        if result.unexpected_keys:
            raise ValueError(f"{folder} does not fit this base: {result.unexpected_keys[0]}")
        return head[0] if head else None


def _config(folder: str) -> PeftConfig:
    """A saved adapter's settings, its score head left out: the roles hold heads themselves."""
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder} is no adapter of the LoRA family")
    config.task_type = "CAUSAL_LM"
    whole = sorted({name for name in config.modules_to_save or [] if name not in HEADS})
    config.modules_to_save = whole or None
    return config


# ---- What a role says ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Rollouts as a model is given them: in a line (packing.py), or padded behind."""

    given: dict[str, Any]
    told: Tensor
    """(response tokens,), where among all positions stands what each of them is told from."""
    wanted: Tensor
    """(response tokens,), the tokens."""
    lengths: list[int]
    """Tokens of each response."""


def as_batch(roles: Roles, rollouts: Sequence[Rollout], pad_id: int) -> Batch:
    rows = [rollout.prompt_ids + rollout.response_ids for rollout in rollouts]
    asked, places = _side_by_side(roles, rows, [len(r.prompt_ids) for r in rollouts], pad_id)
    before = [
        place
        for rollout, own in zip(rollouts, places, strict=True)
        for place in own[len(rollout.prompt_ids) - 1 : -1]
    ]
    wanted = [token for rollout in rollouts for token in rollout.response_ids]
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    told = torch.tensor([before, wanted], device=roles.device)
    return Batch(asked, told[0], told[1], lengths)


def _side_by_side(
    roles: Roles, rows: Sequence[list[int]], shared: Sequence[int], pad_id: int
) -> tuple[dict[str, Any], Sequence[Sequence[int]]]:
    """What the body is called with for these rows; and where, among all positions, each token of
    each row stands. `shared`: see packing.lay."""
    if roles.in_lines:
        line, places = lay(rows, shared, roles.device)
        return model_inputs(line), places
    ids, attention = (tensor.to(roles.device) for tensor in pad_right(rows, pad_id))
    width = ids.shape[1]
    return (
        {"input_ids": ids, "attention_mask": attention, "use_cache": False},
        [range(at * width, at * width + len(row)) for at, row in enumerate(rows)],
    )


def response_mask(lengths: Sequence[int], where: torch.device) -> Tensor:
    """(rows, longest response), 1.0 where there is a token."""
    places = torch.arange(max(lengths), device=where)
    return (places[None, :] < torch.tensor(lengths, device=where)[:, None]).float()


def in_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """Numbers of all tokens in a line, (tokens,), as (rows, longest response), 0 elsewhere."""
    return torch.zeros_like(mask, dtype=flat.dtype).masked_scatter(mask.bool(), flat)


def hidden_states(roles: Roles, asked: dict[str, Any], places: Tensor) -> Tensor:
    """What the active role's last layer says at some of all positions: (places, width)."""
    states: Tensor = roles.body(**asked).last_hidden_state
    return states.flatten(0, 1).index_select(0, places)


def token_logps(
    roles: Roles, batch: Batch, temperature: float, *, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy) of each response token in nats, (response tokens,) each; the
    entropies are empty where they are not wanted.

    Of the distribution that is sampled from: logits / temperature. No gradient goes through the
    entropy. Logits exist for response tokens alone, and never for more than KEPT_LOGITS at once.
    """
    hidden = hidden_states(roles, batch.given, batch.told)
    words = roles.words
    size = max(1, KEPT_LOGITS // words.weight.shape[0])
    learning = torch.is_grad_enabled()
    # Where the words are not trained, what the way back needs of them is known on the way there.
    frozen = type(words) is torch.nn.Linear and not words.weight.requires_grad
    logps, entropies = [], [hidden.new_empty(0, dtype=torch.float32)]
    for at in range(0, len(hidden), size):
        given = (words, hidden[at : at + size], batch.wanted[at : at + size], temperature)
        if learning and frozen and not entropy:
            logps.append(_FrozenWords.apply(*given))  # type: ignore[no-untyped-call]
        elif learning and len(hidden) > size:
            told = checkpoint(_logps, *given, entropy, use_reentrant=False)
            logps.append(told[0])
            entropies.append(told[1])
        else:
            logp, spread = _logps(*given, entropy)
            logps.append(logp)
            entropies.append(spread)
    return torch.cat(logps), torch.cat(entropies)


def _logps(
    words: Any, hidden: Tensor, wanted: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    all_logps = torch.log_softmax(words(hidden).float() / temperature, dim=-1)  # (tokens, words)
    with torch.no_grad():
        told = all_logps[:0, 0]
        if entropy:
            told = -torch.linalg.vecdot(all_logps.exp(), all_logps)
    return all_logps.gather(-1, wanted[:, None]).squeeze(-1), told


class _FrozenWords(torch.autograd.Function):
    """log π of the wanted tokens. ∂/∂hidden of each is (1[wanted] − π)·W / temperature, a vector
    of the model's width, kept in place of the logits."""

    @staticmethod
    def forward(
        ctx: Any, words: torch.nn.Linear, hidden: Tensor, wanted: Tensor, temperature: float
    ) -> Tensor:
        all_logps = torch.log_softmax(words(hidden).float() / temperature, dim=-1)
        logps = all_logps.gather(-1, wanted[:, None])
        slope = all_logps.exp_().neg_()
        slope.scatter_add_(-1, wanted[:, None], torch.ones_like(logps))
        ctx.save_for_backward((slope.to(words.weight.dtype) @ words.weight) / temperature)
        ctx.number = hidden.dtype
        return logps.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return None, (given[0][:, None] * slope).to(ctx.number), None, None


def token_values(roles: Roles, batch: Batch) -> Tensor:
    """The critic's value before each response token: (response tokens,)."""
    states = hidden_states(roles, batch.given, batch.told)
    with torch.autocast(roles.device.type, enabled=False):
        values: Tensor = roles.heads[CRITIC](states.float()).squeeze(-1)
    return values


def rewards(
    roles: Roles,
    role: str,
    rows: Sequence[list[int]],
    pad_id: int,
    shared: Sequence[int] | None = None,
) -> Tensor:
    """A reward model's number for each conversation, read at its last token: (rows,).

    Args: shared: how many of each row's first tokens other rows may begin with too.
    """
    asked, places = _side_by_side(roles, rows, shared or [0] * len(rows), pad_id)
    last = torch.tensor([own[-1] for own in places], device=roles.device)
    with roles.acting(role):
        states = hidden_states(roles, asked, last)
        with torch.autocast(roles.device.type, enabled=False):
            found: Tensor = roles.heads[role](states.float()).squeeze(-1)
    return found


def refuse_other_logits(roles: Roles, ids: list[int]) -> None:
    """Raises: ValueError if the model does more to its logits than its last layer does."""
    batch = torch.tensor([ids], device=roles.device)
    with roles.acting(POLICY):
        whole = roles.model.get_base_model()(input_ids=batch, use_cache=False).logits.float()
        parts = roles.words(roles.body(input_ids=batch, use_cache=False).last_hidden_state).float()
    if not math.isclose(float((whole - parts).abs().max()), 0.0, abs_tol=1e-2):
        raise ValueError("this model scales or caps its logits, which rollouts do not know of")
