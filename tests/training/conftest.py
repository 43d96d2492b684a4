"""A tiny model that every training test starts from."""

import hashlib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
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
