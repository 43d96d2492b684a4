"""Best of n: the response that scores highest among n of one policy. What PPO is held against, and
a source of pairs that costs no training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.ml.data import Messages, Pair, chat_tokens, words_of
from training.ml.rollouts import end_ids, roll_out


def kl_of_best(n: int) -> float:
    """KL of the best of n to the policy it is chosen from, in nats a response: log n − (n − 1)/n.

    An upper bound, met where no two responses score alike. 2, 4, 16 give 0.193, 0.636, 1.835.

    Raises: ValueError for n below 1.
    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3; Beirami et al. 2024,
        arXiv:2401.01879, theorem 1.
    """
    if n < 1:
        raise ValueError("the best of no responses has no KL")
    return math.log(n) - (n - 1) / n


def expected_best(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Mean gold of the response that proxy prefers among n, from N ≥ n of them: unbiased.

    Σ_i C(i − 1, n − 1) / C(N, n) · gold of the i-th by proxy, from the lowest on: every group of n
    counts once, not only those that happened to be drawn together.

    Raises: ValueError if there are fewer than n.
    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I; Gao et al. 2023, arXiv:2210.10760.
    """
    total = len(proxy)
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} cannot be told from {total}")
    order = sorted(range(total), key=lambda place: proxy[place])
    groups = math.comb(total, n)
    return sum(math.comb(rank, n - 1) / groups * gold[place] for rank, place in enumerate(order))


@dataclass(frozen=True)
class Ranked:
    """Responses to one prompt and their scores, the best first."""

    prompt: Messages
    responses: list[str]
    scores: list[float]

    @property
    def pair(self) -> Pair | None:
        """The best as chosen, the worst as rejected; None where they say the same."""
        if self.responses[0] == self.responses[-1] or self.scores[0] == self.scores[-1]:
            return None
        chosen, rejected = (
            [{"role": "assistant", "content": text}]
            for text in (self.responses[0], self.responses[-1])
        )
        return Pair(prompt=self.prompt, chosen=chosen, rejected=rejected)


def ranked_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    score: Callable[[Sequence[Messages], Sequence[str]], Sequence[float]],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Ranked]:
    """n responses to each prompt in the order of their scores; the first is the best of n.

    Args: score: prompts and responses to numbers, such as reward_model.score on conversations.
    """
    asked = [prompt for prompt in prompts for _ in range(n)]
    rollouts = roll_out(
        model.eval(),
        [chat_tokens(tokenizer, prompt, open_answer=True) for prompt in asked],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        ends=end_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id,
        seed=seed,
        batch_size=batch_size,
    )
    texts = [words_of(tokenizer, r.response_ids) for r in rollouts]
    scores = torch.tensor(list(score(asked, texts)), dtype=torch.float64).view(-1, n)
    found = []
    for place, prompt in enumerate(prompts):
        order = scores[place].argsort(descending=True, stable=True).tolist()
        own = texts[place * n : (place + 1) * n]
        found.append(Ranked(prompt, [own[i] for i in order], scores[place][order].tolist()))
    return found
