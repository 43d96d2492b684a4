"""Models from disk: the base in full or in 4 bits, adapters; safetensors, no foreign code."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from training.ml.config import Recipe
from training.ml.methods import IN_4_BITS, PROMPTS
from training.ml.settings import is_target, targets

HEADS = ("score", "classifier")
"""What transformers calls the head of a sequence classifier."""
LANGUAGE_HEADS = ("lm_head", "embed_out")
"""And the one that tells words."""
MADE_BY = "made_by.json"
"""Beside saved weights: the method that trained them, the members of an ensemble, and the scaling
of positions. An adapter's own file does not say whether its base was held in 4 bits, and on another
base its numbers are others."""
UNSCALED = ("none", 1.0)
"""Positions as the base has them."""


class ModelMissing(ValueError):
    """There is nothing to load under that name; the message says so in one line."""


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def number_format(dtype: str) -> torch.dtype:
    """What "auto", "float32" or "bfloat16" means on this machine."""
    if dtype == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def load_tokenizer(name: str) -> Any:
    """The tokenizer, with a padding token; an encoder's marks stand for beginning and end.

    Raises: ModelMissing.
    """
    with _one_line_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelMissing(f"the tokenizer of {name} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest_allowed(
    name: str, max_length: int, *, virtual_tokens: int = 0, rope: tuple[str, float] = UNSCALED
) -> int:
    """`max_length`, or the model's context where that is shorter.

    Args: virtual_tokens: length of the prompt that is going to be learned; one that the model has
        already takes its place by itself; rope: kind and factor of a longer context.
    Raises: ModelMissing.
    """
    bottom = name
    while base := adapter_base(bottom):  # a policy may be an adapter on an adapter
        rope = rope_of(bottom) if rope[0] == UNSCALED[0] else rope
        bottom = base
    with _one_line_errors(bottom):
        config = scaled_config(bottom, rope)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    taken = virtual_tokens or int(_adapter_settings(name).get("num_virtual_tokens") or 0)
    return min(max_length, context - taken) if context else max_length


def load_causal(
    name: str, *, method: str = "lora", dtype: str = "auto", rope: tuple[str, float] = UNSCALED
) -> Any:
    """A causal language model on this machine's device.

    If `name` is a folder with an adapter, its base is loaded and the adapter merged into it, so
    that a trained policy can be a base again.

    Args: method: "qlora" and "loftq" hold linear layers in 4 bits: NF4, double quantisation; rope:
        kind and factor of a longer context, see `scaled_config`.
    Raises: ModelMissing; ValueError for an adapter under these, which cannot be merged in 4 bits,
        and for a learned prompt, which is no change of weights.
    """
    adapter = adapter_base(name)
    if adapter is None:
        return _load(AutoModelForCausalLM, name, method=method, dtype=dtype, rope=rope)
    _refuse_pickles(name)
    if method in IN_4_BITS:
        raise ValueError(f"{name} is an adapter: merge it into its base before using QLoRA on it")
    if is_learned_prompt(name):
        raise ValueError(f"{name} is a learned prompt, which cannot be merged into its base")
    scaled = rope_of(name)
    if scaled[0] != UNSCALED[0] and rope[0] != UNSCALED[0]:
        raise ValueError(f"rope_scaling: the positions of {name} are scaled already")
    rope = scaled if rope[0] == UNSCALED[0] else rope
    model = load_causal(adapter, method=made_by(name), dtype=dtype, rope=rope)
    if made_by(name) in IN_4_BITS:
        # The adapter was learned beside these rounded weights: it is merged into what they stand
        # for, and the sum says what the run measured.
        model = model.dequantize(dtype=number_format(dtype))
    merged = PeftModel.from_pretrained(model, name).merge_and_unload()
    # What PEFT will write as the base of an adapter on this model: not the base of the first one.
    merged.name_or_path = merged.config._name_or_path = name
    return merged


def load_scorer(
    name: str, *, method: str = "lora", dtype: str = "auto", rope: tuple[str, float] = UNSCALED
) -> Any:
    """The base of a reward model: `name` with a new head that gives one number. Seed it first.

    Args: rope: kind and factor of a longer context, see `scaled_config`.
    Raises: as load_causal.
    """
    if adapter_base(name) is not None:
        raise ValueError(f"{name} is an adapter: name the base model it was trained on instead")
    kind = AutoModelForSequenceClassification
    return _load(kind, name, method=method, dtype=dtype, rope=rope, num_labels=1)


def load_policy(name: str, *, dtype: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) ready to generate: a base model, or the folder that a DPO run left."""
    base = adapter_base(name)
    if base is not None and is_learned_prompt(name):
        _refuse_pickles(name)
        model = load_causal(base, dtype=dtype, rope=rope_of(name))
        model = PeftModel.from_pretrained(model, name).eval()
    else:
        model = load_causal(name, dtype=dtype).eval()
    return model, load_tokenizer(name)


def load_reward_model(folder: str | Path, *, dtype: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) ready to score, from the folder that a reward run left.

    Raises: ModelMissing if the folder holds no reward model.
    """
    base = adapter_base(str(folder))
    if base is None and not holds_scorer(folder):
        raise ModelMissing(f"{folder} holds no reward model")
    if base is not None:
        _refuse_pickles(str(folder))
    tokenizer = load_tokenizer(str(folder))
    rope = rope_of(str(folder)) if base else UNSCALED  # a whole model's config says it itself
    model = load_scorer(base or str(folder), method=made_by(str(folder)), dtype=dtype, rope=rope)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if base is not None:
        model = PeftModel.from_pretrained(model, str(folder))
        for member in member_folders(folder):
            _refuse_pickles(str(member))
            model.load_adapter(str(member), adapter_name=member.name)
    return model.eval(), tokenizer


def member_folders(folder: str | Path) -> list[Path]:
    """Where the further members of an ensemble lie, beside the first; none where there is one."""
    n = int(_made(str(folder)).get("members", 1))
    return [Path(folder) / f"member-{member}" for member in range(1, n)]


def members_of(model: Any) -> list[str | None]:
    """Names of the adapters that a loaded reward model consists of; None stands for the one that is
    on, where there is no more than one."""
    adapters = list(getattr(model, "peft_config", {}))
    return list(adapters) if len(adapters) > 1 else [None]


def rope_of(name: str) -> tuple[str, float]:
    """Kind and factor of the longer context that an adapter was trained with."""
    kind, factor = _made(name).get("rope", UNSCALED)
    return str(kind), float(factor)


def without_dropout(model: Any) -> None:
    """Turn the dropout of a base off, before it gets an adapter whose dropout stays on."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def holds_scorer(folder: str | Path) -> bool:
    """Whether the folder holds a whole model with a score head."""
    path = Path(folder) / "config.json"
    names = (json.loads(path.read_text()) if path.exists() else {}).get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def adapter_base(name: str) -> str | None:
    """The base of an adapter's folder, or None if the folder holds no adapter."""
    base: str | None = _adapter_settings(name).get("base_model_name_or_path")
    return base


def is_learned_prompt(name: str) -> bool:
    """Whether an adapter's folder holds vectors that stand before a text, and no weights."""
    return bool(_adapter_settings(name).get("num_virtual_tokens"))


def made_by(name: str) -> str:
    """The method that trained what the folder holds; "lora" if the folder does not say."""
    return str(_made(name).get("method", "lora"))


def _made(name: str) -> dict[str, Any]:
    path = Path(name) / MADE_BY
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _adapter_settings(name: str) -> dict[str, Any]:
    path = Path(name) / "adapter_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return settings


def adapter_config(model: Any, recipe: Recipe, *, task: str) -> PeftConfig:
    """The adapter of a method that has one; the head and, if wanted, the norms trained whole.

    Args: task: "SEQ_CLS" for a reward model, "CAUSAL_LM" for a policy.
    Raises: ValueError naming the layers there are, if a named one is not among them.
    """
    if recipe.method in PROMPTS:
        return _learned_prompt(recipe, task)
    if recipe.method == "head":
        heads = [name for name, _module in model.named_children() if name in HEADS]
        return LoraConfig(
            task_type=task, target_modules=DUMMY_TARGET_MODULES, modules_to_save=heads
        )
    names = {name.rsplit(".", 1)[-1]: module for name, module in model.named_modules()}
    wanted = targets(recipe)
    if isinstance(wanted, list):
        wanted = _matching_layers(model, wanted)
    whole = [name for name in HEADS if name in names] if task == "SEQ_CLS" else []
    if recipe.train_norms:
        whole += sorted(n for n, m in names.items() if type(m).__name__.endswith("Norm"))
    if recipe.method == "ia3":
        return IA3Config(
            task_type=task,
            target_modules=wanted,
            feedforward_modules=[],  # every layer's outputs are scaled, of no layer the inputs
            modules_to_save=whole or None,
        )
    return LoraConfig(
        task_type=task,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=wanted,
        modules_to_save=whole or None,
        use_dora=recipe.method == "dora",
        use_rslora=recipe.method == "rslora",
        init_lora_weights="pissa" if recipe.method == "pissa" else True,
    )


def _matching_layers(model: Any, wanted: list[str]) -> list[str]:
    """Names stay names; where a pattern is among them, the path of each layer that is meant."""
    layers = [
        path
        for path, module in model.named_modules()
        if ("Linear" in type(module).__name__ or type(module).__name__ == "Conv1D")
        and path.rpartition(".")[2] not in (*HEADS, *LANGUAGE_HEADS)
    ]
    missing = [end for end in wanted if not any(is_target(path, [end]) for path in layers)]
    if missing:
        names = sorted({path.rpartition(".")[2] for path in layers})
        raise ValueError(
            f"the model has no layer {', '.join(missing)}; its linear layers are {', '.join(names)}"
        )
    if not any(sign in end for end in wanted for sign in "*?["):
        return wanted
    return [path for path in layers if is_target(path, wanted)]


def _learned_prompt(recipe: Recipe, task: str) -> PeftConfig:
    shared = {"task_type": task, "num_virtual_tokens": recipe.virtual_tokens}
    if recipe.method == "prefix":
        return PrefixTuningConfig(**shared)
    if recipe.method == "ptuning":
        return PromptEncoderConfig(**shared)
    # Words of the model's own: random vectors lie far from any (Lester et al. 2021, section 3.2).
    return PromptTuningConfig(**shared, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)


def train_in_float32(model: Any) -> None:
    """Put everything that is trained into float32, the layers trained whole with the base's values.

    TRL rounds all trained tensors of a 4-bit model to bfloat16. Of a norm weight near 1 that keeps
    eight bits: steps of the size of a learning rate are lost, and the head starts rounded.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            source = dict(module.original_module.named_parameters())
            for name, parameter in module.modules_to_save["default"].named_parameters():
                parameter.data = source[name].detach().float().clone()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def n_parameters(model: Any) -> tuple[int, int]:
    """(trained, all) parameters; a 4-bit weight counts as the numbers it stands for."""
    if isinstance(model, PeftModel):
        trained, total = model.get_nb_trainable_parameters()
        return int(trained), int(total)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, is_trained in sizes if is_trained), sum(n for n, _is_trained in sizes)


def revision(name: str) -> str:
    """What identifies the weights: the hub's commit, or a hash over a local folder's weight files.

    Of an adapter's folder, together with the base beneath it.

    Raises: ModelMissing.
    """
    folder = Path(name)
    if not folder.is_dir():
        with _one_line_errors(name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            return str(config._commit_hash or "")
    digest = hashlib.sha256()
    names = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    for path in names:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    base = adapter_base(name)
    if base:
        digest.update(revision(base).encode())
    return digest.hexdigest()


def _refuse_pickles(folder: str) -> None:
    """PEFT takes adapter_model.bin, a pickle that may run anything, where this file is missing."""
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelMissing(f"{folder} has no adapter_model.safetensors")


def scaled_config(name: str, rope: tuple[str, float], **settings: Any) -> Any:
    """The base's config with its rotary positions scaled, so that its context grows by a factor.

    Kinds: "linear" (positions divided by the factor: Chen et al. 2023, arXiv:2306.15595), "yarn"
    (slow angles divided, fast ones kept: Peng et al. 2023, arXiv:2309.00071). The "dynamic" kind
    of transformers goes by the longest text of a batch, so what a text is worth would depend on
    its neighbours.

    Raises: ValueError if the model has no rotary positions, or scaled ones already.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
    kind, factor = rope
    if kind == UNSCALED[0]:
        return config
    text = config.get_text_config()
    known = getattr(text, "rope_parameters", None) or {}
    if known.get("rope_type") != "default":
        raise ValueError(f"rope_scaling: {name} has no rotary positions that could be scaled")
    context = text.max_position_embeddings
    text.rope_parameters = known | {
        "rope_type": kind,
        "factor": float(factor),
        "original_max_position_embeddings": context,
    }
    text.max_position_embeddings = int(context * factor)
    return config


def _load(
    kind: Any,
    name: str,
    *,
    method: str,
    dtype: str,
    rope: tuple[str, float] = UNSCALED,
    **settings: Any,
) -> Any:
    numbers = number_format(dtype)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=numbers,
        # Heads stay as they are: four bits are too coarse for the layer that gives the answer.
        llm_int8_skip_modules=[*HEADS, "lm_head"],
    )
    with _one_line_errors(name), _quiet():
        model = kind.from_pretrained(
            name,
            config=scaled_config(name, rope, **settings),
            dtype=numbers,
            quantization_config=quantised if method in IN_4_BITS else None,
            device_map={"": device()},
            use_safetensors=True,
            trust_remote_code=False,
        )
    for module in model.modules():
        # On processors with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first forward in
        # eval mode: for good, without the double quantisation, its scales rounded to bfloat16, and
        # not at all for layers narrower than 64. A measurement would then change the model that is
        # being trained, so every processor takes the plain path.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A new score head and an unused language head are what we ask for, not worth a warning."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    looks_local = os.sep in name and (name.startswith((os.sep, ".", "~")) or name.count(os.sep) > 1)
    if looks_local and not Path(name).is_dir():
        raise ModelMissing(f"there is no model folder {name}")
    if Path(name).is_dir() and not any(
        (Path(name) / file).exists() for file in ("config.json", "adapter_config.json")
    ):
        raise ModelMissing(f"the folder {name} holds no model (no config.json)")
    try:
        yield
    except OSError as error:
        if "safetensors" in str(error):
            raise ModelMissing(f"{name} has no weights as safetensors") from error
        offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise ModelMissing(
            f"{name} is not a local folder and could not be fetched from the hub{offline}"
        ) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelMissing(
            f"{name} cannot be loaded without code of its own, which is never run"
        ) from error
