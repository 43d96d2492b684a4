"""Which comparisons a run takes, and in which order."""

import pytest

from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.runs import new_run, waiting_for
from judges.selection import Which, selected, selection_of, which_of
from tests.factories import ComparisonFactory, PreferenceFactory, ProjectFactory, RaterFactory

pytestmark = pytest.mark.django_db


def labeled(project, *choices: str, judge: str = "", **columns):
    """A comparison with people's choices, and a judge's."""
    comparison = ComparisonFactory(project=project, **columns)
    for choice in choices:
        PreferenceFactory(comparison=comparison, choice=choice)
    if judge:
        rater = RaterFactory(project=project, kind="judge")
        PreferenceFactory(comparison=comparison, rater=rater, choice=judge)
    return comparison


def names(project, which: str) -> list[str]:
    return [row.external_id for row in selected(project, selection_of(which))]


def test_each_selection_takes_what_its_name_says():
    project = ProjectFactory(audit_share=0.3)
    rows = {
        "nobody": ((), "", {"random_key": 0.2}),
        "judge alone": ((), "a", {"random_key": 0.9}),
        "unanimous": (("a", "a"), "a", {"random_key": 0.1}),
        "against a judge": (("b",), "a", {"random_key": 0.5}),
        "unread judge": (("b",), "unparsed", {"random_key": 0.55}),
        "two to one": (("a", "a", "b"), "", {"random_key": 0.6}),
        "tied": (("a", "b"), "a", {"random_key": 0.7}),
        "equal by majority": (("tie", "tie", "a"), "", {"random_key": 0.8}),
        "gold": (("a", "b"), "", {"purpose": "check", "gold": "a", "open_places": 0}),
    }
    for name, (choices, judge, columns) in rows.items():
        keys = {"random_key": 0.95} | columns
        labeled(project, *choices, judge=judge, external_id=name, **keys)
    labeled(ProjectFactory(), "a", external_id="elsewhere")

    assert names(project, "undecided") == ["nobody", "judge alone"]
    assert names(project, "audit") == ["unanimous", "nobody"]
    assert names(project, "disputed") == [
        *("against a judge", "two to one", "tied", "equal by majority")
    ]
    people = ["unanimous", "against a judge", "unread judge", "two to one", "tied"]
    assert names(project, "labeled") == [*people, "equal by majority"]
    assert names(project, "untied") == [*people[:-1], "equal by majority"]
    assert names(project, "all") == [
        *("unanimous", "nobody", "against a judge", "unread judge", "two to one", "tied"),
        *("equal by majority", "judge alone", "gold"),
    ]


def test_an_answer_that_was_withdrawn_selects_nothing():
    project = ProjectFactory()
    comparison = labeled(project, "a", "b")
    comparison.preferences.filter(choice="b").update(superseded_at="2026-01-01T00:00Z")

    assert not selected(project, selection_of("disputed")).exists()
    assert selected(project, selection_of("untied")).count() == 1


def test_a_selection_without_words_is_everything_and_an_unknown_one_is_refused():
    assert which_of({}) == Which.ALL
    assert selection_of("disputed") == {"which": "disputed"}
    with pytest.raises(ValueError, match="nothing"):
        selection_of("nothing")
    with pytest.raises(ValueError, match="loud"):
        which_of({"loud": True})


def test_a_run_waits_for_what_it_selects_and_the_version_has_not_judged():
    project = ProjectFactory()
    disputed, other = labeled(project, "a", "b"), labeled(project, "a")
    version, _made = judge_version(project, "careful", "owner/model", JudgeRecipe())

    run = new_run(version, selection=selection_of("disputed"))

    assert run.n_total == 1
    assert list(waiting_for(version, run.selection)) == [disputed]
    assert set(waiting_for(version)) == {disputed, other}
