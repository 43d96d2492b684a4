"""PPO, RLOO, GRPO, online DPO: a policy that learns from rewards on its own responses, on one base.

A step, from top to bottom in `train`: the policy answers prompts; reward models and functions score
the answers; policy, reference and critic read them; the equations of policy_gradients.py turn this
into advantages; and some passes over the answers move the policy and the critic.

All randomness of a step comes from the recipe's seed and the step's number, so a checkpoint holds
no random state, and a resumed run repeats the numbers of an unbroken one.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

from training.ml.data import Messages, chat_tokens
from training.ml.loading import (
    load_reward_model,
    load_tokenizer,
    longest_allowed,
    member_folders,
    n_parameters,
)
from training.ml.losses import soft_pair_loss
from training.ml.monitors import Alarm, Look, Watch, end_figures, take_look, values_of
from training.ml.peaks import held_now
from training.ml.policy_gradients import (
    combined_scores,
    explained_variance,
    gae,
    grpo_advantages,
    kl_estimate,
    loss_weights,
    next_kl_coefficient,
    policy_loss,
    rloo_advantages,
    rollout_metrics,
    token_rewards,
    update_metrics,
    value_loss,
    whiten,
)
from training.ml.ppo_config import PPORecipe
from training.ml.ratings import Rater
from training.ml.roles import (
    CRITIC,
    POLICY,
    REFERENCE,
    Batch,
    Roles,
    as_batch,
    can_share,
    in_rows,
    refuse_other_logits,
    response_mask,
    reward_role,
    rewards,
    token_logps,
    token_values,
)
from training.ml.rollouts import Rollout, end_ids, roll_out
from training.ml.settings import names_in
from training.ml.steps import OnStep, StepReport, every, quiet_trainer, resume_point, seal
from training.ml.vllm_generation import Writer

RewardFunction = Callable[[Sequence[Messages], Sequence[str]], Sequence[float]]
"""Prompts and responses to numbers, higher being better; it may not depend on chance."""
WEIGHTING = {
    "ppo": "tokens",
    "rloo": "sums",
    "grpo": "responses",
    "dr_grpo": "constant",
    "online_dpo": "responses",
}


@quiet_trainer()
def train(
    recipe: PPORecipe,
    prompts: Sequence[Messages],
    test: Sequence[Messages],
    folder: Path,
    on_step: OnStep,
    *,
    reward: RewardFunction | None = None,
    writer: Writer | None = None,
    look_at: Callable[[Look], None] = lambda look: None,
) -> dict[str, Any]:
    """Train a policy on its own responses; leave its adapter in `folder`/model.

    On test prompts it is watched over (monitors.py), and the weights of the best look are what is
    left, whether or not an alarm stopped the run. Called again on the same folder, it goes on from
    the last checkpoint and ends with the same weights as an unbroken run.

    Args: reward: scores beside those of the reward models, or instead of them; writer: a server
        that writes the responses in place of our own generation; look_at: is shown every look at
        the test prompts.
    Returns: monitors.end_figures, on the test prompts, under scores as they are optimised, before
        KL; alarm {"step", "kinds", "words", "kept_step", "pairs" [{"prompt", "old", "new"}]} where
        one stopped the run; n_train, n_steps (taken), too_long_train, too_long_test,
        kl_coefficient, trained_parameters, parameters, shared (reward models on this base); of this
        session longest (tokens of a prompt with its response), response_tokens, seconds_in
        {"generation", "scoring", "update"} and seconds. Where an alarm pauses the run: "paused",
        the alarm, and nothing else; called again it says so again, until `heard` was told of it.
    Raises: ModelMissing; ValueError if nothing scores or no prompt fits; whatever on_step raises.
    """
    began = time.monotonic()
    if not (recipe.folders or recipe.judge_model or reward):
        raise ValueError("nothing scores the responses: name a reward model, or give a function")
    tokenizer = load_tokenizer(recipe.base_model)
    room = longest_allowed(recipe.base_model, recipe.max_length) - recipe.max_new_tokens
    asked, held_out = fitting(prompts, tokenizer, room), fitting(test, tokenizer, room)
    if not asked:
        raise ValueError(
            f"no prompt of {len(prompts)} leaves room for {recipe.max_new_tokens} new tokens "
            f"within max_length={room + recipe.max_new_tokens}"
        )
    too_long = (len(prompts) - len(asked), len(test) - len(held_out))
    held_out = some_of(held_out, recipe.test_prompts, recipe.seed)

    set_seed(recipe.seed)  # adapters start at random
    if recipe.judge_model and reward is None:
        reward = Rater(
            recipe.judge_model,
            recipe.judge_guidelines,
            dtype=recipe.dtype,
            batch_size=recipe.rollout_batch_size,
        ).ratings
    elif recipe.judge_model:
        raise ValueError("judge_model: give a function or a judge, not both")
    scorer = Scorer(recipe, recipe.folders, reward)
    watcher = Scorer(recipe, names_in(recipe.holdout_reward_model), first=len(scorer.shared))
    roles = Roles(recipe, [*scorer.shared, *watcher.shared], critic=recipe.algorithm == "ppo")
    refuse_other_logits(roles, asked[0].ids)
    learner, watch = Learner(recipe, roles), Watch(recipe)
    state = State(kl_coefficient=recipe.kl_coefficient)
    point = resume_point(folder)
    if point is not None:
        state = load_checkpoint(Path(point), learner)
        watch.restore(state.watch)
    if state.paused and not (folder / HEARD.format(**state.paused)).exists():
        return {"paused": state.paused}
    state.paused = {}
    clock = _Clock()
    pad_id = tokenizer.pad_token_id
    common: dict[str, Any] = {
        "max_new_tokens": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "ends": end_ids(roles.model.get_base_model(), tokenizer),
        "pad_id": pad_id,
        "batch_size": recipe.rollout_batch_size,
    }

    def alive() -> None:
        """Whoever called may want an end, which a long step would keep waiting."""
        on_step(StepReport(step=state.step, n_steps=recipe.steps))

    def answers(chosen: Sequence[Prompt], seed: int) -> list[Rollout]:
        ids = [prompt.ids for prompt in chosen]
        with clock("generation"):
            if writer is not None:
                ours = {name: value for name, value in common.items() if name != "batch_size"}
                return writer(roles, ids, version=state.step, seed=seed, on_batch=alive, **ours)
        with clock("generation"), roles.acting(POLICY):
            return roll_out(roles.model, ids, seed=seed, on_batch=alive, **common)

    def texts_of(rollouts: Sequence[Rollout]) -> list[str]:
        return [
            tokenizer.decode(r.response_ids, skip_special_tokens=True).strip() for r in rollouts
        ]

    def scored(by: Scorer, chosen: Sequence[Prompt], texts: Sequence[str]) -> Tensor:
        with clock("scoring"):
            return by.scores(roles, tokenizer, [prompt.messages for prompt in chosen], texts)

    def measure(step: int) -> list[Alarm]:
        """A look at the test prompts, always drawn by the same numbers, reported as one point."""
        rollouts = answers(held_out, recipe.seed)
        texts, finished = texts_of(rollouts), [rollout.finished for rollout in rollouts]
        raw = scored(scorer, held_out, texts)
        read = read_rollouts(roles, rollouts, recipe, pad_id)
        numbers = {"score": one_score(recipe, raw, state.scale).tolist()}
        numbers |= {name: row.tolist() for name, row in each_response(read).items()}
        numbers["finished"] = finished
        if len(raw) > 1:
            numbers["spread"] = on_scale(raw, state.scale).std(dim=0, correction=0).tolist()
        if watcher.n:
            held = scored(watcher, held_out, texts)
            if watch.start is None:
                state.holdout_scale = scale_of(held)
            numbers["holdout"] = on_scale(held, state.holdout_scale).mean(dim=0).tolist()
        words = [r.response_ids[: -1 if r.finished else None] for r in rollouts]
        look = take_look(step, texts, words, numbers)
        found = watch.see(look)
        if watch.best is look:
            save_best(folder, roles)
        look_at(look)
        values = values_of(look, watch.start or look)
        notes = tuple(alarm.words for alarm in found)
        on_step(
            StepReport(step=step, n_steps=recipe.steps, split="test", values=values, notes=notes)
        )
        return found

    n_steps = state.step if state.stopped else recipe.steps
    for step in range(state.step + 1, n_steps + 1):
        clock.begin()
        torch.manual_seed(_seed_of(recipe.seed, step, 0))
        chosen = drawn_prompts(asked, recipe, step)
        rollouts = answers(chosen, _seed_of(recipe.seed, step, 1))
        raw = scored(scorer, chosen, texts_of(rollouts))
        if step == 1:
            # The policy is still its own start here, so these are the reference's responses.
            state.scale = reference_scale(recipe, raw)
            learner.scale_critic(state.scale[0] if scorer.shared else None)
            if held_out:
                with clock.aside():
                    measure(0)
        alive()
        scores = one_score(recipe, raw, state.scale)
        with clock("scoring"):
            read = read_rollouts(roles, rollouts, recipe, pad_id)
        finished = [rollout.finished for rollout in rollouts]
        values = rollout_metrics(read.logp, read.reference_logp, read.mask, scores, finished)
        values["kl_coefficient"] = state.kl_coefficient
        if writer is not None:
            values["server_gap"] = writer.gap
        clock.count(rollouts)
        alive()
        scores = penalised(recipe, scores, finished)
        if recipe.algorithm == "online_dpo":
            read = read.of(best_and_worst(scores, recipe.samples_per_prompt))
        advantages, returns = told_advantages(recipe, scores, read, state.kl_coefficient)
        with clock("update"):
            values |= learner.update(
                read,
                advantages,
                returns,
                kl_coefficient=state.kl_coefficient,
                step=step,
                pad_id=pad_id,
                on_batch=alive,
            )
        if recipe.kl_target:
            state.kl_coefficient = next_kl_coefficient(
                state.kl_coefficient,
                values["kl"],
                target=recipe.kl_target,
                horizon=recipe.kl_horizon,
                n=len(rollouts),
            )
        state.step = step
        _refuse_nan(values, step)
        on_step(StepReport(step=step, n_steps=recipe.steps, values=values, cost=clock.cost()))
        last = step == recipe.steps
        stops: list[Alarm] = []
        if held_out and (last or step % every(recipe.eval_every, recipe.steps) == 0):
            stops = [alarm for alarm in measure(step) if alarm.stops]
            watch.known += [alarm.kind for alarm in stops]
        heeded = bool(stops) and recipe.on_alarm != "note"
        alarm = told_alarm(watch, stops, held_out) if heeded else {}
        halts = heeded and not last
        if heeded and recipe.on_alarm == "stop":
            state.stopped = alarm
        elif halts:
            state.paused = alarm
        if halts or last or step % every(recipe.checkpoint_every, recipe.steps) == 0:
            state.watch = watch.as_json()
            path = save_checkpoint(folder, learner, state)
            on_step(StepReport(step=step, n_steps=recipe.steps, checkpoint=path))
        if halts and recipe.on_alarm == "pause":
            return {"paused": alarm}
        if halts:
            break

    if watch.best is not None and watch.best.step != state.step:
        load_best(folder, roles)
    roles.save_policy(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    _trained, parameters = n_parameters(roles.model)
    return end_figures(watch) | {
        **({"alarm": state.stopped} if state.stopped else {}),
        "n_train": len(asked),
        "n_steps": state.step,
        "too_long_train": too_long[0],
        "too_long_test": too_long[1],
        "kl_coefficient": state.kl_coefficient,
        "trained_parameters": sum(p.numel() for p in learner.parameters()),
        "parameters": parameters,
        "shared": len(scorer.shared),
        "longest": clock.longest,
        "response_tokens": clock.n_tokens,
        "seconds_in": clock.seconds,
        "seconds": time.monotonic() - began,
    }


# ---- Prompts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    messages: Messages
    ids: list[int]
    """Up to where the assistant begins."""


def fitting(prompts: Sequence[Messages], tokenizer: Any, room: int) -> list[Prompt]:
    """The prompts that leave room for a response."""
    made = [Prompt(p, chat_tokens(tokenizer, p, open_answer=True)) for p in prompts]
    return [prompt for prompt in made if len(prompt.ids) <= room]


def some_of(prompts: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """So many of the prompts at most, drawn by the seed, in their order."""
    draw = torch.Generator().manual_seed(_seed_of(seed, 0, 4))
    places = torch.randperm(len(prompts), generator=draw)[:most].sort().values
    return [prompts[place] for place in places.tolist()]


def drawn_prompts(prompts: Sequence[Prompt], recipe: PPORecipe, step: int) -> list[Prompt]:
    """The prompts of a step, each as often as it is answered, side by side.

    They are told from the step's number alone: every pass over all prompts has its own order.
    """
    n = len(prompts)
    first = (step - 1) * recipe.prompts_per_step
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, first + recipe.prompts_per_step):
        turn = place // n
        if turn not in orders:
            draw = torch.Generator().manual_seed(_seed_of(recipe.seed, turn, 2))
            orders[turn] = torch.randperm(n, generator=draw).tolist()
        chosen += [prompts[orders[turn][place % n]]] * recipe.samples_per_prompt
    return chosen


def told_alarm(watch: Watch, stops: Sequence[Alarm], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What people are told of an alarm, see `train`."""
    assert watch.now is not None
    assert watch.best is not None
    return {
        "step": watch.now.step,
        "kinds": [alarm.kind for alarm in stops],
        "words": [alarm.words for alarm in stops],
        "kept_step": watch.best.step,
        "pairs": watch.pairs([prompt.messages for prompt in prompts]),
    }


# ---- Scores -------------------------------------------------------------------------------------


class Scorer:
    """What scores responses: reward models on the shared base, others beside it, a function. Every
    member of an ensemble is a scorer of its own."""

    def __init__(
        self,
        recipe: PPORecipe,
        folders: Sequence[str],
        reward: RewardFunction | None = None,
        *,
        first: int = 0,
    ) -> None:
        """Args: first: the place among the roles' reward models that the shared ones begin at."""
        fits = {n: can_share(n, recipe.base_model, recipe.method) for n in folders}
        self.shared = [
            str(place)
            for name, fit in fits.items()
            if fit
            for place in (name, *member_folders(name))
        ]
        self.others = [
            load_reward_model(name, dtype=recipe.dtype) for name, fit in fits.items() if not fit
        ]
        self.reward, self.recipe, self.first = reward, recipe, first
        self.n = len(fits) + (reward is not None)

    def scores(
        self, roles: Roles, tokenizer: Any, prompts: Sequence[Messages], texts: Sequence[str]
    ) -> Tensor:
        """(scorers, rows), in float32 on the CPU.

        A conversation is read as the text it is, through the chat template: so the reward models
        learned, and so people see it.
        """
        recipe = self.recipe
        talks = [
            [*prompt, {"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found = []
        if self.shared:
            rows = [chat_tokens(tokenizer, talk) for talk in talks]
            begins = shared_beginnings(prompts, rows)
            order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
            scores = torch.zeros(len(self.shared), len(rows))
            for start in range(0, len(rows), recipe.rollout_batch_size):
                places = order[start : start + recipe.rollout_batch_size]
                part = [rows[place] for place in places]
                shared = [begins[place] for place in places]
                for model in range(len(self.shared)):
                    role = reward_role(self.first + model)
                    told = rewards(roles, role, part, tokenizer.pad_token_id, shared)
                    scores[model, places] = told.float().cpu()
            found.append(scores)
        if self.others:
            # Brings TRL, which PPO does without.
            from training.ml.reward_model import score_members

            for model, theirs in self.others:
                alone = score_members(
                    model,
                    theirs,
                    talks,
                    batch_size=recipe.rollout_batch_size,
                    dtype=recipe.dtype,
                )
                found.append(torch.tensor(alone).T)
        if self.reward is not None:
            numbers = [float(number) for number in self.reward(prompts, texts)]
            if len(numbers) != len(texts) or not all(map(math.isfinite, numbers)):
                raise ValueError("the reward function must give one number for each response")
            found.append(torch.tensor([numbers]))
        return torch.cat(found)


def shared_beginnings(prompts: Sequence[Messages], rows: Sequence[list[int]]) -> list[int]:
    """How many first tokens each row shares with the others to its prompt, which stand beside it;
    0 of a prompt that was answered once."""
    found = []
    for _prompt, group in groupby(range(len(rows)), key=lambda place: prompts[place]):
        beside = [rows[place] for place in group]
        alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*beside, strict=False))
        common = sum(1 for _ in alike) if len(beside) > 1 else 0
        found += [min(common, *(len(row) - 1 for row in beside))] * len(beside)
    return found


def reference_scale(recipe: PPORecipe, raw: Tensor) -> list[tuple[float, float]]:
    """(mean, deviation) of each scorer on responses of the reference; (0, 1) if not wanted."""
    if recipe.reward_scaling != "reference":
        return [(0.0, 1.0)] * len(raw)
    return scale_of(raw)


def scale_of(raw: Tensor) -> list[tuple[float, float]]:
    """(mean, deviation) of each scorer; (0, 1) from a single response."""
    if raw.shape[1] < 2:
        return [(0.0, 1.0)] * len(raw)
    return [(float(row.mean()), max(float(row.std()), 1e-4)) for row in raw]


def on_scale(raw: Tensor, scale: Sequence[tuple[float, float]]) -> Tensor:
    """Each scorer's numbers on its scale, (scorers, rows)."""
    means, deviations = torch.tensor(scale).unbind(dim=1)
    return (raw - means[:, None]) / deviations[:, None]


def one_score(recipe: PPORecipe, raw: Tensor, scale: Sequence[tuple[float, float]]) -> Tensor:
    """One score a response: each scorer on its scale, combined, bounded: (rows,)."""
    scores = combined_scores(on_scale(raw, scale), recipe.combine, recipe.uncertainty_weight)
    if recipe.reward_scaling == "batch" and len(scores) > 1:
        scores = scores / max(float(scores.std()), 1e-4)  # the mean stays: it is the price of KL
    return scores.clamp(-recipe.reward_clip, recipe.reward_clip) if recipe.reward_clip else scores


def penalised(recipe: PPORecipe, scores: Tensor, finished: Sequence[bool]) -> Tensor:
    missing = torch.tensor([not ended for ended in finished], dtype=scores.dtype)
    return scores - recipe.missing_end_penalty * missing


def best_and_worst(scores: Tensor, k: int) -> list[int]:
    """Rows of the best and the worst of every k responses; none of a prompt where all are alike."""
    rows = []
    for first in range(0, len(scores), k):
        group = scores[first : first + k]
        if group.max() > group.min():
            rows += [first + int(group.argmax()), first + int(group.argmin())]
    return rows


# ---- What the roles say of the responses --------------------------------------------------------


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


# ---- Learning -----------------------------------------------------------------------------------


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
            draw = torch.Generator().manual_seed(_seed_of(recipe.seed, step, 3 + epoch))
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


def _seed_of(seed: int, step: int, purpose: int) -> int:
    """Another seed for every step and purpose."""
    return (seed * 1_000_003 + step) * 1024 + purpose


def _refuse_nan(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is not a number at step {step}: lower learning_rate, or use float32"
            )


class _Clock:
    """Seconds of each kind of work, and the tokens that were sampled to learn: of this session, and
    of a step."""

    def __init__(self) -> None:
        self.seconds = {"generation": 0.0, "scoring": 0.0, "update": 0.0}
        self.n_tokens = self.longest = 0
        self.begin()

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[kind] += time.monotonic() - began

    def begin(self) -> None:
        """From here on a step is counted."""
        self.began, self.before = time.monotonic(), (dict(self.seconds), self.n_tokens)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile is none of the step's work."""
        began, seconds = time.monotonic(), dict(self.seconds)
        yield
        self.began += time.monotonic() - began
        for kind, now in self.seconds.items():
            self.before[0][kind] += now - seconds[kind]

    def count(self, rollouts: Sequence[Rollout]) -> None:
        self.n_tokens += sum(len(rollout.response_ids) for rollout in rollouts)
        self.longest = max(self.longest, *(rollout.n_tokens for rollout in rollouts))

    def cost(self) -> dict[str, float]:
        """What the step has taken so far, as a StepReport tells it, and the seconds of each kind of
        work."""
        seconds, n_tokens = self.before
        cost: dict[str, float] = {
            "tokens": self.n_tokens - n_tokens,
            "seconds": time.monotonic() - self.began,
        }
        cost |= {kind: now - seconds[kind] for kind, now in self.seconds.items()}
        if (memory := held_now()) is not None:
            cost["memory"] = memory
        return cost


# ---- Checkpoints --------------------------------------------------------------------------------

BEST = "best.safetensors"
"""The policy's weights at the best look."""
HEARD = "heard-{step}"
"""An empty file: somebody knows of the alarm that paused the run at this step."""


@dataclass
class State:
    """What changes in a run beside the weights. Random states and the place in the data are not
    among it: both are told from the step's number."""

    step: int = 0
    kl_coefficient: float = 0.0
    scale: list[tuple[float, float]] = field(default_factory=list)
    """Mean and deviation of each scorer on the start's responses."""
    holdout_scale: list[tuple[float, float]] = field(default_factory=list)
    """The same of the hold-out, on the start's responses to the test prompts."""
    watch: dict[str, Any] = field(default_factory=dict)
    """See monitors.Watch."""
    stopped: dict[str, Any] = field(default_factory=dict)
    """The alarm that stopped the run: resumed, it takes no further step."""
    paused: dict[str, Any] = field(default_factory=dict)
    """The alarm that paused it: resumed, it goes on if somebody has heard of that."""


def save_checkpoint(folder: Path, learner: Learner, state: State) -> Path:
    """Weights and optimizers as safetensors, the rest as JSON; the one before the last one goes."""
    path = folder / "checkpoints" / f"checkpoint-{state.step}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    tensors = {}
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.roles.trained(role).items():
            tensors[f"{role}/{name}"] = parameter.data.contiguous()
            for part, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{role}/{name}/{part}"] = value.contiguous()
    save_file(tensors, path / "learner.safetensors")
    (path / "state.json").write_text(json.dumps(asdict(state)))
    if (folder / BEST).exists():
        shutil.copyfile(folder / BEST, path / BEST)
    seal(path)
    for older in sorted(path.parent.glob("checkpoint-*"), key=_number)[:-2]:
        shutil.rmtree(older)
    return path


def load_checkpoint(path: Path, learner: Learner) -> State:
    """Put a checkpoint's weights and optimizers into their places; its state comes back."""
    tensors = load_file(path / "learner.safetensors")
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.roles.trained(role).items():
            parameter.data.copy_(tensors[f"{role}/{name}"])
            parts = ("step", "exp_avg", "exp_avg_sq")  # absent while a role has not learned yet
            known = {part: tensors.get(f"{role}/{name}/{part}") for part in parts}
            if all(value is not None for value in known.values()):
                optimizer.state[parameter] = {
                    part: value.to(parameter.device)
                    for part, value in known.items()
                    if value is not None
                }
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    for name in ("scale", "holdout_scale"):
        state[name] = [(mean, deviation) for mean, deviation in state[name]]
    if (path / BEST).exists():  # what was best after this step: it may have been replaced since
        shutil.copyfile(path / BEST, path.parents[1] / BEST)
    return State(**state)


def heard(folder: Path, alarm: dict[str, Any]) -> None:
    """Somebody knows of the alarm that paused this run: called again, `train` goes on."""
    (folder / HEARD.format(**alarm)).touch()


def save_best(folder: Path, roles: Roles) -> None:
    """The policy's weights of now as the best so far, in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{BEST}"
    weights = {name: p.data.contiguous() for name, p in roles.trained(POLICY).items()}
    save_file(weights, unfinished)
    unfinished.replace(folder / BEST)


def load_best(folder: Path, roles: Roles) -> None:
    saved = load_file(folder / BEST)
    for name, parameter in roles.trained(POLICY).items():
        parameter.data.copy_(saved[name])


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])
