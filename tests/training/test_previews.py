"""The figures of a dataset before it is frozen, and the job that computes them."""

import pytest

from labeling.models import Change
from labeling.storage import storage_path
from tests.factories import UserFactory
from tests.training.projects import comparison, labeled_project
from training.dataset_settings import DatasetSettings
from training.datasets import freeze
from training.models import Dataset, DatasetDraft
from training.previews import build
from training.tasks import build_dataset

pytestmark = pytest.mark.django_db

LONG = "Write a short letter to the council about the noise of the new road near the old school"


@pytest.fixture
def project():
    """20 plain pairs, 30 with three votes of which one differs in every third."""
    project = labeled_project(20)
    for i in range(30):
        last = "b" if i % 3 == 0 else "a"
        comparison(project, question=f"What is {i} times {i + 7}?", ann="a", bob="a", cem=last)
    return project


def preview_of(project, **settings):
    return build(project, DatasetSettings(**settings), freezing=False)[0]


def test_the_preview_holds_counts_agreement_and_lengths(project):
    found = preview_of(project)

    assert (found["counts"]["pairs"], found["labels"], found["problem"]) == (50, {"human": 50}, "")
    agreement = found["percent_agreement"]
    assert (agreement["n"], agreement["value"]) == (30, pytest.approx((20 * 3 + 10) / 90))
    assert agreement["low"] < agreement["value"] < agreement["high"]
    assert found["alpha"]["n"] == 30
    assert [sum(bins) for bins in found["lengths"].values()] == [50, 50, 50]
    longer = found["longer_chosen"]
    assert (longer["n"], longer["low"] <= longer["value"] <= longer["high"]) == (50, True)
    assert Dataset.objects.count() == 0


def test_prompts_that_say_nearly_the_same_stay_on_one_side_or_are_told_of(project):
    for i in range(12):
        comparison(project, question=f"{LONG}, please {'really ' * i}", ann="a")
    comparison(project, question=LONG.upper(), ann="a", metadata={"split": "test"})

    together = preview_of(project, test_share=0.5)["duplicates"]
    assert (together["kept_together"], together["n_divided"]) == (True, 0)
    assert together["n_alike"] >= 5
    assert together["n_divided_by_draw"] > 0
    apart = preview_of(project, test_share=0.5, near_duplicates=0)["duplicates"]
    assert (apart["kept_together"], apart["threshold"]) == (False, 0.8)
    assert apart["n_divided"] > 0
    assert set(apart["examples"][0]["sides"]) == {"train", "test"}
    assert apart["examples"][0]["likeness"] >= 0.8
    counts = preview_of(project, test_share=0.5)["counts"]
    assert counts["near_duplicates"] == together["n_alike"]


def test_training_prompts_that_raters_or_models_are_measured_on_are_named(project):
    exact = comparison(project, question="Which one is polite?", ann="a")
    exact.metadata = {"split": "train"}
    exact.save()
    known = comparison(project, question="Which one is polite?", ann="a")
    near = comparison(project, question=f"{LONG}, please", ann="a", metadata={"split": "train"})
    gold = comparison(project, question=LONG, ann="a")
    for row, purpose in ((known, "work"), (gold, "qualification")):
        row.gold, row.purpose, row.open_places = "a", purpose, 0
        row.save()
    found = preview_of(project)["leaks"]

    assert (found["n_exact"], found["n_near"], found["n_evaluation_prompts"]) == (1, 1, 2)
    assert found["by_set"] == [
        {"name": "gold", "exact": 1, "near": 0},
        {"name": "qualification", "exact": 0, "near": 1},
    ]
    assert found["examples"][1]["one"] == near.prompt.messages[0]["content"]
    earlier = freeze(project, DatasetSettings(seed=5, test_share=0.4, near_duplicates=0.0))
    found = preview_of(project)["leaks"]
    (of_dataset,) = [row for row in found["by_set"] if row["name"] == earlier.sha256[:12]]
    assert 0 < of_dataset["exact"] <= earlier.counts["test_prompts"]
    same_draw = preview_of(project, seed=5, test_share=0.4, near_duplicates=0)["leaks"]
    assert all(row["name"] != earlier.sha256[:12] for row in same_draw["by_set"])


def test_a_worker_freezes_what_it_previews_and_notes_it(project):
    lead = UserFactory()
    settings = DatasetSettings(aggregate="soft")
    draft = DatasetDraft.objects.create(
        project=project, filters=settings.as_json(), freezing=True, created_by=lead
    )

    build_dataset(draft.pk)

    draft.refresh_from_db()
    assert (draft.status, draft.error) == ("succeeded", "")
    assert draft.dataset.preview == draft.result
    assert draft.dataset.counts["pairs"] == 50
    assert draft.dataset.filters == settings.as_json()
    change = Change.objects.get()
    assert (change.action, change.actor) == ("freeze dataset", lead)
    assert len(list(storage_path("datasets").iterdir())) == 1


def test_a_job_that_cannot_end_well_says_why_in_words(project):
    def ended(**filters):
        draft = DatasetDraft.objects.create(
            project=project, filters=DatasetSettings(**filters).as_json(), freezing=True
        )
        build_dataset(draft.pk)
        draft.refresh_from_db()
        return draft.status, draft.error

    reason = "No pair to train on: no clear preference by AI judges yet"
    assert ended(labels="ai") == ("failed", reason)
    assert Dataset.objects.count() == 0


def test_a_cancelled_job_ends_without_a_dataset(project):
    draft = DatasetDraft.objects.create(
        project=project, filters=DatasetSettings().as_json(), freezing=True
    )
    DatasetDraft.objects.filter(pk=draft.pk).update(cancel_requested=True)

    build_dataset(draft.pk)

    draft.refresh_from_db()
    assert (draft.status, draft.dataset) == ("cancelled", None)
    assert list(storage_path("datasets").iterdir()) == []
