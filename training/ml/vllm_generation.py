"""Responses of a policy in training from a vLLM server, which is handed its weights as an adapter.

The server is started on the policy's base with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
and reads a folder that we write. After every update the policy's adapter is saved there under a new
name and loaded; the one before is unloaded. Prompts go as token ids, and token ids come back, so
that no text is tokenized twice.

The log-probabilities that an update starts from are computed by our own model, never taken from the
server: its kernels and number format differ, and ratios would not begin at 1. What it tells of them
serves to see that it writes with the weights that it was given.
"""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from training.ml.roles import POLICY, Roles, as_batch, token_logps
from training.ml.rollouts import Rollout, up_to_end

Connect = Callable[[str, int, float], socket.socket]
"""(host, port, timeout) to a connected socket; where it may lead is decided there."""
TRIES = 5
FIRST_WAIT = 0.5
"""Seconds before the second try; twice as long before each further one."""
LOOKED_AT = 8
"""Responses whose log-probabilities are held against our own after each handing over."""
MOST_GAP = 0.5
"""Mean difference in nats a token. Another number format or a base in 4 bits makes hundredths."""


@dataclass(frozen=True, kw_only=True)
class GenerationServer:
    """Where a vLLM server is, and the folder through which it is handed adapters."""

    url: str
    """Up to and with /v1."""
    adapters: Path
    """As this process writes it."""
    adapters_there: str = ""
    """The same folder as the server reads it; empty: by the same path."""
    key: str = field(default="", repr=False)
    at_once: int = 64
    """Requests; the server batches them."""
    timeout_seconds: float = 600.0


class Writer:
    """Writes a run's responses through a server."""

    def __init__(
        self,
        server: GenerationServer,
        name: str,
        connect: Connect = lambda host, port, timeout: socket.create_connection(
            (host, port), timeout
        ),
    ) -> None:
        """Args: name: of the run; its adapters begin with it."""
        self.server, self.name, self.connect = server, name, connect
        self.loaded = ""
        self.version: int | None = None
        self.gap = 0.0
        """Mean |log π_server − log π| in nats a token, of what was looked at last."""

    def __call__(
        self,
        roles: Roles,
        prompts: Sequence[list[int]],
        *,
        version: int,
        seed: int,
        max_new_tokens: int,
        temperature: float,
        ends: Sequence[int],
        pad_id: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[Rollout]:
        """One response to each prompt, in their order, drawn from the policy's whole distribution.

        Args:
            version: of the policy's weights; a new one is handed over first.
            on_batch: called about once a second.
        Raises: ConnectionError if the server cannot be asked; ValueError if it refuses, or writes
            with other weights.
        """
        is_new = version != self.version
        if is_new:
            self._hand_over(roles, version)
        asked = [
            {
                "model": self.loaded,
                "prompt": prompt,
                "max_tokens": max_new_tokens,
                "temperature": temperature,
                # Nothing is cut off, whatever the model's own settings or the server's say.
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "seed": (seed * 100_003 + place) % 2**31,
                "stop_token_ids": list(ends),
                "skip_special_tokens": False,
                "logprobs": 1,
                "return_token_ids": True,  # nosec B105 - token ids, no password
                "return_tokens_as_token_ids": True,  # nosec B105 - as above
            }
            for place, prompt in enumerate(prompts)
        ]
        choices = self._completions(asked, on_batch)
        rollouts = [
            _rollout(prompt, choice, ends) for prompt, choice in zip(prompts, choices, strict=True)
        ]
        if is_new:
            told = [choice["logprobs"]["token_logprobs"] for choice in choices[:LOOKED_AT]]
            self.gap = _gap(roles, rollouts[:LOOKED_AT], told, pad_id)
            if self.gap > MOST_GAP:
                raise ValueError(
                    f"generation: the server's log-probabilities differ from ours by "
                    f"{self.gap:.2f} nats a token; it serves another base than the run's, or has "
                    "not taken the adapter"
                )
        return rollouts

    def close(self) -> None:
        """Have the server forget the adapter, and remove its files, as far as that can be done."""
        if self.loaded:
            # Gone, or forgotten by the server: nothing is left to be done.
            with contextlib.suppress(OSError, ValueError):
                self._call("/unload_lora_adapter", {"lora_name": self.loaded})
        self._remove_files(except_for="")
        self.loaded, self.version = "", None

    def _hand_over(self, roles: Roles, version: int) -> None:
        """The policy as it is now under a new name: a server keeps what it has read by name."""
        new = f"{self.name}-{version}-{time.time_ns():x}"
        roles.save_policy(self.server.adapters / new)
        there = self.server.adapters_there or str(self.server.adapters)
        path = f"{there.rstrip('/')}/{new}"
        self._call("/load_lora_adapter", {"lora_name": new, "lora_path": path})
        before, self.loaded, self.version = self.loaded, new, version
        if before:
            with contextlib.suppress(ValueError):  # a server that was started anew knows it not
                self._call("/unload_lora_adapter", {"lora_name": before})
        self._remove_files(except_for=new)

    def _remove_files(self, except_for: str) -> None:
        """Of this run, those that an earlier process left among them."""
        for folder in self.server.adapters.glob(f"{self.name}-*"):
            if folder.name != except_for:
                shutil.rmtree(folder, ignore_errors=True)

    def _completions(
        self, asked: Sequence[dict[str, Any]], on_batch: Callable[[], None]
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with ThreadPoolExecutor(self.server.at_once, thread_name_prefix="vllm") as pool:
            futures = [pool.submit(self._call, "/completions", one) for one in asked]
            try:
                left = set(futures)
                while left:
                    done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()  # what went wrong ends the others
                    on_batch()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for future in futures:
            choices = json.loads(future.result()).get("choices") or []
            if len(choices) != 1:
                raise ValueError("generation: the server sent no response")
            found.append(choices[0])
        return found

    def _call(self, path: str, payload: dict[str, Any]) -> bytes:
        """The server's answer, tried again while it cannot be reached or is not well.

        Raises: ConnectionError; ValueError for what it refuses.
        """
        trouble = ""
        for n in range(TRIES):
            if n:
                time.sleep(FIRST_WAIT * 2 ** (n - 1))
            try:
                status, body = self._once(path, payload)
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "reason", "") in ("never", "private"):
                    raise ValueError(f"generation: {error}") from None
                trouble = f"could not be asked ({error})"
                continue
            if status == 200:
                return body
            words = body.decode(errors="replace")[:300]
            if status < 500 and status not in (408, 429):
                hint = ""
                if status == 404 and path.endswith("lora_adapter"):
                    hint = "; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                raise ValueError(f"generation: the server refused {path} ({status}){hint}: {words}")
            trouble = f"answered {status}: {words}"
        raise ConnectionError(f"The server that writes the responses {trouble}, {TRIES} times.")

    def _once(self, path: str, payload: dict[str, Any]) -> tuple[int, bytes]:
        parts = urlsplit(self.server.url)
        host, limit = parts.hostname or "", self.server.timeout_seconds
        is_https = parts.scheme == "https"
        raw = self.connect(host, parts.port or (443 if is_https else 80), min(limit, 30.0))
        try:
            raw.settimeout(limit)
            if is_https:
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
            connection = http.client.HTTPConnection(host, parts.port)
            connection.sock = raw
            headers = {"Content-Type": "application/json", "Connection": "close"}
            if self.server.key:
                headers["Authorization"] = f"Bearer {self.server.key}"
            body = json.dumps(payload).encode()
            connection.request("POST", parts.path.rstrip("/") + path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            raw.close()


def _rollout(prompt: list[int], choice: dict[str, Any], ends: Sequence[int]) -> Rollout:
    """What the server wrote, as tokens. An end token that it kept to itself is put back."""
    tokens = choice.get("token_ids")
    if tokens is None:  # servers before 0.10.2 tell them with the log-probabilities alone
        names = (choice.get("logprobs") or {}).get("tokens") or []
        tokens = [int(str(name).removeprefix("token_id:")) for name in names]
    rollout = up_to_end(prompt, tokens, ends)
    if not rollout.finished and choice.get("finish_reason") == "stop":
        named: Any = choice.get("stop_reason")
        end = int(named) if named in ends else ends[0]
        return Rollout(prompt, [*rollout.response_ids, end], True)
    if not rollout.response_ids:
        raise ValueError("generation: the server wrote nothing, and no end either")
    return rollout


@torch.no_grad()
def _gap(
    roles: Roles, rollouts: Sequence[Rollout], told: Sequence[Sequence[float]], pad_id: int
) -> float:
    """Mean |log π_server − log π| over the tokens that the server tells of, at temperature 1."""
    batch = as_batch(roles, rollouts, pad_id)
    with roles.acting(POLICY):
        own, _entropy = token_logps(roles, batch, 1.0)
    gaps: list[float] = []
    for row, theirs in zip(torch.split(own.float(), batch.lengths), told, strict=True):
        gaps += [abs(a - b) for a, b in zip(row.tolist(), theirs, strict=False)]
    return sum(gaps) / max(1, len(gaps))
