"""Rows in a line: the same numbers and gradients as row by row, for every model that can."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
)

from training.ml.packing import lay, model_inputs, pack
from training.ml.rollouts import body_and_head

SMALL = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
WIDE = {"intermediate_size": 48}
CAN = {
    "llama, fewer key heads": LlamaConfig(**SMALL, **WIDE, num_key_value_heads=2),
    "mistral, a window of 3": MistralConfig(
        **SMALL, **WIDE, num_key_value_heads=4, sliding_window=3
    ),
    "gpt-neox": GPTNeoXConfig(**SMALL, **WIDE),
    "gpt2, learned positions": GPT2Config(
        vocab_size=90, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1
    ),
}
CANNOT = {
    "falcon, an attention of its own": FalconConfig(**SMALL),
    "bloom, distances in its attention": BloomConfig(
        vocab_size=90, hidden_size=32, n_layer=2, n_head=4
    ),
}
ROWS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20], [30, 31], [5, 6, 7, 20, 21, 22]]
PROMPTS = [3, 3, 1, 3]


def body_of(config):
    torch.manual_seed(3)
    return body_and_head(AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval())[0]


@pytest.mark.parametrize("kind", list(CAN))
def test_a_line_says_what_the_rows_say_alone_and_learns_the_same(kind):
    body = body_of(CAN[kind])
    alone = [body(input_ids=torch.tensor([row]), use_cache=False)[0][0] for row in ROWS]
    weights = [torch.randn_like(states) for states in alone]
    sum((w * states).sum() for w, states in zip(weights, alone, strict=True)).backward()
    wanted = {name: p.grad for name, p in body.named_parameters() if p.grad is not None}
    body.zero_grad()

    assert pack(body)
    line, own = lay(ROWS, PROMPTS, torch.device("cpu"))
    assert line.ids.shape == (1, 2 + 7 + 1 + 3)  # [5, 6, 7] stands there once
    states = body(**model_inputs(line)).last_hidden_state[0]
    told = [states[places] for places in own]
    for row, by_itself in zip(told, alone, strict=True):
        assert torch.allclose(row, by_itself, atol=1e-5)
    sum((w * row).sum() for w, row in zip(weights, told, strict=True)).backward()
    for name, parameter in body.named_parameters():
        if name in wanted:
            assert torch.allclose(parameter.grad, wanted[name], atol=1e-3, rtol=1e-4), name


@pytest.mark.parametrize("kind", list(CANNOT))
def test_a_model_that_cannot_take_lines_stays_as_it_is(kind):
    body = body_of(CANNOT[kind])
    ids = torch.tensor(ROWS[:1])
    before, attention = body(input_ids=ids, use_cache=False)[0], body.config._attn_implementation
    assert not pack(body)
    assert body.config._attn_implementation == attention
    assert torch.equal(body(input_ids=ids, use_cache=False)[0], before)


def test_rows_pass_padded_as_before_where_lines_are_taken_too():
    body = body_of(CAN["llama, fewer key heads"])
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    before = body(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    assert pack(body)
    assert torch.equal(body(input_ids=ids, attention_mask=mask, use_cache=False)[0], before)
