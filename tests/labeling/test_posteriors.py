"""From a project's votes to probabilities for each comparison, and to the report's rater models."""

import pytest

from labeling import posteriors as module
from labeling.export import ExportProblem, export_rows
from labeling.models import AgreementReport, Preference, Rater
from labeling.posteriors import NumpyMissing, posteriors
from labeling.tasks import run_agreement
from tests.factories import ComparisonFactory, PreferenceFactory, ProjectFactory, RaterFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    """Thirty comparisons: ann and bob agree, cy answers what stands first, a judge says b."""
    project = ProjectFactory(slug="tea")
    people = [RaterFactory(project=project, name=name) for name in ("ann", "bob", "cy")]
    judge = RaterFactory(project=project, name="gpt", kind=Rater.Kind.JUDGE)
    for i in range(30):
        comparison = ComparisonFactory(project=project, metadata={"topic": "xy"[i % 2]})
        truth, first = "ab"[i % 2], "ab"[i // 2 % 2]
        for rater, choice in zip(people, (truth, truth, first), strict=True):
            PreferenceFactory(
                comparison=comparison, rater=rater, choice=choice, shown_first=first, seconds=20
            )
        PreferenceFactory(comparison=comparison, rater=judge, choice="b")
    return project


def computed(project):
    report = AgreementReport.objects.create(project=project)
    run_agreement(report.pk)
    report.refresh_from_db()
    assert report.status == report.Status.SUCCEEDED
    return report


def test_every_comparison_with_a_counted_vote_has_probabilities(project):
    silent = ComparisonFactory(project=project)
    first = project.comparisons.order_by("pk").first()

    found = posteriors(project, "human")

    assert len(found) == 30
    assert found.of(first.pk)["a"] > 0.95
    assert sum(found.of(first.pk).values()) == pytest.approx(1)
    assert found.of(silent.pk) is None
    assert found.of(first.pk - 1) is None


def test_judges_count_where_they_are_asked_for(project):
    alone = ComparisonFactory(project=project)
    judge = project.raters.get(name="gpt")
    PreferenceFactory(comparison=alone, rater=judge, choice="b")
    first = project.comparisons.order_by("pk").first()

    assert posteriors(project, "human").of(alone.pk) is None
    assert posteriors(project, "ai").of(first.pk)["b"] > 0.9  # the judge alone is all there is
    assert posteriors(project, "mixed").of(alone.pk)["b"] > 0.3
    assert posteriors(project, "mixed").of(first.pk) == pytest.approx(
        posteriors(project, "human").of(first.pk), abs=0.05
    )
    assert len(posteriors(project, "all")) == 31


def test_the_same_votes_give_the_same_numbers_whoever_asked_before(project):
    before = posteriors(project).probabilities
    computed(project)

    assert (posteriors(project).probabilities == before).all()


def test_without_numpy_one_line_says_what_to_install(project, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(NumpyMissing, match=r"pip install '\.\[stats\]'"):
        posteriors(project)
    with pytest.raises(ExportProblem, match="numpy"):
        export_rows(project, "jsonl", aggregate="dawid-skene")


def test_the_report_says_whom_to_believe_and_who_leans(project):
    truth = computed(project).result["truth"]

    rows = {row["rater"]: row for row in truth["raters"]}
    assert rows["ann"]["reliability"]["value"] > 0.95
    assert rows["cy"]["reliability"]["value"] == pytest.approx(0.5, abs=0.1)
    assert rows["cy"]["side"]["low"] > 0.5
    assert rows["ann"]["side"]["low"] < 0 < rows["ann"]["side"]["high"]
    assert rows["gpt"]["is_judge"]
    assert rows["gpt"]["side"]["value"] is None  # its order of showing is not known
    assert rows["cy"]["seconds"] == 20
    assert truth["n_comparisons"] == 30
    assert [row["name"] for row in truth["models"]][:3] == ["dawid-skene", "one-coin", "majority"]


def test_a_report_on_the_same_votes_is_taken_over_and_a_new_vote_begins_where_it_ended(project):
    first = computed(project)
    assert not first.result["truth"]["warm"]

    again = computed(project)
    assert again.result == first.result
    assert again.fingerprint == first.fingerprint != ""

    some = Preference.objects.filter(rater__name="cy").first()
    some.choice = {"a": "b", "b": "a"}[some.choice]
    some.pk, earlier = None, some.pk
    Preference.objects.filter(pk=earlier).update(superseded_at=some.created_at)
    some.save()
    later = computed(project)
    assert later.fingerprint != first.fingerprint
    assert later.result["truth"]["warm"]
    assert later.result["truth"]["steps"] <= first.result["truth"]["steps"]


def test_known_answers_say_how_often_each_way_of_counting_is_right(project):
    for i, comparison in enumerate(project.comparisons.order_by("pk")):
        comparison.gold = "ab"[i % 2]
        comparison.save()

    models = {row["name"]: row for row in computed(project).result["truth"]["models"]}

    assert models["dawid-skene"]["accuracy"]["value"] == 1
    assert models["dawid-skene"]["accuracy"]["n"] == 30
    assert models["majority"]["accuracy"]["n"] < 30  # judge and leaning rater tie with the two


def test_topics_come_from_metadata_and_else_from_ticked_reasons(project):
    assert computed(project).result["topics"]["by"] == "topic"

    project.comparisons.update(metadata={})
    for i, preference in enumerate(Preference.objects.filter(rater__name="ann")):
        preference.tags = ["clear", "safe"][i % 2 :]
        preference.save()

    assert computed(project).result["topics"]["by"] == "tag"
