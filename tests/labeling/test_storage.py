"""What a model's name means, and who may name a path."""

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError

from labeling.storage import check_model_name, model_folder, storage_path


def test_a_name_is_a_folder_under_models_or_else_a_hub_id(storage):
    (storage / "models" / "small").mkdir(parents=True)
    (storage / "models" / "small" / "config.json").write_text("{}")
    assert model_folder("small") == str(storage / "models" / "small")
    assert model_folder("someone/large") == "someone/large"
    assert model_folder("labeling") == "labeling"  # also a folder where the tests run


def test_a_path_is_taken_as_it_is(tmp_path):
    assert model_folder(str(tmp_path)) == str(tmp_path.resolve())


def test_nothing_outside_the_storage_folder_is_reached(storage):
    with pytest.raises(ValueError, match="outside"):
        storage_path("../elsewhere")


@pytest.mark.parametrize("name", ["/root", "~/x", "./x", "../runs/7/model", "a/../../runs/7/model"])
def test_only_an_administrator_names_a_path(name):
    User = get_user_model()
    with pytest.raises(ValidationError, match="Only an administrator"):
        check_model_name(name, User(is_superuser=False))
    check_model_name(name, User(is_superuser=True))
    check_model_name("small", User(is_superuser=False))


def test_a_name_that_no_folder_could_bear_is_refused():
    check_model_name("é" * 127, get_user_model()())
    with pytest.raises(ValidationError, match="File name too long"):
        check_model_name("é" * 128, get_user_model()())
