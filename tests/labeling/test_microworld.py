"""The micro-world's language, its utility, its raters, and what can be achieved at best."""

import math
import random
from collections import Counter

import pytest

from labeling import microworld
from labeling.microworld import (
    BRIEF,
    RATERS,
    WHY,
    SimulatedRater,
    best_accuracy,
    majority,
    majority_probabilities,
    prompts,
    read_response,
    sample_prompts,
    sample_reaction,
    sample_response,
    utility,
    vote,
    votes,
)

QUESTION = "Which is larger, a lake or a pond?"
RIGHT = "A lake is larger."
WRONG = "A pond is larger."
REASON = "It holds far more water."


def test_every_prompt_is_different_and_has_one_right_answer():
    texts = prompts()

    assert len(set(texts)) == len(texts) == 30 * 4 * 9
    for text in texts:
        fact, brief, why = microworld._asked(text)
        assert utility(text, fact.right[0]) == 3
        assert (brief, why) == (BRIEF in text, WHY in text)


def test_no_sentence_of_the_world_has_two_meanings():
    groups = [
        *(fact.right for fact in microworld.FACTS),
        *(fact.wrong for fact in microworld.FACTS),
        tuple(fact.reason for fact in microworld.FACTS),
        microworld.KIND_OPENINGS,
        microworld.KIND_CLOSINGS,
        microworld.RUDE,
        microworld.FILLERS,
        microworld.UNSURE,
    ]
    sentences = [sentence for group in groups for sentence in group]

    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (RIGHT, WRONG),
        (RIGHT, "I do not know."),
        ("I do not know.", WRONG),
        (WRONG, "Snow is white."),
        (f"Good question! {RIGHT}", RIGHT),
        (RIGHT, f"What a silly question. {RIGHT}"),
        (RIGHT, f"{RIGHT} It is what it is, and so it will be."),
        (f"{RIGHT} {REASON}", RIGHT),
        (f"{RIGHT} {REASON}", f"{RIGHT} The green fades when it is sweet."),
        (RIGHT, f"{RIGHT} {RIGHT}"),
        (RIGHT, "A lake is larger"),
        (RIGHT, f"{RIGHT} {WRONG}"),
        (WRONG, "qwfp zxcv. 7 7 7"),
    ],
)
def test_the_better_response_has_the_higher_utility(better, worse):
    assert utility(QUESTION, better) > utility(QUESTION, worse)


def test_what_a_reason_is_worth_depends_on_what_was_asked_for():
    def worth(request):
        prompt = f"{QUESTION} {request}".strip()
        return utility(prompt, f"{RIGHT} {REASON}") - utility(prompt, RIGHT)

    assert (worth(WHY), worth(""), worth(BRIEF)) == (2, 1, -1)


def test_the_same_answer_is_right_to_one_question_and_wrong_to_another():
    assert read_response("What colour is snow?", "Snow is white.").answer == "right"
    assert read_response("What colour is coal?", "Snow is white.").answer == "off"


@pytest.mark.parametrize(
    "text", ["", " ", "...", "\n\n", "a" * 5000, "<|end|>", "1. 2. 3. 4. 5. 6."]
)
def test_the_utility_of_any_text_is_defined_and_garbage_is_worth_little(text):
    assert microworld.LOWEST <= utility(QUESTION, text) <= -3


def test_a_prompt_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match="no question of the micro-world"):
        utility("What is the capital of France?", RIGHT)


def test_the_world_writes_responses_that_it_can_read():
    rng = random.Random(0)
    readings = [
        read_response(prompt, sample_response(prompt, rng)) for prompt in sample_prompts(1000, rng)
    ]
    answers = Counter(reading.answer for reading in readings)

    assert not any(reading.unfinished for reading in readings)
    assert answers.most_common(1)[0][0] == "right"
    assert 0.35 < answers["right"] / 1000 < 0.6
    assert min(answers["wrong"], answers["unsure"]) > 80
    assert answers["off"] < 40


def test_reactions_name_what_there_is_to_see():
    rng = random.Random(0)
    heard = {sample_reaction(QUESTION, f"{RIGHT} Even a child knows that.", rng) for _ in range(50)}

    assert heard == {"Right! How rude.", "How rude. Right!", "Right!"}


def test_equal_seeds_give_equal_worlds():
    def world(seed):
        rng = random.Random(seed)
        prompt = sample_prompts(5, rng)[0]
        return prompt, sample_response(prompt, rng), votes(1.0, rng)

    assert world(3) == world(3)
    assert world(3) != world(4)


def test_a_rater_votes_as_often_as_its_probabilities_say():
    rater = SimulatedRater("r", temperature=1.0, side_bias=0.5, ties=0.2, careless=0.1)
    first, second, tie = rater.probabilities(0.7)
    z = 0.7 + 0.5
    total = math.exp(z / 2) + math.exp(-z / 2) + 0.2
    assert tie == pytest.approx(0.9 * 0.2 / total)
    assert first + second + tie == pytest.approx(1)

    rng = random.Random(1)
    n = 20_000
    cast = [vote(rater, 0.7, rng) for _ in range(n)]
    a_first = [v.choice for v in cast if v.shown_first == "a"]
    assert abs(len(a_first) / n - 0.5) < 0.015
    assert abs(a_first.count("a") / len(a_first) - first) < 0.015
    share_a = sum(v.choice == "a" for v in cast) / n
    assert abs(share_a - rater.choice_probabilities(0.7)[0]) < 0.015


def test_a_side_bias_shows_between_equals_and_cancels_when_sides_are_shuffled():
    rater = SimulatedRater("r", temperature=1.0, side_bias=0.8)
    first, second, _tie = rater.probabilities(0.0)

    assert math.log(first / second) == pytest.approx(0.8)
    a, b, _tie = rater.choice_probabilities(0.0)
    assert a == pytest.approx(b)


def test_more_distance_makes_a_vote_surer():
    shares = [RATERS[0].choice_probabilities(d)[0] for d in (-4, -1, 0, 1, 4)]

    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 - shares[-1] - RATERS[0].choice_probabilities(4)[2])


@pytest.mark.parametrize(
    ("choices", "expected"),
    [("aab", "a"), ("bba", "b"), (["a", "b", "tie"], "tie"), (["tie", "tie", "a"], "tie")],
)
def test_a_majority_needs_more_votes_than_every_other_choice(choices, expected):
    assert majority(list(choices)) == expected


def test_the_best_accuracy_is_what_knowing_the_utility_comes_to_in_simulation():
    rng = random.Random(2)
    kept, right = [], 0.0
    for _ in range(20_000):
        difference = rng.choice([-3, -2, -1, 0, 1, 2, 3])
        label = majority([v.choice for v in votes(difference, rng)])
        if label == "tie":
            continue
        kept.append(difference)
        right += 0.5 if difference == 0 else (label == "a") == (difference > 0)

    assert best_accuracy(kept) == pytest.approx(right / len(kept), abs=0.01)
    assert 0.8 < best_accuracy(kept) < 0.95


def test_one_vote_without_noise_by_hand():
    rater = SimulatedRater("r", temperature=1.0)

    a, b, tie = majority_probabilities(1.0, raters=[rater], n=1)

    assert (a, b, tie) == (pytest.approx(0.7310586), pytest.approx(0.2689414), 0)
    assert best_accuracy([1.0, -1.0], raters=[rater], n=1) == pytest.approx(0.7310586)
    assert best_accuracy([0.0]) == pytest.approx(0.5)


def test_the_expected_agreement_comes_from_voting_anew():
    def agreeing(comparisons):
        pairs = [list(by_rater.values()) for by_rater in comparisons]
        return sum(x == y for x, y in pairs) / len(pairs)

    sure = SimulatedRater("s", temperature=0.1), SimulatedRater("t", temperature=0.1)
    mean, low, high = microworld.expected_alpha([2.0] * 50, agreeing, raters=sure, n=2)
    assert (mean, low, high) == (1.0, 1.0, 1.0)

    mean, low, high = microworld.expected_alpha([0.0] * 200, agreeing, raters=sure, n=2)
    assert low <= mean <= high
    assert mean == pytest.approx(0.5, abs=0.05)
