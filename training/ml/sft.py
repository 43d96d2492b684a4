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

from training.ml import ranks
from training.ml.adapting import optimizer_of, optimizer_words, save_model, save_start
from training.ml.batches import parts_of, passes_of, steps_of, useful_share
from training.ml.config import PretrainRecipe, SFTRecipe
from training.ml.data import (
    Pair,
    TokenExample,
    kept_apart,
    longest_first,
    prompt_of,
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
from training.ml.loop import Batch, learn, of_whole_steps, one_step_at_a_time
from training.ml.methods import PROMPTS, WHOLE, virtual_tokens
from training.ml.steps import (
    OnStep,
    ReportSteps,
    StepReport,
    measured_together,
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
        n_train, n_validation, n_steps, best_step, train_tokens (read in one pass), useful_tokens
        (share of what was computed that is no padding), max_length (the model's context, where
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
    own, validation = kept_apart(train, recipe.validation_share, recipe.seed, prompt_of)
    train_examples, none_train = to_imitate(own, recipe.imitate)
    valid_examples, none_valid = to_imitate(validation, recipe.imitate)
    test_examples, none_test = to_imitate(test, recipe.imitate)
    if not train_examples:
        raise ValueError(
            f"imitate: none of the {len(own)} training pairs holds a response to imitate "
            f"({recipe.imitate})"
        )
    train_tokens, left_out_train = tokenize_examples(train_examples, tokenizer, limit)
    valid_tokens, left_out_valid = tokenize_examples(valid_examples, tokenizer, limit)
    test_tokens, left_out_test = tokenize_examples(test_examples, tokenizer, limit)
    if not train_tokens:
        raise ValueError(f"no training response of {len(train_examples)} fits max_length={limit}")
    if validation and not valid_tokens:
        raise ValueError(f"validation_share leaves no response that fits max_length={limit}")
    n_left_out = left_out_test.too_long + left_out_test.empty
    sides = (train_tokens, valid_tokens, test_tokens)
    found = _train(recipe, tokenizer, limit, sides, n_left_out, folder, on_step)
    return found | {
        "too_long_train": left_out_train.too_long + left_out_valid.too_long,
        "too_long_test": left_out_test.too_long,
        "empty": left_out_train.empty + left_out_valid.empty + left_out_test.empty,
        **{reason: n + none_valid[reason] + none_test[reason] for reason, n in none_train.items()},
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
    own, validation = kept_apart(train, recipe.validation_share, recipe.seed, str)

    def pieces(side: Sequence[str]) -> list[TokenExample]:
        return [
            piece
            for place, text in enumerate(side)
            for piece in text_pieces(text, str(place), tokenizer, limit)
        ]

    sides = (pieces(own), pieces(validation), pieces(test))
    if not sides[0]:
        raise ValueError(f"no training text of {len(own)} holds two tokens")
    if validation and not sides[1]:
        raise ValueError(f"no validation text of {len(validation)} holds two tokens")
    found = _train(recipe, tokenizer, limit, sides, 0, folder, on_step)
    return found | {
        "n_texts": len(own),
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
    sides: tuple[list[TokenExample], list[TokenExample], list[TokenExample]],
    n_left_out: int,
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train on the first side, choose the weights by the second, measure on the third."""
    train, validation, test = sides
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
    for part in measured_together(recipe, test):
        base_nll += losses(base.eval(), part)
        on_step(StepReport(step=0, n_steps=total, split="test"))

    lengths = [len(row["input_ids"]) for row in rows]
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
        )
        return [
            [step[part[at]] for at in one]
            for part in found
            for one in passes_of([lengths[step[at]] for at in part])
        ]

    collate = collator(tokenizer.pad_token_id, packing=recipe.packing)
    report: ReportSteps[TokenExample] = ReportSteps(
        recipe,
        total,
        test,
        lambda examples: losses(trainer.model, examples),
        on_step,
        logged={},
        summary=lambda nll: {"loss": sum(nll) / sum(map(n_told, report.rows))},
        validation=validation,
        folder=folder,
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
            **trainer_settings(recipe, folder, len(rows)) | of_whole_steps(total),
        ),
        parts=lambda step: [collate([rows[at] for at in part]) for part in places(step["rows"])],
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"rows": step} for step in steps]),
        callbacks=[report],
        optimizers=(optimizer_of(base, recipe), None),
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    train_in_float32(trainer.model)
    save_start(trainer.model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    report.choose_best(trainer.model)
    save_model(trainer.model, recipe, folder)
    if ranks.is_first():
        tokenizer.save_pretrained(folder / "model")
    nll = report.measured_at_end(trainer.model)
    trained, parameters = n_parameters(trainer.model)
    units, n_tokens = [example.unit for example in report.test], list(map(n_told, report.test))
    return token_metrics(nll, base_nll, n_tokens, units, n_left_out=n_left_out) | {
        "n_train": len(train),
        "n_validation": len(validation),
        "n_steps": report.reached,
        "best_step": report.best_step,
        "longest": max(lengths),
        "useful_tokens": useful_share(
            [[length] for length in lengths], [part for step in steps for part in places(step)]
        ),
        "train_tokens": sum(example.n_tokens for example in train),
        "max_length": limit,
        "trained_parameters": trained,
        "parameters": parameters,
        "optimizer": optimizer_words(recipe),
    }


def n_told(example: TokenExample) -> int:
    """Tokens that a measurement counts."""
    return len(example.response_ids)


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
    """Rows to a batch, padded behind; n_tokens of them are no padding.

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
        batch = {"input_ids": ids, "weights": weights, "n_tokens": mask.sum()}
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
    """TRL's trainer with a weight for each token, on steps that are divided into parts beforehand,
    without messages to the outside."""

    def __init__(self, *, parts: Callable[[Any], list[Batch]], **settings: Any) -> None:
        self.parts = parts
        super().__init__(**settings)

    def get_train_dataloader(self) -> Any:
        return one_step_at_a_time(self, self.parts)

    def training_step(
        self, model: Any, inputs: dict[str, list[Batch]], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of one step; returns its loss, Σ w · −log p / Σ w over all its tokens, however
        they are divided. With weights of 0 and 1 it is TRL's own."""
        model = self.model  # not what wraps it among several processes: see `learn`
        model.train()
        parts: list[Batch] = self._prepare_inputs(inputs)["parts"]
        whole = torch.stack([part["weights"].sum() for part in parts]).sum()
        loss, _values = learn(self, model, parts, self._loss, whole.clamp(min=1e-9))
        return loss

    def _loss(self, model: Any, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ w · −log p over the tokens of a part."""
        given = {name: part[name] for name in part if name not in ("weights", "n_tokens")}
        weights = part["weights"][:, 1:]  # (rows, tokens - 1): the token at t + 1, told at t
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**given, **extra, use_cache=False, fused_lm_head=True)
        # From behind: prompt tuning puts tokens of its own in front.
        loss = -(weights * outputs.log_probs[:, -weights.shape[1] :]).sum()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss * weights.sum()
        return loss, {}

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # nobody reads it, and it would look for the tokens of one batch

    def _track_num_input_tokens(self, inputs: dict[str, list[Batch]]) -> None:
        self.state.num_input_tokens_seen += sum(int(part["n_tokens"]) for part in inputs["parts"])

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return
