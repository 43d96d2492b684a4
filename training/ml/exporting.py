"""A whole Llama as the GGUF file that llama.cpp reads, tensor by tensor.

The package gguf, llama.cpp's own, writes the file; what is written follows llama.cpp's program
convert_hf_to_gguf.py (https://github.com/ggml-org/llama.cpp).
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from training.ml.gguf_shapes import gguf_name, tokenizer_kind, why_no_gguf
from training.ml.loading import load_tokenizer
from training.ml.merge_recipe import settings_of
from training.ml.stored_weights import Files
from training.ml.weights import tensor_shapes

FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
}


def save_gguf(
    folder: Path,
    file: Path,
    numbers: str = "float32",
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write model and tokenizer into one file; it is there whole or not at all.

    Args: numbers: format of the matrices; vectors, which are the norms, stay float32.
    Returns: bytes, tensors, seconds.
    Raises: ValueError for a model of another shape; what `on_tensor` raises.
    """
    if reason := why_no_gguf(str(folder)):
        raise ValueError(reason)
    began = time.monotonic()
    config = settings_of(folder, "config.json")
    files = Files(str(folder))
    part = file.with_name(f"{file.name}.part")
    writer = gguf.GGUFWriter(part, "llama")
    try:
        _add_shape(writer, config)
        writer.add_file_type(FILE_TYPES[numbers])
        _add_tokenizer(writer, folder)
        heads = {
            "q_proj": config["num_attention_heads"],
            "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"],
        }
        shapes = tensor_shapes(folder)
        for name in files.names:
            shape = shapes[name]
            kind, width = _kind(shape, numbers)
            n_bytes = int(np.prod(shape)) * width
            writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, name in enumerate(files.names):
            on_tensor(done, len(files.names))
            values = files.tensor(name)
            for projection, n_heads in heads.items():
                if projection in name:
                    values = _interleaved(values, n_heads)
            writer.write_tensor_data(_numbers(values, numbers))
        on_tensor(len(files.names), len(files.names))
        writer.close()
        part.rename(file)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise
    return {
        "bytes": file.stat().st_size,
        "tensors": len(files.names),
        "seconds": time.monotonic() - began,
    }


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(theta or 10_000.0)
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    tokenizer = load_tokenizer(str(folder))
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    # The table of words may be longer than the vocabulary: it was padded for speed.
    n_words = int(settings_of(folder, "config.json")["vocab_size"])
    tokens = [words.get(number, f"[PAD{number}]") for number in range(n_words)]
    control = {token["content"] for token in state["added_tokens"]}
    kinds = [
        gguf.TokenType.UNUSED
        if number not in words
        else gguf.TokenType.CONTROL
        if words[number] in control
        else gguf.TokenType.NORMAL
        for number in range(n_words)
    ]
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer_kind(state))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    # Chat templates write the opening mark themselves.
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _kind(shape: list[int], numbers: str) -> tuple[gguf.GGMLQuantizationType, int]:
    """A tensor's format in the file, and its bytes a number."""
    if len(shape) < 2 or numbers == "float32":
        return gguf.GGMLQuantizationType.F32, 4
    if numbers == "float16":
        return gguf.GGMLQuantizationType.F16, 2
    return gguf.GGMLQuantizationType.BF16, 2


def _numbers(values: torch.Tensor, numbers: str) -> Any:
    """The tensor's bytes as numpy holds them, which knows no bfloat16."""
    if values.ndim < 2 or numbers == "float32":
        return values.contiguous().numpy()
    if numbers == "float16":
        half = values.half()
        if not bool(half.isfinite().all()):
            raise ValueError("a weight is too large for float16; choose bfloat16 or float32")
        return half.contiguous().numpy()
    return values.bfloat16().contiguous().view(torch.uint16).numpy()


def _interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rotary pairs side by side, as llama.cpp turns them; transformers keeps them in two halves."""
    rows, columns = weight.shape
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
