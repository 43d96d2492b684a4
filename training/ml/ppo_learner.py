"""How a policy and its critic learn from scored responses: what they read there, one update."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.ml.losses import soft_pair_loss
from training.ml.policy_gradients import (
    explained_variance,
    gae,
    grpo_advantages,
    kl_estimate,
    loss_weights,
    policy_loss,
    rloo_advantages,
    token_rewards,
    update_metrics,
    value_loss,
    whiten,
)
from training.ml.ppo_config import PPORecipe
from training.ml.roles import (
    CRITIC,
    POLICY,
    REFERENCE,
    Batch,
    Roles,
    as_batch,
    in_rows,
    response_mask,
    token_logps,
    token_values,
)
from training.ml.rollouts import Rollout

WEIGHTING = {
    "ppo": "tokens",
    "rloo": "sums",
    "grpo": "responses",
    "dr_grpo": "constant",
    "online_dpo": "responses",
}


@dataclass(frozen=True)
class Read:
    """Responses, and each of their tokens as the roles read it: (rows, longest response)."""

    rollouts: Sequence[Rollout]
    mask: Tensor
    logp: Tensor
    reference_logp: Tensor
    entropy: Tensor
    values: Tensor

    def of(self, rows: list[int]) -> "Read":
        """Some of the responses."""
        tensors = (self.mask, self.logp, self.reference_logp, self.entropy, self.values)
        return Read([self.rollouts[row] for row in rows], *(tensor[rows] for tensor in tensors))


def read_rollouts(
    roles: Roles, rollouts: Sequence[Rollout], recipe: PPORecipe, pad_id: int
) -> Read:
    """Log-probabilities and values of every token as they are before the update."""
    order = sorted(range(len(rollouts)), key=lambda place: rollouts[place].n_tokens, reverse=True)
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), recipe.rollout_batch_size):
        places = order[start : start + recipe.rollout_batch_size]
        batch = as_batch(roles, [rollouts[place] for place in places], pad_id)
        with roles.acting(POLICY):
            logp, entropy = token_logps(roles, batch, recipe.temperature, entropy=True)
        with roles.acting(REFERENCE):
            reference_logp, _entropy = token_logps(roles, batch, recipe.temperature)
        values = torch.zeros_like(logp)
        if CRITIC in roles.heads:
            with roles.acting(CRITIC):
                values = token_values(roles, batch)
        flat = torch.stack([logp, reference_logp, entropy, values], dim=1)
        for place, row in zip(places, torch.split(flat, batch.lengths), strict=True):
            rows[place] = row
    told = pad_sequence([rows[place] for place in range(len(rows))], batch_first=True)
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    logp, reference_logp, entropy, values = told.unbind(dim=2)  # (rows, longest response)
    mask = response_mask(lengths, told.device)
    return Read(rollouts, mask, logp, reference_logp, entropy, values)


def each_response(read: Read) -> dict[str, Tensor]:
    """Of each response, (rows,): kl, the sum of ρ in nats; length in tokens; entropy, its mean over
    the tokens; rarest, log-probability of its least likely token in the eyes of the start."""
    length = read.mask.sum(dim=1)
    return {
        "kl": ((read.logp - read.reference_logp) * read.mask).double().sum(dim=1),
        "length": length,
        "entropy": (read.entropy * read.mask).double().sum(dim=1) / length,
        "rarest": (read.reference_logp * read.mask).amin(dim=1),
    }


def told_advantages(
    recipe: PPORecipe, scores: Tensor, read: Read, kl_coefficient: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of each token by the recipe's algorithm; without a critic, no returns.

    PPO and RLOO pay for KL out of the reward; GRPO has it in the loss, and online DPO has a loss
    without advantages: see Learner.
    """
    if recipe.algorithm == "online_dpo":
        return read.mask, read.mask
    scores = scores.to(read.mask.device)
    kl = kl_estimate(read.logp, read.reference_logp, recipe.kl) * read.mask
    if recipe.algorithm == "ppo":
        paid = token_rewards(scores, kl, read.mask, kl_coefficient)
        advantages, returns = gae(
            paid, read.values, read.mask, gamma=recipe.gamma, lam=recipe.gae_lambda
        )
        return (whiten(advantages, read.mask) if recipe.whiten_advantages else advantages), returns
    if recipe.algorithm == "rloo":
        scores = scores - kl_coefficient * kl.sum(dim=1)
    groups = scores.view(-1, recipe.samples_per_prompt)
    if recipe.algorithm == "rloo":
        told = rloo_advantages(groups)
    else:
        told = grpo_advantages(groups, by_spread=recipe.algorithm == "grpo")
    advantages = told.view(-1, 1) * read.mask
    return advantages, torch.zeros_like(advantages)


class Learner:
    """The optimizers of policy and critic, and one update of both."""

    def __init__(self, recipe: PPORecipe, roles: Roles) -> None:
        self.recipe, self.roles = recipe, roles
        self.rates = {POLICY: recipe.learning_rate}
        if CRITIC in roles.heads:
            self.rates[CRITIC] = recipe.critic_learning_rate
        self.optimizers = {
            role: torch.optim.AdamW(
                roles.trained(role).values(), lr=rate, weight_decay=recipe.weight_decay, fused=True
            )
            for role, rate in self.rates.items()
        }
        if recipe.gradient_checkpointing:
            roles.model.get_base_model().gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        for role in self.optimizers:
            yield from self.roles.trained(role).values()

    def scale_critic(self, scale: tuple[float, float] | None) -> None:
        """Let the critic that began as a reward model foretell scores on the scale of the run."""
        if scale is not None and CRITIC in self.optimizers:
            mean, deviation = scale
            head = self.roles.heads[CRITIC]
            head.weight.data.div_(deviation)
            head.bias.data.sub_(mean).div_(deviation)

    def update(
        self,
        read: Read,
        advantages: Tensor,
        returns: Tensor,
        *,
        kl_coefficient: float,
        step: int,
        pad_id: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Some passes over the responses of a step; `on_batch` is called within them.

        Returns: means over the last pass: loss, of a critic value_loss and explained_variance
            (before the update), update_metrics, grad_norm, epochs, learning_rate. While the critic
            warms up alone, or where no two responses differ in score, loss is 0.
        """
        recipe = self.recipe
        if not read.rollouts:
            return {"loss": 0.0, "grad_norm": 0.0, "epochs": 0.0}
        together = 2 if recipe.algorithm == "online_dpo" else 1  # rows, side by side
        size = max(together, recipe.batch_size - recipe.batch_size % together)
        learns = list(self.optimizers)
        if step <= recipe.critic_warmup and CRITIC in learns:
            learns = [CRITIC]
        factor = rate_factor(recipe, step)
        for role, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[role] * factor
        told: dict[str, float] = {}
        for epoch in range(recipe.epochs):
            draw = torch.Generator().manual_seed(seed_of(recipe.seed, step, 3 + epoch))
            order = torch.randperm(len(read.rollouts) // together, generator=draw) * together
            seen = torch.zeros_like(read.logp)
            losses = {role: torch.zeros((), device=self.roles.device) for role in (POLICY, CRITIC)}
            norms = []
            for drawn in order.chunk(recipe.minibatches):
                # Like lengths together: less padding, the same sum.
                firsts = sorted(
                    drawn.tolist(), key=lambda row: read.rollouts[row].n_tokens, reverse=True
                )
                rows = [first + place for first in firsts for place in range(together)]
                weights = loss_weights(
                    read.mask[rows], WEIGHTING[recipe.algorithm], recipe.max_new_tokens
                )
                parts = [rows[at : at + size] for at in range(0, len(rows), size)]
                batches = [
                    as_batch(self.roles, [read.rollouts[row] for row in some], pad_id)
                    for some in parts
                ]
                for role in learns:
                    at = 0
                    for some, batch in zip(parts, batches, strict=True):
                        real = read.mask[some].bool()
                        weight = weights[at : at + len(some)][real]
                        at += len(some)
                        with self._learning(role):
                            if role == POLICY:
                                loss, logp = self._policy_loss(
                                    batch,
                                    read,
                                    some,
                                    advantages[some][real],
                                    weight,
                                    kl_coefficient,
                                )
                                seen[some] = in_rows(logp.detach(), read.mask[some])
                            else:
                                loss = value_loss(
                                    token_values(self.roles, batch),
                                    read.values[some][real],
                                    returns[some][real],
                                    weight,
                                    clip=recipe.value_clip,
                                )
                            loss.backward()  # type: ignore[no-untyped-call]
                        losses[role] += loss.detach() / recipe.minibatches
                    norms.append(self._step(role))
                    on_batch()
            told = {
                "loss": float(losses[POLICY]),
                "grad_norm": float(torch.stack(norms).mean()),
                "epochs": float(epoch + 1),
                "learning_rate": recipe.learning_rate * factor,
            }
            if CRITIC in learns:
                told["value_loss"] = float(losses[CRITIC])
                told["explained_variance"] = explained_variance(read.values, returns, read.mask)
            if POLICY in learns:
                told |= update_metrics(seen, read.logp, read.entropy, read.mask, clip=recipe.clip)
                if recipe.stop_kl and told["approx_kl"] > recipe.stop_kl:
                    break
        return told

    def _policy_loss(
        self,
        batch: Batch,
        read: Read,
        rows: list[int],
        advantages: Tensor,
        weights: Tensor,
        kl_coefficient: float,
    ) -> tuple[Tensor, Tensor]:
        """(loss, log-probabilities now) of some rows; all but those of the rows' real tokens."""
        recipe, real = self.recipe, read.mask[rows].bool()
        logp, _entropy = token_logps(self.roles, batch, recipe.temperature)
        if recipe.algorithm == "online_dpo":
            gained = torch.split(logp - read.reference_logp[rows][real], batch.lengths)
            up, down = torch.stack([row.sum() for row in gained]).view(-1, 2).unbind(dim=1)
            share = torch.stack([row.sum() for row in torch.split(weights, batch.lengths)])
            delta = kl_coefficient * (up - down)  # (pairs,); the price of KL is DPO's β
            return soft_pair_loss(
                delta, torch.ones_like(delta), share.view(-1, 2).sum(dim=1)
            ).sum(), logp
        loss = policy_loss(logp, read.logp[rows][real], advantages, weights, clip=recipe.clip)
        if recipe.algorithm in ("grpo", "dr_grpo"):
            # As a loss, k1 would have no gradient in the mean; k3 is what their paper takes.
            kl = kl_estimate(logp, read.reference_logp[rows][real], "k3")
            loss = loss + kl_coefficient * (weights * kl).sum()
        return loss, logp

    @contextmanager
    def _learning(self, role: str) -> Iterator[None]:
        # Gradient checkpointing works in training mode alone; there is no dropout that it wakes.
        if self.recipe.gradient_checkpointing:
            self.roles.model.train()
        with self.roles.acting(role, learning=True):
            yield
        if self.recipe.gradient_checkpointing:
            self.roles.model.eval()

    def _step(self, role: str) -> Tensor:
        """One step of a role's optimizer. Returns: the length of its gradient before it."""
        parameters = list(self.roles.trained(role).values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm)
        self.optimizers[role].step()
        self.optimizers[role].zero_grad(set_to_none=True)
        return norm


def rate_factor(recipe: PPORecipe, step: int) -> float:
    """Share of the highest step size in a step, from 1 on: no step is wasted at a rate of 0."""
    warmup = math.ceil(recipe.warmup_share * recipe.steps)
    if step <= warmup:
        return step / (warmup + 1)
    gone = (step - 1 - warmup) / max(1, recipe.steps - warmup)
    if recipe.scheduler == "linear":
        return 1 - gone
    return (1 + math.cos(math.pi * gone)) / 2 if recipe.scheduler == "cosine" else 1.0


def seed_of(seed: int, step: int, purpose: int) -> int:
    """Another seed for every step and purpose."""
    return (seed * 1_000_003 + step) * 1024 + purpose
