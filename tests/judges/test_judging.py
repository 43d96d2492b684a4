"""A judge at work on rows: versions, verdicts, preferences, resuming, cancelling."""

import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from judges import claims
from judges.figures import Share, figures_of, per_minute_now, seconds_left
from judges.judging import carry_out_trial, exemplars_of, judge_version
from judges.ml.config import Exemplar, JudgeRecipe
from judges.models import Claim, JudgeRun, JudgeTrial, JudgeVersion, RunWorker, Verdict
from judges.runs import RunActive, carry_out, new_run, notice_death, requeue, waiting_for
from judges.tasks import run_judge, try_judge
from labeling.jobs import JobCancelled, JobTaken
from labeling.models import Preference, Rater
from tests.factories import ComparisonFactory, ProjectFactory, RaterFactory

pytestmark = pytest.mark.django_db

# A random model puts next to nothing on "1" and "2": these tests read its verdicts all the same.
DIRECT = JudgeRecipe(mode="direct", min_answer_mass=0.0)


def version_of(project, folder: Path, recipe: JudgeRecipe = DIRECT) -> JudgeVersion:
    version, _created = judge_version(project, "tiny", str(folder), recipe)
    return version


def claimed_run(version: JudgeVersion, limit: int | None = None) -> JudgeRun:
    return JudgeRun.objects.claim(new_run(version, limit).pk)


def test_the_same_settings_are_the_same_version_and_a_change_is_a_new_rater():
    project = ProjectFactory()

    first, made = judge_version(project, "careful", "owner/model", JudgeRecipe())
    again, made_again = judge_version(project, "careful", "owner/model", JudgeRecipe())
    changed, made_new = judge_version(
        project, "careful", "owner/model", JudgeRecipe(preamble="Be strict.")
    )
    other_model, _ = judge_version(project, "careful", "owner/other", JudgeRecipe())

    assert (made, made_again, made_new) == (True, False, True)
    assert again == first
    assert [v.number for v in (first, changed, other_model)] == [1, 2, 3]
    names = list(Rater.objects.filter(project=project).values_list("name", "kind").order_by("pk"))
    assert names == [(f"careful v{n}", "judge") for n in (1, 2, 3)]


def test_settings_that_a_version_was_made_without_are_the_defaults():
    project = ProjectFactory()
    old, _ = judge_version(project, "careful", "owner/model", JudgeRecipe())
    JudgeVersion.objects.filter(pk=old.pk).update(recipe={"mode": "rationale"})

    assert judge_version(project, "careful", "owner/model", JudgeRecipe()) == (old, False)


def test_an_imported_judge_of_the_same_name_keeps_its_rater():
    project = ProjectFactory()
    imported = RaterFactory(project=project, kind="judge", name="careful v1")

    version, _ = judge_version(project, "careful", "owner/model", JudgeRecipe())

    assert version.rater != imported
    assert version.rater.name == "careful v1 (2)"


def test_a_run_leaves_one_verdict_and_one_preference_per_comparison(tiny_judge):
    project = ProjectFactory()
    comparisons = ComparisonFactory.create_batch(3, project=project)
    elsewhere = ComparisonFactory()
    version = version_of(project, tiny_judge)

    run_judge(new_run(version).pk)

    run = version.runs.get()
    assert (run.status, run.n_done, run.n_total) == ("succeeded", 3, 3)
    assert set(version.verdicts.values_list("comparison", flat=True)) == {
        comparison.pk for comparison in comparisons
    }
    for verdict in version.verdicts.all():
        preference = Preference.objects.get(rater=version.rater, comparison=verdict.comparison)
        assert preference.prob_a == verdict.prob_a
        assert preference.choice == ("a" if verdict.prob_a > 0.5 else "b")
        assert (preference.prob_a_ab + preference.prob_a_ba) / 2 == pytest.approx(verdict.prob_a)
        z_ab = verdict.logp_ab_first - verdict.logp_ab_second
        assert (preference.prob_a_ab > 0.5) == (z_ab > 0)
    assert not elsewhere.verdicts.exists()
    assert run.result["questions"] == 3
    assert run.result["parsed"] == 3
    assert run.result["position_consistency"] == figures_of(run).consistency.value


def test_a_judge_that_says_something_else_is_unparsed_and_counted(tiny_judge):
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    version = version_of(project, tiny_judge, JudgeRecipe(mode="direct"))

    run_judge(new_run(version).pk)

    preference = Preference.objects.get(rater=version.rater, comparison=comparison)
    assert (preference.choice, preference.prob_a) == ("unparsed", None)
    verdict = version.verdicts.get()
    assert verdict.answer_mass_ab < 0.5
    assert verdict.logp_ab_first < 0
    result = version.runs.get().result
    assert (result["questions"], result["parsed"], result["unparsed"]) == (1, 0, 1)
    assert result["position_consistency"] is None


def test_responses_that_do_not_fit_are_counted_as_unparsed_and_say_why(tiny_judge):
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    comparison.response_a.messages = [{"role": "assistant", "content": "Long. " * 2000}]
    comparison.response_a.save()
    version = version_of(project, tiny_judge)

    run_judge(new_run(version).pk)

    verdict = version.verdicts.get()
    assert not verdict.parsed
    assert "do not fit" in verdict.problem
    assert verdict.logp_ab_first is None
    assert version.runs.get().result["did_not_fit"] == 1
    assert not waiting_for(version).exists()


def test_a_limit_is_kept_over_a_resume(tiny_judge, monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(6, project=project)
    version = version_of(project, tiny_judge)
    run = claimed_run(version, limit=4)

    def die_after_two(run: JudgeRun) -> None:
        if run.n_done == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        carry_out(run, batch_tokens=1, on_batch=die_after_two)
    run.finish("failed")
    first_two = set(version.verdicts.values_list("pk", "created_at"))
    assert len(first_two) == 2
    requeue(run)
    run_judge(run.pk)

    run.refresh_from_db()
    assert (run.status, run.n_done, run.n_total) == ("succeeded", 4, 4)
    assert first_two < set(version.verdicts.values_list("pk", "created_at"))
    assert waiting_for(version).count() == 2


def test_a_cancelled_run_keeps_what_was_judged_before_and_nothing_after(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run = claimed_run(version)

    with pytest.raises(JobCancelled):
        carry_out(run, batch_tokens=1, on_batch=lambda run: run.request_cancel())

    run.refresh_from_db()
    assert (run.status, run.n_done) == ("cancelled", 1)
    assert version.verdicts.count() == Preference.objects.filter(rater=version.rater).count() == 1
    assert not Claim.objects.exists()


def test_a_worker_that_lost_its_run_writes_nothing_more(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run = claimed_run(version)

    def lose(run: JudgeRun) -> None:
        JudgeRun.objects.filter(pk=run.pk).update(worker="another:1:x")

    with pytest.raises(JobTaken):
        carry_out(run, batch_tokens=1, on_batch=lose)

    assert version.verdicts.count() == 1


def test_two_runs_of_one_version_never_stand_side_by_side():
    project = ProjectFactory()
    version, _ = judge_version(project, "careful", "owner/model", JudgeRecipe())
    stopped = new_run(version)
    stopped.request_cancel()
    active = new_run(version)

    with pytest.raises(RunActive, match=f"run {active.pk} is queued"):
        new_run(version)
    with pytest.raises(RunActive):
        requeue(stopped)


def test_a_missing_model_fails_the_run_with_one_clear_line():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    version, _ = judge_version(project, "gone", "/no/such/model", JudgeRecipe())

    with pytest.raises(Exception, match="there is no model folder"):
        run_judge(new_run(version).pk)

    run = version.runs.get()
    assert (run.status, run.error) == ("failed", "there is no model folder /no/such/model")
    assert run.can_resume


def test_a_judge_may_be_a_model_in_the_storage_folder(tiny_judge, storage):
    project = ProjectFactory()
    ComparisonFactory(project=project)
    shutil.copytree(tiny_judge, storage / "models" / "my-judge")
    version, _ = judge_version(project, "stored", "my-judge", DIRECT)

    run_judge(new_run(version).pk)

    assert version.verdicts.count() == 1


def test_a_trial_shows_both_orders_and_counts_for_nothing(tiny_judge):
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    version = version_of(
        project, tiny_judge, JudgeRecipe(max_rationale_tokens=8, min_answer_mass=0.0)
    )
    trial = JudgeTrial.objects.create(version=version, comparison=comparison)

    try_judge(trial.pk)

    trial.refresh_from_db()
    assert trial.status == "succeeded"
    ab, ba = trial.result["questions"]
    assert (ab["name"], ba["name"]) == ("ab", "ba")
    assert comparison.response_a.messages[0]["content"] in ab["text"].split("RESPONSE 2")[0]
    assert comparison.response_b.messages[0]["content"] in ba["text"].split("RESPONSE 2")[0]
    first, second = (
        [answer["prob"] / question["mass"] for answer in question["answers"]]
        for question in (ab, ba)
    )
    assert trial.result["prob_a"] == pytest.approx((first[0] + second[1]) / 2)
    assert ab["rationale"] in ab["text"]
    assert not Verdict.objects.exists()
    assert not Preference.objects.exists()


def test_figures_tell_consistency_and_which_place_a_judge_leans_to():
    project = ProjectFactory()
    version, _ = judge_version(project, "careful", "owner/model", JudgeRecipe())
    run = new_run(version)
    # (ab first, ab second, ba first, ba second); the last one was never asked.
    said = [(-1, -2, -2, -1), (-2, -1, -1, -2), (-1, -2, -1, -2), (-2, -1, -2, -1), None]
    for logps in said:
        names = ("logp_ab_first", "logp_ab_second", "logp_ba_first", "logp_ba_second")
        Verdict.objects.create(
            **dict(zip(names, logps or (None,) * 4, strict=True)),
            version=version,
            run=run,
            comparison=ComparisonFactory(project=project),
            prob_a=0.5,
            parsed=logps is not None,
            answer_mass_ab=0.8 if logps else 0,
            answer_mass_ba=0.6 if logps else 0,
            n_tokens=10,
            seconds=0.5,
            problem="" if logps else "The two responses do not fit.",
        )

    figures = figures_of(run)

    assert (figures.n, figures.n_parsed, figures.n_refused) == (5, 4, 1)
    assert (figures.consistency.k, figures.consistency.n) == (2, 4)
    assert (figures.n_first_twice, figures.n_second_twice) == (1, 1)
    assert figures.mean_mass == pytest.approx(0.7)
    assert figures.as_json()["unparsed"] == 1


def test_a_share_has_its_exact_interval():
    # Clopper and Pearson, 42 of 50: .708874, .928299.
    assert Share(42, 50).interval == pytest.approx((0.708874, 0.928299), abs=5e-7)
    assert Share(0, 5).interval[0] == 0.0
    assert Share(5, 5).interval[1] == 1.0
    assert Share(0, 0).interval is None


def test_a_window_of_comparisons_is_only_a_way_of_reading(tiny_judge, monkeypatch):
    monkeypatch.setattr(claims, "WINDOW", 2)
    project = ProjectFactory()
    ComparisonFactory.create_batch(5, project=project)
    version = version_of(project, tiny_judge)

    carry_out(claimed_run(version))

    assert version.verdicts.count() == 5


def test_carrying_out_a_trial_of_a_cancelled_row_does_nothing(tiny_judge):
    project = ProjectFactory()
    trial = JudgeTrial.objects.create(
        version=version_of(project, tiny_judge), comparison=ComparisonFactory(project=project)
    )
    trial.request_cancel()

    try_judge(trial.pk)

    trial.refresh_from_db()
    assert trial.status == "cancelled"
    with pytest.raises(JobTaken):
        carry_out_trial(trial)


def test_the_time_left_follows_from_the_speed_of_the_present_workers():
    start = timezone.now()
    half, whole = start + timedelta(seconds=30), start + timedelta(seconds=60)
    quick = RunWorker(asking_since=start, last_kept_at=whole, n_judged=20)
    slow = RunWorker(asking_since=start, last_kept_at=half, n_judged=5)
    loading, gone = RunWorker(), RunWorker(asking_since=start, last_kept_at=half, left_at=whole)
    run = JudgeRun(status="running", n_done=30, n_total=90)

    assert per_minute_now([loading, gone]) is None
    assert per_minute_now([quick, slow, loading, gone]) == pytest.approx(20 + 10)
    assert seconds_left(run, 30.0) == pytest.approx(120.0)
    assert seconds_left(run, None) is None
    assert seconds_left(JudgeRun(status="queued", n_total=90), 30.0) is None


def test_a_worker_that_is_a_zombie_is_dead():
    version, _ = judge_version(ProjectFactory(), "careful", "owner/model", JudgeRecipe())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended; nobody buried it
    run = claimed_run(version)
    run.worker = f"{socket.gethostname()}:{child.pid}:1"
    run.save()

    notice_death(run)

    child.wait()
    assert run.status == "lost"
    assert run.error.startswith("The worker stopped reporting")


def shown_with_its_answer(comparison):
    """The recipe of a judge that is shown this comparison, B first."""
    exemplar = Exemplar(
        prompt=comparison.prompt.messages,
        first=comparison.response_b.messages,
        second=comparison.response_a.messages,
        answer="1",
    )
    return JudgeRecipe(mode="direct", min_answer_mass=0.0, exemplars=(exemplar,))


def test_a_judge_is_not_asked_about_the_exemplars_whose_answer_it_was_shown(tiny_judge):
    project = ProjectFactory()
    shown, other = ComparisonFactory.create_batch(2, project=project)
    same_prompt = ComparisonFactory(project=project, prompt=shown.prompt)
    elsewhere = ComparisonFactory()
    version = version_of(project, tiny_judge, shown_with_its_answer(shown))
    plain = version_of(project, tiny_judge)

    assert set(waiting_for(version)) == {other, same_prompt}
    assert list(exemplars_of(version)) == [shown]
    assert set(waiting_for(plain)) == {shown, other, same_prompt}
    assert elsewhere not in waiting_for(plain)
    run = new_run(version)
    assert run.n_total == 2
    carry_out(JudgeRun.objects.claim(run.pk))

    run.refresh_from_db()
    assert run.result["questions"] == 2
    assert run.result["exemplars_left_out"] == 1
    assert not shown.verdicts.exists()
