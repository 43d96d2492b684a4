"""What a server's answers say: tokens and their log-probabilities, errors, itself.

Each kind of server has words of its own; nothing is asked here.
"""

import email.utils
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

AN_HOUR = 3600


def read_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def usage_of(answer: Mapping[str, Any], worst: tuple[int, int]) -> tuple[int, int]:
    """Tokens (read, written); the worst case where the server does not say."""
    usage = answer.get("usage") or {}
    n_read, n_written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (
        n_read if isinstance(n_read, int) else worst[0],
        n_written if isinstance(n_written, int) else worst[1],
    )


def top_listed(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
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


def bare(token: str) -> str:
    """Without the space that tokenizers put before a word."""
    return token[1:] if token[:1] in (" ", "▁") else token


def answer_named(words: str, answers: Sequence[str]) -> str | None:
    """The answer with which the words begin, the longest one where one begins another."""
    words = words.strip()
    fitting = [answer for answer in answers if words.startswith(answer)]
    if not fitting:
        return None
    named = max(fitting, key=len)
    after = words[len(named) : len(named) + 1]
    return None if named[-1].isalnum() and after.isalnum() else named


def log_sum_exp(logps: Sequence[float]) -> float:
    most = max(logps, default=-math.inf)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(logp - most) for logp in logps))


def is_called(model: Mapping[str, Any], name: str) -> bool:
    return name == model.get("id") or name in (model.get("aliases") or [])


def marks_of(template: str) -> tuple[str, ...]:
    """Control marks that a chat template writes: what a text must not contain."""
    return tuple(sorted(set(re.findall(r"<[^<>\s{}%]{2,60}>|\[/?[A-Z_]{3,20}\]", template))))


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


def _fingerprint(kind: str, told: Any) -> str:
    """A hash: what a server says may be long, and may repeat a key."""
    words = json.dumps(told, sort_keys=True, default=str)
    return f"{kind}:{hashlib.sha256(words.encode()).hexdigest()[:24]}"


def its_words(body: bytes, key: str) -> str:
    """What the server says about a refusal: one short line, without the key."""
    answer = read_json(body)
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    words: Any = error
    if isinstance(error, dict):
        words = error.get("message") or answer.get("message") or answer.get("detail") or ""
        context, n_tokens = error.get("n_ctx"), error.get("n_prompt_tokens")
        if isinstance(context, int) and isinstance(n_tokens, int):
            words = f"{n_tokens} tokens exceed the context of {context} tokens"
    line = " ".join(str(words).split())
    if key:
        line = line.replace(key, "…")
    # Some servers repeat a part of the key.
    return re.sub(r"\b(?:sk|key|api)[-_][\w*.-]{4,}", "…", line)[:300]


def context_numbers(words: str) -> tuple[int, int] | None:
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


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, from a number or a date; 0 if it does not."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", value):
        return float(value)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
