"""Rounds: pairs are chosen and given to people, and what came of it is measured."""

import json
from dataclasses import asdict

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.models import (
    Change,
    Comparison,
    JudgeRequest,
    Preference,
    Project,
    Prompt,
    content_hash,
)
from tests.factories import MembershipFactory, PreferenceFactory, RaterFactory, UserFactory
from tests.training.projects import labeled_project
from tests.training.reward_models import save_reward_model
from training.dataset_settings import DatasetSettings
from training.datasets import freeze
from training.ml.config import make_recipe
from training.models import Round, RoundPair, Run
from training.rounds import (
    PRIORITY,
    RoundSettings,
    advice_of,
    carry_out_round,
    create_round,
    defaults_for,
    held_out_rule,
    measure_of,
    round_rows,
    start_round,
    train_on_labels,
)
from training.tasks import carry_out, carry_out_job

pytestmark = pytest.mark.django_db

SMALL = {"n_labels": 10, "n_prompts": 6, "responses": 3, "max_new_tokens": 6, "temperature": 1.0}


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory) -> str:
    return save_reward_model(tiny_model, tmp_path_factory.mktemp("scorer"))


@pytest.fixture
def project(tiny_model, scorer):
    project = labeled_project(12)
    project.models.create(name="base", kind="base", path=tiny_model)
    project.models.create(name="scorer", kind="reward", path=scorer)
    return project


@pytest.fixture
def lead(project, client):
    user = UserFactory(username="lea")
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def carried_out(project, **changes) -> Round:
    settings = RoundSettings(**{"models": ("base",), "scorer": "scorer", **SMALL, **changes})
    made = create_round(project, settings)
    carry_out_job(Round, made.pk)
    made.refresh_from_db()
    return made


def test_a_round_gives_people_pairs_of_which_every_probability_is_known(project):
    made = carried_out(project)

    assert (made.status, made.error) == ("succeeded", "")
    pairs = list(made.pairs.select_related("comparison__response_a", "comparison__prompt"))
    assert len(pairs) == made.result["chosen"] == 10
    n = made.result["candidates"]
    assert 10 < n <= 6 * 3
    rest = {round(p.probability, 6) for p in pairs if p.probability < 1}
    assert rest == {round(1 / (n - 9), 6)} == {round(made.result["floor"], 6)}
    assert sum(p.probability == 1 for p in pairs) == 9  # and one of ten at random, at least
    assert sum(p.at_random for p in pairs) >= 1
    one = pairs[0].comparison
    assert (one.open_places, one.priority, one.response_a.source) == (1, PRIORITY, "base")
    assert one.metadata["round"] == made.number == 1
    assert not held_out_rule(project)(one.prompt.content_hash)
    # Which stream of the desk they come in is drawn as for every other comparison.
    assert len({pair.comparison.random_key for pair in pairs}) == 10


def test_the_same_settings_choose_the_same_pairs_and_known_ones_are_left_out(project):
    made = carried_out(project)
    keys = set(made.pairs.values_list("comparison__content_hash", flat=True))
    again = carried_out(project)
    assert again.number == 2
    assert again.result["known"] == 10
    assert again.result["candidates"] == made.result["candidates"] - 10
    assert not keys & set(again.pairs.values_list("comparison__content_hash", flat=True))
    Comparison.objects.filter(round_pairs__isnull=False).delete()
    Round.objects.all().delete()
    anew = carried_out(project)
    assert set(anew.pairs.values_list("comparison__content_hash", flat=True)) == keys


def test_a_round_that_was_stopped_goes_on_with_what_it_had_sampled(project, monkeypatch):
    monkeypatch.setattr("training.rounds.PROMPTS_AT_ONCE", 2)
    whole = carried_out(project)
    keys = set(whole.pairs.values_list("comparison__content_hash", flat=True))
    Comparison.objects.filter(round_pairs__isnull=False).delete()
    Round.objects.all().delete()
    made = create_round(project, RoundSettings(models=("base",), scorer="scorer", **SMALL))
    told = []

    def stop_at_the_second(round_, **values):
        told.append(values)
        if len(told) == 3:
            Round.objects.filter(pk=round_.pk).update(cancel_requested=True)
        return report(round_, **values)

    report = Round.report
    monkeypatch.setattr(Round, "report", stop_at_the_second)
    carry_out_job(Round, made.pk)
    made.refresh_from_db()
    assert (made.status, made.pairs.count()) == ("cancelled", 0)
    assert Comparison.objects.filter(metadata__round=made.number).count() == 0
    assert made.resume()
    carry_out_job(Round, made.pk)
    made.refresh_from_db()
    assert made.status == "succeeded"
    assert set(made.pairs.values_list("comparison__content_hash", flat=True)) == keys


def test_without_a_reward_model_pairs_are_chosen_by_what_is_alike(project):
    made = carried_out(project, scorer="", n_labels=4, people=3)
    assert made.status == "succeeded"
    wanted = made.pairs.values_list("comparison__labels_wanted", "comparison__open_places")
    assert set(wanted) == {(3, 3)}
    assert made.result["chosen"] == 4
    assert made.pairs.exclude(score=None).count() >= 3


@pytest.mark.parametrize("purpose", ["dpo", "evaluation"])
def test_other_purposes_choose_in_their_own_way(project, tiny_model, purpose):
    project.models.create(name="newer", kind="policy", path=tiny_model)
    made = carried_out(project, purpose=purpose, models=("newer", "base"), n_labels=5, seed=4)
    assert (made.status, made.pairs.count()) == ("succeeded", 5)
    sources = {
        frozenset((p.comparison.response_a.source, p.comparison.response_b.source))
        for p in made.pairs.select_related("comparison__response_a", "comparison__response_b")
    }
    if purpose == "evaluation":  # only pairs of the two say which of them is better
        assert sources == {frozenset(("newer", "base"))}
        assert 0 < min(made.pairs.values_list("probability", flat=True)) < 1


def test_what_cannot_be_is_refused_in_words(project):
    with pytest.raises(ValueError, match="models"):
        RoundSettings(models=())
    with pytest.raises(ValueError, match="random_share"):
        RoundSettings(models=("base",), random_share=0.05)
    for changes, words in (
        ({"models": ("scorer",)}, "no model scorer that writes"),
        ({"scorer": "base"}, "no reward model"),
        ({"way": "bald"}, "ensemble"),
        ({"purpose": "dpo", "scorer": ""}, "needs a reward model"),
    ):
        with pytest.raises(ValueError, match=words):
            create_round(
                project, RoundSettings(**{"models": ("base",), "scorer": "scorer", **changes})
            )
    create_round(project, RoundSettings(models=("base",)))
    with pytest.raises(ValueError, match="on its way"):
        create_round(project, RoundSettings(models=("base",)))


def test_prompts_that_are_held_out_are_never_asked_about(project, tiny_model):
    dataset = freeze(project)
    Run.objects.create(project=project, kind="dpo", status="succeeded", dataset=dataset)
    is_held_out = held_out_rule(project)
    held_out = [p for p in project.prompts.all() if is_held_out(p.content_hash)]
    assert len(held_out) == dataset.counts["test"] > 0
    made = carried_out(project, n_prompts=100)
    assert made.result["prompts"] == project.prompts.count() - len(held_out)
    assert not made.pairs.filter(comparison__prompt__in=held_out).exists()


def test_judges_are_asked_first_only_where_a_certificate_is_in_force(project):
    carried_out(project, n_labels=2)
    assert not JudgeRequest.objects.exists()
    project.certificate_in_force = True
    project.save()
    made = carried_out(project, n_labels=3)
    asked = JudgeRequest.objects.get()
    assert asked.comparisons == sorted(made.pairs.values_list("comparison", flat=True))


def test_one_click_begins_the_next_round_and_the_page_follows_it(project, lead):
    url = reverse("training:rounds", args=[project.slug])
    assert "No round yet" in lead.get(url).content.decode()
    answer = lead.post(url)
    made = Round.objects.get()
    page = reverse("training:round", args=[project.slug, made.pk])
    assert answer.url == page
    assert made.options["models"] == ["base"]
    assert made.options["scorer"] == "scorer"
    assert Change.objects.filter(action="begin round").count() == 1
    card = lead.get(page, headers={"HX-Request": "true"}).content.decode()
    assert "hx-trigger" in card
    assert "Waiting for a worker" in card
    lead.post(reverse("training:cancel_round", args=[project.slug, made.pk]))
    made.refresh_from_db()
    assert made.status == "cancelled"
    lead.post(reverse("training:resume_round", args=[project.slug, made.pk]))
    made.refresh_from_db()
    assert made.status == "queued"


def test_the_form_takes_other_settings_and_says_what_is_wrong(project, lead):
    url = reverse("training:rounds", args=[project.slug])
    values = defaults_for(project).as_json() | {"models": ["base"]}
    refused = lead.post(url, values | {"random_share": "0.01"}).content.decode()
    assert "greater than or equal to 0.1" in refused
    assert not Round.objects.exists()
    lead.post(url, values | SMALL | {"purpose": "reward"})
    assert Round.objects.get().options["n_labels"] == 10


def test_rounds_are_rows_with_their_labels_and_advice_in_as_many_queries(project, lead):
    made = carried_out(project, n_labels=3)
    row = round_rows(project)[0]
    assert (row.n_pairs, row.n_done, row.n_labels, row.advice.word) == (3, 0, 0, "labels")
    ann = RaterFactory(project=project, name="ann-2")
    for pair in made.pairs.all():
        PreferenceFactory(comparison=pair.comparison, rater=ann, choice="a", seconds=1200)
    Comparison.objects.filter(round_pairs__round=made).update(open_places=0)
    row = round_rows(project)[0]
    assert (row.n_done, row.n_labels, row.hours) == (3, 3, 1.0)
    assert (row.n_labels_so_far, row.advice.word) == (3, "train")
    url = reverse("training:rounds", args=[project.slug])
    with CaptureQueriesContext(
        connection,
    ) as with_one:
        assert "3 / 3" in lead.get(url).content.decode()
    for number in (2, 3):
        Round.objects.create(
            project=project, number=number, status="succeeded", purpose="reward",
            options=made.options, result=made.result,
        )  # fmt: skip
    with CaptureQueriesContext(connection) as with_three:
        lead.get(url)
    assert len(with_three) == len(with_one)


def test_a_round_trains_on_the_labels_of_now_and_is_tied_to_its_run(project, lead):
    made = carried_out(project, n_labels=3)
    soft = {"aggregate": "soft", "test_share": 0.3, "seed": 5, "near_duplicates": 0.0}
    Run.objects.create(
        project=project, kind="reward", status="succeeded", base_model="base",
        recipe=asdict(make_recipe("reward", {"base_model": "base"})),
        dataset=freeze(project, DatasetSettings(**soft, since="2020-01-01")),
    )  # fmt: skip
    answer = lead.post(
        reverse("training:train_round", args=[project.slug, made.pk]), {"kind": "reward"}
    )
    made.refresh_from_db()
    # As the last dataset was made, but of the labels of now.
    assert (soft | {"since": ""}).items() <= made.reward_run.labels.items()
    run = made.reward_run
    assert answer.url == reverse("training:run", args=[project.slug, run.pk])
    assert (run.kind, run.base_model, run.status) == ("reward", "base", "queued")
    user = UserFactory()
    with pytest.raises(ValueError, match="on its way already"):
        train_on_labels(made, "reward", user)
    with pytest.raises(ValueError, match="a reward model, or a policy by DPO or PPO"):
        train_on_labels(made, "sft", user)
    assert train_on_labels(made, "dpo", user).labels["aggregate"] == "majority"
    Project.objects.filter(pk=project.pk).update(labels_per_comparison=3)
    made = Round.objects.get(pk=made.pk)
    made.policy_run.delete()
    made.policy_run = None
    assert train_on_labels(made, "dpo", user).labels["aggregate"] == "soft"


def test_a_policy_by_ppo_follows_its_reward_model_and_the_arena_follows_it(project, lead, capsys):
    """One click trains the reward model; the rest comes by itself."""
    quick = {"epochs": 0.2, "lora_rank": 2, "dtype": "float32"}
    small = {"steps": 1, "prompts_per_step": 2, "max_new_tokens": 3, "minibatches": 1, "epochs": 1}
    small |= {"lora_rank": 2, "dtype": "float32", "test_prompts": 1, "reward_models": "scorer"}
    before = {
        kind: Run.objects.create(
            project=project, kind=kind, status="succeeded", base_model="base",
            recipe=asdict(make_recipe(kind, {"base_model": "base", **chosen})),
        )
        for kind, chosen in (("reward", quick), ("ppo", small))
    }  # fmt: skip
    made = carried_out(project, n_labels=3, purpose="ppo")
    assert made.options["purpose"] == "ppo"
    call_command("next_round", "--project", project.slug, "--train", "ppo", "--json")
    made.refresh_from_db()
    told = json.loads(capsys.readouterr().out)
    assert told == {"round": 1, "run": made.reward_run.pk, "kind": "reward", "then": "policy"}
    shown = lead.get(reverse("training:round", args=[project.slug, made.pk])).content.decode()
    assert "By itself follows the policy, once the reward model is trained." in shown

    carry_out(made.reward_run.pk)
    made.refresh_from_db()
    assert made.reward_run.status == "succeeded", made.reward_run.error
    run, scored_by = made.policy_run, made.reward_run.model_version
    assert (run.kind, run.status, made.then) == ("ppo", "queued", "arena")
    assert (run.recipe["steps"], run.dataset) == (1, made.reward_run.dataset)
    assert [used.model for used in run.reward_models.all()] == [scored_by]
    assert "learns from" in made.reward_run.events.last().text

    carry_out(run.pk)
    made.refresh_from_db()
    run.refresh_from_db()
    assert run.status == "succeeded", run.error
    arena = made.arenas.get()
    assert arena.options["models"] == [run.model_version.name, "base"]
    assert made.then == ""
    assert before["ppo"].recipe["reward_models"] == "scorer"  # it was the model for this one


def accuracy_row(value, half, **more):
    row = round_row(**more)
    row.accuracy = {"value": value, "low": value - half, "high": value + half, "n": 400}
    return row


def round_row(**gain):
    from training.rounds import RoundRow

    made = Round(number=1, status="succeeded", reward_run=Run(), policy_run=None)
    row = RoundRow(made, n_pairs=5, n_done=5)
    if gain:
        made.policy_run = Run()
        row.gain = {"sequential": gain, "more": {"value": 120}, "people": {}, "combined": {}}
    return row


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.52, 0.7, "go on"), (0.3, 0.48, "worse"), (0.46, 0.54, "stop"), (0.4, 0.6, "open")],
)
def test_the_advice_follows_the_interval_of_the_gain(low, high, word):
    row = round_row(value=(low + high) / 2, low=low, high=high)
    assert advice_of(row, None).word == word


@pytest.mark.parametrize(
    ("now", "half", "word"),
    [(0.80, 0.02, "go on"), (0.70, 0.005, "stop"), (0.71, 0.03, "open")],
)
def test_the_advice_follows_the_difference_of_two_accuracies(now, half, word):
    before, after = accuracy_row(0.70, half), accuracy_row(now, half)
    assert advice_of(after, before).word == word


def test_the_gain_rests_on_the_arenas_alone(project, tiny_model):
    made = carried_out(project, n_labels=3)
    with pytest.raises(ValueError, match="Train a policy"):
        measure_of(made)
    run = Run.objects.create(project=project, kind="dpo", status="succeeded")
    project.models.create(name="newer", kind="policy", path=tiny_model, run=run)
    made.policy_run = run
    made.save()
    with pytest.raises(ValueError, match="Nobody has compared"):
        measure_of(made)
    arena = project.arenas.create(status="succeeded", options={"models": ["newer", "base"]})
    ann = RaterFactory(project=project, name="ann-2")
    for n in range(8):
        for of_arena in (True, False):  # the others say the opposite, and do not count
            comparison = two_sides(project, f"{n} {of_arena}")
            PreferenceFactory(comparison=comparison, rater=ann, choice="a" if of_arena else "b")
            if of_arena:
                arena.comparisons.add(comparison)
    found = measure_of(made)
    assert (found["new"], found["previous"]) == ("newer", "base")
    assert (found["people"]["value"], found["people"]["n"]) == (1.0, 8)
    assert Preference.objects.filter(rater=ann).count() == 16


def two_sides(project, text: str) -> Comparison:
    messages = [{"role": "user", "content": text}]
    prompt = Prompt.objects.create(
        project=project, messages=messages, content_hash=content_hash(messages)
    )
    sides = [
        prompt.responses.create(
            messages=[{"role": "assistant", "content": f"{text} {source}"}],
            content_hash=content_hash(text, source),
            source=source,
            n_chars=5,
        )
        for source in ("newer", "base")
    ]
    return Comparison.objects.create(
        project=project, prompt=prompt, response_a=sides[0], response_b=sides[1],
        content_hash=content_hash("two", text),
    )  # fmt: skip


def test_the_command_begins_a_round_and_gives_advice(project, capsys):
    asked = [f"{name}={value}" for name, value in SMALL.items() if name != "n_labels"]
    sets = [part for pair in asked for part in ("--set", pair)]
    call_command("next_round", "--project", project.slug, "--labels", "4", *sets, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["round"], told["status"], told["chosen"]) == (1, "succeeded", 4)
    assert told["settings"]["temperature"] == 1.0
    call_command("next_round", "--project", project.slug, "--advice", "--json")
    assert json.loads(capsys.readouterr().out)["advice"] == "labels"
    with pytest.raises(CommandError, match="KEY=VALUE"):
        call_command("next_round", "--project", project.slug, "--set", "colour=red")


def test_a_pair_of_a_round_keeps_its_probability_when_the_comparison_is_labeled(project):
    made = carried_out(project, n_labels=2)
    pair = made.pairs.first()
    before = pair.probability
    PreferenceFactory(comparison=pair.comparison, rater=RaterFactory(project=project))
    assert RoundPair.objects.get(pk=pair.pk).probability == before


def test_a_worker_that_lost_its_round_writes_nothing(project):
    made = start_round(project, RoundSettings(models=("base",), scorer="scorer", **SMALL))
    claimed = Round.objects.claim(made.pk)
    Round.objects.filter(pk=made.pk).update(worker="another:1:0")
    with pytest.raises(Exception, match="another worker"):
        carry_out_round(claimed)
    assert not RoundPair.objects.exists()
