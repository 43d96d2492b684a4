"""Models that answer: several adapters over one base in one process, switched at each request.

A base is loaded once. Adapters of the same kind over it stand beside each other in one model; which
of them counts is a switch, so that comparing two of them costs the memory of one base.
"""

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from training.ml.data import Messages, chat_tokens
from training.ml.loading import (
    adapter_base,
    device,
    is_learned_prompt,
    load_causal,
    load_tokenizer,
    made_by,
    rope_of,
)
from training.ml.merge_recipe import settings_of
from training.ml.methods import IN_4_BITS

MOST_BASES = 2
"""Bases held at once; the one that was asked longest ago makes room."""

OnText = Callable[[str, int], None]
"""Told (all text so far, its tokens) after each token; raises to end the answer."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from the whole distribution, no top-k and no top-p."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    seed: int = 0
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Answer:
    text: str
    n_tokens: int
    n_prompt_tokens: int
    ended: bool
    """With an end of its own; else the limit cut it off."""


class Server:
    """Models of one process. Two threads take turns: a switch in the middle of an answer would
    finish it with another adapter."""

    def __init__(self, most_bases: int = MOST_BASES) -> None:
        self.most_bases = most_bases
        self._models: dict[tuple[str, ...], Any] = {}  # the last asked stands last
        self._turn = threading.RLock()

    def answer(
        self,
        name: str,
        messages: Messages,
        sampling: Sampling,
        on_text: OnText = lambda text, n_tokens: None,
    ) -> Answer:
        """What a model says to a conversation; the same for the same seed.

        Args: name: a folder with a model or an adapter, or a hub id.
        Raises: ModelMissing; ValueError if the conversation leaves no room; what `on_text` raises.
        """
        with self._turn:
            model = self._switched(name)
            return _generate(model, load_tokenizer(name), messages, sampling, on_text)

    def forget(self) -> None:
        """Give the memory of all models back."""
        with self._turn:
            self._models.clear()
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()

    @property
    def n_bases(self) -> int:
        return len(self._models)

    def _switched(self, name: str) -> Any:
        """The model with the asked adapter on, all others off."""
        base = adapter_base(name)
        if base is None:
            return self._bare(name)
        quantised = "4-bit" if made_by(name) in IN_4_BITS else ""
        kind = str(settings_of(name).get("peft_type"))
        # A learned prompt changes how the model is called, and PEFT mixes no kinds of adapters.
        key = (base, quantised, kind, name if is_learned_prompt(name) else "", str(rope_of(name)))
        held = self._held(key)
        if held is None:
            bare = load_causal(base, method=made_by(name), rope=rope_of(name)).eval()
            held = PeftModel.from_pretrained(bare, name, adapter_name=_key(name)).eval()
            self._keep(key, held)
        elif _key(name) not in held.peft_config:
            held.load_adapter(name, adapter_name=_key(name))
            held.eval()
        held.set_adapter(_key(name))
        return held

    def _bare(self, name: str) -> Any:
        key = (name,)
        held = self._held(key)
        if held is None:
            held = load_causal(name).eval()
            self._keep(key, held)
        return held

    def _held(self, key: tuple[str, ...]) -> Any:
        model = self._models.pop(key, None)
        if model is not None:
            self._models[key] = model
        return model

    def _keep(self, key: tuple[str, ...], model: Any) -> None:
        while len(self._models) >= self.most_bases:
            del self._models[next(iter(self._models))]
            gc.collect()
        self._models[key] = model


def _key(folder: str) -> str:
    """PEFT makes a module's name of it, which may hold no dot."""
    return folder.replace(".", "_")


class _Watcher(BaseStreamer):  # type: ignore[misc]
    """Told each token by `generate`, in its own thread: an error raised here ends it."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.tokens: list[int] | None = None  # None until the prompt has come by

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        # A character of several bytes is whole only with its last token.
        self.on_text(text.rstrip("�").strip(), len(self.tokens))

    def end(self) -> None:
        pass


def _generate(
    model: Any, tokenizer: Any, messages: Messages, sampling: Sampling, on_text: OnText
) -> Answer:
    ids = chat_tokens(tokenizer, messages, open_answer=True)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    config = getattr(model, "active_peft_config", None)
    taken = len(ids) + (getattr(config, "num_virtual_tokens", None) or 0)
    if room is not None and taken + sampling.max_new_tokens > room:
        raise ValueError(
            f"a prompt of {taken} tokens and {sampling.max_new_tokens} new ones exceed the "
            f"context of {room}"
        )
    warm = sampling.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=warm,
        temperature=sampling.temperature if warm else None,
        top_k=0 if warm else None,
        top_p=1.0 if warm else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    where = next(model.parameters()).device
    rows = torch.tensor([ids], device=where)
    watcher = _Watcher(tokenizer, on_text)
    with torch.no_grad(), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        made = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            generation_config=settings,
            streamer=watcher,
        )
    tokens = made[0, len(ids) :].tolist()
    return Answer(
        text=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        n_tokens=len(tokens),
        n_prompt_tokens=len(ids),
        ended=bool(tokens) and tokens[-1] == tokenizer.eos_token_id,
    )


_OF_PROCESS = Server()


def of_process() -> Server:
    """The models that this process holds from one request to the next."""
    return _OF_PROCESS
