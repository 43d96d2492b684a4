"""The agreement command: from rows (and from real files) to figures."""

import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from labeling.models import Choice, Preference, Rater
from labeling.votes import changed_since, state_of, votes_of
from tests import real_data
from tests.factories import (
    ComparisonFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    ResponseFactory,
)

pytestmark = pytest.mark.django_db

KEYS = {
    "n_comparisons", "n_people", "n_preferences", "krippendorff_alpha", "percent_agreement",
    "fleiss_kappa", "cohen_kappa", "judges", "raters",
}  # fmt: skip


def figures(slug):
    out = StringIO()
    call_command("agreement", project=slug, json=True, stdout=out)
    return json.loads(out.getvalue())


def text(slug):
    out = StringIO()
    call_command("agreement", project=slug, stdout=out)
    return out.getvalue()


def labelled_project():
    """Three comparisons, two people who agree on two of them, and a judge."""
    project = ProjectFactory(slug="tea")
    ann, bob = (RaterFactory(project=project, name=name) for name in ("ann", "bob"))
    judge = RaterFactory(project=project, name="gpt", kind=Rater.Kind.JUDGE)
    answers = [("a", "a", "a"), ("b", "b", "unparsed"), ("tie", "a", "b")]
    for choices in answers:
        comparison = ComparisonFactory(project=project)
        for rater, choice in zip((ann, bob, judge), choices, strict=True):
            PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
    return project


def test_json_has_the_promised_keys_and_numbers():
    labelled_project()

    printed = figures("tea")

    assert set(printed) >= KEYS
    assert printed["n_comparisons"] == 3
    assert printed["n_people"] == 2
    assert printed["n_preferences"] == 6
    assert printed["percent_agreement"]["value"] == pytest.approx(2 / 3)
    assert set(printed["krippendorff_alpha"]) >= {"value", "low", "high", "n"}
    (pair,) = printed["cohen_kappa"]
    assert {pair["rater_1"], pair["rater_2"]} == {"ann", "bob"}
    assert pair["n"] == 3
    (judge,) = printed["judges"]
    assert judge["with_ties"]["n"] == 2  # the third has no untied majority
    assert judge["with_ties"]["agreement"] == 0.5
    assert judge["without_ties"]["n"] == 1
    assert judge["unparsed"] == 1
    assert [rater["n"] for rater in printed["raters"]] == [3, 3]


def test_an_empty_project_prints_refusals_with_reasons():
    ProjectFactory(slug="empty")

    printed = figures("empty")

    assert printed["krippendorff_alpha"]["value"] is None
    assert printed["krippendorff_alpha"]["why"].startswith("No comparison has votes of two people")
    assert printed["raters"] == []
    assert "No comparison has votes of two people" in text("empty")


def test_an_unknown_project_is_a_wrong_call():
    with pytest.raises(CommandError, match="no project 'nowhere'") as error:
        figures("nowhere")

    assert error.value.returncode == 2


def test_text_shows_values_with_interval_and_n():
    labelled_project()

    printed = text("tea")

    assert "3 comparisons, 6 preferences of 2 people, 3 verdicts of 1 AI judges" in printed
    line = next(row for row in printed.splitlines() if "agreeing pairs of votes" in row)
    assert "0.6667" in line
    assert "[" in line
    assert "n = 3 comparisons" in line
    assert "6 votes of 2 people, 0.0% of their places empty" in printed


def test_votes_are_current_and_of_this_project_alone(django_assert_num_queries):
    project = labelled_project()
    labelled = project.comparisons.first()
    PreferenceFactory(
        comparison=labelled,
        rater=RaterFactory(project=project, name="cy"),
        superseded_at="2026-01-01T00:00Z",
    )
    PreferenceFactory()

    with django_assert_num_queries(4):  # raters, votes, comparisons, their number
        votes = votes_of(project)

    assert len(votes) == 9
    assert votes.raters == ["ann", "bob", "gpt", "cy"]
    assert votes.is_judge.tolist() == [False, False, True, False]


def test_votes_leave_out_what_raters_are_tried_with():
    project = labelled_project()
    before = state_of(project)
    known = ComparisonFactory(project=project, gold="a", purpose="check", open_places=0)
    for rater in project.raters.all():
        PreferenceFactory(comparison=known, rater=rater, choice="a")

    votes = votes_of(project)

    assert len(votes) == before[0] == 9
    assert votes.n_comparisons == project.comparisons.count() - 1
    assert state_of(project) == before
    assert changed_since(project, *before) == (0, 0)


def test_votes_carry_sides_probabilities_and_lengths():
    project = ProjectFactory()
    comparison = ComparisonFactory(
        project=project,
        response_a=ResponseFactory(n_chars=10),
        response_b=ResponseFactory(n_chars=90),
    )
    PreferenceFactory(
        comparison=comparison, choice=Choice.B, shown_first="b", prob_a_ab=0.25, prob_a_ba=None
    )

    votes = votes_of(project)

    assert (votes.choice[0], votes.shown_first[0]) == (1, 1)
    assert votes.prob_a_ab[0] == 0.25
    assert votes.prob_a_ba[0] != votes.prob_a_ba[0]  # not a number: there is none
    assert (votes.length_a[0], votes.length_b[0]) == (10, 90)
    assert votes.prompt[0] == comparison.prompt_id


def test_text_says_that_whole_prompts_were_drawn_and_why_there_is_no_interval():
    project = labelled_project()
    assert "1,000 resamples of whole comparisons" in text("tea")
    first = project.comparisons.first()
    PreferenceFactory(
        comparison=ComparisonFactory(project=project, prompt=first.prompt),
        rater=project.raters.first(),
    )

    printed = text("tea")

    assert "1,000 resamples of whole prompts" in printed
    assert "no interval: Fewer than 10 prompts" in printed


def test_new_and_withdrawn_answers_are_told_apart():
    project = labelled_project()
    n, last = state_of(project)
    assert changed_since(project, n, last) == (0, 0)

    PreferenceFactory(comparison=project.comparisons.first())
    Preference.objects.filter(pk=last).update(superseded_at="2026-01-01T00:00Z")

    assert changed_since(project, n, last) == (1, 1)
    assert state_of(ProjectFactory()) == (0, 0)


# Real files, through the import and the command ---------------------------------------------------


def reference(shared_data, name):
    return json.loads((shared_data / "reference_figures.json").read_text())["datasets"][name]


def imported(records, tmp_path, slug):
    file = real_data.write_jsonl(records, tmp_path / f"{slug}.jsonl")
    call_command("import_comparisons", str(file), project=slug, create=True, stdout=StringIO())
    return figures(slug)


@pytest.mark.realdata
@pytest.mark.slow
def test_llmfao_from_its_file_to_the_reference_figures(shared_data, tmp_path):
    expected = reference(shared_data, "llmfao")

    found = imported(real_data.llmfao(shared_data), tmp_path, "llmfao")

    assert (found["n_comparisons"], found["n_people"], found["n_preferences"]) == (2139, 124, 8931)
    assert found["krippendorff_alpha"]["value"] == pytest.approx(0.290595, abs=1e-4)
    assert found["krippendorff_alpha"]["n"] == expected["items_with_2_or_more_votes"]
    assert found["percent_agreement"]["value"] == pytest.approx(0.532226, abs=1e-4)
    assert found["fleiss_kappa"]["value"] == pytest.approx(0.292499, abs=1e-4)
    assert found["fleiss_kappa"]["n"] == 998
    assert len(found["raters"]) == 124
    assert sum(rater["n"] for rater in found["raters"]) == 8931
    shares = expected["left_share_of_decided_votes"]
    assert found["position"]["value"] == pytest.approx(shares["crowd"], abs=1e-4)
    judges = {judge["rater"]: judge for judge in found["judges"]}
    for name, key in (("gpt-4", "gpt4"), ("gpt-3.5", "gpt3")):
        figure = expected[f"{key}_judge_vs_crowd_majority_untied_items"]
        with_ties, decided = judges[name]["with_ties"], judges[name]["without_ties"]
        assert with_ties["n"] == figure["n"] == 1831
        assert with_ties["agreement"] == pytest.approx(figure["percent_agreement"], abs=1e-4)
        assert with_ties["kappa"] == pytest.approx(figure["cohen_kappa"], abs=1e-4)
        assert decided["n"] == figure["n_both_decided"]
        assert decided["agreement"] == pytest.approx(
            figure["percent_agreement_both_decided"], abs=1e-4
        )
        assert decided["kappa"] == pytest.approx(figure["cohen_kappa_both_decided"], abs=1e-4)
        assert judges[name]["first_shown_share"] == pytest.approx(shares[key], abs=1e-4)
        assert judges[name]["unparsed"] == 0
        assert with_ties["kappa_low"] < with_ties["kappa"] < with_ties["kappa_high"]


@pytest.mark.realdata
def test_pandalm_from_its_file_to_the_reference_figures(shared_data, tmp_path):
    expected = reference(shared_data, "pandalm")

    found = imported(real_data.pandalm(shared_data), tmp_path, "pandalm")

    assert (found["n_comparisons"], found["n_people"], found["n_preferences"]) == (999, 3, 2997)
    assert found["krippendorff_alpha"]["value"] == pytest.approx(0.864221, abs=1e-4)
    assert found["percent_agreement"]["value"] == pytest.approx(0.91992, abs=1e-4)
    assert found["fleiss_kappa"]["value"] == pytest.approx(0.864175, abs=1e-4)
    kappas = {frozenset((p["rater_1"], p["rater_2"])): p for p in found["cohen_kappa"]}
    assert len(kappas) == 3
    for names, figure in expected["annotator_pairs"].items():
        pair = kappas[frozenset(names.split(" vs "))]
        assert pair["value"] == pytest.approx(figure["cohen_kappa"], abs=1e-4)
        assert pair["agreement"] == pytest.approx(figure["percent_agreement"], abs=1e-4)
        assert pair["n"] == 999
    judges = {judge["rater"]: judge for judge in found["judges"]}
    for name in ("gpt-3.5-turbo", "pandalm-7b"):
        figure = expected[f"{name}_vs_human_majority"]
        assert judges[name]["with_ties"]["n"] == 999
        assert judges[name]["with_ties"]["kappa"] == pytest.approx(figure["cohen_kappa"], abs=1e-4)
        assert judges[name]["with_ties"]["agreement"] == pytest.approx(
            figure["percent_agreement"], abs=1e-4
        )
        assert judges[name]["unparsed"] == figure["unparsed"]
    assert judges["gpt-3.5-turbo"]["unparsed"] == 25
