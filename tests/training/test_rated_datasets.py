"""Judgements of single responses as frozen datasets, and the runs, reports and pages on them."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.imports.importing import import_file
from labeling.models import Rater, Rating
from labeling.storage import storage_path
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
    bearer,
)
from training.dataset_settings import DatasetSettings, make_settings
from training.datasets import load_pairs, load_rows
from training.previews import build
from training.rated_datasets import plan_ratings
from training.reports import figures_of
from training.runs import Impossible, create_run
from training.studies import start_study
from training.tasks import carry_out

pytestmark = pytest.mark.django_db

RATINGS = DatasetSettings(kind="ratings", near_duplicates=0.0, test_share=0.3)
QUICK = {"max_steps": 4, "batch_size": 4, "lora_rank": 2, "dtype": "float32"}


def settings_with(**changes) -> DatasetSettings:
    return make_settings(RATINGS.as_json() | changes)


@pytest.fixture
def project(tmp_path):
    """24 responses with ratings of ann, some with bo's: half of them polite and good."""
    project = ProjectFactory(slug="polite")
    lines = []
    for n in range(24):
        is_good = n % 2 == 0
        text = f"Thank you! Place {n} is calm." if is_good else f"Go away, place {n} is closed."
        ratings = [{"rater": "ann", "value": 4 + n % 4 // 2 if is_good else 1, "scale": [1, 5]}]
        if n % 3 == 0:
            ratings.append({"rater": "bo", "desirable": is_good})
        prompt = f"Which of the places numbered {n} do you like, and what is it called?"
        lines.append({"prompt": prompt, "response": text, "model": "m", "ratings": ratings})
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    import_file(project, path)
    return project


def rate(project, n: int, rater: str, *, kind: str = "person", **said) -> Rating:
    """Another rating of the nth response."""
    response = Rating.objects.of_project(project).order_by("response")[n].response
    judge = project.raters.filter(name=rater, kind=kind).first() or RaterFactory(
        project=project, name=rater, kind=kind
    )
    return Rating.objects.create(response=response, rater=judge, **said)


def frozen(project, settings):
    return build(project, settings, freezing=True)[1]


def posted(form) -> dict:
    """What a browser sends of a form as it came."""
    values = {field.html_name: field.value() for field in form}
    return {name: v for name, v in values.items() if v is not None and v is not False}


def test_ratings_become_rows_with_their_mean_and_how_many_call_it_good(project):
    dataset = frozen(project, RATINGS)

    assert (dataset.of_ratings, dataset.n_rows) == (True, 24)
    counts = dataset.counts
    assert (counts["singles"], counts["good"], counts["bad"], counts["neutral"]) == (24, 12, 12, 0)
    assert (counts["human"], counts["on_scale"], counts["one_sided"]) == (24, 24, 24)
    assert counts["train"] + counts["test"] == 24
    assert {(r["rater"], r["n"]) for r in dataset.raters} == {("ann", 24), ("bo", 8)}
    train, test = load_rows(dataset)
    assert len(train) == counts["train"]
    assert not {s.prompt_id for s in train} & {s.prompt_id for s in test}
    polite = [s for s in train + test if s.good == 1.0]
    # 4 and 5 of 1 to 5, with and without bo's thumb: (0.5 + 1) / 2 = 0.75.
    assert {s.rating for s in polite} == {0.5, 1.0, 0.75}
    assert {s.rating for s in train + test if s.good == 0.0} == {-1.0}
    with pytest.raises(ValueError, match="no pairs"):
        load_pairs(dataset)


def test_the_same_ratings_and_settings_give_the_same_file_and_a_new_rating_another(project):
    first = frozen(project, RATINGS)
    assert frozen(project, RATINGS) == first
    assert len(storage_path(first.path).read_bytes().splitlines()) == 25
    rate(project, 0, "cy", desirable=False)
    assert frozen(project, RATINGS) != first


def test_raters_who_differ_make_a_soft_share_and_less_weight(project):
    rate(project, 0, "cy", desirable=False)  # ann gave 4 of 5, bo a thumb up

    def row(**changes):
        made = {}
        plan_ratings(
            project,
            settings_with(**changes),
            with_texts=True,
            on_row=lambda row: made.setdefault(len(row.counted), row),
        )
        return made[3]

    soft = row(aggregate="soft")
    assert (soft.good, soft.thumbs, soft.rating) == (0.666667, (2, 1, 0), round(0.5 / 3, 6))
    assert row().good == 1.0
    assert row(weights="certainty").weight == 0.333333
    assert row(weights="votes").weight == 3.0
    found = plan_ratings(project, settings_with(least_agreement=0.7)).counts
    assert (found["low_agreement"], found["singles"]) == (1, 23)
    assert plan_ratings(project, settings_with(least_votes=2)).counts["few_votes"] == 16
    assert plan_ratings(project, settings_with(aggregate="votes")).counts["singles"] == 33


def test_a_middle_rating_is_neither_good_nor_bad_and_the_line_can_be_drawn_elsewhere(project):
    Rating.objects.filter(value=4.0).update(value=3.0)
    counts = plan_ratings(project, RATINGS).counts
    assert counts["neutral"] == 4  # those without bo's thumb; with it half a thumb more
    strict = plan_ratings(project, settings_with(good_above=0.9)).counts
    assert strict["good"] < counts["good"] + counts["neutral"]


def test_people_go_before_judges_and_other_aspects_sources_and_known_answers_stay_out(project):
    rate(project, 0, "gpt", kind=Rater.Kind.JUDGE, value=1, low=1, high=10)
    rate(project, 1, "ann", aspect="honest", desirable=True)
    gold = Rating.objects.of_project(project).order_by("response").last().response
    ComparisonFactory(project=project, prompt=gold.prompt, response_a=gold, gold="a")

    counts = plan_ratings(project, RATINGS).counts
    assert (counts["ai"], counts["gold"], counts["singles"]) == (0, 1, 23)
    of_judges = plan_ratings(project, settings_with(labels="ai")).counts
    assert (of_judges["ai"], of_judges["unlabeled"]) == (1, 22)
    honest = plan_ratings(project, settings_with(aspect="honest")).counts
    assert (honest["singles"], honest["other_aspect"]) == (1, 22)
    assert plan_ratings(project, settings_with(sources_excluded="m")).counts["other_source"] == 23
    with pytest.raises(ValueError, match="too few rated responses: 1"):
        frozen(project, settings_with(aspect="honest", test_share=0.01))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"kind": "ratings", "ties": "half"}, "ties is a setting of datasets of pairs"),
        ({"kind": "ratings", "aggregate": "dawid-skene"}, "take majority, soft or votes"),
        ({"aspect": "honest"}, "aspect is a setting of datasets of ratings"),
        ({"kind": "triples"}, "kind is 'triples'"),
    ],
)
def test_settings_of_the_other_kind_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        make_settings(wrong)


def test_a_preview_shows_agreement_lengths_and_the_ratings(project):
    shown, dataset = build(project, settings_with(near_duplicates=0.8), freezing=True)

    assert dataset.preview == shown
    assert shown["percent_agreement"]["value"] == 1.0
    assert shown["good_share"]["value"] == 0.5
    assert sum(shown["places"]) == 24
    assert shown["places"][0] == 12
    assert set(shown["lengths"]) == {"prompt", "response"}
    assert shown["duplicates"]["n_prompts"] == 24
    # Prompts of a template, of which only the number differs.
    assert load_rows(dataset)[0]


def test_kto_from_import_to_report(project, tiny_model):
    dataset = frozen(project, RATINGS)
    settings = QUICK | {"loss": "kto", "learning_rate": 1e-2, "max_steps": 12}
    run = create_run(
        project, kind="dpo", base_model=tiny_model, recipe_settings=settings, dataset=dataset
    )
    assert "training responses" in run.events.get().text
    carry_out(run.pk)

    run.refresh_from_db()
    assert (run.status, run.error) == ("succeeded", "")
    assert run.metrics["of"] == "singles"
    assert run.metrics["n"] == dataset.counts["test"]
    report = figures_of(run.model_version, lambda done, total: None)
    assert report["kind"] == "singles"
    # The policy as it was saved is the policy as it was measured.
    assert report["auc"]["value"] == pytest.approx(run.metrics["auc"]["value"])
    assert report["margin"] == pytest.approx(run.metrics["margin"], abs=1e-3)
    assert report["samples"]


def test_a_reward_model_on_ratings_from_the_command_to_its_pages(
    project, tiny_model, client, capsys
):
    dataset = frozen(project, RATINGS)
    chosen = [f"{name}={value}" for name, value in (QUICK | {"loss": "ratings"}).items()]
    call_command(
        *("train", "reward", "--project", "polite", "--base", tiny_model),
        *("--dataset", dataset.sha256[:12], "--wait"),
        *(part for setting in chosen for part in ("--set", setting)),
    )
    run = project.runs.get()
    assert (run.status, run.metrics["of"]) == ("succeeded", "ratings")
    model = run.model_version
    found = figures_of(model, lambda done, total: None)
    assert found["error"]["value"] == pytest.approx(run.metrics["error"]["value"], abs=1e-4)
    assert found["training"]["n"] == dataset.counts["train"]
    assert len(found["worst"]) == min(10, dataset.counts["test"])
    with pytest.raises(ValueError, match="single judgements"):
        start_study(run, "curve", user=None)

    report = model.reports.order_by("-pk").first() or model.reports.create(project=project)
    type(report).objects.filter(pk=report.pk).update(
        status="succeeded", result=found, finished_at=run.finished_at
    )
    client.force_login(MembershipFactory(project=project).user)
    pages = {
        ("run", run.pk): "error of always saying the mean",
        ("report", model.name): "What it is most wrong about",
        ("card", model.name): "Correlation with the ratings",
        ("model", model.name): "judgements of single responses",
        ("dataset", dataset.sha256): "judgements of single responses, frozen",
        ("datasets",): "single judgements",
        ("list",): run.base_model[:4],
    }
    for (name, *args), words in pages.items():
        page = client.get(reverse(f"training:{name}", args=["polite", *args]))
        assert words in page.content.decode(), name


def test_what_does_not_fit_is_refused_before_a_run_in_every_door(
    project, tiny_model, client, capsys
):
    dataset = frozen(project, RATINGS)
    with pytest.raises(Impossible, match="choose kto, or a dataset of pairs"):
        create_run(project, kind="dpo", base_model=tiny_model, dataset=dataset)
    with pytest.raises(CommandError, match="choose ratings, or a dataset of pairs"):
        call_command(
            *("train", "reward", "--project", "polite", "--base", tiny_model),
            *("--dataset", dataset.sha256),
        )
    user = MembershipFactory(project=project, user=UserFactory(is_superuser=True)).user
    answer = client.post(
        "/api/projects/polite/runs/",
        {"kind": "dpo", "base_model": tiny_model, "dataset": dataset.sha256},
        content_type="application/json",
        headers=bearer(user),
    )
    assert answer.status_code == 400
    assert "choose kto" in answer.content.decode()
    client.force_login(user)
    address = reverse("training:launch", args=["polite", "dpo"])
    page = client.get(f"{address}?dataset={dataset.sha256}&loss=kto")
    fields = page.context["form"]
    data = posted(fields)
    data |= {"dataset": dataset.sha256, "base_model": tiny_model, "loss": "sigmoid", "check": "1"}
    page = client.post(address, data)
    assert "choose kto, or a dataset of pairs" in page.content.decode()
    assert project.runs.count() == 0


def test_the_builder_takes_single_judgements_and_the_command_counts_them(project, client, capsys):
    call_command("dataset", "--project", "polite", "--set", "kind=ratings", "--preview")
    shown = capsys.readouterr().out
    assert "24  rated responses" in shown
    assert "good responses: 0.500" in shown
    client.force_login(MembershipFactory(project=project).user)
    address = reverse("training:new_dataset", args=["polite"])
    page = client.get(f"{address}?like={frozen(project, RATINGS).sha256}")
    form = page.context["form"]
    data = posted(form)
    made = client.post(address, data | {"preview": "1"})
    assert (made.status_code, made.context and made.context["form"].errors) == (302, None)
    assert project.dataset_drafts.get().filters == RATINGS.as_json()
    refused = client.post(address, data | {"preview": "1", "ties": "half"})
    assert "a setting of datasets of pairs" in refused.content.decode()


def test_a_person_without_membership_sees_no_ratings(project, client):
    dataset = frozen(project, RATINGS)
    client.force_login(UserFactory())
    for name in ("dataset", "dataset_file"):
        page = client.get(reverse(f"training:{name}", args=["polite", dataset.sha256]))
        assert page.status_code == 404
