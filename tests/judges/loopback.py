"""A judge server on a real socket of loopback, which can be told to misbehave."""

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", dict[str, Any]], None]
"""Answers a question badly."""


@dataclass
class Behaviour:
    """What the server knows, can do, and does wrong."""

    probs: dict[str, float] = field(default_factory=lambda: {"1": 0.6, " 2": 0.3, "The": 0.05})
    models: tuple[str, ...] = ("tiny",)
    owned_by: str = "somebody"
    listed: dict[str, Any] = field(default_factory=dict)
    """What its list tells of each model besides."""
    system_fingerprint: str = ""
    key: str = ""
    context: int = 0
    tells_context: bool = False
    has_completions: bool = True
    has_chat: bool = False
    continues: bool = True
    gives_logprobs: bool = True
    gives_usage: bool = True
    most_top: int = 20
    seconds: float = 0.0
    faults: deque[Fault | None] = field(default_factory=deque)
    """Taken one by one by the questions that come, probes left out; None is none."""
    always: Fault | None = None
    down: Fault | None = None
    """So is everything answered, probes too."""
    for_question: Callable[[str], Fault | None] = lambda _text: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Every question with its path and time, probes left out."""
    n_open: int = 0
    most_open: int = 0
    url: str = ""

    @property
    def texts(self) -> list[str]:
        return [text_of(one) for one in self.asked]

    @property
    def n_tokens(self) -> int:
        """That it would put on the bill."""
        return sum(one["billed"] for one in self.asked)


def text_of(payload: dict[str, Any]) -> str:
    if "prompt" in payload:
        return str(payload["prompt"])
    return "\n".join(message["content"] for message in payload["messages"])


def n_tokens(text: str) -> int:
    """Four letters are a token here."""
    return math.ceil(len(text.encode()) / 4)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path != "/v1/models":
            return self.say(404, {"error": {"message": "no such place"}})
        told = {"owned_by": self.behaviour.owned_by, "created": int(time.time())}
        told |= self.behaviour.listed
        if self.behaviour.tells_context:
            told["max_model_len"] = self.behaviour.context
        self.say(200, {"data": [{"id": name} | told for name in self.behaviour.models]})

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return
        behaviour = self.behaviour
        path = self.path.removeprefix("/v1")
        served = {
            "/completions": behaviour.has_completions,
            "/chat/completions": behaviour.has_chat,
        }
        if not served.get(path):
            return self.say(404, {"error": {"message": "no such place"}})
        wanted = payload.get("top_logprobs", payload.get("logprobs")) or 0
        if wanted is not True and wanted > behaviour.most_top:
            return self.say(400, {"error": {"message": f"at most {behaviour.most_top} logprobs"}})
        text = text_of(payload)
        if behaviour.down is not None:
            return behaviour.down(self, payload)
        if "2 + 2" in text:
            return self.answer(payload)
        asked = payload | {"path": path, "at": time.monotonic(), "billed": 0}
        behaviour.asked.append(asked)
        fault = behaviour.always or behaviour.for_question(text)
        if fault is None and behaviour.faults:
            fault = behaviour.faults.popleft()
        behaviour.n_open += 1
        behaviour.most_open = max(behaviour.most_open, behaviour.n_open)
        try:
            time.sleep(behaviour.seconds)
            if fault is not None:
                return fault(self, payload)
            self.answer(payload, asked)
        finally:
            behaviour.n_open -= 1

    def answer(self, payload: dict[str, Any], asked: dict[str, Any] | None = None) -> None:
        """As it should be."""
        behaviour = self.behaviour
        text = text_of(payload)
        n_read, n = n_tokens(text), payload.get("n", 1)
        if "messages" in payload and payload["messages"][-1]["role"] == "assistant":
            n_read += 0 if behaviour.continues else 5
        if behaviour.context and n_read + payload["max_tokens"] > behaviour.context:
            message = (
                f"This model's maximum context length is {behaviour.context} tokens. However, you "
                f"requested {n_read + payload['max_tokens']} tokens ({n_read} in the messages, "
                f"{payload['max_tokens']} in the completion)."
            )
            return self.say(400, {"error": {"message": message}})
        wanted = payload.get("top_logprobs", payload.get("logprobs")) or 0
        ranked = sorted(behaviour.probs.items(), key=lambda item: -item[1])[: int(wanted)]
        writes = payload["max_tokens"] > 4
        choices = []
        names, weights = list(behaviour.probs), list(behaviour.probs.values())
        for place in range(n):
            # Every share of draws is met exactly, so that a test can count.
            quantile = (place + payload.get("seed", 0) + 0.5) / 16 * sum(weights)
            drawn = next(
                name
                for k, name in enumerate(names)
                if quantile <= sum(weights[: k + 1]) + 1e-9 or k == len(names) - 1
            )
            words = " The first one is clear." if writes else drawn
            choice: dict[str, Any] = {"index": place, "finish_reason": "length"}
            if "messages" in payload:
                choice["message"] = {"role": "assistant", "content": words}
            else:
                choice["text"] = words
            if wanted and behaviour.gives_logprobs:
                top = [{"token": t, "logprob": math.log(p)} for t, p in ranked]
                choice["logprobs"] = (
                    {"content": [{"token": drawn, "logprob": -1.0, "top_logprobs": top}]}
                    if "messages" in payload
                    else {"top_logprobs": [{one["token"]: one["logprob"] for one in top}]}
                )
            choices.append(choice)
        n_written = 6 * n if writes else n
        if asked is not None:
            asked["billed"] = n_read + n_written
        answer: dict[str, Any] = {"choices": choices, "model": payload["model"]}
        if behaviour.system_fingerprint:
            answer["system_fingerprint"] = behaviour.system_fingerprint
        if behaviour.gives_usage:
            answer["usage"] = {"prompt_tokens": n_read, "completion_tokens": n_written}
        self.say(200, answer)

    def say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _may(self) -> bool:
        key = self.behaviour.key
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            given = self.headers.get("Authorization", "")
            self.say(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            return False
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        """A client that hangs up is what some tests are about."""


@contextmanager
def serving(**settings: Any) -> Iterator[Behaviour]:
    """The server, as long as the block lasts; `url` says where."""
    behaviour = Behaviour(**settings)
    handler = type("OwnHandler", (Handler,), {"behaviour": behaviour})
    server = _Server(("127.0.0.1", 0), handler)
    behaviour.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()


# --- ways to misbehave -----------------------------------------------------------------------


def status(code: int, message: str = "out of order", **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _payload: handler.say(code, {"error": {"message": message}}, named)


def says(body: bytes) -> Fault:
    return lambda handler, _payload: handler.say(200, body)


def promises_more(handler: Handler, _payload: dict[str, Any]) -> None:
    """A body that ends before its announced length."""
    handler.say(200, b'{"choices": [{"text": "1"', {"Content-Length": "5000"})
    handler.close_connection = True


def hangs_up(handler: Handler, _payload: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.shutdown(2)


def sleeps(seconds: float) -> Fault:
    def slow(handler: Handler, payload: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.answer(payload)

    return slow


def drips(handler: Handler, _payload: dict[str, Any]) -> None:
    """A byte now and then would satisfy a timeout per read for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
