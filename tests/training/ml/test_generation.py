import pytest
import torch
from transformers import AutoTokenizer

from training.ml.data import words_of
from training.ml.generation import sample
from training.ml.loading import load_policy

PROMPTS = [
    [{"role": "user", "content": "Tell me about the river."}],
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Please tell me about the weather of the coast, and the hills."}],
]


def test_left_padding_changes_no_response(tiny_model):
    model, tokenizer = load_policy(tiny_model, dtype="float32")

    together = sample(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    alone = [
        sample(model, tokenizer, [prompt], max_new_tokens=12, temperature=0)[0]
        for prompt in PROMPTS
    ]

    assert together == alone
    assert all(together)


def test_the_same_seed_draws_the_same_responses_and_leaves_the_global_state_alone(tiny_model):
    model, tokenizer = load_policy(tiny_model, dtype="float32")
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    first = sample(model, tokenizer, PROMPTS, max_new_tokens=12, seed=5, batch_size=2)
    again = sample(model, tokenizer, PROMPTS, max_new_tokens=12, seed=5, batch_size=2)
    torch.manual_seed(1)
    other = sample(model, tokenizer, PROMPTS, max_new_tokens=12, seed=6, batch_size=2)

    assert first == again
    assert first != other
    assert torch.equal(torch.rand(3), expected)


def test_draws_follow_the_whole_distribution_of_the_model(tiny_model):
    model, tokenizer = load_policy(tiny_model, dtype="float32")
    with torch.no_grad():
        from training.ml.data import chat_tokens

        ids = torch.tensor([chat_tokens(tokenizer, PROMPTS[1], open_answer=True)])
        probs = model(input_ids=ids).logits[0, -1].softmax(-1)
    rare = probs < probs.sort(descending=True).values[60]  # what a top-k of 50 would never draw

    drawn = sample(model, tokenizer, PROMPTS[1:2] * 400, max_new_tokens=1, batch_size=200)

    n_rare = sum(
        bool(rare[tokenizer(text, add_special_tokens=False).input_ids[0]])
        for text in drawn
        if text and tokenizer(text, add_special_tokens=False).input_ids
    )
    assert n_rare > 100  # nearly flat: a random model gives these tokens most of its mass


def test_a_response_that_cannot_fit_the_context_is_refused(tiny_model):
    model, tokenizer = load_policy(tiny_model)

    with pytest.raises(ValueError, match="200 new ones exceed the context of 256"):
        sample(model, tokenizer, [[{"role": "user", "content": "word " * 60}]], max_new_tokens=200)


def test_what_a_model_wrote_holds_no_nul(tiny_model):
    """PostgreSQL takes none, in a text as little as in JSON: a whole report would be lost by it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    nul, calm = tokenizer.convert_tokens_to_ids("Ā"), tokenizer("calm")["input_ids"]
    assert tokenizer.decode([nul]) == "\x00"

    assert words_of(tokenizer, [*calm, nul, *calm, tokenizer.eos_token_id]) == "calm�calm"
