"""DPO: a policy learned from pairs without a reward model (TRL's DPOTrainer).

The reference model is the policy with its adapter off, so the base is in memory once; a second copy
is held for the methods that have nothing to turn off.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model

from training.ml.adapting import optimizer_of, optimizer_words, save_model, save_start
from training.ml.config import DPORecipe
from training.ml.data import Pair, TokenPair, tokenize_pairs
from training.ml.evaluation import pair_metrics
from training.ml.loading import (
    adapter_config,
    load_causal,
    load_tokenizer,
    longest_allowed,
    n_parameters,
    number_format,
    train_in_float32,
)
from training.ml.logprobs import response_logps
from training.ml.losses import LABEL_COLUMNS, add_labels, label_columns, soft_pair_loss
from training.ml.methods import WHOLE, needs_reference_copy, virtual_tokens
from training.ml.steps import (
    OnStep,
    ReportSteps,
    n_steps,
    pair_summary,
    quiet_trainer,
    resume_point,
    trainer_settings,
)


@quiet_trainer()
def train(
    recipe: DPORecipe,
    train: Sequence[Pair],
    test: Sequence[Pair],
    folder: Path,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train a policy; leave its adapter in `folder`/model and what it is worth as the return.

    Called again on the same folder, it goes on from the last checkpoint and ends with the same
    weights as an unbroken run.

    Returns: pair_metrics of the implicit reward β·(log π/π_ref) on the test pairs;
        chosen_logp_change and rejected_logp_change, mean nats per response against the reference
        (a falling chosen one is likelihood displacement); and n_train, n_steps,
        max_length (the model's context, where that is less than asked), too_long_train,
        too_long_test, empty, trained_parameters, parameters, optimizer, seconds.
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

    set_seed(recipe.seed)  # the adapters start at random
    base = load_causal(recipe.base_model, method=recipe.method, dtype=recipe.dtype)
    disable_dropout_in_model(base)
    copy = None
    if needs_reference_copy(recipe.method):
        copy = load_causal(recipe.base_model, dtype=recipe.dtype).eval().requires_grad_(False)
    total = n_steps(recipe, len(train_tokens))
    reference: dict[int, tuple[float, float]] = {}
    log_ratios: dict[int, tuple[float, float]] = {}

    def margins(pairs: Sequence[TokenPair]) -> list[float]:
        """Implicit rewards, chosen minus rejected. The reference never changes: asked once."""
        now = _logps(trainer.model, tokenizer, pairs, recipe.dtype)
        if any(id(pair) not in reference for pair in pairs):
            with reference_model(trainer.model, copy) as frozen:
                then = _logps(frozen, tokenizer, pairs, recipe.dtype)
            reference.update(zip(map(id, pairs), then, strict=True))
        found = []
        for pair, (chosen, rejected) in zip(pairs, now, strict=True):
            up, down = chosen - reference[id(pair)][0], rejected - reference[id(pair)][1]
            log_ratios[id(pair)] = (up, down)
            found.append(recipe.beta * (up - down))
        return found

    report = ReportSteps(
        recipe,
        total,
        test_tokens,
        margins,
        on_step,
        logged={"accuracy": "rewards/accuracies", "margin": "rewards/margins"},
        summary=lambda found: (
            pair_summary(found) | _mean_changes([log_ratios[id(p)] for p in report.test])
        ),
    )
    trainer = _Trainer(
        model=base,
        ref_model=copy,
        # Wrapped by the trainer: without a copy it takes the policy with its adapter off.
        peft_config=(
            None if recipe.method in WHOLE else adapter_config(base, recipe, task="CAUSAL_LM")
        ),
        args=DPOConfig(
            beta=recipe.beta,
            # Dropout of the base is off already; theirs would turn off the adapters' as well.
            disable_dropout=False,
            **trainer_settings(recipe, folder, len(train_tokens)),
        ),
        processing_class=tokenizer,
        data_collator=_Collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt_ids": pair.prompt_ids,
                    "chosen_ids": pair.chosen_ids,
                    "rejected_ids": pair.rejected_ids,
                }
                | label_columns(pair)
                for pair in train_tokens
            ]
        ),
        callbacks=[report],
        optimizers=(optimizer_of(base, recipe), None),
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the caller
    train_in_float32(trainer.model)
    save_start(trainer.model, recipe, folder)
    trainer.train(resume_from_checkpoint=resume_point(folder))

    save_model(trainer.model, recipe, folder)
    tokenizer.save_pretrained(folder / "model")
    found = report.measured_at(total, trainer.model)
    trained, parameters = n_parameters(trainer.model)
    changes = _mean_changes([log_ratios[id(pair)] for pair in report.test])
    return pair_metrics(
        found,
        [p.chosen_chars - p.rejected_chars for p in report.test],
        n_left_out=left_out_test.too_long + left_out_test.empty,
    ) | {
        "chosen_logp_change": changes["chosen_logp"],
        "rejected_logp_change": changes["rejected_logp"],
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


def _mean_changes(log_ratios: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean change of log-probability (nats) of the chosen and the rejected responses against the
    reference; a falling chosen one is likelihood displacement."""
    n = max(1, len(log_ratios))
    return {
        "chosen_logp": sum(up for up, _down in log_ratios) / n,
        "rejected_logp": sum(down for _up, down in log_ratios) / n,
    }


@contextlib.contextmanager
def reference_model(policy: Any, copy: Any | None) -> Iterator[Any]:
    """The frozen start to compare with: its copy, or the policy with its adapter off meanwhile."""
    if copy is not None:
        yield copy
    else:
        with policy.disable_adapter():
            yield policy


def _logps(
    model: Any, tokenizer: Any, pairs: Sequence[TokenPair], dtype: str
) -> list[tuple[float, float]]:
    """Log-probabilities (nats) of the chosen and of the rejected response, per pair."""
    prompts = [pair.prompt_ids for pair in pairs]
    responses = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    numbers = number_format(dtype)
    where = next(model.parameters()).device.type
    with torch.autocast(where, dtype=torch.bfloat16, enabled=numbers == torch.bfloat16):
        logps = response_logps(model, prompts * 2, responses, tokenizer.pad_token_id).tolist()
    return list(zip(logps[: len(pairs)], logps[len(pairs) :], strict=True))


class _Collator(DataCollatorForPreference):  # type: ignore[misc]
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return add_labels(super().torch_call(examples), examples)


class _Trainer(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer with soft labels and weights, on pairs that are tokens already, without
    messages to the outside."""

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = sorted({*(self._signature_columns or ()), *LABEL_COLUMNS})

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """soft_pair_loss of the implicit rewards. TRL's sigmoid loss has no place for a label of
        each pair, so its two forward passes stand here; the reference is the adapter off."""
        prob, weight = (inputs.pop(name) for name in LABEL_COLUMNS)
        completion = inputs.pop("completion_mask")
        labels = inputs["input_ids"].masked_fill(completion == 0, -100)
        asked = {**inputs, "labels": labels, "use_cache": False, "fused_lm_head": True}
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**asked, **extra)
        policy = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), reference_model(policy, self.ref_model) as frozen:
            reference = frozen(**asked).log_probs.sum(dim=1)
        # (2 × pairs,): the chosen responses, then the rejected ones
        up, down = (outputs.log_probs.sum(dim=1) - reference).chunk(2)
        delta = self.beta * (up - down)
        loss = soft_pair_loss(delta, prob, weight).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        metrics = self._metrics["train" if self.model.training else "eval"]
        right, margin = (delta > 0).float().mean(), delta.detach().mean()
        for name, value in (("accuracies", right), ("margins", margin)):
            mean = self.accelerator.gather_for_metrics(value).mean()
            metrics[f"rewards/{name}"].append(mean.item())
        return (loss, outputs) if return_outputs else loss

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        return

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return
