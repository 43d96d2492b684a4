"""Which models can become a GGUF file, and what their tensors are called there: no torch needed."""

import json
from pathlib import Path
from typing import Any

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUMBERS = ("float32", "float16", "bfloat16")


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Llama's tensor. Raises: KeyError for any other."""
    if name in TENSORS:
        return TENSORS[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{TENSORS[rest]}"


def why_no_gguf(folder: str) -> str:
    """Why a model cannot become a GGUF file, in a sentence; empty if it can, as its files say."""
    place = Path(folder)
    if (place / "adapter_config.json").exists():
        return "this is an adapter: merge it into its base first"
    if not (place / "config.json").exists():
        return "the folder holds no config.json"
    config = json.loads((place / "config.json").read_text())
    kind = (config.get("architectures") or [""])[0]
    if kind != "LlamaForCausalLM":
        return (
            f"only Llama models are written as GGUF here, and this is {kind or 'of no kind'}; "
            "llama.cpp's own convert_hf_to_gguf.py knows others"
        )
    if config.get("quantization_config"):
        return "its weights are stored quantised; merge it with a number format first"
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        return (
            "its context was made longer by scaled positions, which this converter does not write"
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "its layers have biases, which this converter does not write"
    if not (place / "tokenizer.json").exists():
        return "it has no tokenizer.json"
    if not tokenizer_kind(json.loads((place / "tokenizer.json").read_text())):
        return (
            "its tokenizer is no byte-level BPE of GPT-2's or Llama 3's kind, the only ones that "
            "this converter writes"
        )
    return ""


def tokenizer_kind(state: dict[str, Any]) -> str:
    """llama.cpp's name of how a byte-level BPE cuts a text before it merges; empty for others."""
    if state["model"].get("type") != "BPE":
        return ""
    cutter = state.get("pre_tokenizer") or {}
    if cutter.get("type") == "ByteLevel" and cutter.get("use_regex", True):
        return "" if cutter.get("add_prefix_space") else "gpt-2"
    steps = cutter.get("pretokenizers") or []
    patterns = [(s.get("pattern") or {}).get("Regex") for s in steps if s.get("type") == "Split"]
    return "llama-bpe" if patterns == [LLAMA_3] else ""
