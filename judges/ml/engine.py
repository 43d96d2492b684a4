"""Put requests to a causal language model on this machine: log-probabilities and texts out.

What many requests begin with (preamble, exemplars) is read once and kept; what some of them share
after that (the prompt, in both orders of its responses) is read once for them together; each then
reads its own rest. Where something is to be written, all texts of a batch are written side by side,
and the ending is read on from where the text is already in memory. The numbers are those of the
whole text (question, rationale, ending) read at once, in one piece.

An engine works on one device. For several GPUs start a worker for each, with CUDA_VISIBLE_DEVICES
set to its own.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from judges.ml.asking import Reply, Request, Said, count
from judges.ml.batch import MIN_COMMON, ask_plainly, ask_with_rows, families, n_common
from judges.ml.config import JudgeRecipe
from judges.ml.loading import eos_ids, is_out_of_memory, load_model, max_context
from judges.ml.rows import Rows, bytes_per_token, use_rows
from judges.ml.wording import Asked, Text, Wording

logger = logging.getLogger(__name__)

MOST_BYTES = 2 * 2**30  # of keys and values of a batch on a CPU: memory that it shares with others

FREED_BYTES = 31 * 2**20  # below the 32 MB from which on glibc never keeps what is freed


class LocalEngine:
    """A judge's model in memory. Implements `judges.ml.asking.Engine`."""

    def __init__(
        self,
        model: Any,
        wording: Wording,
        batch_tokens: int = 0,
        counts: dict[str, int] | None = None,
    ) -> None:
        """
        Args:
            batch_tokens: about how many tokens a batch may hold, beside what all its texts share; 0
                chooses 262,144, and on a CPU what `MOST_BYTES` have room for, if that is less.
            counts: added to; see `judges.ml.asking.Engine`.
        """
        on_cpu = model.device.type == "cpu"
        self.model, self.wording = model, wording
        room = MOST_BYTES // bytes_per_token(model) if on_cpu else 262_144
        self.batch_tokens = batch_tokens or min(room, 262_144)
        self.read_tokens = 1024 if on_cpu else 16_384
        self.most_texts = 128 if on_cpu else 1024
        """Of a batch. Beyond, a processor is no faster, and whoever waits sees nothing longer."""
        self.reads_on = use_rows(model)
        """Whether texts are read on from where they stopped; else each is read as a whole."""
        self.counts: dict[str, int] = {} if counts is None else counts
        self._shared: tuple[list[int], Rows] | None = None
        if on_cpu:
            # glibc hands the memory of every large product back to the system, and takes it again
            # page by page for the next layer, until it has once seen a block as large freed.
            torch.empty(FREED_BYTES, dtype=torch.uint8)

    @property
    def tokenizer(self) -> Any:
        return self.wording.tokenizer

    @property
    def max_context(self) -> int:
        return self.wording.max_context

    @property
    def control(self) -> tuple[str, ...]:
        """Strings that the model's tokenizer reads as something other than text."""
        return self.wording.control

    def excess(self, request: Request) -> int:
        """By how many tokens the request, with all that is to be written, exceeds the context."""
        asked = self.wording.asked(0, request)
        return len(asked.ids) + asked.n_needed - self.max_context

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
        """Replies batch by batch: (place in `requests`, reply).

        The longest come first, so that memory that does not suffice shows at once. When it does
        not, the batch is halved and asked again.
        """
        asked: list[Asked] = []
        too_long: list[Asked] = []
        for index, request in enumerate(requests):
            one = self.wording.asked(index, request)
            fits = len(one.ids) + one.n_needed <= self.max_context
            (asked if fits else too_long).append(one)
        if too_long:
            problem = f"The question does not fit the model's context of {self.max_context} tokens."
            yield [(one.index, Reply(problem=problem)) for one in too_long]
        prefix = self._prefix(asked)
        waiting = _longest_first(asked, len(prefix))
        done: dict[int, list[Text]] = {}
        most, budget = len(waiting), self.batch_tokens
        while waiting:
            batch = waiting[: min(most, self._batch_size(waiting, len(prefix), budget))]
            began = time.perf_counter()
            if not self._ask(batch, prefix):
                if len(batch) > 1:
                    most, budget = len(batch) // 2, _n_tokens(batch, len(prefix)) // 2
                    continue
                most, budget = len(waiting), self.batch_tokens  # the next may be shorter
                one = batch[0].asked
                done.pop(one.index, None)
                waiting = [text for text in waiting if text.asked is not one]
                problem = f"One question alone needs more memory than {self.model.device} has."
                yield [(one.index, Reply(problem=problem))]
                continue
            self.batch_tokens = budget
            waiting = waiting[len(batch) :]
            replies = []
            for text in batch:
                text.seconds = (time.perf_counter() - began) / len(batch)
                texts = done.setdefault(text.asked.index, [])
                texts.append(text)
                if len(texts) == text.asked.n_texts:
                    replies.append((text.asked.index, _reply(done.pop(text.asked.index))))
            if replies:
                yield replies

    def _ask(self, batch: Sequence[Text], prefix: list[int]) -> bool:
        """Ask a batch. False if memory ran out; nothing is kept of it then."""
        try:
            if self.reads_on:
                shared = self._shared_rows(prefix)
                ask_with_rows(self.model, self.wording, batch, shared, self.read_tokens)
            else:
                ask_plainly(self.model, self.wording, batch)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`, where the error would hold on to the memory.
        count(self.counts, "out_of_memory")
        logger.warning(
            "out of memory over a batch of %d texts on %s", len(batch), self.model.device
        )
        for text in batch:
            text.forget()
        self._shared = None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _batch_size(self, waiting: Sequence[Text], n_shared: int, budget: int) -> int:
        """How many of the texts fit the budget, at least two: the orders of one comparison.

        It does not end in the midst of texts that begin alike, unless they fill it alone.
        """
        width = 0
        for size, text in enumerate(waiting):
            needed = len(text.asked.ids) + text.asked.n_needed - n_shared
            width = max(width, needed)
            if size >= self.most_texts or ((size + 1) * width > budget and size >= 2):
                begins = [n for n in range(size) if waiting[n].family == text.family]
                return (begins[0] if begins else size) or size
        return len(waiting)

    def _prefix(self, asked: Sequence[Asked]) -> list[int]:
        """What all of them begin with, as far as it is worth a reading of its own."""
        if not self.reads_on or len(asked) < 2:
            return []
        n = n_common([one.ids for one in asked])
        return asked[0].ids[:n] if n >= MIN_COMMON else []

    def _shared_rows(self, prefix: list[int]) -> Rows | None:
        """The prefix, read; it stays in memory for the next batch and the next call."""
        if self._shared is not None and self._shared[0] == prefix:
            return self._shared[1]
        self._shared = None  # its memory first
        if not prefix:
            return None
        rows = Rows(self.model, 1, len(prefix))
        rows.keep([0], [0], [prefix])
        self._shared = (prefix, rows)
        return rows


def load_engine(
    model: str,
    recipe: JudgeRecipe,
    device: str = "",
    batch_tokens: int = 0,
    counts: dict[str, int] | None = None,
) -> LocalEngine:
    """The judge's model in memory.

    Args:
        model: hub id or local folder, also of a LoRA adapter. Weights are read as safetensors; code
            that comes with a model is never run.
        recipe: of it, how the model is loaded and read: `dtype`, `load_in_4bit`, `max_context`,
            `chat`.
        device: "cpu", "cuda", "cuda:1", …; empty is the GPU if there is one.
        batch_tokens, counts: see LocalEngine.
    Raises: ModelUnusable when the folder is missing or is no causal language model.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded, tokenizer = load_model(model, recipe, where)
    wording = Wording(
        tokenizer,
        eos_ids=eos_ids(loaded, tokenizer),
        max_context=max_context(loaded, tokenizer, recipe),
        use_chat=recipe.chat == "auto",
    )
    return LocalEngine(loaded, wording, batch_tokens, counts)


def _longest_first(asked: Sequence[Asked], n_shared: int) -> list[Text]:
    """The texts of requests that begin alike beside each other, those with the longest first."""
    ordered = sorted(asked, key=lambda one: one.ids)
    groups = [
        [ordered[place] for place in family]
        for family in families([one.ids for one in ordered], n_shared)
    ]
    groups.sort(key=lambda group: -max(len(one.ids) + one.n_needed for one in group))
    return [
        Text(one, number, family)
        for family, group in enumerate(groups)
        for one in group
        for number in range(one.n_texts)
    ]


def _n_tokens(batch: Sequence[Text], n_shared: int) -> int:
    width = max(len(text.asked.ids) + text.asked.n_needed for text in batch) - n_shared
    return len(batch) * width


def _reply(texts: Sequence[Text]) -> Reply:
    """What one request came to."""
    texts = sorted(texts, key=lambda text: text.number)
    said = [Said(logps=text.logps, text=text.whole, rationale=text.rationale) for text in texts]
    write = texts[0].asked.request.write
    if write is not None and len(said) < write.n:
        said *= write.n  # greedy: all the same
    n_written = sum(len(text.written) for text in texts)
    return Reply(
        said=tuple(said),
        n_tokens_read=max(0, sum(len(text.ids) for text in texts) - n_written),
        n_tokens_written=n_written,
        seconds=sum(text.seconds for text in texts),
    )
