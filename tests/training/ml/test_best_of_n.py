from itertools import combinations

import pytest

from training.ml.best_of_n import expected_best, kl_of_best, ranked_responses
from training.ml.loading import load_policy


def test_the_kl_of_the_best_of_n_is_the_known_one():
    found = [kl_of_best(n) for n in (1, 2, 4, 16, 64)]
    assert found == pytest.approx([0, 0.193147, 0.636294, 1.835089, 3.174508], abs=1e-6)


def test_the_expected_best_is_the_mean_over_all_groups():
    proxy, gold = [0.3, -1.0, 2.0, 0.5, 0.4], [1.0, 5.0, -2.0, 3.0, 0.5]
    for n in range(1, 6):
        groups = list(combinations(range(5), n))
        by_hand = sum(gold[max(group, key=lambda i: proxy[i])] for group in groups) / len(groups)
        assert expected_best(proxy, gold, n) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="the best of 6 cannot be told from 5"):
        expected_best(proxy, gold, 6)


def test_responses_come_back_best_first_and_give_a_pair(tiny_model):
    model, tokenizer = load_policy(tiny_model)
    prompts = [[{"role": "user", "content": f"Say {word}."}] for word in ("yes", "no")]

    found = ranked_responses(
        model, tokenizer, prompts, lambda _prompts, texts: [len(text) for text in texts],
        n=4, max_new_tokens=8, seed=3,
    )  # fmt: skip

    for prompt, ranked in zip(prompts, found, strict=True):
        assert ranked.scores == sorted(ranked.scores, reverse=True)
        assert ranked.scores == [len(text) for text in ranked.responses]
        pair = ranked.pair
        assert pair is not None
        assert pair.prompt == prompt
        assert pair.chosen[0]["content"] == ranked.responses[0]
        assert pair.rejected[0]["content"] == ranked.responses[-1]
