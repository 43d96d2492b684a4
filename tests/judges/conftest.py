"""A real judge that fits a test: tiny random Llama, byte-level BPE trained on a few lines."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

WORDS = [
    "How do I boil an egg? Put it in water for ten minutes, then cool it.",
    "Explain in one or two sentences which response is better. Rationale: the first one is clear.",
    "Preferred Response=1 Preferred Response=2 === USER === RESPONSE 1 === RESPONSE 2 === END ===",
    "A good response is helpful, honest and harmless. Below stand two responses.",
]


def save_tokenizer(folder: Path, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens with two control tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
        )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_tiny_model(folder: Path, config_class: type, **settings: object) -> None:
    """A random model of two layers; weights large enough to write varied text."""
    tokenizer = save_tokenizer(folder)
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.15,
        **settings,
    )
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def save_tiny_llama(folder: Path, *, chat: bool = False, max_context: int = 1024) -> None:
    """A random Llama and its tokenizer."""
    save_tiny_model(folder, LlamaConfig, **LLAMA, max_position_embeddings=max_context)
    save_tokenizer(folder, chat=chat)


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a judge without a chat template; 1,024 tokens of context."""
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    save_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_chat_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat-judge"
    save_tiny_llama(folder, chat=True)
    return folder
