"""What a model is asked and what it answers: the one interface between judges and engines.

A verdict mode (`judges.ml.modes`) turns a sample into requests and the replies into a reading. An
engine (`engine.py` on this machine, `server.py` over HTTP) knows no modes: it is given text, writes
if it is asked to, and says how probable each of a few answers is next.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

MeasuredBy = Literal["logprobs", "samples"]
"""How the log-probabilities of a reply were found. "samples": smoothed frequencies of drawn
answers, for servers that give no log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What the model writes before its answer is read."""

    max_tokens: int
    n: int = 1
    """So many texts are written, each followed by a reading of the answers."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    stops: tuple[str, ...] = ()
    """The text ends before the first of these."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question in one order. What the model reads: `task`, `lead`, what it writes, `ending`."""

    task: str
    """The user's turn of a chat template, or the beginning of a plain text."""
    lead: str = ""
    """Begins the model's own turn."""
    ending: str
    """Stands after the written text; the next token begins the answer."""
    answers: tuple[str, ...]
    """Whose log-probabilities are wanted, such as ("1", "2") or ("1", …, "10"). An answer of
    several tokens is scored as a sequence; one that begins another ("1" and "10") counts without
    it, so that no probability is counted twice."""
    write: Writing | None = None


@dataclass(frozen=True, kw_only=True)
class Said:
    """One text that the model wrote, and its answer after it."""

    logps: tuple[float, ...]
    """Of each of the request's answers, in nats, at most 0; probability of other tokens is left
    out, so that the answers' mass can be seen."""
    text: str
    """Exactly what the model read before its answer, its own words included."""
    rationale: str = ""
    measured_by: MeasuredBy = "logprobs"
    n_bounded: int = 0
    """Answers that were not among the tokens a server names, and have a bound for a value."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of one request, or the problem that kept it from being answered."""

    said: tuple[Said, ...] = ()
    """As many as `write.n`; one if nothing was written."""
    n_tokens_read: int = 0
    n_tokens_written: int = 0
    seconds: float = 0.0
    """Its share of the time of its batch."""
    cost: float | None = None
    """In the server's currency; None where no price is known."""
    told: tuple[str, ...] = ()
    """What a server tells of its model, as fingerprints of equal length for equal words; empty
    where it tells nothing."""
    problem: str = ""
    too_long: bool = False
    """The problem is that the request does not fit the context, which nobody knew before it was
    asked: from now on `excess` says so, and a shorter one may be asked in its place."""


class Engine(Protocol):
    """A model that can be asked."""

    counts: dict[str, int]
    """What it met on the way: "out_of_memory", batches that were made smaller; "retried", tries
    that were repeated; "rate_limited", waits for a rate limit; "bounded", answers that were not
    among the tokens a server names; "lost_answers", tries that were paid for and lost. Grows as
    the engine is asked; what is not named is zero."""

    @property
    def control(self) -> tuple[str, ...]:
        """Strings that the model's tokenizer reads as something other than text."""

    def excess(self, request: Request) -> int:
        """By how many tokens the request, with all that is to be written, exceeds the context; 0 or
        less if it fits. An estimate where the tokenizer is not at hand."""

    def answer(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
        """Replies batch by batch as they come: (place in `requests`, reply), each place once.

        Raises: EngineStopped when nothing more can be asked (server gone, key refused, budget
        spent); what was yielded before stays good.
        """


def count(counts: dict[str, int], name: str, n: int = 1) -> None:
    """Add to what an engine met, from any thread."""
    with _COUNTING:
        counts[name] = counts.get(name, 0) + n


_COUNTING = threading.Lock()


class EngineStopped(Exception):
    """The engine cannot go on; the message is one clear line that says what to do."""


class Halted(EngineStopped):
    """It was asked to stop, by its `Halt`."""


class Halt:
    """What tells an engine from another thread that nothing more is wanted of it.

    An engine that waits (for a server, or for its rate limit) looks at it several times a second.
    """

    def __init__(self) -> None:
        self.soon = threading.Event()
        """Nothing more is asked or waited for; what is in flight may come home."""
        self.now = threading.Event()
        """Nothing is waited for at all. Set together with `soon`."""


class BudgetSpent(EngineStopped):
    """One more question might exceed the budget: the run can go on when it is given more."""
