"""The pages, the API and the command of datasets."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from tests.factories import MembershipFactory, UserFactory, bearer
from tests.training.projects import comparison, labeled_project
from training.dataset_settings import DatasetSettings
from training.models import Dataset, DatasetDraft, Run
from training.previews import build
from training.tasks import build_dataset

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    project = labeled_project(16)
    comparison(project, question="Equal?", ann="tie")
    comparison(project, question="Split?", ann="a", bob="b", cem="a")
    return project


@pytest.fixture
def lead(project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    return user


@pytest.fixture
def browser(client, lead, monkeypatch):
    """Signed in as the lead; the worker's work is done when a test asks for it."""
    monkeypatch.setattr("training.tasks.build_dataset.delay_on_commit", lambda pk: None)
    client.force_login(lead)
    return client


def frozen(project, **settings) -> Dataset:
    return build(project, DatasetSettings(**settings), freezing=True)[1]


def page(name: str, *args) -> str:
    return reverse(f"training:{name}", args=["polite", *args])


def text_of(response) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def fields(client) -> dict[str, str]:
    """What a browser would send from the builder's form as it stands."""
    values = {f.name: f.value() for f in client.get(page("new_dataset")).context["form"]}
    return {n: "on" if v is True else str(v) for n, v in values.items() if v is not False}


def test_a_lead_previews_then_freezes_and_is_led_to_the_dataset(browser, project):
    sent = fields(browser) | {"aggregate": "soft", "preview": "1"}
    fragment = browser.post(page("new_dataset"), sent, headers={"HX-Request": "true"})
    draft = DatasetDraft.objects.get()
    assert 'hx-trigger="every 1s"' in fragment.content.decode()
    assert "<html" not in fragment.content.decode()
    assert draft.filters == DatasetSettings(aggregate="soft").as_json()

    build_dataset(draft.pk)
    shown = text_of(browser.get(page("draft", draft.pk), headers={"HX-Request": "true"}))
    for words in (
        "Freeze this dataset", "Pairs 17", "Ties 1", "17 prompts", "The longer response was chosen",
        "None of 17 prompts shares 80", "There is nothing to leak into yet",
    ):  # fmt: skip
        assert words in shown
    assert Dataset.objects.count() == 0

    response = browser.post(page("freeze_draft", draft.pk))
    second = DatasetDraft.objects.first()
    assert (second.freezing, response.url) == (True, page("draft", second.pk))
    build_dataset(second.pk)
    made = Dataset.objects.get()
    assert browser.get(page("draft", second.pk)).url == page("dataset", made.sha256)
    shown = text_of(browser.get(page("dataset", made.sha256)))
    for words in (made.sha256, "Soft: the share of votes", "None yet.", "Thank you! Answer"):
        assert words in shown
    content = b"".join(browser.get(page("dataset_file", made.sha256)).streaming_content)
    assert len(content.splitlines()) == 18


def test_a_new_preview_stops_the_same_persons_last_one(browser):
    sent = fields(browser) | {"preview": "1"}
    browser.post(page("new_dataset"), sent)
    browser.post(page("new_dataset"), sent)

    assert list(DatasetDraft.objects.values_list("status", flat=True)) == ["queued", "cancelled"]
    browser.post(page("cancel_draft", DatasetDraft.objects.first().pk))
    assert not DatasetDraft.objects.active().exists()


def test_what_cannot_be_built_is_said_at_its_field(browser):
    sent = fields(browser) | {"since": "2026-02-02", "until": "2026-01-01", "preview": "1"}

    plain = text_of(browser.post(page("new_dataset"), sent))
    fragment = text_of(browser.post(page("new_dataset"), sent, headers={"HX-Request": "true"}))

    assert "Must not be later than until." in plain
    assert "Votes from: Must not be later than until." in fragment
    assert not DatasetDraft.objects.exists()


def test_one_like_it_begins_with_the_same_settings(browser, project):
    made = frozen(project, aggregate="soft", tags_excluded=("rude", "odd"), near_duplicates=0.0)

    form = browser.get(page("new_dataset"), {"like": made.sha256}).context["form"]

    assert (form["aggregate"].value(), form["tags_excluded"].value()) == ("soft", "rude, odd")
    assert form["near_duplicates"].value() == 0.0


def test_viewers_look_at_datasets_and_do_not_take_the_file(client, project):
    made = frozen(project)
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="viewer")
    client.force_login(user)

    assert made.sha256[:12] in text_of(client.get(page("datasets")))
    assert "Download" not in text_of(client.get(page("dataset", made.sha256)))
    assert client.get(page("dataset_file", made.sha256)).status_code == 403
    assert client.get(page("dataset", "f" * 64)).status_code == 404


def test_a_dataset_whose_file_is_gone_and_one_without_a_preview_are_shown(browser, project):
    from labeling.storage import storage_path
    from training.datasets import freeze

    made = freeze(project)
    assert "without a preview" in text_of(browser.get(page("dataset", made.sha256)))
    storage_path(made.path).unlink()

    assert "The file is gone" in text_of(browser.get(page("dataset", made.sha256)))
    assert browser.get(page("dataset_file", made.sha256)).status_code == 404


def test_a_program_builds_a_dataset_and_trains_on_it(client, lead, project, monkeypatch, storage):
    monkeypatch.setattr("training.tasks.build_dataset.delay_on_commit", build_dataset)
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    monkeypatch.setattr("training.runs.check_base", lambda folder, recipe: None)
    url, headers = "/api/projects/polite/", bearer(lead)

    def post(path, body):
        return client.post(url + path, body, "application/json", headers=headers)

    refused = post("datasets/", {"settings": {"least_votes": 0}})
    assert (refused.status_code, "least_votes" in refused.content.decode()) == (400, True)
    started = post("datasets/", {"settings": {"ties": "kept"}})
    assert (started.status_code, started.json()["freezing"]) == (202, True)
    draft = client.get(f"{url}dataset-drafts/{started.json()['id']}/", headers=headers).json()
    made = Dataset.objects.get()
    assert (draft["status"], draft["dataset"]) == ("succeeded", made.sha256)
    one = client.get(f"{url}datasets/{made.pk}/", headers=headers).json()
    assert one["counts"]["ties_kept"] == 1
    assert one["preview"] == draft["preview"]

    run = post("runs/", {"kind": "reward", "base_model": "some/base", "dataset": made.sha256[:12]})
    assert (run.status_code, run.json()["dataset"]) == (202, made.sha256)
    unknown = post("runs/", {"kind": "reward", "base_model": "some/base", "dataset": "0000"})
    assert "dataset: none begins with '0000'" in unknown.content.decode()
    assert "1 ties stand in its file" in Run.objects.get().events.first().text


def test_the_command_says_the_same_as_the_pages(project):
    def call(*arguments) -> str:
        out = io.StringIO()
        call_command("dataset", "--project", "polite", *arguments, stdout=out)
        return out.getvalue()

    seen = json.loads(call("--preview", "--json"))
    assert (seen["dataset"], seen["counts"]["pairs"], Dataset.objects.count()) == (None, 17, 0)
    made = json.loads(call("--set", "aggregate=soft", "--set", "ties=half", "--json"))
    dataset = Dataset.objects.get()
    assert (made["dataset"], made["counts"]["ties_half"]) == (dataset.sha256, 1)
    assert made["filters"] == dataset.filters
    assert "17  pairs" in call("--preview")
    with pytest.raises(CommandError, match="a dataset has no setting 'colour'"):
        call("--set", "colour=red")
    with pytest.raises(CommandError, match="no clear preference by AI judges yet"):
        call("--set", "labels=ai")


def test_the_launch_form_takes_a_frozen_dataset(browser, project, monkeypatch):
    monkeypatch.setattr("training.tasks.train.delay_on_commit", lambda pk: None)
    monkeypatch.setattr("training.runs.check_base", lambda folder, recipe: None)
    monkeypatch.setattr("training.forms.launch.check_base", lambda folder, recipe: None)
    made = frozen(project, aggregate="soft")
    url = page("launch", "reward")
    form = browser.get(url, {"dataset": made.sha256}).context["form"]
    assert form["dataset"].value() == made.sha256
    sent = {f.name: f.value() for f in form if f.value() is not None}
    sent = {name: value for name, value in sent.items() if value is not False}

    response = browser.post(url, sent | {"base_model": "some/base", "launch": "1"})

    run = Run.objects.get()
    assert (response.url, run.dataset) == (page("run", run.pk), made)
    assert Dataset.objects.count() == 1


def test_a_project_too_large_to_count_in_a_page_leaves_the_labels_to_the_worker(
    browser, project, monkeypatch
):
    monkeypatch.setattr("training.forms.launch.COUNTED_AT_ONCE", 17)
    made = frozen(project)
    url = page("launch", "reward")

    whole = text_of(browser.get(url))
    assert "18 comparisons are too many to be counted while you wait" in whole
    chosen = text_of(browser.get(url, {"dataset": made.sha256}))
    assert ("too many" in chosen, "Pairs 17" in chosen) == (False, True)
