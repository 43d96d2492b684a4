"""Servers that judges may ask: which addresses are allowed, their keys, and whether they answer.

A key is stored encrypted, together with the address that it was given for: it is sent nowhere else.
Or it is read from the environment of the worker that asks. It is never shown again.
"""

import math
import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from judges.ml.asking import EngineStopped, Halt, Request
from judges.ml.budget import Budget
from judges.ml.config import JudgeRecipe
from judges.ml.sending import Server
from judges.ml.server import ServerEngine, list_models
from judges.models import JudgeServer
from labeling import keys
from labeling.addresses import AddressRefused, check_allowed, connect

KEY_VARIABLE = re.compile(r"(?:PREFLOOP_JUDGE_KEY_[A-Z0-9_]+|[A-Z0-9_]+_API_KEY)")
"""Variables that may be named as a key: not those of the application itself, such as SECRET_KEY."""
TRIAL_SECONDS = 30
QUESTION = Request(
    task="Is water wet? Answer with yes or no.", lead="Answer:", ending="", answers=("yes", "no")
)


# --- addresses -------------------------------------------------------------------------------


def check_url(url: str, *, in_own_network: bool) -> bool:
    """Whether the address is of our own network by the way it is written: then that was the
    administrator's allowance.

    Raises: ValidationError, with a line for the administrator.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValidationError(_("This is no address.")) from None
    if not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise ValidationError(_("An address has neither spaces nor letters outside of ASCII."))
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValidationError(_("Give a whole address: http://127.0.0.1:8000/v1"))
    if parts.username is not None or parts.password is not None:
        raise ValidationError(_("An address holds no password: give the key in its own field."))
    if parts.query or parts.fragment:
        raise ValidationError(_("An address ends with its path, such as /v1."))
    host = parts.hostname.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):  # a name: where it leads is checked at every connection
        try:
            check_allowed(host, own_network=False)
        except AddressRefused as refused:
            if refused.reason == "never":
                raise ValidationError(
                    _(
                        "This address is never allowed: a metadata service, a link-local or a "
                        "multicast address."
                    )
                ) from None
            return True
        return False
    return in_own_network


def origin(url: str) -> str:
    """Scheme, host and port: what a key is given for."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


# --- keys ------------------------------------------------------------------------------------


@sensitive_variables("key")
def encrypted(key: str, url: str) -> str:
    """The key for the column, together with the address that it is for."""
    return keys.encrypted(f"{origin(url)}\n{key}", keys.JUDGE_SERVERS)


@sensitive_variables("key", "given_for", "found")
def key_of(server: JudgeServer) -> str:
    """The server's key, or nothing where it has none.

    Raises: EngineStopped, with a line for whoever can mend it.
    """
    if server.key_variable:
        key = os.environ.get(server.key_variable, "").strip()
        if not key:
            raise EngineStopped(
                f"{server.name}: the environment variable {server.key_variable}, which is to hold "
                "its key, is not set for the worker."
            )
        return checked_key(key, server.name)
    if not server.encrypted_key:
        return ""
    try:
        found = keys.decrypted(server.encrypted_key, keys.JUDGE_SERVERS)
    except keys.WrongKey:
        raise EngineStopped(
            f"{server.name}: its key was stored under another SECRET_KEY. An administrator can set "
            "it anew."
        ) from None
    given_for, _line, key = found.partition("\n")
    if given_for != origin(server.url):
        raise EngineStopped(
            f"{server.name}: its key was given for another address. An administrator can set it "
            "anew."
        )
    return key


@sensitive_variables("key")
def checked_key(key: str, name: str) -> str:
    """Raises: EngineStopped for what no header can carry; without repeating it."""
    if not is_key(key):
        raise EngineStopped(f"{name}: its key has characters that a key cannot have.")
    return key


@sensitive_variables("key")
def is_key(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


# --- engines ---------------------------------------------------------------------------------


def server_engine(
    server: JudgeServer,
    model: str,
    recipe: JudgeRecipe,
    budget: Budget | None = None,
    counts: dict[str, int] | None = None,
    halt: Halt | None = None,
) -> ServerEngine:
    """The server, ready to be asked. Raises: EngineStopped if its key cannot be had."""
    return ServerEngine(
        _server(server, model, chat=recipe.chat, max_context=recipe.max_context),
        budget=budget,
        connect=_connect(server),
        counts=counts,
        halt=halt,
    )


def _server(server: JudgeServer, model: str, **more: Any) -> Server:
    return Server(
        url=server.url,
        model=model,
        name=server.name,
        key=key_of(server),
        price_read=server.price_read,
        price_written=server.price_written,
        **{
            "max_concurrency": server.max_concurrency,
            "timeout_seconds": float(server.timeout_seconds),
            **more,
        },
    )


def _connect(server: JudgeServer) -> Any:
    """Connections to what the administrator has allowed, checked each time one is made."""
    own_network = server.in_own_network

    def check(address: str) -> None:
        check_allowed(address, own_network=own_network)

    return lambda host, port, timeout: connect(host, port, timeout, check)


# --- try it ----------------------------------------------------------------------------------


def ask_for_trial(server: JudgeServer, model: str) -> None:
    """Have a worker try the server: it is the worker that will ask it, and may hold its key."""
    from judges.tasks import try_server

    server.trial = {"waits": True, "model": model}
    server.tried_at = timezone.now()
    server.save(update_fields=["trial", "tried_at"])
    try_server.delay_on_commit(server.pk)


def carry_out_server_trial(server: JudgeServer) -> None:
    """Ask the server for its models, and one of them a question of yes and no.

    The result is `{"problem", "models", "model", "kind", "context", "via", "continues", "n_top",
    "measured_by", "answers": [[answer, probability], …], "n_tokens", "cost", "seconds"}`.
    """
    began, asked = timezone.now(), server.trial
    result: dict[str, Any] = {"model": asked.get("model", "")}
    try:
        result |= _tried(server, result["model"])
    except EngineStopped as stopped:
        result["problem"] = str(stopped)
    result["seconds"] = (timezone.now() - began).total_seconds()
    # Another try may have been asked for meanwhile: then this one's result is stale.
    JudgeServer.objects.filter(pk=server.pk, tried_at=server.tried_at).update(trial=result)


def _tried(server: JudgeServer, model: str) -> dict[str, Any]:
    patience = {"timeout_seconds": TRIAL_SECONDS, "n_tries": 2, "patience_seconds": TRIAL_SECONDS}
    models = list_models(_server(server, model, **patience), _connect(server))
    result: dict[str, Any] = {"models": models[:100]}
    model = model or next(iter(models), "")
    if not model:
        return result | {"problem": _("It names no models: give the name of one.")}
    engine = ServerEngine(_server(server, model, **patience), connect=_connect(server))
    [[(_place, reply)]] = engine.answer([QUESTION])
    found = engine.abilities
    result |= {
        "model": model,
        "kind": found.kind,
        "context": found.context,
        "via": found.via,
        "continues": found.continues,
        "n_top": found.n_top,
        "n_tokens": reply.n_tokens_read + reply.n_tokens_written,
        "cost": reply.cost,
        "problem": reply.problem,
    }
    if reply.said:
        said = reply.said[0]
        result["measured_by"] = said.measured_by
        result["answers"] = [
            [answer, math.exp(logp)]
            for answer, logp in zip(QUESTION.answers, said.logps, strict=True)
        ]
    return result
