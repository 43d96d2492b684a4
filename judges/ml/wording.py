"""Requests as a judge's tokenizer has them: text to tokens, and what was written back to text."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from judges.ml.asking import Request, Writing
from judges.ml.questions import plain_text, tidy_written, with_written
from judges.ml.spelling import Spellings, control_marks, spellings

STOP_EVERY = 8  # tokens between two looks at whether a text has come to its end


@dataclass(frozen=True)
class Asked:
    """A request as tokens."""

    index: int
    request: Request
    text: str
    """All that stands before what is written; with the ending where nothing is."""
    ids: list[int]
    n_needed: int
    """Tokens that may follow `ids`."""
    spelled: Spellings

    @property
    def n_texts(self) -> int:
        """How many texts are to be written: greedy ones are all the same."""
        write = self.request.write
        return write.n if write is not None and write.temperature > 0 else 1


@dataclass(eq=False)
class Text:
    """One text in the making: a request, what is written after it, the answers."""

    asked: Asked
    number: int
    """Which of the request's texts."""
    family: int = 0
    """Texts of one family begin alike."""
    written: list[int] = field(default_factory=list)
    ended: bool = False
    whole: str = ""
    """All that is read before the answer."""
    rationale: str = ""
    ids: list[int] = field(default_factory=list)
    """`whole` in tokens."""
    logps: tuple[float, ...] = ()
    """Of the answers. Where they are, the text is done."""
    seconds: float = 0.0

    @property
    def writing(self) -> Writing:
        assert self.asked.request.write is not None
        return self.asked.request.write

    def forget(self) -> None:
        """Back to where nothing was written."""
        self.written, self.ended = [], False


class Wording:
    """A tokenizer, and how it is used for one judge."""

    def __init__(
        self, tokenizer: Any, *, eos_ids: frozenset[int], max_context: int, use_chat: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.max_context = max_context
        self.use_chat = use_chat and bool(tokenizer.chat_template)
        self.control = control_marks(tokenizer)
        self.spelled = lru_cache(maxsize=64)(self._spelled)

    def asked(self, index: int, request: Request) -> Asked:
        text, write = self._opening(request), request.write
        spelled = self.spelled(request.ending, request.answers)
        n_needed = spelled.n_longest - 1
        if write is None:
            text += request.ending
        else:
            ending = self.tokenizer(request.ending, add_special_tokens=False)["input_ids"]
            n_needed += write.max_tokens + len(ending) + 1
        return Asked(index, request, text, self.tokens(text), n_needed, spelled)

    def tokens(self, text: str) -> list[int]:
        # A chat template writes the mark of the text's beginning itself.
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.use_chat)["input_ids"]
        while ids and ids[-1] in self.eos_ids and not self.use_chat:
            ids.pop()  # some tokenizers close every text; the judge is to go on
        return ids

    def take(self, text: Text, tokens: list[int]) -> None:
        """More of what is written, up to the text's end if that is among it."""
        most = text.writing.max_tokens
        for token in tokens:
            text.ended = text.ended or token in self.eos_ids or len(text.written) >= most
            if text.ended:
                return
            text.written.append(token)
        words = self.tokenizer.decode(text.written, skip_special_tokens=True)
        text.ended = len(text.written) >= most or any(s in words for s in text.writing.stops)

    def finish(self, text: Text) -> None:
        """The whole text, of which what was written is a part, read again in one piece."""
        asked = text.asked
        if asked.request.write is None:
            text.whole, text.ids = asked.text, asked.ids
            return
        words = self.tokenizer.decode(
            text.written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text.rationale = tidy_written(words, text.writing.stops, self.control)
        while True:
            text.whole = with_written(asked.text, text.rationale, asked.request.ending)
            text.ids = self.tokens(text.whole)
            if len(text.ids) + asked.spelled.n_longest - 1 <= self.max_context:
                return
            if not text.rationale:
                return
            # Broken characters take more tokens when read again than when they were written.
            text.rationale = text.rationale[: len(text.rationale) * 3 // 4].rstrip()

    def _opening(self, request: Request) -> str:
        """What the model reads first: through its chat template, or as plain text."""
        if not self.use_chat:
            return plain_text(request)
        turn = [{"role": "user", "content": request.task}]
        text: str = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text + request.lead

    def _spelled(self, ending: str, answers: tuple[str, ...]) -> Spellings:
        return spellings(self.tokenizer, ending.lstrip(), answers)
