"""DPO and its kin: a policy learned from pairs, or from single good and bad responses, without a
reward model.

The reference model is the one that a run starts from. It is asked once, before there is an
adapter, and its numbers are kept with the run; asked live, it is the policy with its adapter off,
or a second copy for the methods that have nothing to turn off.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import set_seed

from training.ml import ranks
from training.ml.adapting import (
    adapted,
    optimizer_of,
    optimizer_words,
    save_model,
    save_start,
)
from training.ml.batches import parts_of, steps_of, useful_share
from training.ml.config import NO_REFERENCE, DPORecipe
from training.ml.data import (
    LeftOut,
    Pair,
    Single,
    TokenPair,
    TokenSingle,
    kept_apart,
    pairs_of,
    prompt_of,
    singles_of,
    to_singles,
    tokenize_pairs,
    tokenize_singles,
    without_ties,
)
from training.ml.evaluation import pair_metrics, single_metrics
from training.ml.loading import (
    load_causal,
    load_tokenizer,
    longest_allowed,
    n_parameters,
    number_format,
    train_in_float32,
    without_dropout,
)
from training.ml.logprobs import batch_logps, response_batch
from training.ml.loop import Batch, LossOf, StepTrainer
from training.ml.losses import (
    expected,
    hinge_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    label_columns,
    length_regularised_loss,
    log_odds,
    odds_ratio_loss,
    robust_loss,
    sigmoid_loss,
    simpo_loss,
    smoothed,
)
from training.ml.methods import needs_reference_copy, virtual_tokens
from training.ml.objectives import suiting
from training.ml.steps import (
    OnStep,
    ReportSteps,
    measured_together,
    n_steps,
    pair_summary,
    quiet_trainer,
    resume_point,
    trainer_settings,
)

Rows = list[tuple[list[int], list[int]]]
"""Token ids of prompts and of the responses to them."""


@quiet_trainer()
def train(
    recipe: DPORecipe,
    train: Sequence[Pair | Single],
    test: Sequence[Pair | Single],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a policy; leave its adapter in `folder`/model and what it is worth as the return.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run.

    Returns: pair_metrics of the implicit rewards (see `implicit_rewards`) on the test pairs;
        chosen_logp_change and rejected_logp_change, mean nats per response against the reference
        (a falling chosen one is likelihood displacement); and n_train, n_validation, n_steps,
        best_step, max_length (the model's context, where that is less than asked), too_long_train,
        too_long_test, empty, useful_tokens (share of what was computed that is no padding),
        trained_parameters, parameters, optimizer, seconds.
        Of single responses: single_metrics instead, good_logp_change and bad_logp_change, and
        n_neutral, training responses that are neither good nor bad and teach KTO nothing.
    Raises: ModelMissing; ValueError if no training row fits `max_length`, or the labels do not
        suit the loss; whatever on_step raises.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    rope = (recipe.rope_scaling, recipe.rope_factor)
    limit = longest_allowed(
        recipe.base_model, recipe.max_length, virtual_tokens=virtual_tokens(recipe), rope=rope
    )
    suiting(recipe, train)
    every: list[Pair | Single] = [*train]
    own, validation = kept_apart(every, recipe.validation_share, recipe.seed, prompt_of)
    singles = singles_of(own)
    held: _HeldPairs | _HeldSingles = (_HeldSingles if singles else _HeldPairs)(recipe, tokenizer)
    clear: list[Pair | Single] = [*validation]
    if not singles:
        clear = [*without_ties(pairs_of(validation))]
    valid_tokens, left_out_valid = held.tokens(clear, limit)
    if validation and not valid_tokens:
        raise ValueError(f"validation_share leaves no {held.row} that fits max_length={limit}")
    test_tokens, left_out_test = held.tokens(test, limit)
    rows: _Pairs | _Singles
    left_out_train: LeftOut
    n_neutral = 0
    if recipe.loss == "kto":
        said = [single for single in singles or to_singles(pairs_of(own)) if single.good != 0.5]
        n_neutral = len(singles) - len(said) if singles else 0
        tokens, left_out_train = tokenize_singles(said, tokenizer, limit)
        rows = _Singles(recipe, tokens, mismatched(tokens, limit), tokenizer.pad_token_id)
    else:
        pairs, left_out_train = tokenize_pairs(pairs_of(own), tokenizer, limit)
        rows = _Pairs(recipe, pairs, tokenizer.pad_token_id)
    lengths, sizes = rows.lengths, rows.sizes
    if not lengths:
        raise ValueError(f"no training {held.row} of {len(own)} fits max_length={limit}")

    set_seed(recipe.seed)  # the adapters start at random
    base = load_causal(recipe.base_model, method=recipe.method, dtype=recipe.dtype, rope=rope)
    without_dropout(base)
    # The base as it is now is the reference, whatever the method makes of it.
    sides: Any = (valid_tokens, test_tokens)
    for side in sides:
        held.remember(base.eval(), side)
    copy = None
    if recipe.loss not in NO_REFERENCE and recipe.precompute_reference:
        rows.reference = reference_logps(
            base, rows.asked, tokenizer.pad_token_id, recipe, folder / "reference.safetensors"
        )
    elif recipe.loss not in NO_REFERENCE and needs_reference_copy(recipe.method):
        copy = load_causal(recipe.base_model, dtype=recipe.dtype, rope=rope)
        copy = copy.eval().requires_grad_(False)
    model = adapted(base, recipe, task="CAUSAL_LM")
    total = n_steps(recipe, len(lengths))
    steps = steps_of(
        lengths,
        recipe.batch_size * recipe.gradient_accumulation,
        total,
        recipe.seed,
        by_length=recipe.group_by_length,
    )

    def places(step: Sequence[int]) -> list[list[int]]:
        found = parts_of(
            [lengths[at] for at in step],
            most_rows=recipe.batch_size,
            most_tokens=recipe.batch_tokens,
            each=rows.sequences,
        )
        return [[step[at] for at in part] for part in found]

    report: ReportSteps[Any] = ReportSteps(
        recipe,
        total,
        test_tokens,
        lambda part: held.numbers(model, part),
        on_step,
        summary=lambda found: held.summary(found, report.rows),
        validation=valid_tokens,
        folder=folder,
    )
    trainer = StepTrainer(
        model,
        trainer_settings(recipe, folder, len(lengths)),
        steps=steps,
        parts=lambda step: [rows.batch_of(part) for part in places(step)],
        loss=rows.loss(lambda policy: reference_model(policy, copy)),
        prepare=rows.prepare(lambda policy: reference_model(policy, copy)),
        callbacks=[report],
        optimizer=optimizer_of(model, recipe),
    )
    train_in_float32(model)
    save_start(model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    report.choose_best(model)
    save_model(model, recipe, folder)
    if ranks.is_first():
        tokenizer.save_pretrained(folder / "model")
    found = report.measured_at_end(model)
    trained, parameters = n_parameters(model)
    n_left_out = left_out_test.too_long + left_out_test.empty
    return held.metrics(found, report.test, n_left_out) | {
        "n_neutral": n_neutral,
        "n_train": len(lengths),
        "n_validation": len(valid_tokens),
        "n_steps": report.reached,
        "best_step": report.best_step,
        "max_length": limit,
        "longest": max(lengths),
        "too_long_train": left_out_train.too_long + left_out_valid.too_long,
        "too_long_test": left_out_test.too_long,
        "empty": left_out_train.empty + left_out_valid.empty + left_out_test.empty,
        "useful_tokens": useful_share(sizes, [part for step in steps for part in places(step)]),
        "trained_parameters": trained,
        "parameters": parameters,
        "optimizer": optimizer_words(recipe),
        "seconds": time.monotonic() - began,
    }


# What is measured ---------------------------------------------------------------------------------


@dataclass
class _HeldPairs:
    """Held-out pairs: how far each chosen response is ahead by the implicit reward."""

    recipe: DPORecipe
    tokenizer: Any
    before: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Log-probabilities under the reference, by the pair's id()."""
    changes: dict[int, tuple[float, float]] = field(default_factory=dict)
    rewards: dict[int, tuple[float, float]] = field(default_factory=dict)
    row = "pair"

    def tokens(self, rows: Sequence[Pair | Single], limit: int) -> tuple[list[TokenPair], LeftOut]:
        return tokenize_pairs(pairs_of(rows), self.tokenizer, limit)

    def remember(self, base: Any, rows: Sequence[Any]) -> None:
        """Ask the reference about these rows."""
        for part in measured_together(self.recipe, rows):
            found = pair_logps(base, self.tokenizer, part, self.recipe.dtype)
            self.before |= zip(map(id, part), found, strict=True)

    def numbers(self, model: Any, pairs: Sequence[TokenPair]) -> list[float]:
        """How far the chosen response of each pair is ahead."""
        now = pair_logps(model, self.tokenizer, pairs, self.recipe.dtype)
        logps, before = torch.tensor(now), torch.tensor([self.before[id(p)] for p in pairs])
        n_tokens = torch.tensor([(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs])
        implied = implicit_rewards(self.recipe, logps, before, n_tokens)  # (pairs, 2)
        for pair, ratio, reward in zip(
            pairs, (logps - before).tolist(), implied.tolist(), strict=True
        ):
            self.changes[id(pair)], self.rewards[id(pair)] = tuple(ratio), tuple(reward)
        return (implied[:, 0] - implied[:, 1]).tolist()

    def summary(self, found: Sequence[float], rows: Sequence[TokenPair]) -> dict[str, float]:
        chosen, rejected = self._mean_changes(rows)
        return pair_summary(found) | {"chosen_logp": chosen, "rejected_logp": rejected}

    def metrics(
        self, found: Sequence[float], rows: Sequence[TokenPair], n_left_out: int
    ) -> dict[str, Any]:
        chosen, rejected = self._mean_changes(rows)
        return pair_metrics(
            found,
            [p.chosen_chars - p.rejected_chars for p in rows],
            n_left_out=n_left_out,
            rewards=[self.rewards[id(pair)] for pair in rows],
            lengths=[(p.chosen_chars, p.rejected_chars) for p in rows],
        ) | {"chosen_logp_change": chosen, "rejected_logp_change": rejected}

    def _mean_changes(self, rows: Sequence[TokenPair]) -> tuple[float, float]:
        """Mean change of log-probability (nats) of the chosen and the rejected responses against
        the reference; a falling chosen one is likelihood displacement."""
        changes = [self.changes[id(pair)] for pair in rows]
        n = max(1, len(changes))
        return sum(up for up, _down in changes) / n, sum(down for _up, down in changes) / n


@dataclass
class _HeldSingles:
    """Held-out single responses: the implicit reward of each."""

    recipe: DPORecipe
    tokenizer: Any
    before: dict[int, float] = field(default_factory=dict)
    """Log-probabilities under the reference, by the row's id()."""
    row = "response"

    def tokens(
        self, rows: Sequence[Pair | Single], limit: int
    ) -> tuple[list[TokenSingle], LeftOut]:
        clear = [single for single in singles_of(rows) if single.good != 0.5]
        return tokenize_singles(clear, self.tokenizer, limit)

    def remember(self, base: Any, rows: Sequence[Any]) -> None:
        """Ask the reference about these rows."""
        for part in measured_together(self.recipe, rows):
            found = single_logps(base, self.tokenizer, part, self.recipe.dtype)
            self.before |= zip(map(id, part), found, strict=True)

    def numbers(self, model: Any, rows: Sequence[TokenSingle]) -> list[float]:
        """β·log π/π_ref of each response."""
        now = single_logps(model, self.tokenizer, rows, self.recipe.dtype)
        return [
            self.recipe.beta * (logp - self.before[id(row)])
            for logp, row in zip(now, rows, strict=True)
        ]

    def summary(self, found: Sequence[float], rows: Sequence[TokenSingle]) -> dict[str, float]:
        """The loss with the baseline at 0, which needs no responses to other prompts."""
        u = torch.tensor(found) / self.recipe.beta
        good = torch.tensor([row.good for row in rows])
        weight = torch.tensor([row.weight for row in rows])
        losses = single_losses(self.recipe, u, torch.zeros(()), good)
        ahead = torch.sign(good - 0.5) * torch.tensor(found)
        return {
            "loss": (weight * losses).mean().item(),
            "accuracy": ((ahead > 0).float() + 0.5 * (ahead == 0)).mean().item(),
            "margin": ahead.mean().item(),
        }

    def metrics(
        self, found: Sequence[float], rows: Sequence[TokenSingle], n_left_out: int
    ) -> dict[str, Any]:
        figures = single_metrics(
            found,
            [row.good for row in rows],
            [row.unit for row in rows],
            [row.n_chars for row in rows],
            n_left_out=n_left_out,
        )
        for kind in ("good", "bad"):
            reward = figures.get(f"{kind}_reward")
            figures[f"{kind}_logp_change"] = None if reward is None else reward / self.recipe.beta
        return figures


# Losses of a part ---------------------------------------------------------------------------------


def implicit_rewards(
    recipe: DPORecipe, logps: Tensor, reference: Tensor, n_tokens: Tensor
) -> Tensor:
    """What a policy's own log-probabilities say a response is worth, by the recipe's loss.

    β·log(π/π_ref); for R-DPO with the charge for length added, which the policy has paid; for SimPO
    β times the mean log-probability; for ORPO the log-odds.

    Args (one shape): logps, reference: of whole responses, nats; n_tokens: their lengths.
    """
    if recipe.loss == "simpo":
        return recipe.beta * logps / n_tokens
    if recipe.loss == "orpo":
        return log_odds(logps / n_tokens)
    implied = recipe.beta * (logps - reference)
    if recipe.loss == "length":
        implied = implied + recipe.length_charge * n_tokens
    return implied


def pair_losses(
    recipe: DPORecipe, logps: Tensor, reference: Tensor, n_tokens: Tensor, prob: Tensor
) -> Tensor:
    """The recipe's loss of each pair, (pairs,), its mean under soft labels.

    Args: logps, reference: of the chosen and the rejected response, nats, (pairs, 2); n_tokens:
        their lengths, (pairs, 2); prob: that the chosen one is the better one, (pairs,).
    """
    if recipe.loss != "robust":
        prob = smoothed(prob, recipe.label_smoothing)
    ratio, mean = logps - reference, logps / n_tokens

    def loss(better: Tensor, worse: Tensor) -> Tensor:
        """Of pairs whose better response stands in this column, (pairs,) of 0 and 1, the worse in
        that."""
        d = _picked(ratio, better) - _picked(ratio, worse)
        if recipe.loss == "robust":
            return robust_loss(d, recipe.beta, recipe.label_smoothing)
        if recipe.loss == "hinge":
            return hinge_loss(d, recipe.beta)
        if recipe.loss == "ipo":
            each = ratio / n_tokens
            return ipo_loss(_picked(each, better) - _picked(each, worse), recipe.beta)
        if recipe.loss == "length":
            longer = _picked(n_tokens, better) - _picked(n_tokens, worse)
            return length_regularised_loss(d, recipe.beta, recipe.length_charge, longer)
        if recipe.loss == "simpo":
            gap = _picked(mean, better) - _picked(mean, worse)
            return simpo_loss(gap, recipe.beta, recipe.simpo_gamma)
        if recipe.loss == "orpo":
            odds = odds_ratio_loss(_picked(mean, better), _picked(mean, worse))
            return -_picked(mean, better) + recipe.orpo_weight * odds
        return sigmoid_loss(d, recipe.beta)

    first = torch.zeros(len(prob), dtype=torch.long, device=prob.device)
    return expected(loss, first, 1 - first, prob)


def _picked(columns: Tensor, which: Tensor) -> Tensor:
    return columns.gather(1, which[:, None]).squeeze(1)


def single_losses(recipe: DPORecipe, u: Tensor, baseline: Tensor, good: Tensor) -> Tensor:
    """KTO's loss of each response, its mean under a soft label:
    g · w_D · [1 − σ(βu − z₀)] + (1 − g) · w_U · [1 − σ(z₀ − βu)].

    Args: u: log π/π_ref, (rows,); baseline: z₀; good: g, the probability that it is good, (rows,).
    """
    up = kto_loss(u, baseline, recipe.beta, torch.ones_like(good))
    down = kto_loss(u, baseline, recipe.beta, torch.zeros_like(good))
    return recipe.kto_desirable * good * up + recipe.kto_undesirable * (1 - good) * down


Frozen = Callable[[Any], contextlib.AbstractContextManager[Any]]
"""A policy to the model it is compared with."""


@dataclass
class _Pairs:
    """Training rows of the losses on pairs."""

    recipe: DPORecipe
    pairs: list[TokenPair]
    pad_id: int
    reference: Tensor | None = None
    """(pairs, 2) log-probabilities of the reference, where they were asked before."""
    sequences = 2

    @property
    def lengths(self) -> list[int]:
        return [pair.n_tokens for pair in self.pairs]

    @property
    def sizes(self) -> list[list[int]]:
        return [
            [len(p.prompt_ids) + len(ids) for ids in (p.chosen_ids, p.rejected_ids)]
            for p in self.pairs
        ]

    @property
    def asked(self) -> list[Rows]:
        """What the reference is asked about: by column, then by pair."""
        return [
            [(p.prompt_ids, p.chosen_ids) for p in self.pairs],
            [(p.prompt_ids, p.rejected_ids) for p in self.pairs],
        ]

    def batch_of(self, places: Sequence[int]) -> Batch:
        pairs = [self.pairs[at] for at in places]
        batch = _pair_batch(pairs, self.pad_id) | label_columns(pairs)
        if self.reference is not None:
            batch["reference"] = self.reference[list(places)]
        return batch

    def prepare(self, frozen: Frozen) -> Callable[[Any, list[Batch]], None]:
        return lambda model, parts: None

    def loss(self, frozen: Frozen) -> LossOf:
        recipe = self.recipe

        def loss(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            sums, outputs = _logps(model, batch, recipe.dtype)
            logps = torch.stack(sums.chunk(2), dim=1)  # (pairs, 2)
            n_tokens = torch.stack(batch["n_tokens"].chunk(2), dim=1)
            if recipe.loss in NO_REFERENCE:
                reference = torch.zeros_like(logps)
            elif "reference" in batch:
                reference = batch["reference"]
            else:
                with torch.no_grad(), frozen(model) as other:
                    reference = torch.stack(_logps(other, batch, recipe.dtype)[0].chunk(2), dim=1)
            losses = pair_losses(recipe, logps, reference, n_tokens, batch["prob"])
            implied = implicit_rewards(recipe, logps.detach(), reference, n_tokens)
            gap = implied[:, 0] - implied[:, 1]
            shown = {"accuracy": (gap > 0).float().sum(), "margin": gap.sum()}
            whole = (batch["weight"] * losses).sum()
            return whole + _balance(model, outputs) * len(losses), shown

        return loss


@dataclass
class _Singles:
    """Training rows of KTO: a response, whether it is good, and a response to another prompt."""

    recipe: DPORecipe
    singles: list[TokenSingle]
    others: list[list[int]]
    pad_id: int
    reference: Tensor | None = None
    """(rows, 2): of each response, and of the one to another prompt."""
    sequences = 2

    @property
    def lengths(self) -> list[int]:
        return [
            len(own.prompt_ids) + max(len(own.response_ids), len(other))
            for own, other in zip(self.singles, self.others, strict=True)
        ]

    @property
    def sizes(self) -> list[list[int]]:
        return [
            [len(own.prompt_ids) + len(ids) for ids in (own.response_ids, other)]
            for own, other in zip(self.singles, self.others, strict=True)
        ]

    @property
    def asked(self) -> list[Rows]:
        return [
            [(single.prompt_ids, single.response_ids) for single in self.singles],
            [(s.prompt_ids, other) for s, other in zip(self.singles, self.others, strict=True)],
        ]

    def batch_of(self, places: Sequence[int]) -> Batch:
        prompts = [self.singles[at].prompt_ids for at in places]
        responses = [self.singles[at].response_ids for at in places]
        others = [self.others[at] for at in places]
        batch = response_batch(prompts, responses, self.pad_id)
        for name, tensor in response_batch(prompts, others, self.pad_id).items():
            batch[f"other_{name}"] = tensor
        batch["good"] = torch.tensor([self.singles[at].good for at in places])
        batch["weight"] = torch.tensor([self.singles[at].weight for at in places])
        if self.reference is not None:
            batch["reference"] = self.reference[list(places)]
        return batch

    def prepare(self, frozen: Frozen) -> Callable[[Any, list[Batch]], None]:
        """The step's baseline, from all its parts."""
        recipe = self.recipe

        def prepare(model: Any, parts: list[Batch]) -> None:
            found = []
            for part in parts:
                other = {name: part[f"other_{name}"] for name in ("ids", "mask", "starts")}
                with torch.no_grad():
                    now, _outputs = _logps(model, other, recipe.dtype)
                    if "reference" in part:
                        then = part["reference"][:, 1]
                    else:
                        with frozen(model) as before:
                            then, _outputs = _logps(before, other, recipe.dtype)
                found.append(now - then)
            baseline = kto_baseline(torch.cat(found), recipe.beta)
            for part in parts:
                part["baseline"] = baseline

        return prepare

    def loss(self, frozen: Frozen) -> LossOf:
        recipe = self.recipe

        def loss(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            logps, outputs = _logps(model, batch, recipe.dtype)
            if "reference" in batch:
                reference = batch["reference"][:, 0]
            else:
                with torch.no_grad(), frozen(model) as other:
                    reference, _outputs = _logps(other, batch, recipe.dtype)
            losses = single_losses(recipe, logps - reference, batch["baseline"], batch["good"])
            implied = recipe.beta * (logps.detach() - reference)
            ahead = torch.sign(batch["good"] - 0.5) * (implied - batch["baseline"])
            shown = {"accuracy": (ahead > 0).float().sum(), "margin": ahead.sum()}
            whole = (batch["weight"] * losses).sum()
            return whole + _balance(model, outputs) * len(losses), shown

        return loss


def mismatched(singles: Sequence[TokenSingle], limit: int) -> list[list[int]]:
    """For each row the response of the next one that answers another prompt, cut where both would
    be longer than `limit` tokens: what KTO's baseline is estimated from."""
    found = []
    for at, own in enumerate(singles):
        others = (singles[(at + step) % len(singles)] for step in range(1, len(singles)))
        other = next((one for one in others if one.prompt_ids != own.prompt_ids), own)
        found.append(other.response_ids[: max(1, limit - len(own.prompt_ids))])
    return found


def _balance(model: Any, outputs: Any) -> Tensor | float:
    """What a model with experts adds to a row's loss so that all of them are used; else 0."""
    config = getattr(model, "module", model).config
    if not getattr(config, "output_router_logits", False):
        return 0.0
    found: Tensor = config.router_aux_loss_coef * outputs.aux_loss
    return found


# The reference ------------------------------------------------------------------------------------


@contextlib.contextmanager
def reference_model(policy: Any, copy: Any | None) -> Iterator[Any]:
    """The frozen start to compare with: its copy, or the policy with its adapter off meanwhile."""
    if copy is not None:
        yield copy
    else:
        with getattr(policy, "module", policy).disable_adapter():
            yield policy


def reference_logps(
    base: Any, asked: list[Rows], pad_id: int, recipe: DPORecipe, path: Path
) -> Tensor:
    """Log-probabilities (nats) of these responses under the reference, (rows, columns).

    Kept in the file under a hash of the tokens, so that a run that goes on finds them again.
    """
    digest = hashlib.sha256(repr((asked, recipe.dtype)).encode()).hexdigest()
    if ranks.from_first(path.exists()) and path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("tokens") == digest:
                kept: Tensor = file.get_tensor("logps")
                return kept
    where = next(base.parameters()).device
    base.eval()
    columns = []
    for rows in asked:
        found = torch.zeros(len(rows))
        parts = parts_of(
            [len(prompt) + len(response) for prompt, response in rows],
            most_rows=2 * recipe.batch_size,
            most_tokens=recipe.batch_tokens,
        )
        for part in parts:
            batch = response_batch(
                [rows[at][0] for at in part], [rows[at][1] for at in part], pad_id
            )
            batch = {name: tensor.to(where) for name, tensor in batch.items()}
            with torch.no_grad():
                found[part] = _logps(base, batch, recipe.dtype)[0].cpu()
        columns.append(found)
    logps = torch.stack(columns, dim=1)
    if ranks.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logps": logps}, path, metadata={"tokens": digest})
    return logps


def _pair_batch(pairs: Sequence[TokenPair], pad_id: int) -> Batch:
    """The chosen responses, then the rejected ones: (2 × pairs, tokens)."""
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    batch = response_batch([pair.prompt_ids for pair in pairs] * 2, responses, pad_id)
    return batch | {"n_tokens": torch.tensor([len(response) for response in responses])}


def pair_logps(
    model: Any, tokenizer: Any, pairs: Sequence[TokenPair], dtype: str
) -> list[tuple[float, float]]:
    """Log-probabilities (nats) of the chosen and of the rejected response, per pair."""
    where = next(model.parameters()).device
    batch = _pair_batch(pairs, tokenizer.pad_token_id)
    with torch.no_grad():
        sums, _outputs = _logps(model, {name: t.to(where) for name, t in batch.items()}, dtype)
    chosen, rejected = sums.cpu().chunk(2)
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def single_logps(
    model: Any, tokenizer: Any, rows: Sequence[TokenSingle], dtype: str
) -> list[float]:
    """Log-probabilities (nats) of the responses."""
    where = next(model.parameters()).device
    batch = response_batch(
        [row.prompt_ids for row in rows],
        [row.response_ids for row in rows],
        tokenizer.pad_token_id,
    )
    with torch.no_grad():
        sums, _outputs = _logps(model, {name: t.to(where) for name, t in batch.items()}, dtype)
    return sums.cpu().tolist()  # type: ignore[no-any-return]


def _logps(model: Any, batch: Batch, dtype: str) -> tuple[Tensor, Any]:
    is_bf16 = number_format(dtype) == torch.bfloat16
    with torch.autocast(batch["ids"].device.type, dtype=torch.bfloat16, enabled=is_bf16):
        return batch_logps(model, batch)
