"""Every mode through its rows: verdicts and preferences of tiny real models."""

import math
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from judges.claims import most_tokens_of
from judges.engines import model_place
from judges.figures import figures_of
from judges.judging import judge_version
from judges.ml import engine
from judges.ml.config import Aspect, JudgeRecipe, ModelUnusable
from judges.ml.modes import Outcome
from judges.ml.verdict import read_both_orders
from judges.models import JudgeServer, JudgeTrial, JudgeVersion
from judges.runs import BudgetUnknown, new_run, raise_budget, requeue
from judges.tasks import run_judge, try_judge
from judges.verdicts import probs_by_order, record_verdict, verdict_of
from labeling.models import Preference
from tests.factories import ComparisonFactory, ProjectFactory
from tests.judges.conftest import LLAMA, save_tokenizer
from tests.judges.loopback import serving

pytestmark = pytest.mark.django_db

DIRECT = JudgeRecipe(mode="direct", min_answer_mass=0.0)


def judged(project, name: str, model: str, recipe: JudgeRecipe) -> JudgeVersion:
    version, _ = judge_version(project, name, model, recipe)
    run_judge(new_run(version).pk)
    assert version.runs.get().status == "succeeded", version.runs.get().error
    return version


def preference(version: JudgeVersion) -> Preference:
    return Preference.objects.get(rater=version.rater)


def test_drawn_rationales_leave_their_mean_its_error_and_each_of_them(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory(project=project)
    recipe = replace(DIRECT, mode="sampled", n_samples=3, temperature=1.5, max_rationale_tokens=6)

    version = judged(project, "sampled", str(tiny_judge), recipe)

    verdict = version.verdicts.get()
    probs = [one["prob_a"] for one in verdict.raw["samples"]]
    assert len(probs) == 3
    assert verdict.prob_a == pytest.approx(sum(probs) / 3)
    spread = math.sqrt(sum((p - verdict.prob_a) ** 2 for p in probs) / 2)
    assert verdict.standard_error == pytest.approx(spread / math.sqrt(3))
    assert verdict.standard_error > 0
    assert 0 < verdict.n_tokens_written <= 2 * 3 * 6
    kept = preference(version)
    assert (kept.prob_a_ab + kept.prob_a_ba) / 2 == pytest.approx(verdict.prob_a)


def test_a_tie_that_is_most_probable_is_the_choice(tiny_judge):
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    recipe = replace(DIRECT, ties=True)

    version = judged(project, "ties", str(tiny_judge), recipe)

    verdict = version.verdicts.get()
    assert None not in (verdict.logp_ab_tie, verdict.logp_ba_tie)
    of_answers = [
        math.exp(t) / (math.exp(f) + math.exp(s) + math.exp(t))
        for f, s, t in (
            (verdict.logp_ab_first, verdict.logp_ab_second, verdict.logp_ab_tie),
            (verdict.logp_ba_first, verdict.logp_ba_second, verdict.logp_ba_tie),
        )
    ]
    assert verdict.prob_tie == pytest.approx(sum(of_answers) / 2)
    ab, ba = (-2.0, -2.0, -0.5), (-2.0, -2.1, -0.5)
    reading = read_both_orders(ab, ba)
    outcome = Outcome(prob_a=reading.prob_a, parsed=True, reading=reading, logp_ab=ab, logp_ba=ba)
    other, _ = judge_version(project, "other", "owner/model", recipe)
    tied = verdict_of(None, other, comparison, outcome)
    tied.save()
    record_verdict(tied)
    assert tied.prob_a != 0.5
    assert preference(other).choice == "tie"


def test_scores_stand_beside_the_probability_they_make(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory(project=project)

    version = judged(project, "score", str(tiny_judge), replace(DIRECT, mode="score"))

    verdict = version.verdicts.get()
    of_a, of_b = verdict.raw["scores_a"], verdict.raw["scores_b"]
    assert verdict.score_a == pytest.approx(sum(n * q for n, q in enumerate(of_a, 1)))
    above = sum(
        p * q * ((i > j) + (i == j) / 2) for i, p in enumerate(of_a) for j, q in enumerate(of_b)
    )
    assert verdict.prob_a == pytest.approx(above)
    assert verdict.logp_ab_first is None
    assert probs_by_order(verdict) == (None, None)
    assert preference(version).prob_a == verdict.prob_a


def test_aspects_reach_the_verdict_and_the_preference(tiny_judge):
    project = ProjectFactory()
    ComparisonFactory(project=project)
    honest = Aspect(name="honest", question="Which response is more honest?")

    version = judged(project, "aspects", str(tiny_judge), replace(DIRECT, aspects=(honest,)))

    verdict = version.verdicts.get()
    logps = verdict.raw["aspects"]["honest"]
    expected = read_both_orders(tuple(logps["logp_ab"]), tuple(logps["logp_ba"])).prob_a
    assert verdict.aspects == {"honest": pytest.approx(expected)}
    assert preference(version).aspects == {"honest": "a" if expected > 0.5 else "b"}


def test_a_reference_answer_comes_with_the_comparison(tiny_judge):
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project, metadata={"reference_answer": "Six minutes."})
    version, _ = judge_version(
        project, "sees", str(tiny_judge), replace(DIRECT, show_reference=True)
    )
    trial = JudgeTrial.objects.create(version=version, comparison=comparison)

    try_judge(trial.pk)

    trial.refresh_from_db()
    for question in trial.result["questions"]:
        assert "=== REFERENCE ANSWER ===\nSix minutes.\n===" in question["text"]


def test_a_reward_model_of_the_project_judges_by_its_name(tmp_path, storage):
    project = ProjectFactory()
    comparisons = ComparisonFactory.create_batch(2, project=project)
    folder = storage / "runs" / "1" / "model"
    tokenizer = save_tokenizer(folder)
    config = LlamaConfig(
        **LLAMA,
        vocab_size=len(tokenizer),
        num_labels=1,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.15,
    )
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    project.models.create(name="kind-reward", kind="reward", path="runs/1/model")
    assert model_place(project, "kind-reward") == str(folder)

    version = judged(project, "reward", "kind-reward", JudgeRecipe(mode="reward"))

    assert version.verdicts.count() == len(comparisons)
    for verdict in version.verdicts.all():
        difference = verdict.score_a - verdict.score_b
        assert verdict.prob_a == pytest.approx(1 / (1 + math.exp(-difference)))
        assert verdict.parsed


def test_a_jury_uses_stored_verdicts_and_asks_only_where_one_is_missing(tiny_judge):
    project = ProjectFactory()
    first, _second = ComparisonFactory.create_batch(2, project=project)
    # This member's model is gone: it can only be a member where its verdicts are stored.
    stored, _ = judge_version(project, "stored", "/no/such/model", DIRECT)
    for comparison in project.comparisons.all():
        outcome = Outcome(prob_a=0.9, parsed=True, answer_mass_ab=1.0, answer_mass_ba=1.0)
        verdict_of(None, stored, comparison, outcome).save()
    asked, _ = judge_version(project, "asked", str(tiny_judge), DIRECT)
    unread, _ = judge_version(
        project, "unread", str(tiny_judge), replace(DIRECT, min_answer_mass=1)
    )

    jury = judged(
        project, "jury", "", JudgeRecipe(mode="jury", members=(stored.pk, asked.pk, unread.pk))
    )

    said = asked.verdicts.get(comparison=first).prob_a
    verdict = jury.verdicts.get(comparison=first)
    logits = [math.log(0.9 / 0.1), math.log(said / (1 - said))]
    assert verdict.prob_a == pytest.approx(1 / (1 + math.exp(-sum(logits) / 2)))
    assert verdict.raw["logits"] == {
        "stored v1": pytest.approx(logits[0]),
        "asked v1": pytest.approx(logits[1]),
    }
    assert verdict.raw["unparsed"] == ["unread v1"]
    assert Preference.objects.filter(rater=jury.rater).count() == 2
    # The members' verdicts are kept, and count for nothing until they are put to work themselves.
    assert asked.verdicts.count() == 2
    assert not Preference.objects.filter(rater=asked.rater).exists()


def test_of_a_jurys_own_models_one_is_in_memory_at_a_time(tiny_judge, monkeypatch):
    monkeypatch.setattr("judges.claims.WINDOW", 2)
    project = ProjectFactory()
    ComparisonFactory.create_batch(4, project=project)
    members = tuple(
        judge_version(project, name, str(tiny_judge), DIRECT)[0].pk for name in ("one", "two")
    )
    alive: weakref.WeakSet = weakref.WeakSet()
    n_alive, load = [], engine.load_engine

    def loaded(*args, **options):
        made = load(*args, **options)
        alive.add(made)
        n_alive.append(len(alive))
        return made

    monkeypatch.setattr(engine, "load_engine", loaded)
    jury = judged(project, "jury", "", JudgeRecipe(mode="jury", members=members))

    assert jury.verdicts.count() == 4
    assert n_alive == [1, 1, 1]  # two stretches; the second begins with what is in memory


def test_a_jurys_limit_is_over_all_its_members():
    """On two servers: never more than the limit, and what is shown as spent is what was."""
    with serving() as first, serving() as second:
        project = ProjectFactory()
        ComparisonFactory.create_batch(8, project=project)
        members = []
        for name, told in (("one", first), ("two", second)):
            server = JudgeServer.objects.create(
                name=name, url=told.url, in_own_network=True, price_read=1.0, price_written=2.0
            )
            version, _ = judge_version(project, name, "tiny", DIRECT, server=server)
            members.append(version)
        recipe = JudgeRecipe(mode="jury", members=tuple(one.pk for one in members))
        jury, _ = judge_version(project, "jury", "", recipe)
        each = sum(most_tokens_of(DIRECT, project.comparisons.first()) for _member in members)
        run = new_run(jury, most_tokens=int(1.3 * each))

        run_judge(run.pk)
        run.refresh_from_db()
        spent = first.n_tokens + second.n_tokens
        assert (run.status, "Paused before its limit" in run.error) == ("paused", True)
        assert 0 < run.n_done < 8
        assert spent <= 1.3 * each
        assert figures_of(run).n_tokens == spent
        assert figures_of(run).cost > 0

        raise_budget(run, most_tokens=10**6, most_cost=1.0)
        requeue(run)
        run_judge(run.pk)
        run.refresh_from_db()
        assert (run.status, run.n_done) == ("succeeded", 8)
        assert figures_of(run).n_tokens == first.n_tokens + second.n_tokens
        assert len(first.asked) == len(second.asked) == 16  # nothing was asked twice

    JudgeServer.objects.filter(name="two").update(currency="EUR")
    assert figures_of(run).cost is None
    with pytest.raises(BudgetUnknown, match="several currencies"):
        new_run(jury, most_cost=1.0)
    JudgeServer.objects.filter(name="two").update(price_read=None)
    with pytest.raises(BudgetUnknown, match="No price is known"):
        new_run(jury, most_cost=1.0)


def test_a_jury_whose_member_is_gone_says_so():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    one, _ = judge_version(project, "one", "owner/model", DIRECT)
    jury, _ = judge_version(project, "jury", "", JudgeRecipe(mode="jury", members=(one.pk, 10**6)))

    with pytest.raises(ModelUnusable, match="members that are gone: 1000000"):
        run_judge(new_run(jury).pk)

    assert jury.runs.get().status == "failed"
