"""A server on a real socket that speaks vLLM's words for completions and adapters, and writes
with a real tiny model by our own generation."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from training.ml.rollouts import roll_out


@dataclass
class Served:
    """What the server holds, was asked, and does wrong."""

    base: str
    key: str = ""
    allows_updates: bool = True
    hides_end: bool = False
    """Says that a response has ended without naming the token that ended it."""
    tells_ids: bool = True
    forgets: bool = False
    """Knows no adapter any more when it is to be unloaded, as after a new start."""
    n_failing: int = 0
    """So many of the next requests are answered with 503."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    url: str = ""
    model: Any = None
    lock: Any = field(default_factory=threading.Lock)

    def load(self, name: str, path: str) -> None:
        if self.model is None:
            base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
            self.model = PeftModel.from_pretrained(base, path, adapter_name=name).eval()
        else:
            self.model.load_adapter(path, adapter_name=name)
        self.loaded.append(name)

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.model.set_adapter(asked["model"])
        ends = asked["stop_token_ids"]
        [rollout] = roll_out(
            self.model, [asked["prompt"]], max_new_tokens=asked["max_tokens"],
            temperature=asked["temperature"], ends=ends, pad_id=0, seed=asked["seed"],
            batch_size=1,
        )  # fmt: skip
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        logps = torch.log_softmax(self.model(input_ids=ids).logits.float(), dim=-1)[0]
        first = len(rollout.prompt_ids)
        told = [logps[first + n - 1, token].item() for n, token in enumerate(rollout.response_ids)]
        tokens = list(rollout.response_ids)
        if self.hides_end and rollout.finished:
            tokens, told = tokens[:-1], told[:-1]
        names = [f"token_id:{token}" for token in tokens]
        choice = {"index": 0, "text": "", "finish_reason": "length", "stop_reason": None}
        choice["finish_reason"] = "stop" if rollout.finished else "length"
        choice["logprobs"] = {"tokens": names, "token_logprobs": told}
        if self.tells_ids:
            choice["token_ids"] = tokens
        return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served = self.served
        with served.lock:
            if served.n_failing:
                served.n_failing -= 1
                return self._say(503, "busy")
            if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
                return self._say(401, "Unauthorized")
            if self.path == "/v1/completions":
                if asked["model"] not in served.loaded:
                    return self._say(404, f"The model `{asked['model']}` does not exist.")
                served.asked.append(asked)
                return self._say(200, served.complete(asked))
            if not served.allows_updates:
                return self._say(404, "Not Found")
            name = asked["lora_name"]
            if self.path == "/v1/load_lora_adapter":
                if not (Path(asked["lora_path"]) / "adapter_config.json").is_file():
                    return self._say(404, f"No adapter found for {asked['lora_path']}")
                served.load(name, asked["lora_path"])
            elif name in served.loaded and not served.forgets:
                served.unloaded.append(name)
            else:
                return self._say(404, f"The lora adapter '{name}' cannot be found.")
            self._say(200, f"Success: LoRA adapter '{name}'")

    def _say(self, status: int, answer: Any) -> None:
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def vllm_words(base: str, **settings: Any) -> Iterator[Served]:
    """The server, as long as the block lasts; `url` says where."""
    served = Served(base, **settings)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("OwnHandler", (Handler,), {"served": served})
    )
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
