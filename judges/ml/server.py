"""Put questions to a model behind an OpenAI-compatible server: log-probabilities and texts out.

vLLM, SGLang, llama.cpp and hosted services are asked over HTTP, a bounded number of requests at
once. What a server can do is found out once, before the first question:

- `/completions` continues a text exactly. It is used for plain texts, and for chat models where the
  server renders its own chat template (llama.cpp's `/apply-template`).
- `/chat/completions` with the beginning of the judge's own turn is used for the other chat models,
  if the server goes on from there. Where it does not, the ending is asked as a turn of its own.
- Where neither gives log-probabilities, answers are drawn and their smoothed frequencies taken.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from judges.ml.answers import (
    answer_named,
    bare,
    context_numbers,
    is_called,
    log_sum_exp,
    read_json,
    told_by_answer,
    told_by_list,
    top_listed,
    usage_of,
)
from judges.ml.asking import EngineStopped, Halt, Halted, Reply, Request, Said, count
from judges.ml.budget import OVERHEAD, Bill, Budget, Purse, Till, worst_case
from judges.ml.probing import Abilities, probe
from judges.ml.questions import plain_text, tidy_written, with_written
from judges.ml.sending import LOOK_EVERY, NotAnswered, Refused, Sender, Server
from judges.ml.wires import Connect, plain_connection

FLOOR = -1e4
"""The log-probability of what the server gives no sign of; finite, so that one can reckon with it.
"""
LIST_AGAIN_AFTER = 60.0
"""Seconds after which a server is asked again which models it has, before it is asked more."""
UNLIKELY = -25.0
"""A first token with a log-probability below this is not asked what would follow it."""


class _TooLong(NotAnswered):
    """The server says that the question does not fit its context."""


class _FewerAtOnce(NotAnswered):
    """The server does not draw so many answers to one request."""


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
        listed = engine._sender.call("/models", None, Bill(), probes=True).get("data") or []
    except Refused:
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
        self.counts: dict[str, int] = {} if counts is None else counts
        self._till = Till(budget or Budget(), server.cost, self.counts)
        self._sender = Sender(
            server,
            till=self._till,
            counts=self.counts,
            asked_to_stop=self.asked_to_stop,
            connect=connect,
        )
        self._lock = threading.Lock()
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
                found = probe(self._sender, self._till)
            except BaseException:
                self._sender.wires.close()
                raise
            self._sender.via = found.via
            with self._lock:
                self._told_by_list, self._listed_at = found.told, time.monotonic()
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
                    self._sender.halted.set()
                if self.asked_to_stop.now.is_set():
                    self._sender.wires.hang_up()
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
                        self._sender.halted.set()
                    else:
                        batch.append((place, _shared(reply, share)))
                if batch:
                    yield batch
            finished = True
        finally:
            self._sender.halted.set()
            if not finished:  # the caller has gone: nobody wants what is in flight
                self._sender.wires.hang_up()
            pool.shutdown(wait=True, cancel_futures=True)
            self._sender.wires.close()
            self._sender.halted.clear()
        if stopped is not None:
            raise stopped

    # --- one question ------------------------------------------------------------------------

    def _answer_one(self, request: Request) -> Reply:
        began = time.perf_counter()
        bill, too_long = Bill(), False
        self._till.set_aside(bill, self._worst_case(request))
        try:
            said, problem = self._said(request, bill), ""
        except NotAnswered as reason:
            said, problem, too_long = (), str(reason), isinstance(reason, _TooLong)
        finally:
            self._till.settle(bill)
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

    def _said(self, request: Request, bill: Bill) -> tuple[Said, ...]:
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

    def _said_after(self, written: str, request: Request, bill: Bill) -> Said:
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

    def _write(self, request: Request, draw: int, bill: Bill) -> str:
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
        self, text: _Text, answers: tuple[str, ...], bill: Bill, follows: bool = False
    ) -> tuple[float, ...]:
        """Log-probabilities of the answers, log-sum-exp over their spellings.

        An answer that is no single token is followed token by token. One that begins it, as "1"
        begins "10", counts without it. The server reads what is followed as text: where the ending
        closes with a space and the tokenizer has " 1" as one token, it reads that one.
        """
        tokens = self._top_tokens(text, bill)
        ways: dict[str, list[float]] = {answer: [] for answer in answers}
        of_one_token = {token if follows else bare(token) for token, _logp in tokens}
        for token, logp in tokens:
            said = token if follows else bare(token)
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
        found = [log_sum_exp(ways[answer]) for answer in answers]
        return self._bounded(found, [logp for _token, logp in tokens], bill, follows)

    def _bounded(
        self, found: list[float], listed: list[float], bill: Bill, follows: bool
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
            count(self.counts, "bounded", len(missing))
        return tuple(min(0.0, max(FLOOR, logp)) for logp in found)

    def _draw_answers(self, text: _Text, answers: tuple[str, ...], bill: Bill) -> tuple[float, ...]:
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
            said_first = answer_named(words, answers)
            if said_first is not None:
                counts[said_first] += 1
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
        self, text: _Text, options: Mapping[str, Any], bill: Bill
    ) -> list[dict[str, Any]]:
        payload = self._payload(text) | {
            name: value for name, value in options.items() if value is not None
        }
        path = "/completions" if self.abilities.via == "completions" else "/chat/completions"
        n_bytes = len(self._rendered(text).encode())
        worst = (n_bytes + OVERHEAD, int(payload["max_tokens"]) * int(payload.get("n", 1)))
        try:
            answer = self._sender.call(path, payload, bill, worst)
        except Refused as refusal:
            if payload.get("n", 1) > 1 and context_numbers(str(refusal)) is None:
                raise _FewerAtOnce(str(refusal)) from None
            raise self._problem(refusal, text, worst[1]) from None
        choices: list[dict[str, Any]] = answer["choices"]
        bill.told |= told_by_answer(answer)
        n_read, n_written = usage_of(answer, worst)
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

    def _top_tokens(self, text: _Text, bill: Bill) -> list[tuple[str, float]]:
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
            tokens = top_listed(self._generate(text, options, bill)[0])
            if tokens:
                return tokens
        raise EngineStopped(
            f"{self.server.called} sent no log-probabilities, though it did when the run began. "
            "What is judged is kept; see the server's settings, then resume."
        )

    def _problem(self, refusal: Refused, text: _Text, n_written: int) -> Exception:
        """What a refused question means: for itself, or for the run."""
        words = str(refusal)
        numbers = context_numbers(words)
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
        return EngineStopped(said) if hopeless else NotAnswered(said)

    # --- what it knows -----------------------------------------------------------------------

    def _look_at_list(self) -> None:
        """Notice another model under the same name: a server may have been started anew."""
        if time.monotonic() - self._listed_at < LIST_AGAIN_AFTER:
            return
        self._listed_at = time.monotonic()
        status, _headers, body, _trouble = self._sender.try_once("/models", None)
        answer = read_json(body) if status == 200 else None
        listed = answer.get("data") if isinstance(answer, dict) else None
        models = [one for one in listed or [] if isinstance(one, dict)]
        mine = next((one for one in models if is_called(one, self.server.model)), None)
        if mine is not None:  # a list that fails to come says nothing about the model
            self._told_by_list = told_by_list(mine)

    def _worst_case(self, request: Request) -> tuple[int, int]:
        words = self._rendered(_Text(request.task, request.lead)) + request.ending
        return worst_case(
            request,
            len(words.encode()),
            names_tokens=self.abilities.n_top > 0,
            n_draws=self.server.n_draws,
        )

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
        status, _headers, body, _trouble = self._sender.try_once("../tokenize", payload)
        answer = read_json(body) if status == 200 else None
        if not isinstance(answer, dict):
            return None
        tokens = answer.get("tokens")
        return len(tokens) if isinstance(tokens, list) else None


def _shared(reply: Reply, n: int) -> Reply:
    """Its share of the time in which n were in flight."""
    return replace(reply, seconds=reply.seconds / max(1, n))


def _beginning(request: Request) -> tuple[str, str]:
    return request.task, request.lead
