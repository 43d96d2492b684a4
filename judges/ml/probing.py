"""Find out what a server can do, by a handful of short requests."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from judges.ml.answers import is_called, marks_of, read_json, told_by_list, top_listed
from judges.ml.asking import EngineStopped
from judges.ml.budget import Bill, Till
from judges.ml.sending import PROBE_WORST, PROBES, Refused, Sender, Via, book

TOP_LOGPROBS = (100, 20, 5, 1)
"""How many of the most probable tokens are asked for: the first number that the server takes."""
PROBE_TOKENS = 800
"""More than all requests of a probe read and write together."""


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
    told: tuple[str, ...] = ()
    """By its list of models, of the one that is asked: see `judges.ml.answers.told_by_list`."""


def probe(sender: Sender, till: Till) -> Abilities:
    """Raises: EngineStopped."""
    found, bill = Abilities(), Bill()
    till.set_aside(bill, (PROBE_TOKENS, 0))
    try:
        prober = _Prober(sender)
        prober.model(found, bill)
        prober.ways(found, bill)
    finally:
        till.settle(bill)
    return found


class _Prober:
    """Asks one server what it can do."""

    def __init__(self, sender: Sender) -> None:
        self._sender, self._server = sender, sender.server

    def model(self, found: Abilities, bill: Bill) -> None:
        """Which server it is, its models and its context."""
        with suppress(Refused):  # some have no list of models
            listed = self._sender.call("/models", None, bill, probes=True).get("data")
            models = [one for one in listed or [] if isinstance(one, dict)]
            found.models = tuple(str(one.get("id")) for one in models)
            mine = next((one for one in models if is_called(one, self._server.model)), None)
            found.told = told_by_list(mine)
            about = mine or (models[0] if models else {})
            kind = str(about.get("owned_by"))
            found.kind = kind if kind in ("llamacpp", "vllm", "sglang") else ""
            if found.kind and mine is None:
                # llama.cpp answers for whatever model it is asked: nobody would notice.
                raise EngineStopped(
                    f'{self._server.called} has no model "{self._server.model}"; it has: '
                    f"{', '.join(found.models)[:300]}."
                )
            meta = about.get("meta") or {}
            found.context = int(about.get("max_model_len") or meta.get("n_ctx") or 0)
        if found.kind == "llamacpp":
            with suppress(Refused):
                about = self._sender.call("../props", None, bill, probes=True)
                settings = about.get("default_generation_settings") or {}
                found.context = int(settings.get("n_ctx") or found.context)
                found.marks = marks_of(str(about.get("chat_template")))
                found.counts_tokens = True
        elif found.kind == "vllm":
            status, _headers, _body, _trouble = self._sender.try_once(
                "../tokenize", {"model": self._server.model, "prompt": "1"}
            )
            found.counts_tokens = status == 200

    def ways(self, found: Abilities, bill: Bill) -> None:
        """Which of the two ways to ask it, and whether it names probable tokens."""
        problems: list[str] = []
        n_plain = self._top("/completions", PROBES["completions"], bill, problems)
        if self._server.chat == "never" and n_plain is None:
            raise EngineStopped(
                f"{self._server.called} cannot continue plain text, which this judge asks for: "
                f"{'; '.join(problems)}"
            )
        if found.kind == "llamacpp" and n_plain and self._server.chat == "auto":
            self._template(found)
        if self._server.chat == "never" or found.template is not None:
            found.via, found.n_top = "completions", n_plain or 0
            return
        n_chat = self._top("/chat/completions", PROBES["chat"], bill, problems)
        if n_chat is None and n_plain is None:
            raise EngineStopped(f"{self._server.called} answers no question: {'; '.join(problems)}")
        if n_chat is None or (n_plain and not n_chat):
            found.via, found.n_top = "completions", n_plain or 0
            return
        found.via, found.n_top = "chat", n_chat
        found.continues = self._continues(found.kind, bill)

    def _top(
        self, path: str, text: Mapping[str, Any], bill: Bill, problems: list[str]
    ) -> int | None:
        """How many probable tokens it names; 0 for none, None if it does not answer at all."""
        base = {"model": self._server.model, "max_tokens": 1, "temperature": 1.0, **text}
        for n_top in (*TOP_LOGPROBS, 0):
            payload = dict(base)
            if n_top and "messages" in text:
                payload |= {"logprobs": True, "top_logprobs": n_top}
            elif n_top:
                payload |= {"logprobs": n_top}
            try:
                answer = self._sender.call(path, payload, bill, PROBE_WORST, probes=True)
            except Refused as refusal:
                problem = f"{path} {refusal.status} {refusal}"
                if n_top in (TOP_LOGPROBS[0], 0):
                    problems.append(problem.strip())
                if refusal.status in (404, 405, 501) or refusal.status >= 500:
                    return None
                continue
            book(answer, bill, PROBE_WORST)
            n_named = len(top_listed(answer["choices"][0]))
            # One token alone says nothing about the other answer.
            return min(n_top, n_named) if min(n_top, n_named) > 1 else 0
        return None

    def _template(self, found: Abilities) -> None:
        """The text that llama.cpp puts around the user's words."""
        mark = "WORDS-OF-THE-USER"
        turn = [{"role": "user", "content": f" {mark} "}]
        payload = {"messages": turn, "chat_template_kwargs": {"enable_thinking": False}}
        status, _headers, body, _trouble = self._sender.try_once("../apply-template", payload)
        answer = read_json(body) if status == 200 else None
        rendered = str(answer.get("prompt")) if isinstance(answer, dict) else ""
        if rendered.count(mark) != 1:
            return
        found.trims = f" {mark} " not in rendered
        before, after = rendered.split(mark if found.trims else f" {mark} ")
        found.template = (before, after)

    def _continues(self, kind: str, bill: Bill) -> bool:
        """Whether it goes on in the judge's turn, by the tokens that it says it has read.

        A turn that is closed and opened anew costs several tokens more than its words.
        """
        n_read = []
        for own in ("", "2", "2 2 2 2 2 2 2 2 2"):
            messages = [{"role": "user", "content": "What is 2 + 2?"}]
            payload: dict[str, Any] = {"model": self._server.model, "max_tokens": 1}
            if own:
                messages.append({"role": "assistant", "content": own})
                if kind:
                    payload |= {"add_generation_prompt": False, "continue_final_message": True}
            try:
                answer = self._sender.call(
                    "/chat/completions",
                    payload | {"messages": messages},
                    bill,
                    PROBE_WORST,
                    probes=True,
                )
            except Refused:
                return False
            usage = answer.get("usage") or {}
            if not usage.get("prompt_tokens"):
                return bool(kind)
            book(answer, bill, PROBE_WORST)
            n_read.append(int(usage["prompt_tokens"]))
        none, one, nine = n_read
        of_one_word = (nine - one) / 8
        return one - none - of_one_word < 1.5
