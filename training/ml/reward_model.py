"""Reward model: a prompt and a response to a number, learned from pairs (TRL's RewardTrainer)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model

from training.ml.adapting import adapted, optimizer_of, optimizer_words, save_model, save_start
from training.ml.config import RewardRecipe
from training.ml.data import Messages, Pair, TokenPair, chat_tokens, tokenize_pairs
from training.ml.evaluation import pair_metrics
from training.ml.loading import (
    load_scorer,
    load_tokenizer,
    longest_allowed,
    n_parameters,
    number_format,
    train_in_float32,
)
from training.ml.logprobs import pad_right
from training.ml.losses import LABEL_COLUMNS, add_labels, label_columns, soft_pair_loss
from training.ml.methods import virtual_tokens
from training.ml.steps import (
    OnStep,
    ReportSteps,
    n_steps,
    quiet_trainer,
    resume_point,
    trainer_settings,
)


@quiet_trainer()
def train(
    recipe: RewardRecipe,
    train: Sequence[Pair],
    test: Sequence[Pair],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a reward model; leave it in `folder`/model and what it is worth as the return.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run.

    Returns: pair_metrics on the test pairs (those longer than `max_length` left out), and
        n_train, n_steps, max_length (the model's context, where that is less than asked),
        too_long_train, too_long_test, empty, trained_parameters, parameters, optimizer, seconds.
    Raises: ModelMissing; ValueError if no training pair fits `max_length`; whatever on_step raises.
    """
    began = time.monotonic()
    tokenizer = load_tokenizer(recipe.base_model)
    limit = longest_allowed(
        recipe.base_model, recipe.max_length, virtual_tokens=virtual_tokens(recipe)
    )
    train_tokens, left_out_train = tokenize_pairs(train, tokenizer, limit)
    test_tokens, left_out_test = tokenize_pairs(test, tokenizer, limit)
    if not train_tokens:
        raise ValueError(f"no training pair of {len(train)} fits max_length={limit}")

    set_seed(recipe.seed)  # the head and the adapters start at random
    base = load_scorer(recipe.base_model, method=recipe.method, dtype=recipe.dtype)
    disable_dropout_in_model(base)
    model = adapted(base, recipe, task="SEQ_CLS")
    total = n_steps(recipe, len(train_tokens))
    report = ReportSteps(
        recipe,
        total,
        test_tokens,
        lambda pairs: margins(model, tokenizer, pairs, dtype=recipe.dtype),
        on_step,
    )
    trainer = _Trainer(
        model=model,
        args=RewardConfig(
            center_rewards_coefficient=recipe.center_rewards or None,
            # Dropout of the base is off already; theirs would turn off the adapters' as well.
            disable_dropout=False,
            **trainer_settings(recipe, folder, len(train_tokens)),
        ),
        processing_class=tokenizer,
        data_collator=_Collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(
            [
                {
                    "chosen_ids": pair.prompt_ids + pair.chosen_ids,
                    "rejected_ids": pair.prompt_ids + pair.rejected_ids,
                }
                | label_columns(pair)
                for pair in train_tokens
            ]
        ),
        callbacks=[report],
        optimizers=(optimizer_of(model, recipe), None),
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    train_in_float32(model)
    save_start(model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    save_model(model, recipe, folder)
    tokenizer.save_pretrained(folder / "model")
    found = report.measured_at(total, model)
    trained, parameters = n_parameters(model)
    return pair_metrics(
        found,
        [p.chosen_chars - p.rejected_chars for p in report.test],
        n_left_out=left_out_test.too_long + left_out_test.empty,
    ) | {
        "n_train": len(train_tokens),
        "n_steps": total,
        "max_length": limit,
        "longest": max(pair.n_tokens for pair in train_tokens),
        "too_long_train": left_out_train.too_long,
        "too_long_test": left_out_test.too_long,
        "empty": left_out_train.empty + left_out_test.empty,
        "trained_parameters": trained,
        "parameters": parameters,
        "optimizer": optimizer_words(recipe),
        "seconds": time.monotonic() - began,
    }


def margins(
    model: Any, tokenizer: Any, pairs: Sequence[TokenPair], *, dtype: str = "auto"
) -> list[float]:
    """Reward of the chosen response minus that of the rejected one, per pair."""
    rows = [pair.prompt_ids + pair.chosen_ids for pair in pairs]
    rows += [pair.prompt_ids + pair.rejected_ids for pair in pairs]
    rewards = _rewards(model, rows, tokenizer.pad_token_id, dtype)
    return (rewards[: len(pairs)] - rewards[len(pairs) :]).tolist()


def score(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    batch_size: int = 16,
    dtype: str = "auto",
) -> list[float]:
    """Reward of each conversation: prompt and response as one list of messages."""
    rows = [chat_tokens(tokenizer, messages) for messages in conversations]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    rewards = [0.0] * len(rows)
    for start in range(0, len(rows), batch_size):
        places = order[start : start + batch_size]
        batch = _rewards(model, [rows[p] for p in places], tokenizer.pad_token_id, dtype)
        for place, reward in zip(places, batch.tolist(), strict=True):
            rewards[place] = reward
    return rewards


def _rewards(model: Any, rows: list[list[int]], pad_id: int, dtype: str) -> torch.Tensor:
    where = next(model.parameters()).device
    ids, mask = (tensor.to(where) for tensor in pad_right(rows, pad_id))
    numbers = number_format(dtype)
    with (
        torch.no_grad(),
        torch.autocast(where.type, dtype=torch.bfloat16, enabled=numbers == torch.bfloat16),
    ):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (rows, 1)
    rewards: torch.Tensor = logits.squeeze(-1).float()
    return rewards


class _Collator(DataCollatorForPreference):  # type: ignore[misc]
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return add_labels(super().torch_call(examples), examples)


class _Trainer(RewardTrainer):  # type: ignore[misc]
    """TRL's trainer with soft labels and weights, without messages to the outside and cards."""

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = sorted({*(self._signature_columns or ()), *LABEL_COLUMNS})

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """soft_pair_loss of the rewards, and the centring; accuracy and margin are TRL's."""
        prob, weight = (inputs.pop(name) for name in LABEL_COLUMNS)
        _hard, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)  # (pairs,) each
        loss = soft_pair_loss(chosen - rejected, prob, weight).mean()
        if self.args.center_rewards_coefficient is not None:
            centring = ((chosen + rejected) ** 2).mean()
            loss = loss + self.args.center_rewards_coefficient * centring
        return (loss, outputs) if return_outputs else loss

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return
