"""The life of a judge run: paused, limited by a budget, failing, shared, handed over."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from django.urls import reverse
from django.utils import timezone
from transformers import LlamaForCausalLM

from judges import claims, runs
from judges.claims import claim_window, most_tokens_of, price_of_a_token
from judges.judging import judge_version
from judges.ml.asking import EngineStopped
from judges.ml.config import JudgeRecipe, recipe_from
from judges.models import Claim, JudgeRun, JudgeServer, JudgeVersion, RunWorker
from judges.runs import (
    BudgetUnknown,
    RunActive,
    add_worker,
    carry_out,
    failure_line,
    hand_over,
    joined,
    new_run,
    raise_budget,
    requeue,
    waiting_for,
)
from judges.tasks import run_judge
from judges.workers import RunPaused, come_in, let_go_of_the_dead
from labeling import shared
from labeling.jobs import JobTaken
from labeling.models import Preference
from tests.factories import ComparisonFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db

DIRECT = JudgeRecipe(mode="direct", min_answer_mass=0.0)


def version_of(project, folder: Path | str = "owner/model") -> JudgeVersion:
    version, _made = judge_version(project, "tiny", str(folder), DIRECT)
    return version


def claimed(run: JudgeRun) -> JudgeRun:
    return JudgeRun.objects.claim(run.pk)


def silence(worker: RunWorker) -> None:
    long_ago = timezone.now() - timedelta(minutes=5)
    RunWorker.objects.filter(pk=worker.pk).update(heartbeat_at=long_ago)


def test_a_judge_brings_its_model_from_another_machine(tiny_judge, settings, tmp_path):
    settings.PREFLOOP_SHARED_STORAGE = f"file://{tmp_path}/shared"
    project = ProjectFactory()
    ComparisonFactory(project=project)
    settings.PREFLOOP_STORAGE = tmp_path / "pages"
    shutil.copytree(tiny_judge, tmp_path / "pages/runs/5/model")
    project.models.create(name="own", kind="policy", path="runs/5/model")
    shared.put("runs/5/model")
    run = new_run(version_of(project, "own"))

    settings.PREFLOOP_STORAGE = tmp_path / "worker"
    settings.PREFLOOP_STORAGE.mkdir()
    run_judge(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error, run.n_done) == ("succeeded", "", 1)
    brought = tmp_path / "worker/runs/5/model"
    assert {p.name for p in brought.iterdir()} == {p.name for p in Path(tiny_judge).iterdir()}


# Pausing ------------------------------------------------------------------------------------------


def test_a_paused_run_keeps_the_batch_in_hand_and_its_place(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(4, project=project)
    version = version_of(project, tiny_judge)
    run = claimed(new_run(version, 3))

    with pytest.raises(RunPaused):
        carry_out(run, batch_tokens=1, on_batch=lambda run: run.request_pause())

    run.refresh_from_db()
    assert (run.status, run.n_done, run.error) == ("paused", 1, "")
    assert not run.pause_requested
    assert run.can_resume
    assert not run.is_active
    first = list(version.verdicts.values_list("pk", "created_at"))
    with pytest.raises(RunActive, match=f"Run {run.pk} of tiny v1 is paused"):
        new_run(version)
    assert requeue(run)
    run_judge(run.pk)
    run.refresh_from_db()
    assert (run.status, run.n_done, run.n_total) == ("succeeded", 3, 3)
    assert list(version.verdicts.order_by("pk").values_list("pk", "created_at"))[:1] == first


def test_a_queued_run_pauses_at_once_and_a_paused_one_can_be_cancelled():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    version = version_of(project)
    run = new_run(version)

    run.request_pause()
    assert run.status == "paused"
    assert claimed(run) is None
    run.request_cancel()

    assert run.status == "cancelled"
    assert new_run(version).status == "queued"


# Budgets ------------------------------------------------------------------------------------------


def test_a_run_pauses_before_it_would_spend_more_tokens_than_it_may(tiny_judge, monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(12, project=project)
    version = version_of(project, tiny_judge)
    one = most_tokens_of(recipe_from(version.recipe), project.comparisons.first())
    run = new_run(version, most_tokens=2 * one)

    run_judge(run.pk)

    run.refresh_from_db()
    spent = sum(version.verdicts.values_list("n_tokens", flat=True))
    assert run.status == "paused"
    assert 1 < run.n_done < 12
    assert 2 * one - one < spent <= 2 * one
    assert f"Paused before its limit of {2 * one:,} tokens: {spent:,} are spent" in run.error
    assert not Claim.objects.exists()

    requeue(run)  # as it is, it can do nothing more
    run_judge(run.pk)
    run.refresh_from_db()
    assert (run.status, version.verdicts.count()) == ("paused", run.n_done)
    raise_budget(run, most_tokens=10**6)
    requeue(run)
    run_judge(run.pk)
    run.refresh_from_db()
    assert (run.status, run.n_done, run.error) == ("succeeded", 12, "")


def test_no_comparison_takes_more_tokens_than_is_set_aside_for_it(tiny_judge):
    project = ProjectFactory()
    rows = ComparisonFactory.create_batch(3, project=project)
    rows[0].response_a.messages = [{"role": "assistant", "content": "ünï ✓ 漢字 🥚" * 9}]
    rows[0].response_a.save()
    for recipe in (DIRECT, JudgeRecipe(max_rationale_tokens=20, min_answer_mass=0.0)):
        version, _made = judge_version(project, recipe.mode, str(tiny_judge), recipe)
        run_judge(new_run(version).pk)
        verdicts = version.verdicts.select_related("comparison")
        assert len(verdicts) == 3
        for verdict in verdicts:
            assert (
                0
                < verdict.n_tokens
                <= most_tokens_of(recipe_from(version.recipe), verdict.comparison)
            )


def test_what_a_comparison_may_take_follows_from_its_bytes():
    comparison = ComparisonFactory()
    direct, explained = DIRECT, JudgeRecipe(max_rationale_tokens=50)
    before = most_tokens_of(direct, comparison)

    comparison.response_a.messages[0]["content"] += "ü"  # two bytes, in both orders

    assert most_tokens_of(direct, comparison) == before + 4
    assert most_tokens_of(explained, comparison) > most_tokens_of(direct, comparison) + 2 * 50


def test_a_limit_of_cost_wants_a_price_and_is_kept(monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(5, project=project)
    version = version_of(project)
    with pytest.raises(BudgetUnknown, match="No price is known for tiny v1"):
        new_run(version, most_cost=1.0)
    server = JudgeServer.objects.create(
        name="hosted", url="https://judge.example/v1", price_read=2.0, price_written=6.0
    )
    assert price_of_a_token(server) == 6e-6
    version.server = server
    version.save()
    one = most_tokens_of(recipe_from(version.recipe), project.comparisons.first()) * 6e-6
    run = claimed(new_run(version, most_cost=2.5 * one))
    worker = come_in(run)
    left = runs.deque(waiting_for(version).values_list("pk", flat=True))

    window = claim_window(run, worker, left, lambda: waiting_for(version))
    again = claim_window(run, worker, left, lambda: waiting_for(version))

    assert len(window.comparisons) == 2
    assert len(left) == 3
    assert again.others_hold  # what is held may turn out cheaper
    Claim.objects.all().delete()
    JudgeRun.objects.filter(pk=run.pk).update(most_cost=one / 2)
    with pytest.raises(RunPaused, match=r"limit of 0\.00 USD"):
        claim_window(run, worker, left, lambda: waiting_for(version))


# Failing ------------------------------------------------------------------------------------------


def test_an_engine_that_stops_pauses_the_run_with_its_line(tiny_judge, monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run = new_run(version)
    batches = runs._batches

    def stop_after_one(ask, comparisons):
        yield from batches(ask, comparisons[:1])
        raise EngineStopped("The server refused the key: set JUDGE_KEY anew.")

    monkeypatch.setattr(runs, "_batches", stop_after_one)
    run_judge(run.pk)

    run.refresh_from_db()
    assert (run.status, run.n_done) == ("paused", 1)
    assert run.error == "The server refused the key: set JUDGE_KEY anew."
    assert version.verdicts.count() == Preference.objects.count() == 1
    assert not Claim.objects.exists()
    monkeypatch.setattr(runs, "_batches", batches)
    requeue(run)
    run_judge(run.pk)
    run.refresh_from_db()
    assert (run.status, run.n_done, run.error) == ("succeeded", 3, "")


def test_memory_that_does_not_suffice_is_one_clear_line(tiny_judge, monkeypatch):
    project = ProjectFactory()
    ComparisonFactory(project=project)
    run = new_run(version_of(project, tiny_judge))

    def too_large(*_arguments, **_options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 14.00 GiB")

    monkeypatch.setattr(runs, "opened", too_large)
    with pytest.raises(RuntimeError):
        run_judge(run.pk)

    run.refresh_from_db()
    assert (run.status, run.can_resume) == ("failed", True)
    assert run.error.startswith("Out of memory. Everything judged so far is kept.")
    assert failure_line(MemoryError()) == run.error
    assert failure_line(EngineStopped("gone")) == "gone"


def test_memory_that_ran_out_under_way_is_said_on_every_page(tiny_judge, monkeypatch, client):
    """The batch is made smaller and nothing is lost; whoever looks at the run is told."""
    project = ProjectFactory(slug="kitchen")
    ComparisonFactory.create_batch(4, project=project)
    run = new_run(version_of(project, tiny_judge))
    forward = LlamaForCausalLM.forward

    def small_only(model, input_ids, **options):
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", small_only)
    monkeypatch.setattr("judges.ml.engine.LocalEngine.read_tokens", 10**6, raising=False)
    run_judge(run.pk)

    run.refresh_from_db()
    assert (run.status, run.n_done) == ("succeeded", 4), run.error
    n_times = run.workers.get().troubles["out_of_memory"]
    assert n_times >= 1
    assert run.result["out_of_memory"] == n_times
    assert run.result["retried"] == 0
    client.force_login(UserFactory(is_superuser=True))
    page = client.get(reverse("judges:run", args=["kitchen", run.pk])).content.decode()
    assert f"Memory ran out {n_times} time" in page
    assert "requests to the server" not in page
    told = client.get(f"/api/projects/kitchen/judge-runs/{run.pk}/").json()
    assert told["progress"]["out_of_memory"] == n_times


# Sharing ------------------------------------------------------------------------------------------


def test_two_workers_never_hold_the_same_comparison(monkeypatch):
    monkeypatch.setattr(claims, "WINDOW", 4)
    project = ProjectFactory()
    ComparisonFactory.create_batch(10, project=project)
    version = version_of(project)
    run = claimed(new_run(version, workers=2))
    one, two = come_in(run), come_in(run)
    left_one, left_two = (
        runs.deque(waiting_for(version).values_list("pk", flat=True)) for _worker in (one, two)
    )

    def claim(worker, left):
        return {
            c.pk for c in claim_window(run, worker, left, lambda: waiting_for(version)).comparisons
        }

    first, second = claim(one, left_one), claim(two, left_two)

    assert len(first) == len(second) == 2  # towards the end less, so that both end together
    assert not first & second
    assert Claim.objects.count() == 4
    silence(one)
    assert let_go_of_the_dead(run) == 1
    assert set(Claim.objects.values_list("worker", flat=True)) == {two.pk}
    one.refresh_from_db()
    assert (one.left_at is None, one.problem) == (False, "It stopped reporting.")


def test_a_limit_counts_what_all_workers_hold():
    project = ProjectFactory()
    ComparisonFactory.create_batch(10, project=project)
    version = version_of(project)
    run = claimed(new_run(version, 3, workers=2))
    one, two = come_in(run), come_in(run)
    pks = list(waiting_for(version).values_list("pk", flat=True))

    held = []
    for worker in (one, two, one, two):
        window = claim_window(run, worker, runs.deque(pks), lambda: waiting_for(version))
        held += [comparison.pk for comparison in window.comparisons]

    assert len(held) == len(set(held)) == 3
    assert window.others_hold


def test_a_run_has_no_more_workers_than_it_wants():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    run = claimed(new_run(version_of(project)))
    first = come_in(run)

    assert joined(run.pk) is None
    with pytest.raises(JobTaken, match="has the workers it wants: 1"):
        come_in(run)
    assert add_worker(run)
    assert joined(run.pk) == run
    second = come_in(run)
    assert joined(run.pk) is None
    silence(second)
    assert joined(run.pk) == run  # the place of one that is gone is free
    run.request_cancel()
    assert not add_worker(run)
    assert joined(run.pk) is None
    assert first.left_at is None


def test_a_worker_that_was_taken_for_dead_keeps_nothing(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run = claimed(new_run(version))

    def be_silent(run):
        silence(run.workers.get())
        let_go_of_the_dead(run)

    with pytest.raises(JobTaken, match="took this worker for dead"):
        carry_out(run, batch_tokens=1, on_batch=be_silent)

    assert version.verdicts.count() == 1
    run.refresh_from_db()
    assert (run.status, run.n_done) == ("lost", 1)


def test_one_worker_that_fails_leaves_the_run_to_the_others(tiny_judge, monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run = claimed(new_run(version, workers=2))
    come_in(run)  # a colleague on another machine

    def no_folder(*_arguments, **_options):
        raise EngineStopped("there is no model folder here")

    monkeypatch.setattr(runs, "opened", no_folder)
    with pytest.raises(RunPaused):
        carry_out(run)

    run.refresh_from_db()
    assert (run.status, run.error) == ("running", "")
    assert run.workers.last().problem == "there is no model folder here"


def test_a_message_that_comes_twice_starts_no_second_worker(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory(project=project)
    run = claimed(new_run(version_of(project, tiny_judge)))
    come_in(run)

    run_judge(run.pk)

    assert run.workers.count() == 1
    run.refresh_from_db()
    assert run.status == "running"


# Counting and not counting ------------------------------------------------------------------------


def test_verdicts_that_do_not_count_become_preferences_when_they_are_handed_over(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    counted = version_of(ProjectFactory(), tiny_judge)

    run_judge(new_run(version, 2, counts=False).pk)
    assert version.verdicts.count() == 2
    assert not Preference.objects.exists()

    assert hand_over(version) == 2
    assert hand_over(version) == 0
    assert hand_over(counted) == 0
    for verdict in version.verdicts.all():
        preference = version.rater.preferences.get(comparison=verdict.comparison)
        assert preference.prob_a == verdict.prob_a
        assert (preference.prob_a_ab + preference.prob_a_ba) / 2 == pytest.approx(verdict.prob_a)
    assert version.runs.get().counts


def test_a_run_that_counts_takes_over_what_the_laboratory_asked(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    version = version_of(project, tiny_judge)
    run_judge(new_run(version, 2, counts=False).pk)

    run_judge(new_run(version).pk)

    assert version.verdicts.count() == 3
    assert version.rater.preferences.current().count() == 3
    assert version.runs.latest("pk").n_done == 1
