"""The recipe of Quiet-STaR."""

import math
from dataclasses import dataclass

from training.ml.settings import Shared, explained, gettext_noop


@dataclass(frozen=True, kw_only=True)
class QuietStarRecipe(Shared):
    """Everything that decides a run of Quiet-STaR: raw text, and a thought after every token of it
    (Zelikman et al. 2024, arXiv:2403.09629). Experimental, for small models and short texts."""

    base_model: str
    """Where the policy starts."""
    text: str
    """Name of a .txt or .jsonl file."""
    test_share: float = 0.1
    """Share of the texts kept for measuring."""
    thought_length: int = explained(
        4, gettext_noop("Tokens of a thought, its two marks not counted: each costs a whole text.")
    )
    n_thoughts: int = explained(
        2, gettext_noop("Thoughts drawn after each token; a thought is held against their mean.")
    )
    true_tokens: int = explained(
        2, gettext_noop("Tokens of the text that a thought has to make likelier.")
    )
    policy_weight: float = explained(
        1.0,
        gettext_noop(
            "Weight of REINFORCE in the loss: 0 learns to use thoughts, not what to think."
        ),
    )
    plain_weight: float = explained(
        1.0,
        gettext_noop(
            "Weight of the loss without thoughts, which keeps the model good with thoughts off."
        ),
    )
    only_helpful: bool = explained(
        True, gettext_noop("Learn from thoughts better than the mean alone, which is steadier.")
    )
    start_like: str = explained(
        "---", gettext_noop("Words that the mark before a thought starts out as.")
    )
    end_like: str = explained(
        "---", gettext_noop("Words that the mark behind a thought starts out as.")
    )
    mark_speed: float = explained(
        10.0, gettext_noop("How many times faster the two marks are learned than other weights.")
    )
    first_mixing: float = explained(
        0.1, gettext_noop("Mixing weight of a thought before anything is learned.")
    )
    learning_rate: float = explained(
        1e-4, gettext_noop("Highest step size, reached after the warm-up.")
    )
    epochs: float = explained(1.0, gettext_noop("Passes over the texts."))
    batch_size: int = explained(
        8, gettext_noop("Pieces of text held in memory at once, each with all its thoughts.")
    )
    max_length: int = explained(
        128,
        gettext_noop(
            "Texts of more tokens, or beyond the model's context, become several pieces; nothing "
            "of them is lost."
        ),
    )
    eval_every: int = explained(
        0, gettext_noop("Steps between measurements on test texts; 0: ten in a run.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_share < 1:
            raise ValueError("test_share must lie between 0 and 1")
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token is told from another")
        for name, least, most in (
            ("thought_length", 1, 64),
            ("n_thoughts", 2, 16),
            ("true_tokens", 1, 64),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie between {least} and {most}")
        for name in ("policy_weight", "plain_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")
        if not 0 < self.mark_speed < math.inf:
            raise ValueError("mark_speed must be above 0")
        if not 0 < self.first_mixing < 1:
            raise ValueError("first_mixing must lie between 0 and 1")
        for name in ("start_like", "end_like"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name some words")

    @property
    def blocks(self) -> int:
        """Places of a column: its token, the thought between its marks, true tokens behind it."""
        return self.thought_length + 2 + self.true_tokens
