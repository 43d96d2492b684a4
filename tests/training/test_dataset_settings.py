"""What each setting of a dataset does to its rows, and what it refuses."""

import json
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from labeling import adjudication
from labeling.models import Flag, Preference, Project
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.training.projects import comparison, labeled_project
from training.dataset_settings import DatasetSettings, make_settings, stored_settings
from training.datasets import freeze, load_pairs, plan
from training.models import Dataset


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": "all"}, "labels is 'all'; it must be one of mixed, human, ai"),
        ({"colour": 1}, "a dataset has no setting 'colour'; it has kind, "),
        ({"test_share": "1"}, "test_share must lie between 0 and 1"),
        ({"test_share": "nan"}, "test_share must lie between 0 and 1"),
        ({"least_votes": "0"}, "least_votes must lie between 1 and 2147483647"),
        ({"least_votes": "1.5"}, "least_votes must be a whole number, not '1.5'"),
        ({"seed": 0.5}, "seed must be a whole number, not 0.5"),
        ({"decisions": "perhaps"}, "decisions must be true or false, not 'perhaps'"),
        ({"since": "yesterday"}, "since must be a day such as 2026-01-31, not 'yesterday'"),
        ({"since": "2026-02-02", "until": "2026-02-01"}, "since must not be later than until"),
        ({"sources": "a,b", "sources_excluded": "b"}, "sources_excluded names b, which sources"),
        ({"ties": "half", "weights": "certainty"}, "ties as one half would have the weight 0"),
        ({"labels": "human", "ai_labels": "calibrated"}, "labels asks for people only"),
        ({"near_duplicates": 0.2}, "near_duplicates must be 0, or lie between 0.5 and 1"),
        ({"sources": [1]}, r"sources must be a list of names, not \[1\]"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(given, message):
    with pytest.raises(ValueError, match=message):
        make_settings(given)


def test_stored_settings_load_again_and_old_ones_mean_what_was_done_then():
    made = make_settings({"sources": " a, b ,a", "least_votes": "2", "decisions": "no"})

    assert (made.sources, made.least_votes, made.decisions) == (("a", "b"), 2, False)
    assert stored_settings(json.loads(json.dumps(made.as_json()))) == made
    old = {"labels": "ai", "aggregate": "majority", "test_share": 0.2, "seed": 3}
    assert stored_settings(old) == DatasetSettings(
        labels="ai", test_share=0.2, seed=3, near_duplicates=0.0
    )


pytestmark = pytest.mark.django_db


def frozen(project, **settings) -> dict[str, list[dict]]:
    """The rows of the dataset by the text of their prompt; the project's own left away."""
    dataset = freeze(project, DatasetSettings(**{"near_duplicates": 0.0} | settings))
    rows: dict[str, list[dict]] = {}
    for line in storage_path(dataset.path).read_text().splitlines()[1:]:
        row = json.loads(line)
        asked = row["prompt"][0]["content"]
        if not asked.startswith("Tell me"):
            rows.setdefault(asked, []).append(row)
    return rows


def counted(project, **settings):
    return plan(project, DatasetSettings(**{"near_duplicates": 0.0} | settings)).counts


@pytest.fixture
def project():
    return labeled_project(20)


def test_the_same_votes_are_one_hard_label_a_share_or_a_row_each(project):
    comparison(project, question="Split?", ann="a", bob="b", cem="a")

    (hard,) = frozen(project)["Split?"]
    assert (hard["outcome"], hard["prob"], hard["weight"]) == ("a", 1.0, 1.0)
    assert hard["votes"] == {"a": 2, "b": 1}
    (soft,) = frozen(project, aggregate="soft")["Split?"]
    assert (soft["outcome"], soft["prob"]) == ("a", 0.666667)
    votes = frozen(project, aggregate="votes")["Split?"]
    assert [(row["outcome"], row["prob"], row["votes"]) for row in votes] == [
        ("a", 1.0, {"a": 1}), ("b", 1.0, {"b": 1}), ("a", 1.0, {"a": 1}),
    ]  # fmt: skip
    assert votes[0]["chosen"] == votes[1]["rejected"]
    (weighed,) = frozen(project, aggregate="dawid-skene")["Split?"]
    assert weighed["outcome"] == "a"
    assert 0.5 < weighed["prob"] < 1


def test_weights_are_the_certainty_of_the_votes_or_their_number(project):
    comparison(project, question="Split?", ann="a", bob="b", cem="a")
    even = comparison(project, question="Even?", ann="a", bob="b")
    adjudication.decide(even, UserFactory(), "b")

    rows = frozen(project, weights="certainty")
    assert [rows[asked][0]["weight"] for asked in ("Split?", "Even?")] == [0.333333, 1.0]
    rows = frozen(project, weights="votes")
    assert [rows[asked][0]["weight"] for asked in ("Split?", "Even?")] == [3.0, 2.0]
    assert counted(project, weights="votes", decisions=False)["disputed"] == 1


def test_ties_are_left_out_or_train_as_one_half_or_stay_in_the_file(project):
    comparison(project, question="Equal?", ann="tie")
    comparison(project, question="Bad?", ann="both_bad")

    assert frozen(project) == {}
    assert (counted(project)["ties"], counted(project)["both_bad"]) == (1, 1)
    half = frozen(project, ties="half")["Equal?"][0]
    assert (half["outcome"], half["prob"], half["weight"]) == ("tie", 0.5, 1.0)
    counts = counted(project, ties="half")
    assert (counts["pairs"], counts["ties"], counts["ties_half"]) == (21, 0, 1)
    kept = frozen(project, ties="kept")["Equal?"][0]
    assert kept["outcome"] == "tie"
    counts = counted(project, ties="kept")
    assert (counts["pairs"], counts["ties_kept"]) == (20, 1)
    assert counts["train"] + counts["test"] == 20
    for dataset in Dataset.objects.all():
        train, test = load_pairs(dataset)
        assert (len(train), len(test)) == (dataset.counts["train"], dataset.counts["test"])


def test_what_is_left_out_is_counted_under_its_reason(project):
    comparison(project, question="One vote?", ann="a")
    split = comparison(project, question="Split?", ann="a", bob="b", cem="a")
    strong = comparison(project, question="Strong?", ann="b", bob="b", cem="b")
    strong.preferences.update(strength=3)
    Preference.objects.filter(comparison=split).update(tags=["rude"])
    Flag.objects.create(comparison=strong, rater=project.raters.first(), kind="private")

    assert set(frozen_pairs(project, least_votes=2)) == {"Split?", "Strong?"}
    assert counted(project, least_votes=2)["few_votes"] == 21
    assert counted(project, least_agreement=0.9)["low_agreement"] == 1
    assert counted(project, least_strength=2)["weak"] == 22
    assert counted(project, tags_excluded=("rude",))["tagged"] == 1
    assert counted(project, flagged_excluded=True)["flagged"] == 1
    longest = max(strong.response_a.n_chars, strong.response_b.n_chars)
    assert counted(project, longest_response=longest)["too_long"] == 0
    assert counted(project, longest_response=5)["too_long"] == 23


def frozen_pairs(project, **settings) -> list[str]:
    return list(plan_rows(project, **settings))


def plan_rows(project, **settings) -> dict[str, str]:
    rows = {}
    plan(
        project,
        DatasetSettings(**{"near_duplicates": 0.0} | settings),
        with_texts=True,
        on_row=lambda found: rows.setdefault(found.row.prompt[0]["content"], found.choice),
    )
    return rows


def test_sources_of_responses_are_asked_for_or_kept_out(project):
    made = comparison(project, question="Whose?", ann="a")
    for response, source in ((made.response_a, "new model"), (made.response_b, "old model")):
        response.source = source
        response.save()

    assert list(plan_rows(project, sources=("new model", "old model"))) == ["Whose?"]
    assert plan_rows(project, sources=("new model",)) == {}
    assert counted(project, sources_excluded=("old model",))["other_source"] == 1


def test_only_answers_of_the_asked_days_count(project):
    late = comparison(project, question="Late?", ann="a", bob="b")
    Preference.objects.update(created_at=datetime(2026, 1, 31, 23, 59, tzinfo=UTC))
    late.preferences.filter(choice="b").update(created_at=datetime(2026, 2, 1, tzinfo=UTC))

    assert plan_rows(project, until="2026-01-31")["Late?"] == "a"
    assert plan_rows(project, since="2026-02-01") == {"Late?": "b"}
    assert counted(project, since="2026-02-02")["unlabeled"] == 21


def test_a_calibrated_judge_speaks_by_its_corrected_probability(project):
    """Also where that speaks for the other side; answers of other judges do not count."""
    turned = comparison(project, question="Turned?", gpt_judge="a")
    comparison(project, question="Raw?", raw_judge="a")
    turned.preferences.update(prob_a=0.4)
    judge = turned.preferences.get().rater
    assert counted(project, ai_labels="calibrated")["unlabeled"] == 2

    judge.calibrated_at = timezone.now()
    judge.save()

    for aggregate in ("majority", "votes", "soft"):
        rows = frozen(project, ai_labels="calibrated", aggregate=aggregate)
        assert list(rows) == ["Turned?"]
        (row,) = rows["Turned?"]
        assert (row["outcome"], row["prob"], row["source"]) == ("b", 0.6, "ai")


def test_only_certified_answers_of_judges_count_and_only_under_a_certificate_in_force(project):
    Project.objects.filter(pk=project.pk).update(certificate_in_force=True)
    comparison(project, question="Certified?", gpt_judge="b").preferences.update(certified=True)
    comparison(project, question="Not?", gpt_judge="b")

    assert frozen(project, ai_labels="certified")["Certified?"][0]["outcome"] == "b"
    counts = counted(project, ai_labels="certified")
    assert (counts["ai"], counts["human"], counts["unlabeled"]) == (1, 20, 1)

    # Revoked: the mark may stay for a while, what it says does not.
    Project.objects.filter(pk=project.pk).update(certificate_in_force=False)
    counts = counted(project, ai_labels="certified")
    assert (counts["ai"], counts["human"], counts["unlabeled"]) == (0, 20, 2)


def test_equal_votes_give_an_equal_file_whatever_the_order_they_came_in():
    first = labeled_project(20)
    comparison(first, question="Split?", ann="a", bob="b", cem="a")
    settings = DatasetSettings(aggregate="votes", near_duplicates=0.0)
    one = freeze(first, settings).sha256
    Dataset.objects.all().delete()
    first.delete()
    second = labeled_project(20)
    comparison(second, question="Split?", cem="a", bob="b", ann="a")

    assert freeze(second, settings).sha256 == one
