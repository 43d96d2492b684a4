"""What a model's name means, and who may name a path."""

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError

from labeling.storage import check_model_name, files_folder, model_folder, storage_path
from tests.factories import ProjectFactory


def test_a_name_is_a_folder_under_models_or_else_a_hub_id(storage):
    (storage / "models" / "small").mkdir(parents=True)
    (storage / "models" / "small" / "config.json").write_text("{}")
    assert model_folder("small") == str(storage / "models" / "small")
    assert model_folder("someone/large") == "someone/large"


def test_a_path_is_taken_as_it_is(tmp_path):
    assert model_folder(str(tmp_path)) == str(tmp_path.resolve())


def test_nothing_outside_the_storage_folder_is_reached(storage):
    with pytest.raises(ValueError, match="outside"):
        storage_path("../elsewhere")


@pytest.mark.parametrize("name", ["/root", "~/x", "./x", "../runs/7/model", "a/../../runs/7/model"])
def test_only_an_administrator_names_a_path(db, name):
    User, project = get_user_model(), ProjectFactory()
    with pytest.raises(ValidationError, match="Only an administrator"):
        check_model_name(project, name, User(is_superuser=False))
    check_model_name(project, name, User(is_superuser=True))
    check_model_name(project, "small", User(is_superuser=False))


@pytest.mark.parametrize("is_superuser", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "data/runs/7/checkpoint",
        "data/model",  # lies where the processes run
        "runs/7",
        "merges/7",
        "a/b/c",
        "file:///etc/passwd",
        "s3://b/x",
        "http://169.254.169.254/x",
        "\\\\evil\\x",
        "owner/-name",
        "owner/name\n",
        "",
    ],
)
def test_a_name_is_never_looked_up_where_the_processes_run(
    db, storage, tmp_path, monkeypatch, name, is_superuser
):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/model", "data/runs/7/checkpoint"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValidationError, match="no folder under models/"):
        check_model_name(ProjectFactory(), name, get_user_model()(is_superuser=is_superuser))
    with pytest.raises(ValueError, match="no folder under models/"):
        model_folder(name)


def test_a_base_that_is_called_like_a_run_is_not_that_run(storage):
    for folder in ("runs/7", "models/small"):
        (storage / folder).mkdir(parents=True)
    assert files_folder("runs/7", is_base=False) == str(storage / "runs/7")
    assert files_folder("models/small", is_base=True) == str(storage / "models/small")
    with pytest.raises(ValueError, match="no hub id"):
        files_folder("runs/7", is_base=True)


def test_a_name_that_no_folder_could_bear_is_refused(db):
    with pytest.raises(ValidationError, match="File name too long"):
        check_model_name(ProjectFactory(), "é" * 128, get_user_model()())
