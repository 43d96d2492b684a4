"""The registry: what a model came from, what depends on it, its files on their way out."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from labeling.models import Change, Choice
from labeling.storage import storage_path
from tests.factories import MembershipFactory, ProjectFactory, UserFactory, bearer
from tests.training.projects import comparison, labeled_project
from training.datasets import freeze
from training.lineage import lineage
from training.model_files import serving_command
from training.models import Merge, ModelExport, ModelVersion, Run
from training.registry import StillInUse, delete_model, own_path, what_depends
from training.tasks import carry_out_job

pytestmark = pytest.mark.django_db

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 12, "lora_alpha": 8}


def adapter(folder: Path, base: Path | str, **settings) -> None:
    """What the web process looks at: the description, and files with some size."""
    folder.mkdir(parents=True)
    config = LORA | {"base_model_name_or_path": str(base)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"0" * 1000)


@pytest.fixture
def world(storage):
    """labels → dataset → run → policy, which is merged with another policy of the same base."""
    project = labeled_project(12)
    comparison(project, question="One for the judge?", gpt_judge=Choice.B)
    base_folder = storage / "models" / "tiny"
    base_folder.mkdir(parents=True)
    (base_folder / "config.json").write_text("{}")
    (base_folder / "model.safetensors").write_bytes(b"0" * 5000)
    base = project.models.create(name="tiny", kind="base", path=str(base_folder))
    run = Run.objects.create(
        project=project,
        kind="dpo",
        base_model="tiny",
        recipe={"method": "lora"},
        dataset=freeze(project),
        code_version="1",
        status="succeeded",
    )
    adapter(storage / "runs" / "1" / "model", base_folder)
    adapter(storage / "runs" / "2" / "model", base_folder, modules_to_save=["norm"])
    trained = project.models.create(
        name="dpo-1", kind="policy", path="runs/1/model", base=base, run=run
    )
    other = project.models.create(name="dpo-2", kind="policy", path="runs/2/model", base=base)
    merge = Merge.objects.create(project=project, name="both", method="linear", status="succeeded")
    merge.parts.create(model=trained, place=1)
    merge.parts.create(model=other, place=2)
    (storage / "merges" / "1" / "model").mkdir(parents=True)
    (storage / "merges" / "1" / "model" / "model.safetensors").write_bytes(b"0" * 7000)
    merged = project.models.create(
        name="both", kind="policy", path=f"merges/{merge.pk}/model", merge=merge
    )
    if merge.pk != 1:
        (storage / "merges" / "1").rename(storage / "merges" / str(merge.pk))
    return project, base, trained, other, merged


def sign_in(client, project, role="lead"):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role=role)
    client.force_login(user)
    return client


def test_the_lineage_reaches_from_the_labels_to_the_merged_model(world):
    _project, base, trained, _other, merged = world
    graph = lineage(merged)
    kinds = {node.kind for node in graph.nodes}
    assert kinds == {"labels", "dataset", "run", "merge", "base", "model"}
    labels = next(node for node in graph.nodes if node.kind == "labels")
    assert (labels.title, labels.detail) == ("13 labels", "1 person, 1 AI judge")
    arrows = {(a.key, b.key) for a, b in graph.edges}
    run = trained.run
    assert {
        (f"labels-{run.dataset.pk}", f"dataset-{run.dataset.pk}"),
        (f"dataset-{run.dataset.pk}", f"run-{run.pk}"),
        (f"model-{base.pk}", f"run-{run.pk}"),
        (f"run-{run.pk}", f"model-{trained.pk}"),
        (f"model-{trained.pk}", f"merge-{merged.merge.pk}"),
        (f"merge-{merged.merge.pk}", f"model-{merged.pk}"),
    } <= arrows
    assert all(a.x < b.x for a, b in graph.edges)
    places = {(node.x, node.y) for node in graph.nodes}
    assert len(places) == len(graph.nodes)


def test_a_models_page_draws_where_it_came_from_with_links(world, client):
    project, _base, _trained, _other, merged = world
    page = sign_in(client, project, "viewer").get(
        reverse("training:model", args=[project.slug, merged.name])
    )
    text = page.content.decode()
    assert '<svg class="lineage-graph"' in text
    assert reverse("training:model", args=[project.slug, "dpo-1"]) in text
    assert "style=" not in text
    assert "Delete" not in text


def test_the_list_is_found_by_words_kind_origin_and_tag(
    world, client, django_assert_max_num_queries
):
    project, base, trained, _other, _merged = world
    trained.tags, trained.notes = ["good"], "the calm one"
    trained.save()
    client = sign_in(client, project)
    url = reverse("training:models", args=[project.slug])

    def names(query: str = "") -> list[str]:
        return [row[0].name for row in client.get(url + query).context["rows"]]

    assert names() == ["both", "dpo-2", "dpo-1", "tiny"]
    assert names("?q=calm") == ["dpo-1"]
    assert names("?tag=good") == ["dpo-1"]
    assert names("?kind=base") == ["tiny"]
    assert names("?made=merge") == ["both"]
    with django_assert_max_num_queries(13):
        client.get(url)
    for n in range(5):
        project.models.create(name=f"more-{n}", kind="policy", path="nowhere", base=base)
    with django_assert_max_num_queries(13):
        client.get(url)


def test_deleting_shows_what_depends_and_takes_all_of_it_or_nothing(
    world, client, storage, django_capture_on_commit_callbacks
):
    project, _base, trained, _other, merged = world
    depends = what_depends(trained)
    assert [version.name for version in depends.models] == ["both", "dpo-1"]
    description = storage / "runs" / "1" / "model" / "adapter_config.json"
    assert depends.n_bytes == 7000 + 1000 + description.stat().st_size
    client = sign_in(client, project)
    url = reverse("training:delete_model", args=[project.slug, "dpo-1"])
    assert "both" in client.get(url).content.decode()

    client.post(url, {"agreed": [trained.pk]})  # seen before the merge ended
    assert ModelVersion.objects.filter(pk__in=[trained.pk, merged.pk]).count() == 2
    with django_capture_on_commit_callbacks(execute=True):
        client.post(url, {"agreed": [trained.pk, merged.pk]})
    assert list(project.models.values_list("name", flat=True)) == ["dpo-2", "tiny"]
    assert not (storage / "runs" / "1" / "model").exists()
    assert list((storage / "merges").iterdir()) == []
    assert (storage / "runs" / "2" / "model").exists()
    assert Run.objects.count() == 1
    change = Change.objects.get(action="delete model")
    assert change.after["models"] == ["both", "dpo-1"]


def asks(project, name: str, model: str):
    """A judge of the project whose model is `model`, as a rater."""
    rater = project.raters.create(kind="judge", name=f"{name} v1")
    project.judges.create(name=name).versions.create(
        number=1, model=model, rater=rater, recipe={"mode": "pairwise"}
    )
    return rater


def test_a_judge_that_asks_a_model_is_shown_and_stays_with_what_it_said(
    world, client, storage, django_capture_on_commit_callbacks
):
    project, _base, trained, _other, merged = world
    named = asks(project, "named", "both")
    asks(project, "apart", "dpo-2")
    asks(project, "hub", "org/both..x")
    other_project = ProjectFactory(slug="other")
    by_path = asks(other_project, "by-path", str(storage / "runs" / "1" / "model"))
    asks(other_project, "same-name", "both")
    assert what_depends(trained).judges == [named, by_path]
    url = reverse("training:delete_model", args=[project.slug, "dpo-1"])
    client = sign_in(client, project)
    page = client.get(url).content.decode()
    assert "named v1" in page
    assert "1 judge of another project" in page
    assert "by-path" not in page

    agreed = {"agreed": [trained.pk, merged.pk]}
    client.post(url, agreed)  # the judge was not on the list that was confirmed
    assert project.models.filter(name="both").exists()
    running = named.judge_version.runs.create(status="running")
    client.post(url, agreed | {"agreed_judge": [named.pk]})
    assert project.models.filter(name="both").exists()
    running.delete()
    with django_capture_on_commit_callbacks(execute=True):
        client.post(url, agreed | {"agreed_judge": [named.pk]})
    assert not project.models.filter(name="both").exists()
    assert project.raters.filter(pk=named.pk).exists()
    assert Change.objects.get(action="delete model").after["judges"] == ["named v1", "by-path v1"]


def test_checkpoints_go_with_the_model_and_all_of_a_run_goes_with_the_run(
    world, client, storage, django_capture_on_commit_callbacks
):
    project, _base, trained, _other, merged = world
    run = trained.run
    Run.objects.filter(pk=run.pk).update(folder="runs/1")
    stopped = Run.objects.create(
        project=project, kind="dpo", base_model="x", status="failed", folder="runs/7"
    )
    study = stopped.studies.create(project=project, kind="curve", status="failed")
    for row, step in ((run, 1), (run, 2), (stopped, 5)):
        folder = storage / "runs" / ("1" if row == run else "7") / "checkpoints"
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / "optimizer.bin").write_bytes(b"0" * 500)
        row.checkpoints.create(step=step, path=str(place.relative_to(storage)))
    (storage / "studies" / str(study.pk)).mkdir(parents=True)
    (storage / "runs" / "1" / "output.log").write_text("said")
    trained.refresh_from_db()

    client = sign_in(client, project)
    before = what_depends(trained)
    assert len(before.checkpoints) == 2
    url = reverse("training:delete_model", args=[project.slug, "dpo-1"])
    assert "2 checkpoints" in client.get(url).content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        client.post(url, {"agreed": [trained.pk, merged.pk]})
    assert sorted(path.name for path in (storage / "runs" / "1").iterdir()) == ["output.log"]
    assert run.checkpoints.count() == 0

    api = f"/api/projects/{project.slug}/runs/{stopped.pk}/delete/"
    lead = bearer(MembershipFactory(project=project).user)
    page = client.get(reverse("training:delete_run", args=[project.slug, stopped.pk]))
    text = page.content.decode()
    assert "1 checkpoint" in text
    assert f"Study {study.pk}" in text
    stopped.studies.update(status="running")
    refused = client.post(api, {"models": []}, "application/json", headers=lead)
    assert refused.status_code == 409
    stopped.studies.update(status="failed")
    with django_capture_on_commit_callbacks(execute=True):
        answer = client.post(api, {"models": []}, "application/json", headers=lead)
    assert answer.json() == {"models": [], "judges": [], "checkpoints": 1}
    assert not (storage / "runs" / "7").exists()
    assert list((storage / "studies").iterdir()) == []
    with django_capture_on_commit_callbacks(execute=True):
        client.post(reverse("training:delete_run", args=[project.slug, run.pk]))
    assert not Run.objects.exists()
    assert not (storage / "runs" / "1").exists()
    assert project.datasets.count() == 1


def test_a_model_that_something_reads_stays(world):
    project, base, _trained, _other, _merged = world
    Run.objects.update(status="running")
    with pytest.raises(StillInUse, match="still reads"):
        delete_model(base, None, agreed={version.pk for version in what_depends(base).models})
    assert project.models.count() == 4


def test_files_outside_the_storage_are_never_touched(
    world, storage, tmp_path, django_capture_on_commit_callbacks
):
    project, base, _trained, _other, _merged = world
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (storage / "runs" / "9").mkdir()
    (storage / "runs" / "9" / "model").symlink_to(outside)
    for path in ("runs/9/model", str(outside), "runs", "../outside", "models/tiny", "runs/.."):
        assert own_path(path) is None, path
    odd = project.models.create(name="odd", kind="policy", path="runs/9/model", base=base)
    with django_capture_on_commit_callbacks(execute=True):
        gone = delete_model(base, None, agreed={v.pk for v in what_depends(base).models})
    assert odd.name in {version.name for version in gone.models}
    assert (outside / "precious").exists()
    assert (storage / "models" / "tiny" / "model.safetensors").exists()  # it was brought in


def test_tags_and_notes_are_kept_with_who_wrote_them(world, client):
    project, _base, trained, _other, _merged = world
    client = sign_in(client, project)
    url = reverse("training:describe_model", args=[project.slug, "dpo-1"])
    client.post(url, {"tags": "Calm,  best of all, calm", "notes": "Good at rivers."})
    trained.refresh_from_db()
    assert (trained.tags, trained.notes) == (["best of all", "calm"], "Good at rivers.")
    assert Change.objects.get(action="describe model").after["tags"] == ["best of all", "calm"]
    headers = bearer(MembershipFactory(project=project).user)
    api = f"/api/projects/{project.slug}/models/{trained.pk}/"
    answer = client.patch(api, {"tags": ["x"]}, "application/json", headers=headers)
    assert (answer.json()["tags"], answer.json()["notes"]) == (["x"], "Good at rivers.")
    refused = client.post(
        api + "delete/", {"models": ["dpo-1"]}, "application/json", headers=headers
    )
    assert refused.status_code == 409


def test_a_download_is_a_zip_that_names_its_base_as_people_do(world, client, storage):
    project, *_models = world
    (storage / "runs" / "1" / "model" / "training_args.bin").write_bytes(b"pickle")
    (storage / "runs" / "1" / "model" / "secret.json").symlink_to("/etc/hostname")
    client = sign_in(client, project)
    url = reverse("training:download_model", args=[project.slug, "dpo-1"])
    answer = client.get(url, headers={"Accept-Encoding": "gzip"})
    archive = zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == [
        "dpo-1/adapter_config.json",
        "dpo-1/adapter_model.safetensors",
    ]
    settings = json.loads(archive.read("dpo-1/adapter_config.json"))
    assert settings["base_model_name_or_path"] == "tiny"
    assert str(storage) not in archive.read("dpo-1/adapter_config.json").decode()
    viewer = sign_in(client, project, "viewer")
    assert viewer.get(url).status_code == 403


def test_vllm_is_told_the_rank_it_allows_and_only_adapters_it_takes(world, storage):
    _project, base, trained, *_others = world
    found = serving_command(base)
    assert found["command"] == (
        f"vllm serve {storage}/models/tiny --enable-lora --max-lora-rank 16 "
        f"--lora-modules dpo-1={storage}/runs/1/model"
    )
    assert found["left_out"] == [
        ("dpo-2", "it has layers trained whole (norm); merge it into its base")
    ]
    assert "--lora-modules dpo-1=" in serving_command(trained)["command"]
    made = storage / "runs" / "1" / "model" / "made_by.json"
    made.write_text(json.dumps({"method": "lora", "rope": ["linear", 2.0]}))
    assert "without its longer context" in serving_command(trained)["left_out"][0][1]
    made.unlink()
    above = LORA | {"base_model_name_or_path": f"{storage}/runs/2/model"}
    settings = storage / "runs" / "1" / "model" / "adapter_config.json"
    settings.write_text(json.dumps(above))
    assert "it stands on another adapter" in serving_command(trained)["left_out"][0][1]
    settings.write_text(
        json.dumps(LORA | {"base_model_name_or_path": "org/base", "use_dora": True})
    )
    assert serving_command(trained) == {
        "command": "",
        "left_out": [("dpo-1", "it is a DoRA; merge it into its base")],
    }


def test_a_gguf_file_is_written_by_a_worker_and_fetched(world, client, tiny_model):
    pytest.importorskip("gguf")
    project, *_models = world
    project.models.create(name="whole", kind="base", path=tiny_model)
    client = sign_in(client, project)
    client.post(
        reverse("training:export_model", args=[project.slug, "whole"]), {"numbers": "float16"}
    )
    export = ModelExport.objects.get()
    carry_out_job(ModelExport, export.pk)
    export.refresh_from_db()
    assert (export.status, export.error) == ("succeeded", "")
    page = client.get(reverse("training:model", args=[project.slug, "whole"])).content.decode()
    assert "Download" in page
    answer = client.get(reverse("training:exported", args=[project.slug, export.pk]))
    assert b"".join(answer.streaming_content)[:4] == b"GGUF"
    refused = client.post(
        reverse("training:export_model", args=[project.slug, "dpo-1"]),
        {"numbers": "float16"},
        follow=True,
    )
    assert "merge it into its base first" in refused.content.decode()
    assert ModelExport.objects.count() == 1


def test_programs_fetch_files_and_commands_as_pages_do(world, client, tiny_model):
    project, base, trained, *_others = world
    whole = project.models.create(name="whole", kind="base", path=tiny_model)
    api = f"/api/projects/{project.slug}"
    lead = bearer(MembershipFactory(project=project).user)
    viewer = bearer(MembershipFactory(project=project, role="viewer").user)

    answer = client.get(f"{api}/models/{trained.pk}/files/", headers=lead)
    names = zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))).namelist()
    assert "dpo-1/adapter_model.safetensors" in names
    assert client.get(f"{api}/models/{trained.pk}/files/", headers=viewer).status_code == 403
    serving = client.get(f"{api}/models/{base.pk}/serving/", headers=viewer).json()
    assert serving["command"].startswith("vllm serve ")
    assert [row["model"] for row in serving["left_out"]] == ["dpo-2"]

    refused = client.post(
        f"{api}/models/{trained.pk}/exports/", {}, "application/json", headers=lead
    )
    assert "merge it into its base first" in refused.json()["detail"]
    asked = client.post(
        f"{api}/models/{whole.pk}/exports/",
        {"numbers": "float32"},
        "application/json",
        headers=lead,
    )
    assert (asked.status_code, asked.json()["status"]) == (202, "queued")
    one = f"{api}/exports/{asked.json()['id']}/"
    assert client.get(one + "file/", headers=lead).status_code == 404  # not yet
    assert client.post(one + "cancel/", headers=viewer).status_code == 403
    assert client.post(one + "cancel/", headers=lead).json()["status"] == "cancelled"
    listed = client.get(f"{api}/models/{whole.pk}/exports/", headers=viewer).json()["results"]
    assert [(row["model"], row["numbers"]) for row in listed] == [("whole", "float32")]
    path = storage_path(f"exports/{asked.json()['id']}/whole.gguf")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    ModelExport.objects.update(path=f"exports/{asked.json()['id']}/whole.gguf", status="succeeded")
    answer = client.get(one + "file/", headers=lead)
    assert b"".join(answer.streaming_content) == b"GGUF"
    assert client.get(one + "file/", headers=viewer).status_code == 403


def test_the_command_writes_a_zip_and_says_why_not(world, tmp_path, capsys):
    project, *_models = world
    arguments = ["export_model", "dpo-1", "--project", project.slug]
    call_command(*arguments, "--out", str(tmp_path / "x.zip"), "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == (tmp_path / "x.zip").stat().st_size
    with pytest.raises(CommandError, match="merge it into its base first"):
        call_command(*arguments, "--format", "gguf", "--out", str(tmp_path / "x.gguf"))
    call_command(*arguments, "--format", "vllm")
    assert "--max-lora-rank 16" in capsys.readouterr().out


def test_stored_paths_stay_under_the_storage(world):
    assert own_path("runs/1/model") == storage_path("runs/1/model")
