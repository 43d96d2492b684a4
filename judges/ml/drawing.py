"""Which token comes next: the most probable one, or one drawn at a temperature."""

import hashlib
from collections.abc import Sequence

import torch

from judges.ml.asking import Writing


class Drawing:
    """The choices of rows that write side by side.

    A row draws with numbers of its own, which follow from its seed, its text and its own number: it
    writes the same in whatever company.
    """

    def __init__(self, rows: Sequence[tuple[str, Writing, int]], device: torch.device) -> None:
        """
        Args:
            rows: of each its text, how it is written, and which of its text's writings it is.
        """
        steps = max(writing.max_tokens for _text, writing, _number in rows)
        temperatures = [writing.temperature for _text, writing, _number in rows]
        self.is_greedy = not any(temperatures)
        self.temperature = torch.tensor(temperatures, device=device)[:, None]  # (rows, 1)
        self.luck = torch.stack(
            [
                _uniform(text, writing, number, steps)
                if writing.temperature
                else torch.zeros(steps, dtype=torch.float64)
                for text, writing, number in rows
            ]
        ).to(device)  # (rows, steps)

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """The next token of each row, (rows,), from its logits, (rows, vocabulary)."""
        greedy = logits.argmax(-1)
        if self.is_greedy:
            return greedy
        warm = logits.double() / self.temperature.clamp(min=1e-6)
        reached = warm.softmax(-1).cumsum(-1)  # (rows, vocabulary)
        # The last token that has any probability is never overstepped by rounding.
        goal = self.luck[:, step, None] * reached[:, -1:]
        drawn = (reached <= goal).sum(-1)
        return torch.where(self.temperature[:, 0] > 0, drawn, greedy)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        places = torch.tensor(rows, device=self.luck.device)
        self.temperature, self.luck = self.temperature[places], self.luck[places]


def _uniform(text: str, writing: Writing, number: int, steps: int) -> torch.Tensor:
    """As many numbers in [0, 1); the first ones do not depend on how many."""
    digest = hashlib.sha256(f"{writing.seed} {number} {text}".encode("utf-8", "replace")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
    return torch.rand(steps, dtype=torch.float64, generator=generator)
