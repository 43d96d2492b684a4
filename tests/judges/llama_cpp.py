"""A real judge server that nobody here wrote: llama.cpp, in this process, on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.judges.conftest import save_tiny_llama
from training.ml.exporting import save_gguf

ENDINGS = ("Preferred Response=", "Score=")


def save_answering_llama(folder: Path, *, chat: bool = False, max_context: int = 1024) -> None:
    """A tiny Llama that has learned to go on with a number where a verdict ends.

    A random one puts next to nothing on any number, and a server names the likeliest tokens alone.
    """
    save_tiny_llama(folder, chat=chat, max_context=max_context)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    numbers = [str(number) for number in range(1, 11)]
    lines = [f"{ending}{number}\n" for ending in ENDINGS for number in [*numbers, "1", "2", "10"]]
    lead_ins = ["Rationale: it is clear.\n", "<|turn|>assistant\n", "Which is better?\n"]
    ids = [
        torch.tensor([tokenizer(before + line)["input_ids"]])
        for before in lead_ins
        for line in lines
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _epoch in range(2):
        for row in ids:
            loss = model(input_ids=row, labels=row).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)


@contextmanager
def llama_cpp(folder: Path, file: Path, *, key: str = "", n_slots: int = 4) -> Iterator[str]:
    """The address of a server with this model, up to and with /v1; float32 in its cache too."""
    import xllamacpp

    save_gguf(folder, file)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.model_alias = {"tiny"}
    settings.port = 0
    settings.n_parallel = n_slots
    settings.n_ctx = n_slots * 1024
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if key:
        settings.api_keys = [key]
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server
