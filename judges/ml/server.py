"""Put questions to a model behind an OpenAI-compatible server: log-probabilities and texts out.

vLLM, SGLang, llama.cpp and hosted services are asked over HTTP, a bounded number of requests at
once. What a server can do is found out once, before the first question:

- `/completions` continues a text exactly. It is used for plain texts, and for chat models where the
  server renders its own chat template (llama.cpp's `/apply-template`).
- `/chat/completions` with the beginning of the judge's own turn is used for the other chat models,
  if the server goes on from there. Where it does not, the ending is asked as a turn of its own.
- Where neither gives log-probabilities, answers are drawn and their smoothed frequencies taken.
"""

import email.utils
import hashlib
import http.client
import json
import math
import random
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from judges.ml.asking import BudgetSpent, EngineStopped, Halt, Halted, Reply, Request, Said, count
from judges.ml.budget import Budget, Purse
from judges.ml.questions import plain_text, tidy_written, with_written
from judges.ml.wires import Connect, Wires, plain_connection

FLOOR = -1e4
"""The log-probability of what the server gives no sign of; finite, so that one can reckon with it.
"""
TOP_LOGPROBS = (100, 20, 5, 1)
"""How many of the most probable tokens are asked for: the first number that the server takes."""
OVERHEAD = 64
"""Tokens that a chat template may add to a question's words, for the budget's worst case."""
LOOK_EVERY = 0.25
"""Seconds between two looks at whether anything is still wanted."""
LIST_AGAIN_AFTER = 60.0
"""Seconds after which a server is asked again which models it has, before it is asked more."""
UNLIKELY = -25.0
"""A first token with a log-probability below this is not asked what would follow it."""

Via = Literal["completions", "chat"]


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


@dataclass
class Abilities:
    """What a server can do, as it was found."""

    kind: str = ""
    """"llamacpp", "vllm", "sglang", or empty."""
    models: tuple[str, ...] = ()
    context: int = 0
    """In tokens; 0 is not known."""
    via: Via = "completions"
    n_top: int = 0
    """How many of the most probable tokens it names; 0: it gives no log-probabilities."""
    continues: bool = True
    """It goes on in the judge's own turn where that has begun."""
    template: tuple[str, str] | None = None
    """What stands before and after the user's words, for exact continuation."""
    trims: bool = False
    """Its chat template strips the user's words."""
    counts_tokens: bool = False
    marks: tuple[str, ...] = ()
    """Control marks of its chat template."""


class _NotAnswered(Exception):
    """This one request cannot be answered; the others can."""


class _TooLong(_NotAnswered):
    """The server says that the question does not fit its context."""


class _FewerAtOnce(_NotAnswered):
    """The server does not draw so many answers to one request."""


class _Refused(Exception):
    """A status that trying again does not mend."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass
class _Bill:
    """What one request holds of the budget, and what it has used."""

    held_tokens: int = 0
    held_cost: float = 0.0
    n_read: int = 0
    n_written: int = 0
    n_bounded: int = 0
    told: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Text:
    """What the model is to go on from: the user's turn, and the beginning of its own."""

    task: str
    own: str
    question: str = ""
    """Asked in a turn after its own, where the server does not continue a turn."""


def list_models(server: Server, connect: Connect = plain_connection) -> list[str]:
    """Names of the models that the server lists; none where it has no list.

    Raises: EngineStopped.
    """
    engine = ServerEngine(server, connect=connect)
    try:
        listed = engine._call("/models", None, _Bill(), probes=True).get("data") or []
    except _Refused:
        return []
    return [str(one.get("id")) for one in listed if isinstance(one, dict)]


class ServerEngine:
    """A model behind a server that can be asked. Implements `judges.ml.asking.Engine`."""

    def __init__(
        self,
        server: Server,
        *,
        budget: Purse | None = None,
        connect: Connect = plain_connection,
        counts: dict[str, int] | None = None,
        halt: Halt | None = None,
    ) -> None:
        self.server = server
        self.asked_to_stop = halt or Halt()
        self.budget: Purse = budget or Budget()
        self.counts: dict[str, int] = {} if counts is None else counts
        self._wires = Wires(server.url, server.key, server.timeout_seconds, connect)
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._not_before = 0.0  # of time.monotonic(): a rate limit holds for all threads
        self._n_answered = 0
        self._n_refused_in_a_row = 0
        self._tokens_per_byte = 0.0  # the most that was seen
        self._draws_at_once = server.n_draws  # fewer where the server refuses so many
        self._known_excess: dict[_Text, int] = {}
        self._abilities: Abilities | None = None
        self._told_by_list: tuple[str, ...] = ()
        self._listed_at = -math.inf

    # --- the interface of judges.ml.asking.Engine --------------------------------------------

    @property
    def control(self) -> tuple[str, ...]:
        return self.abilities.marks

    @property
    def abilities(self) -> Abilities:
        """What the server can do; asked once. Raises: EngineStopped."""
        with self._lock:
            found = self._abilities
        if found is None:
            try:
                found = self._probe()
            except BaseException:
                self._wires.close()
                raise
            with self._lock:
                self._abilities = found
        return found

    def excess(self, request: Request) -> int:
        context = self._context()
        if not context:
            return 0
        text = _Text(request.task, request.lead)
        words = self._rendered(text) + request.ending
        reserve = max(map(len, request.answers))  # the server generates all of the answer
        if request.write is not None:
            reserve += request.write.max_tokens
        most = len(words.encode()) + reserve  # no token is shorter than a byte
        if self.abilities.template is None and self.abilities.via == "chat":
            reserve += OVERHEAD
            most += OVERHEAD
        with self._lock:
            known = self._known_excess.get(text)
            rate = self._tokens_per_byte
        if known is not None:
            return known
        if most <= context:
            return most - context
        n_tokens = self._count_tokens(words)
        if n_tokens is None:
            n_tokens = math.ceil(len(words.encode()) * (rate or 1 / 3))
        return n_tokens + reserve - context

    def answer(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Reply]]]:
        self.abilities  # noqa: B018 - asked before the first question, in this thread
        self._look_at_list()
        # The same beginning next to each other: servers read it once. Both orders of a sample share
        # all that stands before their responses.
        waiting = deque(sorted(range(len(requests)), key=lambda place: _beginning(requests[place])))
        flying: dict[Future[Reply], int] = {}
        stopped: EngineStopped | None = None
        pool = ThreadPoolExecutor(self.server.max_concurrency, thread_name_prefix="judge-server")
        finished = False
        try:
            while flying or (waiting and stopped is None):
                if stopped is None and self.asked_to_stop.soon.is_set():
                    stopped = Halted("Stopped.")
                    self._halt.set()
                if self.asked_to_stop.now.is_set():
                    self._wires.hang_up()
                while waiting and stopped is None and len(flying) < self.server.max_concurrency:
                    place = waiting.popleft()
                    flying[pool.submit(self._answer_one, requests[place])] = place
                done, _ = wait(flying, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                batch = []
                share = len(flying)
                for future in done:
                    place = flying.pop(future)
                    try:
                        reply = future.result()
                    except EngineStopped as error:
                        # What is in flight may still come home: it has been paid for.
                        stopped = stopped or error
                        self._halt.set()
                    else:
                        batch.append((place, _shared(reply, share)))
                if batch:
                    yield batch
            finished = True
        finally:
            self._halt.set()
            if not finished:  # the caller has gone: nobody wants what is in flight
                self._wires.hang_up()
            pool.shutdown(wait=True, cancel_futures=True)
            self._wires.close()
            self._halt.clear()
        if stopped is not None:
            raise stopped

    # --- one question ------------------------------------------------------------------------

    def _answer_one(self, request: Request) -> Reply:
        began = time.perf_counter()
        bill, too_long = _Bill(), False
        self._reserve(bill, request)
        try:
            said, problem = self._said(request, bill), ""
        except _NotAnswered as reason:
            said, problem, too_long = (), str(reason), isinstance(reason, _TooLong)
        finally:
            self._settle(bill)
        return Reply(
            said=said,
            n_tokens_read=bill.n_read,
            n_tokens_written=bill.n_written,
            seconds=time.perf_counter() - began,
            cost=self.server.cost(bill.n_read, bill.n_written),
            told=tuple(sorted({*bill.told, *self._told_by_list})),
            problem=problem,
            too_long=too_long,
        )

    def _said(self, request: Request, bill: _Bill) -> tuple[Said, ...]:
        write = request.write
        if write is None:
            return (self._said_after("", request, bill),)
        if write.temperature == 0:  # greedy texts are all the same
            written = self._write(request, 0, bill)
            return (self._said_after(written, request, bill),) * write.n
        return tuple(
            self._said_after(self._write(request, draw, bill), request, bill)
            for draw in range(write.n)
        )

    def _said_after(self, written: str, request: Request, bill: _Bill) -> Said:
        """The answer to a question after what was written to it."""
        if self.abilities.continues:
            text = _Text(request.task, with_written(request.lead, written, request.ending))
        elif written:
            text = _Text(request.task, written, request.ending.strip())
        else:
            text = _Text(f"{plain_text(request)}{request.ending}", "")
        bounded_before = bill.n_bounded
        reads = self._read_answers if self.abilities.n_top else self._draw_answers
        return Said(
            logps=reads(text, request.answers, bill),
            text=self._rendered(text),
            rationale=written,
            measured_by="logprobs" if self.abilities.n_top else "samples",
            n_bounded=bill.n_bounded - bounded_before,
        )

    def _write(self, request: Request, draw: int, bill: _Bill) -> str:
        writing = request.write
        assert writing is not None
        lead = request.lead if self.abilities.continues else ""
        text = _Text(request.task if lead else plain_text(request).rstrip(), lead)
        options: dict[str, Any] = {
            "max_tokens": writing.max_tokens,
            "temperature": writing.temperature,
            "stop": list(writing.stops[:4]) or None,  # OpenAI takes four
        }
        if writing.temperature > 0:
            options |= {"seed": writing.seed + draw} | self._whole_distribution()
        choice = self._generate(text, options, bill)[0]
        return tidy_written(self._words(choice, text), writing.stops, self.control)

    def _read_answers(
        self, text: _Text, answers: tuple[str, ...], bill: _Bill, follows: bool = False
    ) -> tuple[float, ...]:
        """Log-probabilities of the answers, log-sum-exp over their spellings.

        An answer that is no single token is followed token by token. One that begins it, as "1"
        begins "10", counts without it. The server reads what is followed as text: where the ending
        closes with a space and the tokenizer has " 1" as one token, it reads that one.
        """
        tokens = self._top_tokens(text, bill)
        ways: dict[str, list[float]] = {answer: [] for answer in answers}
        of_one_token = {token if follows else _bare(token) for token, _logp in tokens}
        for token, logp in tokens:
            said = token if follows else _bare(token)
            rests = [answer[len(said) :] for answer in answers if answer.startswith(said) and said]
            further = [rest for rest in rests if rest and said + rest not in of_one_token]
            if further and logp > UNLIKELY and not text.question:  # a turn's end cannot be gone on
                own = text.own + token.replace("▁", " ")
                logps = self._read_answers(
                    _Text(text.task, own), tuple(further), bill, follows=True
                )
                for rest, logp_rest in zip(further, logps, strict=True):
                    ways[said + rest].append(logp + logp_rest)
                logp += math.log1p(-min(1 - 1e-9, sum(map(math.exp, logps))))
            if "" in rests:
                ways[said].append(logp)
        found = [_log_sum_exp(ways[answer]) for answer in answers]
        return self._bounded(found, [logp for _token, logp in tokens], bill, follows)

    def _bounded(
        self, found: list[float], listed: list[float], bill: _Bill, follows: bool
    ) -> tuple[float, ...]:
        """Values for answers that are not among the tokens that the server names.

        Such an answer is no more probable than the last of those named, and all of them together no
        more than what the named ones leave. It gets the smaller of the two, which is the most that
        it can have: the verdict leans less to the other answer than the model does, never more.
        Where no answer at all is named, none gets anything: the mass is 0, the verdict unparsed.
        """
        missing = [place for place, logp in enumerate(found) if logp == -math.inf]
        if missing and (len(missing) < len(found) or follows):
            # A token that was drawn may stand below the most probable ones.
            named = sorted(listed, reverse=True)[: self.abilities.n_top]
            left = max(0.0, 1 - sum(map(math.exp, named))) / len(missing)
            bound = min(math.exp(named[-1]) if named else 1.0, left)
            for place in missing:
                found[place] = math.log(bound) if bound > 0 else FLOOR
        if missing:
            bill.n_bounded += len(missing)
            with self._lock:
                count(self.counts, "bounded", len(missing))
        return tuple(min(0.0, max(FLOOR, logp)) for logp in found)

    def _draw_answers(
        self, text: _Text, answers: tuple[str, ...], bill: _Bill
    ) -> tuple[float, ...]:
        """Logarithms of how often each answer is drawn, smoothed.

        Of K draws, c name the answer: (c + ½) / (K + (m + 1)/2) over m answers and "something
        else", the mean of the posterior under Jeffreys' prior (Dirichlet with ½ for each).
        """
        n = self.server.n_draws
        options = {"max_tokens": 4, "temperature": 1.0} | self._whole_distribution()
        said: list[str] = []
        while len(said) < n:
            with self._lock:
                at_once = min(self._draws_at_once, n - len(said))
            more = options | {"n": at_once, "seed": len(said)}
            try:
                choices = self._generate(text, more, bill)
            except _FewerAtOnce:  # llama.cpp draws as many as it has slots
                with self._lock:
                    self._draws_at_once = min(self._draws_at_once, at_once // 2)
                continue
            said += [self._words(choice, text) for choice in choices]
        counts = dict.fromkeys(answers, 0)
        for words in said[:n]:
            named = _named(words, answers)
            if named is not None:
                counts[named] += 1
        total = n + (len(answers) + 1) / 2
        return tuple(math.log((counts[answer] + 0.5) / total) for answer in answers)

    def _whole_distribution(self) -> dict[str, Any]:
        """Nothing is cut off when a token is drawn; some servers have words of their own for it."""
        options: dict[str, Any] = {"top_p": 1.0}
        if self.abilities.kind:
            options |= {"top_k": -1, "min_p": 0.0}
        return options

    # --- what is sent, and what comes back ---------------------------------------------------

    def _rendered(self, text: _Text) -> str:
        """What the model reads, as far as it is known here."""
        abilities = self.abilities
        if abilities.template is not None:
            before, after = abilities.template
            task = text.task.strip() if abilities.trims else text.task
            return f"{before}{task}{after}{text.own}"
        asked = f"\n{text.question}" if text.question else ""
        return f"{text.task}\n{text.own}{asked}"

    def _payload(self, text: _Text) -> dict[str, Any]:
        abilities = self.abilities
        if abilities.via == "completions":
            payload: dict[str, Any] = {"prompt": self._rendered(text)}
        else:
            payload = {"messages": [{"role": "user", "content": text.task}]}
            if text.own:
                payload["messages"].append({"role": "assistant", "content": text.own})
            if text.question:
                payload["messages"].append({"role": "user", "content": text.question})
            elif text.own and abilities.kind:
                payload |= {"add_generation_prompt": False, "continue_final_message": True}
            if abilities.kind:
                payload["chat_template_kwargs"] = {"enable_thinking": False}
        return {"model": self.server.model, **payload}

    def _generate(
        self, text: _Text, options: Mapping[str, Any], bill: _Bill
    ) -> list[dict[str, Any]]:
        payload = self._payload(text) | {
            name: value for name, value in options.items() if value is not None
        }
        path = "/completions" if self.abilities.via == "completions" else "/chat/completions"
        n_bytes = len(self._rendered(text).encode())
        worst = (n_bytes + OVERHEAD, int(payload["max_tokens"]) * int(payload.get("n", 1)))
        try:
            answer = self._call(path, payload, bill, worst)
        except _Refused as refusal:
            if payload.get("n", 1) > 1 and _context_numbers(str(refusal)) is None:
                raise _FewerAtOnce(str(refusal)) from None
            raise self._problem(refusal, text, worst[1]) from None
        choices: list[dict[str, Any]] = answer["choices"]
        bill.told |= told_by_answer(answer)
        n_read, n_written = _usage(answer, worst)
        bill.n_read += n_read
        bill.n_written += max(n_written, len(choices))
        with self._lock:
            self._n_answered += 1
            self._n_refused_in_a_row = 0
            if n_bytes > 100:  # of short ones the template's own tokens are most
                self._tokens_per_byte = max(self._tokens_per_byte, n_read / n_bytes)
        return choices

    def _words(self, choice: Mapping[str, Any], text: _Text) -> str:
        if self.abilities.via == "completions":
            return str(choice.get("text") or "")
        words = str((choice.get("message") or {}).get("content") or "")
        # llama.cpp repeats the beginning that it was given.
        return words.removeprefix(text.own) if text.own else words

    def _top_tokens(self, text: _Text, bill: _Bill) -> list[tuple[str, float]]:
        """The most probable next tokens, with their log-probabilities."""
        # At temperature 1 a server that gives the probabilities after its sampler's own changes
        # gives the model's.
        options: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0} | self._whole_distribution()
        n_top = self.abilities.n_top
        options |= (
            {"logprobs": n_top}
            if self.abilities.via == "completions"
            else {"logprobs": True, "top_logprobs": n_top}
        )
        for _try in range(3):
            tokens = _listed(self._generate(text, options, bill)[0])
            if tokens:
                return tokens
        raise EngineStopped(
            f"{self.server.called} sent no log-probabilities, though it did when the run began. "
            "What is judged is kept; see the server's settings, then resume."
        )

    # --- failures ----------------------------------------------------------------------------

    def _problem(self, refusal: _Refused, text: _Text, n_written: int) -> Exception:
        """What a refused question means: for itself, or for the run."""
        words = str(refusal)
        numbers = _context_numbers(words)
        if numbers is not None:
            context, n_tokens = numbers
            with self._lock:
                if context and self._abilities is not None:
                    self._abilities.context = min(context, self._abilities.context or context)
                n_bytes = max(1, len(text.task.encode()) + len(text.own.encode()))
                if n_tokens:
                    self._tokens_per_byte = max(self._tokens_per_byte, n_tokens / n_bytes)
                elif context:
                    self._tokens_per_byte = max(
                        self._tokens_per_byte, (context - n_written + 1) / n_bytes
                    )
                excess = n_tokens + n_written - context if n_tokens and context else 0
                self._known_excess[text] = max(1, excess)
            fits = f" of {context} tokens" if context else ""
            return _TooLong(f"The question does not fit the server's context{fits}.")
        with self._lock:
            self._n_refused_in_a_row += 1
            hopeless = self._n_refused_in_a_row >= 8 and not self._n_answered
        said = f'{self.server.called} refused the question ({refusal.status}): "{words}"'
        return EngineStopped(said) if hopeless else _NotAnswered(said)

    def _call(
        self,
        path: str,
        payload: Mapping[str, Any] | None,
        bill: _Bill,
        worst: tuple[int, int] = (0, 0),
        *,
        probes: bool = False,
    ) -> dict[str, Any]:
        """The server's answer to one request, tried again where that may help.

        Args:
            payload: None is a GET.
            probes: a status that is no success only says what the server cannot do.
        Raises: _Refused for a status that no second try changes; _NotAnswered where the server
            fails on this question alone; EngineStopped.
        """
        n_failed = 0
        waited_until = time.monotonic() + self.server.patience_seconds
        while True:
            self._wait_for_turn()
            status, headers, body, trouble = self._try(path, payload)
            if status == 200:
                answer = _json(body)
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
                    raise _Refused(status, self._its_words(body))
                trouble = f"answered {status}"
            if status == 200 or trouble == self._timed_out():
                # It has read the question, and may have to be paid for its answer.
                self._book_lost(bill, worst)
            n_failed += 1
            if n_failed >= self.server.n_tries:
                if status >= 500 and not probes and self._is_well(bill):
                    raise _NotAnswered(
                        f"{self.server.called} failed on this question {n_failed} times ({status})."
                    )
                raise EngineStopped(self._stop_line(f"{trouble}, {n_failed} times"))
            with self._lock:
                count(self.counts, "retried")
            # Full jitter: threads that failed together do not come back together.
            most = min(self.server.longest_wait, self.server.first_wait * 2**n_failed)
            self._pause(max(random.uniform(0, most), _retry_after(headers)))  # noqa: S311

    def _is_well(self, bill: _Bill) -> bool:
        """Whether it answers the shortest question: then the fault lies with another one."""
        if not self._hold_more(bill, PROBE_WORST):
            return False
        via = self.abilities.via
        payload = {"model": self.server.model, "max_tokens": 1, **PROBES[via]}
        path = "/completions" if via == "completions" else "/chat/completions"
        status, _headers, body, _trouble = self._try(path, payload)
        answer = _json(body)
        if status != 200 or not isinstance(answer, dict):
            return False
        self._book(answer, bill, PROBE_WORST)
        return True

    def _try(
        self, path: str, payload: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes, str]:
        """Status, headers and body of one try; status 0 and the trouble where none came.

        Raises: EngineStopped where the address or its certificate is not to be trusted.
        """
        try:
            return (*self._wires.exchange(path, payload), "")
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
                f"({status}): {self._its_words(body)}"
            )
        if 300 <= status < 400:
            raise EngineStopped(f"{called} answered {status}: redirects are not followed.")

    def _rate_limited(self, headers: Mapping[str, str], waited_until: float, n_failed: int) -> None:
        """Hold all threads back as long as the server asks for. Raises: EngineStopped."""
        asked_for = _retry_after(headers)
        most = min(self.server.longest_wait, self.server.first_wait * 2 ** min(n_failed + 1, 10))
        # Nobody comes back before the time that it named, and not all at that moment.
        seconds = asked_for + random.uniform(0, most)  # noqa: S311
        if time.monotonic() + seconds > waited_until:
            when = f" It asks to wait {asked_for:.0f} seconds." if asked_for else ""
            raise EngineStopped(
                f"{self.server.called} limits the rate of requests (429).{when} What is judged is "
                "kept; resume later, or have an administrator lower the number of requests at once."
            )
        with self._lock:
            count(self.counts, "rate_limited")
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
            if self._halt.is_set() or self.asked_to_stop.soon.is_set():
                raise Halted("Stopped.")
            left = ends_at - time.monotonic()
            if left <= 0:
                return
            self._halt.wait(min(left, LOOK_EVERY))

    def _its_words(self, body: bytes) -> str:
        """What the server says about a refusal: one short line, without the key."""
        answer = _json(body)
        error = answer.get("error", answer) if isinstance(answer, dict) else {}
        words: Any = error
        if isinstance(error, dict):
            words = error.get("message") or answer.get("message") or answer.get("detail") or ""
            context, n_tokens = error.get("n_ctx"), error.get("n_prompt_tokens")
            if isinstance(context, int) and isinstance(n_tokens, int):
                words = f"{n_tokens} tokens exceed the context of {context} tokens"
        line = " ".join(str(words).split())
        if self.server.key:
            line = line.replace(self.server.key, "…")
        # Some servers repeat a part of the key.
        return re.sub(r"\b(?:sk|key|api)[-_][\w*.-]{4,}", "…", line)[:300]

    # --- money ------------------------------------------------------------------------------

    def _reserve(self, bill: _Bill, request: Request) -> None:
        """Set the request's worst case aside. Raises: BudgetSpent."""
        n_read, n_written = self._worst_case(request)
        cost = self.server.cost(n_read, n_written) or 0.0
        if not self.budget.reserve(n_read + n_written, cost):
            raise self._spent()
        bill.held_tokens, bill.held_cost = n_read + n_written, cost

    def _worst_case(self, request: Request) -> tuple[int, int]:
        """Most tokens (read, written) that answering may take, nothing lost on the way."""
        words = self._rendered(_Text(request.task, request.lead)) + request.ending
        n_bytes = len(words.encode()) + OVERHEAD  # no token is shorter than a byte
        written = request.write
        n_draws = written.n if written else 1
        n_own = written.max_tokens if written else 0
        if self.abilities.n_top:
            # Answers of several tokens are followed, two spellings each.
            longest = max(map(len, request.answers))
            n_reads = 1 + 2 * (longest - 1) * sum(len(answer) > 1 for answer in request.answers)
            n_read, n_written = n_reads, n_reads
        else:
            # Each draw may cost a reading of its own.
            n_read, n_written = self.server.n_draws, 4 * self.server.n_draws
        own_bytes = 8 * n_own  # a token that was written may be read again as several
        reading = n_draws * n_read * (n_bytes + own_bytes)
        return reading + (n_draws * n_bytes if written else 0), n_draws * (n_own + n_written)

    def _book_lost(self, bill: _Bill, worst: tuple[int, int]) -> None:
        """An answer was lost on its way: its worst case is spent, and set aside anew for the next
        try. Raises: BudgetSpent."""
        bill.n_read += worst[0]
        bill.n_written += worst[1]
        with self._lock:
            count(self.counts, "lost_answers")
        if not self._hold_more(bill, worst):
            raise self._spent()

    def _hold_more(self, bill: _Bill, worst: tuple[int, int]) -> bool:
        cost = self.server.cost(*worst) or 0.0
        # Not waited for: two that wait for each other's rest would wait for ever.
        if not self.budget.reserve(sum(worst), cost, waits=False):
            return False
        bill.held_tokens += sum(worst)
        bill.held_cost += cost
        return True

    def _settle(self, bill: _Bill) -> None:
        self.budget.settle(
            bill.held_tokens,
            bill.held_cost,
            bill.n_read + bill.n_written,
            self.server.cost(bill.n_read, bill.n_written) or 0.0,
        )

    def _spent(self) -> BudgetSpent:
        return BudgetSpent(
            "The budget is spent: one more question might exceed it. What is judged is kept; give "
            "the run more and resume."
        )

    # --- what the server can do --------------------------------------------------------------

    def _probe(self) -> Abilities:
        """Find out, by a handful of short requests. Raises: EngineStopped."""
        found, bill = Abilities(), _Bill()
        if not self.budget.reserve(PROBE_TOKENS, self.server.cost(PROBE_TOKENS, 0) or 0.0):
            raise self._spent()
        bill.held_tokens = PROBE_TOKENS
        bill.held_cost = self.server.cost(PROBE_TOKENS, 0) or 0.0
        try:
            self._probe_model(found, bill)
            self._probe_ways(found, bill)
        finally:
            self._settle(bill)
        return found

    def _probe_model(self, found: Abilities, bill: _Bill) -> None:
        """Which server it is, its models and its context."""
        with suppress(_Refused):  # some have no list of models
            listed = self._call("/models", None, bill, probes=True).get("data")
            models = [one for one in listed or [] if isinstance(one, dict)]
            found.models = tuple(str(one.get("id")) for one in models)
            mine = next((one for one in models if _is_called(one, self.server.model)), None)
            self._told_by_list, self._listed_at = told_by_list(mine), time.monotonic()
            about = mine or (models[0] if models else {})
            kind = str(about.get("owned_by"))
            found.kind = kind if kind in ("llamacpp", "vllm", "sglang") else ""
            if found.kind and mine is None:
                # llama.cpp answers for whatever model it is asked: nobody would notice.
                raise EngineStopped(
                    f'{self.server.called} has no model "{self.server.model}"; it has: '
                    f"{', '.join(found.models)[:300]}."
                )
            meta = about.get("meta") or {}
            found.context = int(about.get("max_model_len") or meta.get("n_ctx") or 0)
        if found.kind == "llamacpp":
            with suppress(_Refused):
                about = self._call("../props", None, bill, probes=True)
                settings = about.get("default_generation_settings") or {}
                found.context = int(settings.get("n_ctx") or found.context)
                found.marks = _marks_of(str(about.get("chat_template")))
                found.counts_tokens = True
        elif found.kind == "vllm":
            status, _headers, _body, _trouble = self._try(
                "../tokenize", {"model": self.server.model, "prompt": "1"}
            )
            found.counts_tokens = status == 200

    def _look_at_list(self) -> None:
        """Notice another model under the same name: a server may have been started anew."""
        if time.monotonic() - self._listed_at < LIST_AGAIN_AFTER:
            return
        self._listed_at = time.monotonic()
        status, _headers, body, _trouble = self._try("/models", None)
        answer = _json(body) if status == 200 else None
        listed = answer.get("data") if isinstance(answer, dict) else None
        models = [one for one in listed or [] if isinstance(one, dict)]
        mine = next((one for one in models if _is_called(one, self.server.model)), None)
        if mine is not None:  # a list that fails to come says nothing about the model
            self._told_by_list = told_by_list(mine)

    def _probe_ways(self, found: Abilities, bill: _Bill) -> None:
        """Which of the two ways to ask it, and whether it names probable tokens."""
        problems: list[str] = []
        n_plain = self._probe_top("/completions", PROBES["completions"], bill, problems)
        if self.server.chat == "never" and n_plain is None:
            raise EngineStopped(
                f"{self.server.called} cannot continue plain text, which this judge asks for: "
                f"{'; '.join(problems)}"
            )
        if found.kind == "llamacpp" and n_plain and self.server.chat == "auto":
            self._probe_template(found)
        if self.server.chat == "never" or found.template is not None:
            found.via, found.n_top = "completions", n_plain or 0
            return
        n_chat = self._probe_top("/chat/completions", PROBES["chat"], bill, problems)
        if n_chat is None and n_plain is None:
            raise EngineStopped(f"{self.server.called} answers no question: {'; '.join(problems)}")
        if n_chat is None or (n_plain and not n_chat):
            found.via, found.n_top = "completions", n_plain or 0
            return
        found.via, found.n_top = "chat", n_chat
        found.continues = self._probe_continues(found.kind, bill)

    def _probe_top(
        self, path: str, text: Mapping[str, Any], bill: _Bill, problems: list[str]
    ) -> int | None:
        """How many probable tokens it names; 0 for none, None if it does not answer at all."""
        base = {"model": self.server.model, "max_tokens": 1, "temperature": 1.0, **text}
        for n_top in (*TOP_LOGPROBS, 0):
            payload = dict(base)
            if n_top and "messages" in text:
                payload |= {"logprobs": True, "top_logprobs": n_top}
            elif n_top:
                payload |= {"logprobs": n_top}
            try:
                answer = self._call(path, payload, bill, PROBE_WORST, probes=True)
            except _Refused as refusal:
                problem = f"{path} {refusal.status} {refusal}"
                if n_top in (TOP_LOGPROBS[0], 0):
                    problems.append(problem.strip())
                if refusal.status in (404, 405, 501) or refusal.status >= 500:
                    return None
                continue
            self._book(answer, bill, PROBE_WORST)
            n_named = len(_listed(answer["choices"][0]))
            # One token alone says nothing about the other answer.
            return min(n_top, n_named) if min(n_top, n_named) > 1 else 0
        return None

    def _probe_template(self, found: Abilities) -> None:
        """The text that llama.cpp puts around the user's words."""
        mark = "WORDS-OF-THE-USER"
        turn = [{"role": "user", "content": f" {mark} "}]
        payload = {"messages": turn, "chat_template_kwargs": {"enable_thinking": False}}
        status, _headers, body, _trouble = self._try("../apply-template", payload)
        answer = _json(body) if status == 200 else None
        rendered = str(answer.get("prompt")) if isinstance(answer, dict) else ""
        if rendered.count(mark) != 1:
            return
        found.trims = f" {mark} " not in rendered
        before, after = rendered.split(mark if found.trims else f" {mark} ")
        found.template = (before, after)

    def _probe_continues(self, kind: str, bill: _Bill) -> bool:
        """Whether it goes on in the judge's turn, by the tokens that it says it has read.

        A turn that is closed and opened anew costs several tokens more than its words.
        """
        n_read = []
        for own in ("", "2", "2 2 2 2 2 2 2 2 2"):
            messages = [{"role": "user", "content": "What is 2 + 2?"}]
            payload: dict[str, Any] = {"model": self.server.model, "max_tokens": 1}
            if own:
                messages.append({"role": "assistant", "content": own})
                if kind:
                    payload |= {"add_generation_prompt": False, "continue_final_message": True}
            try:
                answer = self._call(
                    "/chat/completions",
                    payload | {"messages": messages},
                    bill,
                    PROBE_WORST,
                    probes=True,
                )
            except _Refused:
                return False
            usage = answer.get("usage") or {}
            if not usage.get("prompt_tokens"):
                return bool(kind)
            self._book(answer, bill, PROBE_WORST)
            n_read.append(int(usage["prompt_tokens"]))
        none, one, nine = n_read
        of_one_word = (nine - one) / 8
        return one - none - of_one_word < 1.5

    def _book(self, answer: Mapping[str, Any], bill: _Bill, worst: tuple[int, int]) -> None:
        n_read, n_written = _usage(answer, worst)
        bill.n_read += n_read
        bill.n_written += n_written

    def _context(self) -> int:
        """In tokens; 0 where nobody knows."""
        known = [limit for limit in (self.server.max_context, self.abilities.context) if limit]
        return min(known, default=0)

    def _count_tokens(self, words: str) -> int | None:
        """As the server counts them; None where it does not."""
        if not self.abilities.counts_tokens:
            return None
        payload: dict[str, Any] = {"content": words, "add_special": True, "parse_special": True}
        if self.abilities.kind == "vllm":
            payload = {"model": self.server.model, "prompt": words}
        status, _headers, body, _trouble = self._try("../tokenize", payload)
        answer = _json(body) if status == 200 else None
        if not isinstance(answer, dict):
            return None
        tokens = answer.get("tokens")
        return len(tokens) if isinstance(tokens, list) else None


PROBES: dict[Via, dict[str, Any]] = {
    "completions": {"prompt": "1 + 1 = 2, 2 + 2 ="},
    "chat": {"messages": [{"role": "user", "content": "What is 2 + 2?"}]},
}
PROBE_TOKENS = 800
"""More than all requests of a probe read and write together."""
PROBE_WORST = (120, 1)


def _connection_trouble(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "does not answer: nothing listens at its address"
    if isinstance(error, socket.gaierror):
        return "does not answer: its name is not known here"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return "closed the connection without an answer"
    return f"could not be asked ({type(error).__name__})"


def _shared(reply: Reply, n: int) -> Reply:
    """Its share of the time in which n were in flight."""
    return replace(reply, seconds=reply.seconds / max(1, n))


def _beginning(request: Request) -> tuple[str, str]:
    return request.task, request.lead


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _usage(answer: Mapping[str, Any], worst: tuple[int, int]) -> tuple[int, int]:
    """Tokens (read, written); the worst case where the server does not say."""
    usage = answer.get("usage") or {}
    n_read, n_written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (
        n_read if isinstance(n_read, int) else worst[0],
        n_written if isinstance(n_written, int) else worst[1],
    )


def _listed(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(token, log-probability) of the first token's alternatives, in each of the forms in use."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if content:  # of chats, and everywhere in llama.cpp
        top = content[0].get("top_logprobs") or []
        return [(str(one["token"]), float(one["logprob"])) for one in top]
    older = logprobs.get("top_logprobs")
    if older and isinstance(older[0], dict):
        return [(str(token), float(logp)) for token, logp in older[0].items()]
    return []


def told_by_answer(answer: Mapping[str, Any]) -> set[str]:
    """What an answer tells of the model that gave it, as a fingerprint; empty where it is silent.

    Hosted services change `system_fingerprint` with weights or machines; llama.cpp gives its build.
    """
    told = [str(answer.get(name) or "") for name in ("model", "system_fingerprint")]
    return {_fingerprint("answer", told)} if any(told) else set()


def told_by_list(model: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the list of models tells of one, as a fingerprint; empty where it is not in the list.

    How much the server lets it read is a setting, and no other model. `created` counts where it is
    of a model: several servers put the moment of the request there.
    """
    if model is None:
        return ()
    told: dict[str, Any] = {name: model.get(name) for name in ("id", "root", "parent", "owned_by")}
    meta = model.get("meta")
    if isinstance(meta, dict):
        told["meta"] = {name: value for name, value in meta.items() if name != "n_ctx"}
    created = model.get("created")
    if isinstance(created, int | float) and created < time.time() - AN_HOUR:
        told["created"] = created
    return (_fingerprint("list", told),)


AN_HOUR = 3600


def _fingerprint(kind: str, told: Any) -> str:
    """A hash: what a server says may be long, and may repeat a key."""
    words = json.dumps(told, sort_keys=True, default=str)
    return f"{kind}:{hashlib.sha256(words.encode()).hexdigest()[:24]}"


def _is_called(model: Mapping[str, Any], name: str) -> bool:
    return name == model.get("id") or name in (model.get("aliases") or [])


def _marks_of(template: str) -> tuple[str, ...]:
    """Control marks that a chat template writes: what a text must not contain."""
    return tuple(sorted(set(re.findall(r"<[^<>\s{}%]{2,60}>|\[/?[A-Z_]{3,20}\]", template))))


def _bare(token: str) -> str:
    """Without the space that tokenizers put before a word."""
    return token[1:] if token[:1] in (" ", "▁") else token


def _named(words: str, answers: Sequence[str]) -> str | None:
    """The answer with which the words begin, the longest one where one begins another."""
    words = words.strip()
    fitting = [answer for answer in answers if words.startswith(answer)]
    if not fitting:
        return None
    named = max(fitting, key=len)
    after = words[len(named) : len(named) + 1]
    return None if named[-1].isalnum() and after.isalnum() else named


def _log_sum_exp(logps: Sequence[float]) -> float:
    most = max(logps, default=-math.inf)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(logp - most) for logp in logps))


def _context_numbers(words: str) -> tuple[int, int] | None:
    """(context, tokens asked for) from a server's words; 0 for a number that it does not give.

    None if it speaks of something else.
    """
    if not re.search(
        r"context (?:length|size|window|of)|maximum.{0,20}tokens|too long", words, re.I
    ):
        return None
    context = re.search(
        r"(?:context (?:length|size|window)?[^\d]{0,20}|limit[^\d]{0,10})(\d{2,})", words, re.I
    )
    asked = re.search(
        r"(\d{2,})(?: tokens)? (?:tokens )?(?:in the messages|in the prompt|exceed)", words
    )
    asked = asked or re.search(r"(?:requested|resulted in|request \()[^\d]{0,20}(\d{2,})", words)
    return int(context[1]) if context else 0, int(asked[1]) if asked else 0


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, from a number or a date; 0 if it does not."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", value):
        return float(value)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
