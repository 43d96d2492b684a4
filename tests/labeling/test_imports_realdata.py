"""Real files of the forms that are recognised, whole; their published counts are met."""

import gzip
import json
from pathlib import Path

import pytest

from labeling.imports.foreign.dialogues import dialogue
from labeling.imports.importing import import_file
from labeling.models import Comparison, Preference, Rater
from tests.factories import ProjectFactory
from tests.real_data import llmfao, pandalm, write_jsonl

pytestmark = [pytest.mark.realdata, pytest.mark.django_db]


def imported(path: Path, tmp_path: Path, **options):
    """The report of a file; its rejects, if any, are written elsewhere than beside it."""
    return import_file(ProjectFactory(), path, reject_path=tmp_path / "rejects.jsonl", **options)


def test_llmfao_arrives_with_every_vote_and_both_judges(shared_data, tmp_path):
    path = write_jsonl(llmfao(shared_data), tmp_path / "llmfao.jsonl")
    report = imported(path, tmp_path, labels_per_comparison=5)
    assert (report.rows, report.created, report.rejected) == (2139, 2139, 0)
    assert (report.preferences, report.verdicts, report.unparsed) == (8931, 2 * 2139, 0)
    assert Rater.objects.filter(kind="person").count() == 124
    votes = Preference.objects.filter(rater__kind=Rater.Kind.PERSON)
    counts = {choice: votes.filter(choice=choice).count() for choice in ("a", "b", "tie")}
    assert counts == {"a": 2911, "b": 2549, "tie": 3471}
    # five people were wanted for each comparison, and many were judged by fewer
    wanted = sum(Comparison.objects.values_list("open_places", flat=True))
    assert wanted == 5 * 2139 - 8931
    again = import_file(Comparison.objects.first().project, path)
    assert (again.created, again.duplicates, again.known_votes) == (0, 2139, 8931 + 2 * 2139)


def test_llmfaos_own_files_are_understood_as_they_are(shared_data, tmp_path):
    project = ProjectFactory()
    folder = shared_data / "llmfao"
    options = {"reject_path": tmp_path / "rejects.jsonl"}
    pairs = import_file(project, folder / "pairs-crowd.jsonl.gz", **options)
    votes = import_file(project, folder / "crowd-comparisons.csv.gz", **options)
    assert (pairs.format, pairs.created, pairs.rejected) == ("pairs", 2139, 0)
    assert (votes.format, votes.preferences, votes.rejected) == ("votes", 8931, 0)
    assert project.raters.count() == 124


def test_pandalm_arrives_with_its_unreadable_verdicts_counted(shared_data, tmp_path):
    path = write_jsonl(pandalm(shared_data), tmp_path / "pandalm.jsonl")
    report = imported(path, tmp_path)
    assert (report.rows, report.created, report.rejected) == (999, 999, 0)
    assert (report.preferences, report.verdicts, report.unparsed) == (3 * 999, 2 * 999, 25)
    assert sorted(Rater.objects.filter(kind="person").values_list("name", flat=True)) == [
        "annotator1",
        "annotator2",
        "annotator3",
    ]
    unparsed = Preference.objects.filter(choice="unparsed")
    assert set(unparsed.values_list("rater__name", flat=True)) == {"gpt-3.5-turbo"}


HH = {
    "harmless-base.train.jsonl.gz": ("hh-rlhf", 1380, 976),
    "harmless-base.test.jsonl.gz": ("hh-rlhf", 342, 243),
    "helpful-base.train.json.gz": ("scored", 1405, 974),
    "helpful-base.test.json.gz": ("scored", 378, 274),
}


@pytest.mark.parametrize("name", HH)
def test_every_transcript_of_hh_rlhf_is_split_at_its_answer(shared_data, tmp_path, name):
    form, n_pairs, n_multi_turn = HH[name]
    path = shared_data / "hh-rlhf" / name
    report = imported(path, tmp_path)
    assert (report.format, report.created, report.rejected) == (form, n_pairs, 0)
    assert report.preferences == n_pairs
    with gzip.open(path, "rt", encoding="utf-8") as file:
        if form == "hh-rlhf":
            texts = [(r["chosen"], r["rejected"]) for r in map(json.loads, file)]
        else:
            texts = [tuple(record["text"]) for record in json.load(file)]

    rows = Comparison.objects.select_related("prompt", "response_a", "response_b").order_by("pk")
    labels = dict(Preference.objects.values_list("comparison", "choice"))
    n_chosen_is_a = 0
    for row, (chosen, rejected) in zip(rows, texts, strict=True):
        assert row.prompt.messages[0]["role"] == "user"
        assert row.prompt.messages[-1]["role"] == "user"
        sides = [row.response_a.messages, row.response_b.messages]
        assert sides[0] != sides[1]
        assert {side[0]["role"] for side in sides} == {"assistant"}
        better, worse = sides if labels[row.pk] == "a" else reversed(sides)
        # nothing of the transcripts is lost, and the label points to the chosen one
        assert row.prompt.messages + better == dialogue(chosen)
        assert row.prompt.messages + worse == dialogue(rejected)
        n_chosen_is_a += labels[row.pk] == "a"
    turns = [len(row.prompt.messages) for row in rows]
    assert sum(n > 1 for n in turns) == n_multi_turn
    assert n_pairs * 0.43 < n_chosen_is_a < n_pairs * 0.57


def test_harmless_labels_prefer_the_shorter_answer_as_published(shared_data, tmp_path):
    imported(shared_data / "hh-rlhf" / "harmless-base.train.jsonl.gz", tmp_path)
    longer = total = 0
    for label in Preference.objects.select_related(
        "comparison__response_a", "comparison__response_b"
    ):
        sides = label.comparison.response_a.n_chars, label.comparison.response_b.n_chars
        chosen, rejected = sides if label.choice == "a" else reversed(sides)
        total += chosen != rejected
        longer += chosen > rejected
    assert longer / total == pytest.approx(0.4436, abs=0.002)


ALPACA = {
    "alpaca_eval_gpt4/alpaca-7b": {"a": 584, "b": 205, "tie": 16},
    "alpaca_eval_gpt4/gpt-3.5-turbo-0301": {"a": 83, "b": 716, "tie": 5, "unparsed": 1},
}


@pytest.mark.parametrize("name", ALPACA)
def test_alpaca_eval_annotations_arrive_whole(shared_data, tmp_path, name):
    report = imported(shared_data / "alpaca-eval" / f"{name}.annotations.json.gz", tmp_path)
    assert (report.format, report.created, report.verdicts) == ("alpaca-eval", 805, 805)
    found: dict[str, int] = {}
    for choice in Preference.objects.values_list("choice", flat=True):
        found[choice] = found.get(choice, 0) + 1
    assert found == ALPACA[name]


def test_webgpt_ties_are_ties(shared_data, tmp_path):
    report = imported(shared_data / "webgpt-comparisons" / "webgpt.shared.json.gz", tmp_path)
    assert (report.format, report.created, report.rejected) == ("scored", 620, 0)
    assert Preference.objects.filter(choice="tie").count() == 175


@pytest.mark.parametrize(("language", "n_known"), [("en", 5), ("zh", 11)])
def test_sharegpt_pairs_arrive_in_any_script(shared_data, tmp_path, language, n_known):
    report = imported(shared_data / "dpo-format-demo" / f"dpo_{language}_demo.json.gz", tmp_path)
    assert (report.format, report.rows, report.duplicates) == ("sharegpt", 300, n_known)
    assert report.rejected == 0


def test_strict_argument_pairs_arrive_from_their_tables(shared_data, tmp_path):
    """Their prompt stands in the file's name, so each row is given it first."""
    path = sorted((shared_data / "ukpconvarg1" / "strict-csv").glob("firefox*.csv.gz"))[0]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header, *lines = [line.rstrip("\n").split("\t") for line in file]
    records = [
        dict(zip(header, cells, strict=True)) | {"prompt": "Which browser?"} for cells in lines
    ]
    report = imported(write_jsonl(iter(records), tmp_path / "ukp.jsonl"), tmp_path)
    assert report.format == "pairs"
    assert report.rows == len(records)
    assert report.preferences == len(records) - report.rejected_votes - report.known_votes
