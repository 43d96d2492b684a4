"""Conversations and texts to tokens: through the tokenizer's chat template, never truncated."""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

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
    demonstration: bool = False
    """Whether a rater wrote the chosen response, as a better answer."""
    strength: float | None = None
    """How much better, from 0 to 3 (1 slightly, 2 clearly, 3 much); None if nobody said."""
    aspects: dict[str, float] | None = None
    """By aspect, how far it speaks for the chosen response, from −1 to 1."""
    ratings: tuple[float, float] | None = None
    """Of the chosen and of the rejected response, where single responses are learned."""


@dataclass(frozen=True)
class Example:
    """A response to imitate."""

    prompt: Messages
    response: Messages
    prompt_id: str = ""
    weight: float = 1.0
    """How much its tokens count in the loss."""


@dataclass(frozen=True)
class Single:
    """A response that is judged by itself, without another beside it."""

    prompt: Messages
    response: Messages
    good: float
    """Probability that it is good: 1 or 0 for a certain label, one half for neither."""
    weight: float = 1.0
    rating: float | None = None
    """From −1, the worst, to 1, the best; None if nobody said."""
    prompt_id: str = ""
    """Responses to the same prompt share it; the split never divides them."""
    name: str = ""
    """Which response it is, for reports."""


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
    strength: float | None = None
    ratings: tuple[float, float] | None = None

    @property
    def n_tokens(self) -> int:
        """Length of the longer side, prompt included."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class TokenExample:
    """A response to imitate, or a piece of text, as token ids."""

    prompt_ids: list[int]
    """What the rest is told from: the prompt, or the one token before a piece of text."""
    response_ids: list[int]
    unit: str
    """Whose it is: the prompt's, or the text's; resampled whole for intervals."""
    weight: float = 1.0

    @property
    def n_tokens(self) -> int:
        """Length, prompt included."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class TokenSingle:
    """A single response as token ids, with what is said of it."""

    prompt_ids: list[int]
    response_ids: list[int]
    unit: str
    """Whose it is: the prompt's; resampled whole for intervals."""
    n_chars: int
    good: float = 1.0
    weight: float = 1.0
    rating: float | None = None
    name: str = ""

    @property
    def n_tokens(self) -> int:
        """Length, prompt included."""
        return len(self.prompt_ids) + len(self.response_ids)


class EmptyResponse(ValueError):
    """A response without text under a chat template that writes no end of turn."""


@dataclass(frozen=True)
class LeftOut:
    """Pairs, or responses, that were not trained or measured on."""

    too_long: int
    empty: int


def storable(text: str) -> str:
    """The text without NUL, which a byte-level model may write and PostgreSQL does not take."""
    return text.replace("\x00", "�")


def words_of(tokenizer: Any, tokens: Any) -> str:
    """What a model wrote, as a row can keep it."""
    return storable(tokenizer.decode(tokens, skip_special_tokens=True).strip())


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


def prompts_of(pairs: Sequence[Pair | Single]) -> list[Messages]:
    """Their prompts, each once, in the order of the rows."""
    found: dict[str, Messages] = {}
    for pair in pairs:
        found.setdefault(json.dumps(pair.prompt, sort_keys=True), pair.prompt)
    return list(found.values())


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
        strength=pair.strength,
        ratings=pair.ratings,
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


Kept = TypeVar("Kept")


def kept_apart(
    rows: Sequence[Kept], share: float, seed: int, unit: Callable[[Kept], str]
) -> tuple[list[Kept], list[Kept]]:
    """(train, validation): a share of the units, drawn by their hash, goes to validation whole.

    Args: unit: whose a row is, as prompt_of; its rows stay together.
    Raises: ValueError if a share above 0 leaves one of them without a row.
    """
    if not share:
        return list(rows), []
    sides: tuple[list[Kept], list[Kept]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(f"validation:{seed}:{unit(row)}".encode()).digest()
        sides[int.from_bytes(digest[:8]) / 2**64 < share].append(row)
    for side, what in zip(sides, ("for training", "for validation"), strict=True):
        if not side:
            n = len({unit(row) for row in rows})
            raise ValueError(
                f"validation_share of {share} leaves nothing {what} of {n} drawn by chance: "
                "change it, or the seed"
            )
    return sides


def without_ties(validation: Sequence[Pair]) -> list[Pair]:
    """Validation pairs that say which response a model should put ahead.

    Raises: ValueError if all of them are ties.
    """
    clear = [pair for pair in validation if pair.prob > 0.5]
    if validation and not clear:
        raise ValueError(
            f"validation_share: all {len(validation)} validation pairs are ties, by which no "
            "weights can be chosen; raise it"
        )
    return clear


def prompt_of(pair: Pair | Single) -> str:
    """What rows with the same prompt share."""
    return pair.prompt_id or json.dumps(pair.prompt, sort_keys=True)


def rated(pairs: Sequence[Pair], rating_of: str = "strength") -> list[Pair]:
    """The pairs with a rating in [−1, 1] of both responses: the mean, over the pairs in which a
    response stands, of how far they speak for it. That is the strength over 3, negative where it
    was rejected; or the answers to the aspect that `rating_of` names. A pair without either says
    nothing, and is left out if nothing is said of one of its responses.
    """
    said: dict[str, list[float]] = {}
    keys = [(_key(p.prompt, p.chosen), _key(p.prompt, p.rejected)) for p in pairs]
    for pair, sides in zip(pairs, keys, strict=True):
        lead = None if pair.strength is None else pair.strength / 3
        if rating_of != "strength":
            lead = (pair.aspects or {}).get(rating_of)
        for key, sign in zip(sides, (1, -1), strict=True):
            if lead is not None:
                said.setdefault(key, []).append(sign * lead)
    mean = {key: sum(values) / len(values) for key, values in said.items()}
    return [
        replace(pair, ratings=(mean[chosen], mean[rejected]))
        for pair, (chosen, rejected) in zip(pairs, keys, strict=True)
        if chosen in mean and rejected in mean
    ]


def to_singles(pairs: Sequence[Pair]) -> list[Single]:
    """Single responses, each once: good where it is the better one more often than not, by the
    labels and weights of its pairs, else bad. Its weight is the mean of theirs; one that is as
    often better as worse is left out.
    """
    found: dict[str, tuple[Pair, Messages, list[tuple[float, float]]]] = {}
    for pair in pairs:
        for response, prob in ((pair.chosen, pair.prob), (pair.rejected, 1 - pair.prob)):
            key = _key(pair.prompt, response)
            found.setdefault(key, (pair, response, []))[2].append((prob, pair.weight))
    singles = []
    for pair, response, said in found.values():
        weight = sum(w for _prob, w in said)
        lead = sum(w * (2 * prob - 1) for prob, w in said)
        if abs(lead) > 1e-9 * max(1.0, weight):
            good = 1.0 if lead > 0 else 0.0
            singles.append(
                Single(pair.prompt, response, good, weight / len(said), prompt_id=pair.prompt_id)
            )
    return singles


def singles_of(rows: Sequence[Pair | Single]) -> list[Single]:
    """Those of the rows that are judgements of single responses: all of them, or none."""
    return [row for row in rows if isinstance(row, Single)]


def pairs_of(rows: Sequence[Pair | Single]) -> list[Pair]:
    """Those of the rows that are pairs: all of them, or none."""
    return [row for row in rows if isinstance(row, Pair)]


def tokenize_singles(
    singles: Sequence[Single], tokenizer: Any, max_length: int
) -> tuple[list[TokenSingle], LeftOut]:
    """Token ids of the responses that can be trained on, with what is said of each; and how many
    were left out, and why."""
    examples = [Example(s.prompt, s.response, str(n), s.weight) for n, s in enumerate(singles)]
    tokens, left_out = tokenize_examples(examples, tokenizer, max_length)
    fitting = []
    for token in tokens:
        single = singles[int(token.unit)]
        fitting.append(
            TokenSingle(
                prompt_ids=token.prompt_ids,
                response_ids=token.response_ids,
                unit=prompt_of(single),
                n_chars=n_chars(single.response),
                good=single.good,
                weight=single.weight,
                rating=single.rating,
                name=single.name,
            )
        )
    return fitting, left_out


def to_imitate(pairs: Sequence[Pair], imitate: str) -> tuple[list[Example], dict[str, int]]:
    """Responses to imitate, each once, with the largest weight of its pairs; and how many pairs
    gave none, by reason: ties, other (no demonstration, or beaten by another response), repeated.

    Args: imitate: one of config.IMITATE. A response is unbeaten if none of these pairs rejects it.
    """
    left_out = {"ties": 0, "other": 0, "repeated": 0}
    beaten = {_key(pair.prompt, pair.rejected) for pair in pairs if pair.prob > 0.5}

    def wanted(pair: Pair) -> bool:
        if imitate == "demonstrations":
            return pair.demonstration
        return imitate == "chosen" or _key(pair.prompt, pair.chosen) not in beaten

    examples: dict[str, Example] = {}
    for pair in pairs:
        key = _key(pair.prompt, pair.chosen)
        known = examples.get(key)
        if pair.prob <= 0.5:
            left_out["ties"] += 1
        elif not wanted(pair):
            left_out["other"] += 1
        else:
            left_out["repeated"] += known is not None
            weight = max(pair.weight, known.weight) if known else pair.weight
            examples[key] = Example(pair.prompt, pair.chosen, pair.prompt_id, weight)
    return list(examples.values()), left_out


def _key(prompt: Messages, response: Messages) -> str:
    return json.dumps([prompt, response], sort_keys=True)


def tokenize_examples(
    examples: Sequence[Example], tokenizer: Any, max_length: int
) -> tuple[list[TokenExample], LeftOut]:
    """Token ids of the responses that can be trained on, and how many were left out, and why."""
    fitting: list[TokenExample] = []
    too_long = empty = 0
    for example in examples:
        prompt = chat_tokens(tokenizer, example.prompt, open_answer=True)
        whole = chat_tokens(tokenizer, example.prompt + example.response)
        start = _shared_prefix(prompt, whole)
        if start == len(whole):
            empty += 1
        elif len(whole) > max_length:
            too_long += 1
        else:
            unit = example.prompt_id or _key(example.prompt, [])
            fitting.append(TokenExample(whole[:start], whole[start:], unit, example.weight))
    return fitting, LeftOut(too_long=too_long, empty=empty)


def text_pieces(text: str, unit: str, tokenizer: Any, max_length: int) -> Iterator[TokenExample]:
    """A text as pieces of at most `max_length` tokens; it ends with the end-of-sequence token.

    A piece begins with the last token of the one before, so every token but the first is told
    from what stands before it exactly once.
    """
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for part in _with_cuts(text, tokenizer).split(CUT):
        ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    for start in range(0, len(ids) - 1, max_length - 1):
        yield TokenExample(ids[start : start + 1], ids[start + 1 : start + max_length], unit)


class Sized(Protocol):
    @property
    def n_tokens(self) -> int: ...


Row = TypeVar("Row", bound=Sized)


def longest_first(rows: Sequence[Row]) -> list[Row]:
    """For measuring: if memory runs out at all, it does so in the first batch."""
    return sorted(rows, key=lambda row: row.n_tokens, reverse=True)


def n_chars(messages: Messages) -> int:
    """Length of a response in characters."""
    return sum(len(message["content"]) for message in messages)


def _shared_prefix(first: list[int], second: list[int]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
