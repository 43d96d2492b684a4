"""The recipes ask nothing special of a model: other shapes than Llama's train as well."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, Qwen3Config

from tests.training.tiny import polite_pairs
from training.ml import dpo, reward_model
from training.ml.config import DPORecipe, RewardRecipe
from training.ml.loading import load_tokenizer
from training.ml.weights import linear_layers

PAIRS = polite_pairs(32)
SHAPES = {
    # Convolutions for linear layers and learned positions; biases; tied words and normed heads.
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "gpt-neox": (
        GPTNeoXConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 256},
    ),
    "qwen3": (
        Qwen3Config,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
         "num_key_value_heads": 1, "intermediate_size": 64, "tie_word_embeddings": True},
    ),
}  # fmt: skip


@pytest.fixture(params=list(SHAPES))
def base(request, tiny_model, tmp_path) -> str:
    kind, settings = SHAPES[request.param]
    tokenizer = load_tokenizer(tiny_model)
    end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = kind(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **end, **settings)
    tokenizer.save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize(("recipe", "kind"), [(RewardRecipe, reward_model), (DPORecipe, dpo)])
def test_every_adapter_of_a_4_bit_base_moves_whatever_its_shape(base, tmp_path, recipe, kind):
    settings = {"method": "qlora", "max_steps": 4, "batch_size": 4, "learning_rate": 2e-3}

    metrics = kind.train(
        recipe(base_model=base, **settings), PAIRS[:24], PAIRS[24:], tmp_path, lambda report: None
    )

    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    adapted = {name.split(".lora_B")[0].rsplit(".", 1)[-1] for name in weights if "lora_B" in name}
    assert adapted == {path.rpartition(".")[2] for path in linear_layers(Path(base))}
    assert all(weights[name].abs().max() > 0 for name in weights if "lora_B" in name)
    assert metrics["accuracy"]["value"] > 0.5
