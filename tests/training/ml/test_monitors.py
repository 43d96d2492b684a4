import pytest

from training.ml.monitors import (
    Look,
    Watch,
    alarms,
    careful,
    end_figures,
    repeated,
    take_look,
    values_of,
)
from training.ml.ppo_config import FALLS, REPEATS, TOO_FAR, UNCONFIRMED, PPORecipe

N = 40
WATCHED = PPORecipe(base_model="", reward_models="a", holdout_reward_model="b")


def look(step: int, score: float, holdout: float | None = None, kl: float = 1.0, **others) -> Look:
    """A look at N prompts whose numbers spread by a little, and as much in every look."""
    numbers = {"score": score, "kl": kl, "length": 10.0, "finished": 1.0, "entropy": 1.0}
    numbers |= {"repeated": 0.0, "lists": 0.0, "bold": 0.0, "rarest": -3.0}
    numbers |= others
    if holdout is not None:
        numbers["holdout"] = holdout
    spread = {"score", "holdout"} & numbers.keys()
    return Look(
        step,
        [f"text {step}, {i}" for i in range(N)],
        {
            name: [value + (0.2 * (-1) ** (i // 2) if name in spread else 0.0) for i in range(N)]
            for name, value in numbers.items()
        },
    )


def kinds(found) -> list[str]:
    return [alarm.kind for alarm in found]


def seen(recipe: PPORecipe, *looks: Look) -> list[Look]:
    watch = Watch(recipe)
    for one in looks:
        watch.see(one)
    return list(looks)


def test_the_hold_out_falling_while_the_score_rises_is_an_alarm_at_the_second_look_in_a_row():
    watch = Watch(WATCHED)
    assert watch.see(look(0, 0, 0)) == []
    assert watch.see(look(2, 1, 1)) == []
    assert watch.see(look(4, 1.5, 0.9)) == []
    found = watch.see(look(6, 1.6, 0.85))

    assert kinds(found) == [FALLS]
    assert found[0].stops
    assert "since step 2" in found[0].words
    assert watch.best.step == 2
    prompts = [[{"role": "user", "content": str(i)}] for i in range(N)]
    pairs = watch.pairs(prompts)
    assert len(pairs) == len({pair["prompt"][0]["content"] for pair in pairs}) == 20
    assert all(pair["old"].startswith("text 2,") for pair in pairs)
    assert all(pair["new"].startswith("text 6,") for pair in pairs)


@pytest.mark.parametrize(
    "later",
    [
        [(2, 1), (3, 1.5)],  # both rise
        [(0.5, 0.4), (0.4, 0.3)],  # both fall
        [(1.5, 0.9), (2.2, 1.3)],  # it fell once
    ],
)
def test_other_courses_of_score_and_hold_out_are_none(later):
    watch = Watch(WATCHED)
    watch.see(look(0, 0, 0))
    watch.see(look(1, 1, 1))
    found = [watch.see(look(2 + i, *both)) for i, both in enumerate(later)]
    assert found == [[], []]


def test_a_hold_out_that_confirms_less_than_half_of_the_gain_is_an_alarm():
    """At once where that is clear, else at the second look in a row."""
    watch = Watch(WATCHED)
    courses = [(0, 0, 0, 0), (1, 1, 0.55, 0)]
    courses += [(2, 2, 0.9, 0.28), (3, 2.1, 1.2, 0), (4, 3, 1.4, 0), (5, 3, 1.6, 0)]
    courses += [(6, 3.4, 1.6, 0.28), (7, 3.5, 1.65, 0.28)]
    found = []
    for step, score, holdout, noise in courses:
        one = look(step, score, holdout)
        one.numbers["holdout"] = [
            value + noise * (-1) ** i for i, value in enumerate(one.numbers["holdout"])
        ]
        found.append(kinds(watch.see(one)))
    assert found == [[], [], [], [], [UNCONFIRMED], [], [], [UNCONFIRMED]]
    assert watch.best.step == 7  # the hold-out is highest there all the same


def test_kl_over_its_budget_and_repetition_stop_and_a_change_of_habits_is_told():
    budget = PPORecipe(base_model="", kl_budget=5.0)
    start, far, near, other = seen(
        budget,
        look(0, 0),
        look(1, 1, kl=5.1),
        look(1, 1, kl=4.9, length=10.5),
        look(1, 1, repeated=0.3, lists=0.5, finished=0.4),
    )
    assert kinds(alarms(budget, far, start, start)) == [TOO_FAR]
    assert alarms(budget, near, start, start) == []
    found = alarms(budget, other, start, start)
    assert [(alarm.kind, alarm.stops) for alarm in found] == [
        (REPEATS, True), ("endless", False), ("lists", False),
    ]  # fmt: skip


def test_of_a_response_in_unknown_language_only_the_worst_is_believed():
    start = look(0, 0)
    start.numbers["score"] = [float(i) for i in range(N)]
    start.numbers["rarest"] = [-float(i) for i in range(N)]
    # A twentieth of the start's: the two least likely ones lie below the quantile, -37.05.
    now = look(1, 50)
    now.numbers["score"] = [50.0, 50.0, 1.0, 50.0] * (N // 4)
    now.numbers["rarest"] = [-37.0, -38.0, -90.0, 0.0] * (N // 4)

    found, unknown = careful(now, start, 0.05)
    assert found[:4] == pytest.approx([50, 1.95, 1, 50])
    assert unknown[:4] == [0, 1, 1, 0]
    assert sum(careful(start, start, 0.05)[1]) == 2
    assert careful(now, start, 0) == (now.numbers["score"], [0.0] * N)


def test_a_hold_out_that_is_fooled_by_unknown_language_is_not_believed():
    """Score and hold-out rise for ever; from the third look on, more and more responses hold a
    token that the start would hardly have written."""
    watch = Watch(WATCHED)
    found = []
    for step, n_unknown in enumerate((0, 0, 0, 12, 24, 36)):
        one = look(step, step, step)
        one.numbers["rarest"] = [-30.0] * n_unknown + [-3.0] * (N - n_unknown)
        found.append(kinds(watch.see(one)))
    assert found == [[], [], [], [], [], [FALLS, UNCONFIRMED]]
    assert watch.best.step == 3  # 28 of 40 believed at 3 are better than all at 2

    for trusting in (
        Watch(PPORecipe(base_model="", doubt=0.0, holdout_reward_model="b")),
        Watch(PPORecipe(base_model="")),  # a function's scores
    ):
        for step in range(4):
            assert trusting.see(look(step, step, rarest=-3.0 - step)) == []
        assert trusting.best.step == 3


def test_a_hold_out_confirms_no_more_than_can_be_believed_of_it():
    """It rises as the score does, and so does the careful score, but by a quarter of that alone."""
    watch = Watch(WATCHED)
    found = []
    for step, score, n_unknown in ((0, 0, 0), (1, 1, 0), (2, 5, 30)):
        one = look(step, score, score)
        one.numbers["rarest"] = [-30.0] * n_unknown + [-3.0] * (N - n_unknown)
        found.append(watch.see(one))
    assert [kinds(alarms) for alarms in found] == [[], [], [UNCONFIRMED]]
    assert "the hold-out by 5.00, of which 1.09 can be believed" in found[-1][0].words
    assert watch.best.step == 2


def test_without_a_hold_out_the_best_look_is_the_highest_careful_score_without_an_alarm():
    watch = Watch(PPORecipe(base_model="", kl_budget=5.0))
    for step, kl in ((0, 0.0), (1, 3.0), (2, 6.0)):
        found = watch.see(look(step, step, kl=kl))
    assert kinds(found) == [TOO_FAR]
    assert watch.best.step == 1
    figures = end_figures(watch)
    assert figures["kept_step"] == 1
    assert figures["gain"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": N}
    assert figures["win"]["value"] == 1.0
    watch.known.append(TOO_FAR)
    assert watch.see(look(3, 3, kl=7.0)) == []


def test_a_watch_that_was_kept_decides_as_the_one_that_went_on():
    first = Watch(WATCHED)
    for args in ((0, 0, 0), (2, 1, 1), (4, 2, 0.8)):
        first.see(look(*args))
    second = Watch(WATCHED)
    second.restore(first.as_json())

    assert kinds(second.see(look(6, 3, 0.5))) == kinds(first.see(look(6, 3, 0.5)))
    assert second.as_json() == first.as_json()


def test_what_is_seen_of_responses_without_a_model():
    assert repeated([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 3)
    assert repeated([1, 2, 3, 4, 5]) == 0
    assert repeated([7, 7, 7]) == 0
    texts = ["Fine.\n- one\n- two", "Quite **sure**.", "2 * 3 ** 4", "1. first"]
    numbers = {"score": [1, 2, 3, 4], "rarest": [0, 0, 0, 0]}
    found = take_look(0, texts, [[1], [2], [3], [4]], numbers)
    Watch(PPORecipe(base_model="", doubt=0.0)).see(found)
    assert found.numbers["lists"] == [1, 0, 0, 1]
    assert found.numbers["bold"] == [0, 1, 0, 0]
    values = values_of(found, found)
    assert (values["score"], values["win"]) == (2.5, 0.5)
    assert "score_low" not in values  # of four prompts nothing is resampled
