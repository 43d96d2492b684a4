"""A judge's model from its folder into memory: weights, tokenizer, adapter, precision."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from judges.ml.config import JudgeRecipe, ModelUnusable


def load_model(model: str, recipe: JudgeRecipe, device: torch.device) -> tuple[Any, Any]:
    """The model, ready to answer, and its tokenizer.

    A folder with an adapter_config.json is a LoRA adapter: the base model that it names is loaded
    and the adapter put on top; it is merged into the weights unless these are 4-bit.

    Args:
        model: hub id or local folder. Weights are read as safetensors; code that comes with a model
            is never run.
        recipe: `dtype` and `load_in_4bit` are used.
    Raises: ModelUnusable when the folder is missing or is no causal language model.
    """
    name = _place(model)
    adapter = Path(name) / "adapter_config.json"
    try:
        if not adapter.is_file():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            return _ready(_weights(name, recipe, device)), tokenizer
        base = _place(json.loads(adapter.read_text())["base_model_name_or_path"])
        has_tokenizer = (Path(name) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(
            name if has_tokenizer else base, trust_remote_code=False
        )
        if not (Path(name) / "adapter_model.safetensors").is_file():
            raise OSError("the adapter has no file adapter_model.safetensors")
        from peft import PeftModel  # a second's import that most judges do without

        config = stretched_config(base, name)
        adapted = PeftModel.from_pretrained(_weights(base, recipe, device, config), name)
        if recipe.load_in_4bit:
            return _ready(adapted.get_base_model()), tokenizer  # its layers carry the adapter
        return _ready(adapted.merge_and_unload()), tokenizer
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ModelUnusable(
                f"the model {model} does not fit the memory of {device}: choose 4-bit, "
                "or a smaller model"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ModelUnusable(f"the model {model} could not be loaded: {reason}") from error


def max_context(model: Any, tokenizer: Any, recipe: JudgeRecipe) -> int:
    """Tokens that model, tokenizer and recipe all allow."""
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        recipe.max_context,
    ]
    # Tokenizers without a limit say 1e30.
    known = [int(limit) for limit in limits if limit and limit < 1e9]
    return min(known, default=10**9)


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text."""
    ids: set[Any] = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        eos: Any = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [eos])
    return frozenset(token for token in ids if token is not None)


def _place(model: str) -> str:
    """What transformers is to load: the folder, which must be there, or the hub id.

    Raises: ModelUnusable when the folder is missing.
    """
    # A hub id is `owner/name` or `name`; everything else is a folder.
    is_path = model.startswith((os.sep, ".", "~")) or model.count("/") > 1 or Path(model).is_dir()
    if is_path and not Path(model).expanduser().is_dir():
        raise ModelUnusable(f"there is no model folder {model}")
    return str(Path(model).expanduser()) if is_path else model


def left_beside(folder: str) -> dict[str, Any]:
    """What the run that trained an adapter has left beside it: its method, the members of an
    ensemble, and how positions were scaled; see training.ml.loading."""
    path = Path(folder) / "made_by.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def stretched_config(base: str, folder: str, **settings: Any) -> Any:
    """The base's config with the longer context that the adapter in the folder was trained with;
    None if it was trained as the base is."""
    rope = left_beside(folder).get("rope")
    if rope is None:
        return None
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, **settings)
    text = config.get_text_config()
    text.rope_parameters = (text.rope_parameters or {}) | {
        "rope_type": rope[0],
        "factor": rope[1],
        "original_max_position_embeddings": text.max_position_embeddings,
    }
    text.max_position_embeddings = int(text.max_position_embeddings * rope[1])
    return config


def _weights(name: str, recipe: JudgeRecipe, device: torch.device, config: Any = None) -> Any:
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    if recipe.dtype != "auto":
        dtype = getattr(torch, recipe.dtype)
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "dtype": dtype}
    if config is not None:
        options["config"] = config
    if recipe.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    if recipe.load_in_4bit or device.type != "cpu":
        options["device_map"] = {"": device}  # straight to the GPU: no second copy in memory
    return AutoModelForCausalLM.from_pretrained(name, **options)


def _ready(model: Any) -> Any:
    for module in model.modules():
        # On processors with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first forward
        # pass, rounds their scales to bfloat16 and fails on layers narrower than 64: the plain path
        # gives the same numbers on every processor.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
