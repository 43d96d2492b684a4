"""What asking a server may cost: set aside before a question is sent, booked when it is answered.

The worst case of everything in flight is set aside, so that a budget is never exceeded.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from judges.ml.asking import BudgetSpent, Request, count

OVERHEAD = 64
"""Tokens that a chat template may add to a question's words, for the worst case."""


class Purse(Protocol):
    """What may be spent, in tokens and in money; shared by everything that asks at once."""

    def reserve(self, n_tokens: int, cost: float, *, waits: bool = True) -> bool:
        """Set aside; False if that would exceed the budget. With `waits`, requests in flight are
        waited for first, which may give some of what they hold back."""

    def settle(self, n_tokens: int, cost: float, spent_tokens: int, spent_cost: float) -> None:
        """Give back what was set aside, and book what was spent of it."""


class Budget:
    """A purse in this process's memory."""

    def __init__(
        self,
        most_tokens: int | None = None,
        most_cost: float | None = None,
        *,
        spent_tokens: int = 0,
        spent_cost: float = 0.0,
    ) -> None:
        self.most_tokens, self.most_cost = most_tokens, most_cost
        self.spent_tokens, self.spent_cost = spent_tokens, spent_cost
        self._held_tokens, self._held_cost = 0, 0.0
        self._changed = threading.Condition()

    def reserve(self, n_tokens: int, cost: float, *, waits: bool = True) -> bool:
        with self._changed:
            while not self._has_room(n_tokens, cost):
                if not waits or not self._held_tokens:
                    return False
                self._changed.wait()
            self._held_tokens += n_tokens
            self._held_cost += cost
            return True

    def settle(self, n_tokens: int, cost: float, spent_tokens: int, spent_cost: float) -> None:
        with self._changed:
            self._held_tokens -= n_tokens
            self._held_cost -= cost
            self.spent_tokens += spent_tokens
            self.spent_cost += spent_cost
            self._changed.notify_all()

    def _has_room(self, n_tokens: int, cost: float) -> bool:
        tokens = self.spent_tokens + self._held_tokens + n_tokens
        money = self.spent_cost + self._held_cost + cost
        return (self.most_tokens is None or tokens <= self.most_tokens) and (
            self.most_cost is None or money <= self.most_cost
        )


@dataclass
class Bill:
    """What one request holds of the budget, and what it has used."""

    held_tokens: int = 0
    held_cost: float = 0.0
    n_read: int = 0
    n_written: int = 0
    n_bounded: int = 0
    told: set[str] = field(default_factory=set)


class Till:
    """Where one server's requests are paid: its prices, and the purse of whoever asks."""

    def __init__(
        self, purse: Purse, cost: Callable[[int, int], float | None], counts: dict[str, int]
    ) -> None:
        """
        Args:
            cost: of tokens (read, written); None where no price is known.
            counts: see `judges.ml.asking.Engine`.
        """
        self._purse, self._cost, self._counts = purse, cost, counts

    def set_aside(self, bill: Bill, worst: tuple[int, int]) -> None:
        """Hold a request's worst case, tokens (read, written). Raises: BudgetSpent."""
        cost = self._cost(*worst) or 0.0
        if not self._purse.reserve(sum(worst), cost):
            raise _spent()
        bill.held_tokens, bill.held_cost = sum(worst), cost

    def book_lost(self, bill: Bill, worst: tuple[int, int]) -> None:
        """An answer was lost on its way: its worst case is spent, and set aside anew for the next
        try. Raises: BudgetSpent."""
        bill.n_read += worst[0]
        bill.n_written += worst[1]
        count(self._counts, "lost_answers")
        if not self.hold_more(bill, worst):
            raise _spent()

    def hold_more(self, bill: Bill, worst: tuple[int, int]) -> bool:
        cost = self._cost(*worst) or 0.0
        # Not waited for: two that wait for each other's rest would wait for ever.
        if not self._purse.reserve(sum(worst), cost, waits=False):
            return False
        bill.held_tokens += sum(worst)
        bill.held_cost += cost
        return True

    def settle(self, bill: Bill) -> None:
        """Book what a request has used, and give the rest back."""
        self._purse.settle(
            bill.held_tokens,
            bill.held_cost,
            bill.n_read + bill.n_written,
            self._cost(bill.n_read, bill.n_written) or 0.0,
        )


def worst_case(
    request: Request, n_bytes: int, *, names_tokens: bool, n_draws: int
) -> tuple[int, int]:
    """Most tokens (read, written) that answering may take, nothing lost on the way.

    Args:
        n_bytes: of the question's words as the model reads them.
        names_tokens: the server names probable tokens; else answers are drawn, `n_draws` of them.
    """
    n_bytes += OVERHEAD  # no token is shorter than a byte
    written = request.write
    n_texts = written.n if written else 1
    n_own = written.max_tokens if written else 0
    if names_tokens:
        # Answers of several tokens are followed, two spellings each.
        longest = max(map(len, request.answers))
        n_reads = 1 + 2 * (longest - 1) * sum(len(answer) > 1 for answer in request.answers)
        n_read, n_written = n_reads, n_reads
    else:
        # Each draw may cost a reading of its own.
        n_read, n_written = n_draws, 4 * n_draws
    own_bytes = 8 * n_own  # a token that was written may be read again as several
    reading = n_texts * n_read * (n_bytes + own_bytes)
    return reading + (n_texts * n_bytes if written else 0), n_texts * (n_own + n_written)


def _spent() -> BudgetSpent:
    return BudgetSpent(
        "The budget is spent: one more question might exceed it. What is judged is kept; give "
        "the run more and resume."
    )
