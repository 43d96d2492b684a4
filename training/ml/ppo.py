"""PPO, RLOO, GRPO, online DPO: a policy that learns from rewards on its own responses, on one base.

A step, from top to bottom in `train`: the policy answers prompts; reward models and functions score
the answers; policy, reference and critic read them; the equations of policy_gradients.py turn this
into advantages; and some passes over the answers move the policy and the critic.

All randomness of a step comes from the recipe's seed and the step's number, so a checkpoint holds
no random state, and a resumed run repeats the numbers of an unbroken one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from training.ml.data import Messages, chat_tokens, words_of
from training.ml.loading import load_tokenizer, longest_allowed, n_parameters
from training.ml.monitors import Alarm, Look, Watch, end_figures, take_look, values_of
from training.ml.peaks import held_now
from training.ml.policy_gradients import next_kl_coefficient, rollout_metrics
from training.ml.ppo_checkpoints import (
    HEARD,
    State,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from training.ml.ppo_config import PPORecipe
from training.ml.ppo_learner import Learner, each_response, read_rollouts, seed_of, told_advantages
from training.ml.ppo_scores import (
    RewardFunction,
    Scorer,
    best_and_worst,
    on_scale,
    one_score,
    penalised,
    reference_scale,
    scale_of,
)
from training.ml.ratings import Rater
from training.ml.roles import POLICY, Roles, refuse_other_logits
from training.ml.rollouts import Rollout, end_ids, roll_out
from training.ml.settings import names_in
from training.ml.steps import OnStep, StepReport, every, quiet_trainer, resume_point
from training.ml.vllm_generation import Writer


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
        return [words_of(tokenizer, r.response_ids) for r in rollouts]

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
        torch.manual_seed(seed_of(recipe.seed, step, 0))
        chosen = drawn_prompts(asked, recipe, step)
        rollouts = answers(chosen, seed_of(recipe.seed, step, 1))
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
    draw = torch.Generator().manual_seed(seed_of(seed, 0, 4))
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
            draw = torch.Generator().manual_seed(seed_of(recipe.seed, turn, 2))
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
