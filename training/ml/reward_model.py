"""Reward model: a prompt and a response to a number, learned from pairs or ratings."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import set_seed

from training.ml import ranks
from training.ml.adapting import (
    adapted,
    optimizer_of,
    optimizer_words,
    save_members,
    save_model,
    save_start,
)
from training.ml.batches import parts_of, passes_of, steps_of, useful_share
from training.ml.config import RewardRecipe
from training.ml.data import (
    LeftOut,
    Messages,
    Pair,
    Single,
    TokenPair,
    TokenSingle,
    chat_tokens,
    kept_apart,
    longest_first,
    pairs_of,
    prompt_of,
    rated,
    singles_of,
    tokenize_pairs,
    tokenize_singles,
    without_ties,
)
from training.ml.evaluation import pair_metrics, rating_metrics
from training.ml.loading import (
    HEADS,
    load_scorer,
    load_tokenizer,
    longest_allowed,
    members_of,
    n_parameters,
    number_format,
    train_in_float32,
    without_dropout,
)
from training.ml.logprobs import pad_right
from training.ml.loop import Batch, StepTrainer
from training.ml.losses import (
    centring,
    label_columns,
    length_slope,
    rating_loss,
    sharpened,
    single_rating_loss,
    smoothed,
    soft_pair_loss,
    strength_margin,
)
from training.ml.methods import virtual_tokens
from training.ml.objectives import suiting
from training.ml.steps import (
    PAIR_LOGS,
    OnStep,
    ReportSteps,
    StepReport,
    n_steps,
    pair_summary,
    quiet_trainer,
    resume_point,
    trainer_settings,
)

FEATURES_AT_ONCE = 32
"""Pairs whose features are computed together."""


def train(
    recipe: RewardRecipe,
    train: Sequence[Pair | Single],
    test: Sequence[Pair | Single],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a reward model; leave it in `folder`/model and what it is worth as the return.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run. The members of an ensemble are trained one after another, each with
    a seed of its own, and reported as one long run.

    Returns: pair_metrics on the test pairs (those longer than `max_length` left out), of an
        ensemble by the mean of its members, with member_accuracies and spread (mean sd of a pair's
        margin over the members); and n_train, n_unrated (pairs without a rating, where those are
        learned), n_validation, n_steps, best_step, max_length (the
        model's context, where that is less than asked), too_long_train, too_long_test, empty,
        useful_tokens (share of what was computed that is no padding), length_slope,
        trained_parameters, parameters, optimizer, seconds.
        Of ratings of single responses: rating_metrics instead, of an ensemble with the spread of a
        response's reward; n_unrated counts responses without one.
    Raises: ModelMissing; ValueError if no training row fits `max_length`, or the labels do not
        suit the loss; whatever on_step raises.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    limit = longest_allowed(
        recipe.base_model,
        recipe.max_length,
        virtual_tokens=virtual_tokens(recipe),
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    suiting(recipe, train)
    every: list[Pair | Single] = [*train]
    own, validation = kept_apart(every, recipe.validation_share, recipe.seed, prompt_of)
    n_own = len(own)
    sides, left_out = (_single_sides if singles_of(train) else _pair_sides)(
        recipe, (own, validation, test), tokenizer, limit
    )
    train_tokens, valid_tokens, test_tokens = sides
    left_out_train, left_out_valid, left_out_test = left_out
    row = "response" if singles_of(train) else "pair"
    if validation and not valid_tokens:
        raise ValueError(f"validation_share leaves no {row} that fits max_length={limit}")
    if not train_tokens:
        raise ValueError(f"no training {row} of {len(own)} fits max_length={limit}")

    found = [
        _train_member(member, recipe, tokenizer, sides, folder, on_step)
        for member in range(recipe.members)
    ]
    each = torch.tensor([one["rewards"] for one in found])  # (members, rows, 2 or 1)
    n_left_out = left_out_test.too_long + left_out_test.empty
    measure = _single_figures if singles_of(train) else _pair_figures
    figures = measure(each, train_tokens, longest_first(test_tokens), n_left_out)
    if recipe.members > 1 and ranks.is_first():
        save_members(folder, recipe.members)
    n_rated = sum(single.rating is not None for single in singles_of(own))
    if recipe.loss == "ratings" and not singles_of(own):
        n_rated = len(rated(pairs_of(own), recipe.rating_of))
    return figures | {
        "n_train": len(train_tokens),
        "n_unrated": n_own - n_rated if recipe.loss == "ratings" else 0,
        "n_validation": len(valid_tokens),
        "n_steps": sum(one["n_steps"] for one in found),
        "best_step": found[0]["best_step"] if recipe.members == 1 else None,
        "max_length": limit,
        "longest": max(row.n_tokens for row in train_tokens),
        "too_long_train": left_out_train.too_long + left_out_valid.too_long,
        "too_long_test": left_out_test.too_long,
        "empty": left_out_train.empty + left_out_valid.empty + left_out_test.empty,
        "useful_tokens": found[0]["useful_tokens"],
        "length_slope": found[0]["length_slope"],
        "trained_parameters": sum(one["trained_parameters"] for one in found),
        "parameters": found[0]["parameters"],
        "optimizer": optimizer_words(recipe),
        "seconds": time.monotonic() - began,
    }


Tokens = TokenPair | TokenSingle
Sides = tuple[list[Any], list[Any], list[Any]]
"""Training, validation and test rows: all pairs, or all single responses."""


def _pair_sides(
    recipe: RewardRecipe, sides: tuple[Any, Any, Any], tokenizer: Any, limit: int
) -> tuple[Sides, tuple[LeftOut, LeftOut, LeftOut]]:
    own, validation, test = (pairs_of(side) for side in sides)
    if recipe.loss == "ratings":
        own = rated(own, recipe.rating_of)
    found = [
        tokenize_pairs(side, tokenizer, limit) for side in (own, without_ties(validation), test)
    ]
    return tuple(rows for rows, _left in found), tuple(left for _rows, left in found)  # type: ignore[return-value]


def _single_sides(
    recipe: RewardRecipe, sides: tuple[Any, Any, Any], tokenizer: Any, limit: int
) -> tuple[Sides, tuple[LeftOut, LeftOut, LeftOut]]:
    said = ([s for s in singles_of(side) if s.rating is not None] for side in sides)
    found = [tokenize_singles(side, tokenizer, limit) for side in said]
    return tuple(rows for rows, _left in found), tuple(left for _rows, left in found)  # type: ignore[return-value]


def _pair_figures(
    each: Tensor, train: Sequence[TokenPair], test: Sequence[TokenPair], n_left_out: int
) -> dict[str, Any]:
    """What the rewards (members, pairs, 2) are worth on these test pairs, in their order."""
    rewards = each.mean(dim=0).reshape(-1, 2)
    figures = pair_metrics(
        (rewards[:, 0] - rewards[:, 1]).tolist(),
        [p.chosen_chars - p.rejected_chars for p in test],
        n_left_out=n_left_out,
        rewards=rewards.tolist(),
        lengths=[(p.chosen_chars, p.rejected_chars) for p in test],
    )
    if len(each) > 1 and test:
        gaps = each[:, :, 0] - each[:, :, 1]  # (members, pairs)
        figures["member_accuracies"] = (gaps > 0).float().mean(dim=1).tolist()
        figures["spread"] = gaps.std(dim=0).mean().item()
    return figures


def _single_figures(
    each: Tensor, train: Sequence[TokenSingle], test: Sequence[TokenSingle], n_left_out: int
) -> dict[str, Any]:
    """The same of single responses; rewards (members, rows, 1)."""
    usual = sum(row.weight * (row.rating or 0.0) for row in train)
    usual /= sum(row.weight for row in train) or 1.0
    figures = rating_metrics(
        each.mean(dim=0).reshape(-1).tolist(),
        [row.rating or 0.0 for row in test],
        [row.good for row in test],
        [row.unit for row in test],
        [row.n_chars for row in test],
        usual=usual,
        n_left_out=n_left_out,
    )
    if len(each) > 1 and test:
        figures["spread"] = each[:, :, 0].std(dim=0).mean().item()
    return figures


@quiet_trainer()
def _train_member(
    member: int,
    recipe: RewardRecipe,
    tokenizer: Any,
    sides: Sides,
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train one member of an ensemble, or the one model there is, and measure it. A member that is
    done already is not trained again."""
    train, validation, test = sides
    total = n_steps(recipe, len(train))
    if recipe.members > 1:
        on_step = _as_part(on_step, member, recipe.members, total)
        recipe = replace(recipe, seed=(recipe.seed + member) % 2**31)
        folder = folder / "members" / str(member)
        folder.mkdir(parents=True, exist_ok=True)
        done: dict[str, Any] | None = None
        if ranks.is_first() and (folder / "done.json").exists():
            done = json.loads((folder / "done.json").read_text())
        if done := ranks.from_first(done):
            return done

    set_seed(recipe.seed)  # the head and the adapters start at random
    base = load_scorer(
        recipe.base_model,
        method=recipe.method,
        dtype=recipe.dtype,
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    without_dropout(base)
    model = adapted(base, recipe, task="SEQ_CLS")
    slope = 0.0
    if recipe.length_debias:
        columns = label_columns(train)
        slope = length_slope(*(columns[n].tolist() for n in ("length", "prob", "weight")))
    rewards_of, batch_of = _whole_model(recipe, tokenizer)
    if recipe.method == "head":
        rewards_of, batch_of = _head_alone(
            recipe, model, tokenizer, [*train, *validation, *test], folder
        )
    rewards: dict[int, tuple[float, ...]] = {}
    n_sides = len(_responses(train[0]))

    def numbers(rows: Sequence[Tokens]) -> list[float]:
        """Margins of pairs; rewards of single responses."""
        where = next(model.parameters()).device
        batch = {name: tensor.to(where) for name, tensor in batch_of(rows).items()}
        with torch.no_grad():
            columns = torch.stack(rewards_of(model, batch).chunk(n_sides), dim=1)
        for row, found in zip(rows, columns.tolist(), strict=True):
            rewards[id(row)] = tuple(found)
        return (columns[:, 0] - columns[:, 1] if n_sides == 2 else columns[:, 0]).tolist()

    def summary(found: Sequence[float]) -> dict[str, float]:
        return pair_summary(found) if n_sides == 2 else _rating_summary(found, report.rows)

    def loss(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if n_sides == 1:
            found = rewards_of(model, batch)
            error = (found.detach() - batch["ratings"]).abs().sum()
            losses = batch["weight"] * single_rating_loss(found, batch["ratings"])
            return losses.sum(), {"error": error}
        chosen, rejected = rewards_of(model, batch).chunk(2)  # (pairs,) each
        delta = (chosen - rejected).detach()
        shown = {"accuracy": (delta > 0).float().sum(), "margin": delta.sum()}
        return pair_losses(recipe, chosen, rejected, batch, slope).sum(), shown

    lengths = [row.n_tokens for row in train]
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
            each=n_sides,
        )
        return [[step[at] for at in part] for part in found]

    report: ReportSteps[Any] = ReportSteps(
        recipe,
        total,
        test,
        numbers,
        on_step,
        logged=PAIR_LOGS if n_sides == 2 else RATING_LOGS,
        summary=summary,
        validation=validation,
        folder=folder,
    )
    trainer = StepTrainer(
        model,
        trainer_settings(recipe, folder, len(train)),
        steps=steps,
        parts=lambda step: [batch_of([train[at] for at in part]) for part in places(step)],
        loss=loss,
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
    report.measured_at_end(model)
    trained, parameters = n_parameters(model)
    done = {
        "rewards": [rewards[id(row)] for row in report.test],
        "n_steps": report.reached,
        "best_step": report.best_step,
        "useful_tokens": useful_share(
            [[len(row.prompt_ids) + len(r) for r in _responses(row)] for row in train],
            [part for step in steps for part in places(step)],
        ),
        "length_slope": slope if recipe.length_debias else None,
        "trained_parameters": trained,
        "parameters": parameters,
    }
    if recipe.members > 1 and ranks.is_first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "done.json").write_text(json.dumps(done))
    return done


def _as_part(on_step: OnStep, member: int, members: int, total: int) -> OnStep:
    """Reports of one member as those of its part of the whole ensemble's run."""

    def pass_on(report: StepReport) -> None:
        # Where one member ends, the next begins: the point there belongs to the one that ended.
        values = {} if member and report.step == 0 else report.values
        on_step(
            replace(
                report,
                step=member * total + report.step,
                n_steps=members * total,
                values=values,
                checkpoint=None,
            )
        )

    return pass_on


def pair_losses(
    recipe: RewardRecipe, chosen: Tensor, rejected: Tensor, labels: Batch, slope: float = 0.0
) -> Tensor:
    """The recipe's loss of each pair, (pairs,).

    Args: chosen, rejected: rewards, (pairs,); labels: as label_columns, and (pairs, 2) ratings
        where those are learned; slope: of length_slope, or 0.
    """
    prob, weight = labels["prob"], labels["weight"]
    if recipe.soft_labels == "certainty":
        prob, weight = sharpened(prob, weight)
    if recipe.label_smoothing:
        prob = smoothed(prob, recipe.label_smoothing)
    if recipe.loss == "ratings":
        losses = weight * rating_loss(chosen, rejected, labels["ratings"])
    else:
        delta = chosen - rejected + slope * labels["length"]
        margin: Tensor | float = 0.0
        if recipe.loss == "margin":
            margin = strength_margin(labels["strength"], recipe.margin_size)
        if recipe.loss == "scaled":
            # −strength · log σ(Δ): Wang et al. 2024, arXiv:2410.01257, "scaled Bradley-Terry".
            weight = weight * labels["strength"]
        losses = soft_pair_loss(delta, prob, weight, margin)
    if recipe.center_rewards:
        losses = losses + recipe.center_rewards * centring(chosen, rejected)
    return losses


RewardsOf = Callable[[Any, Batch], Tensor]
BatchOf = Callable[[Sequence[Any]], Batch]
RATING_LOGS = {"error": "error"}
"""As PAIR_LOGS, of ratings: the mean distance of reward and rating."""


def _rating_summary(found: Sequence[float], rows: Sequence[TokenSingle]) -> dict[str, float]:
    """A point of the curves from the rewards of all these rows."""
    rewards = torch.tensor(found)
    ratings = torch.tensor([row.rating or 0.0 for row in rows])
    weight = torch.tensor([row.weight for row in rows])
    return {
        "loss": (weight * single_rating_loss(rewards, ratings)).mean().item(),
        "error": (rewards - ratings).abs().mean().item(),
    }


def _whole_model(recipe: RewardRecipe, tokenizer: Any) -> tuple[RewardsOf, BatchOf]:
    """Rewards of a batch, (2 × pairs,), the chosen responses first, by the whole model; and a batch
    of pairs as tensors."""

    def batch_of(rows: Sequence[Tokens]) -> Batch:
        ids, mask = pad_right(_rows(rows), tokenizer.pad_token_id)
        return {"ids": ids, "mask": mask} | _labels(rows)

    def rewards_of(model: Any, batch: Batch) -> Tensor:
        ids, mask = batch["ids"], batch["mask"]
        lengths = mask.sum(dim=1).tolist()
        passes = passes_of(lengths)
        if len(passes) == 1:
            return _forward(model, ids, mask, recipe.dtype)
        rewards = torch.zeros(len(ids), device=ids.device)
        for rows in passes:
            longest = lengths[rows[0]]
            found = _forward(model, ids[rows, :longest], mask[rows, :longest], recipe.dtype)
            rewards = rewards.index_put((torch.tensor(rows, device=ids.device),), found)
        return rewards

    return rewards_of, batch_of


def _head_alone(
    recipe: RewardRecipe, model: Any, tokenizer: Any, pairs: Sequence[Tokens], folder: Path
) -> tuple[RewardsOf, BatchOf]:
    """The same as _whole_model by the head alone, on what the frozen base gives it: computed once
    for all pairs, and kept in the run's folder for when it goes on."""
    path = folder / "features.safetensors"
    head = next(m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in HEADS)
    there = ranks.from_first(path.exists()) and path.exists()
    kept = load_file(path)["features"] if there else None
    if kept is None or len(kept) != len(pairs):
        kept = _features(model, head, tokenizer, pairs, recipe.dtype)
        if ranks.is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": kept}, path)
    place = {id(pair): at for at, pair in enumerate(pairs)}

    def batch_of(rows: Sequence[Tokens]) -> Batch:
        sides = kept[[place[id(row)] for row in rows]]  # (rows, 2 or 1, …)
        return {"features": torch.cat(list(sides.unbind(1)))} | _labels(rows)

    def rewards_of(model: Any, batch: Batch) -> Tensor:
        with _autocast(batch["features"].device, recipe.dtype):
            rewards: Tensor = head(batch["features"]).reshape(-1).float()
            return rewards

    return rewards_of, batch_of


def _features(model: Any, head: Any, tokenizer: Any, pairs: Sequence[Tokens], dtype: str) -> Tensor:
    """What the head reads of each row's responses: (rows, 2, …) of pairs, else (rows, 1, …)."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _head, given: seen.append(given[0]))
    where = next(model.parameters()).device
    found: dict[int, Tensor] = {}
    model.eval()
    try:
        ordered = longest_first(pairs)
        for start in range(0, len(ordered), FEATURES_AT_ONCE):
            part = ordered[start : start + FEATURES_AT_ONCE]
            ids, mask = (t.to(where) for t in pad_right(_rows(part), tokenizer.pad_token_id))
            seen.clear()
            with torch.no_grad():
                _forward(model, ids, mask, dtype)
            given = seen[0]
            if given.dim() == 3:
                given = _read_at(given, ids, tokenizer.pad_token_id, head)
            sides = torch.stack(given.cpu().chunk(len(_responses(part[0]))), dim=1)
            for row, of_row in zip(part, sides, strict=True):
                found[id(row)] = of_row
    finally:
        handle.remove()
    return torch.stack([found[id(pair)] for pair in pairs]).contiguous()


def _read_at(states: Tensor, ids: Tensor, pad_id: int, head: Any) -> Tensor:
    """Of states (rows, tokens, width) those that a reward is read from. A decoder's plain head is
    read at the last token that is no padding, as transformers does; an encoder's own head looks at
    the first token of what it is given."""
    if isinstance(getattr(head, "original_module", head), torch.nn.Linear):
        places = torch.arange(ids.shape[1], device=ids.device)
        last = ((ids != pad_id) * places).argmax(dim=-1)
        return states[torch.arange(len(ids), device=ids.device), last]
    return states[:, :1]


def _responses(row: Tokens) -> list[list[int]]:
    """The response tokens of a row: of a pair two, of a single response one."""
    if isinstance(row, TokenSingle):
        return [row.response_ids]
    return [row.chosen_ids, row.rejected_ids]


def _rows(rows: Sequence[Tokens]) -> list[list[int]]:
    """The conversations: of pairs the chosen ones, then the rejected ones."""
    columns = zip(*(_responses(row) for row in rows), strict=True)
    return [
        row.prompt_ids + response
        for column in columns
        for row, response in zip(rows, column, strict=True)
    ]


def _labels(rows: Sequence[Any]) -> Batch:
    if isinstance(rows[0], TokenSingle):
        return {
            "weight": torch.tensor([row.weight for row in rows]),
            "ratings": torch.tensor([row.rating or 0.0 for row in rows]),
        }
    ratings = [pair.ratings for pair in rows if pair.ratings is not None]
    return label_columns(rows) | ({"ratings": torch.tensor(ratings)} if ratings else {})


def score(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    batch_size: int = 16,
    dtype: str = "auto",
) -> list[float]:
    """Reward of each conversation: prompt and response as one list of messages. Of an ensemble,
    the mean of its members."""
    found = score_members(model, tokenizer, conversations, batch_size=batch_size, dtype=dtype)
    return [sum(rewards) / len(rewards) for rewards in found]


def score_members(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    batch_size: int = 16,
    dtype: str = "auto",
) -> list[list[float]]:
    """Rewards of each conversation by every member of an ensemble; one where there is but one."""
    rows = [chat_tokens(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    rewards: list[list[float]] = [[] for _row in rows]
    where = next(model.parameters()).device
    for member in members_of(model):
        if member is not None:
            model.set_adapter(member)
        for start in range(0, len(rows), batch_size):
            places = order[start : start + batch_size]
            batch = [rows[place] for place in places]
            ids, mask = (t.to(where) for t in pad_right(batch, tokenizer.pad_token_id))
            with torch.no_grad():
                found = _forward(model, ids, mask, dtype)
            for place, reward in zip(places, found.tolist(), strict=True):
                rewards[place].append(reward)
    return rewards


def _forward(model: Any, ids: Tensor, mask: Tensor, dtype: str) -> Tensor:
    with _autocast(ids.device, dtype):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (rows, 1)
    rewards: Tensor = logits.squeeze(-1).float()
    return rewards


def _autocast(where: torch.device, dtype: str) -> torch.autocast:
    is_bf16 = number_format(dtype) == torch.bfloat16
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=is_bf16)
