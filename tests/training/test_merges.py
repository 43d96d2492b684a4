"""Merges from the form to the model: real adapters on a tiny base, real rows."""

import json
import shutil
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from labeling.models import Change, Worker
from labeling.storage import storage_path
from tests.factories import MembershipFactory, UserFactory, bearer
from tests.training.ml.test_merging import lora, save_adapter
from tests.training.projects import labeled_project
from training.merges import start_merge, why_no_worker
from training.models import Merge, ModelVersion
from training.tasks import carry_out_job

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """Two LoRA adapters over one base, with their words, as runs leave them."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("calm", "kind"), 1):
        save_adapter(tiny_model, root / name, lora(), seed=seed)
        for path in Path(tiny_model).glob("tokenizer*"):
            shutil.copy(path, root / name)
    return root


@pytest.fixture
def project(made, tiny_model, storage):
    """A project with a base and two policies trained from it."""
    project = labeled_project(4)
    base = project.models.create(name="tiny", kind="base", path=tiny_model)
    for name in ("calm", "kind"):
        shutil.copytree(made / name, storage / "runs" / name / "model")
        project.models.create(name=name, kind="policy", path=f"runs/{name}/model", base=base)
    return project


@pytest.fixture
def lead(project, client):
    user = UserFactory(username="lea")
    MembershipFactory(project=project, user=user, role="lead")
    client.force_login(user)
    return client


def done(merge: Merge) -> Merge:
    carry_out_job(Merge, merge.pk)
    return Merge.objects.select_related("model_version").get(pk=merge.pk)


def test_an_adapter_becomes_a_whole_model_that_knows_its_parents(project):
    merge = done(start_merge(project, name="calm-whole", method="fold", models=["calm"]))

    assert (merge.status, merge.error) == ("succeeded", "")
    assert merge.n_done == merge.n_total > 10
    assert merge.result["check"]["largest"] <= merge.result["check"]["tolerance"]
    model = merge.model_version
    assert (model.name, model.kind, model.base) == ("calm-whole", "policy", None)
    assert (storage_path(model.path) / "model.safetensors").exists()
    assert [part.model.name for part in merge.parts.all()] == ["calm"]
    change = Change.objects.get(action="start merge")
    assert change.after == {"method": "fold", "models": ["calm"]}


def test_the_form_starts_what_it_was_asked_and_says_what_does_not_fit(project, lead):
    url = reverse("training:new_merge", args=[project.slug])
    fields = lead.get(url + "?method=ties&model=calm&model=kind").context["form"]
    assert [place["model"].value() for place in fields.places[:2]] == ["calm", "kind"]
    assert {field.name for field in fields.settings} == {
        *("base", "density", "sign", "scale", "dtype")
    }
    asked = {"name": "both", "method": "slerp", "model_1": "calm", "t": 0.5, "dtype": "base"}
    refused = lead.post(url, asked)
    assert refused.context["form"].errors["model_1"] == ["A merge needs two models at least."] or (
        "SLERP goes from one model to one other." in str(refused.context["form"].errors)
    )
    assert Merge.objects.count() == 0
    answer = lead.post(url, asked | {"model_2": "kind"})
    merge = Merge.objects.get()
    assert answer.url == reverse("training:merge", args=[project.slug, merge.pk])
    assert merge.recipe == {"t": 0.5, "dtype": "base"}
    assert done(merge).model_version.name == "both"
    page = lead.get(answer.url).content.decode()
    assert "its logits on 32 prompts are finite" in page
    again = lead.post(url, asked | {"model_2": "kind"})
    assert "There is a model of this name already." in again.content.decode()


def test_another_method_shows_its_own_fields_without_complaints(project, lead):
    url = reverse("training:new_merge", args=[project.slug])
    typed = {"method": "passthrough", "model_1": "calm", "name": ""}
    part = lead.post(url, typed, headers={"HX-Request": "true"}).content.decode()
    assert 'name="layers"' in part
    assert 'name="density"' not in part
    assert "errors" not in part
    assert "<html" not in part


def test_models_are_put_side_by_side_as_an_adapter_over_their_base(project):
    merge = done(
        start_merge(
            project, name="both", method="cat", models=["calm", "kind"], weights=[0.5, 0.25]
        )
    )
    assert (merge.status, merge.error) == ("succeeded", "")
    assert merge.model_version.base.name == "tiny"
    settings = json.loads(
        (storage_path(merge.model_version.path) / "adapter_config.json").read_text()
    )
    assert settings["r"] == 8
    assert [(part.model.name, part.weight) for part in merge.parts.all()] == [
        ("calm", 0.5),
        ("kind", 0.25),
    ]


def test_a_merge_that_fails_keeps_nothing_and_says_why(project):
    merge = start_merge(project, name="both", method="linear", models=["calm", "kind"])
    (storage_path("runs/kind/model") / "adapter_model.safetensors").unlink()
    merge = done(merge)
    assert merge.status == "failed"
    assert "kind has no weights as safetensors" in merge.error
    assert not storage_path(f"merges/{merge.pk}/model").exists()
    assert not ModelVersion.objects.filter(merge=merge).exists()


def test_a_cancelled_merge_begins_anew_when_it_is_resumed(project, monkeypatch):
    merge = start_merge(project, name="both", method="linear", models=["calm", "kind"])
    from training import merges

    monkeypatch.setattr(merges, "SECONDS_BETWEEN_REPORTS", 0.0)
    Merge.objects.filter(pk=merge.pk).update(cancel_requested=True)
    merge = done(merge)
    assert merge.status == "cancelled"
    folder = storage_path(f"merges/{merge.pk}")
    assert list(folder.iterdir()) == []
    assert merge.resume()
    assert done(merge).model_version.name == "both"
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_programs_merge_and_are_refused_in_words(project, client):
    lead = MembershipFactory(project=project).user
    url = f"/api/projects/{project.slug}/merges/"
    headers = bearer(lead)
    asked = {"name": "both", "method": "ties", "models": ["calm", "kind"]}
    answer = client.post(url, asked, "application/json", headers=headers)
    assert answer.status_code == 202
    merge = done(Merge.objects.get())
    found = client.get(f"{url}{merge.pk}/", headers=headers).json()
    assert (found["status"], found["model"]) == ("succeeded", "both")
    assert found["parts"] == [{"model": "calm", "weight": 1.0}, {"model": "kind", "weight": 1.0}]
    for wrong, words in [
        ({"models": ["calm", "/etc"]}, "models: there is no model /etc in this project"),
        ({"method": "fold"}, "models: one adapter is merged into its base"),
        ({"settings": {"base": "/etc"}}, "base: there is no such setting of a merge"),
        ({"name": "both"}, "name: there is a model both already"),
    ]:
        refused = client.post(
            url, {**asked, "name": "n", **wrong}, "application/json", headers=headers
        )
        assert refused.json() == {"detail": words}


def test_mergekit_is_refused_where_no_worker_has_it(project, client):
    worker = Worker.objects.create(
        name="box:1", queues=["gpu"], disk_free=1, disk_total=1, started_at=timezone.now(),
        heartbeat_at=timezone.now(),
    )  # fmt: skip
    asked = {"name": "both", "method": "mergekit", "models": ["calm", "kind"]}
    with pytest.raises(ValueError, match="No worker has mergekit"):
        start_merge(project, **asked)
    client.force_login(MembershipFactory(project=project, role="lead").user)
    page = client.get(reverse("training:new_merge", args=[project.slug])).content.decode()
    assert page.count("No worker has mergekit") == 1
    Worker.objects.filter(pk=worker.pk).update(versions={"mergekit": "on the PATH"})
    assert why_no_worker("mergekit") == ""


def test_the_command_merges_here_and_prints_its_check(project, capsys):
    arguments = ["merge", "fold", "kind", "--project", project.slug, "--name", "kind-whole"]
    call_command(*arguments, "--wait", "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["model"]) == ("succeeded", "kind-whole")
    assert report["result"]["check"]["same_words"]["value"] == 1.0
    with pytest.raises(CommandError, match="there is a model kind-whole already"):
        call_command(*arguments, "--wait")
