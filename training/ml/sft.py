"""Supervised fine-tuning: a policy that imitates responses (TRL's SFTTrainer); and continued
pre-training, the same on pieces of raw text.

What is learned by heart is a row of tokens with a weight for each: 0 is only read.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import disable_dropout_in_model

from training.ml.adapting import optimizer_of, optimizer_words, save_model, save_start
from training.ml.config import PretrainRecipe, SFTRecipe
from training.ml.data import (
    Pair,
    TokenExample,
    longest_first,
    text_pieces,
    to_imitate,
    tokenize_examples,
)
from training.ml.evaluation import token_metrics
from training.ml.loading import (
    adapter_config,
    load_causal,
    load_tokenizer,
    longest_allowed,
    n_parameters,
    number_format,
    train_in_float32,
)
from training.ml.logprobs import pad_right, response_logps
from training.ml.methods import PROMPTS, WHOLE, virtual_tokens
from training.ml.steps import (
    OnStep,
    ReportSteps,
    StepReport,
    n_steps,
    quiet_trainer,
    resume_point,
    trainer_settings,
)

COMPARED = 32
"""Tokens of each conversation by which a model shows whether it keeps packed ones apart."""


def train(
    recipe: SFTRecipe,
    train: Sequence[Pair],
    test: Sequence[Pair],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a policy on responses of pairs; leave its adapter in `folder`/model.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run.

    Returns: token_metrics of the test responses, of which the prompts' tokens are no part; and
        n_train, n_steps, train_tokens (read in one pass), max_length (the model's context, where
        that is less than asked), too_long_train, too_long_test, empty, trained_parameters,
        parameters, longest (tokens of a row), optimizer, seconds, and the pairs that gave nothing
        to imitate: ties, other, repeated.
    Raises: ModelMissing; ValueError if nothing to imitate fits `max_length`, or for packing with a
        model that would mix up what is packed; whatever on_step raises.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    limit = longest_allowed(
        recipe.base_model,
        recipe.max_length,
        virtual_tokens=virtual_tokens(recipe),
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    train_examples, none_train = to_imitate(train, recipe.imitate)
    test_examples, none_test = to_imitate(test, recipe.imitate)
    if not train_examples:
        raise ValueError(
            f"imitate: none of the {len(train)} training pairs holds a response to imitate "
            f"({recipe.imitate})"
        )
    train_tokens, left_out_train = tokenize_examples(train_examples, tokenizer, limit)
    test_tokens, left_out_test = tokenize_examples(test_examples, tokenizer, limit)
    if not train_tokens:
        raise ValueError(f"no training response of {len(train_examples)} fits max_length={limit}")
    n_left_out = left_out_test.too_long + left_out_test.empty
    found = _train(recipe, tokenizer, limit, train_tokens, test_tokens, n_left_out, folder, on_step)
    return found | {
        "too_long_train": left_out_train.too_long,
        "too_long_test": left_out_test.too_long,
        "empty": left_out_train.empty + left_out_test.empty,
        **{reason: n + none_test[reason] for reason, n in none_train.items()},
        "seconds": time.monotonic() - began,
    }


def pretrain(
    recipe: PretrainRecipe,
    train: Sequence[str],
    test: Sequence[str],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a policy on every token of raw texts; leave its adapter in `folder`/model.

    Texts longer than `max_length` become several pieces, so none is too long.

    Returns, raises: as `train`; n_texts, n_train pieces of them; nothing is left out.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    limit = longest_allowed(
        recipe.base_model,
        recipe.max_length,
        virtual_tokens=virtual_tokens(recipe),
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    sides = [
        [
            piece
            for place, text in enumerate(side)
            for piece in text_pieces(text, str(place), tokenizer, limit)
        ]
        for side in (train, test)
    ]
    if not sides[0]:
        raise ValueError(f"no training text of {len(train)} holds two tokens")
    found = _train(recipe, tokenizer, limit, sides[0], sides[1], 0, folder, on_step)
    return found | {
        "n_texts": len(train),
        "too_long_train": 0,
        "too_long_test": 0,
        "empty": 0,
        "seconds": time.monotonic() - began,
    }


@quiet_trainer()
def _train(
    recipe: SFTRecipe | PretrainRecipe,
    tokenizer: Any,
    limit: int,
    train: Sequence[TokenExample],
    test: Sequence[TokenExample],
    n_left_out: int,
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    prompt_weight = noise = 0.0
    if isinstance(recipe, SFTRecipe):
        prompt_weight, noise = recipe.prompt_loss_weight, recipe.neftune_alpha
    packed = pack(train, limit) if recipe.packing else [[example] for example in train]
    rows = [training_row(examples, prompt_weight) for examples in packed]
    total = n_steps(recipe, len(rows))

    set_seed(recipe.seed)  # the adapters start at random
    base = load_causal(
        recipe.base_model,
        method=recipe.method,
        dtype=recipe.dtype,
        rope=(recipe.rope_scaling, recipe.rope_factor),
    )
    disable_dropout_in_model(base)
    if recipe.packing:
        if recipe.method in PROMPTS:
            raise ValueError("packing: a learned prompt stands before a row, not before each text")
        _refuse_mixing(base, train)

    def losses(model: Any, examples: Sequence[TokenExample]) -> list[float]:
        """−log-probability (nats) of each response."""
        where = next(model.parameters()).device.type
        is_bf16 = number_format(recipe.dtype) == torch.bfloat16
        with torch.autocast(where, dtype=torch.bfloat16, enabled=is_bf16):
            logps = response_logps(
                model,
                [example.prompt_ids for example in examples],
                [example.response_ids for example in examples],
                tokenizer.pad_token_id,
            )
        return [-logp for logp in logps.tolist()]

    # Before there is an adapter: not every method could be turned off again.
    base_nll: list[float] = []
    ordered = longest_first(test)
    for start in range(0, len(ordered), recipe.batch_size):
        base_nll += losses(base.eval(), ordered[start : start + recipe.batch_size])
        on_step(StepReport(step=0, n_steps=total, split="test"))

    n_tokens = [len(example.response_ids) for example in ordered]
    report: ReportSteps[TokenExample] = ReportSteps(
        recipe,
        total,
        test,
        lambda examples: losses(trainer.model, examples),
        on_step,
        logged={},
        summary=lambda nll: {"loss": sum(nll) / sum(n_tokens)},
    )
    trainer = _Trainer(
        model=base,
        peft_config=(
            None if recipe.method in WHOLE else adapter_config(base, recipe, task="CAUSAL_LM")
        ),
        args=SFTConfig(
            neftune_noise_alpha=noise or None,
            # What is too long was left out before; TRL would cut or drop it in silence.
            max_length=None,
            **trainer_settings(recipe, folder, len(rows)),
        ),
        processing_class=tokenizer,
        data_collator=collator(tokenizer.pad_token_id, packing=recipe.packing),
        train_dataset=Dataset.from_list(rows),
        callbacks=[report],
        optimizers=(optimizer_of(base, recipe), None),
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    train_in_float32(trainer.model)
    save_start(trainer.model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    save_model(trainer.model, recipe, folder)
    tokenizer.save_pretrained(folder / "model")
    nll = report.measured_at(total, trainer.model)
    trained, parameters = n_parameters(trainer.model)
    units = [example.unit for example in report.test]
    return token_metrics(nll, base_nll, n_tokens, units, n_left_out=n_left_out) | {
        "n_train": len(train),
        "n_steps": total,
        "longest": max(len(row["input_ids"]) for row in rows),
        "train_tokens": sum(example.n_tokens for example in train),
        "max_length": limit,
        "trained_parameters": trained,
        "parameters": parameters,
        "optimizer": optimizer_words(recipe),
    }


def pack(examples: Sequence[TokenExample], room: int) -> list[list[TokenExample]]:
    """Rows of several examples, none longer than `room`: best fit, the longest first.

    Source: best-fit decreasing, as in Ding et al. 2024, arXiv:2404.10830, without its cuts.
    """
    rows: list[list[TokenExample]] = []
    with_room: dict[int, list[int]] = {}  # places of rows by the tokens that are free in them
    for example in longest_first(examples):
        fits = [free for free in range(example.n_tokens, room + 1) if with_room.get(free)][:1]
        free = fits[0] if fits else room
        place = with_room[free].pop() if fits else len(rows)
        if not fits:
            rows.append([])
        rows[place].append(example)
        with_room.setdefault(free - example.n_tokens, []).append(place)
    return rows


def training_row(examples: Sequence[TokenExample], prompt_weight: float) -> dict[str, list[Any]]:
    """One row of the trainer's dataset: ids, the weight of each in the loss, and its place in its
    own conversation."""
    ids: list[int] = []
    weights: list[float] = []
    places: list[int] = []
    for example in examples:
        own = [prompt_weight * example.weight] * len(example.prompt_ids)
        own += [example.weight] * len(example.response_ids)
        ids += example.prompt_ids + example.response_ids
        weights += [0.0, *own[1:]]  # nothing stands before the first: it is told from nothing
        places += range(example.n_tokens)
    return {"input_ids": ids, "weights": weights, "position_ids": places}


def collator(pad_id: int, *, packing: bool) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Rows to a batch, padded behind.

    Packed rows say by their positions where a conversation begins, and bear no mask: models then
    keep conversations apart by themselves.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask = pad_right([row["input_ids"] for row in rows], pad_id)
        weights = torch.zeros(ids.shape)
        places = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            weights[at, : len(row["weights"])] = torch.tensor(row["weights"])
            places[at, : len(row["position_ids"])] = torch.tensor(row["position_ids"])
        batch = {"input_ids": ids, "weights": weights}
        batch["labels"] = ids.masked_fill(weights == 0, -100)
        return batch | ({"position_ids": places} if packing else {"attention_mask": mask})

    return collate


def _refuse_mixing(model: Any, examples: Sequence[TokenExample]) -> None:
    """Raises: ValueError if a packed conversation depends on the one that stands before it."""
    first, second = (
        (example.prompt_ids + example.response_ids)[:COMPARED]
        for example in (examples[0], examples[-1])
    )
    where = next(model.parameters()).device
    body = getattr(model, model.base_model_prefix)

    def read(ids: list[int], places: list[int]) -> Tensor:
        with torch.no_grad():
            hidden: Tensor = body(
                input_ids=torch.tensor([ids], device=where),
                position_ids=torch.tensor([places], device=where),
                use_cache=False,
            ).last_hidden_state
        return hidden[0, -len(second) :].float()

    own = list(range(len(second)))
    alone = read(second, own)
    packed = read(first + second, [*range(len(first)), *own])
    joined = read(first + second, list(range(len(first) + len(second))))
    # Between the rounding of a number format and a conversation that is read lie orders of size.
    if (packed - alone).norm() > (joined - alone).norm() / 2:
        raise ValueError("packing: this model mixes up what is packed into one row; turn it off")


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with a weight for each token, on rows that are tokens already, without messages
    to the outside."""

    loss_is_scaled_for_ga = True
    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "weights", "position_ids"]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Tensor:
        """Sum of the weights of the batches that make one step, in place of their tokens' number:
        a step is the weighted mean over all its tokens, however they are divided."""
        total: Tensor = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total.to(device)).sum()
        return total.to(device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Σ w · −log p / Σ w over the tokens. With weights of 0 and 1 it is TRL's own loss."""
        weights = inputs.pop("weights")[:, 1:]  # (rows, tokens - 1): the token at t + 1, told at t
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**inputs, **extra, use_cache=False, fused_lm_head=True)
        # From behind: prompt tuning puts tokens of its own in front.
        logps = outputs.log_probs[:, -weights.shape[1] :]
        whole = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = -(weights * logps).sum() / whole.clamp(min=1e-9)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            share = self.current_gradient_accumulation_steps if self.model.training else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / share
        return (loss, outputs) if return_outputs else loss

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return
