"""Pairs of conversations to tokens: through the tokenizer's chat template, never truncated."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Messages = list[dict[str, str]]
"""A conversation: [{"role": "user" | "assistant" | "system", "content": text}, …]."""

# Used where a tokenizer brings no chat template. Roles in words, a blank line between turns, and
# the end-of-sequence token after every answer, so that a model learns where an answer ends.
# The opening ends with a colon and no blank: in byte-level vocabularies the blank belongs to the
# answer's first word, so the prompt's tokens stay a prefix of the whole.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

CUT = f"cut{secrets.token_hex(16)}"
"""Where a text is divided before it becomes tokens; drawn anew, so that no text can hold it."""


@dataclass(frozen=True)
class Pair:
    """A comparison after its preference."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    prompt_id: str = ""
    """Pairs with the same prompt share it; the split never divides them."""
    comparison: str = ""
    """Which comparison it came from, for reports."""
    prob: float = 1.0
    """Probability that the chosen response is the better one; one half for a tie."""
    weight: float = 1.0
    """How much it counts in the loss."""


@dataclass(frozen=True)
class TokenPair:
    """A pair as token ids. The prompt's are followed by either response's."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_chars: int
    rejected_chars: int
    comparison: str
    prob: float = 1.0
    weight: float = 1.0

    @property
    def n_tokens(self) -> int:
        """Length of the longer side, prompt included."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class EmptyResponse(ValueError):
    """A response without text under a chat template that writes no end of turn."""


@dataclass(frozen=True)
class LeftOut:
    """Pairs that were not trained or measured on."""

    too_long: int
    empty: int


def chat_tokens(tokenizer: Any, messages: Messages, *, open_answer: bool = False) -> list[int]:
    """Token ids of a conversation; with `open_answer`, up to where the assistant would begin.

    Marks of turns and ends come from the template alone: where a message's own text names one, it
    is read as the plain characters it is written with.
    """
    text: str = tokenizer.apply_chat_template(
        [{**message, "content": _with_cuts(message["content"], tokenizer)} for message in messages],
        chat_template=tokenizer.chat_template or PLAIN_TEMPLATE,
        tokenize=False,
        add_generation_prompt=open_answer,
    )
    ids: list[int] = []
    for piece in text.split(CUT):
        # The template has written what the tokenizer would put before and behind a text.
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def _with_cuts(text: str, tokenizer: Any) -> str:
    """The text with a cut after the first character of every mark."""
    marks = _marks(tokenizer)
    while marks.search(text):  # again, because marks may overlap
        text = marks.sub(lambda mark: mark[0][0] + CUT + mark[0][1:], text)
    return text


@lru_cache(maxsize=4)
def _marks(tokenizer: Any) -> re.Pattern[str]:
    """What the tokenizer reads as something other than text: its special tokens.

    Some tokenizers do not call their marks of turns special, so tokens written like <|…|> count
    too. Others that a model was taught to write itself, such as <think>, stay what they are.
    """
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or set(token.content) & set("|\N{FULLWIDTH VERTICAL LINE}"):
            found.add(token.content)
    # A mark of one character cannot be cut.
    marks = sorted((mark for mark in found if len(mark) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marks)) or r"(?!)")


def tokenize_pair(pair: Pair, tokenizer: Any) -> TokenPair:
    """Token ids of a pair.

    Where a template writes the opening of an answer differently from the answer itself, the
    responses begin at the first token that differs.

    Raises: EmptyResponse if a side has no response tokens of its own.
    """
    prompt = chat_tokens(tokenizer, pair.prompt, open_answer=True)
    chosen = chat_tokens(tokenizer, pair.prompt + pair.chosen)
    rejected = chat_tokens(tokenizer, pair.prompt + pair.rejected)
    start = min(_shared_prefix(prompt, chosen), _shared_prefix(prompt, rejected))
    if start == len(chosen) or start == len(rejected):
        raise EmptyResponse(f"comparison {pair.comparison}: a response has no tokens")
    return TokenPair(
        prompt_ids=prompt[:start],
        chosen_ids=chosen[start:],
        rejected_ids=rejected[start:],
        chosen_chars=n_chars(pair.chosen),
        rejected_chars=n_chars(pair.rejected),
        comparison=pair.comparison,
        prob=pair.prob,
        weight=pair.weight,
    )


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int
) -> tuple[list[TokenPair], LeftOut]:
    """Token ids of the pairs that can be trained on, and how many were left out, and why.

    A pair is left out whole if its longer side exceeds `max_length` tokens: cut short, its label
    might no longer be true.
    """
    fitting: list[TokenPair] = []
    too_long = empty = 0
    for pair in pairs:
        try:
            tokens = tokenize_pair(pair, tokenizer)
        except EmptyResponse:
            empty += 1
            continue
        if tokens.n_tokens <= max_length:
            fitting.append(tokens)
        else:
            too_long += 1
    return fitting, LeftOut(too_long=too_long, empty=empty)


def longest_first(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """For measuring: if memory runs out at all, it does so in the first batch."""
    return sorted(pairs, key=lambda pair: pair.n_tokens, reverse=True)


def n_chars(messages: Messages) -> int:
    """Length of a response in characters."""
    return sum(len(message["content"]) for message in messages)


def _shared_prefix(first: list[int], second: list[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
