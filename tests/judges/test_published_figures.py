"""Real judges through the laboratory's own statistics: the published figures come out."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from judges.quality import Answers, Labeled, alignment, win_rate
from labeling.agreement import (
    TIE,
    UNPARSED,
    A,
    B,
    Votes,
    cohen_kappas,
    judges_against_people,
    majority,
    position_consistency,
    position_preference,
)
from tests.real_data import llmfao, pandalm

pytestmark = pytest.mark.realdata

CODE = {"a": A, "b": B, "tie": TIE, "1": A, "2": B}
SETS = ["Natural", *(f"Adversarial/{name}" for name in ("GPTInst", "GPTOut", "Manual", "Neighbor"))]
JUDGES = [
    *(
        f"{model}/{prompt}"
        for model in ("GPT-4", "ChatGPT")
        for prompt in ("Vanilla", "CoT", "Rating")
    ),
    *(f"{model}/Vanilla" for model in ("LLaMA2", "PaLM2", "Falcon")),
]


def reference_figures(shared_data: Path, name: str) -> dict:
    return json.loads((shared_data / "reference_figures.json").read_text())["datasets"][name]


def read_json(path: Path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def nobody(n_items: int) -> Votes:
    empty = np.empty(0, dtype=np.int64)
    return Votes([], np.empty(0, dtype=bool), n_items, *[empty] * 9)


def known(reference: np.ndarray) -> Labeled:
    n = len(reference)
    words = np.array([""] * n)
    same = np.full(n, 100)
    return Labeled(np.arange(n), np.arange(n), reference, same, same, words, words, nobody(n))


def answers(choice: np.ndarray, ab=None, ba=None) -> Answers:
    n = len(choice)
    nothing = np.full(n, np.nan)
    prob = np.select([choice == A, choice == B], [1.0, 0.0], 0.5)
    ab, ba = (nothing if z is None else z for z in (ab, ba))
    return Answers(np.arange(n), choice, prob, ab, ba, nothing, nothing, nothing)


def sides(winners: list[str]) -> np.ndarray:
    return np.array([CODE.get(str(winner), UNPARSED) for winner in winners])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("judge", JUDGES)
def test_llmbars_judges_in_both_orders(shared_data, name, judge):
    folder = shared_data / "llmbar" / name
    path = folder / "evaluators" / judge / "result.json.gz"
    published = reference_figures(shared_data, "llmbar")["sets"][name]["judges"]
    if judge not in published:
        assert not path.exists()
        return
    expected = published[judge]
    rows = read_json(path)
    gold = known(np.array([CODE[str(row["label"])] for row in rows]))
    given, swapped = (
        sides([row["results"][-1][f"swap = {order}"]["winner"] for row in rows])
        for order in (False, True)
    )

    def order_accuracy(choice: np.ndarray) -> float:
        # The authors count a verdict that is no side as wrong.
        return alignment(gold, answers(np.where(choice <= B, choice, UNPARSED)))["decided"]["value"]

    assert len(rows) == expected["n"]
    assert order_accuracy(given) == pytest.approx(expected["accuracy_given_order"], abs=1e-6)
    assert order_accuracy(swapped) == pytest.approx(expected["accuracy_swapped_order"], abs=1e-6)
    authors = json.loads((path.parent / "statistics.json").read_text())
    for choice, name_of_order in ((given, "correct_False"), (swapped, "correct_True")):
        n_right = round(order_accuracy(choice) * len(rows))
        assert authors[name_of_order].startswith(f"{n_right} / {len(rows)} = ")

    # Both orders as one verdict of ours: log-odds of ±1 by what each order named.
    both = (given <= B) & (swapped <= B)
    ab, ba = (np.where(choice == A, 1.0, -1.0) for choice in (given, swapped))
    agreed = np.where(given == swapped, given, TIE)
    whole = answers(np.where(both, agreed, UNPARSED), ab, ba)
    votes = Votes(
        raters=[judge],
        is_judge=np.array([True]),
        n_comparisons=len(rows),
        item=whole.place,
        prompt=whole.place,
        rater=np.zeros(len(rows), dtype=np.int64),
        choice=whole.choice,
        shown_first=np.full(len(rows), -1),
        prob_a_ab=(ab + 1) / 2,
        prob_a_ba=(ba + 1) / 2,
        length_a=np.zeros(len(rows)),
        length_b=np.zeros(len(rows)),
    )
    consistency, position = position_consistency(votes), position_preference(votes)
    n_both = int(both.sum())
    assert len(rows) - n_both == expected["unparsed_or_tie_either_order"]
    assert 1 - consistency["value"] == pytest.approx(expected["flip_rate_among_parsed"], abs=1e-6)
    assert position["value"] == pytest.approx(
        expected["first_shown_wins_share_among_parsed"], abs=1e-6
    )
    assert position["first_twice"] + position["second_twice"] == n_both - round(
        consistency["value"] * n_both
    )
    in_both = alignment(gold, whole)["all"]  # a flip is a tie here, and a tie is not right
    assert in_both["value"] == pytest.approx(expected["correct_in_both_orders"], abs=1e-6)
    # A flip counts a half: where everything was readable that is the mean of both orders.
    if both.all():
        mean = alignment(gold, whole)["decided"]["value"]
        assert mean == pytest.approx(expected["accuracy_mean"], abs=1e-6)
        assert 100 * mean == pytest.approx(float(authors["correct_average"].rstrip("%")))


def crowd(records) -> tuple[Votes, dict[str, np.ndarray]]:
    """People's votes, and each judge's choice on every comparison."""
    items, raters, choices, names = [], [], [], {}
    by_judge: dict[str, list[int]] = {}
    n_items = 0
    for n_items, record in enumerate(records, start=1):
        for vote in record["preferences"]:
            items.append(n_items - 1)
            raters.append(names.setdefault(vote["rater"], len(names)))
            choices.append(CODE[vote["choice"]])
        for verdict in record["verdicts"]:
            by_judge.setdefault(verdict["rater"], []).append(
                CODE.get(verdict["choice"] or "", UNPARSED)
            )
    n = len(items)
    nothing = np.full(n, np.nan)
    people = Votes(
        raters=list(names),
        is_judge=np.zeros(len(names), dtype=bool),
        n_comparisons=n_items,
        item=np.array(items),
        prompt=np.array(items),
        rater=np.array(raters),
        choice=np.array(choices),
        shown_first=np.full(n, -1),
        prob_a_ab=nothing,
        prob_a_ba=nothing,
        length_a=np.zeros(n),
        length_b=np.zeros(n),
    )
    return people, {name: np.array(said) for name, said in by_judge.items()}


def kappa(reference: np.ndarray, choice: np.ndarray) -> float:
    table = np.zeros((5, 5))
    np.add.at(table, (reference, choice), 1)
    return float(cohen_kappas(table[None])[0])


@pytest.mark.parametrize(("judge", "key"), [("gpt-4", "gpt4"), ("gpt-3.5", "gpt3")])
def test_llmfaos_ai_judges_against_the_crowd(shared_data, judge, key):
    people, judges = crowd(llmfao(shared_data))
    of_people = majority(people, people.n_comparisons)
    held = of_people >= 0
    expected = reference_figures(shared_data, "llmfao")
    figures = expected[f"{key}_judge_vs_crowd_majority_untied_items"]

    found = alignment(known(of_people[held]), answers(judges[judge][held]))

    assert found["all"]["n"] == figures["n"]
    assert found["all"]["value"] == pytest.approx(figures["percent_agreement"], abs=1e-6)
    assert found["both_decided"]["n"] == figures["n_both_decided"]
    assert found["both_decided"]["value"] == pytest.approx(
        figures["percent_agreement_both_decided"], abs=1e-6
    )
    assert kappa(of_people[held], judges[judge][held]) == pytest.approx(
        figures["cohen_kappa"], abs=1e-6
    )
    # A tie of the judge counts a half where people chose a side: between the two figures.
    assert found["decided"]["n"] == int((of_people[held] <= B).sum())


@pytest.mark.parametrize("judge", ["gpt-3.5-turbo", "pandalm-7b"])
def test_pandalms_ai_judges_against_three_people(shared_data, judge):
    people, judges = crowd(pandalm(shared_data))
    of_people = majority(people, people.n_comparisons)
    figures = reference_figures(shared_data, "pandalm")[f"{judge}_vs_human_majority"]

    found = alignment(known(of_people), answers(judges[judge]))["all"]

    assert (of_people >= 0).all()
    assert found["n"] == figures["n"] == 999
    assert found["value"] == pytest.approx(figures["percent_agreement"], abs=1e-6)
    assert kappa(of_people, judges[judge]) == pytest.approx(figures["cohen_kappa"], abs=1e-6)
    assert int((judges[judge] == UNPARSED).sum()) == figures["unparsed"]
    assert found["low"] < found["value"] < found["high"]


ALPACA = [
    ("alpaca_eval_gpt4", "alpaca-7b"),
    ("alpaca_eval_gpt4", "falcon-7b-instruct"),
    ("alpaca_eval_gpt4", "gpt-3.5-turbo-0301"),
    ("alpaca_eval_gpt4", "vicuna-13b"),
    ("weighted_alpaca_eval_gpt4_turbo", "FuseChat-Llama-3.2-1B-Instruct"),
]


@pytest.mark.parametrize(("annotator", "model"), ALPACA)
def test_alpacaevals_win_rates_and_standard_errors(shared_data, annotator, model):
    folder = shared_data / "alpaca-eval"
    rows = read_json(folder / annotator / f"{model}.annotations.json.gz")
    # 1: the baseline is better, 2: the model; 0 and 1.5 are draws; null failed.
    wins = np.array(
        [
            np.nan
            if row["preference"] is None
            else 0.5
            if row["preference"] == 0
            else row["preference"] - 1
            for row in rows
        ]
    )
    with (folder / f"leaderboard.{annotator}.csv").open(encoding="utf-8", newline="") as file:
        [published] = [row for row in csv.DictReader(file) if row[""] == model]
    expected = reference_figures(shared_data, "alpaca-eval")[f"{annotator}/{model}"]

    found = win_rate(np.arange(len(rows)), wins)

    assert found["n"] == int(published["n_total"])
    for ours, name in ((found["value"], "win_rate"), (found["standard_error"], "standard_error")):
        assert round(100 * ours, 6) == round(float(published[name]), 6)
    assert round(100 * found["value"], 6) == expected["win_rate_percent"]
    assert round(100 * found["standard_error"], 6) == expected["standard_error"]
    assert found["low"] < found["value"] < found["high"]


def test_the_agreement_page_and_the_laboratory_say_the_same_of_llmfaos_judges(shared_data):
    people, judges = crowd(llmfao(shared_data))
    of_people = majority(people, people.n_comparisons)
    held = of_people >= 0
    n = people.n_comparisons
    for choice in judges.values():
        on_the_page = Votes(
            raters=[*people.raters, "judge"],
            is_judge=np.append(people.is_judge, True),
            n_comparisons=n,
            item=np.append(people.item, np.arange(n)),
            prompt=np.append(people.prompt, np.arange(n)),
            rater=np.append(people.rater, np.full(n, len(people.raters))),
            choice=np.append(people.choice, choice),
            **{
                name: np.append(getattr(people, name), np.full(n, empty))
                for name, empty in (
                    ("shown_first", -1),
                    ("prob_a_ab", np.nan),
                    ("prob_a_ba", np.nan),
                    ("length_a", 0),
                    ("length_b", 0),
                )
            },
        )
        [page] = judges_against_people(on_the_page)
        found = alignment(known(of_people[held]), answers(choice[held]))
        assert found["all"]["value"] == pytest.approx(page["with_ties"]["agreement"])
        assert found["both_decided"]["value"] == pytest.approx(page["without_ties"]["agreement"])
        assert found["both_decided"]["low"] == page["without_ties"]["agreement_low"]
