"""The laboratory on rows: the set it freezes, the runs it makes, its figures, "use this one"."""

import numpy as np
import pytest

from judges.choosing import NoSuchCalibration, choose, correct_preferences, n_not_handed_over
from judges.drift import (
    carry_out_check,
    chance_of_more,
    check_if_changed,
    drift_test,
    folder_fingerprint,
    keep_probe,
    new_check,
    notice_of,
)
from judges.judging import judge_version
from judges.laboratory import (
    NothingLabeled,
    answers_of,
    carry_out_experiment,
    compute_again,
    grid,
    labeled_of,
    labeled_set,
    new_experiment,
    references,
)
from judges.ml.config import JudgeRecipe
from judges.models import ChosenJudge, DriftCheck, Experiment, JudgeRun, Probe, Verdict
from judges.quality import alignment
from judges.runs import carry_out, new_run
from judges.tasks import check_drift, run_experiment, run_judge, settle_judge
from labeling.calibration import log_losses
from labeling.correction import corrected
from labeling.jobs import JobCancelled
from labeling.models import Change, Preference, Rater
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

# A random model puts next to nothing on "1" and "2": these tests read its verdicts all the same.
DIRECT = JudgeRecipe(mode="direct", min_answer_mass=0.0)


def label(project, *answers: str, gold: str = "", prompt=None):
    """A comparison for each of the answers, a string with a letter for each person."""
    words = {"a": "a", "b": "b", "t": "tie", "x": "both_bad"}
    people = [
        project.raters.filter(name=name).first() or RaterFactory(project=project, name=name)
        for name in ("ann", "bob", "cem")
    ]
    found = []
    for letters in answers:
        comparison = ComparisonFactory(
            project=project, gold=gold, **({"prompt": prompt} if prompt else {})
        )
        for rater, letter in zip(people, letters, strict=False):
            PreferenceFactory(comparison=comparison, rater=rater, choice=words[letter])
        found.append(comparison)
    return found


def judge(project, folder, recipe=DIRECT, name="tiny"):
    return judge_version(project, name, str(folder), recipe)[0]


def carried_out(experiment) -> Experiment:
    run_experiment(experiment.pk)
    experiment.refresh_from_db()
    return experiment


def verdict(version, comparison, z: float = 1.0, b: float = 0.0, **values) -> Verdict:
    """A verdict whose logit for A is z + b with A shown first, and z − b with B shown first."""
    ab, ba = (1 / (1 + np.exp(-x)) for x in (z + b, z - b))
    said = {
        "logp_ab_first": np.log(0.9 * ab),
        "logp_ab_second": np.log(0.9 * (1 - ab)),
        "logp_ba_first": np.log(0.9 * (1 - ba)),
        "logp_ba_second": np.log(0.9 * ba),
        "prob_a": (ab + ba) / 2,
        "answer_mass_ab": 0.9,
        "answer_mass_ba": 0.9,
        "parsed": True,
        "n_tokens": 100,
        "seconds": 2.0,
    }
    return Verdict.objects.create(version=version, comparison=comparison, **(said | values))


def test_the_reference_is_the_known_answer_or_an_untied_majority_of_work():
    project = ProjectFactory()
    [majority, _tied, ties] = label(project, "aab", "ab", "tta")
    [known] = label(project, "bb", gold="a")
    [without_votes] = label(project, "", gold="b")
    label(project, "")
    ComparisonFactory(project=project, purpose="check", gold="a", open_places=0)
    ComparisonFactory(project=project, purpose="training", gold="a", open_places=0)
    label(ProjectFactory(), "aaa")
    judges = RaterFactory(project=project, kind="judge", name="a judge")
    PreferenceFactory(comparison=_tied, rater=judges, choice="a")

    expected = {majority.pk: "a", ties.pk: "tie", known.pk: "a", without_votes.pk: "b"}
    assert references(project) == expected
    assert references(project, [majority.pk, _tied.pk]) == {majority.pk: "a"}
    assert set(labeled_set(project)) == set(expected)
    in_order = project.comparisons.order_by("random_key").values_list("pk", flat=True)
    assert labeled_set(project, most=2) == [pk for pk in in_order if pk in expected][:2]


def test_rows_become_the_arrays_that_the_statistics_want():
    project = ProjectFactory()
    rows = label(project, "aab", "bb", "tt")
    version = judge(project, "owner/model")
    verdict(version, rows[0], z=1.0, b=0.5)
    verdict(version, rows[1], parsed=False)
    verdict(version, rows[2], prob_tie=0.6, cost=0.25)

    labeled = labeled_of(project, [row.pk for row in rows])
    answers = answers_of(version, labeled)

    assert labeled.reference.tolist() == [0, 1, 2]
    assert (len(labeled.people), labeled.people.raters) == (7, ["ann", "bob", "cem"])
    order = np.argsort(answers.place)
    assert answers.choice[order].tolist() == [0, 4, 2]
    assert answers.logit_ab[order][0] == pytest.approx(1.5)
    assert answers.logit_ba[order][0] == pytest.approx(0.5)
    assert np.isnan(answers.cost[order]).tolist() == [True, True, False]
    assert alignment(labeled, answers)["all"]["value"] == pytest.approx(2 / 3)


def test_an_experiment_asks_every_cell_about_the_same_comparisons_and_nothing_counts(tiny_judge):
    project = ProjectFactory()
    label(project, *["aab", "bba", "aa", "b"] * 3)
    label(project, "ab", "")
    user = UserFactory()
    versions = grid([judge(project, tiny_judge)], modes=["direct", "rationale"], user=user)

    experiment = carried_out(new_experiment(project, "first", versions, user=user))

    assert (experiment.status, experiment.error) == ("succeeded", "")
    assert (experiment.n_done, experiment.n_total) == (24, 24)
    assert not Preference.objects.of_judges().exists()
    wanted = set(experiment.selection["comparisons"])
    for version in versions:
        assert set(version.verdicts.values_list("comparison", flat=True)) == wanted
    runs = JudgeRun.objects.all()
    assert [(run.counts, run.status) for run in runs] == [(False, "succeeded")] * 2
    result = experiment.result
    assert result["set"] == {
        "n": 12, "n_prompts": 12, "n_decided": 12, "n_gold": 0, "n_gone": 0, "n_people": 3,
    }  # fmt: skip
    assert [cell["version"] for cell in result["cells"]] == [version.pk for version in versions]
    assert [cell["mode"] for cell in result["cells"]] == ["direct", "rationale"]
    for cell in result["cells"]:
        figure = cell["alignment"]["decided"]
        assert figure["n"] == 12
        assert figure["low"] <= figure["value"] <= figure["high"]
    [difference] = result["differences"]
    assert difference["p_corrected"] == difference["p_value"]
    change = Change.objects.get(action="start experiment")
    assert (change.actor, change.after["n"]) == (user, 12)


def test_what_a_version_has_judged_is_not_asked_again(tiny_judge):
    project = ProjectFactory()
    label(project, *["aab"] * 6)
    version = judge(project, tiny_judge)
    run_judge(new_run(version, 4).pk)
    earlier = set(version.verdicts.values_list("pk", flat=True))

    experiment = carried_out(new_experiment(project, "second", [version]))

    assert experiment.result["cells"][0]["n"] == 6
    assert earlier < set(version.verdicts.values_list("pk", flat=True))
    [run] = JudgeRun.objects.filter(counts=False)
    assert run.verdicts.count() == 2
    assert Preference.objects.of_judges().count() == 4


def test_a_cell_whose_model_is_gone_leaves_its_reason_and_the_others_their_figures(
    tiny_judge, tmp_path
):
    project = ProjectFactory()
    label(project, *["aab"] * 3)
    gone = judge(project, tmp_path / "nothing", name="gone")
    there = judge(project, tiny_judge)

    experiment = carried_out(new_experiment(project, "half", [gone, there]))

    assert experiment.status == "failed"
    assert experiment.error.startswith("gone v1: ")
    assert "nothing" in experiment.error
    assert [cell["name"] for cell in experiment.result["cells"]] == ["tiny v1"]
    # Resumed, it asks what is missing and nothing twice.
    experiment.requeue()
    before = there.verdicts.count()
    carried_out(experiment)
    assert there.verdicts.count() == before


def test_a_cancelled_experiment_keeps_what_it_has_and_goes_on(tiny_judge):
    project = ProjectFactory()
    label(project, *["aab"] * 5)
    version = judge(project, tiny_judge)
    experiment = Experiment.objects.claim(new_experiment(project, "stopped", [version]).pk)
    experiment.request_cancel()

    with pytest.raises(JobCancelled):
        carry_out_experiment(experiment)

    experiment.refresh_from_db()
    assert experiment.status == "cancelled"
    assert {run.status for run in JudgeRun.objects.all()} == {"cancelled"}
    assert experiment.requeue()
    assert carried_out(experiment).status == "succeeded"
    assert version.verdicts.count() == 5


def test_computing_again_reads_peoples_answers_anew_and_asks_nothing(tiny_judge):
    project = ProjectFactory()
    rows = label(project, *["a"] * 4)
    version = judge(project, tiny_judge)
    experiment = carried_out(new_experiment(project, "again", [version]))
    label_more = RaterFactory(project=project, name="dis")
    PreferenceFactory(comparison=rows[0], rater=label_more, choice="b")

    assert compute_again(experiment)
    carried_out(experiment)

    assert (experiment.result["set"]["n"], experiment.result["set"]["n_gone"]) == (3, 1)
    assert JudgeRun.objects.count() == 1


def test_without_labels_there_is_no_experiment():
    project = ProjectFactory()
    label(project, "", "ab")
    with pytest.raises(NothingLabeled, match="labeled nothing yet"):
        new_experiment(project, "none", [judge(project, "owner/model")])


def test_a_grid_is_every_base_in_every_mode_and_too_large_a_one_is_refused():
    project = ProjectFactory()
    bases = [judge(project, f"owner/{name}", name=name) for name in ("one", "two")]
    versions = grid(bases, modes=["direct", "rationale"])
    assert len({version.pk for version in versions}) == 4
    assert [version.recipe["mode"] for version in versions] == ["direct", "rationale"] * 2
    assert grid(bases) == bases
    with pytest.raises(ValueError, match="26 cells"):
        grid(bases * 13)


def sure_experiment(n: int = 60, times: float = 3.0):
    """A judge that is three times too sure, with an experiment computed on its stored verdicts."""
    rng = np.random.default_rng(4)
    project = ProjectFactory()
    version = judge(project, "owner/model", name="sure")
    z = rng.normal(0, 1.5, n)
    says_a = rng.random(n) < 1 / (1 + np.exp(-z))
    for logit, a in zip(z, says_a, strict=True):
        [row] = label(project, "aaa" if a else "bbb")
        verdict(version, row, z=times * logit, b=0.3)
    experiment = carried_out(new_experiment(project, "sure", [version]))
    return project, version, experiment


def test_using_a_judge_freezes_its_calibration_and_hands_its_verdicts_over():
    project, version, experiment = sure_experiment()
    user = UserFactory()
    assert n_not_handed_over(version) == 60

    chosen = choose(version, user=user, experiment=experiment, method="temperature")
    settle_judge(version.pk)

    assert chosen.version == version
    assert (chosen.calibration.number, chosen.calibration.n) == (1, 60)
    parameters = chosen.calibration.parameters
    assert parameters["temperature"] == pytest.approx(3.0, abs=1.6)
    assert n_not_handed_over(version) == 0
    for row in Preference.objects.of_judges():
        raw = version.verdicts.get(comparison=row.comparison).prob_a
        assert row.prob_a == pytest.approx(corrected(parameters, raw))
        assert row.choice == ("a" if raw > 0.5 else "b")
    change = Change.objects.get(action="choose judge")
    assert change.before == {"judge": "", "calibration": ""}
    assert change.after["judge"] == "sure v1"
    assert "Temperature" in change.after["calibration"]
    # The corrected labels are nearer to people than the judge's own words.
    known = references(project)
    rows = list(Preference.objects.of_judges())
    h = np.array([known[row.comparison_id] == "a" for row in rows], dtype=float)
    raw = np.array([version.verdicts.get(comparison=row.comparison).prob_a for row in rows])
    after = np.array([row.prob_a for row in rows])
    assert log_losses(after, h).mean() < log_losses(raw, h).mean()


def test_choosing_twice_makes_one_calibration_and_choosing_without_one_restores_the_words():
    _project, version, experiment = sure_experiment(20)
    user = UserFactory()
    choose(version, user=user, experiment=experiment, method="temperature")
    choose(version, user=user, experiment=experiment, method="temperature")
    assert version.calibrations.count() == 1
    assert Change.objects.filter(action="choose judge").count() == 1  # nothing changed the 2nd time

    settle_judge(version.pk)
    assert Rater.objects.get(pk=version.rater_id).calibrated_at is not None
    choose(version, user=user, experiment=experiment)
    assert Rater.objects.get(pk=version.rater_id).calibrated_at is None
    settle_judge(version.pk)

    assert Rater.objects.get(pk=version.rater_id).calibrated_at is None
    assert ChosenJudge.objects.get().calibration is None
    for row in Preference.objects.of_judges():
        assert row.prob_a == version.verdicts.get(comparison=row.comparison).prob_a
    assert correct_preferences(version) == 0
    with pytest.raises(NoSuchCalibration):
        choose(version, user=user, experiment=experiment, method="isotonic")


def test_the_preferences_of_another_version_are_left_alone():
    project, _version, _experiment = sure_experiment(12)
    other = judge(project, "owner/other", name="other")
    settle_judge(other.pk)
    assert correct_preferences(other) == 0
    assert not Preference.objects.of_judges().exists()


def test_labels_that_a_chosen_judge_gives_later_are_corrected_too(tiny_judge):
    project = ProjectFactory()
    label(project, *["aab", "bba"] * 6)
    version = judge(project, tiny_judge)
    experiment = carried_out(new_experiment(project, "first", [version]))
    chosen = choose(version, user=UserFactory(), experiment=experiment, method="temperature")
    settle_judge(version.pk)
    new = ComparisonFactory.create_batch(2, project=project)
    written = []

    def look(run):
        """While the run is at work, after each of its batches."""
        for row in Preference.objects.of_judges().current().filter(comparison__in=new):
            raw = version.verdicts.get(comparison=row.comparison).prob_a
            expected = corrected(chosen.calibration.parameters, raw)
            written.append((row.prob_a, raw, pytest.approx(expected), run.n_done))

    carry_out(JudgeRun.objects.claim(new_run(version).pk), batch_tokens=1, on_batch=look)

    assert [n_done for *_probs, n_done in written] == [1, 2, 2]
    assert all(kept == expected != raw for kept, raw, expected, _n in written)


# Drift --------------------------------------------------------------------------------------------


def test_the_test_of_drift_by_hand():
    # Chance that two or more of ten move, at 0.02 each: 1 − 0.98¹⁰ − 10 · 0.02 · 0.98⁹.
    assert chance_of_more(2, 10, 0.02) == pytest.approx(1 - 0.98**10 - 0.2 * 0.98**9)
    assert chance_of_more(0, 5, 0.3) == pytest.approx(1)

    def pairs(*afters, standard_error=0.0):
        return [
            {
                "comparison": i,
                "before": [0.7],
                "after": after and [after],
                "standard_error": standard_error,
            }
            for i, after in enumerate(afters)
        ]

    same = drift_test(pairs(*[0.7] * 47, 0.74, 0.66, 0.8))
    assert (same["n_moved"], same["drifted"]) == (1, False)
    moved = drift_test(pairs(*[0.7] * 45, 0.8, 0.3, 0.76, None, 0.6))
    assert (moved["n_moved"], moved["n_turned"], moved["drifted"]) == (5, 1, True)
    assert moved["p_value"] == pytest.approx(chance_of_more(5, 50, 0.02))
    assert moved["moved"][0]["after"] is None
    # A leaning to a place that changes moves both orders, and their mean stays.
    lean = {"comparison": 1, "before": [0.7, 0.8, 0.6], "after": [0.7, 0.9, 0.5]}
    assert drift_test([{**lean, "standard_error": 0.0}])["n_moved"] == 1
    # Drawn rationales move by themselves: three standard errors of a difference are allowed.
    assert drift_test(pairs(*[0.9] * 10, standard_error=0.05))["n_moved"] == 0
    assert drift_test(pairs(*[0.95] * 10, standard_error=0.05))["n_moved"] == 10


def test_a_folders_fingerprint_is_that_of_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = folder_fingerprint(tmp_path)
    assert first.startswith("files:")
    assert folder_fingerprint(tmp_path) == first
    (tmp_path / "notes.md").write_text("nothing of the model's")
    assert folder_fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert folder_fingerprint(tmp_path) != first


def copied(tiny_judge, folder):
    import shutil

    shutil.copytree(tiny_judge, folder)
    return folder


def test_a_model_that_changes_is_asked_again_and_noticed(tiny_judge, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    project = ProjectFactory()
    label(project, *["aab", "bba"] * 6)
    folder = copied(tiny_judge, tmp_path / "judge")
    version = judge(project, folder)
    experiment = carried_out(new_experiment(project, "first", [version]))
    choose(version, user=UserFactory(), experiment=experiment)
    settle_judge(version.pk)
    probe = Probe.objects.get(version=version)
    assert len(probe.answers) == 12

    # Nothing has changed: no check by itself, and one that is asked for finds nothing.
    assert check_if_changed(version) is None
    check = new_check(probe)
    assert new_check(probe) == check
    check_drift(check.pk)
    check.refresh_from_db()
    assert (check.status, check.result["n"], check.result["drifted"]) == ("succeeded", 12, False)
    assert notice_of(project) is None

    # Other weights under the same name.
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(11)
    for weights in model.parameters():
        weights.data = torch.randn_like(weights) * 0.6
    model.save_pretrained(folder)
    found = check_if_changed(version)
    assert found.reason == DriftCheck.Reason.CHANGED
    carry_out_check(DriftCheck.objects.claim(found.pk))
    found.refresh_from_db()
    assert found.result["drifted"]
    assert found.result["n_moved"] > 2
    assert notice_of(project) == found
    assert check_if_changed(version) is None  # it was looked at


def test_only_a_projects_judge_is_watched(tiny_judge):
    project = ProjectFactory()
    [row] = label(project, "aab")
    version = judge(project, tiny_judge)
    assert keep_probe(version) is None
    verdict(version, row)
    probe = keep_probe(version)
    assert keep_probe(version) == probe
    probe.fingerprint = "another"
    probe.save()
    assert check_if_changed(version) is None
    MembershipFactory(project=project)
    PromptFactory(project=project)
