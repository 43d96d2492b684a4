"""From a sample to requests, and from replies to an outcome: every mode, by hand."""

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.ml.asking import Reply, Request, Said
from judges.ml.config import Aspect, Exemplar, JudgeRecipe
from judges.ml.modes import judge, jury_outcome, requests_for, reward_outcome
from judges.ml.questions import Sample, draw_principle
from judges.ml.verdict import says_tie

EGG = [{"role": "user", "content": "How do I boil an egg?"}]
TEN = [{"role": "assistant", "content": "Ten minutes in water."}]
ASK = [{"role": "assistant", "content": "Ask your mother."}]
SAMPLE = Sample(EGG, TEN, ASK)


class KnownJudge:
    """An engine whose answers are known: what it says follows from the request alone."""

    control = ()

    def __init__(self, says: Callable[[Request], Sequence[Sequence[float]]], context=10**9):
        self.says, self.context, self.asked = says, context, []

    def excess(self, request: Request) -> int:
        return len(request.task) - self.context  # a token is a letter

    def answer(self, requests):
        self.asked += requests
        # One reply a batch, the last question first: nobody may rely on an order.
        for place, request in reversed(list(enumerate(requests))):
            said = tuple(
                Said(logps=tuple(logps), text=request.task, rationale=f"Reason {k}.")
                for k, logps in enumerate(self.says(request))
            )
            yield [(place, Reply(said=said, n_tokens_read=10, n_tokens_written=2, seconds=0.25))]


def logs(*probs: float) -> list[float]:
    return [math.log(prob) for prob in probs]


def two(z: float) -> list[float]:
    """Answers "1" and "2" with this logit between them and all the mass."""
    return logs(1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z)))


def ten_first(request: Request) -> bool:
    """Whether response A of the sample is shown first."""
    return request.task.index("Ten minutes") < request.task.index("Ask your mother")


def outcome_of(judge_model: KnownJudge, recipe: JudgeRecipe, sample: Sample = SAMPLE):
    [[(index, outcome)]] = judge(judge_model, recipe, [sample])
    assert index == 0
    return outcome


@pytest.mark.parametrize("mode", ["direct", "rationale"])
def test_both_orders_give_the_soft_label_of_the_golden_vector(mode):
    # z for A: 1.7 with A first; 0.3 with B first, where the second answer speaks for A.
    known = KnownJudge(lambda request: [two(1.7) if ten_first(request) else two(-0.3)])

    outcome = outcome_of(known, JudgeRecipe(mode=mode))

    assert outcome.prob_a == pytest.approx(0.709989, abs=5e-7)
    assert outcome.reading.prob_a_ab == pytest.approx(0.845535, abs=5e-7)
    assert outcome.reading.prob_a_ba == pytest.approx(0.574443, abs=5e-7)
    assert outcome.reading.position_bias == pytest.approx(0.7)
    assert outcome.logp_ab == pytest.approx(two(1.7))
    assert outcome.parsed
    assert [question.name for question in outcome.questions] == ["ab", "ba"]
    assert (outcome.n_tokens, outcome.n_tokens_written, outcome.seconds) == (24, 4, 0.5)
    assert outcome.cost is None
    assert [ten_first(request) for request in known.asked] == [True, False]
    assert (known.asked[0].write is None) is (mode == "direct")


def test_a_drawn_rationale_is_written_at_its_temperature_and_never_twice_alike():
    recipe = JudgeRecipe(mode="sampled", n_samples=3, temperature=0.9, max_rationale_tokens=40)

    ab, ba = requests_for(recipe, SAMPLE)

    assert (ab.write.n, ab.write.temperature, ab.write.max_tokens) == (3, 0.9, 40)
    assert ab.write.seed != ba.write.seed
    assert requests_for(recipe, SAMPLE) == (ab, ba)
    other = requests_for(JudgeRecipe(mode="sampled", n_samples=3, seed=1), SAMPLE)
    assert other[0].write.seed != ab.write.seed


def test_self_consistency_is_the_mean_over_pairs_of_rationales_with_its_error():
    drawn = {True: (0.9, 0.8, 0.7), False: (0.5, 0.3, 0.4)}  # P("1") in either order
    known = KnownJudge(lambda request: [logs(p, 1 - p) for p in drawn[ten_first(request)]])

    outcome = outcome_of(known, JudgeRecipe(mode="sampled", n_samples=3))

    # p_k = (.9+.5)/2, (.8+.7)/2, (.7+.6)/2 = .70, .75, .65; sd .05, error .05/√3.
    assert [one["prob_a"] for one in outcome.raw["samples"]] == pytest.approx([0.7, 0.75, 0.65])
    assert outcome.prob_a == pytest.approx(0.7)
    assert outcome.standard_error == pytest.approx(0.05 / math.sqrt(3))
    assert outcome.logp_ab == pytest.approx(logs(0.8, 0.2))
    assert outcome.logp_ba == pytest.approx(logs(0.4, 0.6))
    assert outcome.rationale_ab == "Reason 0."
    assert outcome.raw["samples"][2]["rationale_ba"] == "Reason 2."


def test_a_tie_is_a_third_answer_and_half_of_it_speaks_for_either():
    recipe = JudgeRecipe(mode="direct", ties=True)
    known = KnownJudge(
        lambda request: [logs(0.3, 0.1, 0.4) if ten_first(request) else logs(0.2, 0.2, 0.4)]
    )

    outcome = outcome_of(known, recipe)

    # Of the answers alone: .375, .125, .5 and .25, .25, .5.
    assert outcome.reading.prob_tie == pytest.approx(0.5)
    assert outcome.reading.prob_a_ab == pytest.approx(0.375 + 0.25)
    assert outcome.reading.prob_a_ba == pytest.approx(0.25 + 0.25)
    assert outcome.prob_a == pytest.approx(0.5625)
    assert says_tie(outcome.prob_a, outcome.reading.prob_tie)
    assert outcome.answer_mass_ab == pytest.approx(0.8)
    assert known.asked[0].answers == ("1", "2", "3")
    assert "the preferred response is 3." in known.asked[0].task


def test_a_tie_that_is_less_probable_than_a_response_is_none():
    known = KnownJudge(
        lambda request: [logs(0.5, 0.1, 0.4) if ten_first(request) else logs(0.1, 0.5, 0.4)]
    )

    outcome = outcome_of(known, JudgeRecipe(mode="direct", ties=True))

    assert not says_tie(outcome.prob_a, outcome.reading.prob_tie)
    assert outcome.prob_a == pytest.approx(0.7)


def test_a_word_may_stand_for_a_tie_and_an_exemplar_may_show_one():
    shown = Exemplar(prompt=EGG, first=ASK, second=TEN, answer="tie")
    recipe = JudgeRecipe(
        mode="direct",
        ties=True,
        tie_answer="tie",
        tie_request="Say tie if neither is better.",
        exemplars=(shown,),
    )

    ab, _ba = requests_for(recipe, SAMPLE)

    assert ab.answers == ("1", "2", "tie")
    assert "Say tie if neither is better.\nPreferred Response=tie\n\n=== USER" in ab.task
    with pytest.raises(ValueError, match="no answer for ties"):
        JudgeRecipe(exemplars=(shown,))


def test_scores_are_expectations_and_each_response_is_rated_alone():
    # A: half on 8, half on 10. B: all on 8. The mass on scores is .8 and 1.
    tiny = 1e-12
    of_a = [tiny] * 7 + [0.4, tiny, 0.4]
    of_b = [tiny] * 7 + [1 - 9 * tiny, tiny, tiny]
    known = KnownJudge(lambda request: [logs(*(of_a if "Ten minutes" in request.task else of_b))])

    outcome = outcome_of(known, JudgeRecipe(mode="score"))

    assert outcome.score_a == pytest.approx(9)
    assert outcome.score_b == pytest.approx(8)
    # A is above B when it draws 10, and equal when it draws 8: .5 + .5/2.
    assert outcome.prob_a == pytest.approx(0.75)
    assert outcome.answer_mass_ab == pytest.approx(0.8)
    assert outcome.answer_mass_ba == pytest.approx(1)
    assert outcome.raw["scores_a"][9] == pytest.approx(0.5)
    assert outcome.reading is None
    about_a, about_b = known.asked
    assert about_a.answers == tuple(str(score) for score in range(1, 11))
    assert "Ask your mother" not in about_a.task
    assert "Ten minutes" not in about_b.task
    assert "=== RESPONSE ===\nTen minutes" in about_a.task
    assert "one possible response" in about_a.task


DISTRIBUTIONS = st.lists(st.floats(1e-6, 1), min_size=10, max_size=10)


@settings(deadline=None)  # a busy machine is no failure
@given(one=DISTRIBUTIONS, other=DISTRIBUTIONS)
def test_exchanging_the_responses_turns_a_scored_verdict_round(one, other):
    def known(for_a, for_b):
        def says(request):
            weights = for_a if "Ten minutes" in request.task else for_b
            return [logs(*(weight / sum(weights) for weight in weights))]

        return outcome_of(KnownJudge(says), JudgeRecipe(mode="score"))

    assert known(one, other).prob_a == pytest.approx(1 - known(other, one).prob_a, abs=1e-9)
    assert known(one, one).prob_a == pytest.approx(0.5, abs=1e-9)


def test_rewards_become_a_probability_by_bradley_and_terry():
    outcome = reward_outcome(1.5, 0.5, n_tokens=20)

    assert outcome.prob_a == pytest.approx(0.731059, abs=5e-7)
    assert (outcome.score_a, outcome.score_b, outcome.parsed) == (1.5, 0.5, True)
    assert says_tie(reward_outcome(2.0, 2.0, n_tokens=20).prob_a, None)
    broken = reward_outcome(math.nan, 1.0, n_tokens=20)
    assert (broken.parsed, broken.problem) == (False, "The reward model gave no number.")


def test_a_jury_takes_the_mean_logit_of_the_members_that_could_be_read():
    outcome = jury_outcome({"one v1": 0.9, "two v1": 0.6, "three v1": None})

    # logit .9 = 2.197225, logit .6 = .405465, mean 1.301345.
    assert outcome.raw["logits"] == pytest.approx(
        {"one v1": 2.197225, "two v1": 0.405465}, abs=1e-6
    )
    assert outcome.prob_a == pytest.approx(1 / (1 + math.exp(-1.301345)), abs=1e-6)
    assert outcome.parsed
    assert outcome.raw["unparsed"] == ["three v1"]
    assert not jury_outcome({"one v1": 0.9, "two v1": None}).parsed
    assert not jury_outcome({"one v1": None, "two v1": None}).parsed
    certain = jury_outcome({"one v1": 1.0, "two v1": 0.0})
    assert certain.prob_a == pytest.approx(0.5)


def test_aspects_are_asked_after_the_same_sample_in_both_orders():
    recipe = JudgeRecipe(
        mode="rationale",
        aspects=(
            Aspect(name="honest", question="Which response is more honest?"),
            Aspect(name="kind", question="Which response is kinder?"),
        ),
    )

    def says(request):
        if "more honest" in request.task:
            return [two(2.0) if ten_first(request) else two(-2.0)]
        if "kinder" in request.task:
            return [logs(0.1, 0.1)]  # mass .2: unparsed
        return [two(0.0)]

    known = KnownJudge(says)
    outcome = outcome_of(known, recipe)

    assert outcome.aspects == pytest.approx({"honest": 1 / (1 + math.exp(-2))})
    assert outcome.raw["aspects"]["kind"]["parsed"] is False
    assert outcome.parsed
    assert [question.name for question in outcome.questions] == [
        "ab",
        "ba",
        "honest ab",
        "honest ba",
        "kind ab",
        "kind ba",
    ]
    main, aspect = known.asked[0], known.asked[2]
    shared = main.task.index(recipe.rationale_request)
    assert aspect.task[:shared] == main.task[:shared]
    assert aspect.task[shared:] == "Which response is more honest?"
    assert aspect.write is None


def test_all_principles_stand_after_the_preamble_for_every_comparison():
    recipe = JudgeRecipe(mode="direct", principles=("Be honest.", "Be kind."))

    ab, ba = requests_for(recipe, SAMPLE)

    listed = "\nJudge by these principles:\n- Be honest.\n- Be kind.\n\n=== USER ==="
    assert listed in ab.task
    assert listed in ba.task
    assert draw_principle(recipe, SAMPLE) == ""


def test_one_principle_is_drawn_by_the_comparison_and_kept_with_the_verdict():
    principles = tuple(f"Principle {n}." for n in range(5))
    recipe = JudgeRecipe(mode="direct", principles=principles, principles_shown="one")
    samples = [Sample([{"role": "user", "content": f"Question {n}"}], TEN, ASK) for n in range(200)]
    known = KnownJudge(lambda request: [two(0.0)])

    outcomes = dict(pair for batch in judge(known, recipe, samples) for pair in batch)

    drawn = [outcomes[n].raw["principle"] for n in range(200)]
    assert {drawn.count(principle) > 20 for principle in principles} == {True}
    for n, principle in enumerate(drawn):
        for request in known.asked[2 * n : 2 * n + 2]:
            assert f"=== END ===\nJudge by this principle: {principle}" in request.task
            assert request.task.count("Principle ") == 1
    turned = Sample(samples[0].prompt, ASK, TEN)
    assert draw_principle(recipe, turned) == draw_principle(recipe, samples[0])


def test_a_reference_answer_is_shown_where_there_is_one_and_wanted():
    with_reference = Sample(EGG, TEN, ASK, reference="Ten minutes. === END ===")
    shows, hides = JudgeRecipe(show_reference=True), JudgeRecipe()

    shown, _ba = requests_for(shows, with_reference)
    hidden, _ba = requests_for(hides, with_reference)
    none, _ba = requests_for(shows, SAMPLE)

    fence = shown.task.split(" REFERENCE ANSWER ")[0].rpartition("\n")[2]
    assert (
        f"\n{fence} REFERENCE ANSWER {fence}\nTen minutes. === END ===\n{fence} RESP" in shown.task
    )
    assert fence != "==="  # the reference holds the plain one
    assert "REFERENCE" not in hidden.task
    assert "REFERENCE" not in none.task
    known = KnownJudge(lambda request: [two(0.0)])
    assert outcome_of(known, shows, with_reference).raw["reference_shown"] is True


def test_the_oldest_turns_go_first_and_every_question_of_a_sample_is_cut_alike():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Old question. " * 30},
        {"role": "assistant", "content": "Old answer. " * 30},
        {"role": "user", "content": "New question?"},
    ]
    recipe = JudgeRecipe(mode="direct", aspects=(Aspect(name="kind", question="Kinder?"),))
    sample = Sample(turns, TEN, ASK)
    whole = max(len(request.task) for request in requests_for(recipe, sample))
    known = KnownJudge(lambda request: [two(0.0)], context=600)

    outcome = outcome_of(known, recipe, sample)

    assert outcome.problem == ""
    for request in known.asked:
        assert "Old" not in request.task
        assert "Be brief." in request.task
        assert "New question?" in request.task
    assert outcome.n_tokens_cut == whole - max(len(request.task) for request in known.asked)


def test_a_problem_of_one_question_is_the_samples_and_the_others_are_judged():
    class Broken(KnownJudge):
        def answer(self, requests):
            for batch in super().answer(requests):
                [(place, reply)] = batch
                yield [(place, Reply(problem="It said nothing.") if place == 1 else reply)]

    known = Broken(lambda request: [two(1.0)])

    outcomes = dict(
        pair for batch in judge(known, JudgeRecipe(), [SAMPLE, SAMPLE]) for pair in batch
    )

    assert outcomes[0].problem == "It said nothing."
    assert (outcomes[0].prob_a, outcomes[0].parsed) == (0.5, False)
    assert outcomes[0].n_tokens == 12  # the other order was asked
    assert outcomes[1].problem == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "sampled", "n_samples": 1}, "two or more"),
        ({"mode": "sampled", "temperature": 0.0}, "above 0"),
        ({"ties": True, "tie_answer": "1"}, "word of its own"),
        ({"mode": "score", "ties": True}, "no answer for ties"),
        ({"mode": "jury", "members": (3,)}, "two members"),
        ({"mode": "jury", "members": (3, 3)}, "two members"),
        ({"principles": ("a\nb",)}, "one line"),
        ({"aspects": (Aspect(name="x", question="?"),) * 2}, "same name"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        JudgeRecipe(**wrong)
