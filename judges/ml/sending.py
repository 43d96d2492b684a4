"""Send requests to a server until they are answered: what is tried again, waited for, given up."""

import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from judges.ml.answers import its_words, read_json, retry_after, usage_of
from judges.ml.asking import EngineStopped, Halt, Halted, count
from judges.ml.budget import Bill, Till
from judges.ml.wires import Connect, Wires

Via = Literal["completions", "chat"]
LOOK_EVERY = 0.25
"""Seconds between two looks at whether anything is still wanted."""
PROBES: dict[Via, dict[str, Any]] = {
    "completions": {"prompt": "1 + 1 = 2, 2 + 2 ="},
    "chat": {"messages": [{"role": "user", "content": "What is 2 + 2?"}]},
}
PROBE_WORST = (120, 1)
"""Tokens (read, written) that one of them takes at most."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is, and how it may be used."""

    url: str
    """Up to and with /v1."""
    model: str
    name: str = ""
    """How it is called in messages; empty is its host."""
    key: str = field(default="", repr=False)
    max_concurrency: int = 8
    timeout_seconds: float = 120.0
    """Of one request, from its first byte to the last of its answer."""
    price_read: float | None = None
    """Per million tokens, as `price_written`; None where it is not known."""
    price_written: float | None = None
    chat: Literal["auto", "never"] = "auto"
    """"never" sends plain text to a model that has a chat template."""
    max_context: int = 0
    """In tokens; 0 is what the server says it can read."""
    n_draws: int = 16
    """Answers drawn for one question where the server gives no log-probabilities."""
    n_tries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 30.0
    patience_seconds: float = 600.0
    """So long a rate limit is waited for, before the run stops."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a server's address begins with http:// or https://")
        # http.client would repeat a key that is no header's value in its error.
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ValueError("the server's key has characters that a key cannot have")

    @property
    def called(self) -> str:
        return self.name or str(urlsplit(self.url).hostname)

    def cost(self, n_read: int, n_written: int) -> float | None:
        """In the server's currency; None where a price is missing."""
        if self.price_read is None or self.price_written is None:
            return None
        return (n_read * self.price_read + n_written * self.price_written) / 1e6


class NotAnswered(Exception):
    """This one request cannot be answered; the others can."""


class Refused(Exception):
    """A status that trying again does not mend."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Sender:
    """The way to one server, shared by all threads that ask it."""

    def __init__(
        self,
        server: Server,
        *,
        till: Till,
        counts: dict[str, int],
        asked_to_stop: Halt,
        connect: Connect,
    ) -> None:
        self.server, self.counts, self.asked_to_stop = server, counts, asked_to_stop
        self.via: Via = "completions"
        """How its shortest question is asked."""
        self.wires = Wires(server.url, server.key, server.timeout_seconds, connect)
        self.halted = threading.Event()
        """Set where nothing more is to be waited for, by who asks."""
        self._till = till
        self._lock = threading.Lock()
        self._not_before = 0.0  # of time.monotonic(): a rate limit holds for all threads

    def call(
        self,
        path: str,
        payload: Mapping[str, Any] | None,
        bill: Bill,
        worst: tuple[int, int] = (0, 0),
        *,
        probes: bool = False,
    ) -> dict[str, Any]:
        """The server's answer to one request, tried again where that may help.

        Args:
            payload: None is a GET.
            probes: a status that is no success only says what the server cannot do.
        Raises: Refused for a status that no second try changes; NotAnswered where the server
            fails on this question alone; EngineStopped.
        """
        n_failed = 0
        waited_until = time.monotonic() + self.server.patience_seconds
        while True:
            self._wait_for_turn()
            status, headers, body, trouble = self.try_once(path, payload)
            if status == 200:
                answer = read_json(body)
                if isinstance(answer, dict) and (payload is None or answer.get("choices")):
                    return answer
                trouble = "sent an answer that is cut off or no JSON"
            elif status:
                self._stop_for_good(status, body, probes)
                if status == 429 or (status == 503 and "retry-after" in headers):
                    self._rate_limited(headers, waited_until, n_failed)
                    n_failed += 1
                    continue
                if (status < 500 and status != 408) or (probes and n_failed):
                    raise Refused(status, its_words(body, self.server.key))
                trouble = f"answered {status}"
            if status == 200 or trouble == self._timed_out():
                # It has read the question, and may have to be paid for its answer.
                self._till.book_lost(bill, worst)
            n_failed += 1
            if n_failed >= self.server.n_tries:
                if status >= 500 and not probes and self._is_well(bill):
                    raise NotAnswered(
                        f"{self.server.called} failed on this question {n_failed} times ({status})."
                    )
                raise EngineStopped(self._stop_line(f"{trouble}, {n_failed} times"))
            count(self.counts, "retried")
            # Full jitter: threads that failed together do not come back together.
            most = min(self.server.longest_wait, self.server.first_wait * 2**n_failed)
            self._pause(max(random.uniform(0, most), retry_after(headers)))  # noqa: S311 - chance, not a secret

    def _is_well(self, bill: Bill) -> bool:
        """Whether it answers the shortest question: then the fault lies with another one."""
        if not self._till.hold_more(bill, PROBE_WORST):
            return False
        payload = {"model": self.server.model, "max_tokens": 1, **PROBES[self.via]}
        path = "/completions" if self.via == "completions" else "/chat/completions"
        status, _headers, body, _trouble = self.try_once(path, payload)
        answer = read_json(body)
        if status != 200 or not isinstance(answer, dict):
            return False
        book(answer, bill, PROBE_WORST)
        return True

    def try_once(
        self, path: str, payload: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes, str]:
        """Status, headers and body of one try; status 0 and the trouble where none came.

        Raises: EngineStopped where the address or its certificate is not to be trusted.
        """
        try:
            return (*self.wires.exchange(path, payload), "")
        except TimeoutError:
            return 0, {}, b"", self._timed_out()
        except ssl.SSLCertVerificationError as error:
            trouble = f"shows a certificate that is not good: {error.verify_message}"
            raise EngineStopped(self._stop_line(trouble)) from None
        except (http.client.HTTPException, OSError) as error:
            if getattr(error, "reason", "") in ("never", "private"):
                raise EngineStopped(
                    f"{self.server.called} leads to an address that is not allowed: {error}."
                ) from None
            return 0, {}, b"", _connection_trouble(error)

    def _timed_out(self) -> str:
        return f"did not answer within {self.server.timeout_seconds:g} seconds"

    def _stop_line(self, trouble: str) -> str:
        return (
            f"{self.server.called} {trouble}. What is judged is kept; when the server is well "
            "again, resume."
        )

    def _stop_for_good(self, status: int, body: bytes, probes: bool) -> None:
        """Raises: EngineStopped for what no second try and no other question can change."""
        called = self.server.called
        if status in (401, 403):
            raise EngineStopped(
                f"{called} refuses the key ({status}). An administrator can set it anew; then "
                "resume."
            )
        if status == 402:
            raise EngineStopped(f"{called} wants to be paid first (402). Then resume.")
        if status in (404, 405) and not probes:
            raise EngineStopped(
                f'{called} does not know the model "{self.server.model}" or the address '
                f"({status}): {its_words(body, self.server.key)}"
            )
        if 300 <= status < 400:
            raise EngineStopped(f"{called} answered {status}: redirects are not followed.")

    def _rate_limited(self, headers: Mapping[str, str], waited_until: float, n_failed: int) -> None:
        """Hold all threads back as long as the server asks for. Raises: EngineStopped."""
        asked_for = retry_after(headers)
        most = min(self.server.longest_wait, self.server.first_wait * 2 ** min(n_failed + 1, 10))
        # Nobody comes back before the time that it named, and not all at that moment.
        seconds = asked_for + random.uniform(0, most)  # noqa: S311 - chance, not a secret
        if time.monotonic() + seconds > waited_until:
            when = f" It asks to wait {asked_for:.0f} seconds." if asked_for else ""
            raise EngineStopped(
                f"{self.server.called} limits the rate of requests (429).{when} What is judged is "
                "kept; resume later, or have an administrator lower the number of requests at once."
            )
        count(self.counts, "rate_limited")
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + asked_for)
        self._pause(seconds)

    def _wait_for_turn(self) -> None:
        while (seconds := self._not_before - time.monotonic()) > 0:
            self._pause(seconds)
        self._pause(0)

    def _pause(self, seconds: float) -> None:
        """Raises: Halted as soon as nobody wants the answer any more."""
        ends_at = time.monotonic() + seconds
        while True:
            if self.halted.is_set() or self.asked_to_stop.soon.is_set():
                raise Halted("Stopped.")
            left = ends_at - time.monotonic()
            if left <= 0:
                return
            self.halted.wait(min(left, LOOK_EVERY))


def book(answer: Mapping[str, Any], bill: Bill, worst: tuple[int, int]) -> None:
    n_read, n_written = usage_of(answer, worst)
    bill.n_read += n_read
    bill.n_written += n_written


def _connection_trouble(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "does not answer: nothing listens at its address"
    if isinstance(error, socket.gaierror):
        return "does not answer: its name is not known here"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return "closed the connection without an answer"
    return f"could not be asked ({type(error).__name__})"
