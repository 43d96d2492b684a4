import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import adjudication, shared
from labeling.personal_data import erase, find_person, traces
from labeling.storage import storage_path
from tests.factories import PreferenceFactory, ProjectFactory, RaterFactory, UserFactory
from tests.training.projects import answer, comparison, labeled_project
from training import datasets
from training.dataset_settings import DatasetSettings
from training.datasets import load_pairs, split_prompts
from training.models import Dataset


@given(
    st.dictionaries(st.text(min_size=1), st.sets(st.sampled_from(["train", "test"])), min_size=2),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_every_prompt_is_on_exactly_one_side_and_fixed_sides_are_kept(fixed, share, seed):
    sides = split_prompts(fixed, share, seed)

    assert sides.keys() == fixed.keys()
    assert set(sides.values()) <= {"train", "test"}
    for prompt, named in fixed.items():
        if named:
            assert sides[prompt] == ("test" if "test" in named else "train")
    if sum(not named for named in fixed.values()) >= 2:
        assert len(set(sides.values())) == 2
    assert sides == split_prompts(fixed, share, seed)


def test_prompts_that_say_nearly_the_same_share_a_side_and_what_is_fixed_for_one_of_them():
    fixed = {f"prompt {i}": set() for i in range(100)}
    first_of = {f"prompt {i}": f"prompt {i % 10}" for i in range(60)}
    fixed["prompt 33"] = {"test"}

    sides = split_prompts(fixed, 0.5, 1, first_of)

    assert sides.keys() == fixed.keys()
    assert all(sides[prompt] == sides[first] for prompt, first in first_of.items())
    assert sides["prompt 3"] == "test"
    alone = split_prompts(fixed, 0.5, 1)
    assert all(sides[f"prompt {i}"] == alone[f"prompt {i}"] for i in range(60, 100))


def test_a_prompt_stays_on_its_side_while_more_prompts_come_in():
    few = {f"prompt {i}": set() for i in range(100)}
    many = few | {f"later {i}": set() for i in range(300)}

    before, after = split_prompts(few, 0.2, 7), split_prompts(many, 0.2, 7)

    assert all(after[prompt] == side for prompt, side in before.items())
    assert 0.13 < sum(side == "test" for side in after.values()) / 400 < 0.27


pytestmark = pytest.mark.django_db


def plan(project, **settings):
    return datasets.plan(project, DatasetSettings(**{"near_duplicates": 0.0} | settings))


def freeze(project, **settings):
    return datasets.freeze(project, DatasetSettings(**{"near_duplicates": 0.0} | settings))


def rows_of(dataset):
    """Every row of the file, by the text of its prompt."""
    lines = storage_path(dataset.path).read_text().splitlines()[1:]
    return {row["prompt"][0]["content"]: row for row in map(json.loads, lines)}


def test_everything_that_is_no_pair_is_counted_under_its_reason():
    project = labeled_project(20)
    comparison(project, ann="tie")
    comparison(project, ann="a", bob="b")
    comparison(project, ann="both_bad")
    comparison(project)
    comparison(project, m_judge="unparsed")
    comparison(project, m_judge="b")
    same = comparison(project, ann="a")
    text = same.response_a.messages[0]["content"]
    same.response_b = answer(same.prompt, text, source="other model")
    same.save()

    counts = plan(project).counts

    reasons = ("ties", "disputed", "both_bad", "unlabeled", "unparsed", "same_text")
    assert {name: counts[name] for name in reasons} == dict.fromkeys(reasons, 1)
    assert (counts["human"], counts["ai"], counts["pairs"]) == (20, 1, 21)
    assert counts["train"] + counts["test"] == counts["pairs"]
    assert counts["comparisons"] == 21 + len(reasons)


def test_a_leads_decision_stands_in_place_of_the_votes():
    project = labeled_project(20)
    lead = UserFactory()
    disputed = comparison(project, question="Disputed?", ann="a", bob="b")
    outvoted = comparison(project, question="Outvoted?", ann="a", bob="a")
    unlabeled = comparison(project, question="Unlabeled?")
    tie = comparison(project, question="Equal?", ann="a")
    judged = comparison(project, question="Judged?", m_judge="a")
    for decided, choice in ((disputed, "b"), (outvoted, "b"), (unlabeled, "a"), (tie, "tie")):
        adjudication.decide(decided, lead, choice)
    adjudication.decide(judged, lead, "b")
    adjudication.decide(judged, lead, "a")
    adjudication.withdraw_decision(judged, lead)

    made = plan(project)

    rows = rows_of(freeze(project))
    asked = ("Disputed?", "Outvoted?", "Unlabeled?")
    assert [rows[question]["outcome"] for question in asked] == ["b", "b", "a"]
    assert (rows["Judged?"]["source"], rows["Judged?"]["decided"]) == ("ai", False)
    assert (made.counts["decided"], made.counts["ties"], made.counts["disputed"]) == (3, 1, 0)
    assert (made.counts["pairs"], made.counts["human"], made.counts["ai"]) == (24, 23, 1)
    # The votes that a decision overrides weigh nothing.
    assert [(r["rater"], r["n"]) for r in made.raters] == [("m_judge", 1), ("ann", 20)]
    # A dataset of AI labels stays one.
    assert plan(project, labels="ai").counts["decided"] == 0
    dataset = freeze(project)
    assert dataset.counts["decided"] == 3
    lines = storage_path(dataset.path).read_text().splitlines()[1:]
    assert sum(json.loads(line)["decided"] for line in lines) == 3
    (row,) = [r for r in map(json.loads, lines) if r["prompt"][0]["content"] == "Outvoted?"]
    assert row["votes"] == {"a": 2}
    assert row["chosen"] == outvoted.response_b.messages


def test_the_sets_of_raters_are_kept_out_of_training_and_counted():
    project = labeled_project(20)
    for purpose in ("training", "qualification", "check"):
        known = comparison(project, question=f"Right {purpose}?", ann="a")
        known.gold, known.purpose, known.open_places = "a", purpose, 0
        known.save()
        adjudication.decide(known, UserFactory(), "a")

    counts = plan(project).counts

    assert (counts["sets"], counts["gold"], counts["decided"]) == (3, 0, 0)
    assert (counts["pairs"], counts["comparisons"]) == (20, 23)


def test_a_comparison_with_a_known_answer_is_kept_out_of_training_and_counted():
    project = labeled_project(20)
    known = comparison(project, question="Which one is polite?", ann="a")
    known.gold = "a"
    known.save()

    dataset = freeze(project)

    assert (dataset.counts["gold"], dataset.counts["pairs"]) == (1, 20)
    asked = {pair.comparison for side in load_pairs(dataset) for pair in side}
    assert len(asked) == 20
    assert known.content_hash not in asked


def test_the_same_labels_give_the_same_file_whatever_the_ids_in_the_database():
    first = freeze(labeled_project(20))
    content = storage_path(first.path).read_bytes()
    Dataset.objects.all().delete()
    first.project.delete()
    RaterFactory()  # the next rater has another id

    second = freeze(labeled_project(20))

    assert storage_path(second.path).read_bytes() == content
    assert second.sha256 == first.sha256


def test_a_dataset_that_could_not_be_written_leaves_no_file(monkeypatch):
    project = labeled_project(20)

    def stop_after_the_head(head, rows, sides):
        yield b"{}\n"
        raise OSError("the disk is full")

    monkeypatch.setattr("training.datasets._lines", stop_after_the_head)
    with pytest.raises(OSError, match="the disk is full"):
        freeze(project)

    assert list(storage_path("datasets").iterdir()) == []


def test_no_prompt_is_on_both_sides_and_the_chosen_response_is_the_preferred_one():
    project = labeled_project(4)
    for i in range(30):
        comparison(project, question=f"Shared question {i % 10}?", ann="b" if i % 2 else "a")

    train, test = load_pairs(freeze(project, test_share=0.3))

    assert {pair.prompt_id for pair in train}.isdisjoint({pair.prompt_id for pair in test})
    assert (len(train) + len(test), len(test) > 0) == (34, True)
    chosen = {pair.chosen[0]["content"].split()[0] for pair in train + test}
    assert chosen == {"Thank", "Go"}
    by_question = {
        pair.prompt[0]["content"]: pair.chosen[0]["content"].split()[0]
        for pair in train + test
        if "place" in pair.prompt[0]["content"]
    }
    assert set(by_question.values()) == {"Thank"}


def test_metadata_may_fix_the_side_and_the_test_side_wins_for_a_shared_prompt():
    project = labeled_project(12)
    comparison(project, question="Q?", ann="a", metadata={"split": "train"})
    comparison(project, question="Q?", ann="a", metadata={"split": "test"})
    comparison(project, question="R?", ann="a", metadata={"split": "train"})

    dataset = freeze(project, test_share=0.2)
    train, test = load_pairs(dataset)

    assert [pair.prompt[0]["content"] for pair in test].count("Q?") == 2
    assert [pair.prompt[0]["content"] for pair in train].count("R?") == 1
    assert dataset.counts["moved_to_test"] == 1


def test_the_same_labels_and_settings_give_the_same_dataset_and_a_new_label_another():
    project = labeled_project(20)
    first = freeze(project, seed=1)

    assert freeze(project, seed=1) == first
    assert freeze(project, seed=2) != first
    comparison(project, ann="tie")  # no pair, but what was left out belongs to the dataset too
    assert freeze(project, seed=1).counts["ties"] == 1
    assert Dataset.objects.count() == 3


def test_the_file_is_named_by_its_hash_and_begins_with_what_made_it():
    project = labeled_project(20)
    comparison(project, m_judge="a")

    dataset = freeze(project, labels="mixed")

    content = storage_path(dataset.path).read_bytes()
    assert hashlib.sha256(content).hexdigest() == dataset.sha256
    head = json.loads(content.splitlines()[0])
    assert head == {
        "counts": dataset.counts,
        "filters": DatasetSettings(near_duplicates=0.0).as_json(),
        "raters": [
            {"kind": "judge", "n": 1, "rater": "m_judge"},
            {"kind": "person", "n": 20},  # an erasure changes no file
        ],
    }
    assert [(r["rater"], r["kind"], r["n"]) for r in dataset.raters] == [
        ("m_judge", "judge", 1),
        ("ann", "person", 20),
    ]
    assert len(list(storage_path("datasets").iterdir())) == 1


def test_an_erasure_takes_the_name_out_of_a_file_of_before_and_it_trains_as_before(
    django_capture_on_commit_callbacks, settings, tmp_path
):
    settings.PREFLOOP_SHARED_STORAGE = f"file://{tmp_path}/shared"
    project = labeled_project(20)
    dataset = freeze(project)
    before = load_pairs(dataset)
    path = storage_path(dataset.path)
    first, _break, rest = path.read_bytes().partition(b"\n")
    head = json.loads(first) | {"raters": [{"kind": "person", "n": 20, "rater": "ann"}]}
    content = json.dumps(head, sort_keys=True).encode() + b"\n" + rest
    sha256 = hashlib.sha256(content).hexdigest()
    relative = f"datasets/{sha256}.jsonl"
    path.rename(storage_path(relative))
    storage_path(relative).write_bytes(content)
    Dataset.objects.update(sha256=sha256, path=relative)
    shared.put(relative)
    assert traces("ann")[relative] == 1

    with django_capture_on_commit_callbacks(execute=True):
        pseudonym = erase(find_person("ann", project), None)

    dataset.refresh_from_db()
    assert traces("ann") == {}
    assert (dataset.sha256, [r["rater"] for r in dataset.raters]) == (sha256, [pseudonym])
    assert load_pairs(dataset) == before
    elsewhere = storage_path(relative)  # another machine still has the copy of before
    redacted = elsewhere.read_bytes()
    elsewhere.write_bytes(content)
    assert load_pairs(dataset) == before
    assert elsewhere.read_bytes() == redacted
    settings.PREFLOOP_SHARED_STORAGE = ""
    elsewhere.write_bytes(redacted.replace(b"Thank you", b"Thanks, u"))
    with pytest.raises(ValueError, match="was changed after it was frozen"):
        load_pairs(dataset)


def test_a_file_that_was_changed_or_lost_is_refused():
    dataset = freeze(labeled_project(20))
    path = storage_path(dataset.path)
    path.write_bytes(path.read_bytes().replace(b"Thank you", b"Thanks, u"))

    with pytest.raises(ValueError, match="was changed after it was frozen"):
        load_pairs(dataset)
    path.unlink()
    with pytest.raises(ValueError, match="is gone from the storage folder"):
        load_pairs(dataset)


def test_a_taken_back_answer_and_another_projects_labels_do_not_count():
    project = labeled_project(20)
    withdrawn = comparison(project)
    PreferenceFactory(comparison=withdrawn, choice="a", superseded_at="2026-01-01T00:00:00Z")
    comparison(ProjectFactory(), ann="a")

    counts = plan(project).counts

    assert (counts["pairs"], counts["unlabeled"]) == (20, 1)


def test_what_is_missing_is_said_in_words():
    project = ProjectFactory()
    for _ in range(3):
        comparison(project, ann="tie")
    with pytest.raises(ValueError, match=r"no clear preference by AI judges yet$"):
        freeze(project, labels="ai")
    with pytest.raises(ValueError, match=r"people or AI judges yet \(3 ties\)"):
        freeze(project)
    for _ in range(6):
        comparison(project, ann="a")
    with pytest.raises(ValueError, match=r"too few pairs: . for training, at least 8 are needed"):
        freeze(project)
    lonely = ProjectFactory()
    for _ in range(12):
        comparison(lonely, question="Always the same?", ann="a")
    with pytest.raises(ValueError, match="no test pair: at least two prompts are needed"):
        freeze(lonely)


def test_the_number_of_queries_does_not_grow_with_the_labels(django_assert_num_queries):
    small, large = labeled_project(10), ProjectFactory()
    for i in range(40):
        comparison(large, ann="a", bob="a", **{f"r{i}": "b"})

    with django_assert_num_queries(4):
        plan(small)
    with django_assert_num_queries(4):
        plan(large)
