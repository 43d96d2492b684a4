"""Asking a server over HTTP: its answers, its failures, and what it may cost."""

import math
import time
from collections import deque
from email.utils import formatdate

import pytest

from judges.ml.asking import BudgetSpent, EngineStopped, Request, Writing
from judges.ml.budget import Budget
from judges.ml.config import JudgeRecipe
from judges.ml.modes import judge
from judges.ml.questions import Sample
from judges.ml.sending import Server
from judges.ml.server import ServerEngine, list_models
from tests.judges.loopback import (
    Behaviour,
    drips,
    hangs_up,
    promises_more,
    says,
    serving,
    sleeps,
    status,
)

QUICK = {"first_wait": 0.01, "longest_wait": 0.05, "timeout_seconds": 5.0}
DIRECT = Request(task="Which is better?", ending="Preferred Response=", answers=("1", "2"))
WRITES = Request(
    task="Which is better?",
    lead="Rationale:",
    ending="\nPreferred Response=",
    answers=("1", "2"),
    write=Writing(max_tokens=8, stops=("Preferred Response=",)),
)


def engine_for(behaviour: Behaviour, budget: Budget | None = None, **settings) -> ServerEngine:
    server = Server(url=behaviour.url, model="tiny", name="Home", **(QUICK | settings))
    return ServerEngine(server, budget=budget)


def questions(n: int) -> list[Request]:
    return [Request(task=f"Question {place}", ending="=", answers=("1", "2")) for place in range(n)]


def replies(engine: ServerEngine, requests: list[Request]) -> dict:
    return dict(pair for batch in engine.answer(requests) for pair in batch)


# --- answers ---------------------------------------------------------------------------------


def test_an_answers_probability_is_that_of_all_its_spellings():
    with serving(probs={"1": 0.5, " 1": 0.2, "2": 0.1, "10": 0.1}) as server:
        [said] = replies(engine_for(server), [DIRECT])[0].said

    assert said.logps == pytest.approx((math.log(0.7), math.log(0.1)))
    assert said.measured_by == "logprobs"
    assert said.n_bounded == 0
    assert said.text == "Which is better?\nPreferred Response="


def test_a_rationale_is_written_first_and_the_answer_read_after_it():
    with serving() as server:
        reply = replies(engine_for(server), [WRITES])[0]

    first, second = server.asked
    assert first["prompt"] == "Which is better?\nRationale:"
    assert (first["max_tokens"], first["temperature"]) == (8, 0.0)
    assert first["stop"] == ["Preferred Response="]
    assert second["prompt"] == (
        "Which is better?\nRationale: The first one is clear.\nPreferred Response="
    )
    assert reply.said[0].text == second["prompt"]
    assert reply.said[0].rationale == "The first one is clear."
    assert reply.n_tokens_read + reply.n_tokens_written == server.n_tokens


def test_several_texts_are_drawn_each_with_a_seed_of_its_own():
    write = Writing(max_tokens=8, n=3, temperature=0.7, seed=5)
    request = Request(task="t", lead="l", ending="=", answers=("1", "2"), write=write)
    with serving() as server:
        reply = replies(engine_for(server), [request])[0]

    assert len(reply.said) == 3
    assert [one["seed"] for one in server.asked if "seed" in one] == [5, 6, 7]


def test_an_answer_that_is_not_named_is_held_back_by_what_is():
    """Of 20 tokens at most, "2" is none: it gets what the named ones leave, not more."""
    with serving(probs={"1": 0.9, "The": 0.07}) as server:
        engine = engine_for(server)
        [said] = replies(engine, [DIRECT])[0].said

    assert said.logps == pytest.approx((math.log(0.9), math.log(0.03)))
    assert said.n_bounded == 1
    assert engine.counts["bounded"] == 1


def test_no_answer_has_anything_where_none_is_named():
    with serving(probs={"The": 0.5, "I": 0.4}) as server:
        [said] = replies(engine_for(server), [DIRECT])[0].said

    assert said.logps == (-1e4, -1e4)
    assert said.n_bounded == 2


def test_an_answer_of_two_tokens_is_followed():
    """P("10") is P("1") times P("0" after it), and "1" alone is what remains."""
    scores = tuple(str(score) for score in range(1, 11))
    request = Request(task="Rate it.", ending="Score: ", answers=scores)
    with serving(probs={"1": 0.5, "0": 0.25, "2": 0.2}) as server:
        [said] = replies(engine_for(server), [request])[0].said

    prob = [math.exp(logp) for logp in said.logps]
    assert prob[9] == pytest.approx(0.5 * 0.25)
    assert prob[0] == pytest.approx(0.5 * 0.75)
    assert prob[1] == pytest.approx(0.2)
    assert sorted(server.texts) == ["Rate it.\nScore: ", "Rate it.\nScore: 1"]


def test_ten_as_one_token_is_read_at_once():
    scores = tuple(str(score) for score in range(1, 11))
    request = Request(task="Rate it.", ending="Score: ", answers=scores)
    with serving(probs={"1": 0.5, "10": 0.25, "2": 0.2}) as server:
        [said] = replies(engine_for(server), [request])[0].said

    assert math.exp(said.logps[9]) == pytest.approx(0.25)
    assert math.exp(said.logps[0]) == pytest.approx(0.5)
    assert len(server.asked) == 1


def test_without_log_probabilities_answers_are_drawn_and_smoothed():
    """Of 16 draws, 10 say "1" and 5 say "2": (10 + ½) / (16 + 3/2)."""
    with serving(gives_logprobs=False, probs={"1": 0.625, " 2": 0.3125, "The": 0.0625}) as server:
        [said] = replies(engine_for(server), [DIRECT])[0].said

    assert said.measured_by == "samples"
    assert [math.exp(logp) for logp in said.logps] == pytest.approx([10.5 / 17.5, 5.5 / 17.5])
    assert server.asked[0]["n"] == 16


def test_a_server_that_draws_few_answers_at_once_is_asked_for_few():
    """It refuses more than 4, to more questions at once than a run takes for hopeless."""

    def draws_few(handler, payload):
        if payload["n"] > 4:
            return handler.say(400, {"error": {"message": "n: must be between 1 and 4"}})
        return handler.answer(payload)

    with serving(gives_logprobs=False, probs={"1": 0.625, " 2": 0.3125, "The": 0.0625}) as server:
        server.always = draws_few
        found = replies(engine_for(server, max_concurrency=10), questions(10))

    assert len(found) == 10
    for reply in found.values():
        drawn = [math.exp(logp) for logp in reply.said[0].logps]
        assert drawn == pytest.approx([10.5 / 17.5, 5.5 / 17.5])
    assert server.asked[-1]["n"] == 4


def test_a_chat_is_gone_on_with_where_the_server_does():
    with serving(has_completions=False, has_chat=True, owned_by="vllm") as server:
        engine = engine_for(server)
        [said] = replies(engine, [WRITES])[0].said

    assert engine.abilities.via == "chat"
    assert engine.abilities.continues
    last = server.asked[-1]
    assert last["messages"] == [
        {"role": "user", "content": "Which is better?"},
        {
            "role": "assistant",
            "content": "Rationale: The first one is clear.\nPreferred Response=",
        },
    ]
    assert last["continue_final_message"] is True
    assert last["add_generation_prompt"] is False
    assert said.logps == pytest.approx((math.log(0.6), math.log(0.3)))


def test_a_chat_that_is_not_gone_on_with_is_asked_in_a_turn_of_its_own():
    with serving(has_completions=False, has_chat=True, continues=False) as server:
        engine = engine_for(server)
        replies(engine, [WRITES])

    assert not engine.abilities.continues
    assert [message["role"] for message in server.asked[-1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
    assert "continue_final_message" not in server.asked[-1]


def test_plain_text_is_asked_of_completions_alone():
    with serving(has_chat=True) as server:
        assert engine_for(server).abilities.via == "chat"
        assert engine_for(server, chat="never").abilities.via == "completions"
    with (
        serving(has_completions=False, has_chat=True) as server,
        pytest.raises(EngineStopped, match="cannot continue plain text"),
    ):
        assert engine_for(server, chat="never").abilities


def test_as_many_tokens_are_named_as_the_server_allows():
    probs = {f"t{n}": 0.01 for n in range(50)}
    with serving(most_top=5, probs=probs) as server:
        assert engine_for(server).abilities.n_top == 5


def test_a_server_that_answers_for_any_name_must_have_the_model():
    with (
        serving(models=("other",), owned_by="llamacpp") as server,
        pytest.raises(EngineStopped, match='has no model "tiny"; it has: other'),
    ):
        assert engine_for(server).abilities


def test_models_are_listed():
    with serving(models=("one", "two")) as server:
        assert list_models(Server(url=server.url, model="")) == ["one", "two"]


# --- order and number ------------------------------------------------------------------------


def test_the_same_beginnings_stand_next_to_each_other():
    """Both orders of a sample share all that stands before the responses."""
    tasks = [f"preamble {p}\nprompt {q}\n{order}" for q in "ab" for order in "xy" for p in "12"]
    requests = [Request(task=task, ending="=", answers=("1", "2")) for task in tasks]
    with serving() as server:
        found = replies(engine_for(server, max_concurrency=1), requests)

    assert server.texts == [f"{task}\n=" for task in sorted(tasks)]
    assert sorted(found) == list(range(8))


def test_no_more_requests_are_open_at_once_than_allowed():
    with serving(seconds=0.02) as server:
        found = replies(engine_for(server, max_concurrency=3), questions(20))

    assert len(found) == 20
    assert 2 <= server.most_open <= 3


def test_the_server_is_asked_what_it_can_once():
    with serving() as server:
        engine = engine_for(server)
        replies(engine, questions(2))
        found = engine.abilities
        replies(engine, questions(2))
        assert engine.abilities is found


def test_who_goes_away_does_not_wait_for_what_is_in_flight():
    with serving() as server:
        engine = engine_for(server, max_concurrency=2, timeout_seconds=60.0)
        server.for_question = lambda text: None if "Question 0" in text else sleeps(30)
        began = time.monotonic()
        for _batch in engine.answer(questions(4)):
            break
        del _batch
        assert time.monotonic() - began < 15  # half of what is in flight takes


def test_who_goes_away_does_not_wait_for_what_is_asked_over_a_connection_that_was_kept():
    """It is hung up like one that the server has closed meanwhile, and not opened anew."""
    slow = {"Question 0": 0.0, "Question 1": 0.5, "Question 2": 30.0, "Question 3": 30.0}
    with serving() as server:
        engine = engine_for(server, max_concurrency=2, timeout_seconds=60.0)
        server.for_question = lambda text: sleeps(slow[text[:10]])
        n_answered, began = 0, time.monotonic()
        for batch in engine.answer(questions(4)):
            n_answered += len(batch)
            if n_answered == 2:
                break
        assert time.monotonic() - began < 15


# --- failures --------------------------------------------------------------------------------


def test_a_server_that_is_down_is_said_so():
    engine = ServerEngine(Server(url="http://127.0.0.1:9/v1", model="m", name="Home", **QUICK))
    with pytest.raises(EngineStopped, match="Home does not answer: nothing listens"):
        list(engine.answer([DIRECT]))


def test_a_server_that_goes_down_loses_nothing_that_was_answered():
    with serving() as server:
        engine = engine_for(server, max_concurrency=2)
        found: dict = {}

        def ask_until_it_goes_down() -> None:
            for batch in engine.answer(questions(10)):
                found.update(dict(batch))
                if len(found) >= 5:
                    server.down = status(502)

        with pytest.raises(EngineStopped, match=r"answered 502, 6 times.*resume"):
            ask_until_it_goes_down()
    assert len(found) >= 5


@pytest.mark.parametrize("slow", [sleeps(1.0), drips])
def test_a_slow_answer_ends_at_the_limit_of_the_whole_request(slow):
    with serving() as server:
        server.always = slow
        engine = engine_for(server, timeout_seconds=0.3, n_tries=2)
        began = time.monotonic()
        with pytest.raises(EngineStopped, match=r"did not answer within 0.3 seconds, 2 times"):
            list(engine.answer([DIRECT]))
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        (status(500), "retried"),
        (status(503), "retried"),
        (hangs_up, "retried"),
        (promises_more, "lost_answers"),
        (says(b'{"choices": [{"te'), "lost_answers"),
        (says(b"<html>"), "lost_answers"),
        (says(b'{"error": "busy"}'), "lost_answers"),
    ],
)
def test_what_may_pass_is_tried_again(fault, counted):
    with serving() as server:
        engine = engine_for(server)
        server.faults = deque([fault, fault])
        reply = replies(engine, [DIRECT])[0]

    assert reply.said[0].logps == pytest.approx((math.log(0.6), math.log(0.3)))
    assert engine.counts[counted] == 2


def test_an_answer_that_is_always_cut_off_ends_the_run():
    with serving() as server:
        server.always = says(b'{"choices": [{"te')
        with pytest.raises(EngineStopped, match="cut off or no JSON, 6 times"):
            list(engine_for(server).answer([DIRECT]))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(form):
    after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    with serving() as server:
        engine = engine_for(server)
        assert engine.abilities.n_top
        server.faults = deque([status(429, retry_after=after)])
        found = replies(engine, questions(3))

    limited, *later = server.asked
    assert len(found) == 3
    assert engine.counts["rate_limited"] == 1
    again = [one for one in later if one["prompt"] == limited["prompt"]]
    assert again[0]["at"] - limited["at"] >= 0.9


def test_a_rate_limit_that_outlasts_patience_ends_the_run():
    with serving() as server:
        server.always = status(429, retry_after="3600")
        began = time.monotonic()
        with pytest.raises(EngineStopped, match=r"limits the rate .* asks to wait 3600 seconds"):
            list(engine_for(server).answer([DIRECT]))
        assert time.monotonic() - began < 3


def test_a_refused_key_ends_the_run_and_is_not_repeated():
    key = "sk-very-secret-1234"
    with serving(key="another") as server:
        engine = engine_for(server, key=key)
        with pytest.raises(EngineStopped, match=r"Home refuses the key \(401\)") as stopped:
            list(engine.answer([DIRECT]))
    assert key not in str(stopped.value)
    assert key not in repr(engine.server)


def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match="characters") as refused:
        Server(url="http://x/v1", model="m", key="secret\nX-Other: 1")
    assert "secret" not in str(refused.value)


def test_redirects_are_not_followed():
    with serving() as elsewhere, serving() as server:
        server.always = status(307, location=f"{elsewhere.url}/completions")
        with pytest.raises(EngineStopped, match="307: redirects are not followed"):
            list(engine_for(server).answer([DIRECT]))
    assert elsewhere.asked == []


def test_an_unknown_model_is_said_so():
    with serving() as server:
        server.always = status(404, "The model `tiny` does not exist")
        with pytest.raises(EngineStopped, match=r'does not know the model "tiny"'):
            list(engine_for(server).answer([DIRECT]))


def test_a_question_on_which_the_server_fails_alone_is_left_out():
    with serving() as server:
        server.for_question = lambda text: status(500) if "Question 1" in text else None
        found = replies(engine_for(server, max_concurrency=2), questions(12))

    assert "failed on this question 6 times (500)" in found[1].problem
    assert {place for place, reply in found.items() if reply.problem} == {1, 10, 11}


def test_a_question_that_is_refused_is_left_out_and_a_server_that_refuses_all_ends_the_run():
    with serving() as server:
        server.for_question = lambda text: status(400, "filtered") if "Question 1" in text else None
        found = replies(engine_for(server, max_concurrency=1), questions(3))
        assert found[1].problem == 'Home refused the question (400): "filtered"'
        assert not found[0].problem
        assert not found[2].problem
    with serving() as server:
        server.always = status(400, "no such parameter")
        with pytest.raises(EngineStopped, match="no such parameter"):
            replies(engine_for(server), questions(30))


def test_log_probabilities_that_fail_to_come_end_the_run():
    with serving() as server:
        engine = engine_for(server)
        assert engine.abilities.n_top
        server.gives_logprobs = False
        with pytest.raises(EngineStopped, match="sent no log-probabilities"):
            list(engine.answer([DIRECT]))


@pytest.mark.parametrize("tells_context", [False, True])
def test_a_prompt_that_is_too_long_loses_its_oldest_turns(tells_context):
    """Whether the context is told beforehand or found out by a refusal."""
    turns = [{"role": "user", "content": f"turn {n} " + "word " * 60} for n in range(8)]
    sample = Sample(
        turns, [{"role": "assistant", "content": "A"}], [{"role": "assistant", "content": "B"}]
    )
    with serving(context=400, tells_context=tells_context) as server:
        engine = engine_for(server)
        outcomes = [
            pair
            for batch in judge(engine, JudgeRecipe(mode="direct"), [sample, sample])
            for pair in batch
        ]

    assert sorted(place for place, _outcome in outcomes) == [0, 1]
    for _place, outcome in outcomes:
        assert outcome.problem == ""
        assert outcome.prob_a == pytest.approx(0.5)
        assert outcome.n_tokens_cut > 0
        assert "turn 7" in outcome.questions[0].text
        assert "turn 0" not in outcome.questions[0].text


def test_responses_that_do_not_fit_are_said_so_and_never_cut():
    long = [{"role": "assistant", "content": "word " * 800}]
    sample = Sample([{"role": "user", "content": "Q"}], long, long)
    with serving(context=400) as server:
        engine = engine_for(server)
        [[(_place, outcome)]] = list(judge(engine, JudgeRecipe(mode="direct"), [sample]))
    assert "fit" in outcome.problem
    assert all(text.count("word") == 1600 for text in server.texts)


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew():
    with serving() as server:
        engine = engine_for(server, max_concurrency=1)
        server.faults = deque([_answers_and_closes, _answers_and_closes])
        assert len(replies(engine, questions(3))) == 3
        assert "retried" not in engine.counts


def _answers_and_closes(handler, payload):
    handler.answer(payload)
    handler.close_connection = True


# --- money -----------------------------------------------------------------------------------


def test_a_request_costs_what_the_server_counts():
    with serving() as server:
        engine = engine_for(server, price_read=2.0, price_written=10.0)
        reply = replies(engine, [WRITES])[0]
    assert reply.cost == pytest.approx(
        (reply.n_tokens_read * 2 + reply.n_tokens_written * 10) / 1e6
    )
    with serving() as server:
        assert replies(engine_for(server, price_read=2.0), [DIRECT])[0].cost is None


@pytest.mark.parametrize("most", [2_500, 3_500])
def test_a_budget_of_tokens_is_never_exceeded(most):
    with serving(seconds=0.005) as server:
        budget = Budget(most)
        engine = engine_for(server, budget, max_concurrency=8)
        found: dict = {}

        def ask_until_it_is_spent() -> None:
            for batch in engine.answer(questions(800)):
                found.update(dict(batch))

        with pytest.raises(BudgetSpent, match="might exceed"):
            ask_until_it_is_spent()
    # The probe is paid from the budget too.
    assert 0 < server.n_tokens <= budget.spent_tokens <= most
    assert budget.spent_tokens > most - 400
    assert sum(r.n_tokens_read + r.n_tokens_written for r in found.values()) == server.n_tokens


def test_a_budget_of_money_is_never_exceeded_even_by_answers_that_are_lost():
    with serving() as server:
        server.for_question = lambda text: says(b"{") if "7" in text else None
        budget = Budget(most_cost=0.01)
        engine = engine_for(server, budget, price_read=1.0, price_written=4.0)
        with pytest.raises(EngineStopped):
            replies(engine, questions(1_500))
    assert 0 < budget.spent_cost <= 0.01


def test_what_was_spent_before_counts():
    with serving() as server:
        engine = engine_for(server, Budget(10_000, spent_tokens=9_900))
        with pytest.raises(BudgetSpent):
            list(engine.answer([DIRECT]))
    assert server.asked == []


def test_where_the_server_does_not_count_the_worst_case_is_booked():
    with serving(gives_usage=False) as server:
        reply = replies(engine_for(server), [DIRECT])[0]
    assert reply.n_tokens_read >= len(DIRECT.task)
