"""What asking a server may cost: set aside before a question is sent, booked when it is answered.

The worst case of everything in flight is set aside, so that a budget is never exceeded.
"""

import threading
from typing import Protocol


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
