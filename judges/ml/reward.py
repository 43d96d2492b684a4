"""A reward model as judge: one number for each response, read alone; the difference is the verdict.

Any sequence classifier from disk or the hub that gives one number (or two, for "bad" and "good"),
and what a reward run leaves, adapter or whole. A response's order of showing does not exist here.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from judges.ml.asking import count
from judges.ml.config import JudgeRecipe, Messages, ModelUnusable
from judges.ml.loading import is_out_of_memory, left_beside, stretched_config
from judges.ml.modes import Outcome, reward_outcome
from judges.ml.questions import Sample, neutral
from judges.ml.spelling import control_marks

# The form in which training shows conversations to models whose tokenizer has no chat template: see
# training.ml.data. A reward model must read what it was trained on, to the last blank.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A reward model in memory."""

    model: Any
    tokenizer: Any
    device: torch.device
    max_context: int
    batch_tokens: int
    control: tuple[str, ...]
    members: tuple[str, ...] = ()
    """Adapters of an ensemble, whose mean is the reward; empty where there is one model."""
    counts: dict[str, int] = field(default_factory=dict)
    """See `judges.ml.asking.Engine`."""

    def judge(self, samples: Sequence[Sample]) -> Iterator[list[tuple[int, Outcome]]]:
        """Verdicts batch by batch: (place in `samples`, outcome); the longest come first.

        Where memory does not suffice for a batch, it is halved and read again.
        """
        rows, refused = [], []
        for index, sample in enumerate(samples):
            row = self._fit(index, sample)
            if row is None:
                problem = (
                    f"A response does not fit the model's context of {self.max_context} tokens."
                )
                refused.append((index, Outcome(problem=problem)))
            else:
                rows.append(row)
        if refused:
            yield refused
        rows.sort(key=lambda row: -row.longest)
        budget = self.batch_tokens
        while rows:
            size = max(1, budget // (2 * rows[0].longest))
            batch = rows[:size]
            began = time.perf_counter()
            each = self._each_or_none([ids for row in batch for ids in (row.a, row.b)])
            if each is None and len(batch) > 1:
                budget = len(batch) * rows[0].longest  # half of what both responses took
                continue
            rows = rows[size:]
            if each is None:
                problem = f"One comparison alone needs more memory than {self.device} has."
                yield [(batch[0].index, Outcome(problem=problem))]
                continue
            seconds = (time.perf_counter() - began) / len(batch)
            rewards: list[float] = each.mean(dim=0).tolist()
            gaps = each[:, 0::2] - each[:, 1::2]  # (members, comparisons)
            spreads = gaps.std(dim=0).tolist() if len(gaps) > 1 else [None] * len(batch)
            yield [
                (
                    row.index,
                    reward_outcome(
                        rewards[2 * place],
                        rewards[2 * place + 1],
                        n_tokens=len(row.a) + len(row.b),
                        n_tokens_cut=row.n_tokens_cut,
                        seconds=seconds,
                        spread=spreads[place],
                    ),
                )
                for place, row in enumerate(batch)
            ]

    def _fit(self, index: int, sample: Sample) -> "_Row | None":
        """Both conversations as tokens, the prompt's oldest turns left out as far as needed; None
        if a response alone is too long."""
        prompt = list(sample.prompt)
        row = self._row(index, prompt, sample)
        whole = row.longest
        while row.longest > self.max_context and prompt:
            # A system message says what the whole conversation is about: it goes last.
            oldest = next((i for i, turn in enumerate(prompt) if turn["role"] != "system"), 0)
            del prompt[oldest]
            row = self._row(index, prompt, sample)
        if row.longest > self.max_context:
            return None
        return _Row(index, row.a, row.b, whole - row.longest)

    def _row(self, index: int, prompt: Messages, sample: Sample) -> "_Row":
        return _Row(
            index, self._tokens([*prompt, *sample.a]), self._tokens([*prompt, *sample.b]), 0
        )

    def _tokens(self, messages: Messages) -> list[int]:
        text: str = self.tokenizer.apply_chat_template(
            [{**turn, "content": neutral(turn["content"], self.control)} for turn in messages],
            chat_template=self.tokenizer.chat_template or PLAIN_TEMPLATE,
            tokenize=False,
        )
        # The template has written what the tokenizer would put before and behind a text.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _each_or_none(self, rows: list[list[int]]) -> torch.Tensor | None:
        """As _each; None where memory ran out."""
        try:
            return self._each(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`, where the error would hold on to the memory.
        count(self.counts, "out_of_memory")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _rewards(self, rows: list[list[int]]) -> list[float]:
        """Of an ensemble the mean of its members."""
        found: list[float] = self._each(rows).mean(dim=0).tolist()
        return found

    @torch.inference_mode()
    def _each(self, rows: list[list[int]]) -> torch.Tensor:
        """Rewards by every member, (members, rows)."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        # Padding behind: an encoder reads its answer off the first token.
        tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        each = []
        for member in self.members or (None,):
            if member is not None:
                self.model.set_adapter(member)
            logits = self.model(
                input_ids=tokens.to(self.device), attention_mask=mask.to(self.device)
            ).logits.float()  # (rows, 1 or 2)
            each.append(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])
        return torch.stack(each)


@dataclass(frozen=True)
class _Row:
    index: int
    a: list[int]
    b: list[int]
    n_tokens_cut: int

    @property
    def longest(self) -> int:
        return max(len(self.a), len(self.b))


def load_reward_model(
    model: str,
    recipe: JudgeRecipe,
    device: str = "",
    batch_tokens: int = 0,
    counts: dict[str, int] | None = None,
) -> RewardModel:
    """The reward model in memory.

    Args:
        model: hub id, local folder, or the folder of an adapter, whose base is then loaded too.
            Weights are read as safetensors; code that comes with a model is never run.
        recipe: `dtype` and `max_context` are used.
    Raises: ModelUnusable when the folder is missing or gives no reward.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    looks_local = model.startswith((os.sep, ".", "~")) or model.count("/") > 1
    if looks_local and not Path(model).expanduser().is_dir():
        raise ModelUnusable(f"there is no model folder {model}")
    name = str(Path(model).expanduser()) if looks_local else model
    try:
        loaded, tokenizer = _loaded(name, _dtype(recipe, where), where)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelUnusable(f"the model {model} could not be loaded: {reason}") from error
    n_labels = loaded.config.num_labels
    if n_labels not in (1, 2):
        raise ModelUnusable(f"{model} gives {n_labels} numbers; a reward model gives one")
    loaded.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    adapters = tuple(getattr(loaded, "peft_config", ()))
    limits = [
        getattr(loaded.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        recipe.max_context,
    ]
    return RewardModel(
        model=loaded.to(where).eval(),
        tokenizer=tokenizer,
        device=where,
        # Tokenizers without a limit say 1e30.
        max_context=min((int(n) for n in limits if n and n < 1e9), default=10**9),
        batch_tokens=batch_tokens or (8192 if where.type == "cpu" else 65536),
        control=control_marks(tokenizer),
        members=adapters if len(adapters) > 1 else (),
        counts={} if counts is None else counts,
    )


def _loaded(name: str, dtype: Any, where: torch.device) -> tuple[Any, Any]:
    adapter = Path(name) / "adapter_config.json"
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "dtype": dtype}
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        # An encoder's marks stand for beginning and end, as they did in training.
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has neither a padding nor an end token")
    if not adapter.is_file():
        missing: dict[str, Any]
        loaded, missing = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options
        )
        if missing["missing_keys"]:
            # A head that was never trained: its numbers would be drawn at random.
            raise ValueError(f"it has no weights for {sorted(missing['missing_keys'])[0]}")
        return loaded, tokenizer
    if not (Path(name) / "adapter_model.safetensors").is_file():
        # PEFT would take adapter_model.bin, a pickle that may run anything.
        raise ValueError("the adapter has no file adapter_model.safetensors")
    from peft import PeftModel

    settings = json.loads(adapter.read_text())
    base = settings["base_model_name_or_path"]
    if not settings.get("modules_to_save"):
        raise ValueError("the adapter brings no head, so it is no reward model's")
    made = left_beside(name)
    in_4_bits = made.get("method") in ("qlora", "loftq")
    config = stretched_config(base, name, num_labels=1)
    options |= {"num_labels": 1} if config is None else {"config": config}
    if in_4_bits:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if dtype != "auto" else torch.bfloat16,
            llm_int8_skip_modules=["score", "classifier", "lm_head"],
        )
        options["device_map"] = {"": where}
    scorer = AutoModelForSequenceClassification.from_pretrained(base, **options)
    for module in scorer.modules():
        # See training.ml.loading: repacked for such a processor, the weights would be others.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    scorer.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    adapted = PeftModel.from_pretrained(scorer, name)
    members = int(made.get("members", 1))
    for member in range(1, members):
        folder = Path(name) / f"member-{member}"
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError(f"the ensemble has no file {folder.name}/adapter_model.safetensors")
        adapted.load_adapter(str(folder), adapter_name=folder.name)
    # Merged into four bits an adapter would be rounded away; a learned prompt has no weights; and
    # members of an ensemble take turns on one base.
    if members > 1 or in_4_bits or settings.get("num_virtual_tokens"):
        return adapted, tokenizer
    return adapted.merge_and_unload(), tokenizer


def _dtype(recipe: JudgeRecipe, device: torch.device) -> Any:
    if recipe.dtype != "auto":
        return getattr(torch, recipe.dtype)
    return torch.float32 if device.type == "cpu" else "auto"
