"""What a judge's tokenizer makes of answers and of marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from judges.ml.config import ModelUnusable

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Spellings:
    """Every answer's spellings as token sequences, and what must be read to score them."""

    of: tuple[tuple[Tokens, ...], ...]
    """For each answer its spellings: with and without a space before it."""
    begun: tuple[Tokens, ...]
    """Beginnings of longer spellings, shortest first: the model reads them to say what is next.
    The empty one, which is read in any case, is left out."""

    @property
    def n_longest(self) -> int:
        """Tokens of the longest spelling."""
        return max(len(one) for answer in self.of for one in answer)

    def logps(self, after: dict[Tokens, torch.Tensor]) -> torch.Tensor:
        """Log-probability of every answer, (rows, answers), at most 0.

        A spelling of several tokens has the product of its tokens' probabilities. Where one answer
        begins another ("1" and "10" in tokens of one digit), the shorter is counted only where the
        longer does not follow: answers exclude each other, and their mass is at most 1.

        Args:
            after: log-probabilities of the next token, (rows, vocabulary), after nothing, (), and
                after each of `begun`.
        """
        logp = {spelling: _sequence_logp(spelling, after) for one in self.of for spelling in one}
        alone: dict[Tokens, torch.Tensor] = {}
        for spelling in sorted(logp, key=len, reverse=True):
            value = logp[spelling]
            for longer, other in alone.items():
                if len(longer) > len(spelling) and longer[: len(spelling)] == spelling:
                    value = value + torch.log1p(-(other - value).clamp(max=-1e-7).exp())
            alone[spelling] = value
        columns = [
            torch.stack([alone[spelling] for spelling in one]).logsumexp(0) for one in self.of
        ]
        # Rounding may leave it a hair above 0; an impossible answer must stay a finite number.
        return torch.stack(columns, dim=-1).clamp(min=-1e4, max=0.0)


def spellings(tokenizer: Any, ending: str, answers: Sequence[str]) -> Spellings:
    """How the tokenizer spells each of the answers after the ending.

    A spelling that needs more tokens than another of the same answer is left out.

    Raises: ModelUnusable if an answer has no tokens.
    """
    of = tuple(_spellings_of(tokenizer, ending, answer) for answer in answers)
    begun = {one[:n] for answer in of for one in answer for n in range(1, len(one))}
    return Spellings(of, tuple(sorted(begun, key=lambda tokens: (len(tokens), tokens))))


def control_marks(tokenizer: Any) -> tuple[str, ...]:
    """Strings that this tokenizer reads as something other than text: ends of turns and the like.

    Added tokens that are plain runs of spaces or words are left out.
    """
    marks = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or set(token.content) & set("<>[]|"):
            marks.add(token.content)
    return tuple(sorted(mark for mark in marks if len(mark) > 1))


def _spellings_of(tokenizer: Any, ending: str, answer: str) -> tuple[Tokens, ...]:
    vocabulary = tokenizer.get_vocab()
    # As it stands in byte-level (Ġ) and in sentencepiece (▁) vocabularies.
    names = (answer, f"Ġ{answer}", f"▁{answer}")
    found: set[Tokens] = {(vocabulary[name],) for name in names if name in vocabulary}
    before = tokenizer(ending, add_special_tokens=False)["input_ids"]
    for spelling in (answer, f" {answer}"):
        after = tokenizer(ending + spelling, add_special_tokens=False)["input_ids"]
        if after[: len(before)] == before and len(after) > len(before):
            found.add(tuple(after[len(before) :]))
    # Where the ending's last token swallows the answer's first, as " 1" is one token, a model that
    # has read the ending goes on with the answer as it stands alone.
    found.add(tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]))
    found = {tokens for tokens in found if tokens and tokenizer.unk_token_id not in tokens}
    if not found:
        raise ModelUnusable(f'the tokenizer of this model has no token for "{answer}"')
    shortest = min(map(len, found))
    return tuple(sorted(tokens for tokens in found if len(tokens) == shortest))


def _sequence_logp(spelling: Tokens, after: dict[Tokens, torch.Tensor]) -> torch.Tensor:
    steps = [after[spelling[:n]][:, token] for n, token in enumerate(spelling)]
    return torch.stack(steps).sum(0)  # (rows,)
