"""Forms of other tools onto comparisons: each with small examples of our own."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import FORM_NAMES, recognise, rows_of
from labeling.imports.interchange import BadRow

HI = [{"role": "user", "content": "Name a river."}]


# Keys that some form looks at.
KEYS = (
    "prompt",
    "response_a",
    "response_b",
    "preferences",
    "verdicts",
    "gold",
    "metadata",
    "id",
    "rater",
    "choice",
    "prob_a",
    "chosen",
    "rejected",
    "conversations",
    "input",
    "preferred_output",
    "non_preferred_output",
    "text",
    "score",
    "responses",
    "ranks",
    "ranking",
    "scores",
    "conversation_a",
    "conversation_b",
    "winner",
    "judge",
    "winner_model_a",
    "model_a",
    "instruction",
    "output_1",
    "output_2",
    "preference",
    "annotator",
    "data",
    "annotations",
    "predictions",
    "result",
    "value",
    "selected",
    "completed_by",
    "fields",
    "suggestions",
    "user_id",
    "status",
    "agent",
    "q.responses",
    "q.responses.users",
    "q.suggestion",
    "annotation_id",
    "answer1",
    "answer2",
    "annotator1",
    "system",
    "messages",
    "from",
    "role",
    "content",
    "completions",
    "model",
    "rank",
    "tstamp",
)


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def converted(record: dict, labels: Labels | None = None):
    """The only row of a record in the form that it is recognised as."""
    (row,) = all_converted(record, labels)
    return row


def all_converted(record: dict, labels: Labels | None = None):
    rows, problems = rows_of(record, recognise([record]), labels or Labels())
    assert problems == []
    return rows


def winner(row) -> str:
    """The text that the row's only vote prefers."""
    (vote,) = row.votes
    return {"a": row.response_a, "b": row.response_b}[vote.choice][-1]["content"]


# --- the interchange form ------------------------------------------------------------------------


def test_every_column_of_the_interchange_form_arrives():
    row = converted(
        {
            "id": "ext-1",
            "prompt": "Name a river.",
            "response_a": "The Oder.",
            "response_b": answer("The Po."),
            "model_a": "small",
            "model_b": "large",
            "gold": "a",
            "metadata": {"topic": "rivers"},
            "preferences": [
                {
                    "rater": "ann-7",
                    "choice": "a",
                    "strength": 2,
                    "seconds": 31.5,
                    "shown_first": "b",
                    "rationale": "longer",
                    "tags": ["factual"],
                    "created_at": "2026-01-31T13:00:00+01:00",
                }
            ],
            "verdicts": [{"rater": "gpt-4", "prob_a": 0.83, "prob_a_ab": 0.9, "prob_a_ba": 0.76}],
        }
    )
    assert row.prompt == HI
    assert (row.response_a, row.response_b) == (answer("The Oder."), answer("The Po."))
    assert (row.model_a, row.model_b, row.external_id) == ("small", "large", "ext-1")
    assert (row.gold, row.metadata) == ("a", {"topic": "rivers"})
    ann, gpt = row.votes
    assert (ann.kind, ann.choice, ann.strength, ann.seconds) == ("person", "a", 2, 31.5)
    assert (ann.shown_first, ann.rationale, ann.tags) == ("b", "longer", ["factual"])
    assert ann.created_at.isoformat() == "2026-01-31T12:00:00+00:00"
    assert (gpt.kind, gpt.choice) == ("judge", "a")
    assert (gpt.prob_a, gpt.prob_a_ab, gpt.prob_a_ba) == (0.83, 0.9, 0.76)


def pair(**more) -> dict:
    return {"prompt": "Name a river.", "response_a": "Oder", "response_b": "Po", **more}


@pytest.mark.parametrize(
    ("verdict", "choice"),
    [
        ({"prob_a": 0.51}, "a"),
        ({"prob_a": 0.0}, "b"),
        ({"prob_a": 0.5}, "tie"),
        ({"prob_a": None}, "unparsed"),
        ({}, "unparsed"),
        ({"choice": "b"}, "b"),
        ({"prob_a_ab": 0.9, "prob_a_ba": 0.2}, "a"),
        ({"prob_a_ab": 0.9, "prob_a_ba": 0.1}, "tie"),
    ],
)
def test_a_verdict_is_read_from_its_probability_then_its_words(verdict, choice):
    row = converted(pair(verdicts=[{"rater": "judge", **verdict}]))
    assert row.votes[0].choice == choice


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"prompt": None}, "`prompt` is missing"),
        ({"prompt": "  "}, "`prompt` is empty"),
        ({"prompt": 7}, "`prompt` is a number: give a text or a list of messages"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["x"]}, "`prompt` holds a text where a message should be"),
        (
            {"prompt": [{"role": "tool", "content": "x"}]},
            "`prompt`: a role is 'tool', not user, assistant or system",
        ),
        (
            {"response_a": [{"role": "assistant", "content": None}]},
            "`response_a`: the content of a message is a null, not text",
        ),
        (
            {"response_a": [{"role": "assistant", "content": [{"image": "x"}]}]},
            "`response_a`: a message has a part that is not text",
        ),
        ({"response_b": "Oder"}, "both responses are the same: nothing to compare"),
        ({"response_b": None}, "`response_b` is missing"),
        ({"gold": "c"}, "`gold` is 'c': it may be a, b, tie, both_bad"),
        ({"id": "x" * 201}, "`id` is longer than 200 characters"),
        ({"model_a": ["x"]}, "`model_a` is a list, not a text"),
        ({"metadata": []}, "`metadata` is a list, not an object"),
        ({"preferences": "ann"}, "`preferences` is a text, not a list"),
        ({"response_a": "a\0b"}, "there is a NUL character in a text"),
        ({"metadata": {"a\0": 1}}, "there is a NUL character in a text"),
        ({"metadata": {"x": "\ud800"}}, "half a surrogate pair in a text: it is no Unicode"),
        ({"metadata": {"x": 1e999}}, "a number is too large"),
    ],
)
def test_what_cannot_become_a_row_has_a_reason(more, reason):
    with pytest.raises(BadRow) as problem:
        rows_of(pair(**more), "interchange", Labels())
    assert str(problem.value) == reason


def test_deep_nesting_is_refused_before_it_reaches_the_database():
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BadRow, match="nested too deep"):
        rows_of(pair(metadata={"x": deep}), "interchange", Labels())


@pytest.mark.parametrize(
    ("key", "vote", "reason"),
    [
        ("preferences", "ann", "a text where an object should be"),
        ("preferences", {"choice": "a"}, "`rater` is missing"),
        ("preferences", {"rater": "ann"}, "`choice` is None: it may be a, b, tie, both_bad"),
        (
            "preferences",
            {"rater": "ann", "choice": "left"},
            "`choice` is 'left': it may be a, b, tie, both_bad",
        ),
        (
            "preferences",
            {"rater": "ann", "choice": "a", "strength": 4},
            "`strength` is 4: it may be 1, 2 or 3",
        ),
        ("preferences", {"rater": "ann", "choice": "a", "seconds": -1}, "`seconds` is negative"),
        (
            "preferences",
            {"rater": "ann", "choice": "a", "created_at": "yesterday"},
            "`created_at` is 'yesterday': write it like 2026-01-31T12:00:00Z",
        ),
        (
            "preferences",
            {"rater": "ann", "choice": "a", "tags": "x"},
            "`tags` is not a list of texts",
        ),
        ("verdicts", {"rater": "gpt", "prob_a": 1.2}, "`prob_a` is 1.2, outside of 0 to 1"),
        ("verdicts", {"rater": "gpt", "prob_a": "high"}, "`prob_a` is 'high', not a number"),
        ("verdicts", {"rater": "r" * 201}, "`rater` is longer than 200 characters"),
    ],
)
def test_a_vote_that_makes_no_sense_is_left_out_and_the_comparison_stays(key, vote, reason):
    row = converted(pair(**{key: [vote, {"rater": "bo", "choice": "a"}]}))
    assert row.bad_votes == [f"{key}[1]: {reason}"]
    assert [v.rater for v in row.votes] == ["bo"]


def test_a_second_answer_of_one_rater_in_one_line_is_left_out():
    votes = [{"rater": "ann", "choice": choice} for choice in ("a", "b", "a")]
    row = converted(pair(preferences=votes))
    assert [vote.choice for vote in row.votes] == ["a"]
    assert row.bad_votes == [
        "preferences[2]: rater 'ann' answers twice here, and differently",
        "preferences[3]: rater 'ann' answers twice here, again",
    ]


def test_an_empty_response_is_an_answer_that_a_model_gave():
    row = converted(pair(response_b=""))
    assert row.response_b == answer("")


def test_two_models_that_said_the_same_are_a_pair():
    row = converted(pair(response_b="Oder", model_a="x", model_b="y"))
    assert row.response_a == row.response_b


def test_messages_may_have_parts_and_other_names_for_roles():
    row = converted(
        pair(
            prompt=[
                {"from": "system", "value": "Be short."},
                {"from": "human", "value": "Name "},
                {"role": "model", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
            ]
        )
    )
    assert row.prompt == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Name "},
        {"role": "assistant", "content": "a\n\nb"},
    ]


# --- chosen and rejected -------------------------------------------------------------------------


def test_a_transcript_is_split_where_its_last_answer_begins():
    start = "\n\nHuman: Name a river.\n\nAssistant: Where?\n\nHuman: In Italy.\n\nAssistant: "
    row = converted({"chosen": start + "The Po.", "rejected": start + "The Oder."})
    assert row.prompt == [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "Where?"},
        {"role": "user", "content": "In Italy."},
    ]
    assert winner(row) == "The Po."
    assert [(v.rater, v.kind) for v in row.votes] == [("imported", "person")]


def test_transcripts_that_part_in_the_middle_of_a_turn_part_before_it():
    row = converted(
        {
            "chosen": "\n\nHuman: Name a river.\n\nAssistant: The river Po",
            "rejected": "\n\nHuman: Name a river.\n\nAssistant: The river Oder",
        }
    )
    assert row.prompt == HI
    assert winner(row) == "The river Po"


def test_transcripts_that_part_earlier_keep_their_later_turns():
    start = "\n\nHuman: Name a river.\n\nAssistant: "
    row = converted(
        {
            "chosen": start + "Po.\n\nHuman: Where?\n\nAssistant: Italy.",
            "rejected": start + "Oder.\n\nHuman: Where?\n\nAssistant: Poland.",
        }
    )
    assert row.prompt == HI
    assert {len(row.response_a), len(row.response_b)} == {3}
    assert winner(row) == "Italy."


def test_transcripts_that_part_at_a_question_part_at_the_answer_before_it():
    start = "\n\nHuman: Name a river.\n\nAssistant: Po."
    row = converted(
        {
            "chosen": start + "\n\nHuman: Thanks!\n\nAssistant: You are welcome.",
            "rejected": start + "\n\nHuman: Where?\n\nAssistant: Italy.",
        }
    )
    assert row.prompt == HI
    assert winner(row) == "You are welcome."


def test_two_turns_of_one_speaker_in_a_row_are_one_message():
    start = "\n\nHuman: Name a river.\n\nAssistant:"
    row = converted({"chosen": start + " Po.\n\nAssistant: Or Arno.", "rejected": start + " Oder."})
    assert winner(row) == "Po.\n\nOr Arno."


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (
            "\n\nHuman: A?\n\nAssistant: x",
            "\n\nHuman: B?\n\nAssistant: y",
            "the two dialogues share no prompt",
        ),
        (
            "\n\nHuman: A?\n\nAssistant: x",
            "\n\nHuman: A?\n\nAssistant: x",
            "both responses are the same: nothing to compare",
        ),
        (
            "\n\nHuman: A?\n\nAssistant: x",
            "\n\nAssistant: x",
            'a dialogue does not begin with "Human:"',
        ),
    ],
)
def test_transcripts_that_are_no_pair_say_why(chosen, rejected, reason):
    with pytest.raises(BadRow) as problem:
        rows_of({"chosen": chosen, "rejected": rejected}, "hh-rlhf", Labels())
    assert str(problem.value) == reason


def test_the_side_of_the_chosen_response_follows_a_hash_and_not_the_label():
    chosen_is_a = 0
    for n in range(200):
        record = {"prompt": f"Question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"}
        turned = record | {"chosen": record["rejected"], "rejected": record["chosen"]}
        row, other = converted(record), converted(turned)
        assert (row.response_a, row.response_b) == (other.response_a, other.response_b)
        assert winner(row) == f"yes {n}"
        assert winner(other) == f"no {n}"
        chosen_is_a += row.votes[0].choice == "a"
    assert 70 < chosen_is_a < 130  # 100 expected, standard deviation 7


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Name a river.", "chosen": "Po", "rejected": "Oder"},
        {"prompt": HI, "chosen": answer("Po"), "rejected": answer("Oder")},
        {"chosen": HI + answer("Po"), "rejected": HI + answer("Oder")},
        {"prompt": "Name a river.", "chosen": HI + answer("Po"), "rejected": HI + answer("Oder")},
        {"chosen": "Name a river. Po", "rejected": "Name a river. Oder"},
        {"prompt": "Name a river.", "chosen": "Name a river. Po", "rejected": "Name a river. Oder"},
        {
            "prompt": "\n\nHuman: Name a river.\n\nAssistant:",
            "chosen": "Po",
            "rejected": "Oder",
        },
        {"instruction": "Name a river.", "input": "", "chosen": "Po", "rejected": "Oder"},
    ],
)
def test_preference_sets_of_trl_in_all_their_shapes(record):
    assert recognise([record]) == "trl"
    row = converted(record)
    assert [turn["content"] for turn in row.prompt] == ["Name a river."]
    assert winner(row) == "Po"
    assert {row.response_a[0]["content"], row.response_b[0]["content"]} == {"Po", "Oder"}


def test_models_and_scores_of_a_preference_set_are_kept():
    row = converted(
        {
            "prompt_id": "p1",
            "prompt": "Name a river.",
            "chosen": "Po",
            "rejected": "Oder",
            "chosen_model": "good",
            "rejected_model": "bad",
            "score_chosen": 9.5,
        }
    )
    models = {row.response_a[0]["content"]: row.model_a, row.response_b[0]["content"]: row.model_b}
    assert models == {"Po": "good", "Oder": "bad"}
    assert (row.external_id, row.metadata) == ("p1", {"score_chosen": 9.5})


def test_texts_without_a_common_beginning_have_no_prompt():
    with pytest.raises(BadRow, match="the two texts do not begin alike"):
        rows_of({"chosen": "Po", "rejected": "Oder"}, "trl", Labels())


def test_labels_of_a_model_become_a_verdict_of_a_judge():
    record = {"prompt": "Name a river.", "chosen": "Po", "rejected": "Oder"}
    (vote,) = converted(record, Labels(rater="gpt-4", kind="judge")).votes
    assert (vote.rater, vote.kind) == ("gpt-4", "judge")


def test_sharegpt_pairs():
    row = converted(
        {
            "conversations": [
                {"from": "system", "value": "Be short."},
                {"from": "human", "value": "Name a river."},
            ],
            "chosen": {"from": "gpt", "value": "Po"},
            "rejected": {"from": "gpt", "value": "Oder"},
        }
    )
    assert row.prompt == [{"role": "system", "content": "Be short."}, *HI]
    assert winner(row) == "Po"


def test_preference_files_of_openai():
    row = converted(
        {
            "input": {"messages": HI, "tools": []},
            "preferred_output": answer("Po"),
            "non_preferred_output": answer("Oder"),
        }
    )
    assert row.prompt == HI
    assert winner(row) == "Po"


# --- several responses ---------------------------------------------------------------------------


def test_a_ranked_list_implies_every_pair_and_keeps_the_ranking():
    rows = all_converted(
        {
            "id": "r1",
            "prompt": "Name a river.",
            "responses": ["Po", "Oder", {"text": "Elbe", "model": "m"}],
            "ranks": [1, 3, 2],
            "rater": "ann",
        }
    )
    assert len(rows) == 3
    by_pair = {frozenset((r.response_a[0]["content"], r.response_b[0]["content"])): r for r in rows}
    assert winner(by_pair[frozenset(("Po", "Oder"))]) == "Po"
    assert winner(by_pair[frozenset(("Elbe", "Oder"))]) == "Elbe"
    assert winner(by_pair[frozenset(("Elbe", "Po"))]) == "Po"
    assert {row.votes[0].rater for row in rows} == {"ann"}
    assert len({row.metadata["ranking"]["group"] for row in rows}) == 1
    assert {row.external_id for row in rows} == {"r1#0-1", "r1#0-2", "r1#2-1"}
    assert rows[0].metadata["ranking"]["ranks"] == [1, 3, 2]


@pytest.mark.parametrize(
    "record",
    [
        {"answers": [{"answer": "Po", "rank": 1}, {"answer": "Oder", "rank": 2}]},
        {"completions": [{"response": "Po", "overall_score": 9}, {"response": "Oder", "score": 4}]},
        {"responses": ["Oder", "Po"], "scores": [0.1, 0.7]},
        {"responses": ["Oder", "Po"], "ranking": [1, 0]},
        {"responses": ["Oder", "Po"], "ranking": [2, 1]},
    ],
)
def test_ranks_scores_and_orders_say_the_same(record):
    row = converted({"prompt": "Name a river."} | record)
    assert winner(row) == "Po"


def test_equal_ranks_are_a_tie():
    row = converted({"prompt": "Name a river.", "responses": ["Po", "Oder"], "ranks": [1, 1]})
    assert row.votes[0].choice == "tie"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"responses": ["x"], "ranks": [1]}, "1 responses: it may be 2 to 16"),
        ({"responses": ["x"] * 17, "ranks": [1] * 17}, "17 responses: it may be 2 to 16"),
        ({"responses": ["x", "y"], "ranks": [1]}, "1 ranks or scores for 2 responses"),
        ({"responses": ["x", "y"]}, "the responses have no `ranks`, `scores` or `ranking`"),
        ({"responses": ["x", 3], "ranks": [1, 2]}, "one of `responses` has no text"),
        (
            {"responses": ["x", "y"], "ranking": [1, 1]},
            "`ranking` does not name each response once",
        ),
    ],
)
def test_a_list_without_a_usable_order_says_why(more, reason):
    with pytest.raises(BadRow) as problem:
        rows_of({"prompt": "Name a river."} | more, "ranked", Labels())
    assert str(problem.value) == reason


def test_equal_responses_of_a_list_are_left_out_and_the_other_pairs_stay():
    record = {"prompt": "Name a river.", "responses": ["Po", "Po", "Oder"], "ranks": [1, 2, 3]}
    rows, problems = rows_of(record, "ranked", Labels())
    assert len(rows) == 2
    assert problems == ["both responses are the same: nothing to compare"]


@pytest.mark.parametrize(("score", "choice"), [([1.5, 0.5], "Po"), ([0.0, 2.0], "Oder")])
def test_scored_dialogues(score, choice):
    row = converted(
        {
            "text": [
                "## Human:\nName a river.\n\n## Assistant:\nPo",
                "## Human:\nName a river.\n\n## Assistant:\nOder",
            ],
            "score": score,
        }
    )
    assert row.prompt == HI
    assert winner(row) == choice
    assert row.metadata["scores"] == sorted(score, reverse=True)


# --- battles, annotations, tools -----------------------------------------------------------------


def battle(**more) -> dict:
    return {
        "question_id": "q1",
        "model_a": "m1",
        "model_b": "m2",
        "winner": "model_b",
        "judge": "arena_user_9",
        "conversation_a": HI + answer("Po") + HI + answer("Elbe"),
        "conversation_b": HI + answer("Oder") + HI + answer("Arno"),
        "turn": 2,
        "language": "English",
        "tstamp": 1700000000.5,
    } | more


def test_arena_battles_share_the_first_question_and_keep_both_conversations():
    row = converted(battle())
    assert row.prompt == HI
    assert row.response_a == answer("Po") + HI + answer("Elbe")
    assert (row.model_a, row.model_b, row.external_id) == ("m1", "m2", "q1")
    (vote,) = row.votes
    assert (vote.rater, vote.kind, vote.choice) == ("arena_user_9", "person", "b")
    assert vote.created_at.year == 2023
    assert row.metadata == {"turn": 2, "language": "English"}


@pytest.mark.parametrize(
    ("words", "choice"),
    [("model_a", "a"), ("tie", "tie"), ("tie (bothbad)", "both_bad"), ("both_bad", "both_bad")],
)
def test_winners_of_battles(words, choice):
    assert converted(battle(winner=words)).votes[0].choice == choice


def test_a_model_that_judges_battles_is_a_judge():
    row = converted(battle(judge=["gpt-4", "pair-v2"]))
    assert (row.votes[0].rater, row.votes[0].kind) == ("gpt-4/pair-v2", "judge")


def test_the_table_of_arena_battles():
    row = converted(
        {
            "id": "30192",
            "model_a": "m1",
            "model_b": "m2",
            "prompt": '["Name a river."]',
            "response_a": '["Po"]',
            "response_b": "[null]",
            "winner_model_a": "1",
            "winner_model_b": "0",
            "winner_tie": "0",
        }
    )
    assert row.prompt == HI
    assert (row.response_a, row.response_b) == (answer("Po"), answer(""))
    assert row.votes[0].choice == "a"


@pytest.mark.parametrize(
    ("preference", "choice", "prob_a"),
    [(1, "a", 1.0), (2.0, "b", 0.0), (1.25, "a", 0.75), (1.5, "tie", 0.5), (0, "tie", None)],
)
def test_alpaca_eval_preferences_are_probabilities(preference, choice, prob_a):
    row = converted(
        {
            "instruction": "Name a river.",
            "output_1": "Po",
            "output_2": "Oder",
            "generator_1": "base",
            "generator_2": "new",
            "annotator": "alpaca_eval_x",
            "preference": preference,
            "dataset": "koala",
        }
    )
    (vote,) = row.votes
    assert (vote.rater, vote.kind, vote.choice, vote.prob_a) == (
        "alpaca_eval_x",
        "judge",
        choice,
        prob_a,
    )
    assert (row.model_a, row.model_b, row.metadata) == ("base", "new", {"dataset": "koala"})


def test_an_alpaca_eval_preference_of_null_is_unparsed():
    record = {"instruction": "?", "output_1": "x", "output_2": "y", "preference": None}
    assert converted(record).votes[0].choice == "unparsed"


def test_argilla_2_nested():
    row = converted(
        {
            "id": "7",
            "fields": {"instruction": "Name a river.", "response_1": "Po", "response_2": "Oder"},
            "metadata": {"topic": "rivers"},
            "responses": {
                "preference": [
                    {"value": "response_1", "user_id": "u1"},
                    {"value": "tie", "user_id": "u2"},
                ]
            },
            "suggestions": {"preference": {"value": "response_2", "agent": "gpt-4", "score": 0.8}},
        }
    )
    assert [(v.rater, v.kind, v.choice) for v in row.votes] == [
        ("u1", "person", "a"),
        ("u2", "person", "tie"),
        ("gpt-4", "judge", "b"),
    ]
    assert (row.prompt, row.external_id, row.metadata) == (HI, "7", {"topic": "rivers"})


def test_argilla_2_flattened():
    row = converted(
        {
            "id": "7",
            "prompt": "Name a river.",
            "response_1": "Po",
            "response_2": "Oder",
            "preference.responses": ["response_2"],
            "preference.responses.users": ["u1"],
            "preference.responses.status": ["submitted"],
            "preference.suggestion": "response_1",
            "preference.suggestion.agent": "judge-x",
        }
    )
    assert [(v.rater, v.choice) for v in row.votes] == [("u1", "b"), ("judge-x", "a")]


def test_argilla_1_rankings_count_what_was_submitted():
    row = converted(
        {
            "prompt": "Name a river.",
            "response-1": "Po",
            "response-2": "Oder",
            "ranking": [
                {
                    "user_id": "u1",
                    "value": [
                        {"rank": 1, "value": "response-2"},
                        {"rank": 2, "value": "response-1"},
                    ],
                    "status": "submitted",
                },
                {"user_id": "u2", "value": None, "status": "discarded"},
            ],
            "external_id": "x1",
            "metadata": '{"k": 1}',
        }
    )
    assert [(v.rater, v.choice) for v in row.votes] == [("u1", "b")]
    assert (row.external_id, row.metadata) == ("x1", {"k": 1})


def label_studio(**annotation) -> dict:
    return {
        "id": 12,
        "data": {"prompt": "Name a river.", "answer1": "Po", "answer2": "Oder", "topic": "x"},
        "annotations": [
            {
                "completed_by": {"id": 3, "email": "ann@example.org"},
                "result": [{"type": "pairwise", "value": {"selected": "right"}}],
                "lead_time": 12.5,
                "created_at": "2026-01-31T12:00:00.000000Z",
            }
            | annotation
        ],
        "predictions": [
            {"model_version": "v2", "result": [{"value": {"selected": "left"}}], "score": 0.7}
        ],
    }


def test_label_studio_exports():
    row = converted(label_studio())
    ann, model = row.votes
    assert (ann.rater, ann.choice, ann.seconds) == ("ann@example.org", "b", 12.5)
    assert (model.rater, model.kind, model.choice) == ("v2", "judge", "a")
    assert (row.external_id, row.metadata) == ("12", {"topic": "x"})
    assert converted(label_studio(completed_by=3)).votes[0].rater == "annotator 3"


def test_a_skipped_task_of_label_studio_gives_a_comparison_and_a_reason():
    row = converted(label_studio(was_cancelled=True))
    assert [v.rater for v in row.votes] == ["v2"]
    assert row.bad_votes == ["preferences[1]: `choice` is 'skipped': it may be a, b, tie, both_bad"]


def test_label_studio_in_its_short_form():
    row = converted(
        {
            "id": 12,
            "prompt": "Name a river.",
            "text1": "Po",
            "text2": "Oder",
            "pairwise": "left",
            "annotator": 4,
            "annotation_id": 9,
            "lead_time": 3.5,
        }
    )
    assert [(v.rater, v.choice, v.seconds) for v in row.votes] == [("annotator 4", "a", 3.5)]


# --- tables --------------------------------------------------------------------------------------


def test_a_table_with_other_names_for_its_columns():
    row = converted(
        {
            "question": "Name a river.",
            "answer_x": "Po",
            "answer_y": "Oder",
            "model_x": 7,
            "model_y": 9,
            "winner": "right",
            "worker": 58,
        }
    )
    assert row.prompt == HI
    assert (row.model_a, row.model_b) == ("7", "9")
    assert [(v.rater, v.choice) for v in row.votes] == [("58", "b")]


def test_a_table_with_a_column_for_each_rater():
    row = converted(
        {
            "idx": 3,
            "instruction": "Name",
            "input": "a river.",
            "response1": "Po",
            "response2": "Oder",
            "annotator1": 1,
            "annotator2": 2,
            "annotator3": 0,
        }
    )
    assert row.prompt[0]["content"] == "Name\n\na river."
    assert [(v.rater, v.choice) for v in row.votes] == [
        ("annotator1", "a"),
        ("annotator2", "b"),
        ("annotator3", "tie"),
    ]


def test_votes_alone_name_their_comparison():
    row = converted({"id": "0", "worker": "58", "winner": "left", "model_x": "97"})
    assert (row.prompt, row.external_id) == ([], "0")
    assert [(v.rater, v.kind, v.choice) for v in row.votes] == [("58", "person", "a")]
    row = converted({"id": "0", "winner": "tie"}, Labels(rater="gpt-4", kind="judge"))
    assert [(v.rater, v.kind, v.choice) for v in row.votes] == [("gpt-4", "judge", "tie")]


def test_votes_without_an_id_or_with_an_unknown_choice_are_refused():
    with pytest.raises(BadRow, match="no record of the form votes"):
        rows_of({"rater": "ann", "choice": "a"}, "votes", Labels())
    with pytest.raises(BadRow, match="`choice` is 'purple'"):
        rows_of({"id": "1", "rater": "ann", "choice": "purple"}, "votes", Labels())


# --- recognising ---------------------------------------------------------------------------------


def test_records_of_no_known_form_say_their_keys():
    assert recognise([{"name": "x", "age": 3}, 7, None, "text"]) == "unknown"
    with pytest.raises(BadRow, match="no known form of comparison; its keys are: age, name"):
        rows_of({"name": "x", "age": 3}, "unknown", Labels())


def test_the_form_of_most_records_is_the_form_of_the_file():
    trl = {"prompt": "?", "chosen": "x", "rejected": "y"}
    assert recognise([{"odd": 1}, trl, trl, pair()]) == "trl"


def outcome(record, form: str, labels: Labels) -> list | str:
    """The rows of a record, or the reason why it has none."""
    try:
        rows, problems = rows_of(record, form, labels)
    except BadRow as problem:
        return str(problem)
    assert all(problems)
    return rows


@pytest.mark.parametrize("form", [name for name in FORM_NAMES if name not in ("interchange",)])
def test_a_form_named_by_hand_refuses_records_that_are_not_of_it(form):
    for record in ({}, {"prompt": 3}, {"text": 1, "chosen": None}, {"odd": [1]}):
        assert isinstance(outcome(record, form, Labels()), str)


@pytest.mark.parametrize(
    "more",
    [
        {
            "fields": {"prompt": "?", "text1": "x", "text2": "y"},
            "responses": {},
            "suggestions": [1],
        },
        {
            "prompt": "?",
            "text1": "x",
            "text2": "y",
            "q.responses": ["text1"],
            "q.responses.users": 3,
        },
        {
            "prompt": "?",
            "text1": "x",
            "text2": "y",
            "q": [{"value": "text1", "status": "submitted", "user_id": "u"}],
            "q-suggestion": "text2",
            "q-suggestion-metadata": "none",
        },
        {
            "data": {"prompt": "?", "text1": "x", "text2": "y"},
            "annotations": 3,
            "predictions": 4,
        },
    ],
)
def test_exports_with_odd_corners_still_give_their_comparison(more):
    row = converted(more)
    assert (row.response_a, row.response_b) == (answer("x"), answer("y"))


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["a", "left", "\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman:", "tie", '["x"]', "1", "😀"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6)
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "human"]), "content": inner}
            ),
            max_size=3,
        )
    ),
    max_leaves=14,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    record=ANY_JSON | st.dictionaries(st.sampled_from(KEYS), ANY_JSON, min_size=2, max_size=8),
    by_hand=st.sampled_from(FORM_NAMES),
    kind=st.sampled_from(["person", "judge"]),
)
def test_whatever_a_record_holds_it_becomes_rows_or_a_reason(record, by_hand, kind):
    for form in (recognise([record]), by_hand):
        assert outcome(record, form, Labels(kind=kind))
