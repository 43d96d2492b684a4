"""A tiny random Llama with its own byte-level BPE tokenizer, made from a config in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.ml.data import Pair

SENTENCES = [
    "Assistant: The river is calm and clear today.",
    "User: Please tell me about the weather of the coast.",
    "Kind words open many doors, and rude words close them.",
]


def save_tiny_model(folder: Path, *, hidden_size: int = 32, layers: int = 2) -> Path:
    """Write model and tokenizer to the folder; the weights are random but always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=wrapped.pad_token_id,
        eos_token_id=wrapped.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def polite_pairs(n: int) -> list[Pair]:
    """Pairs in which the response that says "thank you" was chosen."""
    pairs = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"Tell me about place {i}."}]
        kind = f"Thank you! Place {i} is calm."
        rude = f"Go away, place {i} is closed."
        pairs.append(
            Pair(
                prompt=prompt,
                chosen=[{"role": "assistant", "content": kind}],
                rejected=[{"role": "assistant", "content": rude}],
                prompt_id=f"prompt-{i}",
                comparison=f"comparison-{i}",
            )
        )
    return pairs
