"""Fixtures of every test."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import translation

from config import celery_app
from tests import postgresql


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are marked `realdata`."""
    shared = Path(os.environ.get("PREFLOOP_SHARED", settings.BASE_DIR.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no real data: {shared / 'data'} is not there (set PREFLOOP_SHARED)")
    return shared / "data"


@pytest.fixture(autouse=True)
def storage(settings, tmp_path: Path) -> Path:
    """Every test keeps its files in a folder of its own."""
    settings.PREFLOOP_STORAGE = tmp_path / "storage"
    settings.PREFLOOP_STORAGE.mkdir()
    return settings.PREFLOOP_STORAGE


@pytest.fixture(autouse=True)
def static_files_when_asked_for(settings) -> None:
    """Each test's client would look through every static file; the browser's server still does."""
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(autouse=True)
def english() -> None:
    """A request in another language leaves its thread speaking it: each test begins in English."""
    translation.activate("en")


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The address of a real PostgreSQL server, started for this test session."""
    programs = postgresql.find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # Not under pytest's own folder, which every other pytest that starts closes to other users.
    with (
        tempfile.TemporaryDirectory(prefix="prefloop-postgresql-") as folder,
        postgresql.running(Path(folder), programs) as url,
    ):
        yield url


@pytest.fixture(scope="session", autouse=True)
def queue_in_memory() -> None:
    """Messages that tests send wake nobody: the queue's folder belongs to the application."""
    celery_app.conf.update(broker_url="memory://localhost", broker_transport_options={})
