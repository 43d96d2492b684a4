"""A score straight from a language model that is asked to rate a response: RLAIF without a reward
model in between."""

from collections.abc import Sequence
from typing import Any

import torch

from training.ml.data import Messages, chat_tokens
from training.ml.loading import load_policy, longest_allowed
from training.ml.logprobs import pad_right
from training.ml.rollouts import body_and_head

GRADES = range(1, 10)
"""One digit each: a token in every vocabulary."""
QUESTION = """\
Here is a conversation, and the last response to it.

{conversation}

Response: {response}

{guidelines}
How good is the response? Answer with one digit from 1, useless, to 9, as good as can be."""


class Rater:
    """A language model, held whole beside the policy, that rates responses."""

    def __init__(self, folder: str, guidelines: str, *, dtype: str, batch_size: int) -> None:
        """Raises: ModelMissing; ValueError if a digit is no token of its vocabulary."""
        self.model, self.tokenizer = load_policy(folder, dtype=dtype)
        self.guidelines, self.batch_size = guidelines, batch_size
        self.room = longest_allowed(folder, 1 << 20)
        self.digits = [self._tokens(str(grade)) for grade in GRADES]
        if not all(self.digits):
            raise ValueError(f"{folder} cannot be asked: a digit is no token of its vocabulary")

    def _tokens(self, digit: str) -> list[int]:
        """The tokens that an answer with this digit may begin with."""
        ways = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in
                (digit, f" {digit}"))  # fmt: skip
        return sorted({ids[0] for ids in ways if len(ids) == 1})

    @torch.no_grad()
    def ratings(self, prompts: Sequence[Messages], texts: Sequence[str]) -> list[float]:
        """The expected grade of each response, from −1 to 1.

        Σ g·p(g) / Σ p(g) over the digits that the answer may begin with, so that a model that is
        torn says so by a number in between.

        Raises: ValueError for a question that exceeds the model's context.
        Source: Lee et al. 2023, arXiv:2309.00267, section on direct RLAIF (d-RLAIF).
        """
        rows = [self._asked(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        if (longest := max(map(len, rows))) > self.room:
            raise ValueError(f"a question of {longest} tokens exceeds the judge's {self.room}")
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
        body, head = body_and_head(self.model)
        where = head.weight.device
        grades = torch.tensor([float(grade) for grade in GRADES], device=where)
        found = [0.0] * len(rows)
        for start in range(0, len(rows), self.batch_size):
            places = order[start : start + self.batch_size]
            part = [rows[place] for place in places]
            ids, mask = (t.to(where) for t in pad_right(part, self.tokenizer.pad_token_id))
            states = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = states[torch.arange(len(part)), mask.sum(dim=1) - 1]
            probs = torch.softmax(head(last).float(), dim=-1)  # (rows, words)
            of_grade = torch.stack([probs[:, tokens].sum(dim=1) for tokens in self.digits], dim=1)
            expected = (of_grade * grades).sum(dim=1) / of_grade.sum(dim=1)
            told = (expected - grades.mean()) / (grades[-1] - grades.mean())
            for place, value in zip(places, told.tolist(), strict=True):
                found[place] = value
        return found

    def _asked(self, prompt: Messages, text: str) -> list[int]:
        said = "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
        question = QUESTION.format(conversation=said, response=text, guidelines=self.guidelines)
        asked: Any = [{"role": "user", "content": question}]
        return chat_tokens(self.tokenizer, asked, open_answer=True)
