import pytest
import torch
from transformers import GenerationConfig

from training.ml.data import chat_tokens
from training.ml.loading import load_policy
from training.ml.rollouts import end_ids, roll_out, up_to_end


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load_policy(tiny_model, dtype="float32")


def prompts(tokenizer) -> list[list[int]]:
    words = ["Hi", "What is a river?", "Tell me about the weather of the coast, please.", "Why so?"]
    return [
        chat_tokens(tokenizer, [{"role": "user", "content": word}], open_answer=True)
        for word in words
    ]


def sampled(policy, rows, **settings):
    model, tokenizer = policy
    asked = {
        "max_new_tokens": 24,
        "temperature": 1.0,
        "ends": end_ids(model, tokenizer),
        "pad_id": tokenizer.pad_token_id,
        "seed": 5,
        "batch_size": 64,
    }
    return roll_out(model, rows, **asked | settings)


def test_a_response_ends_with_its_first_end_token():
    rollout = up_to_end([7], [4, 5, 1, 1, 9, 1], [1, 2])
    assert (rollout.response_ids, rollout.finished) == ([4, 5, 1], True)
    rollout = up_to_end([7], [2, 5], [1, 2])
    assert (rollout.response_ids, rollout.finished) == ([2], True)
    rollout = up_to_end([7], [4, 5], [1, 2])
    assert (rollout.response_ids, rollout.finished) == ([4, 5], False)


def test_what_a_row_draws_does_not_depend_on_its_batch(policy):
    rows = prompts(policy[1]) * 8
    # A few more ends, so that rows leave the batch at many different moments.
    together = sampled(policy, rows, ends=range(1, 20))
    apart = sampled(policy, rows, ends=range(1, 20), batch_size=5)

    assert together == apart
    assert len({len(rollout.response_ids) for rollout in together}) > 5
    assert [rollout.prompt_ids for rollout in together] == rows
    assert sampled(policy, rows, seed=6) != together


def test_at_a_low_temperature_responses_are_the_library_s_greedy_ones(policy):
    model, tokenizer = policy
    rows = prompts(tokenizer)
    found = sampled(policy, rows, temperature=1e-7, max_new_tokens=80)  # beyond one block of room

    for row, rollout in zip(rows, found, strict=True):
        made = model.generate(
            input_ids=torch.tensor([row]),
            generation_config=GenerationConfig(
                max_new_tokens=80, do_sample=False, pad_token_id=0, eos_token_id=1
            ),
        )
        assert rollout.response_ids == made[0, len(row) :].tolist()


def test_tokens_are_drawn_as_often_as_the_model_says(policy):
    model, tokenizer = policy
    row = prompts(tokenizer)[0]
    n = 4000
    found = sampled(policy, [row] * n, temperature=0.7, max_new_tokens=1, batch_size=n)

    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([row])).logits[0, -1] / 0.7).softmax(-1)
    drawn = torch.tensor([rollout.response_ids[0] for rollout in found])
    shares = torch.bincount(drawn, minlength=len(expected)) / n
    chi_square = (n * (shares - expected).square() / expected).sum().item()
    assert chi_square < len(expected) + 5 * (2 * len(expected)) ** 0.5
