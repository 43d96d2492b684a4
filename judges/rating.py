"""A judge that rates responses one by one, for training on its scores (direct RLAIF): the same
engines, words and readings as for its verdicts in mode "score"."""

from collections.abc import Iterator, Sequence

from judges.engines import engine_of, model_place
from judges.ml.asking import BudgetSpent, Engine, EngineStopped
from judges.ml.budget import Budget
from judges.ml.config import JudgeRecipe, ModelUnusable, recipe_from
from judges.ml.modes import judge
from judges.ml.questions import Lone
from judges.models import JudgeVersion
from judges.runs import BudgetUnknown, check_budget
from labeling.models import Messages
from labeling.scoring import CannotRate, OwnModel, Rating

NOT_SAID = "Its answer was no score."
LETTERS_OF_A_TOKEN = 4
""""About", of English words in the vocabulary of a large model."""


class Rater:
    """A judge version, ready to rate. Implements `labeling.scoring.Rates`."""

    def __init__(self, engine: Engine, recipe: JudgeRecipe, budget: Budget, name: str) -> None:
        self._engine, self._recipe, self._budget, self._name = engine, recipe, budget, name

    @property
    def spent_tokens(self) -> int:
        return self._budget.spent_tokens

    @property
    def spent_cost(self) -> float:
        return self._budget.spent_cost

    def __call__(
        self, asked: Sequence[tuple[Messages, Messages]]
    ) -> Iterator[list[tuple[int, Rating]]]:
        lone = [Lone(prompt, response) for prompt, response in asked]
        try:
            for batch in judge(self._engine, self._recipe, lone):
                yield [
                    (
                        place,
                        Rating(outcome.score_a)
                        if outcome.parsed
                        else Rating(None, outcome.problem or NOT_SAID),
                    )
                    for place, outcome in batch
                ]
        except BudgetSpent:
            raise CannotRate(
                f"What the judge {self._name} may be asked for is spent: {self.spent_tokens:,} "
                f"tokens, cost {self.spent_cost:.2f}."
            ) from None
        except EngineStopped as stopped:
            raise CannotRate(f"The judge {self._name} cannot be asked: {stopped}") from None


def open_to_rate(
    version: JudgeVersion,
    *,
    most_tokens: int | None,
    most_cost: float | None,
    spent_tokens: int,
    spent_cost: float,
) -> Rater:
    """See `labeling.scoring.open_rater`."""
    recipe = recipe_from(version.recipe)
    if recipe.mode != "score":
        raise CannotRate(f"The judge {version} holds two responses against each other.")
    budget = Budget(most_tokens, most_cost, spent_tokens=spent_tokens, spent_cost=spent_cost)
    try:
        check_budget(version, most_tokens, most_cost)
        engine = engine_of(version, recipe, budget=budget)
    except (ModelUnusable, BudgetUnknown, EngineStopped) as problem:
        raise CannotRate(f"The judge {version} cannot be asked: {problem}") from None
    return Rater(engine, recipe, budget, str(version))


def own_model(version: JudgeVersion) -> OwnModel | None:
    """See `labeling.scoring.own_model_of`."""
    if version.server_id is not None:
        return None
    recipe = recipe_from(version.recipe)
    lead = (recipe.score_preamble, *recipe.principles)
    words = (recipe.score_request, recipe.score_ending)
    return OwnModel(
        folder=model_place(version.judge.project, version.model),
        dtype=recipe.dtype,
        in_4_bits=recipe.load_in_4bit,
        context=recipe.max_context,
        lead=sum(map(len, lead)) // LETTERS_OF_A_TOKEN,
        words=sum(map(len, words)) // LETTERS_OF_A_TOKEN,
    )
