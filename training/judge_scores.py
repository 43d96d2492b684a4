"""A judge of the project as what scores the responses of PPO and its kin (direct RLAIF).

What the judge has said is kept in the run's folder as it comes: a run that goes on from an earlier
checkpoint takes the steps since then again, with the same numbers, and no question is asked or paid
for twice.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from labeling.models import Messages, Rater, content_hash
from labeling.scoring import HIGHEST, LOWEST, CannotRate, Rates, Rating, open_rater
from labeling.storage import storage_path
from training.ml.ppo_config import PPORecipe
from training.models import Run

KEPT = "judge-scores.jsonl"
"""In a run's folder: what the judge said, a line for each batch."""
MOST_UNREAD = 0.5
"""Of the responses of one step. Beyond, the judge does not know what it is asked."""


class JudgeScores:
    """A RewardFunction of training/ml/ppo_scores.py: prompts and responses to numbers from −1 to 1.

    A response whose rating cannot be read has −1, as the worst has: a policy must not gain by what
    confuses its judge. They are counted.
    """

    def __init__(self, run: Run, recipe: PPORecipe, say: Callable[[str], None]) -> None:
        """Args: say: writes a line into the run's log."""
        if run.judge is None:
            raise CannotRate(f"The judge {recipe.judge} is gone: it was deleted.")
        self.judge: Rater = run.judge
        self.recipe, self.say = recipe, say
        self.file = storage_path(run.folder) / KEPT
        self.known: dict[str, float | None] = {}
        self.tokens, self.cost = 0, 0.0
        self.rates: Rates | None = None
        self._read()

    def _read(self) -> None:
        """What was said before the run was stopped. A line that broke off is not there."""
        if not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines(True)
        whole = [line for line in lines if line.endswith("\n")]
        self.file.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            row = json.loads(line)
            self.known |= row["scores"]
            self.tokens, self.cost = row["tokens"], row["cost"]

    def __call__(self, prompts: Sequence[Messages], texts: Sequence[str]) -> list[float]:
        """Raises: CannotRate where the judge cannot be asked, or is not understood."""
        talks = [
            (prompt, [{"role": "assistant", "content": text}])
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        keys = [content_hash(*talk) for talk in talks]
        new = {key: talk for key, talk in zip(keys, talks, strict=True) if key not in self.known}
        if new:
            self._ask(new)
        middle, half = (HIGHEST + LOWEST) / 2, (HIGHEST - LOWEST) / 2
        values = [self.known[key] for key in keys]
        return [-1.0 if value is None else (value - middle) / half for value in values]

    def _ask(self, new: dict[str, tuple[Messages, Messages]]) -> None:
        if self.rates is None:
            self.rates = open_rater(
                self.judge,
                most_tokens=self.recipe.judge_tokens or None,
                most_cost=self.recipe.judge_cost or None,
                spent_tokens=self.tokens,
                spent_cost=self.cost,
            )
        keys = list(new)
        unread: list[str] = []
        with self.file.open("a", encoding="utf-8") as out:
            for batch in self.rates([new[key] for key in keys]):
                scores = {keys[place]: rating.value for place, rating in batch}
                unread += [_why(rating) for _place, rating in batch if rating.value is None]
                self.known |= scores
                self.tokens, self.cost = self.rates.spent_tokens, self.rates.spent_cost
                row = {"scores": scores, "tokens": self.tokens, "cost": self.cost}
                out.write(json.dumps(row) + "\n")
                out.flush()
        if len(unread) > MOST_UNREAD * len(new):
            raise CannotRate(
                f"The judge {self.judge} gave no score that can be read to {len(unread)} of "
                f"{len(new)} responses: {unread[0]} Try it on a comparison of the project first."
            )
        if unread:
            self.say(
                f"The judge gave no score that can be read to {len(unread)} of {len(new)} "
                f"responses; they count as the worst: {unread[0]}"
            )

    def figures(self) -> dict[str, Any]:
        """What the run's metrics keep: name, responses that were rated, how many could not be read,
        and what a server was paid for."""
        return {
            "name": str(self.judge),
            "n": len(self.known),
            "unread": sum(value is None for value in self.known.values()),
            "tokens": self.tokens,
            "cost": self.cost,
        }


def _why(rating: Rating) -> str:
    return rating.problem or "no reason was given."
