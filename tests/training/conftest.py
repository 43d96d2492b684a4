"""A tiny model that every training test starts from."""

import gc
import hashlib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def settled_imports():
    """Every training run ends by collecting garbage, and would look through all that importing
    the libraries made, for half a second each time."""
    from training.ml import dpo, quiet_star, reward_model, sft  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_model(settled_imports, tmp_path_factory) -> str:
    """Folder of a random two-layer Llama; read only, so that one serves all tests."""
    from tests.training.tiny import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def untouched(tiny_model: str):
    """Fails the test if it changed a byte of the base's weights."""
    path = Path(tiny_model) / "model.safetensors"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    yield
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
